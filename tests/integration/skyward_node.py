"""A node as Skyward starts it, without Skyward: an agent that is told its host, and in a file who the others are.

``python skyward_node.py NODE HOST OPENS DIRECTORY ETCD PORT PEERS [CA CERTIFICATE KEY]``; it leaves when its standard
input ends.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from skyward_etcd.cluster.binary import Etcd, inspect
from skyward_etcd.plugin.agent import Agent, Home
from skyward_etcd.session.session import Tls


def main(*arguments: str) -> None:
    """Be a node."""
    node, host, opens, directory, etcd, port, peers, *pem = arguments
    logging.basicConfig(level=logging.INFO, format=f"%(relativeCreated)d {node} %(message)s")
    authority, certificate, key = (Path(path).read_bytes() for path in pem) if pem else (b"", b"", b"")
    home = Home(
        node,
        host,
        opens == "opens",
        lambda: Path(peers).read_text().split(),
        Path(directory),
        Etcd(Path(etcd), inspect(Path(etcd)) or (0, 0, 0), "test"),
        Tls(authority, certificate, key, by_name=False) if pem else None,
        int(port),
        relay=host,
    )
    agent = Agent(home)
    agent.start()
    print("ready", flush=True)  # noqa: T201  to whom has started us
    sys.stdin.read()
    agent.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
