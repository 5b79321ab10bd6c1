"""Rows of small files: their bytes, from the commit that names them until their files survive a loss of power
by themselves.

A row says nothing about who needs the file, and nobody reads one but who puts files back. Where the files
lie, and when they are safe, is the service's part.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import bindparam, delete, select

from modelkeep.core.values import Digest
from modelkeep.store.schema import small_contents
from modelkeep.store.statements import insert, one_of
from modelkeep.store.transaction import Transaction

_ADD = insert(small_contents)
_AFTER = (
    select(small_contents.c.id, small_contents.c.digest, small_contents.c.data)
    .where(small_contents.c.id > bindparam("after"))
    .order_by(small_contents.c.id)
    .limit(bindparam("limit"))
)
_DROP = delete(small_contents).where(one_of(small_contents.c.id, "ids"))


class SmallContent(NamedTuple):
    """The bytes of a small file, under a number that no other upload has."""

    id: int
    digest: Digest
    data: bytes


def add(tx: Transaction, content: SmallContent) -> None:
    """Have a file's bytes ride in this commit."""
    tx.put(_ADD, id=content.id, digest=content.digest, data=content.data)


def list_after(tx: Transaction, after: int, limit: int) -> list[SmallContent]:
    """What there is behind a number, in the order of numbers."""
    rows = tx.all(_AFTER, after=after, limit=limit)
    return [SmallContent(number, Digest(digest), bytes(data)) for number, digest, data in rows]


def drop(tx: Transaction, ids: Sequence[int]) -> None:
    """Forget what is safe without its row."""
    tx.put(_DROP, ids=list(ids))
