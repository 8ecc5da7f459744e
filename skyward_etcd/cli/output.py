"""How things are printed: JSON for programs, tables for people; with lines and colours where rich is installed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import click

from skyward_etcd.operate.values import Shown

__all__ = ["as_json", "in_mb", "say_json", "table"]


def say_json(value: object) -> None:
    """Print a value as one line of JSON."""
    click.echo(json.dumps(as_json(value), ensure_ascii=False))


def as_json(value: Any) -> Any:
    """Return what JSON can say of a value."""
    if isinstance(value, Shown):
        return {"value": value.json} if value.is_json else {"value": None, "repr": value.text}
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: as_json(getattr(value, each.name)) for each in dataclasses.fields(value)}
    return value


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns; numbers to the right."""
    texts = [["" if cell is None else f"{cell:,}" if type(cell) is int else str(cell) for cell in row] for row in rows]
    right = [bool(rows) and all(isinstance(row[at], int | None) for row in rows) for at in range(len(columns))]
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        _rich_table(columns, texts, right)
        return
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    for row in ([name.upper() for name in columns], *texts):
        cells = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def _rich_table(columns: Sequence[str], texts: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(header_style="bold")
    for name, is_right in zip(columns, right, strict=True):
        shown.add_column(name, justify="right" if is_right else "left", overflow="fold")
    for row in texts:
        shown.add_row(*map(escape, row))
    Console().print(shown)


def in_mb(count: int | None) -> str:
    """Return a number of bytes for people."""
    if count is None:
        return "?"
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"
