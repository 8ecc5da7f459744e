"""An overlay with certificates made by hand, from the script to the rendered Secrets: what docs/kubernetes.md says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from skyward_etcd.active import Tls
from tests.deploy.manifests import KUBERNETES, Document, Manifests, overlay, render
from tests.deploy.sandbox import addresses

SCRIPT = KUBERNETES.parent / "certificates.sh"
_LINE = "components/cert-manager # or own-certificates"


def certified(name: str, directory: Path, network: str) -> Manifests:
    """Return an overlay with own-certificates in the place of cert-manager, as its comment says, and with its secret.

    What the script wrote is in ``pem`` below the directory. The servers' certificate has the addresses in this network
    too, for tests, which have no DNS.
    """
    shipped = overlay(name)
    places = addresses(shipped, network)
    make_certificates(directory / "pem", *(places[member.name] for member in shipped.members))
    copy = directory / "kubernetes"
    shutil.copytree(KUBERNETES, copy, ignore=shutil.ignore_patterns("pem"))
    shutil.copytree(directory / "pem", copy / "components" / "own-certificates" / "pem")
    kustomization = copy / "overlays" / name / "kustomization.yaml"
    text = kustomization.read_text()
    assert _LINE in text
    kustomization.write_text(text.replace(_LINE, "components/own-certificates"))
    secret: Document = {"kind": "Secret", "metadata": {"name": "skyward-etcd"}, "stringData": {"secret": "ab" * 32}}
    return Manifests([*render(kustomization.parent).documents, secret])


def make_certificates(directory: Path, *names: str) -> str:
    """Run the script, and return what it said."""
    made = subprocess.run([SCRIPT, directory, *names], capture_output=True, text=True, timeout=30, check=False)
    assert made.returncode == 0, made.stderr
    return made.stderr


def client_tls(pem: Path) -> Tls:
    """Return what a worker has."""
    return Tls(*((pem / name).read_bytes() for name in ("client-ca.crt", "client.crt", "client.key")))
