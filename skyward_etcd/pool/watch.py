"""A node's eye on its etcd member, which may die while the node lives.

One that restarts from its disk is started again: a killed process loses nothing of what it wrote, synced or not. Of any
other the driver is told, so that a fresh one can take its place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from skyward_etcd.cluster.member import Member

__all__ = ["watch"]

_log = logging.getLogger("skyward_etcd.pool")

_EVERY_S = 0.25
_RESTARTS = 5
"""A member that dies more often has a reason to, which another start does not take away."""


def watch(member: Member, *, start_s: float, on_lost: Callable[[str], None]) -> None:
    """Keep the member running from a thread of our own; tell ``on_lost`` why once it cannot be."""
    threading.Thread(target=_watch, args=(member, start_s, on_lost), name="member", daemon=True).start()


def _watch(member: Member, start_s: float, on_lost: Callable[[str], None]) -> None:
    name = member.spec.name
    for _ in range(_RESTARTS):
        while member.alive:
            time.sleep(_EVERY_S)
        if not member.spec.restarts:
            on_lost(f"etcd member {name} has died")
            return
        try:
            member.start()
            member.wait_ready(start_s)
        except Exception as error:  # noqa: BLE001  whatever it is, the driver is to know
            on_lost(str(error))
            return
        _log.warning("etcd member %s had died; it runs again from its disk", name)
    on_lost(f"etcd member {name} has died {_RESTARTS} times; the end of its log:\n{member.log_tail()}")
