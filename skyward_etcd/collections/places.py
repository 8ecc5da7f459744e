"""Where the parts of a queue are in etcd: its pages of items, and what is said about each item."""

from __future__ import annotations

from dataclasses import dataclass

from skyward_etcd.errors import CorruptValue
from skyward_etcd.ops.layout import Layout

__all__ = ["Places"]


@dataclass(frozen=True, slots=True)
class Places:
    """The keys of one queue. An item is known by its key, ``items/{page}/{session}.{n}``."""

    prefix: bytes
    layout: Layout

    @property
    def page(self) -> bytes:
        """The page that puts go to, in decimal; not there for page 0."""
        return self.prefix + b"page"

    @property
    def head(self) -> bytes:
        """A page before which there are no items and never will be, in decimal: for those who come new."""
        return self.prefix + b"head"

    @property
    def returns(self) -> bytes:
        """Written whenever a claimed item is given back, and only then."""
        return self.prefix + b"returns"

    @property
    def all_items(self) -> bytes:
        """The prefix of the items."""
        return self.prefix + b"items/"

    @property
    def all_claims(self) -> bytes:
        """The prefix of the claims. There is none without its item."""
        return self.prefix + b"claims/"

    @property
    def all_deliveries(self) -> bytes:
        """The prefix of the counts of deliveries. There is none without its item."""
        return self.prefix + b"deliveries/"

    def items(self, page: int) -> bytes:
        """The prefix of a page's items."""
        return self.all_items + b"%012d/" % page

    def claims(self, page: int) -> bytes:
        """The prefix of the claims of a page's items."""
        return self.all_claims + b"%012d/" % page

    def deliveries(self, page: int) -> bytes:
        """The prefix of the counts of deliveries of a page's items."""
        return self.all_deliveries + b"%012d/" % page

    def claim_of(self, item: bytes) -> bytes:
        """Who has claimed an item: on the lease of that session."""
        return self.all_claims + item.removeprefix(self.all_items)

    def deliveries_of(self, item: bytes) -> bytes:
        """How often an item was delivered to a claim: the ``version`` of this key, which each claim writes once."""
        return self.all_deliveries + item.removeprefix(self.all_items)

    def item_of(self, deliveries: bytes) -> bytes:
        """The item whose count of deliveries this is."""
        return self.all_items + deliveries.removeprefix(self.all_deliveries)

    def page_of(self, item: bytes) -> int:
        """The page of an item.

        Raises:
            CorruptValue: no queue has put that key there.
        """
        try:
            return int(item.rpartition(b"/")[0][-12:])
        except ValueError:
            raise CorruptValue(f"{item!r}: no queue has put that there; remove it with etcdctl del") from None

    def siblings(self, item: bytes) -> bytes:
        """Where the items begin that the session of this one has put into its page."""
        return item.rpartition(b".")[0] + b"."
