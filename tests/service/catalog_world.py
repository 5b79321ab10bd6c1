"""A registry to register things in: the real store and the real catalog, blobs in memory, a clock that tests
move.

`World` says in one line what a test needs done, always through the catalog's own verbs. It decides nothing.
"""

import hashlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

from modelkeep.core import codec
from modelkeep.core.access import Caller, Effect, Grant, Role
from modelkeep.core.answers import Registration
from modelkeep.core.catalog import Draft, DraftSpec, FileEntry, ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.promotion import MoveCause, StageMove
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.core.values import Actor, Digest, ModelName, parse_model_name, parse_ref
from modelkeep.service.act import Act, Context, Desk
from modelkeep.service.catalog import Catalog
from modelkeep.store import catalog as store
from modelkeep.store import models
from modelkeep.store.database import Database
from modelkeep.store.schema import occupancy, stage_intervals
from modelkeep.store.statements import insert
from tests.fakes import MemoryBlobs

T = TypeVar("T")
P = ParamSpec("P")

START = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
CHURN = ModelName("default", "churn")
SIGNATURE = Signature(
    inputs=(Field(name="age", type=DataType.INT64),), outputs=(Field(name="p", type=DataType.FLOAT64),)
)
WIDER = Signature(
    inputs=(Field(name="age", type=DataType.INT64), Field(name="plan", type=DataType.STRING, required=False)),
    outputs=SIGNATURE.outputs,
)
NARROWER = Signature(inputs=(Field(name="years", type=DataType.INT64),), outputs=SIGNATURE.outputs)


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, **parts: float) -> datetime:
        """Let time pass, as `timedelta` takes it."""
        self.now += timedelta(**parts)
        return self.now


def caller(name: str, *roles: Role, project: str | None = None, model: str | None = None) -> Caller:
    """Somebody with these roles everywhere, in a project, or on one model of it."""
    grants = tuple(grant(name, role, project, model) for role in roles)
    return Caller(actor=Actor(name=name), grants=grants)


def grant(
    name: str, role: Role, project: str | None = None, model: str | None = None, effect: Effect = Effect.ALLOW
) -> Grant:
    """A role on a scope."""
    return Grant(
        id=f"grant_{name}_{role}_{project}_{model}_{effect}",
        principal=name,
        role=role,
        project=project,
        model=model,
        effect=effect,
        created_at=START,
        created_by="root",
    )


def context(name: str, *roles: Role, project: str | None = None, model: str | None = None) -> Context:
    """A request of somebody with these roles; without any role, of somebody who may do nothing."""
    return Context(caller=caller(name, *roles, project=project, model=model))


OWNER = Context(caller=Caller(actor=Actor(name="ann", asserted=True), owner=True))
"""The one owner of a local installation."""


def digest_of(data: bytes) -> Digest:
    """The digest of some bytes."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def entry_of(path: str, data: bytes, media_type: str = "application/octet-stream") -> FileEntry:
    """The announcement of a file."""
    return FileEntry(path=path, size_bytes=len(data), digest=digest_of(data), media_type=media_type)


class World:
    """The desk, the catalog, and the acts of a test in short."""

    def __init__(self, database: Database) -> None:
        self.clock = Clock()
        self.blobs = MemoryBlobs()
        self.desk = Desk(database, self.clock)
        self.catalog = Catalog(self.blobs, self.desk)

    def do(
        self, who: Context, method: Callable[Concatenate[Act, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """One durable act; a second passes before it, so that no two are at the same time."""
        self.clock.pass_by(seconds=1)
        return self.desk.do(who, method, *args, **kwargs)

    def read(
        self, who: Context, method: Callable[Concatenate[Act, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """One reading act."""
        return self.desk.read(who, method, *args, **kwargs)

    def get(self, ref: str, who: Context = OWNER) -> ModelVersion:
        """The version of a reference."""
        return self.read(who, self.catalog.get_version, parse_ref(ref))

    def begin(
        self, model: ModelName | str, files: dict[str, bytes], who: Context = OWNER, **spec: Any
    ) -> Draft:
        """Announce files, by path."""
        name = parse_model_name(model) if isinstance(model, str) else model
        announced = DraftSpec(files=tuple(entry_of(path, data) for path, data in files.items()), **spec)
        return self.do(who, self.catalog.begin_draft, name, announced)

    def send(self, draft: Draft, files: dict[str, bytes], who: Context = OWNER) -> None:
        """Send the bytes that are missing, each file in one piece."""
        for entry in draft.files:
            if not entry.present:
                plan = self.do(who, self.catalog.prepare_upload, draft.id, entry.path)
                if not plan.present:
                    self.catalog.store_bytes(plan, plan.offset, [files[entry.path][plan.offset :]])

    def register(
        self,
        model: ModelName | str = CHURN,
        data: bytes = b"weights",
        who: Context = OWNER,
        *,
        files: dict[str, bytes] | None = None,
        **spec: Any,
    ) -> Registration:
        """Announce, send and finalize: one file `model.onnx`, or these."""
        content = files if files is not None else {"model.onnx": data}
        draft = self.begin(model, content, who, **spec)
        self.send(draft, content, who)
        return self.do(who, self.catalog.finalize, draft.id)

    def versions(self, model: ModelName | str, count: int, who: Context = OWNER) -> list[ModelVersion]:
        """Some versions of a model, each with weights of its own: 1.0.0, 1.1.0, 1.2.0 ..."""
        made: Iterable[Registration] = (
            self.register(model, f"{model} {index}".encode(), who, signature=SIGNATURE)
            for index in range(count)
        )
        return [registration.version for registration in made]

    def place(self, version: ModelVersion, stage: str, *, exclusive: bool = True) -> None:
        """Put a version into a stage as `promotion` would: where it stands, and since which event."""
        self.do(OWNER, _place, version, stage, exclusive)


def _place(act: Act, version: ModelVersion, stage: str, exclusive: bool) -> None:
    row = models.get_row(act.tx, version.model)
    moved = StageMove(from_stage=version.stage, to=stage, semver=version.semver, cause=MoveCause.PROMOTION)
    event = act.record(
        EventKind.STAGE_MOVED,
        version.reference,
        model=version.model,
        number=version.number,
        **codec.builtins(moved),
    )
    at = codec.format_time(act.now)
    act.tx.run(
        insert(occupancy),
        model_id=row.id,
        number=version.number,
        stage=stage,
        exclusive=int(exclusive),
        since_at=at,
        since_sequence=event.sequence,
    )
    act.tx.run(
        insert(stage_intervals),
        model_id=row.id,
        stage=stage,
        number=version.number,
        semver=version.semver,
        from_at=at,
        from_sequence=event.sequence,
        to_at=None,
        to_sequence=None,
        cause="promotion",
        actor=act.by,
        reason="because",
        request_id=None,
        rollout_id=None,
        approved_by="[]",
    )
    assert store.get_version(act.tx, version.model, version.number).stage == stage
