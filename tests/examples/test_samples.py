"""Every code sample of the documentation and of the docstrings runs, each in a namespace of its own.

In Markdown, ``python`` blocks are run (with ``await`` where they like, as in a notebook) and ``pycon`` blocks are
compared with what they print; in docstrings, samples are written with ``>>>``. All find ``sky``, and a connection.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import io
import re
import textwrap
import uuid
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

import skyward_etcd as sky

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
MODULES = sorted((ROOT / "skyward_etcd").rglob("*.py"))


@dataclass(frozen=True, slots=True)
class Sample:
    """A piece of code, and where it stands."""

    path: Path
    line: int
    language: Literal["python", "pycon"]
    code: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def in_documents() -> Iterator[Sample]:
    for path in DOCUMENTS:
        text = path.read_text()
        for block in re.finditer(r"^```(python|pycon)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            language: Literal["python", "pycon"] = "python" if block[1] == "python" else "pycon"
            yield Sample(path, text.count("\n", 0, block.start()) + 2, language, block[2])


def in_docstrings() -> Iterator[Sample]:
    for path in MODULES:
        for line, docstring in docstrings(path):
            if ">>>" in docstring:
                yield Sample(path, line, "pycon", docstring)


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and (docstring := ast.get_docstring(node)):
                yield first.lineno, docstring


@pytest.fixture
def names(endpoints: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a sample finds: ``sky``, connected, and the way to the same cluster in the environment."""
    namespace = f"sample-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("SKYWARD_ETCD_ENDPOINTS", ",".join(endpoints))
    monkeypatch.setenv("SKYWARD_ETCD_NAMESPACE", namespace)
    with sky.connect():
        yield {"__name__": "__main__", "sky": sky}


@pytest.mark.parametrize("sample", [*in_documents(), *in_docstrings()], ids=str)
def test_a_sample_runs(sample: Sample, names: dict[str, Any]) -> None:
    if sample.language == "python":
        run(sample, names)
    else:
        compare(sample, names)


def run(sample: Sample, names: dict[str, Any]) -> None:
    source = "\n" * (sample.line - 1) + textwrap.dedent(sample.code)
    code = compile(source, str(sample.path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    with redirect_stdout(io.StringIO()):
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, names))
        else:
            exec(code, names)


def compare(sample: Sample, names: dict[str, Any]) -> None:
    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(sample.code, names, str(sample), str(sample.path), sample.line - 1)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed = runner.run(test, out=said.append).failed
    assert not failed, "".join(said)


def test_samples_are_written_so_that_they_are_found() -> None:
    fenced = [
        f"{path.relative_to(ROOT)}:{line}" for path in MODULES for line, text in docstrings(path) if "```" in text
    ]
    assert fenced == [], "in docstrings, write samples with >>>"
    fences = {fence for path in DOCUMENTS for fence in re.findall(r"^```(\w+)$", path.read_text(), re.MULTILINE)}
    assert fences <= {"python", "pycon", "console", "text", "py"}  # py: it takes a pool of Skyward's, and is not run


def test_links_between_documents_lead_somewhere() -> None:
    links = [
        (path, target)
        for path in DOCUMENTS
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", path.read_text())
    ]
    assert [f"{path.name}: {target}" for path, target in links if not (path.parent / target).exists()] == []
