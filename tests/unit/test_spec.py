"""What a pool should be like: checked when it is said, and what is meant for clouds is ignored aloud."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from skyward_etcd.pool import providers
from skyward_etcd.pool.compute import Compute
from skyward_etcd.pool.spec import IgnoredOption, Image, Nodes, Options, PipIndex, Port, Spec, Volume, Worker


def test_nodes_are_a_number_a_range_or_nodes() -> None:
    assert Nodes.from_spec(3) == Nodes(3)
    assert Nodes.from_spec((2, 8)) == Nodes(2, max=8)
    assert Nodes.from_spec(Nodes(1)).desired == 1
    assert Nodes(2, max=8).auto_scaling
    assert not Nodes(2).auto_scaling


@pytest.mark.parametrize("nodes", ["three", None, 1.5, True, (1, 2, 3)])
def test_anything_else_is_refused(nodes: Any) -> None:
    with pytest.raises(TypeError, match="nodes is a number"):
        Spec(nodes=nodes)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Nodes(-1),
        lambda: Nodes(3, max=2),
        lambda: Nodes(3, min=4),
        lambda: Worker(concurrency=0),
        lambda: Worker(executor="fiber"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: Worker(buffer=-1),
        lambda: Worker(reuse_processes=False),
        lambda: Options(default_compute_timeout=0),
        lambda: Options(retry_on_interruption=-1),
        lambda: Volume(bucket="b", mount="data"),
        lambda: Image(env={"A=B": "c"}),
        lambda: Compute(Spec(), nodes=2),
        lambda: Compute(durable="somewhere", options=Options(cluster=False)),
    ],
)
def test_wrong_values_are_refused_when_they_are_said(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        wrong()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Nodes(True),
        lambda: Worker(concurrency=1.5),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: Worker(concurrency=True),
        lambda: Worker(concurrency="2"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: Worker(buffer=None),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: Options(retry_on_interruption=0.5),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: Image(env={"A": 1}),  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
        lambda: Compute(3),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: Compute(options={}),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ],
)
def test_wrong_types_are_refused_when_they_are_said(wrong: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="not "):
        wrong()


def test_auto_means_threads() -> None:
    assert Worker().resolved_executor == "thread"
    assert Worker(executor="process").resolved_executor == "process"


def test_what_is_meant_for_clouds_is_named_in_one_warning() -> None:
    with pytest.warns(IgnoredOption) as told:
        Compute(
            provider=providers.AWS(region="eu-west-1"),
            accelerator=providers.accelerators.A100(count=2),
            nodes=(2, 4),
            vcpus=4,
            memory_gb=8,
            image=Image(pip=["torch"], pip_indexes=[PipIndex("https://example.org")], env={"A": "b"}),
            volumes=[Volume(bucket="b", mount="/data")],
            plugins=[providers.plugins.torch()],
            ports=[Port(8080)],
            options=Options(ssh_timeout=3, console=False),
        )
    assert len(told) == 1
    named = str(told[0].message)
    for name in ("provider", "accelerator", "nodes", "vcpus", "memory_gb", "image.pip", "volumes", "plugins", "ports"):
        assert name in named
    assert "Options.ssh_timeout" in named
    assert "image.env" not in named
    assert told[0].filename == __file__


def test_what_means_something_here_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Compute(nodes=3, image=Image(env={"A": "b"}), options=Options(worker=Worker(concurrency=2), console=False))
        Compute(nodes=1)


@pytest.mark.parametrize("name", [name for name in providers.__all__ if name[0].isupper() and name != "Catalogue"])
def test_stand_ins_take_anything(name: str) -> None:
    stand_in = getattr(providers, name)("something", region="here", token="secret")
    assert "secret" not in repr(stand_in)


def test_catalogues_have_every_name_and_can_be_copied() -> None:
    assert "H100" in repr(providers.accelerators.H100())
    assert "T4" in repr(copy.deepcopy(providers.accelerators).T4())
    assert pickle.dumps(providers.storage)


def test_a_pool_that_was_never_opened_says_so() -> None:
    pool = Compute(nodes=1)
    assert not pool.is_active
    assert "new" in repr(pool)
    with pytest.raises(RuntimeError, match="inside its with block"):
        pool.dict("x")
