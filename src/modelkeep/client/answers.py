"""How lists on the server are walked, and what a pull has brought.

What the server answers stands in `core.answers`, where the services have it from too; here is only what the
client makes of it.
"""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from msgspec import Struct

from modelkeep.core.catalog import ModelVersion

T = TypeVar("T")


class Page(Struct, Generic[T], frozen=True, kw_only=True):
    """One page of a list."""

    items: tuple[T, ...]
    next_page_token: str | None = None


class Listing(Generic[T]):
    """A list on the server, fetched page by page while it is walked. Each walk asks anew."""

    def __init__(self, fetch: Callable[[int | None, str | None], Page[T]], limit: int | None = None) -> None:
        self._fetch = fetch
        self._limit = limit

    def __iter__(self) -> Iterator[T]:
        for page in self.pages():
            yield from page.items

    def pages(self) -> Iterator[Page[T]]:
        """The pages as the server cuts them, until `limit` rows are there."""
        token: str | None = None
        left = self._limit
        while True:
            page = self._fetch(left if left is None else min(left, PAGE_ROWS), token)
            yield page
            token = page.next_page_token
            if left is not None:
                left -= len(page.items)
            if token is None or (left is not None and left <= 0):
                return

    def whole(self) -> Page[T]:
        """All rows up to the limit as one page, with where the rest begins."""
        items: list[T] = []
        token = None
        for page in self.pages():
            items += page.items
            token = page.next_page_token
        return Page(items=tuple(items), next_page_token=token)


PAGE_ROWS = 1_000
"""Rows that are asked for at a time, which is what the server gives at most."""


class Pulled(Struct, frozen=True, kw_only=True):
    """What a pull has brought."""

    version: ModelVersion
    folder: str
    fetched: int
    already_there: int
