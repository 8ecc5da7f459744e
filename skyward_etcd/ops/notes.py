"""What collections remember to save a round trip. It may be forgotten at any time, so that it never grows too large."""

from __future__ import annotations

from typing import Any

__all__ = ["Notes"]

_MOST = 4096


class Notes:
    """A dict that keeps what was used lately: the last ``most`` entries at least, twice as many at most.

    Two generations, of which the older is dropped when the younger is full: no lock, and a look costs what a dict's
    does. Of two threads that set an entry at once, one may be forgotten at once: only guesses belong here.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._young: dict[Any, Any] = {}
        self._old: dict[Any, Any] = {}

    def get(self, key: Any) -> Any:
        """Return the entry, or ``None``."""
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self[key] = found
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        if len(self._young) >= self._most and key not in self._young:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def __len__(self) -> int:
        return len({**self._old, **self._young})
