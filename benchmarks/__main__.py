"""``python -m benchmarks``: measure, show, keep."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from benchmarks.measures import Bench, Measure
from benchmarks.targets import CURVES, TARGETS, Curve, Point, Result, Target

if TYPE_CHECKING:
    from rich.console import Console

    from benchmarks.harness import Contest


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--quick", is_flag=True, help="Less of everything, in three minutes on a quiet machine; curves only with --only."
)
@click.option("--only", metavar="NAME", multiple=True, help="Targets and curves whose names begin so; repeatable.")
@click.option("--list", "only_list", is_flag=True, help="Print the targets and measure nothing.")
@click.option("--write/--no-write", default=True, help="Keep the results in benchmarks/results/.")
def main(*, quick: bool, only: tuple[str, ...], only_list: bool, write: bool) -> None:
    """Measure the collections beside etcd's bare RPCs and its textbook recipes, on clusters that this starts itself."""
    targets = [target for target in TARGETS if target.name.startswith(only or "")]
    curves = [curve for curve in CURVES if curve.name.startswith(only or "")]
    if not targets and not curves:
        raise click.BadParameter(f"nothing begins with {' or '.join(only)}: see --list", param_hint="--only")
    if only_list:
        for target in targets:
            click.echo(f"{target.name:24} {target.asks}: {target.goal or 'for information'}")
        for curve in curves:
            click.echo(f"{curve.name:24} {curve.asks}, over {curve.scale.over}")
        return
    failed = _measure(targets, [] if quick and not only else curves, quick=quick, write=write)
    sys.exit(1 if failed else 0)


def _measure(targets: Sequence[Target], curves: Sequence[Curve], *, quick: bool, write: bool) -> bool:
    """Take all measurements and show them; tell whether one failed."""
    from benchmarks import output  # here, so that the worker processes do without

    console = output.wide_console()
    about = output.About.here(quick=quick)
    console.print(str(about), highlight=False)
    with Bench(quick=quick) as bench:
        run = _Run(bench, console)
        results = [run.result(target) for target in targets]
        points = [point for curve in curves for point in run.points(curve)]
    output.show_curves(console, points)
    output.show_peers(console, results)
    output.show_targets(console, results)
    console.print(f"{run.seconds:.0f} s; {about}", highlight=False)
    if write:
        for path in output.write(about, results, points):
            console.print(f"written: {path}", soft_wrap=True)
    return run.failed


class _Run:
    """Takes measurements and shows each when it is taken. One that fails does not hide the others."""

    def __init__(self, bench: Bench, console: Console) -> None:
        self.failed = False
        self._bench = bench
        self._console = console
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def result(self, target: Target) -> Result:
        if target.measure is None or target.figure is None:
            return Result(target, {}, math.nan, target.why_not)
        contest = self._take(target.asks, target.measure)
        if isinstance(contest, str):
            return Result(target, {}, math.nan, contest)
        notes = (target.note, f"quick: {target.quick_note}" if self._bench.quick and target.quick_note else "")
        return Result(target, contest, target.figure(contest), note="; ".join(filter(None, notes)))

    def points(self, curve: Curve) -> Iterator[Point]:
        for at in curve.scale.quick_points if self._bench.quick else curve.scale.points:
            contest = self._take(f"{curve.asks}, {at:,} {curve.scale.over}", Measure(curve.measure, (at,)))
            if not isinstance(contest, str):
                yield Point(curve, at, contest)

    def _take(self, title: str, measure: Measure) -> Contest | str:
        """Return the contest, or why there is none."""
        from benchmarks import output

        is_new = not self._bench.has_taken(measure)
        try:
            contest = self._bench.take(measure)
        except FileNotFoundError as missing:
            return str(missing)
        except Exception as error:  # noqa: BLE001 - said in the table, and by the exit code
            self.failed = True
            self._console.print_exception()
            return f"it failed: {error}"
        if is_new:
            output.show_contest(self._console, f"{self.seconds:4.0f} s  {title}", contest)
        return contest


if __name__ == "__main__":
    main()
