"""Who may import whom, and what a package must not contain: the layers of docs/architecture.md as data, kept here."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "skyward_etcd"
OURS = "skyward_etcd"

FOR_ALL = ("errors", "config")
"""What every package may import."""

CONCEPTS = ("barrier", "counter", "dict", "lock", "queue", "set")
"""The collections that must not know each other."""

PARTS = ("claim", "front", "places", "tail")
"""What the queue is made of, which must know none of them."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of the table. Names are dotted; a name stands for everything below it too."""

    may_import: tuple[str, ...] = ()
    must_not_contain: tuple[str, ...] = ()


TABLE = {
    "errors": Layer(must_not_contain=("skyward_etcd",)),
    "config": Layer(must_not_contain=("grpc",)),
    "wire": Layer(must_not_contain=("threading.Thread", "concurrent.futures", "multiprocessing")),
    "ops": Layer(
        may_import=("wire.messages", "wire.methods"),
        must_not_contain=("grpc", "asyncio", "threading", "concurrent", "socket", "select", "time.sleep"),
    ),
    "session": Layer(may_import=("ops", "wire")),
    "collections": Layer(
        may_import=("ops", "session"),
        must_not_contain=("grpc", "threading.Thread", "concurrent.futures", "multiprocessing"),
    ),
    "operate": Layer(
        may_import=("collections", "ops", "wire.messages", "wire.methods"),
        must_not_contain=("grpc", "asyncio", "threading", "concurrent", "socket", "select", "time.sleep"),
    ),
    "active": Layer(may_import=("collections", "session")),
    "cluster": Layer(may_import=("wire",)),
    "pool": Layer(
        may_import=("cluster", "collections", "session", "active"),
        must_not_contain=("google.protobuf",),
    ),
    "work": Layer(may_import=("active", "session")),
    "observe": Layer(may_import=("ops", "session")),
    "dashboard": Layer(may_import=("cluster", "operate", "session")),
    "cli": Layer(
        may_import=(
            "pool",
            "cluster",
            "active",
            "collections",
            "operate",
            "session",
            "plugin",
            "work",
            "observe",
            "dashboard",
        )
    ),
    "plugin": Layer(may_import=("pool", "cluster", "active", "collections", "session", "wire.address", "wire.tls")),
    "testing": Layer(
        may_import=(
            "wire",
            "ops",
            "session",
            "collections",
            "active",
            "cluster",
            "operate",
            "pool",
            "plugin",
            "work",
            "observe",
            "dashboard",
            "cli",
        )
    ),
}


def every_module() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path.name != "rpc_pb2.py"]


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def in_the_layers() -> list[Path]:
    return [path for path in every_module() if path.parent != ROOT or path.stem not in ("__init__", "__main__")]


def naming(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", in_the_layers(), ids=naming)
def test_a_module_imports_only_the_layers_below_it(path: Path) -> None:
    assert layer_of(path) in TABLE, "a new part of the package needs its row in the table"
    assert forbidden_imports(layer_of(path), ast.parse(path.read_text()), inside=package_of(path)) == set()


@pytest.mark.parametrize("path", in_the_layers(), ids=naming)
def test_a_module_contains_nothing_that_its_layer_must_not(path: Path) -> None:
    names = mentioned(ast.parse(path.read_text()), inside=package_of(path))
    banned = TABLE[layer_of(path)].must_not_contain
    assert {name for name in names if within(name, banned)} == set()


@pytest.mark.parametrize("path", in_the_layers(), ids=naming)
def test_only_wire_knows_how_the_bytes_travel(path: Path) -> None:
    if layer_of(path) not in ("wire", "testing"):
        assert not any(
            within(name, ("grpc", "hpack", "ssl")) for name in imported(ast.parse(path.read_text()), package_of(path))
        )


@pytest.mark.parametrize("concept", [*CONCEPTS, *PARTS])
def test_collections_do_not_know_each_other(concept: str) -> None:
    path = ROOT / "collections" / f"{concept}.py"
    others = [f"{OURS}.collections.{other}" for other in CONCEPTS if other != concept]
    names = imported(ast.parse(path.read_text()), package_of(path))
    assert {name for name in names if within(name, others)} == set()


@pytest.mark.parametrize("path", every_module(), ids=naming)
def test_only_config_reads_environment_variables(path: Path) -> None:
    """Handing the environment to a child as a whole, and writing to it, are not reading."""
    if layer_of(path) not in ("config", "testing"):
        assert list(environment_reads(ast.parse(path.read_text()))) == []


def test_the_public_module_has_no_logic() -> None:
    body = ast.parse((ROOT / "__init__.py").read_text()).body
    logic = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Expr)]
    assert [ast.unparse(node) for node in logic] == []


def test_the_lifeline_needs_only_the_standard_library() -> None:
    """It is started with ``-I -S``: neither installed packages nor this one are on its path."""
    path = ROOT / "cluster" / "lifeline.py"
    names = imported(ast.parse(path.read_text()), package_of(path))
    assert {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names} == set()


# The checker itself: a table that finds nothing proves nothing.


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("ops", "from skyward_etcd.session import Session"),
        ("ops", "from skyward_etcd.wire.client import Wire"),
        ("ops", "from skyward_etcd.wire import messages, client"),
        ("cluster", "def late():\n    import skyward_etcd.collections.lock"),
        ("collections", "from ..pool import compute"),
        ("session", "from skyward_etcd import Lock"),
    ],
)
def test_the_table_refuses_an_import_from_above(layer: str, source: str) -> None:
    assert forbidden_imports(layer, ast.parse(source), inside=f"{OURS}.{layer}")


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(1)",
        "from time import sleep",
        "import time as clock\nclock.sleep(1)",
        "import socket",
        "from concurrent.futures import Future",
    ],
)
def test_the_table_refuses_waiting_in_ops(source: str) -> None:
    names = mentioned(ast.parse(source), inside=f"{OURS}.ops")
    assert any(within(name, TABLE["ops"].must_not_contain) for name in names)


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("import os\nos.environ['HOME']", True),
        ("import os\nos.environ.get('HOME')", True),
        ("import os\nos.getenv('HOME')", True),
        ("import os\n'HOME' in os.environ", True),
        ("from os import getenv", True),
        ("import os\nrun(env={**os.environ, 'A': 'b'})", False),
        ("import os\nos.environ['A'] = 'b'", False),
        ("import os\nos.environ.update(image)", False),
    ],
)
def test_reading_a_variable_is_told_from_handing_the_environment_on(source: str, *, reads: bool) -> None:
    assert bool(list(environment_reads(ast.parse(source)))) is reads


# How it looks at a module.


def package_of(path: Path) -> str:
    """Name the package that relative imports in this file start from."""
    return ".".join([OURS, *path.relative_to(ROOT).parent.parts])


def within(name: str, roots: tuple[str, ...] | list[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def forbidden_imports(layer: str, tree: ast.Module, *, inside: str) -> set[str]:
    allowed = [f"{OURS}.{name}" for name in (layer, *FOR_ALL, *TABLE[layer].may_import)]
    return {name for name in imported(tree, inside) if within(name, (OURS,)) and not within(name, allowed)}


def imported(tree: ast.Module, inside: str) -> set[str]:
    """Return the dotted name of everything imported anywhere in the module, also in functions and for types only."""
    return set(aliases(tree, inside).values())


def aliases(tree: ast.Module, inside: str) -> dict[str, str]:
    """Map each local name that an import makes (with its line, as names may be reused) to what it stands for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {f"{alias.asname or alias.name}:{node.lineno}": alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = source_of(node, inside)
            found |= {f"{alias.asname or alias.name}:{node.lineno}": f"{origin}.{alias.name}" for alias in node.names}
    return found


def source_of(node: ast.ImportFrom, inside: str) -> str:
    if node.level == 0:
        return node.module or ""
    parts = inside.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def mentioned(tree: ast.Module, inside: str) -> set[str]:
    """Return what is imported, and every attribute chain that starts at an import: ``time.sleep`` in both spellings."""
    origins = {local.partition(":")[0]: origin for local, origin in aliases(tree, inside).items()}
    chains = (dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return set(origins.values()) | {
        ".".join([origins[chain[0]], *chain[1:]]) for chain in chains if chain and chain[0] in origins
    }


def dotted(node: ast.expr) -> list[str]:
    """Spell ``a.b.c`` as its parts; nothing for what does not begin with a name."""
    match node:
        case ast.Name():
            return [node.id]
        case ast.Attribute():
            before = dotted(node.value)
            return [*before, node.attr] if before else []
        case _:
            return []


def environment_reads(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute() if dotted(node) in (["os", "getenv"], ["os", "environ", "get"]):
                yield ast.unparse(node)
            case ast.Subscript(ctx=ast.Load()) if dotted(node.value) == ["os", "environ"]:
                yield ast.unparse(node)
            case ast.Compare() if any(dotted(side) == ["os", "environ"] for side in node.comparators):
                yield ast.unparse(node)
            case ast.ImportFrom(module="os", names=names):
                yield from (alias.name for alias in names if alias.name in ("environ", "getenv"))
            case _:
                pass
