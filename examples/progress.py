"""Progress over all nodes: a counter tells each total to one caller only, so each milestone is printed once."""

from __future__ import annotations

import time

import skyward_etcd as sky

STEPS = 200


@sky.function
def train() -> int:
    """Do this node's share of the steps, and return how many these were."""
    done = sky.counter("steps done")
    mine = sky.shard(range(STEPS))
    for _ in mine:
        time.sleep(0.002)  # as if it were work
        total = done.increment()
        if total % (STEPS // 5) == 0:
            print(f"{total / STEPS:.0%} of all steps, and it was me who got there")
    return len(mine)


def main() -> None:
    """Train on all nodes."""
    with sky.Compute(nodes=3) as pool:
        print(f"steps by node: {train() @ pool}, together {sky.counter('steps done').value}")


if __name__ == "__main__":
    main()
