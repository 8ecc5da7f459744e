"""Which of how many a process is, by the environment of whoever started it."""

from __future__ import annotations

import pytest

from skyward_etcd.work.place import UnknownPlace, place

KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    ("environment", "rank", "size"),
    [
        ({}, 0, 1),
        ({"SKYWARD_ETCD_SIZE": "1"}, 0, 1),
        ({"SKYWARD_ETCD_RANK": "2", "SKYWARD_ETCD_SIZE": "4"}, 2, 4),
        ({**KUBERNETES, "JOB_COMPLETION_INDEX": "3", "SKYWARD_ETCD_SIZE": "4", "POD_NAME": "batch-0-x7k2p"}, 3, 4),
        ({**KUBERNETES, "POD_NAME": "worker-2", "SKYWARD_ETCD_SIZE": "3"}, 2, 3),
        ({**KUBERNETES, "HOSTNAME": "worker-0", "SKYWARD_ETCD_SIZE": "3"}, 0, 3),
        ({**KUBERNETES, "HOSTNAME": "web-7d9f8c-x7k2p"}, 0, 1),
        ({"HOSTNAME": "desk-12"}, 0, 1),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, 5, 8),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"}, 1, 2),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, 3, 4),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 1, 2),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, 1, 2),
        ({"PMIX_RANK": "1", "SLURM_NTASKS": "2"}, 1, 2),
        ({"RANK": "6", "WORLD_SIZE": "8"}, 6, 8),
        ({"SKYWARD_ETCD_RANK": "0", "SKYWARD_ETCD_SIZE": "2", "RANK": "6", "WORLD_SIZE": "8"}, 0, 2),
    ],
)
def test_a_process_knows_which_of_how_many_it_is(environment: dict[str, str], rank: int, size: int) -> None:
    found = place(environment)
    assert (found.rank, found.size) == (rank, size)


@pytest.mark.parametrize(
    "environment",
    [
        {"JOB_COMPLETION_INDEX": "3"},
        {"SKYWARD_ETCD_SIZE": "4"},
        {"SKYWARD_ETCD_RANK": "4", "SKYWARD_ETCD_SIZE": "4"},
        {"SKYWARD_ETCD_RANK": "-1", "SKYWARD_ETCD_SIZE": "4"},
        {"SKYWARD_ETCD_RANK": "one", "SKYWARD_ETCD_SIZE": "4"},
        {"SLURM_PROCID": "1"},
        {"POD_NAME": "worker-3", "SKYWARD_ETCD_SIZE": "3"},
    ],
)
def test_what_does_not_go_together_is_refused_with_the_way_out(environment: dict[str, str]) -> None:
    with pytest.raises(UnknownPlace, match="SKYWARD_ETCD_"):
        place(environment)
