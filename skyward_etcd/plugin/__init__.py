"""Inside the real Skyward: its ``sky.dict``, ``sky.lock`` … on an etcd cluster that runs on its pool's own nodes.

For its generation 2, from 0.11 on, and as small for generation 1::

    import skyward as sky
    from skyward_etcd.plugin import Etcd

    with sky.Compute(provider=sky.AWS(), nodes=3, plugins=[Etcd()]) as pool:
        train() @ pool  # its sky.counter("steps") is exact, and outlives the loss of a node
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyward_etcd.plugin.etcd import Etcd

__all__ = ["Etcd"]


def __getattr__(name: str) -> Any:
    """Import Skyward for those only who want its plugin: the one for the generation that is installed."""
    if name == "Etcd":
        if importlib.util.find_spec("skyward.worker") is None:
            from skyward_etcd.plugin.generation1 import etcd

            return etcd
        from skyward_etcd.plugin.etcd import Etcd

        return Etcd
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
