"""The manifests fit together, and each check of that finds what it is there to find."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.checks import faults, mismatches
from tests.deploy.manifests import KUBERNETES, OVERLAYS, ROOT, Manifests, dig, overlay, prune, render, restoration

POD = ("spec", "template", "spec")
ETCD = (*POD, "containers", "etcd")
Spoil = Callable[[Manifests], None]
"""Something that is planted."""

JOB_POD = ("spec", "jobTemplate", "spec", "template", "spec")


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_has_no_faults(name: str) -> None:
    assert faults(overlay(name)) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_restoration_is_that_of_its_overlay(name: str) -> None:
    assert list(mismatches(restoration(name), overlay(name))) == []


def test_a_restoration_of_another_size_is_found() -> None:
    assert list(mismatches(restoration("spot"), overlay("production")))
    assert list(mismatches(restoration("production"), overlay("spot")))


@pytest.mark.parametrize("image", ["etcd", "skyward-etcd-tools", "skyward-etcd-worker"])
def test_an_image_is_set_in_one_place_by_tag_and_digest(image: str, tmp_path: Path) -> None:
    digest = f"sha256:{'0123456789abcdef' * 4}"
    rendered = _on_top(tmp_path, f"images: [{{name: {_full_name(image)}, digest: '{digest}'}}]")
    images = [container["image"] for pod in rendered.every_pod() for container in pod.every_container]
    assert any(each.endswith(f"@{digest}") for each in images)
    assert not [each for each in images if _full_name(image) in each and not each.endswith(f"@{digest}")]


def test_etcd_3_6_gets_the_options_that_it_knows(tmp_path: Path) -> None:
    tags = ", ".join(
        f"{{name: {_full_name(image)}, newTag: {tag}}}"
        for image, tag in (("etcd", "v3.6.9"), ("skyward-etcd-tools", "0.1.0-etcd3.6.9"))
    )
    rendered = _on_top(tmp_path, f"components: [{_relative(tmp_path, 'components/etcd-3.6')}]\nimages: [{tags}]")
    assert "v3.6." in dig(rendered.get("StatefulSet", "etcd"), (*ETCD, "image"))
    assert faults(rendered) == []


def test_the_documentation_names_what_there_is() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text() + (ROOT / "deploy" / "README.md").read_text()
    paths = {path.rstrip("/") for path in re.findall(r"(deploy/[\w/.-]*\w)", text)}
    assert [path for path in sorted(paths) if not (ROOT / path.removesuffix("/pem")).exists()] == []
    production = overlay("production")
    named = re.findall(r"(cronjob|statefulset|configmap|patch cronjob)[/ ](etcd[\w-]*)", text)
    assert len(named) >= 8
    there = {(each["kind"].lower(), each["metadata"]["name"]) for each in production.documents}
    by_hand = {("configmap", "etcd-restore")}
    assert {(kind.rpartition(" ")[2], name) for kind, name in named} - there == by_hand
    keys = {
        key
        for patch in re.findall(r"patch configmap etcd-bootstrap .*'{\"data\":({.*?})}'", text)
        for key in json.loads(patch)
    }
    assert keys == set(production.data("ConfigMap", "etcd-bootstrap"))


def _on_top(directory: Path, lines: str) -> Manifests:
    """Render the production overlay with something on top of it."""
    head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    resources = f"resources: [{_relative(directory, 'overlays/production')}]\n"
    (directory / "kustomization.yaml").write_text(head + resources + lines)
    return render(directory)


def _relative(directory: Path, path: str) -> str:
    return os.path.relpath(KUBERNETES / path, directory)


def _full_name(image: str) -> str:
    """Return the name that the overlays give an image, without its tag."""
    pods = overlay("production").every_pod()
    images = [str(each["image"]).rpartition(":")[0] for pod in pods for each in pod.every_container]
    return next(each for each in images if each.endswith(f"/{image}"))


# --- faults that are planted, and what is said of them


def put(kind: str, name: str, *path: str | int, to: Any) -> Spoil:
    """Plant another value somewhere."""

    def spoil(manifests: Manifests) -> None:
        place = dig(manifests.get(kind, name), path[:-1])
        place[path[-1]] = to

    return spoil


def drop(kind: str, name: str, *path: str | int) -> Spoil:
    """Plant a gap somewhere; without a path, the whole document is missing."""

    def spoil(manifests: Manifests) -> None:
        document = manifests.get(kind, name)
        if not path:
            manifests.documents.remove(document)
            return
        prune(document, path)

    return spoil


def variable(kind: str, name: str, container: tuple[str | int, ...], variable: str, to: str) -> Spoil:
    """Plant another value of a variable."""
    return put(kind, name, *container, "env", variable, "value", to=to)


MEMBER = ("StatefulSet", "etcd")
WORKER = ("StatefulSet", "service")
BATCH = ("Job", "batch")

PLANTED: list[tuple[str, Spoil, str]] = [
    # what refers to something
    ("production", put("Service", "etcd", "spec", "selector", to={"app": "etcd"}), "Service etcd selects no pod"),
    (
        "production",
        put("PodDisruptionBudget", "etcd", "spec", "selector", to={"matchLabels": {"a": "b"}}),
        "selects no",
    ),
    ("production", put(*MEMBER, "spec", "selector", to={"matchLabels": {"a": "b"}}), "does not select its own pods"),
    ("production", put("Service", "etcd", "spec", "ports", 0, "targetPort", to="clients"), "does not offer"),
    ("production", put(*MEMBER, *ETCD, "livenessProbe", "httpGet", "port", to="health"), "its livenessProbe asks port"),
    ("production", drop(*MEMBER, *POD, "volumes", "peer-tls"), "mounts volume peer-tls"),
    ("production", drop(*MEMBER, *ETCD, "volumeMounts", "peer-tls"), "which nothing mounts"),
    ("production", drop("PersistentVolumeClaim", "etcd-snapshots"), "there is no claim etcd-snapshots"),
    ("production", drop("Certificate", "etcd-client"), "no Secret etcd-client-tls, and nothing makes it"),
    ("dev", drop("ConfigMap", "etcd-bootstrap"), "there is no ConfigMap etcd-bootstrap"),
    ("dev", drop("ConfigMap", "etcd-bootstrap", "data", "empty-disk"), "has no key empty-disk"),
    ("dev", drop("ServiceAccount", "worker"), "there is no ServiceAccount worker"),
    ("production", variable(*WORKER, (*POD, "containers", "worker"), "SCHEME", "$(NONE)"), "uses $(NONE) before"),
    ("production", put(*WORKER, *POD, "containers", "worker", "args", to=["run", "$(NONE)"]), "command uses $(NONE)"),
    ("production", drop("Service", "etcd-peers"), "which is nowhere"),
    (
        "production",
        put("Service", "etcd-peers", "spec", "ports", 0, "port", to=2378),
        "etcd-0.etcd-peers:2379, which is",
    ),
    # etcd
    ("production", put(*MEMBER, "spec", "replicas", to=5), "--initial-cluster says"),
    ("production", put(*MEMBER, "spec", "replicas", to=2), "2 members: an even number"),
    (
        "production",
        variable(*MEMBER, ETCD, "ETCD_INITIAL_CLUSTER", "etcd-0=https://etcd-0.etcd-peers:2380"),
        "--initial",
    ),
    (
        "production",
        variable(*MEMBER, ETCD, "ETCD_INITIAL_ADVERTISE_PEER_URLS", "https://etcd:2380"),
        "--initial-cluster",
    ),
    (
        "production",
        variable(*WORKER, (*POD, "containers", "worker"), "SKYWARD_ETCD_ENDPOINTS", "https://etcd:2379"),
        "but",
    ),
    ("production", put("PodDisruptionBudget", "etcd", "spec", "maxUnavailable", to=2), "lets 2 of 3 members go"),
    ("production", put("PodDisruptionBudget", "etcd", "spec", "maxUnavailable", to=0), "lets 0 of 3 members go"),
    ("production", put("PodDisruptionBudget", "etcd", "spec", to={"minAvailable": 1, "selector": {}}), "lets 2 of 3"),
    ("production", put("PodDisruptionBudget", "etcd", "spec", "maxUnavailable", to="50%"), "a percentage"),
    ("spot", drop("PodDisruptionBudget", "etcd"), "5 members and 0 disruption budgets"),
    ("production", drop("Service", "etcd-peers", "spec", "publishNotReadyAddresses"), "only when they are ready"),
    ("production", drop("Service", "etcd-peers", "spec", "clusterIP"), "not headless"),
    ("production", put(*MEMBER, "spec", "podManagementPolicy", to="OrderedReady"), "waits to be ready"),
    (
        "production",
        put(*MEMBER, *POD, "affinity", "podAntiAffinity", to={"preferredDuringSchedulingIgnoredDuringExecution": []}),
        "may share a machine",
    ),
    ("production", put(*MEMBER, "spec", "persistentVolumeClaimRetentionPolicy", "whenScaled", to="Delete"), "disks go"),
    (
        "production",
        put(*MEMBER, *ETCD, "lifecycle", to={"preStop": {"exec": {"command": ["etcdctl", "member", "remove"]}}}),
        "does something at its stop",
    ),
    ("production", variable(*MEMBER, ETCD, "ETCD_DATA_DIR", "/tmp/etcd"), "on no claimed disk"),
    ("production", put(*MEMBER, *POD, "enableServiceLinks", to=True), "ETCD_... variables"),
    ("production", put(*MEMBER, *ETCD, "livenessProbe", "httpGet", "path", to="/health"), "would kill the members"),
    ("production", put(*MEMBER, *ETCD, "readinessProbe", "httpGet", "path", to="/health"), "readiness probe asks"),
    ("production", put(*MEMBER, *ETCD, "livenessProbe", "failureThreshold", to=1), "is killed"),
    (
        "production",
        variable(*MEMBER, ETCD, "ETCD_LISTEN_METRICS_URLS", "https://0.0.0.0:2381"),
        "no client certificate",
    ),
    ("production", put(*MEMBER, *ETCD, "image", to="etcd:v3.5.1"), "can lose acknowledged writes"),
    ("production", put(*MEMBER, *ETCD, "image", to="etcd:v3.5.10"), "has no /livez"),
    ("production", put(*MEMBER, *ETCD, "image", to="etcd:v3.6.9"), "has no option ETCD_EXPERIMENTAL"),
    ("production", variable(*MEMBER, ETCD, "ETCD_EXPERIMENTAL_CORRUPT_CHECK_TIME", "1d"), "not 1h"),
    ("production", put(*MEMBER, *POD, "initContainers", 0, "image", to="tools:1-etcd3.4.1"), "not those of etcd"),
    # TLS
    ("production", variable(*WORKER, (*POD, "containers", "worker"), "SCHEME", "http"), "some addresses are http and"),
    ("production", drop(*MEMBER, *ETCD, "env", "ETCD_PEER_CLIENT_CERT_AUTH"), "anybody may connect"),
    ("production", put("Certificate", "etcd-peer", "spec", "issuerRef", "name", to="etcd-client-ca"), "one authority"),
    ("production", put("Certificate", "etcd-peer", "spec", "dnsNames", to=["etcd-0.etcd-peers"]), "certificate lacks"),
    ("production", put("Certificate", "etcd-peer", "spec", "usages", to=["server auth"]), "client and server"),
    ("production", put("Issuer", "etcd-peer-ca", "spec", to={"selfSigned": {}}), "is no authority"),
    ("production", variable(*MEMBER, ETCD, "ETCD_PEER_TRUSTED_CA_FILE", "/etc/etcd/server/tls.crt"), "files are"),
    # workers
    ("spot", put(*BATCH, "spec", "completions", to=8), "8 workers are told that they are 4"),
    ("spot", put(*BATCH, "spec", "completionMode", to="NonIndexed"), "have no rank"),
    (
        "spot",
        put(*BATCH, "spec", "podFailurePolicy", "rules", 1, "onExitCodes", "values", to=[75]),
        "exit codes are taken",
    ),
    ("spot", put(*BATCH, "spec", "podFailurePolicy", "rules", 2, to={"action": "Count"}), "to be moved counts"),
    ("spot", put(*BATCH, *POD, "restartPolicy", to="OnFailure"), "needs restartPolicy Never"),
    # nobody gets in
    ("production", put(*WORKER, *POD, "automountServiceAccountToken", to=True), "a token of the API"),
    ("production", drop(*WORKER, *POD, "securityContext", "runAsNonRoot"), "may run as root"),
    ("production", drop(*MEMBER, *POD, "securityContext", "seccompProfile"), "no seccomp"),
    ("production", drop(*MEMBER, *ETCD, "securityContext", "capabilities"), "may become more"),
    (
        "production",
        drop("CronJob", "etcd-drill", *JOB_POD, "containers", "upkeep", "securityContext"),
        "write to its image",
    ),
    ("production", put(*WORKER, *POD, "containers", "worker", "image", to="worker:latest"), "is any version"),
    ("production", drop("NetworkPolicy", "etcd"), "is cut off from the members' port 2379"),
    ("production", drop("NetworkPolicy", "etcd-clients"), "is cut off from the members' port 2379"),
    ("production", drop("NetworkPolicy", "names"), "can look no name up"),
    ("production", drop("NetworkPolicy", "closed"), "etcd-drill needs no network"),
    ("production", put("NetworkPolicy", "etcd", "spec", "ingress", 1, "from", to=[{"podSelector": {}}]), "anybody"),
    ("production", put("NetworkPolicy", "etcd", "spec", "ingress", 0, "ports", to=[]), "port 2380"),
    (
        "production",
        put("NetworkPolicy", "names", "spec", "podSelector", to={}),
        "CronJob etcd-drill needs no network, and has it",
    ),
    ("production", drop(*WORKER, "spec", "template", "metadata", "labels", "skyward-etcd/client"), "is cut off"),
    # upkeep
    ("production", put("CronJob", "etcd-defrag", "spec", "concurrencyPolicy", to="Allow"), "may run twice"),
    ("production", put("CronJob", "etcd-snapshot", "spec", "suspend", to=True), "is suspended"),
    ("production", put("CronJob", "etcd-replace", "spec", "suspend", to=False), "replaced by the clock"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), PLANTED, ids=[said for _, _, said in PLANTED])
def test_a_planted_fault_is_found(name: str, spoil: Spoil, said: str) -> None:
    manifests = overlay(name)
    spoil(manifests)
    assert any(said in fault for fault in faults(manifests)), faults(manifests)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (drop("Job", "restore-etcd-1"), "the restoration writes"),
        (put("Job", "restore-etcd-0", *POD, "volumes", "scripts", "configMap", "name", to="none"), "no ConfigMap none"),
        (put("Job", "restore-etcd-0", *POD, "serviceAccountName", to="nobody"), "no ServiceAccount nobody"),
        (variable("Job", "restore-etcd-2", (*POD, "containers", "restore"), "MEMBER", "etcd-0"), "makes etcd-0 of"),
        (variable("Job", "restore-etcd-2", (*POD, "containers", "restore"), "DATA", "/data"), "writes to /data"),
    ],
)
def test_a_fault_of_a_restoration_is_found(spoil: Spoil, said: str) -> None:
    manifests = restoration("production")
    spoil(manifests)
    assert said in str(list(mismatches(manifests, overlay("production"))))
