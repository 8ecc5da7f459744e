"""A work queue that loses no work: what fails is tried again, and what fails always is put aside."""

from __future__ import annotations

import contextlib

import skyward_etcd as sky

TASKS = 30
POISON = 13


class FailedError(Exception):
    """The work could not be done this time."""


def render(task: int, deliveries: int) -> str:
    """Fail now and then, as disks and networks do; fail for ever at one task."""
    if task == POISON or (task % 5 == 0 and deliveries == 1):
        raise FailedError
    return f"frame {task}"


@sky.function
def work() -> int:
    """Work until nothing is left, and return how many tasks were finished here."""
    tasks, frames = sky.queue("tasks", max_deliveries=3), sky.dict("frames")
    done = 0
    while (job := tasks.claim(timeout=1)) is not None:
        # Leaving the block finishes the task. An error in it, or the death of this node, gives the task back.
        with contextlib.suppress(FailedError), job:
            frames[job.value] = render(job.value, job.deliveries)
            done += 1
    return done


def main() -> None:
    """Put the tasks, let all nodes work, and look at what is left."""
    with sky.Compute(nodes=3) as pool:
        tasks = pool.queue("tasks", max_deliveries=3)
        tasks.put_many(range(TASKS))
        done = work() @ pool
        dead = tasks.dead.get_many(TASKS, timeout=10)
        print(f"{sum(done)} tasks were finished, and {dead} failed 3 times")
        assert sum(done) == TASKS - 1
        assert dead == [POISON]
        assert sorted(pool.dict("frames").keys()) == [task for task in range(TASKS) if task != POISON]
        assert (len(tasks), tasks.claimed()) == (0, 0)


if __name__ == "__main__":
    main()
