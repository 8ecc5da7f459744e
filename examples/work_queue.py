"""A work queue: fast nodes take more tasks than slow ones, and no task is done twice."""

from __future__ import annotations

import time

import skyward_etcd as sky

TASKS = 90


@sky.function
def work() -> int:
    """Take tasks until there are none, and return how many."""
    tasks, results = sky.queue("tasks"), sky.dict("results")
    is_slow = sky.instance_info().node == 0
    done = 0
    while (task := tasks.get(timeout=0)) is not None:
        time.sleep(0.05 if is_slow else 0.005)
        results[task] = task**2
        done += 1
    return done


def main() -> None:
    """Put the tasks, and let all nodes work."""
    with sky.Compute(nodes=3) as pool:
        sky.queue("tasks").put_many(range(TASKS))
        done = work() @ pool
        print(f"the slow node did {done[0]} tasks, the fast ones {done[1]} and {done[2]}")
        assert sum(done) == TASKS
        assert dict(sky.dict("results").items()) == {task: task**2 for task in range(TASKS)}


if __name__ == "__main__":
    main()
