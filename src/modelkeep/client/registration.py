"""The client's verbs around bytes: registering files as a version, and pulling a version's files back.

Hashing, sending and checking are `files`'; here stand the routes and the order of the steps.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from msgspec.structs import replace

from modelkeep.client.answers import Pulled
from modelkeep.client.catalog import CatalogVerbs
from modelkeep.client.files import (
    LocalFile,
    Progress,
    fetch_into,
    find_files,
    hash_files,
    send_missing,
    silent,
)
from modelkeep.client.ingredients import Data, provenance_of
from modelkeep.client.transport import CHUNK_BYTES, V1, Body, Request, model_path, segment
from modelkeep.core import codec, errors, values
from modelkeep.core.answers import Done, FsckReport, Preview, Registration, UploadPlan, VerifyReport
from modelkeep.core.catalog import (
    Bump,
    Draft,
    DraftSpec,
    FileEntry,
    Manifest,
    Metric,
    check_metrics,
    parse_metric,
)
from modelkeep.core.provenance import Provenance
from modelkeep.core.signature import Signature

METADATA_NAMES = ("metadata.yaml", "metadata.yml", "metadata.json")
"""In a folder that is registered: where its metadata is looked for when no other is named."""


class RegistrationVerbs(CatalogVerbs):
    """How bytes come in and go out."""

    def begin_draft(self, model: str, spec: DraftSpec) -> Draft:
        """Announce a version: its files by digest, and everything that is to be known of them."""
        return self.send(Draft, "POST", f"{model_path(model)}/drafts", spec)

    def preview_draft(self, model: str, spec: DraftSpec) -> Preview:
        """What registering would come to: the number, why, and what has to be sent. Nothing is written.

        Raises:
            whatever registering would be refused with.
        """
        return self.send(Preview, "POST", f"{model_path(model)}/drafts/preview", spec)

    def get_draft(self, draft: str) -> Draft:
        """How far a registration is. Raises DraftNotFound, also for somebody else's."""
        return self.get(Draft, f"{V1}/drafts/{segment(draft)}")

    def cancel_draft(self, draft: str) -> Done:
        """Give up a registration. Raises DraftClosed when it is a version already."""
        return self.send(Done, "DELETE", f"{V1}/drafts/{segment(draft)}")

    def upload_file(self, draft: str, path: str, offset: int, body: Body) -> UploadPlan:
        """Send the bytes of one file of a draft, from an offset on.

        Raises:
            OffsetMismatch: the stored bytes end elsewhere, at `details.offset`.
            DigestMismatch: all bytes are there and are not those announced.
        """
        request = Request(
            method="PUT",
            path=f"{V1}/drafts/{segment(draft)}/file",
            query={"path": path, "offset": offset},
            headers={"Content-Type": "application/octet-stream"},
            stream=body,
            repeatable=False,
            patient=True,
        )
        return self.read(self.http.send(request), UploadPlan)

    def finalize_draft(self, draft: str) -> Registration:
        """Make the version of a draft whose bytes have arrived.

        Raises:
            SemverTooLow: less than the changes ask for; the message has the reasons. VersionExists,
            DraftClosed, InvalidManifest: the number is taken, or it is no open draft, or bytes miss.
        """
        return self.send(Registration, "POST", f"{V1}/drafts/{segment(draft)}/finalize")

    def list_files(self, ref: str) -> Manifest:
        """The files of a version."""
        return self.get(Manifest, f"{V1}/version/files", ref=ref)

    def download_file(self, ref: str, path: str, *, offset: int = 0) -> Iterator[bytes]:
        """The bytes of one file from an offset on, in pieces; not verified (`pull` does that).

        Raises:
            FileNotInVersion: the version has no such file.
        """
        headers = {"Accept": "application/octet-stream"} | ({"Range": f"bytes={offset}-"} if offset else {})
        request = Request(
            method="GET", path=f"{V1}/version/file", query={"ref": ref, "path": path}, headers=headers
        )
        with self.http.open(request) as answer:
            while chunk := answer.read(CHUNK_BYTES):
                yield chunk

    def verify_version(self, ref: str) -> VerifyReport:
        """Have the server hash a version's bytes again."""
        return self.send(VerifyReport, "POST", f"{V1}/version/verify", query={"ref": ref}, patient=True)

    verify = verify_version

    def fsck(self) -> FsckReport:
        """Have the server hash everything again and look for bytes that dangle."""
        return self.send(FsckReport, "POST", f"{V1}/fsck", patient=True)

    def register(
        self,
        name: str,
        path: str | Path,
        *,
        metadata: str | Path | Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | Iterable[Metric] = (),
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        description: str = "",
        signature: Signature | None = None,
        semver: str | None = None,
        bump: Bump | str = Bump.AUTO,
        override_semver: str | None = None,
        parent: str | None = None,
        code_commit: str | None = None,
        data: Iterable[Data] = (),
        env_lock: str | Path | None = None,
        also: Sequence[LocalFile] = (),
        progress: Progress = silent,
        resume: str | None = None,
    ) -> Registration:
        """Register a file or a folder as a new version: hash, announce, send what is missing, finalize.

        Equal bytes are not registered twice: then the answer's `created` is False and its version the
        existing one.

        Args:
            metadata: a YAML file, or the document itself; a folder's own `metadata.yaml` when left out.
            metrics: numbers by name (`accuracy`, or `accuracy@test` for a split), or whole metrics. semver,
            bump: the version to give; inferred from what changed against the parent when left out.
            override_semver: why a lower version than the inferred one is right. parent: the version it comes
            from; the highest released one when left out. code_commit: the commit that it was made with; the
            one of the git checkout that the files lie in when
                left out, and none when it is empty.
            data: what it was trained on: files, which are hashed, or digests; `training=FILE` says what for.
            env_lock: the file that lists the packages it was made with, such as a requirements.txt.
            also: further files, such as those that a conversion made; one of the same path takes the place
            of the folder's. resume: the id of a draft that an earlier call began with the same files.

        Raises:
            SemverTooLow, VersionExists: the version asked for cannot be given; nothing is left behind.
            InvalidManifest, InvalidMetadata, InvalidMetric, InvalidSignature: what is wrong with what was
            stated. DigestMismatch: a file changed while it was registered.
        """
        root = Path(path)
        return self.register_files(
            name,
            _with(find_files(root), also),
            metadata=read_document(metadata, root if root.is_dir() else None),
            metrics=metrics,
            params=params,
            tags=tags,
            description=description,
            signature=signature,
            semver=semver,
            bump=bump,
            override_semver=override_semver,
            parent=parent,
            provenance=provenance_of(root, code_commit=code_commit, data=data, env_lock=env_lock),
            progress=progress,
            resume=resume,
        )

    def register_files(
        self,
        name: str,
        files: Sequence[LocalFile],
        *,
        metadata: str | Path | Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | Iterable[Metric] = (),
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        description: str = "",
        signature: Signature | None = None,
        semver: str | None = None,
        bump: Bump | str = Bump.AUTO,
        override_semver: str | None = None,
        parent: str | None = None,
        provenance: Provenance | None = None,
        progress: Progress = silent,
        resume: str | None = None,
    ) -> Registration:
        """`register`, with the files named one by one, and what it was made of in one value. Raises as
        `register`."""
        spec = spec_of(
            files,
            progress,
            metadata=metadata,
            metrics=metrics,
            params=params,
            tags=tags,
            description=description,
            signature=signature,
            semver=semver,
            bump=bump,
            override_semver=override_semver,
            parent=parent,
            provenance=provenance,
        )
        draft = self.begin_draft(name, spec) if resume is None else self._resumed(resume, spec.files)
        try:
            send_missing(self, draft, {file.path: file.source for file in files}, progress)
            return self.finalize_draft(draft.id)
        except (errors.Invalid, errors.Conflict, errors.Corrupt):
            with suppress(errors.ModelkeepError):
                self.cancel_draft(draft.id)
            raise

    def preview(self, name: str, path: str | Path, *, progress: Progress = silent, **stated: Any) -> Preview:
        """What `register` would come to with the same words: hashes the files and asks the server, which
        writes nothing.

        Args:
            stated: whatever `register` takes besides name and path, save `resume`.

        Raises:
            whatever `register` would be refused with.
        """
        root = Path(path)
        stated["metadata"] = read_document(stated.get("metadata"), root if root.is_dir() else None)
        made_of = {name: stated.pop(name) for name in ("code_commit", "data", "env_lock") if name in stated}
        stated["provenance"] = provenance_of(root, **made_of)
        files = _with(find_files(root), stated.pop("also", ()))
        return self.preview_draft(name, spec_of(files, progress, **stated))

    def _resumed(self, draft_id: str, entries: tuple[FileEntry, ...]) -> Draft:
        draft = self.get_draft(draft_id)
        announced = {file.path: file.digest for file in draft.files}
        if announced != {entry.path: entry.digest for entry in entries}:
            raise errors.InvalidManifest(
                f"The draft {draft.id} was begun with other files; leave out 'resume' to begin anew.",
                field="resume",
            )
        return draft

    def draft(self, name: str, **stated: Any) -> "DraftWriter":
        """A registration written step by step; the end of the `with` makes the version, an exception leaves
        none.

            with client.draft("churn") as draft:
                draft.add("model.onnx")
                draft.metric("accuracy", 0.94, split="test")

        Args:
            stated: whatever `register_files` takes besides name and files.
        """
        return DraftWriter(self, name, stated)

    def pull(
        self, ref: str, to: str | Path, *, overwrite: bool = False, progress: Progress = silent
    ) -> Pulled:
        """Bring a version's files into a folder, each verified against its digest before it takes its place.

        Raises:
            Conflict: another file of the same name is there, and `overwrite` was not said.
            DigestMismatch: what arrived is not what was registered.
        """
        version = self.get_version(ref)
        pinned = f"{version.model.project}/{version.model.name}:#{version.number}"
        folder = Path(to)

        def fetch(path: str, offset: int) -> Iterator[bytes]:
            return self.download_file(pinned, path, offset=offset)

        fetched, kept = fetch_into(fetch, version.files, folder, overwrite=overwrite, progress=progress)
        return Pulled(version=version, folder=str(folder), fetched=fetched, already_there=kept)


class DraftWriter:
    """Collects what a version shall consist of; the end of the block registers it."""

    def __init__(self, verbs: RegistrationVerbs, name: str, stated: Mapping[str, Any]) -> None:
        self._verbs = verbs
        self._name = name
        self._stated = dict(stated)
        self._files: list[tuple[Path, str | None]] = []
        self._metrics: list[Metric] = []
        self._params: dict[str, object] = {}
        self._tags: dict[str, str] = {}
        self.registration: Registration | None = None

    def __enter__(self) -> Self:
        return self

    def add(self, source: str | Path, path: str | None = None) -> None:
        """Take a file, or all files of a folder, into the version.

        Args:
            path: what the file is called in the version; its own name when left out. For a folder: the folder
            that its
                files stand in; none when left out.
        """
        self._files.append((Path(source), path))

    def metric(self, name: str, value: float, **more: Any) -> None:
        """State a measured number; `split`, `slice`, `unit` and the rest as `Metric` has them."""
        self._metrics.append(Metric(name=name, value=float(value), **more))

    def metrics(self, **numbers: float) -> None:
        """State several numbers by name."""
        for name, value in numbers.items():
            self.metric(name, value)

    def params(self, **params: object) -> None:
        """State what the version was trained with."""
        self._params.update(params)

    def tags(self, **tags: str) -> None:
        """Label the version."""
        self._tags.update(tags)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            return
        files = [
            replace(file, path=values.check_path(f"{path}/{file.path}" if source.is_dir() else path))
            if path
            else file
            for source, path in self._files
            for file in find_files(source)
        ]
        stated = dict(self._stated)
        stated["metrics"] = (*metrics_of(stated.get("metrics") or ()), *self._metrics)
        stated["params"] = {**(stated.get("params") or {}), **self._params}
        stated["tags"] = {**(stated.get("tags") or {}), **self._tags}
        self.registration = self._verbs.register_files(self._name, files, **stated)


def _with(found: Sequence[LocalFile], also: Sequence[LocalFile]) -> list[LocalFile]:
    """Both, where the latter take the place of files of the same path."""
    return list({file.path: file for file in (*found, *also)}.values())


def spec_of(
    files: Sequence[LocalFile],
    progress: Progress,
    *,
    metadata: str | Path | Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | Iterable[Metric] = (),
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    description: str = "",
    signature: Signature | None = None,
    semver: str | None = None,
    bump: Bump | str = Bump.AUTO,
    override_semver: str | None = None,
    parent: str | None = None,
    provenance: Provenance | None = None,
) -> DraftSpec:
    """The announcement of files, which are hashed for it, and of what is stated of them.

    Raises:
        InvalidManifest, InvalidMetadata, InvalidMetric: what is wrong with what was stated.
    """
    return DraftSpec(
        files=hash_files(files, progress),
        semver=semver,
        bump=Bump(bump),
        override_semver=override_semver,
        parent=parent,
        signature=signature,
        metrics=check_metrics(tuple(metrics_of(metrics))),  # JSON would lose a NaN
        params={key: str(value) for key, value in (params or {}).items()},
        metadata=read_document(metadata),
        provenance=provenance,
        description=description,
        tags=dict(tags or {}),
    )


def metrics_of(given: Mapping[str, float] | Iterable[Metric]) -> Iterator[Metric]:
    """Metrics from numbers by name; `accuracy@test[age<30]` is that of a split and a slice.

    Raises:
        InvalidMetric: a value is no number.
    """
    if not isinstance(given, Mapping):
        yield from given
        return
    for key, value in given.items():
        name, split, part = parse_metric(key)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise errors.InvalidMetric(
                f"The metric {values.quoted(key, 60)} is {str(value)[:40]!r}, which is no number.",
                field=f"metrics.{key}",
            ) from None
        yield Metric(name=name, value=number, split=split, slice=part)


def read_document(
    metadata: str | Path | Mapping[str, Any] | None, root: Path | None = None
) -> dict[str, Any]:
    """The metadata document that was named: a mapping, a YAML file, or a folder's own.

    Raises:
        InvalidMetadata: the file cannot be read, or holds no mapping.
        MalformedBody: it is not YAML.
    """
    if isinstance(metadata, Mapping):
        return dict(metadata)
    if metadata is None:
        own = [root / name for name in METADATA_NAMES if (root / name).is_file()] if root is not None else []
        if not own:
            return {}
        metadata = own[0]
    try:
        text = Path(metadata).read_bytes()
    except OSError as problem:
        raise errors.InvalidMetadata(
            f"{metadata} cannot be read: {problem.strerror}.", field="metadata"
        ) from problem
    try:
        document = codec.parse_yaml(text)
    except errors.MalformedBody as problem:
        raise errors.MalformedBody(f"{metadata}: {problem.message}") from problem
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise errors.InvalidMetadata(
            f"{metadata} must be a mapping with sections such as 'model' and 'training'."
        )
    return document
