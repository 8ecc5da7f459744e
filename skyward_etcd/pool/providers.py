"""Skyward's providers and catalogues, as names only: code written for a cloud runs unchanged on this machine.

They take whatever Skyward's take, and keep none of their promises: a pool here is made of local processes.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = [
    "AWS",
    "GCP",
    "Catalogue",
    "Container",
    "DockerImage",
    "HealthChecker",
    "Hyperstack",
    "JarvisLabs",
    "Lambda",
    "LambdaCloud",
    "LogConfig",
    "MassedCompute",
    "Novita",
    "Provider",
    "RunPod",
    "Salad",
    "Scaleway",
    "StandIn",
    "Storage",
    "TensorDock",
    "VastAI",
    "Verda",
    "Vultr",
    "accelerators",
    "plugins",
    "storage",
]


class StandIn:
    """Accepts any arguments, and only remembers them for its repr. Settings may be secrets, so their values are not."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        self._arguments = arguments
        self._settings = settings

    def __repr__(self) -> str:
        shown = ", ".join([*("…" for _ in self._arguments), *(f"{name}=…" for name in self._settings)])
        return f"{type(self).__name__}({shown})"


class Catalogue:
    """A namespace of stand-ins: ``accelerators.A100(count=4)``, ``plugins.torch()``, whatever the name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Callable[..., StandIn]:
        if name.startswith("__"):  # what copy, pickle and inspect look for is not in the catalogue
            raise AttributeError(name)
        return type(name, (StandIn,), {"__module__": __name__})

    def __repr__(self) -> str:
        return f"<{self._name}: accepted and ignored>"


class Provider(StandIn):
    """A cloud that is not used."""


class AWS(Provider):
    """Amazon Web Services."""


class Container(Provider):
    """Local containers."""


class GCP(Provider):
    """Google Cloud Platform."""


class Hyperstack(Provider):
    """Hyperstack."""


class JarvisLabs(Provider):
    """Jarvis Labs."""


class LambdaCloud(Provider):
    """Lambda."""


class MassedCompute(Provider):
    """Massed Compute."""


class Novita(Provider):
    """Novita."""


class RunPod(Provider):
    """RunPod."""


class Salad(Provider):
    """Salad."""


class Scaleway(Provider):
    """Scaleway."""


class TensorDock(Provider):
    """TensorDock."""


class VastAI(Provider):
    """Vast.ai."""


class Verda(Provider):
    """Verda."""


class Vultr(Provider):
    """Vultr."""


class DockerImage(StandIn):
    """An image for containers."""


class HealthChecker(StandIn):
    """A periodic probe of the nodes: a local node that dies is noticed without one."""


class LogConfig(StandIn):
    """Skyward's logging: this library logs to ``logging.getLogger("skyward_etcd")``."""


class Storage(StandIn):
    """An object store."""


Lambda = LambdaCloud
accelerators = Catalogue("accelerators")
plugins = Catalogue("plugins")
storage = Catalogue("storage")
