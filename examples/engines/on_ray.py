"""The collections inside Ray's workers: each process joins a cluster that runs already, as it starts.

``skyward-etcd up`` starts a cluster on this machine; SKYWARD_ETCD_ENDPOINTS says where it is.
"""

from __future__ import annotations

import atexit
import os

import ray

import skyward_etcd as sky

WORKERS = 3


def join() -> None:
    """Give this process a session until it ends."""
    atexit.register(sky.connect().__enter__().close)


@ray.remote
class Worker:
    """An actor that meets the others, and shares a counter and a queue with them: no actor keeps these."""

    def work(self, number: int) -> list[int]:
        """Put, meet, and take what is there."""
        tasks, done = sky.queue("tasks"), sky.counter("tasks done")
        tasks.put_many(range(10 * number, 10 * number + 10))
        sky.barrier("all have put", n=WORKERS).wait(timeout=60)
        taken: list[int] = []
        while (task := tasks.get(timeout=0)) is not None:
            taken.append(task)
            done.increment()
        return taken


def main() -> None:
    """Let all workers work at once."""
    told = {name: value for name, value in os.environ.items() if name.startswith("SKYWARD_ETCD_")}
    ray.init(num_cpus=WORKERS, runtime_env={"env_vars": told, "worker_process_setup_hook": join})
    workers = [Worker.remote() for _ in range(WORKERS)]
    taken = ray.get([worker.work.remote(number) for number, worker in enumerate(workers)])
    ray.shutdown()
    with sky.connect():
        print(f"tasks by worker: {[len(each) for each in taken]}, together {sky.counter('tasks done').value}")
        assert sorted(task for each in taken for task in each) == list(range(10 * WORKERS))


if __name__ == "__main__":
    main()
