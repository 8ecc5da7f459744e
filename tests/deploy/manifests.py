"""Rendered manifests, and what Kubernetes would make of them: pods with their labels, variables and volumes."""

from __future__ import annotations

import base64
import copy
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("dev", "production", "spot")

Document = dict[str, Any]


def render(directory: Path) -> Manifests:
    """Return what ``kubectl kustomize`` makes of a directory."""
    command = [kubectl(), "kustomize", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # what is deprecated
    return Manifests(list(yaml.load_all(done.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))))


def overlay(name: str) -> Manifests:
    """Return an overlay as it is shipped; a fresh copy, to be spoiled at will."""
    return Manifests(copy.deepcopy(_rendered(f"overlays/{name}").documents))


def restoration(name: str) -> Manifests:
    """Return the jobs that restore the members of an overlay."""
    return Manifests(copy.deepcopy(_rendered(f"restore/{name}").documents))


def with_restoration(manifests: Manifests, name: str) -> Manifests:
    """Return manifests with the jobs that restore an overlay, and a ConfigMap for what to restore, still empty."""
    told = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "etcd-restore"}, "data": dict[str, str]()}
    return Manifests([*manifests.documents, *restoration(name).documents, told])


def kubectl() -> str:
    """Return the kubectl of this environment, else the one on PATH; skip the test, loudly, if there is none."""
    found = shutil.which("kubectl", path=Path(sys.executable).parent) or shutil.which("kubectl")
    if found is None:
        pytest.skip("NO KUBECTL: this test did not run. `make test-deploy` installs it")
    return found


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of a workload: its template, with the names and values that this one gets."""

    owner: Document
    name: str
    spec: Document
    labels: Mapping[str, str]
    claims: Mapping[str, str] = field(default_factory=dict[str, str])
    """Volume to claim, of a StatefulSet's claim templates."""
    index: int | None = None
    """Of an Indexed Job."""

    @property
    def containers(self) -> list[Document]:
        """Those that run on, without those before them."""
        containers: list[Document] = self.spec["containers"]
        return containers

    @property
    def every_container(self) -> list[Document]:
        """All of them, in the order of their start."""
        return [*self.spec.get("initContainers", []), *self.containers]

    def __str__(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"


@dataclass(frozen=True, slots=True)
class Manifests:
    """What one ``kubectl apply`` would be given."""

    documents: list[Document]

    def of(self, *kinds: str) -> Iterator[Document]:
        """Yield the documents of these kinds."""
        return (document for document in self.documents if document["kind"] in kinds)

    def find(self, kind: str, name: str) -> Document | None:
        """Return the document of this name, if there is one."""
        return next((document for document in self.of(kind) if document["metadata"]["name"] == name), None)

    def get(self, kind: str, name: str) -> Document:
        """Return the document of this name."""
        found = self.find(kind, name)
        assert found is not None, f"no {kind} {name}"
        return found

    def workloads(self) -> Iterator[Document]:
        """Yield what makes pods."""
        return self.of("StatefulSet", "Job", "CronJob", "Deployment", "DaemonSet", "Pod")

    def pods(self, owner: Document) -> list[Pod]:
        """Return the pods that a workload makes: one of each ordinal or index, one of a CronJob."""
        name, spec = owner["metadata"]["name"], owner["spec"]
        if owner["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        template = spec["template"]
        labels = template["metadata"]["labels"]
        if owner["kind"] == "StatefulSet":
            volumes = [each["metadata"]["name"] for each in spec.get("volumeClaimTemplates", [])]
            return [
                Pod(owner, f"{name}-{i}", template["spec"], labels, {each: f"{each}-{name}-{i}" for each in volumes})
                for i in range(spec["replicas"])
            ]
        count = spec.get("completions", 1)
        indexed = spec.get("completionMode") == "Indexed"
        return [
            Pod(owner, f"{name}-{i}-xyz12" if indexed else f"{name}-xyz12", template["spec"], labels, index=i)
            if indexed
            else Pod(owner, f"{name}-xyz12", template["spec"], labels)
            for i in range(count)
        ]

    def every_pod(self) -> Iterator[Pod]:
        """Yield the pods of all workloads."""
        for owner in self.workloads():
            yield from self.pods(owner)

    @property
    def members(self) -> list[Pod]:
        """The pods of etcd."""
        return self.pods(self.get("StatefulSet", "etcd"))

    def environment(self, pod: Pod, container: Document, *, ip: str = "192.0.2.1") -> dict[str, str]:
        """Return the variables of a container, as the kubelet resolves them: in order, and unknown ones left alone."""
        values: dict[str, str] = {}
        if pod.index is not None:
            values["JOB_COMPLETION_INDEX"] = str(pod.index)
        for source in container.get("envFrom", []):
            values |= self._data("ConfigMap", source["configMapRef"]["name"])
        for variable in container.get("env", []):
            if "value" in variable:
                value = expand(variable["value"], values)
            else:
                value = self._value_from(pod, variable["valueFrom"], ip)
            values[variable["name"]] = value
        return values

    def command(self, container: Document, values: Mapping[str, str]) -> list[str]:
        """Return the command of a container with its arguments."""
        return [expand(word, values) for word in (*container["command"], *container.get("args", []))]

    def data(self, kind: str, name: str) -> dict[str, str]:
        """Return what is in a ConfigMap or Secret, by key, as text."""
        return self._data(kind, name)

    def _value_from(self, pod: Pod, source: Document, ip: str) -> str:
        match source:
            case {"fieldRef": {"fieldPath": "metadata.name"}}:
                return pod.name
            case {"fieldRef": {"fieldPath": "metadata.namespace"}}:
                return str(pod.owner["metadata"]["namespace"])
            case {"fieldRef": {"fieldPath": "status.podIP"}}:
                return ip
            case {"configMapKeyRef": {"name": name, "key": key}}:
                return self._data("ConfigMap", name)[key]
            case {"secretKeyRef": {"name": name, "key": key}}:
                return self._data("Secret", name)[key]
            case _:
                raise AssertionError(f"a variable from {source} is not known here")

    def _data(self, kind: str, name: str) -> dict[str, str]:
        document = self.get(kind, name)
        data: dict[str, str] = document.get("data") or {}
        if kind == "ConfigMap":
            return dict(data)
        text: dict[str, str] = document.get("stringData", {})
        return text | {key: base64.b64decode(value).decode() for key, value in data.items()}


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by what is known so far."""
    return re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], match[0]), text)


def matches(selector: Document | None, labels: Mapping[str, str]) -> bool:
    """Tell whether a label selector selects these labels; an empty one selects all."""
    chosen: Document = selector or {}
    return all(labels.get(key) == value for key, value in chosen.get("matchLabels", {}).items()) and all(
        _expression(each, labels) for each in chosen.get("matchExpressions", [])
    )


def _expression(expression: Document, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values", [])
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case operator:
            raise AssertionError(f"no operator {operator}")


def dig(document: Any, path: Sequence[str | int]) -> Any:
    """Return what lies at a path of keys, list indexes and, in lists, names of elements."""
    return functools.reduce(lambda place, step: place[_key(place, step)], path, document)


def prune(document: Any, path: Sequence[str | int]) -> None:
    """Remove what lies at a path."""
    place = dig(document, path[:-1])
    del place[_key(place, path[-1])]


def _key(place: Any, step: str | int) -> str | int:
    if isinstance(place, dict) or isinstance(step, int):
        return step
    return next(number for number, each in enumerate(place) if each.get("name") == step)


@functools.cache
def _rendered(directory: str) -> Manifests:
    return render(KUBERNETES / directory)
