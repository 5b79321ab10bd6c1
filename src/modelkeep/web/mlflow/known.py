"""Pieces of answers that are known already: a version or a model as it was last written for the wire.

A piece is kept under the mark of what it tells of: its id, and the link of its model's last event. No state
changes without an event, and a link is the hash of all that was logged up to it; so who finds the mark in the
snapshot that he reads finds the piece as he would have made it, whichever process changed what. A piece is
the same for everybody, and who may see it is decided where its mark was found: for each caller, each time.

Not kept is what has no past, and what a rollout brings traffic: it changes soon. What a write answers never
comes from here, for it reads what is not committed yet.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from msgspec import Raw, Struct

from modelkeep.core import codec
from modelkeep.store.standing import Mark, ModelLine, VersionLine
from modelkeep.web.mlflow.registry_shapes import model_out, version_out

KEPT_BYTES = 4 * 1024 * 1024
"""Pieces kept of each kind, with their marks: two thousand models, or four thousand versions."""
MARK_BYTES = 300
"""What a mark and its places take beside the piece itself."""

Line = TypeVar("Line")


class Known(Generic[Line]):
    """Pieces of one kind, the last used ones. Threads may share it: a piece that is lost is made again.

    Args:
        write: a line as it stands in an answer.
        settled: whether what is said in a line may be kept.
    """

    def __init__(
        self,
        write: Callable[[Line], Struct],
        settled: Callable[[Line], bool],
        limit_bytes: int = KEPT_BYTES,
    ) -> None:
        self._write = write
        self._settled = settled
        self._half = limit_bytes // 2
        # What is used moves to the younger half; when that is full, the older one is dropped as a whole.
        self._young: dict[Mark, Raw] = {}
        self._old: dict[Mark, Raw] = {}
        self._size = 0

    def pieces(
        self, marks: Sequence[Mark], read: Callable[[list[str]], Mapping[str, Line]]
    ) -> tuple[Raw, ...]:
        """The pieces of these marks, in their order.

        Args:
            read: gives lines by their ids; asked once, for those that are not known.
        """
        found = {mark: piece for mark in marks if (piece := self._find(mark)) is not None}
        missing = [mark for mark in marks if mark not in found]
        if missing:
            lines = read([mark.id for mark in missing])
            for mark in missing:
                line = lines[mark.id]
                found[mark] = piece = Raw(codec.encode(self._write(line)))
                if mark.past is not None and self._settled(line):
                    self._keep(mark, piece)
        return tuple([found[mark] for mark in marks])

    def _find(self, mark: Mark) -> Raw | None:
        piece = self._young.get(mark)
        if piece is None:
            piece = self._old.get(mark)
            if piece is not None:
                self._keep(mark, piece)
        return piece

    def _keep(self, mark: Mark, piece: Raw) -> None:
        size = len(memoryview(piece)) + MARK_BYTES
        if self._size + size > self._half:
            self._old, self._young, self._size = self._young, {}, 0
        self._young[mark] = piece
        self._size += size


def versions() -> Known[VersionLine]:
    """Versions as the door writes them."""
    return Known(version_out, _settled)


def models() -> Known[ModelLine]:
    """Models as the door writes them, with their latest versions."""
    return Known(model_out, lambda model: all(map(_settled, model.latest)))


def _settled(version: VersionLine) -> bool:
    return version.rollout is None
