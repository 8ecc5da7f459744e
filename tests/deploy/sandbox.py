"""Run rendered pods on this machine, as far as the kernel lets anybody: without Kubernetes, images or root.

A container is its own command, with its own variables, as its own user without capabilities, on a read-only root that
has what its image would have, with its volumes at their paths. A pod has an address in 127.0.0.0/8, so that all keep
their ports, and finds the others by their names in /etc/hosts. Only one thing is changed in what was rendered: who
listens on 0.0.0.0 listens on the pod's own address.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from skyward_etcd.cluster.binary import inspect, spell
from tests.conftest import MARK
from tests.deploy.checks import PROBES_SINCE
from tests.deploy.manifests import ROOT, Document, Manifests, Pod

FETCHED = Path(os.environ.get("SKYWARD_ETCD_DEPLOY_TOOLS") or ROOT / ".etcd")
"""What tests/deploy/fetch.sh brought: ``bin`` with etcd, etcdctl and etcdutl, and ``sandbox`` with bwrap."""
_DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
WORKER_IMAGE = dict(re.findall(r"(\w+)=(\S+)", _DOCKERFILE.partition("\nENV ")[2].partition("\n")[0]))
"""The variables that the worker's image sets."""
_HOW = "`make test-deploy` brings it"


def tools() -> tuple[Path, Path]:
    """Return the directory of etcd's programs, and bwrap; skip the test, loudly, where they cannot be had."""
    programs = FETCHED / "bin"
    version = inspect(programs / "etcd")
    if version is None or not (programs / "etcdctl").exists() or not (programs / "etcdutl").exists():
        pytest.skip(f"NO ETCD with etcdctl and etcdutl in {FETCHED}: this test did not run. {_HOW}")
    if version < PROBES_SINCE:
        pytest.skip(f"ETCD {spell(version)} HAS NO /livez: this test did not run. {_HOW}")
    bwrap = next((each for each in (FETCHED / "sandbox" / "bwrap", shutil.which("bwrap")) if each), None)
    if bwrap is None or not Path(bwrap).exists():
        pytest.skip(f"NO BUBBLEWRAP: this test did not run. {_HOW}")
    tried = subprocess.run(
        [bwrap, "--unshare-user", "--ro-bind", "/", "/", "true"], capture_output=True, timeout=10, check=False
    )
    if tried.returncode:
        pytest.skip(f"THIS KERNEL HAS NO USER NAMESPACES for us: this test did not run. {tried.stderr.decode()}")
    return programs, Path(bwrap)


@dataclass(slots=True)
class Running:
    """A container that was started."""

    process: subprocess.Popen[bytes]
    log: Path
    pid: int
    """Of the command itself, seen from here; inside it is 1."""

    @property
    def said(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send the command a signal, as the kubelet does."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def stop(self, timeout: float = 15.0) -> int:
        """End it as the kubelet does: SIGTERM, and SIGKILL after a while; return its exit code."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it as the loss of its machine does."""
        self.signal(signal.SIGKILL)
        return self.wait(10)

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self.process.poll()

    def wait(self, timeout: float) -> int:
        """Wait for its end, and return its exit code."""
        return self.process.wait(timeout)


class Sandbox:
    """A namespace of one set of manifests on this machine: its volumes, its names, and what runs in it."""

    def __init__(self, manifests: Manifests, directory: Path, *, network: str | None = None) -> None:
        self.manifests = manifests
        self.directory = directory
        self.programs, self._bwrap = tools()
        self._addresses = addresses(manifests, network or free_network())
        self._running: dict[tuple[str, str], Running] = {}
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write_hosts()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for running in self._running.values():
            if running.process.poll() is None:
                running.kill()

    def address(self, pod: str) -> str:
        """Return the IP address of a pod."""
        return self._addresses[pod]

    def claim(self, name: str) -> Path:
        """Return the directory that stands for a claimed volume."""
        path = self.directory / "claims" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def pod(self, name: str) -> Pod:
        """Return the pod of this name, or the first of the workload of this name."""
        pods = list(self.manifests.every_pod())
        return next(pod for pod in pods if name in (pod.name, pod.owner["metadata"]["name"]))

    def start(self, name: str, *, before: bool = True, command: list[str] | None = None) -> Running:
        """Start a pod: what comes before its container is run to the end, and has to succeed."""
        pod = self.pod(name)
        for container in pod.spec.get("initContainers", []) if before else ():
            done = self._start(pod, container, None)
            assert done.wait(20) == 0, done.said
        return self._start(pod, pod.containers[0], command)

    def before(self, name: str) -> Running:
        """Run the first of what comes before a pod's container to its end."""
        pod = self.pod(name)
        done = self._start(pod, pod.spec["initContainers"][0], None)
        done.wait(20)
        return done

    def run(self, name: str, *, timeout: float = 60.0, command: list[str] | None = None) -> Running:
        """Run a pod to its end."""
        running = self.start(name, command=command)
        running.wait(timeout)
        return running

    def stop(self, name: str) -> int:
        """Stop a pod as a rollout does, and return the exit code of its container."""
        return self._running[name, self.pod(name).containers[0]["name"]].stop()

    def kill(self, name: str) -> None:
        """Lose a pod with its machine."""
        self._running[name, self.pod(name).containers[0]["name"]].kill()

    def probe(self, name: str, kind: str) -> int:
        """Ask what a probe of the pod asks, and return the HTTP status; 0 for no answer."""
        container = self.pod(name).containers[0]
        asked = container[kind]["httpGet"]
        return self.ask(name, asked["path"], asked["port"])

    def ask(self, name: str, path: str, port: str) -> int:
        """Ask for a path at a named port of a pod, and return the HTTP status; 0 for no answer."""
        offered = {each["name"]: each["containerPort"] for each in self.pod(name).containers[0]["ports"]}
        try:
            with urllib.request.urlopen(f"http://{self.address(name)}:{offered[port]}{path}", timeout=15) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def etcdctl(self, *words: str, at: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run etcdctl as a job of the upkeep would, with its variables and files; asking all members, or one."""
        pod = self.pod("etcd-defrag")
        only = ["env", f"ETCDCTL_ENDPOINTS=https://{at}.etcd-peers:2379"] if at else []
        running = self._start(pod, pod.containers[0], [*only, "etcdctl", *words])
        running.wait(30)
        assert running.code is not None
        return subprocess.CompletedProcess(words, running.code, running.said)

    def _start(self, pod: Pod, container: Document, command: list[str] | None) -> Running:
        values = self.manifests.environment(pod, container, ip=self.address(pod.name))
        if container["image"].rpartition("/")[2].startswith("skyward-etcd-worker"):
            values = WORKER_IMAGE | values
        values = {name: value.replace("0.0.0.0", self.address(pod.name)) for name, value in values.items()}
        home = self.directory / "pods" / pod.name
        home.mkdir(parents=True, exist_ok=True)
        log = home / f"{container['name']}.log"
        inside = [
            *self._isolation(pod, container),
            *self._volumes(pod, container, home),
            *self._root(container["image"]),  # after them: this Python may be in /tmp
            *_variables(values),
            "--remount-ro",
            "/",
            "--",
            *(command or self.manifests.command(container, values)),
        ]
        told, ours = os.pipe()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [self._bwrap, "--info-fd", str(ours), *inside],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                pass_fds=[ours],
            )
        os.close(ours)
        with os.fdopen(told) as answer:
            said = answer.read()
        assert said, log.read_text()
        running = Running(process, log, json.loads(said)["child-pid"])
        self._running[pod.name, container["name"]] = running
        return running

    def _isolation(self, pod: Pod, container: Document) -> list[str]:
        security = pod.spec["securityContext"]
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        user, group = str(security["runAsUser"]), str(security["runAsGroup"])
        options = ["--unshare-user", "--uid", user, "--gid", group, "--cap-drop", "ALL", "--unshare-pid", "--as-pid-1"]
        if "skyward-etcd/client" not in pod.labels and pod.owner["kind"] != "StatefulSet":
            options.append("--unshare-net")  # the policies give it none
        return [*options, "--unshare-ipc", "--unshare-uts", "--hostname", pod.name, "--die-with-parent", "--clearenv"]

    def _root(self, image: str) -> Iterator[str]:
        """Give a container what its image has, and no more."""
        yield from (
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--symlink",
            "usr/lib",
            "/lib",
            "--symlink",
            "usr/lib64",
            "/lib64",
        )
        kind = image.rpartition("/")[2].partition(":")[0]
        if kind == "etcd":  # no shell: etcd, and the C library that Debian's is linked to
            yield from _shown("/usr/lib", "/usr/lib64")
        else:
            yield from (*_shown("/usr"), "--symlink", "usr/bin", "/bin")
        if kind == "skyward-etcd-worker":
            yield from _shown(*sorted({sys.prefix, sys.base_prefix, str(ROOT / "skyward_etcd")} - {"/usr"}))
            yield from ("--ro-bind", str(ROOT / "deploy" / "worker.py"), "/app/worker.py", "--chdir", "/app")
        else:
            yield from ("--ro-bind", str(self.programs), "/usr/local/bin")
        yield from ("--ro-bind", str(self.directory / "hosts"), "/etc/hosts")

    def _volumes(self, pod: Pod, container: Document, home: Path) -> Iterator[str]:
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            name = mount["name"]
            volume = volumes.get(name, {"persistentVolumeClaim": {"claimName": pod.claims.get(name)}})
            how = "--ro-bind" if mount.get("readOnly") else "--bind"
            yield from (how, str(self._source(volume, home)), mount["mountPath"])

    def _source(self, volume: Document, home: Path) -> Path:
        match volume:
            case {"persistentVolumeClaim": {"claimName": name}}:
                return self.claim(name)
            case {"configMap": {"name": name}}:
                return self._files(home / "volumes" / volume["name"], self.manifests.data("ConfigMap", name))
            case {"secret": {"secretName": name}}:
                return self._files(home / "volumes" / volume["name"], self.manifests.data("Secret", name))
            case {"emptyDir": _}:
                return self._files(home / "volumes" / volume["name"], {})
            case _:
                raise AssertionError(f"volume {volume} is not known here")

    def _files(self, directory: Path, content: Mapping[str, str]) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in content.items():
            (directory / name).write_text(text)
        return directory

    def _write_hosts(self) -> None:
        """Give every name that the namespace's DNS has its addresses.

        On a real network a pod's connections come from its own address, which its certificate's names lead to. Here
        they come from 127.0.0.1: so that is where the name of the last possible member leads, too.
        """
        lines = ["127.0.0.1 localhost"]
        for pod in self.manifests.every_pod():
            service = pod.owner["spec"].get("serviceName")
            lines += [f"{self.address(pod.name)} {pod.name}.{service} {service}"] if service else []
        lines += [f"{self.address(pod.name)} etcd" for pod in self.manifests.members]
        lines.append("127.0.0.1 etcd-4.etcd-peers")
        (self.directory / "hosts").write_text("\n".join(lines) + "\n")


def start(sandbox: Sandbox, *members: str) -> None:
    """Start members, and wait until their probes say that they are ready."""
    for name in members:
        sandbox.start(name)
    ready(sandbox, *members)


def ready(sandbox: Sandbox, *members: str) -> None:
    """Wait until the members' probes say that they are ready."""
    until(lambda: all(sandbox.probe(name, "readinessProbe") == 200 for name in members))


@functools.cache
def worker_command() -> list[str] | None:
    """Return what a worker runs instead of its own command, as long as there is no ``skyward-etcd run``."""
    command: list[str | Path] = [Path(sys.executable).with_name("skyward-etcd"), "run", "--help"]
    there = subprocess.run(command, capture_output=True, timeout=55, check=False).returncode == 0
    return None if there else [sys.executable, "/app/worker.py"]


def until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def _variables(values: Mapping[str, str]) -> Iterator[str]:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    for name, value in {"PATH": f"{Path(sys.executable).parent}:{path}", MARK: os.environ.get(MARK, "")}.items():
        yield from ("--setenv", name, value)
    for name, value in values.items():
        yield from ("--setenv", name, value)


def _shown(*paths: str) -> Iterator[str]:
    for path in paths:
        yield from ("--ro-bind", path, path)


def addresses(manifests: Manifests, network: str) -> dict[str, str]:
    """Return the address that each pod gets in a network."""
    names = dict.fromkeys(pod.name for pod in manifests.every_pod())
    return {name: f"{network}.{number}" for number, name in enumerate(names, 1)}


def free_network() -> str:
    """Return the first three numbers of loopback addresses that nobody uses for etcd."""
    while True:
        network = f"127.{random.randint(16, 239)}.{random.randint(1, 254)}"
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in (2379, 2380, 2381):
                stack.enter_context(socket.create_server((f"{network}.1", port)))
            return network
