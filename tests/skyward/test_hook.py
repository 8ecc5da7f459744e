"""How Skyward comes to know the plugin, in processes that import nothing of ours. No pool is needed for that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(120)


def said(code: str, **environment: str) -> str:
    """Run a program that knows nothing of us, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_skywards_daemon_and_workers_know_the_plugin() -> None:
    assert said("from skyward.worker.plugins import PLUGINS; print(PLUGINS['skyward-etcd'].__name__)") == "Etcd"
    refs = "from skyward.shared.schemas import PluginRef; from skyward.worker.plugins import resolve;"
    assert "port=2479" in said(refs + "print(resolve([PluginRef(kind='skyward-etcd', params={'port': 2479})]))")


def test_it_is_known_however_it_is_imported_first() -> None:
    for first in ("skyward", "skyward_etcd.plugin.etcd", "skyward.worker.worker", "skyward_etcd"):
        code = f"import {first}; from skyward_etcd.plugin import Etcd; from skyward.worker.plugins import PLUGINS;"
        assert said(code + "print(PLUGINS[Etcd.kind] is Etcd)") == "True"


def test_it_can_be_turned_off() -> None:
    code = "from skyward.worker.plugins import PLUGINS; print('skyward-etcd' in PLUGINS)"
    assert said(code, SKYWARD_ETCD_HOOK="0") == "False"


def test_other_programs_load_nothing_of_ours() -> None:
    code = "import sys, json, email.message; print([name for name in sys.modules if name.startswith('skyward')])"
    assert said(code) == "[]"


def test_nodes_are_told_to_install_this_very_version() -> None:
    code = (
        "import skyward as sky; from skyward_etcd.plugin import Etcd; print(Etcd().image(sky.Image(pip=['numpy'])).pip)"
    )
    assert said(code) == "('numpy', 'skyward-etcd[embedded,tls]==0.1.0')"
    code = (
        "import skyward as sky; from skyward_etcd.plugin import Etcd; print(Etcd(source='us').image(sky.Image()).pip)"
    )
    assert said(code) == "('us',)"
