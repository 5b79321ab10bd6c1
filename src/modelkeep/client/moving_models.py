"""Moving registered models in: their versions under the numbers that they had, stages, labels and aliases.

A version's files are those of the run or logged model that it was made of, as far as they came: then no byte
moves again. Otherwise they are read from where the version says, and sent for it alone. Everything that came
before, and how things are sent, is `moving`'s part.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from modelkeep.client.mlflow_source import ForeignModel, ForeignVersion
from modelkeep.client.move_report import MoveReport
from modelkeep.client.moving import Fetched, TrackingMover
from modelkeep.core import catalog, errors, values
from modelkeep.core.imports import (
    AliasItem,
    CloseModel,
    Kind,
    ModelItem,
    State,
    VersionFile,
    VersionItem,
)
from modelkeep.core.prompts import PROMPT_FILE, PROMPT_TEXT, is_prompt
from modelkeep.core.values import Digest

EXCLUSIVE = ("Staging", "Production")
"""Stages of MLflow that hold one version here, unless a model comes with several in one."""
VERSIONS_AT_ONCE = 50
"""Versions of one batch: each may list thousands of files."""


class Origin(Struct, frozen=True, kw_only=True):
    """Where a version's files are among those that came: of a run or logged model, below a folder."""

    run: str | None = None
    logged_model: str | None = None
    folder: str


class Mover(TrackingMover):
    """One import."""

    def run(self) -> MoveReport:
        """Move everything that can be, and compare.

        Raises:
            SourceUnreadable, ServerUnavailable, TimedOut: one of the two sides fails; the same again goes on.
            NotAllowed: the caller is no admin. Conflict: the source went to another project before.
        """
        self.move_tracking()
        _move_models(self, self.counts.versions)
        return self.report()


def _move_models(mover: TrackingMover, total: int) -> None:
    """Move every registered model."""
    done = 0
    for model in mover.source.models():
        versions = list(mover.source.versions(model.name))
        done += len(versions)
        _move_model(mover, model, versions)
        mover.progress("versions", done, total)


def _move_model(mover: TrackingMover, model: ForeignModel, versions: list[ForeignVersion]) -> None:
    tally = mover.tally
    name = mover.rename.get(model.name, model.name)
    item = ModelItem(
        id=model.name,
        name=name,
        description=_description(mover, model.description, Kind.MODEL, model.name),
        tags=_tags(mover, model.tags, Kind.MODEL, model.name),
        creation_time=model.creation_time,
        last_update_time=model.last_update_time,
        shared=_shared(versions),
    )
    if item.shared:
        tally.change(
            Kind.MODEL,
            model.name,
            f"Several versions stand in {' and '.join(item.shared)}, which is shared here.",
        )
    try:
        values.check_model_name(name)
    except errors.ModelkeepError as refused:
        tally.count(Kind.MODEL, "found")
        tally.leave(Kind.MODEL, model.name, f"{refused.message} Give it another name with --rename.")
        return _leave_versions(mover, versions)
    mover.announce(Kind.MODEL, "models", [item])
    if not mover.carried(Kind.MODEL, model.name):
        return _leave_versions(mover, versions)
    wanted: list[VersionItem] = []
    for version in versions:
        found = _version(mover, version)
        if found is not None:
            wanted.append(found)
        if len(wanted) == VERSIONS_AT_ONCE:
            mover.announce(Kind.VERSION, "versions", wanted)
            wanted = []
    mover.announce(Kind.VERSION, "versions", wanted)
    mover.announce(
        Kind.ALIAS,
        "aliases",
        [
            AliasItem(id=f"{model.name}@{alias}", model=model.name, alias=alias, number=number)
            for alias, number in sorted(model.aliases.items())
        ],
    )
    last = max((version.number for version in versions), default=0)
    mover.put(
        "closed_models",
        CloseModel(id=model.name, last_update_time=model.last_update_time, last_number=last),
    )
    return None


def _leave_versions(mover: TrackingMover, versions: Iterable[ForeignVersion]) -> None:
    for version in versions:
        mover.tally.count(Kind.VERSION, "found")
        mover.tally.leave(Kind.VERSION, _id_of(version), "Its model is not carried.")


def _version(mover: TrackingMover, version: ForeignVersion) -> VersionItem | None:
    """What is sent for a version; None, and a note, where its files are nowhere."""
    id = _id_of(version)  # noqa: A001
    item = VersionItem(
        id=id,
        model=version.model,
        number=version.number,
        description=_description(mover, version.description, Kind.VERSION, id),
        user=version.user,
        creation_time=version.creation_time,
        last_update_time=version.last_update_time,
        stage=version.stage,
        source=version.source[: values.REFERENCE_MAX],
        run=version.run or None,
        logged_model=version.logged_model or None,
        tags=_tags(mover, version.tags, Kind.VERSION, id),
    )
    if is_prompt(version.tags):
        return _prompt(mover, item, version)
    for address in dict.fromkeys((version.stored, version.source)):
        origin = find_origin(address, mover)
        if origin is not None:
            return replace(
                item,
                run=origin.run or item.run,
                logged_model=origin.logged_model or item.logged_model,
                folder=origin.folder,
            )
    try:
        return replace(item, files=_own_files(mover, id, version.stored or version.source))
    except errors.FilesUnreachable as refused:
        mover.tally.count(Kind.VERSION, "found")
        mover.tally.leave(Kind.VERSION, id, refused.message)
        return None


def find_origin(address: str, mover: TrackingMover) -> Origin | None:
    """The run or logged model whose files an address names, among those that came."""
    address = address.rstrip("/")
    if address.startswith("runs:/"):
        run, _, folder = address.removeprefix("runs:/").partition("/")
        return Origin(run=run, folder=folder) if mover.keeps(Kind.RUN, run) else None
    if address.startswith("models:/m-"):
        model, _, folder = address.removeprefix("models:/").partition("/")
        found = Origin(logged_model=model, folder=folder)
        return found if mover.keeps(Kind.LOGGED_MODEL, model) else None
    root = address
    while root:
        if root in mover.roots:
            kind, owner = mover.roots[root]
            folder = address[len(root) :].strip("/")
            if not mover.keeps(kind, owner):
                return None
            of_run = kind is Kind.RUN
            return Origin(
                run=owner if of_run else None, logged_model=None if of_run else owner, folder=folder
            )
        root = root.rpartition("/")[0]
    return None


def _own_files(mover: TrackingMover, id: str, address: str) -> tuple[VersionFile, ...]:  # noqa: A002
    """Files that are a version's alone, sent.

    Raises:
        FilesUnreachable: there are none, or they cannot be read.
    """
    listed = mover.source.files(address, f"version/{id}")
    if not listed:
        raise errors.FilesUnreachable(f"There are no files at {values.quoted(address, 200)}.", root=address)
    if len(listed) > values.FILES_MAX:
        raise errors.FilesUnreachable(f"It has more than {values.FILES_MAX:,} files.", root=address)
    if mover.dry_run or mover.state(Kind.VERSION, id) is State.DONE:
        return ()
    found: list[VersionFile] = []
    waiting: list[Fetched] = []
    for file in listed:
        fetched = mover.fetch(Kind.VERSION, id, address, file)
        if fetched is None:
            raise errors.FilesUnreachable(f"The file {values.quoted(file.path)} cannot be read whole.")
        waiting.append(fetched)
        found.append(VersionFile(path=file.path, digest=fetched.digest, size_bytes=fetched.size_bytes))
        if len(waiting) == VERSIONS_AT_ONCE:
            mover.send_bytes(waiting)
            waiting = []
    mover.send_bytes(waiting)
    return tuple(found)


def _prompt(mover: TrackingMover, item: VersionItem, version: ForeignVersion) -> VersionItem | None:
    """A prompt's version: its text, which stands in a tag, is its one file."""
    text = version.tags.get(PROMPT_TEXT, "")
    if not text:
        mover.tally.count(Kind.VERSION, "found")
        mover.tally.leave(Kind.VERSION, item.id, f"It is a prompt without the tag {PROMPT_TEXT}.")
        return None
    data = text.encode()
    digest = Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
    if not mover.dry_run:
        place = tempfile.TemporaryFile()  # noqa: SIM115  (closed when it is sent)
        place.write(data)
        place.flush()
        mover.send_bytes([Fetched(PROMPT_FILE, digest, len(data), place)])
    return replace(item, files=(VersionFile(path=PROMPT_FILE, digest=digest, size_bytes=len(data)),))


def _shared(versions: Iterable[ForeignVersion]) -> tuple[str, ...]:
    """The stages that several versions stand in together and that hold one here."""
    standing = Counter(version.stage for version in versions)
    return tuple(stage for stage in EXCLUSIVE if standing[stage] > 1)


def _tags(mover: TrackingMover, tags: Mapping[str, str], kind: Kind, id: str) -> dict[str, str]:  # noqa: A002
    """Tags that can be kept; the rest is noted."""
    kept: dict[str, str] = {}
    for key, value in sorted(tags.items()):
        try:
            catalog.check_tags({**kept, key: value})
        except errors.ModelkeepError as refused:
            mover.tally.change(kind, id, f"The tag {values.quoted(key, 60)} is left out: {refused.message}")
            continue
        kept[key] = value
    return kept


def _description(mover: TrackingMover, text: str, kind: Kind, id: str) -> str:  # noqa: A002
    """A description that can be kept: one that cannot is made so, and noted."""
    try:
        return values.check_text(text, "description")
    except errors.ModelkeepError as refused:
        mover.tally.change(kind, id, f"The description is changed: {refused.message}")
        shown = "\n".join(values.printable(line) for line in text.splitlines())
        return shown[: values.TEXT_MAX]


def _id_of(version: ForeignVersion) -> str:
    return f"{version.model}/{version.number}"
