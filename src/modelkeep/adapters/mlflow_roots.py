"""Where an MLflow registry's files lie, when they can be read past its server: folders of this machine, what
stands for `mlflow-artifacts:`, and buckets.

A root is an address that a run, a logged model or a version states; what it leads to is read only, and never
through a link or a path that leads out of it. Roots that only MLflow's own server can read are
`mlflow_rest`'s part.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from modelkeep.client.mlflow_source import DEPTH_MAX, FILES_MAX, SourceFile
from modelkeep.core import errors, values

if TYPE_CHECKING:
    from modelkeep.adapters.mlflow_bucket import Bucket

CHUNK_BYTES = 1024 * 1024
"""Bytes of a file that are in memory at a time."""


class Roots:
    """Reads files below artifact roots."""

    def __init__(
        self, artifacts: Path | None = None, *, local: bool = True, s3_endpoint: str | None = None
    ) -> None:
        """
        Args:
            artifacts: the folder that MLflow's server keeps as its `--artifacts-destination`: what
                `mlflow-artifacts:` addresses are below of. A relative root is below it, too.
            local: whether folders of this machine are read.
            s3_endpoint: where buckets are, when that is not AWS.
        """
        self._artifacts = artifacts
        self._local = local
        self._s3_endpoint = s3_endpoint
        self._buckets: dict[str, Bucket] = {}

    def files(self, root: str) -> list[SourceFile]:
        """The files below a root, in the order of paths; none where nothing is there.

        Raises:
            FilesUnreachable: it cannot be read from here, a path leads elsewhere, or there are too many.
        """
        if urlsplit(root).scheme == "s3":
            return self._objects(root)
        folder = self._folder(root)
        found: list[SourceFile] = []
        if folder.is_file() and not folder.is_symlink():
            return [SourceFile(folder.name, folder.stat().st_size)]
        try:
            for place, folders, names in os.walk(folder, onerror=_raise):
                folders.sort()
                within = Path(place).relative_to(folder)
                if len(within.parts) > DEPTH_MAX:
                    raise _too_much(root)
                for name in (*folders, *sorted(names)):
                    if (Path(place) / name).is_symlink():
                        raise _leads_out((within / name).as_posix(), root)
                for name in sorted(names):
                    path = (within / name).as_posix()
                    found.append(SourceFile(check_path(path, root), (folder / path).stat().st_size))
                    if len(found) > FILES_MAX:
                        raise _too_much(root)
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise errors.FilesUnreachable(
                f"{root} cannot be read: {problem.strerror}.", root=root
            ) from problem
        return sorted(found)

    def open(self, root: str, path: str) -> Iterator[bytes]:
        """The bytes of one of these files. Raises FilesUnreachable: it cannot be read."""
        check_path(path, root)
        if urlsplit(root).scheme == "s3":
            yield from self._object(root, path)
            return
        folder = self._folder(root)
        inside = folder.parent if folder.is_file() else folder
        place = folder if folder.is_file() else folder.joinpath(*path.split("/"))
        try:
            if not place.parent.resolve().is_relative_to(inside.resolve()):
                raise _leads_out(path, root)
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except OSError as problem:
            raise errors.FilesUnreachable(
                f"{values.quoted(path)} below {root} cannot be read: {problem.strerror}.", root=root
            ) from problem

    def _folder(self, root: str) -> Path:
        """The folder of this machine that a root is.

        Raises:
            FilesUnreachable: it is none.
        """
        parts = urlsplit(root)
        path = unquote(parts.path) if parts.scheme else root
        if parts.scheme == "mlflow-artifacts":
            inside = check_path(path.strip("/"), root)
            if self._artifacts is None:
                raise errors.FilesUnreachable(
                    f"{root} lies behind MLflow's server; name its folder of artifacts with --artifacts, or "
                    "import from the server's address.",
                    root=root,
                )
            return self._artifacts.joinpath(*inside.split("/"))
        if not self._local or parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
            raise errors.FilesUnreachable(
                f"Nothing here reads {values.quoted(root, 200)}; copy its files to a folder or an S3 bucket "
                "first.",
                root=root,
            )
        folder = Path(path)
        if folder.is_absolute():
            return folder
        if self._artifacts is None:
            raise errors.FilesUnreachable(
                f"{values.quoted(root, 200)} is relative to where MLflow's server ran; name that folder with "
                "--artifacts.",
                root=root,
            )
        return self._artifacts / folder

    # ---------------------------------------------------------------------------------------------- buckets

    def _bucket(self, name: str) -> "Bucket":
        from modelkeep.adapters.mlflow_bucket import Bucket

        if name not in self._buckets:
            self._buckets[name] = Bucket(name, self._s3_endpoint)
        return self._buckets[name]

    def _objects(self, root: str) -> list[SourceFile]:
        parts = urlsplit(root)
        found: list[SourceFile] = []
        for path, size_bytes in self._bucket(parts.netloc).list(parts.path):
            found.append(SourceFile(check_path(path, root), size_bytes))
            if len(found) > FILES_MAX:
                raise _too_much(root)
        return sorted(found)

    def _object(self, root: str, path: str) -> Iterator[bytes]:
        parts = urlsplit(root)
        yield from self._bucket(parts.netloc).open(f"{parts.path.strip('/')}/{path}".strip("/"))


def check_path(path: str, root: str) -> str:
    """A path that a file can have here.

    Raises:
        FilesUnreachable: it leads elsewhere, or is no path of plain names.
    """
    try:
        return values.check_path(path)
    except errors.InvalidManifest as problem:
        raise errors.FilesUnreachable(
            f"{values.quoted(path)} below {values.quoted(root, 200)} cannot be the path of a file here.",
            root=root,
        ) from problem


def _raise(problem: OSError) -> None:
    raise problem


def _leads_out(path: str, root: str) -> errors.FilesUnreachable:
    return errors.FilesUnreachable(
        f"{values.quoted(path)} below {root} is a link; put the file itself there.", root=root
    )


def _too_much(root: str) -> errors.FilesUnreachable:
    return errors.FilesUnreachable(
        f"{root} has more than {FILES_MAX:,} files, or folders without end; pack small ones together.",
        root=root,
    )
