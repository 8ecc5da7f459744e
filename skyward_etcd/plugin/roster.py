"""Which nodes are to have a member, which members are dead, and who restores a lost cluster: decided by data alone.

Every node decides for itself, and all by the same rules: existing members first, then the lowest rank. Skyward takes
away the highest ranks first, but only of those nodes that have been idle for a while: all members may be among them.
So the lowest node always is to have one, and where all the others go, one that stays takes their data over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from skyward_etcd.cluster.bootstrap import voters

__all__ = [
    "Seat",
    "Word",
    "is_dead",
    "is_heir",
    "is_restorer",
    "is_to_be_buried",
    "joins",
    "leavers",
    "leaves",
    "survivors",
    "wanted",
]

_HEIRS = 3
_SILENT_S = 5.0
_MUTE_S = 15.0
"""Each of the other members keeps streams to one that is gone, and TLS on them. After some 5 s their buffers are full,
and it takes the next ten until etcd has given them up: 5 s for a write, 5 s to say good-bye (rafthttp's time limit). If
the member is taken off the list meanwhile, etcd waits for that, and does nothing else: nobody is served.
"""


@dataclass(frozen=True, slots=True)
class Seat:
    """A member as the cluster lists it, and the machine that it is on."""

    name: str
    """Empty until it has started for the first time."""
    host: str
    votes: bool = True


@dataclass(frozen=True, slots=True)
class Word:
    """What the node at a host says of itself. No word is silence."""

    node: str
    member: str
    """The member that it runs or is about to; empty if none."""
    revision: int = 0
    """Of the newest data that it has, when it has lost the majority: its member's, if that has a vote, or a copy."""


def wanted(nodes: int, fixed: int | None = None) -> int:
    """Return how many members a pool is to have: as many as it was told, where that leaves no even number.

    Else 1 below 3 nodes, 3 below 7, and 5: Skyward's machines are preempted as a matter of course.
    """
    if fixed is None:
        return voters(max(1, nodes), spot=True)
    most = min(fixed, max(1, nodes))
    return most if most % 2 else most - 1


def joins(host: str, peers: Sequence[str], seats: Sequence[Seat], size: int, is_up: Callable[[str], bool]) -> bool:
    """Tell whether the node at a host is to have the next member. ``peers`` are all hosts in the order of ranks.

    The lowest node is even where as many are there as there should be: then the one of the highest rank `leaves`.
    Members on nodes that the pool is without do not count where they are the majority: nobody could bury them, and they
    serve as long as they live.
    """
    taken = {seat.host for seat in seats}
    staying = sum(seat.host in peers for seat in seats)
    members = len(seats) if 2 * staying > len(seats) else staying
    is_lowest = _rank(host, peers) == 0
    if host in taken or members > size or (members == size and not is_lowest):
        return False
    for peer in peers:
        if peer == host:
            return True
        if peer not in taken and is_up(peer):
            return False
    return False


def leaves(host: str, peers: Sequence[str], seats: Sequence[Seat], size: int) -> bool:
    """Tell whether the member at a host is one too many, and the next to leave: the one of the highest rank."""
    if len(seats) <= size:
        return False
    return host == max(seats, key=lambda seat: _rank(seat.host, peers)).host


def is_dead(seat: Seat, peers: Sequence[str], words: Mapping[str, Word]) -> bool:
    """Tell whether a member will certainly never run again.

    Its machine is no longer one of the pool's; or another has its address; or its node runs none, or another. Silence
    tells nothing.
    """
    word = words.get(seat.host)
    return seat.host not in peers or (word is not None and word.member != seat.name)


def is_to_be_buried(
    seat: Seat, peers: Sequence[str], words: Mapping[str, Word], silent_s: float, *, is_mute: bool
) -> bool:
    """Tell whether a member that has not answered for so long is to be taken off the list. If it comes back, it joins.

    One whose machine refuses: after 5 s, or as soon as it is known to be dead. One that does not even refuse, as its
    machine is gone or cut off: after 15 s, known or not.
    """
    if is_mute:
        return silent_s > _MUTE_S
    return silent_s > _SILENT_S or is_dead(seat, peers, words)


def is_heir(host: str, seats: Sequence[Seat], peers: Sequence[str]) -> bool:
    """Tell whether the node at a host is to copy the data: it is one of the lowest of a pool without any of the voters.

    They may live a moment longer, or for as long as a task of theirs takes. Some of the lowest may not be there yet.
    """
    voters = [seat for seat in seats if seat.votes]
    return host in peers[:_HEIRS] and bool(voters) and len(leavers(seats, peers)) == len(voters)


def leavers(seats: Sequence[Seat], peers: Sequence[str]) -> list[Seat]:
    """Return the voters on nodes that the pool is without."""
    return [seat for seat in seats if seat.votes and seat.host not in peers]


def survivors(seats: Sequence[Seat], peers: Sequence[str], words: Mapping[str, Word]) -> list[Seat]:
    """Return the voters whose nodes say that they run, the lowest rank first.

    Where there are none, those members whose nodes say so, and that had no vote, or no seat, when the quorum was last
    heard: one may have got it since, as half of two, and has everything then.
    """
    listed = {seat.name for seat in seats}
    newer = [Seat(word.member, host, votes=False) for host, word in words.items() if word.member not in ("", *listed)]
    running = _running([*seats, *newer], peers, words)
    return [seat for seat in running if seat.votes] or running


def _running(seats: Sequence[Seat], peers: Sequence[str], words: Mapping[str, Word]) -> list[Seat]:
    alive = [seat for seat in seats if seat.host in words and not is_dead(seat, peers, words)]
    return sorted(alive, key=lambda seat: _rank(seat.host, peers))


def is_restorer(host: str, seats: Sequence[Seat], peers: Sequence[str], words: Mapping[str, Word]) -> bool:
    """Tell whether the node at a host is to restore a cluster whose majority has been silent for a while.

    It is the lowest of the `survivors`. Where none of them has a vote for certain, it is the node with the newest data;
    and the lowest at all, with an empty cluster, if there are none.

    It never is where those who are silent, and not dead for certain, could go on without us; nor where less than most
    of the pool's nodes can be heard, as on the wrong side of a cut.
    """
    votes = [seat for seat in seats if seat.votes]
    living = _running(votes, peers, words)
    silent = [seat for seat in votes if seat not in living and not is_dead(seat, peers, words)]
    heard = [peer for peer in peers if peer in words]
    if 2 * len(living) > len(votes) or 2 * len(silent) > len(votes) or 2 * len(heard) <= len(peers):
        return False
    if not votes or (silent and not living):
        return False
    left = survivors(seats, peers, words)
    newest = max(heard, key=lambda peer: (words[peer].revision, words[peer].member != ""))
    if words[newest].revision and not any(seat.votes for seat in left):
        return host == newest
    return host == (left[0].host if left else heard[0])


def _rank(host: str, peers: Sequence[str]) -> int:
    return peers.index(host) if host in peers else len(peers)
