"""A namespace as lines of JSON, and back: nothing of a value is lost, and none is read that its secret protects.

Keys and values are written as JSON where that gives back the same bytes, else in base64. What lives on sessions stays
behind: who holds a lock, who has claimed an item (which is exported as one that waits), who waits at a barrier.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

from skyward_etcd.collections.places import Places
from skyward_etcd.collections.tail import MANY, Tail
from skyward_etcd.errors import Compacted, SkywardEtcdError, WrongKind
from skyward_etcd.operate.catalog import contents
from skyward_etcd.operate.reading import Reading, settings
from skyward_etcd.operate.views import in_order
from skyward_etcd.ops import kv
from skyward_etcd.ops.effects import Mind, Operation
from skyward_etcd.ops.layout import KINDS, Kind, Layout, decode_name
from skyward_etcd.ops.naming import agree
from skyward_etcd.ops.proof import Alternative, prove
from skyward_etcd.wire import messages as pb

__all__ = ["NotAnExport", "Part", "exported", "import_part", "lines_of", "parts_of", "require_unused"]

FORMAT = 1
_CHUNK_ENTRIES = MANY  # so that a part of a queue is one transaction too
_CHUNK_BYTES = 256 * 1024
_LONGEST_LINE = 16 << 20
"""Characters: ten times what the largest value takes in base64."""

_NOTHING: tuple[int, Mapping[str, Any]] = (0, {})
_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class NotAnExport(SkywardEtcdError, ValueError):
    """The lines are not what `skyward-etcd export` has written, or not all of it."""


# ---- out


def exported(
    mind: Mind,
    tell: Callable[[Mapping[str, Any]], None],
    *,
    names: Sequence[tuple[Kind, str]] = (),
    stale: bool = False,
) -> Operation[int]:
    """Tell everything in the namespace, as it was at one moment, line by line; return how many lines that were.

    ``names``: only these collections.

    Raises:
        Compacted: it took longer than etcd keeps its history.
    """
    lines = 0

    def say(**line: Any) -> None:
        nonlocal lines
        lines += 1
        tell(line)

    reading = Reading(mind, stale=stale)
    prefix = mind.layout.root + b"meta/"
    metas = yield from reading.everything(prefix)
    tell({"skyward-etcd": FORMAT, "namespace": mind.layout.namespace, "revision": reading.revision})
    try:
        for meta in metas:
            kind, _, encoded = meta.key.removeprefix(prefix).decode(errors="replace").partition("/")
            name = decode_name(encoded)
            if kind in KINDS and (not names or (kind, name) in names):
                say(kind=kind, name=name, settings=settings(meta))
                yield from _export_one(reading, kind, name, say)
    except Compacted as gone:
        raise Compacted(f"the export took longer than etcd keeps its history, and is not whole: {gone}") from gone
    tell({"end": lines})
    return lines


def _export_one(reading: Reading, kind: Kind, name: str, say: Callable[..., None]) -> Operation[None]:
    prefix = reading.mind.layout.collection(kind, name)
    if kind == "counter":
        found = yield from reading.everything(prefix)
        say(kind=kind, name=name, total=sum(map(kv.number_in, found)))
    elif kind == "queue":
        yield from _export_queue(reading, name, say)
    elif kind in ("dict", "set"):
        start, size = b"", 16
        while True:
            kvs, start, size = yield from reading.page(prefix, start, size)
            for each in kvs:
                value = {} if kind == "set" else {"value": _as_text(each.value)}
                say(kind=kind, name=name, key=_as_text(each.key.removeprefix(prefix)), **value)
            if not start:
                return


def _export_queue(reading: Reading, name: str, say: Callable[..., None]) -> Operation[None]:
    """Tell the items page by page: what an item's page is over with, is in order."""
    places = Places(reading.mind.layout.collection("queue", name), reading.mind.layout)
    held: list[pb.KeyValue] = []
    start, size = b"", 16
    while True:
        kvs, start, size = yield from reading.page(places.all_items, start, size)
        held.extend(kvs)
        last = places.page_of(held[-1].key) if held and start else None
        for item in in_order(places, [each for each in held if places.page_of(each.key) != last]):
            say(kind="queue", name=name, item=_as_text(item.value))
        held = [each for each in held if places.page_of(each.key) == last]
        if not start:
            return


def _as_text(data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
        if _encoder.encode(value).encode() == data:
            return {"json": value}
    except (ValueError, RecursionError):
        pass
    return {"base64": base64.b64encode(data).decode()}


# ---- in


@dataclass(frozen=True, slots=True)
class Part:
    """Lines of one collection that are imported together, each once or not at all."""

    source: str
    """The namespace that it comes from, for which signed values are signed."""
    kind: Kind
    name: str
    settings: Mapping[str, int]
    first_line: int
    last_line: int
    entries: Sequence[tuple[bytes, bytes]]
    """Of a dict or set, keys and values; of a queue, items with empty keys."""
    total: int
    """Of a counter."""


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    kind: Kind
    name: str
    settings: Mapping[str, int] | None
    entry: tuple[bytes, bytes] | None
    total: int

    @property
    def size(self) -> int:
        return sum(map(len, self.entry or ()))


def lines_of(file: IO[str]) -> Iterator[str]:
    """Yield the lines of a file, and never hold more of it.

    Raises:
        NotAnExport: a line is longer than an export's can be.
    """
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise NotAnExport(f"line {number} has more than {_LONGEST_LINE:,} characters: this is no export")
        yield line


def parts_of(lines: Iterable[str], *, skip: int = 0) -> Generator[Part]:
    """Return what the lines of an export say, in parts, without those of the first ``skip`` lines.

    Raises:
        NotAnExport: a line is not to be understood, or the end is missing. What came before it was good.
    """
    numbered = ((number, _parsed(number, text)) for number, text in enumerate(lines, 1) if text.strip())
    _, head = next(numbered, _NOTHING)
    if head.get("skyward-etcd") != FORMAT:
        raise NotAnExport('this is no export: its first line has to be {"skyward-etcd": 1, …}')
    source = str(head.get("namespace"))
    settled: dict[tuple[str, str], Mapping[str, int]] = {}
    part: list[_Line] = []
    for line in _until_the_end(numbered):
        if line.settings is not None:
            settled[line.kind, line.name] = line.settings
        elif (line.kind, line.name) not in settled:
            raise NotAnExport(f"line {line.number}: {line.kind} {line.name!r} comes before its settings")
        if part and not _goes_with(line, part):
            yield _together(part, source, settled)
            part = []
        if line.number > skip:
            part.append(line)
    if part:
        yield _together(part, source, settled)


def require_unused(mind: Mind, kind: Kind, name: str) -> Operation[None]:
    """Make sure that a collection has no entries.

    Raises:
        WrongKind: it has.
    """
    data = kind in ("dict", "set", "counter", "queue")
    if data and (yield from Reading(mind).count(contents(mind.layout, kind, name))):
        raise WrongKind(
            f"{kind} {name!r} has entries in namespace {mind.layout.namespace!r}: import into another one, "
            "remove it first, or say --merge"
        )


def import_part(mind: Mind, part: Part) -> Operation[None]:
    """Put a part into its collection, exactly once: entries replace what is there, items go to the end.

    Raises:
        WrongKind, ValueError: the name is another kind of collection's, or was made with other settings.
        UnsupportedType: a value is signed for another namespace, and there is no secret to sign it anew.
        OutcomeUnknown: the answer was lost; it was imported once or not at all.
    """
    what = f"{part.kind} {part.name!r}"
    yield from agree(mind, part.kind, part.name, part.settings)
    prefix, source = mind.layout.collection(part.kind, part.name), Layout(part.source).collection(part.kind, part.name)
    if part.kind == "counter":
        yield from _add_to_base(mind, prefix + b"base", part.total, what)
    elif part.kind == "queue":
        values = [mind.codec.rebound(value, source=source, target=prefix) for _, value in part.entries]
        yield from Tail(mind, Places(prefix, mind.layout), what).put(values)
    elif part.entries:
        puts = [
            kv.put(prefix + key, mind.codec.rebound(value, source=source + key, target=prefix + key))
            for key, value in part.entries
        ]
        yield from prove([Alternative((), puts)], what=what)


def _add_to_base(mind: Mind, base: bytes, total: int, what: str) -> Operation[None]:
    while True:
        found = yield from Reading(mind).one(base)
        value = kv.number([found] if found else []) + total
        unmoved = kv.modified_at(base, found.mod_revision if found else 0)
        outcome = yield from prove([Alternative((unmoved,), (kv.put(base, b"%d" % value),))], what=what)
        if outcome.taken is not None:
            return


def _until_the_end(numbered: Iterator[tuple[int, Mapping[str, Any]]]) -> Iterator[_Line]:
    number = 1
    for count, (number, said) in enumerate(numbered):
        if "end" in said:
            if said["end"] != count:
                raise NotAnExport(f"line {number}: {said['end']} lines were exported, and {count} are here")
            return
        yield _line(number, said)
    raise NotAnExport(f"it is not whole: line {number} should not be the last one")


def _goes_with(line: _Line, part: Sequence[_Line]) -> bool:
    same = (line.kind, line.name) == (part[0].kind, part[0].name)
    room = len(part) < _CHUNK_ENTRIES and sum(each.size for each in part) + line.size <= _CHUNK_BYTES
    return same and room


def _together(part: Sequence[_Line], source: str, settled: Mapping[tuple[str, str], Mapping[str, int]]) -> Part:
    first, last = part[0], part[-1]
    return Part(
        source,
        first.kind,
        first.name,
        settled[first.kind, first.name],
        first.number,
        last.number,
        [line.entry for line in part if line.entry is not None],
        sum(line.total for line in part),
    )


def _parsed(number: int, text: str) -> Mapping[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotAnExport(f"line {number} is no JSON: {error}") from None
    if not isinstance(said, dict):
        raise NotAnExport(f"line {number} is no object")
    return said  # pyright: ignore[reportUnknownVariableType]


def _line(number: int, said: Mapping[str, Any]) -> _Line:
    try:
        kind, name, settled = said["kind"], said["name"], said.get("settings")
        if kind not in KINDS or not isinstance(name, str):
            raise ValueError(f"{kind!r} {name!r} is no collection")
        entry = None
        if "key" in said:
            entry = _as_bytes(said["key"]), _as_bytes(said["value"]) if kind == "dict" else b""
        elif "item" in said:
            entry = b"", _as_bytes(said["item"])
        total = said.get("total", 0)
        if type(total) is not int:
            raise ValueError(f"{total!r} is no total")
        return _Line(number, kind, name, None if settled is None else _settings(settled), entry, total)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise NotAnExport(f"line {number} is not to be understood: {error!r}") from None


def _settings(said: Any) -> Mapping[str, int]:
    settled = cast("dict[str, Any]", said) if type(said) is dict else None
    if settled is None or any(type(value) is not int for value in settled.values()):
        raise ValueError(f"{said!r} are no settings")
    return settled


def _as_bytes(text: Mapping[str, Any]) -> bytes:
    return _encoder.encode(text["json"]).encode() if "json" in text else base64.b64decode(text["base64"], validate=True)
