"""The `skyward-etcd` command: it parses, calls the library, and prints. Failures are one line, without a traceback."""

from skyward_etcd.cli.main import main

__all__ = ["main"]
