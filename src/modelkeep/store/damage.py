"""Rows of contents whose stored bytes were found to be others: what lies there counts as absent.

The bytes themselves are not touched: whether a check misread them is not for a row to decide. A content that
is missing altogether has no row; the blob store itself tells.
"""

from collections.abc import Callable, Iterable
from datetime import datetime

from sqlalchemy import bindparam, delete, select

from modelkeep.core import codec
from modelkeep.core.values import Digest
from modelkeep.store.schema import damaged_blobs
from modelkeep.store.statements import insert, one_of
from modelkeep.store.transaction import Transaction

_AMONG = select(damaged_blobs.c.digest).where(one_of(damaged_blobs.c.digest, "digests"))
_MARK = insert(damaged_blobs).on_conflict_do_nothing()
_CLEAR = delete(damaged_blobs).where(damaged_blobs.c.digest == bindparam("which"))


def damaged_among(tx: Transaction, digests: Iterable[Digest]) -> set[Digest]:
    """Which of these contents are known to be damaged."""
    return {Digest(row[0]) for row in tx.all(_AMONG, digests=list(digests))}


def ask_damaged(tx: Transaction, digests: Iterable[Digest]) -> Callable[[], set[Digest]]:
    """`damaged_among`, asked ahead."""
    asked = tx.ask(_AMONG, digests=list(digests))
    return lambda: {Digest(row[0]) for row in asked.all()}


def mark(tx: Transaction, digest: Digest, now: datetime) -> None:
    """Remember that a content's stored bytes are others; once is enough."""
    tx.run(_MARK, digest=digest, found_at=codec.format_time(now))


def clear(tx: Transaction, digest: Digest) -> None:
    """Forget it: the bytes were stored anew, or read and found right."""
    tx.put(_CLEAR, which=digest)
