"""What the MLflow door keeps of its answers, beside what it would read anew.

For machines that live through random histories: they ask after each step.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Raw
from sqlalchemy import select

from modelkeep.store import standing
from modelkeep.store.database import Database, Transaction
from modelkeep.store.schema import models, versions
from modelkeep.store.standing import PAST, Mark
from modelkeep.web.mlflow import known

_MODELS = select(models.c.id, PAST).where(models.c.deleted_at.is_(None))
_VERSIONS = (
    select(versions.c.id, PAST)
    .select_from(models.join(versions, versions.c.model_id == models.c.id))
    .where(versions.c.status == "ready")
)


class KeptAnswers:
    """The pieces of one history."""

    def __init__(self) -> None:
        self.kinds = (
            (_MODELS, known.models, known.models(), standing.model_lines),
            (_VERSIONS, known.versions, known.versions(), standing.version_lines),
        )

    def check(self, database: Database) -> None:
        """What is kept of any model or version is what would be said of it now."""
        database.read(self._compare)

    def _compare(self, tx: Transaction) -> None:
        for statement, anew, kept, lines in self.kinds:
            marks = [Mark(*row) for row in tx.all(statement)]
            assert all(mark.past is not None for mark in marks), "whatever is there has an event"

            def read(ids: Sequence[str], lines: Any = lines) -> Any:
                return lines(tx, ids)

            said = kept.pieces(marks, read)
            assert _texts(said) == _texts(anew().pieces(marks, read))


def _texts(pieces: Sequence[Raw]) -> list[bytes]:
    return [bytes(memoryview(piece)) for piece in pieces]
