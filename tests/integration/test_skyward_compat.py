"""Code as one writes it for Skyward (generation 1), with only the import changed, and faults that we do not share."""
# ruff: noqa: T201  printing is part of the subject

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import skyward_etcd as sky

pytestmark = pytest.mark.filterwarnings("ignore::skyward_etcd.IgnoredOption")


@pytest.fixture(scope="module")
def compute() -> Iterator[sky.Compute]:
    with sky.Compute(
        provider=sky.Container(network="none"),
        accelerator=sky.accelerators.T4(),
        nodes=3,
        vcpus=2,
        memory_gb=4,
        image=sky.Image(python="3.11", pip=["numpy"], apt=["git"], env={"TEAM": "blue"}),
        plugins=[sky.plugins.torch(backend="gloo")],
        options=sky.Options(
            provision_timeout=120, ssh_timeout=30, worker=sky.Worker(concurrency=2), console=False, logging=False
        ),
    ) as compute:
        yield compute


@sky.function
def train(data: list[int]) -> int:
    mine = sky.shard(data)
    return sum(mine)


@sky.function(timeout=60)
def evaluate(x: int) -> int:
    return x * x


def test_dispatch_in_all_its_forms(compute: sky.Compute) -> None:
    assert evaluate(3) >> compute == 9
    assert evaluate(3) >> sky == 9
    assert evaluate(3).with_timeout(600) >> sky == 9
    assert train(list(range(9))) @ sky == [9, 12, 15]
    assert train([1]) @ compute == [1, 0, 0]
    a, b, c = (evaluate(1) & evaluate(2) & evaluate(3)) >> sky
    assert (a, b, c) == (1, 4, 9)
    future = evaluate(5) > compute
    assert isinstance(future, Future)
    assert future.result() == 25
    group = sky.gather(*(evaluate(n) for n in range(4)))
    assert isinstance(group, sky.PendingFunctionGroup)
    assert isinstance(evaluate(1), sky.PendingFunction)
    assert group >> compute == (0, 1, 4, 9)
    assert sorted(sky.gather(evaluate(1), evaluate(2), stream=True, ordered=False) >> sky) == [1, 4]
    assert compute.map(lambda n: n + 1, [1, 2, 3]) == [2, 3, 4]
    assert compute.run_async(evaluate(2)).result() == compute.run(evaluate(2)) == 4


def test_the_pools_properties(compute: sky.Compute) -> None:
    assert compute.is_active
    assert compute.concurrency == 2
    assert compute.current_nodes() == 3


def test_what_a_function_can_ask(compute: sky.Compute) -> None:
    @sky.function
    def ask() -> dict[str, Any]:
        info = sky.instance_info()
        return {
            "node": info.node,
            "worker": info.worker,
            "total_nodes": info.total_nodes,
            "workers_per_node": info.workers_per_node,
            "accelerators": info.accelerators,
            "head": (info.head_addr, info.is_head, sky.is_head(info)),
            "total_workers": info.total_workers,
            "index": info.global_worker_index,
            "job": bool(info.job_id),
            "peers": len(info.peers),
            "host": bool(info.hostname),
            "same": sky.InstanceInfo.current() == info,
        }

    answers = ask() @ compute
    assert [answer["node"] for answer in answers] == [0, 1, 2]
    assert answers[1] == {
        "node": 1,
        "worker": 0,
        "total_nodes": 3,
        "workers_per_node": 1,
        "accelerators": 0,
        "head": ("127.0.0.1", False, False),
        "total_workers": 3,
        "index": 1,
        "job": True,
        "peers": 3,
        "host": True,
        "same": True,
    }


def test_output_control(compute: sky.Compute, capfd: pytest.CaptureFixture[str]) -> None:
    @sky.stdout(only="head")
    @sky.function
    def head() -> None:
        print("head only")

    @sky.stdout(only=lambda info: info.node == 2)
    @sky.function
    def third() -> None:
        print("third only")

    @sky.silent
    @sky.function
    def quiet() -> None:
        print("nobody")

    for call in (head(), third(), quiet()):
        _ = call @ compute
    assert capfd.readouterr().out == "[node 0] head only\n[node 2] third only\n"

    lines: list[str] = []
    with sky.redirect_output(lines.append) as (out, _):
        print("captured")
    assert "".join(lines) == out.getvalue() == "captured\n"
    assert isinstance(out, sky.CallbackWriter)


def test_generators_stream_both_ways(compute: sky.Compute) -> None:
    @sky.function
    def squares(numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            yield number**2

    assert list(squares(iter(range(5))) >> compute) == [0, 1, 4, 9, 16]


def test_collections_in_functions(compute: sky.Compute) -> None:
    @sky.function
    def work() -> int:
        cache = sky.dict("cache", consistency="strong")
        progress = sky.counter("progress")
        seen = sky.set("seen")
        info = sky.instance_info()
        cache[f"node-{info.node}"] = {"loss": 0.5}
        cache.update({"shared": info.total_nodes})
        seen.add(info.node)
        progress.increment(2)
        sky.barrier("epoch", n=info.total_nodes).wait()
        with sky.lock("checkpoint"):
            cache["steps"] = cache.get("steps", 0) + 1
        sky.queue("results").put(info.node)
        sky.barrier("end", n=info.total_nodes).wait()
        return int(progress)

    assert work() @ compute == [6, 6, 6]
    cache, results = compute.dict("cache"), compute.queue("results")
    assert cache["node-2"] == {"loss": 0.5}
    assert cache["shared"] == cache["steps"] == 3
    assert sorted(results.get(timeout=1) for _ in range(3)) == [0, 1, 2]
    assert results.get(timeout=0.1) is None
    assert results.empty()
    assert len(compute.set("seen")) == 3
    assert 1 in compute.set("seen")
    assert compute.counter("progress").value == 6


def test_specs_sessions_and_named_pools() -> None:
    small = sky.Spec(provider=sky.AWS(region="us-east-1"), accelerator="A100", nodes=sky.Nodes(desired=1))
    with sky.Session(console=False, logging=False, shutdown_timeout=60) as session:
        options = sky.Options(cluster=False, selection="first")
        first = session.compute(small, sky.Spec(provider=sky.GCP()), name="first", options=options)
        assert evaluate(4) >> first == 16
        assert evaluate(4) @ first == [16]
    assert not session.is_active


def test_a_program_with_only_the_import_changed(tmp_path: Path) -> None:
    """Skyward's own first example, as a whole program."""
    program = tmp_path / "program.py"
    program.write_text(
        "import skyward_etcd as sky\n"
        "\n"
        "@sky.function\n"
        "def double(x):\n"
        "    return 2 * x\n"
        "\n"
        "with sky.Compute(provider=sky.Container(), nodes=2) as compute:\n"
        "    print(double(21) >> sky, double(1) @ sky)\n"
    )
    run = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=30, check=False)
    assert run.stdout == "42 [2, 2]\n", run.stderr
    assert run.stderr.count("IgnoredOption") == 1


# --- what Skyward gets wrong ---


def test_a_process_executor_keeps_the_type_of_an_error() -> None:
    @sky.function
    def fail() -> None:
        raise KeyError("kept")

    worker = sky.Worker(executor="process")
    with (
        sky.Compute(nodes=1, options=sky.Options(cluster=False, worker=worker)) as pool,
        pytest.raises(KeyError, match="kept") as caught,
    ):
        _ = fail() >> pool
    assert "in fail" in str(caught.value.__cause__)


def test_the_collections_work_on_the_driver(compute: sky.Compute) -> None:
    compute.dict("driver")["a"] = None
    assert sky.dict("driver")["a"] is None
    assert "a" in sky.dict("driver"), "a stored None is a value"
    assert sky.counter("drivers").increment() == 1


def test_a_function_may_run_longer_than_the_default_limit(compute: sky.Compute) -> None:
    assert sky.Options().default_compute_timeout is None

    @sky.function
    def slow() -> bool:
        time.sleep(0.5)
        return True

    limited = sky.Options(cluster=False, default_compute_timeout=0.2)
    with sky.Compute(nodes=1, options=limited) as pool, pytest.raises(TimeoutError):
        _ = slow() >> pool
    assert slow() >> compute


def test_release_of_anothers_hold_is_refused(compute: sky.Compute) -> None:
    @sky.function
    def release() -> None:
        sky.lock("theirs").release()

    with compute.lock("theirs"), pytest.raises(sky.NotHeld):
        _ = release() >> compute


def test_outside_a_pool_a_runtime_error_says_what_to_do() -> None:
    code = "import skyward_etcd as sky\ntry: sky.dict('x')\nexcept RuntimeError as error: print(error)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert "with sky.Compute(" in run.stdout
