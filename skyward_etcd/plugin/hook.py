"""Have Skyward know our plugin wherever it looks plugins up: also in its daemon and on its nodes, which import none.

``skyward_etcd.pth``, which Python reads at each start, puts a finder before all others that compares one name and else
does nothing. When Skyward imports its plugins, that finder asks us, once.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from skyward_etcd import config

__all__ = ["found"]

_log = logging.getLogger("skyward_etcd.plugin")


def found(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Return where the module is, with a loader that registers our plugin once the module is there."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "SkywardEtcd"]
    spec = PathFinder.find_spec(name, path)
    if spec is not None and spec.loader is not None and config.skyward_hook():
        loader: Any = spec.loader
        execute = loader.exec_module

        def then_register(module: ModuleType) -> None:
            execute(module)
            _register()

        loader.exec_module = then_register
    return spec


def _register() -> None:
    try:
        importlib.import_module("skyward_etcd.plugin.etcd")
    except Exception as error:  # noqa: BLE001  whatever it is, Skyward goes on without us
        _log.warning("skyward-etcd cannot be a plugin of this Skyward: %s. It needs 0.11 or later", error)
