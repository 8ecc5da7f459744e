"""A node's eye on its etcd member: one whose process dies while the node lives is started again from its disk.

A killed process loses nothing of what it wrote, synced or not; a lost machine would take the node along. Releases that
lose acknowledged writes in a restart are not restarted: the driver is told, and decides.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from skyward_etcd.cluster.binary import Verdict, grade, spell
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
    members = len(member.spec.initial_cluster)
    for _ in range(_RESTARTS):
        while member.alive:
            time.sleep(_EVERY_S)
        verdict = grade(member.etcd.version, durable=True, members=members)
        if verdict.verdict is Verdict.REFUSED:
            release = spell(member.etcd.version)
            on_lost(f"etcd member {member.spec.name} has died, and etcd {release} {verdict.reason}")
            return
        try:
            member.start()
            member.wait_ready(start_s)
        except Exception as error:  # noqa: BLE001  whatever it is, the driver is to know
            on_lost(str(error))
            return
        _log.warning("etcd member %s had died; it runs again from its disk", member.spec.name)
    on_lost(f"etcd member {member.spec.name} has died {_RESTARTS} times; the end of its log:\n{member.log_tail()}")
