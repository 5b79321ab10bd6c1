"""A small world to promote things in: models and versions written straight into the store, people, a clock.

It stands on the real store and the real promotion service; traffic is a stand-in that remembers in memory
what the rollout column would store. What this file does not do: register anything through the catalog's own
verbs, which have tests of their own.
"""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from msgspec import structs

from modelkeep.core import errors, values
from modelkeep.core.access import Caller, Effect, Grant, Role
from modelkeep.core.catalog import DEFAULT_STAGES, FileEntry, ModelVersion, StageGraph
from modelkeep.core.events import EventKind
from modelkeep.core.policy import TEAM, Policy
from modelkeep.core.promotion import Interval, MoveCause, Vote
from modelkeep.core.rollout import CANARY, Endpoint, Plan, Rollout, RolloutState
from modelkeep.core.routing import Epoch
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.core.values import Actor, Digest, ModelName, Ref, Staged, parse_ref
from modelkeep.service import references
from modelkeep.service.act import SYSTEM_CONTEXT, Act, Context, Desk
from modelkeep.service.catalog import Catalog
from modelkeep.service.promotion import Promotions
from modelkeep.store import catalog as catalog_store
from modelkeep.store import models as models_store
from modelkeep.store.database import Database
from tests.fakes import MemoryBlobs

T = TypeVar("T")

START = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
CHURN = ModelName("default", "churn")
SIGNATURE = Signature(
    inputs=(Field(name="x", type=DataType.FLOAT64),), outputs=(Field(name="y", type=DataType.FLOAT64),)
)


def digest_of(text: str) -> Digest:
    """A digest that stands for some content."""
    return Digest("sha256:" + hashlib.sha256(text.encode()).hexdigest())


def version_of(model: ModelName, number: int, text: str, **more: Any) -> ModelVersion:
    """A version as registration would leave it."""
    content = more.pop("content", digest_of(f"{model}:{text}"))
    fields: dict[str, Any] = {
        "id": f"ver_{model.project}_{model.name}_{number}",
        "model": model,
        "number": number,
        "semver": text,
        "digest": content,
        "size_bytes": 3,
        "files": (FileEntry(path="model.onnx", size_bytes=3, digest=content),),
        "signature": SIGNATURE,
        "created_at": START,
        "created_by": "ann",
    }
    return ModelVersion(**(fields | more))


class Traffic:
    """What promotion asks of the rollout column. A rollout ends when a test says so."""

    def __init__(self) -> None:
        self.endpoints: dict[tuple[ModelName, str], Endpoint] = {}
        self.rollouts: dict[str, Rollout] = {}
        self.promotions: Promotions

    def following(self, act: Act, model: ModelName, stage: str) -> Endpoint | None:
        return self.endpoints.get((model, stage))

    def start(
        self,
        act: Act,
        endpoint: Endpoint,
        version: ModelVersion,
        *,
        reason: str,
        request: str | None,
        plan: Plan | None = None,
        plan_from: str = "endpoint",
        supersede: bool = False,
    ) -> Rollout:
        if endpoint.rollout is not None:
            raise errors.RolloutActive("A rollout is under way.")
        rollout = Rollout(
            id=act.new_id("rol"),
            endpoint=endpoint.name,
            model=endpoint.model,
            stage=endpoint.stage,
            stable=endpoint.stable,
            stable_digest=None,
            stable_semver=None,
            candidate=version.number,
            candidate_digest=version.digest,
            candidate_semver=version.semver,
            plan=plan or CANARY,
            salt="",
            epoch=endpoint.epoch,
            started_at=act.now,
            started_by=act.caller.actor,
            reason=reason,
            request=request,
        )
        self.rollouts[rollout.id] = rollout
        self._keep(endpoint, rollout=rollout.id)
        return rollout

    def take_back(self, act: Act, endpoint: Endpoint, reason: str) -> Rollout | None:
        if endpoint.rollout is None:
            return None
        rollout = structs.replace(
            self.rollouts[endpoint.rollout], state=RolloutState.ROLLED_BACK, outcome=reason
        )
        candidate = catalog_store.get_version(act.tx, rollout.model, rollout.candidate)
        self.promotions.tombstone(act, candidate, reason)
        self._keep(endpoint, rollout=None)
        return rollout

    def revert(self, act: Act, endpoint: Endpoint, to: ModelVersion, reason: str) -> None:
        self._keep(endpoint, stable=to.number, epoch=Epoch(endpoint.epoch.term + 1, 0))

    def succeed(self, act: Act, rollout_id: str) -> Interval:
        """The rollout has brought all traffic to its candidate."""
        rollout = self.rollouts[rollout_id]
        endpoint = self.endpoints[rollout.model, rollout.stage]
        self._keep(endpoint, rollout=None, stable=rollout.candidate, previous=endpoint.stable)
        version = catalog_store.get_version(act.tx, rollout.model, rollout.candidate)
        return self.promotions.enter_stage(
            act,
            version,
            rollout.stage,
            cause=MoveCause.ROLLOUT,
            reason=rollout.reason,
            request=rollout.request,
            rollout=rollout.id,
            asked_by=rollout.started_by,
        )

    def _keep(self, endpoint: Endpoint, **changes: Any) -> None:
        self.endpoints[endpoint.model, endpoint.stage] = structs.replace(endpoint, **changes)


class World:
    """A desk, a clock that tests set, people with roles, and the services under test."""

    def __init__(self, database: Database, policy: Policy = TEAM, *, serving: bool = False) -> None:
        self.database = database
        self.now = START
        self.desk = Desk(database, lambda: self.now)
        self.traffic = Traffic()
        self.promotions = Promotions(
            catalog=Catalog(MemoryBlobs(), self.desk),
            rollouts=self.traffic if serving else None,
            default_policy=policy,
        )
        self.traffic.promotions = self.promotions
        self._grants: dict[str, list[Grant]] = {}
        self.person("ann", Role.MAINTAINER)
        self.person("bob", Role.APPROVER)
        self.person("cat", Role.MAINTAINER)
        self.person("dan", Role.ADMIN)
        self.person("eve", Role.VIEWER)
        self.person("fay", Role.CONTRIBUTOR)

    # ------------------------------------------------------------------------------------------------- people

    def person(
        self,
        name: str,
        role: Role,
        project: str | None = None,
        model: str | None = None,
        effect: Effect = Effect.ALLOW,
    ) -> None:
        """Give somebody a role."""
        grant = Grant(
            id=f"grt_{name}_{len(self._grants.get(name, ()))}",
            principal=name,
            role=role,
            project=project,
            model=model,
            effect=effect,
            created_at=START,
            created_by="dan",
        )
        self._grants.setdefault(name, []).append(grant)

    def context(self, name: str) -> Context:
        """The context of somebody's request; `owner` is local mode's only person."""
        if name == "owner":
            return Context(caller=Caller(actor=Actor(name="owner", asserted=True), owner=True))
        grants = tuple(self._grants.get(name, ()))
        return Context(caller=Caller(actor=Actor(name=name), grants=grants), request_id=f"http-{name}")

    def do(self, name: str, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Somebody changes something."""
        return self.desk.do(self.context(name), method, *args, **kwargs)

    def read(self, name: str, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Somebody looks at something."""
        return self.desk.read(self.context(name), method, *args, **kwargs)

    def later(self, **delta: float) -> datetime:
        """Let time pass."""
        self.now += timedelta(**delta)
        return self.now

    # ------------------------------------------------------------------------------------ models and versions

    def model(self, name: ModelName = CHURN, stages: StageGraph = DEFAULT_STAGES) -> ModelName:
        """A model without versions."""

        def job(act: Act) -> None:
            models_store.add_model(
                act.tx,
                f"mod_{name.project}_{name.name}",
                name,
                description="",
                owner="ann",
                stages=stages,
                now=act.now,
                by=act.by,
            )
            act.record(EventKind.MODEL_CREATED, str(name), model=name)

        self.do("ann", job)
        return name

    def version(self, text: str, model: ModelName = CHURN, **more: Any) -> ModelVersion:
        """A version that is ready."""

        def job(act: Act) -> ModelVersion:
            row = models_store.get_row(act.tx, model)
            made = version_of(model, row.next_number, text, created_at=act.now, **more)
            models_store.take_number(act.tx, row.id, act.now)
            event = act.record(
                EventKind.VERSION_REGISTERED, made.reference, model=model, number=made.number, semver=text
            )
            catalog_store.add_version(act.tx, row.id, made, event.sequence)
            return made

        return self.do("ann", job)

    def versions(self, *semvers: str, model: ModelName = CHURN) -> list[ModelVersion]:
        """A model with these versions."""
        self.model(model)
        return [self.version(semver, model) for semver in semvers]

    def delete(self, semver: str, model: ModelName = CHURN) -> None:
        """Remove a version, as the catalog does."""

        def job(act: Act) -> None:
            gone = references.resolve(act, parse_ref(f"{model}:{semver}"))
            row = models_store.get_row(act.tx, model)
            event = act.record(EventKind.VERSION_DELETED, gone.reference, model=model, number=gone.number)
            catalog_store.remove_version(act.tx, row.id, gone, event.sequence, act.now)

        self.do("ann", job)

    def get(self, semver: str, model: ModelName = CHURN) -> ModelVersion:
        """A version as it is now."""
        return self.read("dan", references.resolve, parse_ref(f"{model}:{semver}"))

    def stage(self, semver: str) -> str:
        """Where a version of churn stands."""
        return self.get(semver).stage

    def in_production(self, model: ModelName = CHURN) -> str | None:
        """The version in production."""
        try:
            return self.read(
                "dan", references.resolve, Ref(model=model, selector=Staged("production"))
            ).semver
        except errors.StageEmpty:
            return None

    # ------------------------------------------------------------------------------------------- what is done

    def promote(self, semver: str, to: str = "production", by: str = "ann", **more: Any) -> Any:
        """Promote a version of churn, its files (and those of what is tested too) being as registered."""
        fields = {"files_verified": True, "others_verified": (True,) * 7} | more
        return self.do(by, self.promotions.promote, parse_ref(f"churn:{semver}"), to, "better", **fields)

    def ask(self, semver: str, to: str = "production", by: str = "ann", **more: Any) -> Any:
        """Ask for a promotion."""
        fields = {"files_verified": True} | more
        return self.do(by, self.promotions.open_request, parse_ref(f"churn:{semver}"), to, "better", **fields)

    def review(self, request: str, by: str = "bob", vote: Vote = Vote.APPROVE, **more: Any) -> Any:
        """Vote on a request."""
        fields = {"files_verified": True} | more
        return self.do(by, self.promotions.review, request, vote, **fields)

    def rollback(self, by: str = "ann", reason: str = "errors", **more: Any) -> Any:
        """Take churn back."""
        return self.do(by, self.promotions.rollback, CHURN, reason, **more)

    def endpoint(self, stage: str = "production", stable: int | None = None) -> None:
        """An endpoint that follows a stage of churn."""
        self.traffic.endpoints[CHURN, stage] = Endpoint(
            id="end_churn",
            name="churn",
            model=CHURN,
            stage=stage,
            stable=stable,
            created_at=START,
            created_by="dan",
        )

    def succeed(self, rollout: str) -> Interval:
        """A rollout has succeeded."""
        return self.desk.do(SYSTEM_CONTEXT, self.traffic.succeed, rollout)

    def events(self, *kinds: EventKind) -> list[Any]:
        """The events of these kinds, or all, in order."""
        found = self.database.read(lambda tx: tx.events.after(limit=values.PAGE_MAX))
        return [stored.event for stored in found if not kinds or stored.event.kind in kinds]
