"""Whether what the callers of a barrier saw can be explained by generations that all pass, or none."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from skyward_etcd.testing.history import Operation, Verdict, paragraph

__all__ = ["check_barrier"]


def check_barrier(n: int, history: Iterable[Operation]) -> Verdict:
    """Decide whether each ``wait()`` that passed did so together with n - 1 others, of different ranks.

    Results are ranks; a wait that broke (the error's name) passed with nobody. One generation's waits have a moment in
    common, that of the opening. A wait of unknown outcome may have been any missing one.
    """
    operations = sorted((each for each in history if each.call == "wait"), key=lambda each: each.until)
    unknown = [each for each in operations if each.is_unknown]
    passed = [each for each in operations if not each.is_unknown and isinstance(each.result, int)]
    ranks = [deque(each for each in passed if each.result == rank) for rank in range(n)]
    strange = [each for each in passed if not 0 <= each.result < n]
    if strange:
        return _violation(f"a rank that none of {n} has", strange)
    generations: list[Operation] = []
    while any(ranks):
        # The generations follow each other, and so do the waits of each rank: the first to return is of the oldest.
        first = min((waits[0] for waits in ranks if waits), key=lambda each: each.until)
        together = [waits.popleft() for waits in ranks if waits and waits[0].invoked <= first.until]
        for _ in range(n - len(together)):
            missing = next((each for each in unknown if each.invoked <= first.until), None)
            if missing is None:
                return _violation(f"only {len(together)} of {n} passed", together)
            unknown.remove(missing)
        generations += together
    return Verdict(ok=True, reason="all or none of each generation passed", linearized=tuple(generations))


def _violation(reason: str, stuck: list[Operation]) -> Verdict:
    return Verdict(ok=False, reason="\n".join([reason, *paragraph("the waits:", stuck)]), stuck=tuple(stuck))
