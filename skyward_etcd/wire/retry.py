"""How long to wait before a request is sent again, and when to give up.

*Whether* it may be sent again is not decided here: reads always may; a write only when it certainly never left
(``Unavailable.maybe_applied`` is false) or when its transaction proves by itself whether it was applied before.
That is the rule of etcd's own client (``client/v3/retry.go``) and, for the proof, of :mod:`skyward_etcd.ops.proof`.
"""

from __future__ import annotations

from random import SystemRandom

from tenacity import RetryCallState, Retrying
from tenacity.wait import wait_exponential

__all__ = ["pause_before"]

_LONGEST = wait_exponential(multiplier=0.05, max=2.0)
_RETRYING = Retrying()
_RANDOM = SystemRandom()
"""Ours alone. Programs seed Python's own generator, alike on all nodes, and want their own numbers from it."""


def pause_before(attempt: int) -> float:
    """Return the seconds to wait before the attempt of this number (the first repetition is 2).

    Exponential from 50 ms to 2 s with full jitter, so that clients that failed together do not return together.
    """
    state = RetryCallState(_RETRYING, None, (), {})
    state.attempt_number = max(1, attempt - 1)
    return _RANDOM.random() * float(_LONGEST(state))
