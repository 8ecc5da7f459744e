"""What a survey says of each member, in words and numbers: for a table, a page, or a program."""

from __future__ import annotations

from typing import Any

from skyward_etcd.cluster.binary import grade, spell
from skyward_etcd.cluster.survey import Answer, Survey

__all__ = ["members"]


def members(found: Survey) -> list[dict[str, Any]]:
    """Return one dict for each member that the others know; what it has not answered is ``None``.

    ``lag`` is how many entries of the log it is behind the furthest.
    """
    ahead = max((each.committed for each in found.answers), default=0)
    return [
        {
            "name": member.name,
            "id": f"{member.id:x}",
            "endpoints": list(member.endpoints),
            "answers": answer is not None,
            "role": _role(answer),
            "version": spell(answer.version) if answer else None,
            "grade": grade(answer.version, durable=True).verdict.name.lower() if answer else None,
            "db_bytes": answer.db_bytes if answer else None,
            "used_bytes": answer.used_bytes if answer else None,
            "quota_bytes": answer.quota_bytes if answer else None,
            "lag": ahead - answer.applied if answer else None,
            "term": answer.term if answer else None,
            "errors": list(answer.errors) if answer else [],
        }
        for member in found.members
        for answer in (found.answer_of(member),)
    ]


def _role(answer: Answer | None) -> str:
    if answer is None:
        return "down"
    if answer.is_learner:
        return "learner"
    if not answer.leader:
        return "no leader"
    return "leader" if answer.leads else "follower"
