from typing import Any, TypeVar

_S = TypeVar("_S")

def replace(struct: _S, /, **changes: Any) -> _S: ...
