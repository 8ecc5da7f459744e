"""A worker process of a `Fleet`: ``python -m benchmarks.worker PIPE NUMBER``, of whatever environment's Python."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from benchmarks.harness import serve

if __name__ == "__main__":
    pipe, number = map(int, sys.argv[1:])
    serve(Connection(pipe), number)
