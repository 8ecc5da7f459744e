"""Be the driver of a pool of Skyward 0.10's, by its own code but for its clouds and its ssh, and tell what came of it.

``python -m tests.skyward.generation1 NODES EXECUTOR PORT DIRECTORY``, in an environment with Skyward 0.10 and with us.
The workers are Skyward's own, each at an address of 127.0.0.0/8; what its pool does to them (certificates, the hooks of
a plugin, functions) is done by the functions that its pool calls. JSON comes out, one line for each step.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import Any

from skyward_etcd.plugin.generation1 import etcd

sky: Any = import_module("skyward")
casty: Any = import_module("casty")
cloudpickle: Any = import_module("cloudpickle")
helpers: Any = import_module("skyward.actors.node.helpers")
plugins: Any = import_module("skyward.api.plugin")
pool_info: Any = import_module("skyward.providers.pool_info")
tls: Any = import_module("skyward.infra.tls")
worker: Any = import_module("skyward.infra.worker")

cloudpickle.register_pickle_by_value(sys.modules[__name__])

PEER_PORT = 25520


def use_all(nodes: int) -> dict[str, Any]:
    """Use all six collections with everybody else, by the calls of 0.10."""
    me = sky.instance_info().node
    gate, tally, work = sky.barrier("gate", nodes), sky.counter("tally"), sky.queue("work")
    ranks, seen, bank = sky.dict("ranks", consistency="strong"), sky.set("seen"), sky.dict("bank")
    ranks[str(me)] = {"pid": os.getpid()}
    seen.add("everybody")
    tally.increment(2)
    work.put([me, "item"])
    gate.wait()
    item = work.get(timeout=10)
    for _ in range(5):
        with sky.lock("bank lock"):
            bank["total"] = bank.get("total", 0) + 1
    gate.wait()
    return {
        "kind": type(tally).__module__,
        "ranks": sorted(number for number in range(nodes) if str(number) in ranks),
        "seen": len(seen),
        "tally": tally.value,
        "item": item,
        "total": bank["total"],
        "left": len(work),
    }


async def use_async() -> int:
    """Use the twins for event loops."""
    await sky.dict("ranks").set_async("async", True)
    await sky.counter("async").increment_async(3)
    return int(await sky.counter("async").value_async())


def from_a_loop() -> int:
    """Do so in a function."""
    return asyncio.run(use_async())


def count_up() -> Generator[int]:
    """Use a collection at each step of a stream."""
    for _ in range(3):
        sky.counter("steps").increment()
        yield sky.counter("steps").value


def members(nodes: int) -> list[str]:
    """The members with a vote, as our own API knows them, once each node has one."""
    until, names = time.monotonic() + 50, list[str]()
    while len(names) < nodes and time.monotonic() < until:
        time.sleep(0.5)
        names = _voters()
    return names


def _voters() -> list[str]:
    from skyward_etcd import active
    from skyward_etcd.wire import messages as pb
    from skyward_etcd.wire import methods

    reply: Any = active.current().wire.call(methods.MEMBER_LIST, pb.MemberListRequest(linearizable=True), timeout_s=3.0)
    return sorted(member.name for member in reply.members if not member.isLearner)


class Pool:
    """So many workers of Skyward's, and what its pool would do with them."""

    def __init__(self, nodes: int, executor: str, port: int, directory: Path) -> None:
        net = f"127.{port // 250 % 250 + 1}.{port % 250}"
        self.hosts = [f"{net}.{number + 1}" for number in range(nodes)]
        self._plugin: Any = etcd(port=port)
        self.authority = tls.ensure_ca(tls_dir=directory / "ca")
        self._workers = [self._start(number, executor, directory) for number in range(nodes)]
        self.refs: list[Any] = []

    def _start(self, number: int, executor: str, directory: Path) -> subprocess.Popen[bytes]:
        host = self.hosts[number]
        certificate, key = tls.issue_node_cert(self.authority, host)
        files = {"CERT": certificate, "KEY": key, "CA": self.authority.cert_pem}
        told = {
            "SKYWARD_NODE_ID": str(number),
            "SKYWARD_PORT": str(PEER_PORT + number),
            "SKYWARD_NUM_NODES": str(len(self.hosts)),
            "SKYWARD_HOST": host,
            "SKYWARD_WORKER_EXECUTOR": executor,
            "SKYWARD_WORKERS_PER_NODE": "2",
        }
        if number:
            told["SKYWARD_SEEDS"] = f"{self.hosts[0]}:{PEER_PORT}"
        for name, blob in files.items():
            file = directory / f"{number}.{name}"
            file.write_bytes(blob)
            told[f"SKYWARD_TLS_{name}"] = str(file)
        with (directory / f"{number}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-c", "from skyward.infra.worker import cli; cli()"],
                env={**os.environ, **told},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def join(self, client: Any) -> None:
        """Wait for the workers, and enter the plugin's contexts in each."""
        until = time.monotonic() + 60
        while len(found := {each.node.host: each.ref for each in client.lookup(worker.WORKER_KEY).instances}) < len(
            self.hosts
        ):
            if time.monotonic() > until:
                raise TimeoutError(f"of {self.hosts}, {sorted(found)} are there")
            await asyncio.sleep(0.2)
        self.refs = [found[host] for host in self.hosts]
        hooks = ((self._plugin.name, self._plugin.around_app),)
        await asyncio.gather(
            *(
                helpers.setup_worker_env(client, ref, self._info(number), {}, hooks)
                for number, ref in enumerate(self.refs)
            )
        )

    def _info(self, number: int) -> str:
        info = pool_info.build_pool_info(number, len(self.hosts), 0, 0, self.hosts[0], 29500, "job", [])
        return str(info.model_dump_json())

    async def run(self, client: Any, function: Any, *args: Any, on: list[int] | None = None) -> list[Any]:
        """Run a function on some nodes, or on all."""
        whole = plugins.chain_decorators(function, [self._plugin.decorate])
        chosen = range(len(self.refs)) if on is None else on
        done = await asyncio.gather(
            *(helpers.execute_with_streaming(client, self.refs[number], whole, args, {}, 60.0) for number in chosen)
        )
        if failed := [each for each in done if not hasattr(each, "result")]:
            raise RuntimeError("\n".join(f"{each.error}\n{each.traceback}" for each in failed))
        return [each.result for each in done]

    def kill(self, number: int) -> None:
        """Take a node away."""
        self._workers[number].kill()
        self._workers[number].wait()

    def close(self) -> None:
        """End the workers, and what their executors have left."""
        for running in self._workers:
            running.terminate()
        for running in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()


async def drive(pool: Pool) -> None:
    """Do each step, and say what came of it."""
    nodes = len(pool.hosts)
    client = casty.ClusterClient(
        contact_points=[(pool.hosts[0], PEER_PORT)],
        system_name="skyward",
        serializer=worker.skyward_serializer(),
        tls=tls.issue_client_config(pool.authority),
    )
    async with client:
        await pool.join(client)
        say("all", await pool.run(client, use_all, nodes))
        say("async", await pool.run(client, from_a_loop, on=[0]))
        (stream,) = await pool.run(client, count_up, on=[0])
        say("stream", await asyncio.to_thread(list, stream))
        say("members", (await pool.run(client, members, nodes, on=[0]))[0])
        pool.kill(nodes - 1)
        began = time.monotonic()
        say("survivor", [each["tally"] for each in await pool.run(client, look, on=[0])])
        say("seconds", time.monotonic() - began)


def look() -> dict[str, Any]:
    """Read and write after the loss of a node."""
    sky.counter("tally").increment()
    return {"tally": sky.counter("tally").value}


def say(step: str, result: Any) -> None:
    print(json.dumps({step: result}), flush=True)  # noqa: T201  to whom has started us


def main(nodes: str, executor: str, port: str, directory: str) -> None:
    """Drive a pool."""
    pool = Pool(int(nodes), executor, int(port), Path(directory))
    try:
        asyncio.run(drive(pool))
    finally:
        pool.close()


if __name__ == "__main__":
    from tests.skyward import generation1

    generation1.main(*sys.argv[1:])
