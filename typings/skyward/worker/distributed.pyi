from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Backend: TypeAlias = Callable[[str, str, str, tuple[Any, ...], Mapping[str, Any]], object]

_backend: Backend

def install(backend: Backend) -> None: ...
