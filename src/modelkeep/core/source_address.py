"""Where a version may be registered from, read out of the address that an MLflow client gives.

Four kinds of place exist, and all of them are rows of this server: `runs:/<run>/<path>`, `models:/m-<id>`,
`models:/<name>/<version>` or `models:/<name>@<alias>`, and `mlflow-artifacts:/...`, with this server's host
in it or as its HTTP address. Nothing is ever fetched from an address: it names rows, or it is refused. An
address is compared as it stands, in one canonical form; what could be read in two ways (encoded characters,
dots, empty parts, queries, fragments, user names) is refused, never repaired.
"""

import re
from typing import assert_never

from msgspec import Struct

from modelkeep.core import errors, tracking, values
from modelkeep.core.values import DEFAULT_PROJECT, Aliased, Exact, ModelName, Numbered, Ref, Staged, Within

SOURCE_MAX = 1_024 + 600
"""Characters of an address: the longest path, and what stands before it."""

ARTIFACTS = "mlflow-artifacts"
"""The scheme of files that the server keeps."""
_HTTP_ROUTE = "/api/2.0/mlflow-artifacts/artifacts/"
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?", re.ASCII)
_ADVICE = (
    "use runs:/RUN/PATH, models:/m-ID, models:/NAME/VERSION or an mlflow-artifacts: address of this server, "
    "and log the files of the model first"
)


class RunPlace(Struct, frozen=True, kw_only=True):
    """A file or folder of a run."""

    run_id: str
    path: str


class LoggedModelPlace(Struct, frozen=True, kw_only=True):
    """A logged model, or a folder in it ('' for all)."""

    model_id: str
    path: str = ""


class VersionPlace(Struct, frozen=True, kw_only=True):
    """A version that is registered already."""

    ref: Ref


class StoredPlace(Struct, frozen=True, kw_only=True):
    """A place as its `mlflow-artifacts:` address names it."""

    path: str


SourcePlace = RunPlace | LoggedModelPlace | VersionPlace | StoredPlace


def parse_source(text: str, *, project: str = DEFAULT_PROJECT, host: str | None = None) -> SourcePlace:
    """Read an address.

    Args:
        project: where a model without one is looked for. host: this server's own, as the client calls it
        (`registry.example:5000`); without it, no address with a
            host is this server's.

    Raises:
        InvalidParameter: it is no address of this server, or one that could be read in two ways.
        InvalidName, InvalidReference, InvalidSemver: what should name a version does not.
    """
    if len(text) > SOURCE_MAX or not text.isprintable():
        raise _refused(text, "is too long, or has characters that nobody sees")
    for mark, what in (
        ("%", "encoded characters"),
        ("\\", "a backslash"),
        ("?", "a query"),
        ("#", "a fragment"),
    ):
        if mark in text:
            raise _refused(text, f"has {what}")
    scheme, colon, rest = text.partition(":")
    match scheme.lower() if colon else "":
        case "runs":
            return _of_run(text, _rooted(text, rest))
        case "models":
            return _of_model(text, _rooted(text, rest), project)
        case "mlflow-artifacts":
            return StoredPlace(path=_plain(text, _without_host(text, rest, host)))
        case "http" | "https":
            return StoredPlace(path=_plain(text, _behind_route(text, rest, host)))
        case _:
            raise _refused(text, "is no place that this server keeps files in")


def address(place: SourcePlace) -> str:
    """An address in its canonical form; `parse_source` of it gives the same place."""
    match place:
        case RunPlace(run_id=run_id, path=path):
            return f"runs:/{run_id}/{path}"
        case LoggedModelPlace(model_id=model_id, path=path):
            return f"models:/{model_id}{f'/{path}' if path else ''}"
        case StoredPlace(path=path):
            return f"{ARTIFACTS}:/{path}"
        case VersionPlace(ref=ref):
            return f"models:/{ref.model.name}{_mark(ref)}"
        case _:
            assert_never(place)


def _mark(ref: Ref) -> str:
    match ref.selector:
        case Numbered(number=number):
            return f"/{number}"
        case Exact(version=text) | Within(range=text):
            return f"/{text}"
        case Staged(stage=stage):
            return f"/{stage}"
        case Aliased(alias=alias):
            return f"@{alias}"
        case _:
            raise errors.InvalidReference(f"{ref} is not named in MLflow's words.")


def _of_run(text: str, rest: str) -> RunPlace:
    run_id, slash, path = rest.partition("/")
    if not tracking.RUN_ID.fullmatch(run_id):
        raise _refused(text, "names no run")
    if not slash or not path:
        raise _refused(text, "names no folder of the run")
    return RunPlace(run_id=run_id, path=_plain(text, path))


def _of_model(text: str, rest: str, project: str) -> LoggedModelPlace | VersionPlace:
    first, slash, path = rest.partition("/")
    if tracking.LOGGED_MODEL_ID.fullmatch(first):
        return LoggedModelPlace(model_id=first, path=_plain(text, path) if slash else "")
    if rest.count("/") > 1:
        raise _refused(text, "names more than a model and its version")
    ref = values.parse_ref(f"models:/{rest}")
    return VersionPlace(ref=Ref(model=ModelName(project, ref.model.name), selector=ref.selector))


def _rooted(text: str, rest: str) -> str:
    """What follows `scheme:/`; a host has no place there."""
    if not rest.startswith("/") or rest.startswith("//"):
        raise _refused(text, "has something else than one slash behind its scheme")
    return rest[1:]


def _without_host(text: str, rest: str, host: str | None) -> str:
    if rest.startswith("///"):
        return rest[3:]
    if not rest.startswith("//"):
        return _rooted(text, rest)
    named, _, path = rest[2:].partition("/")
    _own_host(text, named, host)
    return path


def _behind_route(text: str, rest: str, host: str | None) -> str:
    named, _, path = rest.removeprefix("//").partition("/")
    _own_host(text, named, host)
    if not rest.startswith("//") or not f"/{path}".startswith(_HTTP_ROUTE):
        raise _refused(text, "is no address of this server's files")
    return f"/{path}".removeprefix(_HTTP_ROUTE)


def _own_host(text: str, named: str, host: str | None) -> None:
    if "@" in named:
        raise _refused(text, "has a user name")
    if host is None or not _HOST.fullmatch(named) or named.lower() != host.lower():
        raise _refused(text, "is of another server")


def _plain(text: str, path: str) -> str:
    try:
        return values.check_path(path)
    except errors.InvalidManifest as problem:
        raise _refused(text, "has empty or dotted parts, or other parts that are no plain names") from problem


def _refused(text: str, why: str) -> errors.InvalidParameter:
    shown = values.quoted(_without_secret(text), 120)
    return errors.InvalidParameter(f"Invalid model version source: {shown} {why}; {_ADVICE}.", field="source")


def _without_secret(text: str) -> str:
    """The address without what stands before an `@` in its host: errors are logged."""
    return re.sub(r"(?<=//)[^/]*@", "", text)
