"""The kinds of collections, for those who may not know their layout."""

from __future__ import annotations

from skyward_etcd.ops.layout import KINDS, Kind, check_name

__all__ = ["KINDS", "Kind", "check_name"]
