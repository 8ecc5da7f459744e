"""Epochs in step: nobody begins an epoch before everybody has finished the one before."""

from __future__ import annotations

import time

import skyward_etcd as sky

EPOCHS = 5


@sky.function
def train() -> int:
    """Train in step with the others, and return how often this node was the first at the barrier."""
    info = sky.instance_info()
    in_step = sky.barrier("epoch", n=info.total_nodes)
    finished = sky.counter("epochs finished", consistency="strong")
    first = 0
    for epoch in range(1, EPOCHS + 1):
        time.sleep(0.01 * info.node)  # some nodes are slower
        finished.increment()
        place = in_step.wait(timeout=30)  # a node that dies breaks the barrier for all, instead of hanging them
        assert finished.value >= epoch * info.total_nodes
        if place == 0:
            first += 1
            print(f"epoch {epoch}: I was here first, and have waited for all")
    return first


def main() -> None:
    """Train on all nodes."""
    with sky.Compute(nodes=3) as pool:
        print(f"first at the barrier, by node: {train() @ pool}")


if __name__ == "__main__":
    main()
