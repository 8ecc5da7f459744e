"""What is shown and kept of a run: tables, a JSON file, a plot."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.harness import Contest, Series
from benchmarks.targets import Point, Result
from benchmarks.versus import pairs
from skyward_etcd.cluster import binary

__all__ = ["RESULTS", "About", "show_contest", "show_curves", "show_peers", "show_targets", "wide_console", "write"]

RESULTS = Path(__file__).with_name("results")

_WIDEST = len("dict write, 4: skyward-0.10")


@dataclass(frozen=True, slots=True)
class About:
    """Where and when a run was made: without it, its figures mean little."""

    date: str
    quick: bool
    etcd: str
    python: str
    grpcio: str
    skyward_etcd: str
    cores: int
    load_at_start: tuple[float, float, float]

    @classmethod
    def here(cls, *, quick: bool) -> About:
        """Return it for a run that begins now."""
        return cls(
            datetime.now(UTC).isoformat(timespec="seconds"),
            quick,
            binary.spell(binary.find(members=3).version),
            platform.python_version(),
            importlib.metadata.version("grpcio"),
            importlib.metadata.version("skyward-etcd"),
            len(os.sched_getaffinity(0)),
            os.getloadavg(),
        )

    def __str__(self) -> str:
        load = "/".join(f"{each:.1f}" for each in self.load_at_start)
        return (
            f"{self.date}, {'quick' if self.quick else 'full'} run: etcd {self.etcd}, Python {self.python}, grpcio "
            f"{self.grpcio}, {self.cores} cores, load average at start {load}"
        )


def wide_console() -> Console:
    """Return the terminal, or, where there is none, a page that is wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def show_contest(console: Console, title: str, contest: Contest) -> None:
    """Print a measurement's contestants in one line each."""
    console.print(escape(title), style="bold", highlight=False)
    for name, series in contest.items():
        console.print(f"  {name:{_WIDEST}} {_line(series)}", highlight=False, soft_wrap=True)


def show_targets(console: Console, results: Sequence[Result]) -> None:
    """Print every target with its figure beside its goal."""
    table = Table("target", "what", "measured", "goal", "met", title="Targets")
    for result in results:
        verdict = {None: "–", True: "[green]yes[/green]", False: "[red]NO[/red]"}[result.met]
        goal = result.target.goal
        unit = "×" if goal is None or goal.unit.startswith("×") else goal.unit
        figure = "–" if result.why_not else f"{_number(result.figure)} {unit}"
        remarks = [f"not measured: {result.why_not}" if result.why_not else result.note]
        if result.met is False:
            remarks += [result.target.why, _profile(result.contest)]
        what = escape(result.target.asks) + "".join(f"\n[dim]{escape(each)}[/dim]" for each in remarks if each)
        table.add_row(result.target.name, what, figure, str(goal or "–"), verdict)
    console.print(table)
    met = [result.met for result in results]
    console.print(f"met: {met.count(True)}, not met: {met.count(False)}, not measured: {met.count(None)}")


def show_curves(console: Console, points: Sequence[Point]) -> None:
    """Print how the costs grow, a line for each place of each curve."""
    if not points:
        return
    columns = ("ours, /s", "stub, /s", "ours / stub", "textbook, /s", "ours, p50", "stub, p50")
    table = Table("what", "of", *columns, title="Curves")
    for point in points:
        ours, stub, textbook = (_rate(point.contest, name) for name in ("ours", "stub", "textbook"))
        times = (f"{point.contest[name].p50 * 1e3:.3f} ms" for name in ("ours", "stub"))
        rates = ("–" if math.isnan(rate) else _number(rate) for rate in (ours, stub, ours / stub, textbook))
        table.add_row(point.curve.name, f"{point.at:,} {point.curve.scale.over}", *rates, *times)
    console.print(table)


def show_peers(console: Console, results: Sequence[Result]) -> None:
    """Print what stands beside each peer, a line for each operation and number of processes."""
    rows = [pair for result in results for pair in pairs(result.contest)]
    if not rows:
        return
    table = Table("peer", "operation, processes", "ours, /s", "its, /s", "ours / its", title="Peers")
    for pair in rows:
        better = "green" if pair.ratio >= 1 else "red"
        ratio = f"[{better}]{_number(pair.ratio)}[/{better}]"
        table.add_row(pair.peer, pair.row, _number(pair.ours.rate), _number(pair.theirs.rate), ratio)
    console.print(table)


def write(about: About, results: Sequence[Result], points: Sequence[Point]) -> list[Path]:
    """Write the JSON file and the plot, named after the date, and return their paths."""
    RESULTS.mkdir(exist_ok=True)
    stem = f"{about.date[:19].replace(':', '')}-{'quick' if about.quick else 'full'}"
    data, plot = RESULTS / f"{stem}.json", RESULTS / f"{stem}.png"
    data.write_text(json.dumps(_as_json(about, results, points), indent=1, ensure_ascii=False) + "\n")
    _plot(plot, about, results, points)
    return [data, plot]


def _profile(contest: Contest) -> str:
    """Say what an operation costs whom; nothing of what was not measured."""
    costs = [
        f"{name} {each.cpu_each * 1e6:.0f} + {each.members_cpu_each * 1e6:.0f}"
        for name, each in contest.items()
        if not math.isnan(each.cpu_each + each.members_cpu_each)
    ]
    return f"µs of CPU an operation, the caller's + the members': {', '.join(costs)}" if costs else ""


def _line(series: Series) -> str:
    parts = [f"p50 {series.p50 * 1e3:8.3f} ms  p99 {series.p99 * 1e3:8.3f} ms"]
    for figure, text in (
        (series.rate, f"{_number(series.rate):>8}/s"),
        (series.cpu_each, f"CPU {series.cpu_each * 1e6:6.0f} µs"),
        (series.members_cpu_each, f"the members' {series.members_cpu_each * 1e6:.0f} µs"),
        (series.operations, f"n={series.operations}"),
        (series.counted, f"counted {_number(series.counted)}"),
    ):
        parts += [] if math.isnan(figure) else [text]
    return "  ".join(parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rate(contest: Contest, name: str) -> float:
    return contest[name].rate if name in contest else math.nan


def _as_json(about: About, results: Sequence[Result], points: Sequence[Point]) -> Mapping[str, Any]:
    return {
        "about": asdict(about),
        "targets": [
            {
                "name": result.target.name,
                "asks": result.target.asks,
                "goal": asdict(result.target.goal) if result.target.goal else None,
                "figure": _or_none(result.figure),
                "met": result.met,
                "not_measured": result.why_not or None,
                "note": result.note or None,
                "contestants": _contestants(result.contest),
            }
            for result in results
        ],
        "curves": [
            {
                "name": point.curve.name,
                "over": point.curve.scale.over,
                "at": point.at,
                "contestants": _contestants(point.contest),
            }
            for point in points
        ],
    }


def _contestants(contest: Contest) -> Mapping[str, Mapping[str, float | None]]:
    return {
        name: {
            "p50_s": _or_none(series.p50),
            "p99_s": _or_none(series.p99),
            "rate_per_s": _or_none(series.rate),
            "cpu_s": _or_none(series.cpu_each),
            "members_cpu_s": _or_none(series.members_cpu_each),
            "counted": _or_none(series.counted),
            "operations": series.operations,
            "repeats": len(series.timings),
        }
        for name, series in contest.items()
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plot(path: Path, about: About, results: Sequence[Result], points: Sequence[Point]) -> None:
    """Draw how far each target is from its goal, and the curves, those over the same thing together."""
    import matplotlib as mpl

    mpl.use("Agg")  # it writes a file: no display is needed
    from matplotlib import pyplot as plt

    draw: Any = plt  # its types are partial
    kinds = list(dict.fromkeys(point.curve.scale.over for point in points))
    columns = math.ceil(len(kinds) / 2)
    figure = draw.figure(figsize=(9 + 5 * columns, 10))
    grid = figure.add_gridspec(2, 2 + columns)
    _draw_targets(figure.add_subplot(grid[:, :2]), results)
    for place, over in enumerate(kinds):
        axis = figure.add_subplot(grid[place % 2, 2 + place // 2])
        _draw_curves(axis, [point for point in points if point.curve.scale.over == over])
        axis.set_xlabel(over)
    figure.suptitle(str(about), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    draw.close(figure)


def _draw_targets(axis: Any, results: Sequence[Result]) -> None:
    """A bar to the right is better than the goal by that factor, one to the left worse."""
    for result in results:
        goal = result.target.goal
        if goal is None or goal.bound == "=" or result.why_not or not result.figure > 0:  # no factor can be told
            continue
        better = goal.value / result.figure if goal.bound == "≤" else result.figure / goal.value
        name = f"{result.target.name}: {_number(result.figure)} ({goal})"
        axis.barh(name, better - 1, left=1, color="tab:green" if result.met else "tab:red")
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=1)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=7)
    axis.set_xlabel("times better than the goal")


def _draw_curves(axis: Any, points: Sequence[Point]) -> None:
    """Draw rates where there are any, and else how long half of the operations took."""
    for colour, name in enumerate(dict.fromkeys(point.curve.name for point in points)):
        mine = [point for point in points if point.curve.name == name]
        for contestant, style in (("ours", "-"), ("stub", ":"), ("textbook", "--")):
            there = [point for point in mine if contestant in point.contest]
            figures = [_per_second(each.contest[contestant]) for each in there]
            axis.plot([each.at for each in there], figures, style, color=f"C{colour}", marker="o")
            if there:
                axis.lines[-1].set_label(f"{name}, {contestant}")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylabel("operations a second, of all together")
    axis.legend(fontsize=6)


def _per_second(series: Series) -> float:
    return 1 / series.p50 if math.isnan(series.rate) else series.rate
