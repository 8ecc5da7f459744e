"""Which of how many this process is, as whoever started it has said in its environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from skyward_etcd.errors import SkywardEtcdError

__all__ = ["Place", "UnknownPlace", "place"]

_RANKS = (
    ("SKYWARD_ETCD_RANK", ()),
    ("JOB_COMPLETION_INDEX", ()),  # Kubernetes, an Indexed Job
    ("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),  # Open MPI
    ("MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",)),  # MVAPICH
    ("PMI_RANK", ("PMI_SIZE",)),  # MPICH and Intel MPI
    ("PMIX_RANK", ("PMIX_SIZE", "SLURM_NTASKS")),
    ("SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")),
    ("RANK", ("WORLD_SIZE",)),  # torchrun
)
"""Where a rank stands, and beside it the size. What starts the ranks of a task comes before what starts the tasks."""
_ORDINAL = re.compile(r"-(0|[1-9]\d*)$")


class UnknownPlace(SkywardEtcdError, ValueError):
    """The environment does not say which of how many this is, or contradicts itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """One of ``size`` processes, numbered from 0."""

    rank: int
    size: int
    source: str
    """The variable that said so; empty: nobody did, and it is the only one."""


def place(environment: Mapping[str, str]) -> Place:
    """Return what an environment says.

    ``SKYWARD_ETCD_RANK`` and ``SKYWARD_ETCD_SIZE`` go before all else. Kubernetes does not tell the size of what it
    runs, so that ``SKYWARD_ETCD_SIZE`` has to; a StatefulSet's pod knows its number by its name.

    Raises:
        UnknownPlace: there is a rank and no size, or they are no numbers that go together.
    """
    for name, sizes in _RANKS:
        if environment.get(name):
            return _checked(environment, name, environment[name], sizes)
    pod = environment.get("POD_NAME") or (
        environment.get("HOSTNAME", "") if environment.get("KUBERNETES_SERVICE_HOST") else ""
    )
    ordinal = _ORDINAL.search(pod)
    if ordinal and environment.get("SKYWARD_ETCD_SIZE"):
        return _checked(environment, f"the pod's name {pod}", ordinal[1], ())
    if environment.get("SKYWARD_ETCD_SIZE") not in (None, "", "1"):
        raise UnknownPlace(
            f"SKYWARD_ETCD_SIZE={environment['SKYWARD_ETCD_SIZE']}, and nothing says which of them this is: set "
            "SKYWARD_ETCD_RANK, or run it as an Indexed Job or a StatefulSet, by srun or by mpirun"
        )
    return Place(0, 1, "")


def _checked(environment: Mapping[str, str], source: str, rank: str, sizes: tuple[str, ...]) -> Place:
    name = next((name for name in ("SKYWARD_ETCD_SIZE", *sizes) if environment.get(name)), None)
    if name is None:
        raise UnknownPlace(f"{source}={rank}, and nothing says of how many: set SKYWARD_ETCD_SIZE")
    try:
        found = Place(int(rank), int(environment[name]), source)
    except ValueError:
        raise UnknownPlace(f"{source}={rank!r} and {name}={environment[name]!r} are not two numbers") from None
    if not 0 <= found.rank < found.size:
        raise UnknownPlace(f"{source}={rank} and {name}={environment[name]}: ranks go from 0 to {found.size - 1}")
    return found
