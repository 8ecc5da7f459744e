"""Count the words of Python's own standard library on three nodes, with all six collections: what ``make demo`` runs.

A queue hands out the files, a set of hashes skips copies, a counter tells the progress, a barrier ends the counting,
a lock guards the merging into one dict; and a plain count on one process checks the result.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import skyward_etcd as sky
from skyward_etcd.active import current
from skyward_etcd.cluster import binary

NODES = 3
PLACES = ("first", "second", "third")
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Share:
    """What one node did."""

    files: int
    copies: int
    words: int
    place: int
    token: int


@sky.function
def count(total: int) -> Share:
    """Count words of files from the queue until there are none, then merge the counts, in turn with the others."""
    files, contents, done = sky.queue("files"), sky.set("contents"), sky.counter("files done")
    mine: Counter[str] = Counter()
    taken = copies = 0
    while batch := files.get_many(8, timeout=0):
        for path in batch:
            text = Path(path).read_bytes()
            if contents.add(hashlib.sha256(text).hexdigest()):
                mine.update(words_of(text))
            else:
                copies += 1
            number = done.increment()
            if number * 4 % total < 4:  # a quarter is passed, and nobody else is told this number
                print(f"{number / total:4.0%} of the files are counted")
        taken += len(batch)
    sky.set("words").update(mine)

    place = sky.barrier("all files are counted", n=NODES).wait(PATIENCE_S)
    with sky.lock("merging", timeout=PATIENCE_S) as hold:
        totals = sky.dict("totals", consistency="strong")
        before = dict(totals.items())
        totals.update((word, number + before.get(word, 0)) for word, number in mine.items())
    return Share(taken, copies, mine.total(), place, hold.token)


def words_of(text: bytes) -> Iterable[str]:
    """Return the words of a text: three letters and more, in small letters."""
    return re.findall("[a-z]{3,}", text.decode(errors="replace").lower())


def source_files() -> list[str]:
    """Return the standard library's own source files, without its tests."""
    library = Path(sysconfig.get_path("stdlib"))
    others = {"test", "tests", "idlelib", "site-packages", "dist-packages"}
    return sorted(str(path) for path in library.rglob("*.py") if others.isdisjoint(path.relative_to(library).parts))


def count_alone(files: Iterable[str]) -> Counter[str]:
    """Count the same on this process, without any of it."""
    words: Counter[str] = Counter()
    for text in {Path(path).read_bytes() for path in files}:
        words.update(words_of(text))
    return words


def main() -> None:
    """Run the demo and check its result."""
    print("\nThe words of Python's standard library, counted by a pool with all six collections\n")
    files = source_files()
    began = time.perf_counter()
    with sky.Compute(nodes=NODES) as pool:
        etcd, endpoints = binary.find(), current().endpoints
        version = f"etcd {binary.spell(etcd.version)}, {etcd.source}"
        tell("pool", f"{NODES} nodes with {len(endpoints)} members ({version}), ready in {since(began)}")
        tell("endpoints", ", ".join(endpoints))

        began = time.perf_counter()
        pool.queue("files").put_many(files)
        tell("queue", f"{len(pool.queue('files'))} files put in {since(began)}")

        began = time.perf_counter()
        shares = count(len(files)) @ pool
        tell("counted", f"and merged in {since(began)}")
        report(shares)
        words = dict(pool.dict("totals", consistency="strong").items())
        show_collections(words)
        show_keys(endpoints[0], ("meta/", "sessions/", "counter/", 'dict/totals/"barrier', 'dict/totals/"lock'))

        began = time.perf_counter()
        expected = count_alone(files)
        alone = since(began)
        assert words == expected
        assert set(pool.set("words").members()) == set(expected)
        assert pool.counter("files done").value == len(files) == sum(share.files for share in shares)
        assert len(pool.set("contents")) == len(files) - sum(share.copies for share in shares)
        assert pool.queue("files").empty()
    tell("checked", f"a count on one process, {alone}, gives the same {len(expected):,} totals\n")


def report(shares: Sequence[Share]) -> None:
    """Print who did what."""
    print("\n  who     files  copies     words  at the barrier  merged with token")
    for node, share in enumerate(shares):
        print(
            f"  node {node} {share.files:6}  {share.copies:6}  {share.words:8,}"
            f"  {PLACES[share.place]:>14}  {share.token:17}"
        )
    print()


def show_collections(words: dict[str, int]) -> None:
    """Print what the collections hold in the end."""
    most = ", ".join(f"{word} {number:,}" for word, number in Counter(words).most_common(5))
    tell("queue", f"{len(sky.queue('files'))} files left")
    tell("counter", f"{sky.counter('files done').value} files done")
    tell("set", f"{len(sky.set('contents'))} different contents, {len(sky.set('words')):,} different words")
    tell("dict", f"{sum(words.values()):,} words in {len(words):,} totals: {most}")


def show_keys(endpoint: str, prefixes: Iterable[str]) -> None:
    """Print what etcd's own tool shows of it, if it is there."""
    etcdctl = binary.find().path.with_name("etcdctl")
    if not etcdctl.exists():
        return
    print(f"\n  $ etcdctl --endpoints={endpoint} get --prefix /skyward/default/…")
    for prefix in prefixes:
        shown = subprocess.run(
            [str(etcdctl), f"--endpoints={endpoint}", "get", "--prefix", f"/skyward/default/{prefix}"],
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            check=True,
        )
        lines = shown.stdout.splitlines()
        for key, value in zip(lines[::2], lines[1::2], strict=True):
            print(f"    {key}  {value}")
    print()


def tell(what: str, text: str) -> None:
    """Print a line of the report."""
    print(f"  {what:10}{text}", flush=True)


def since(began: float) -> str:
    """Return the time since then."""
    return f"{time.perf_counter() - began:.1f} s"


if __name__ == "__main__":
    main()
