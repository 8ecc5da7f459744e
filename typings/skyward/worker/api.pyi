class Info:
    node: str
    rank: int
    peers: tuple[str, ...]
    @property
    def nodes(self) -> int: ...
