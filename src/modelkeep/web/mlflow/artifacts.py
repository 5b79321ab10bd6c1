"""Artifacts in MLflow's words: bytes in and out, folders, uploads in many parts.

The client sends files to the server, which keeps them (`mlflow-artifacts:`); there is no storage elsewhere
that it could be sent to, so what asks for a presigned address is told so, as MLflow tells it. The addresses
of an upload's parts are our own. What a path means, and who may do what, is `service.artifacts`'.
"""

import asyncio
import contextlib
import re
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from msgspec import Struct

from modelkeep.core import codec, errors
from modelkeep.core.values import ModelName, check_digest
from modelkeep.ports import BLOB_MAX_BYTES, SMALL_MAX_BYTES
from modelkeep.service.act import Act
from modelkeep.service.artifacts import (
    PARTS_MAX,
    ArtifactPlan,
    OpenArtifact,
    OwnedPlace,
    Owner,
    Place,
    VersionPlace,
    address_of,
    check_artifact_path,
    parse_place,
)
from modelkeep.store.artifacts import Child, OwnerKind
from modelkeep.web import bytes_io, problems, uploads
from modelkeep.web.dispatch import Dispatcher
from modelkeep.web.mlflow.route import API, both, row
from modelkeep.web.mlflow.wire import DONE, Int64, Nothing, Request, project_of
from modelkeep.web.operations import Call, Mode, Operation

PAGE_UPLOAD_MAX_BYTES = 10 * 1024 * 1024
"""Bytes of a file that MLflow's pages send; its server has the same limit."""

_SEPARATORS = re.compile(r"[/\\]")


class FileOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file with its size in bytes, or a folder."""

    path: str
    is_dir: bool | None = None
    file_size: int | None = None


class FilesOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What lies in a folder; `root_uri` is the address that paths begin at."""

    root_uri: str | None = None
    files: tuple[FileOut, ...] = ()


def _files(children: tuple[Child, ...], folder: str = "", root: str | None = None) -> FilesOut:
    start = f"{folder}/" if folder else ""
    return FilesOut(
        root_uri=root,
        files=tuple(
            FileOut(path=start + child.name, is_dir=child.size_bytes is None, file_size=child.size_bytes)
            for child in children
        ),
    )


# -------------------------------------------------------------------------------------------- bytes coming in


async def put_artifact(call: Call, dispatcher: Dispatcher) -> Nothing | None:
    """Keep a file of a run or logged model; `X-Modelkeep-Digest` has its digest checked."""
    return await _put(call, dispatcher, parse_place(call.path["path"]))


class PageUpload(Request, frozen=True, kw_only=True):
    path: str
    run_id: str | None = None
    run_uuid: str | None = None


async def put_from_page(call: Call, dispatcher: Dispatcher) -> Nothing | None:
    """Keep a small file of a run, as MLflow's pages send one."""
    place = _of_run(call.query, call.query.path)
    return await _put(call, dispatcher, place, most_bytes=PAGE_UPLOAD_MAX_BYTES)


async def _put(
    call: Call, dispatcher: Dispatcher, place: Place, most_bytes: int = BLOB_MAX_BYTES
) -> Nothing | None:
    kept, body = call.house.artifacts, call.incoming
    said = call.headers.get(b"x-modelkeep-digest")
    expected = check_digest(said.decode("latin-1")) if said is not None else None
    size = body.announced
    plan = kept.presume(call.context.caller, call.house.desk.clock(), place, size, expected)
    if plan is None:
        plan = await dispatcher.read(call.context, kept.prepare, place, size, expected, most_bytes=most_bytes)
    try:
        plan = await uploads.take_in(
            dispatcher,
            body,
            plan,
            kept.store_bytes,
            finish=kept.finish,
            keep=partial(_keep, call, dispatcher),
        )
        if not plan.noted:
            await dispatcher.write(call.context, kept.note, plan)
    except BaseException as broken:
        # Shielded, so that a server that ends while somebody sends leaves nothing behind either.
        with contextlib.suppress(asyncio.CancelledError, errors.Unavailable):
            await asyncio.shield(dispatcher.in_streams(partial(kept.drop, plan)))
        if isinstance(broken, errors.DigestMismatch):
            await call.answer.problem(broken, body, status=problems.WRONG_BYTES)
            return None
        raise
    return DONE


async def _keep(
    call: Call, dispatcher: Dispatcher, plan: ArtifactPlan, parts: list[bytes]
) -> ArtifactPlan | None:
    """Keep a small file in the commit that notes it; None for a larger one, or where there is no way for
    small ones. Raises as `Artifacts.keep`."""
    kept = call.house.artifacts
    if sum(map(len, parts)) > SMALL_MAX_BYTES or not kept.small.is_open():
        return None
    data = b"".join(parts)
    plan = kept.check(plan, data)
    plan = await dispatcher.write(call.context, kept.keep, plan, data)
    if kept.small.claim():
        dispatcher.in_background(partial(kept.small.settle, call.house.desk))
    return plan


# -------------------------------------------------------------------------------------------- bytes going out


async def get_artifact(call: Call, dispatcher: Dispatcher) -> None:
    """The bytes of a file, whole or from a range."""
    await _send(call, dispatcher, parse_place(call.path["path"]))


async def head_artifact(call: Call, dispatcher: Dispatcher) -> None:
    """The size and the digest of a file."""
    found = await _open(call, dispatcher, parse_place(call.path["path"]))
    await call.answer.begin(
        200,
        [
            (b"content-type", bytes_io.CONTENT_TYPE),
            (b"content-length", b"%d" % found.size_bytes),
            (b"accept-ranges", b"none" if found.settled else b"bytes"),
            (b"x-modelkeep-digest", found.digest.encode()),
            bytes_io.attachment(found.path),
        ],
    )
    await call.answer.end()


class OfRun(Request, frozen=True, kw_only=True):
    path: str
    run_id: str | None = None
    run_uuid: str | None = None


async def get_of_run(call: Call, dispatcher: Dispatcher) -> None:
    """The bytes of a run's file, by the run's id."""
    await _send(call, dispatcher, _of_run(call.query, call.query.path))


class OfVersion(Request, frozen=True, kw_only=True):
    name: str
    version: Int64
    path: str
    presigned: str | None = None


async def get_of_version(call: Call, dispatcher: Dispatcher) -> None:
    """The bytes of a registered version's file, each of them verified."""
    _refuse_presigned(call.query.presigned)
    asked: OfVersion = call.query
    place = VersionPlace(
        model=ModelName(project_of(call), asked.name),
        number=asked.version,
        path=check_artifact_path(asked.path),
    )
    await _send(call, dispatcher, place)


class OfLoggedModel(Request, frozen=True, kw_only=True):
    artifact_file_path: str
    presigned: str | None = None


async def get_of_logged_model(call: Call, dispatcher: Dispatcher) -> None:
    """The bytes of a logged model's file, by the model's id."""
    _refuse_presigned(call.query.presigned)
    owner = Owner(OwnerKind.LOGGED_MODEL, call.path["model_id"])
    path = check_artifact_path(call.query.artifact_file_path)
    await _send(call, dispatcher, OwnedPlace(owner=owner, path=path))


async def _open(call: Call, dispatcher: Dispatcher, place: Place) -> OpenArtifact:
    return await dispatcher.read(call.context, call.house.artifacts.open_file, place)


async def _send(call: Call, dispatcher: Dispatcher, place: Place) -> None:
    found = await _open(call, dispatcher, place)
    await bytes_io.send_blob(
        call,
        dispatcher,
        found.digest,
        found.size_bytes,
        [bytes_io.attachment(found.path)],
        ranges=not found.settled,
    )


def _of_run(asked: Any, path: str) -> OwnedPlace:
    """A file of a run that a query names in one of two ways."""
    run_id = asked.run_id or asked.run_uuid
    if not run_id:
        raise errors.InvalidParameter("Missing value for required parameter 'run_id'.", field="run_id")
    return OwnedPlace(owner=Owner(OwnerKind.RUN, run_id), path=check_artifact_path(path))


# ---------------------------------------------------------------------------------------------------- folders


class Folder(Request, frozen=True, kw_only=True):
    path: str | None = None


def list_folder(act: Act, call: Call) -> FilesOut:
    """What lies directly in a folder, by its artifact address."""
    place = parse_place(call.query.path or "")
    return _files(call.house.artifacts.list_folder(act, place))


class FolderOfRun(Request, frozen=True, kw_only=True):
    run_id: str | None = None
    run_uuid: str | None = None
    path: str | None = None
    page_token: str | None = None


def list_of_run(act: Act, call: Call) -> FilesOut:
    """What lies directly in a folder of a run. It comes in one answer, as the client wants it."""
    asked: FolderOfRun = call.query
    run_id = asked.run_id or asked.run_uuid
    if not run_id:
        raise errors.InvalidParameter("Missing value for required parameter 'run_id'.", field="run_id")
    return _list_of(act, call, Owner(OwnerKind.RUN, run_id), asked.path)


class FolderOfLoggedModel(Request, frozen=True, kw_only=True):
    artifact_directory_path: str | None = None
    page_token: str | None = None


def list_of_logged_model(act: Act, call: Call) -> FilesOut:
    """What lies directly in a folder of a logged model."""
    owner = Owner(OwnerKind.LOGGED_MODEL, call.path["model_id"])
    return _list_of(act, call, owner, call.query.artifact_directory_path)


def _list_of(act: Act, call: Call, owner: Owner, folder: str | None) -> FilesOut:
    kept = call.house.artifacts
    place = kept.locate(act, owner, folder or "")
    root = address_of(OwnedPlace(owner=owner, experiment_id=place.experiment_id))
    return _files(kept.list_folder(act, place), place.path, f"mlflow-artifacts:/{root}")


def delete_artifact(act: Act, call: Call) -> Nothing:
    """Remove a file, or a folder with everything in it."""
    call.house.artifacts.delete(act, parse_place(call.path["path"].removesuffix("/")))
    return DONE


# -------------------------------------------------------------------------------------- uploads in many parts


class CreateUpload(Request, frozen=True, kw_only=True):
    path: str
    num_parts: Int64 = 1


class PartAddress(Struct, frozen=True, kw_only=True):
    """Where a part is to be sent, and with which headers."""

    url: str
    part_number: int
    headers: dict[str, str]


class CreatedUpload(Struct, frozen=True, kw_only=True):
    """A new upload, and the addresses of its parts."""

    upload_id: str
    credentials: tuple[PartAddress, ...]


class PartQuery(Request, frozen=True, kw_only=True):
    upload_id: str
    part_number: Int64
    offset: Int64 = 0


class SentPart(Struct, frozen=True, kw_only=True):
    """A part, as its sender knows it: `etag` is what it was told for it."""

    part_number: Int64
    etag: str | None = None
    url: str | None = None


class CompleteUpload(Request, frozen=True, kw_only=True):
    path: str
    upload_id: str
    parts: tuple[SentPart, ...]


class AbortUpload(Request, frozen=True, kw_only=True):
    path: str
    upload_id: str


def create_upload(act: Act, call: Call) -> CreatedUpload:
    """Begin an upload in parts.

    The client sends parts without its usual headers, so the answer tells it the one that lets it in again.
    """
    asked: CreateUpload = call.body
    place = _named(call.path["path"], asked.path)
    upload = call.house.artifacts.begin_parts(act, place, asked.num_parts)
    secure = call.headers.get(b"x-forwarded-proto") == b"https"
    host = call.headers.get(b"host", b"").decode("latin-1")
    base = f"http{'s' * secure}://{host}{STORE}mpu/part/{quote(address_of(place))}"
    credential = call.headers.get(b"authorization")
    headers = {"Authorization": credential.decode("latin-1")} if credential is not None else {}
    return CreatedUpload(
        upload_id=upload,
        credentials=tuple(
            PartAddress(
                url=f"{base}?{urlencode({'upload_id': upload, 'part_number': number})}",
                part_number=number,
                headers=headers,
            )
            for number in range(1, asked.num_parts + 1)
        ),
    )


async def put_part(call: Call, dispatcher: Dispatcher) -> None:
    """Take in a part of an upload; `offset` goes on with one that broke off, without it the part is sent
    anew."""
    kept, asked, body = call.house.artifacts, call.query, call.incoming
    place = parse_place(call.path["path"])
    plan: ArtifactPlan = await dispatcher.read(
        call.context, kept.prepare_part, place, asked.upload_id, asked.part_number, body.announced
    )
    if asked.offset == 0:
        await dispatcher.in_streams(partial(kept.drop, plan))
    plan = await uploads.take_in(dispatcher, body, plan, kept.store_bytes, offset=asked.offset)
    tag = f'"{asked.part_number}-{plan.offset}"'
    await call.answer.whole(200, codec.encode(DONE), more=[(b"etag", tag.encode())])


async def complete_upload(call: Call, dispatcher: Dispatcher) -> Nothing:
    """Make the parts of an upload one file."""
    kept, asked = call.house.artifacts, call.body
    parts = sorted(asked.parts, key=lambda part: part.part_number)
    if not parts or [part.part_number for part in parts] != list(range(1, len(parts) + 1)):
        raise errors.InvalidParameter(
            f"Name each part once, from 1 to {PARTS_MAX:,} at most and without gaps.", field="parts"
        )
    place = _named(call.path["path"], asked.path)
    plan, done = await dispatcher.read(call.context, kept.prepare_whole, place, asked.upload_id)
    if not done:
        tags = tuple(part.etag for part in parts)
        plan = await dispatcher.in_pool(partial(kept.assemble, plan, tags))
        await dispatcher.write(call.context, kept.note, plan)
    return DONE


def abort_upload(call: Call) -> Nothing:
    """Give up an upload; what came of it is forgotten."""
    kept, asked = call.house.artifacts, call.body
    place = _named(call.path["path"], asked.path)
    plan, _ = call.house.desk.read(call.context, kept.prepare_whole, place, asked.upload_id)
    kept.abandon(plan)
    return DONE


def _named(folder: str, name: str) -> Place:
    """The file that a multipart upload is for. Clients before MLflow 3.18 name it by its whole path on their
    own disk, whose last part counts."""
    return parse_place(f"{folder}/{_SEPARATORS.split(name)[-1]}")


# ------------------------------------------------------------------------------- what there is no storage for


class PresignedUpload(Request, frozen=True, kw_only=True):
    path: str
    run_id: str | None = None
    model_id: str | None = None
    expiration: Int64 | None = None


class PresignedDownload(Request, frozen=True, kw_only=True):
    run_id: str
    path: str
    expiration: Int64 | None = None


def presigned_upload(act: Act, call: Call) -> Nothing:
    """Refuse an address to send a file to: files are sent to this server."""
    asked: PresignedUpload = call.body
    if bool(asked.run_id) == bool(asked.model_id):
        raise errors.InvalidParameter("Name either a run_id or a model_id.", field="run_id")
    kind = OwnerKind.RUN if asked.run_id else OwnerKind.LOGGED_MODEL
    return _refuse_to_sign(act, call, Owner(kind, asked.run_id or asked.model_id or ""), asked.path)


def presigned_download(act: Act, call: Call) -> Nothing:
    """Refuse an address to read a file from: files are read from this server."""
    asked: PresignedDownload = call.body
    return _refuse_to_sign(act, call, Owner(OwnerKind.RUN, asked.run_id), asked.path)


def _refuse_to_sign(act: Act, call: Call, owner: Owner, path: str) -> Nothing:
    call.house.artifacts.locate(act, owner, path)
    raise errors.InvalidParameter(
        "This server keeps artifacts itself, so there are no presigned addresses; use 'mlflow-artifacts:'.",
        field="path",
    )


def presigned(call: Call) -> Nothing:
    """Refuse a presigned address; the client then reads through this server."""
    _refuse_presigned("true")
    return DONE


def _refuse_presigned(asked: str | None) -> None:
    if asked == "true":
        raise errors.NotProvided(
            "Presigned download is not supported: this server keeps artifacts itself.", part="presigned"
        )


# ------------------------------------------------------------------------------------------------------- rows

STORE = "/api/2.0/mlflow-artifacts/"
OF_PAGES = "/ajax-api/2.0/mlflow/"
"""Where MLflow's pages alone ask."""
_FILES = STORE + "artifacts/{path...}"
_OF_MODEL = "logged-models/{model_id}/artifacts/"
_STREAM, _READ, _SLOW = Mode.STREAM, Mode.READ, Mode.SLOW

# fmt: off
_CLIENT_ROWS: tuple[Operation, ...] = (
    row("GET", STORE + "artifacts", _SLOW, list_folder, FilesOut, query=Folder),
    row("GET", _FILES, _STREAM, get_artifact, bytes),
    row("HEAD", _FILES, _STREAM, head_artifact, bytes),
    row("PUT", _FILES, _STREAM, put_artifact),
    row("DELETE", _FILES, Mode.WRITE, delete_artifact),
    row("POST", STORE + "mpu/create/{path...}", _READ, create_upload, CreatedUpload, body=CreateUpload),
    row("PUT", STORE + "mpu/part/{path...}", _STREAM, put_part, query=PartQuery),
    row("POST", STORE + "mpu/complete/{path...}", _STREAM, complete_upload, body=CompleteUpload),
    row("POST", STORE + "mpu/abort/{path...}", Mode.TASK, abort_upload, body=AbortUpload),
    row("GET", STORE + "presigned/{path...}", Mode.PLAIN, presigned),
    row("POST", API + "artifacts/presigned-upload-url", _READ, presigned_upload, body=PresignedUpload),
    row("POST", API + "artifacts/presigned-download-url", _READ, presigned_download, body=PresignedDownload),
    row("GET", API + "artifacts/list", _SLOW, list_of_run, FilesOut, query=FolderOfRun),
    row("GET", API + _OF_MODEL + "directories", _SLOW, list_of_logged_model, FilesOut,
        query=FolderOfLoggedModel),
)

ARTIFACT_ROWS: tuple[Operation, ...] = (
    *both(_CLIENT_ROWS),
    row("GET", "/get-artifact", _STREAM, get_of_run, bytes, query=OfRun),
    row("GET", OF_PAGES + "get-artifact", _STREAM, get_of_run, bytes, query=OfRun),
    row("GET", "/model-versions/get-artifact", _STREAM, get_of_version, bytes, query=OfVersion),
    row("GET", OF_PAGES + "model-versions/get-artifact", _STREAM, get_of_version, bytes, query=OfVersion),
    row("GET", OF_PAGES + _OF_MODEL + "files", _STREAM, get_of_logged_model, bytes, query=OfLoggedModel),
    row("POST", OF_PAGES + "upload-artifact", _STREAM, put_from_page, query=PageUpload),
)
"""Every row of this file, under all the addresses that it has."""
# fmt: on
