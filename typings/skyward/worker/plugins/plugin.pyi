from typing import ClassVar

from typing_extensions import dataclass_transform

@dataclass_transform(frozen_default=True)
class Plugin:
    kind: ClassVar[str]
    def __init_subclass__(cls, *, frozen: bool = ...) -> None: ...
