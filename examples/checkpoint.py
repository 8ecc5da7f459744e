"""A checkpoint that never gets worse: read, compare and write under a lock, in a dict with strong reads.

The hold's token only grows from one holder to the next. What is kept outside etcd, a file or a bucket, should refuse
a writer whose token is older than the newest it has seen: that is one who slept through the end of its lock.
"""

from __future__ import annotations

import random

import skyward_etcd as sky


@sky.function
def search(tries: int) -> float:
    """Try, save what is better than all before, and return this node's best."""
    node = sky.instance_info().node
    best = sky.dict("best", consistency="strong")
    chance = random.Random(node)
    mine = 1.0
    for step in range(tries):
        loss = chance.random()
        mine = min(mine, loss)
        with sky.lock("saving the best", timeout=30) as hold:
            if loss < best.get("loss", 1.0):
                best.update(loss=loss, node=node, step=step, token=hold.token)
    return mine


def main() -> None:
    """Search on all nodes."""
    with sky.Compute(nodes=3) as pool:
        by_node = search(20) @ pool
        best = dict(sky.dict("best", consistency="strong").items())
        print(f"the best is of node {best['node']}, step {best['step']}: {best['loss']:.4f}, token {best['token']}")
        assert best["loss"] == min(by_node)


if __name__ == "__main__":
    main()
