"""Where the members are that one member tells of."""

from __future__ import annotations

import pytest

from skyward_etcd.cluster.survey import _endpoint


@pytest.mark.parametrize(
    ("url", "asked", "leads_to"),
    [
        ("http://10.0.0.2:2379", "10.0.0.1:2379", "10.0.0.2:2379"),
        ("https://m2:2379", "https://m1:2379", "https://m2:2379"),
        ("unix://m2:2379", "unix:///run/pool/m1:2379", "unix:///run/pool/m2:2379"),
        ("unix:///elsewhere/m2", "unix:///run/pool/m1:2379", "unix:///elsewhere/m2"),
    ],
)
def test_a_socket_is_looked_for_beside_the_one_that_told_of_it(url: str, asked: str, leads_to: str) -> None:
    assert _endpoint(url, asked) == leads_to
