"""An S3 bucket that an MLflow registry keeps artifacts in, read only.

Credentials are found in the ways that S3's own tools know (the usual variables, the machine's role). Nothing
is written, and what a bucket answers is quoted nowhere: it may hold parts of the credentials.
"""

from collections.abc import Iterator
from typing import Any

from modelkeep.core import errors

PART_BYTES = 8 * 1024 * 1024
"""Bytes of one read."""
PAGE = 1_000
"""Objects of one page of a listing."""


class Bucket:
    """One bucket."""

    def __init__(self, name: str, endpoint: str | None = None) -> None:
        """
        Args:
            endpoint: the address of a server that is not AWS.

        Raises:
            ExtraMissing: the `s3` extra is not installed.
        """
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError as problem:
            raise errors.ExtraMissing(
                "Reading files from S3 needs one more part: pip install 'modelkeep[s3]'.", extra="s3"
            ) from problem
        more: dict[str, Any] = {}
        if endpoint is not None:
            more["endpoint"] = endpoint
            more["client_options"] = {"allow_http": endpoint.startswith("http://")}
            more["virtual_hosted_style_request"] = False
        self._obstore = obstore
        self._name = name
        self._store = S3Store(name, **more)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """The objects below a prefix: their keys from there on, and their bytes.

        Raises:
            FilesUnreachable: the bucket does not answer, or refuses.
        """
        start = prefix.strip("/") + "/" if prefix.strip("/") else ""
        try:
            for page in self._obstore.list(self._store, prefix=start.rstrip("/") or None, chunk_size=PAGE):
                yield from (
                    (item["path"].removeprefix(start), item["size"])
                    for item in page
                    if item["path"].startswith(start)
                )
        except self._obstore.exceptions.BaseError:
            raise self._unreachable() from None

    def open(self, key: str) -> Iterator[bytes]:
        """The bytes of an object, in pieces. Raises as `list`."""
        start = 0
        try:
            size = self._obstore.head(self._store, key)["size"]
            while start < size:
                end = min(size, start + PART_BYTES)
                chunk = bytes(self._obstore.get_range(self._store, key, start=start, end=end))
                yield chunk
                start = end
        except (self._obstore.exceptions.BaseError, FileNotFoundError):
            raise self._unreachable() from None

    def _unreachable(self) -> errors.FilesUnreachable:
        return errors.FilesUnreachable(
            f"The S3 bucket {self._name} does not hand out its files; check credentials and endpoint, then "
            "run the same again.",
            root=f"s3://{self._name}",
        )
