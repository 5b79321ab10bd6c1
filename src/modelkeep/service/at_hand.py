"""Contents of a few small files, as far as they can be had without waiting.

An act may read them so, which must wait for nothing: to prepare it in a thread first costs several times
what such files do. Whatever has to be waited for is left to a thread, which may also find out what is wrong.
"""

from collections.abc import Sequence

from modelkeep.core.catalog import FileEntry
from modelkeep.core.values import Digest
from modelkeep.ports import BlobStore

# Limits of what is read at once; each with the reason for its size.
FILES_MAX = 16
"""Files: a version of MLflow's has about six, and each takes some 30 us."""
FILES_MAX_BYTES = 256 * 1024
"""Bytes of them together: hashing so many takes 0.2 ms, in which nobody else writes."""


class NotAtHand(Exception):
    """Something has to be waited for; do it in a thread."""


def contents(blobs: BlobStore, files: Sequence[FileEntry]) -> dict[Digest, bytes]:
    """The contents of files, verified, and of the sizes that are known of them.

    Raises:
        NotAtHand: they are many, large or not all at hand, or not all as they should be.
    """
    if len(files) > FILES_MAX or sum(file.size_bytes for file in files) > FILES_MAX_BYTES:
        raise NotAtHand
    found: dict[Digest, bytes] = {}
    for file in files:
        data = blobs.at_hand(file.digest)
        if data is None or len(data) != file.size_bytes:
            raise NotAtHand
        found[file.digest] = data
    return found
