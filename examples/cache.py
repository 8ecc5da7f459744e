"""A cache that all nodes share: what one of them has computed, the others find."""

from __future__ import annotations

import time

import skyward_etcd as sky


@sky.function
def look_up(numbers: list[int]) -> int:
    """Make sure that all are in the cache, and return how many were not."""
    cache = sky.dict("squares")
    missed = 0
    for number in numbers:
        if number not in cache:
            time.sleep(0.01)  # as if it were hard to compute
            cache[number] = number**2
            missed += 1
    return missed


def main() -> None:
    """Fill the cache on one node and read it on all."""
    with sky.Compute(nodes=2) as pool:
        first = look_up(list(range(20))) >> pool
        then = look_up(list(range(30))) >> pool
        print(f"one node had to compute {first} of 20, then one had to compute {then} of 30")
        print(f"after that, all nodes: {look_up(list(range(30))) @ pool}")
        print(f"the driver reads the same cache: 7² is {sky.dict('squares')[7]}")


if __name__ == "__main__":
    main()
