"""What ``import skyward_etcd as sky`` offers: all of it listed, and all that code written for Skyward asks for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import skyward_etcd
from skyward_etcd import errors

COLLECTIONS = ("barrier", "counter", "dict", "lock", "queue", "set")

SKYWARD = (
    "CallbackWriter",
    "Compute",
    "Consistency",
    "Image",
    "InstanceInfo",
    "Nodes",
    "Options",
    "PendingFunction",
    "PendingFunctionGroup",
    "Session",
    "Spec",
    "Worker",
    "function",
    "gather",
    "instance_info",
    "is_head",
    "redirect_output",
    "shard",
    "silent",
    "stderr",
    "stdout",
)
"""The names of Skyward's first generation that its users' programs are written with."""


def imported_names() -> set[str]:
    tree = ast.parse(Path(skyward_etcd.__file__).read_text())
    imports = [
        node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) and not is_future_import(node)
    ]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def is_future_import(node: ast.Import | ast.ImportFrom) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def test_every_listed_name_is_there() -> None:
    assert [name for name in skyward_etcd.__all__ if not hasattr(skyward_etcd, name)] == []


def test_no_name_is_listed_twice() -> None:
    assert sorted(set(skyward_etcd.__all__)) == sorted(skyward_etcd.__all__)


def test_every_imported_name_is_listed() -> None:
    assert {name for name in imported_names() if not name.startswith("_")} - set(skyward_etcd.__all__) == set()


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_public(name: str) -> None:
    assert name in skyward_etcd.__all__


@pytest.mark.parametrize("name", [*COLLECTIONS, *SKYWARD, "connect"])
def test_what_a_user_of_skyward_knows_is_public(name: str) -> None:
    assert name in skyward_etcd.__all__
