"""The verbs of moving in, one for each operation: batches, the bytes that they name, and how far it is.

For admins. What is sent, and in which order, is `moving`'s part.
"""

from collections.abc import Sequence
from typing import IO

from modelkeep.client.files import FileBody
from modelkeep.client.transport import V1, Request, Wire
from modelkeep.core.imports import (
    ImportAnswer,
    ImportBatch,
    ImportedFile,
    ImportedFiles,
    ImportSummary,
    MissingFiles,
)
from modelkeep.core.values import Digest


class ImportVerbs(Wire):
    """What moves in from another registry."""

    def import_batch(self, batch: ImportBatch) -> ImportAnswer:
        """Take in a batch; what is there already stays as it is.

        Returns:
            what became of each item, in the order in which they came.

        Raises:
            Conflict: what came from this source before went to another project.
        """
        return self.send(ImportAnswer, "POST", f"{V1}/imports", batch, patient=True)

    def import_summary(self, source: str) -> ImportSummary:
        """How much came from a source so far."""
        return self.get(ImportSummary, f"{V1}/imports", source=source)

    def imported_files(self, owner: str, id: str) -> tuple[ImportedFile, ...]:  # noqa: A002
        """The files that a run or logged model (`owner`) keeps already.

        Raises:
            RunNotFound, LoggedModelNotFound: it is not there.
        """
        found: list[ImportedFile] = []
        after = ""
        while True:
            page = self.get(ImportedFiles, f"{V1}/imports/files", owner=owner, id=id, after=after)
            found += page.files
            if not page.more or not page.files:
                return tuple(found)
            after = page.files[-1].path

    def missing_files(self, digests: Sequence[Digest]) -> tuple[Digest, ...]:
        """Which bytes are still to be sent, of at most 1,000."""
        path = f"{V1}/imports/files/missing"
        return self.send(MissingFiles, "POST", path, {"digests": list(digests)}).missing

    def send_file(self, digest: Digest, size_bytes: int, source: IO[bytes]) -> None:
        """Send the bytes of a file, from its beginning.

        Raises:
            DigestMismatch: they are not those that the digest says.
        """
        body = FileBody(source, 0, size_bytes, lambda _: None)
        self.http.send(
            Request(
                method="PUT",
                path=f"{V1}/imports/file",
                query={"digest": digest, "size_bytes": size_bytes},
                stream=body,
            )
        )
