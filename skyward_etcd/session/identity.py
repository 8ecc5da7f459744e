"""Who this process is in etcd: a lease, and what hangs on it."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from skyward_etcd.session.signals import Signal

__all__ = ["Identity", "Slot"]

MARGIN_S = 1.0
"""Taken off the lease's end: what a clock may be slow, and a hold's last write may take."""


class Slot:
    """A key that only its borrower writes; `mod_revision` is 0 until it has been written."""

    __slots__ = ("key", "mod_revision")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.mod_revision = 0


class Identity:
    """One process with its lease. When the lease is lost, ``lost`` is set, once; what follows is another identity."""

    def __init__(
        self, lease: int, slot_key: Callable[[str, int], bytes], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lease = lease
        self.id = f"{lease:016x}"
        self.lost = Signal()
        self.valid_until = 0.0
        """Monotonic time up to which the lease lives for certain, whatever happens to the network."""
        self.token_base = 0
        """What is added to a revision to make a fencing token of it; 0 in a cluster that was never recovered.

        Every recovery ends all identities, so that one that lives knows the current one."""
        self.notes: dict[Any, Any] = {}
        self._clock = clock
        self._serials = itertools.count(1)
        self._slot_key = slot_key
        self._slot_numbers = itertools.count()
        self._free_slots: deque[Slot] = deque()

    def is_valid(self) -> bool:
        """Tell whether the lease lives for certain, by this machine's monotonic clock."""
        return not self.lost.is_set() and self._clock() < self.valid_until - MARGIN_S

    def serial(self) -> int:
        """Return 1, 2, 3, …: never the same twice."""
        return next(self._serials)

    def borrow_slot(self) -> Slot:
        """Return a slot that nobody else uses until it is given back."""
        try:
            return self._free_slots.pop()
        except IndexError:
            return Slot(self._slot_key(self.id, next(self._slot_numbers)))

    def return_slot(self, slot: Slot) -> None:
        """Give a slot back whose ``mod_revision`` is known for certain."""
        self._free_slots.append(slot)
