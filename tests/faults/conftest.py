"""What the fault tests share with those of the integration tier: the clusters."""

from __future__ import annotations

from tests.integration.conftest import clusters, three_members

__all__ = ["clusters", "three_members"]
