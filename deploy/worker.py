"""What the worker image runs until it is given something else: work off a queue, together."""

from __future__ import annotations

import skyward_etcd as sky


def main() -> None:
    """Do what is in the queue ``tasks``, each item once, and count it in ``done``."""
    tasks, done = sky.queue("tasks"), sky.counter("done")
    while (task := tasks.claim(timeout=2)) is not None:
        with task:
            print(f"task {task.value}, {done.increment()} done by all")


if __name__ == "__main__":
    with sky.connect():
        main()
