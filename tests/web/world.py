"""A small installation to send requests to: two projects, people of every role, and one of everything.

It is made by the services' own verbs. What it does not do: send a request.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from modelkeep import settings, wiring
from modelkeep.core.access import Caller, PrincipalKind, Role
from modelkeep.core.catalog import DraftSpec, FileEntry, Metric
from modelkeep.core.promotion import PromotionRequest
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.core.values import Actor, Digest, ModelName, Ref, parse_ref
from modelkeep.core.webhooks import NewWebhook, Style
from modelkeep.service.act import SYSTEM_CONTEXT, Act, Context, Desk
from modelkeep.service.house import House
from modelkeep.store.database import Outcome

P = ParamSpec("P")

OWN, OTHER = ModelName("own", "churn"), ModelName("other", "churn")
SIGNATURE = Signature(
    inputs=(Field(name="x", type=DataType.FLOAT64),), outputs=(Field(name="y", type=DataType.FLOAT64),)
)
PEOPLE: dict[str, tuple[Role, str | None] | None] = {
    "viewer": (Role.VIEWER, "own"),
    "contributor": (Role.CONTRIBUTOR, "own"),
    "maintainer": (Role.MAINTAINER, "own"),
    "approver": (Role.APPROVER, "own"),
    "admin": (Role.ADMIN, "own"),
    "auditor": (Role.AUDITOR, "own"),
    "gateway": (Role.GATEWAY, None),
    "stranger": None,
    "root": (Role.ADMIN, None),
    "overseer": (Role.AUDITOR, None),
}
"""Who there is: a role and the project it is held on, None for everywhere."""


@contextmanager
def opened(folder: Path, auth: str = "local") -> Iterator[House]:
    """A whole house over a folder."""
    with wiring.open_house(settings.load({"data": str(folder), "auth": auth})) as house:
        yield house


def digest_of(data: bytes) -> Digest:
    """The digest of some bytes."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def entry_of(path: str, data: bytes) -> FileEntry:
    """A file to announce."""
    return FileEntry(path=path, size_bytes=len(data), digest=digest_of(data))


def context_of(name: str, caller: Caller | None = None) -> Context:
    """Somebody who may do everything, under a name."""
    return Context(caller=caller or Caller(actor=Actor(name=name), owner=True))


def register(house: House, model: ModelName, data: bytes, by: str = "root", **spec: Any) -> Ref:
    """Register a version with one file; its exact reference."""
    context = context_of(by)
    given = {"signature": SIGNATURE, **spec}
    wanted = DraftSpec(files=(entry_of("model.bin", data),), **given)
    draft = house.desk.do(context, house.catalog.begin_draft, model, wanted)
    plan = house.desk.do(context, house.catalog.prepare_upload, draft.id, "model.bin")
    house.catalog.store_bytes(plan, 0, [data])
    made = house.desk.do(context, house.catalog.finalize, draft.id)
    return parse_ref(made.version.reference)


@dataclass
class World:
    """What there is in it, by name."""

    house: House
    tokens: dict[str, str] = field(default_factory=dict)
    requests: dict[str, PromotionRequest] = field(default_factory=dict)
    drafts: dict[str, str] = field(default_factory=dict)
    token_ids: dict[str, str] = field(default_factory=dict)
    grant_ids: dict[str, str] = field(default_factory=dict)
    rollouts: dict[str, str] = field(default_factory=dict)
    webhooks: dict[str, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)


def fill(house: House) -> World:
    """Two projects with one of everything each, and a token for each of `PEOPLE`.

    `churn` has 1.0.0 in production behind an endpoint that has begun to move to 1.1.0, a request for staging,
    and a third version without a place.
    """
    world = World(house)
    desk, access = house.desk, house.access
    for name, held in PEOPLE.items():
        kind = PrincipalKind.SERVICE if name == "gateway" else PrincipalKind.USER
        desk.do(SYSTEM_CONTEXT, access.create_principal, name, kind)
        if held is not None:
            grant = desk.do(SYSTEM_CONTEXT, access.add_grant, principal=name, role=held[0], project=held[1])
            world.grant_ids[name] = grant.id
        made = desk.do(SYSTEM_CONTEXT, access.create_token, label="test", principal=name)
        world.tokens[name], world.token_ids[name] = made.secret, made.info.id
    for model in (OWN, OTHER):
        _fill_project(world, model)
    for name in ("contributor", "maintainer", "admin", "root"):
        spec = DraftSpec(files=(entry_of("model.bin", name.encode()),), signature=SIGNATURE)
        world.drafts[name] = desk.do(context_of(name), house.catalog.begin_draft, OWN, spec).id
    return world


def _fill_project(world: World, model: ModelName) -> None:
    house, asker = world.house, context_of("asker")
    desk, promotions, rollouts = house.desk, house.promotions, house.rollouts
    for number in (1, 2, 3):
        metric = Metric(name="accuracy", value=0.9 + number / 100)
        register(house, model, f"{model}{number}".encode(), metrics=(metric,))
    desk.do(asker, house.catalog.set_alias, model, "champion", parse_ref(f"{model}:1.0.0"))

    def place(act: Act) -> None:
        version = house.catalog.resolve(act, parse_ref(f"{model}:1.0.0"))
        from modelkeep.core.promotion import MoveCause

        promotions.enter_stage(
            act, version, "production", cause=MoveCause.PROMOTION, reason="for the test", request=None,
            rollout=None,
        )  # fmt: skip

    desk.do(asker, place)
    world.requests[model.project] = desk.do(
        asker, promotions.open_request, parse_ref(f"{model}:1.2.0"), "staging", "for the test"
    )
    name = f"{model.project}-live"
    desk.do(asker, rollouts.put_endpoint, name, model)
    status = desk.read(asker, rollouts.status, name)
    assert status.rollout is not None
    world.rollouts[model.project] = status.rollout.id
    world.webhooks[model.project] = hooked(house, model.project)
    world.runs[model.project] = ran(house, model.project)
    spec = DraftSpec(files=(entry_of("model.bin", b"never sent"),), signature=SIGNATURE)
    world.drafts[model.project] = desk.do(asker, house.catalog.begin_draft, model, spec).id


def hooked(house: House, project: str, style: Style = Style.MODELKEEP) -> str:
    """A webhook of a project, at an address that nothing is sent to; its id."""
    events = ("*",) if style is Style.MODELKEEP else ("model_version.created",)
    new = NewWebhook(name="ci", url="http://127.0.0.1:9/", events=events, project=project, style=style)
    return house.desk.do(context_of("asker"), house.webhooks.create_webhook, new).webhook.id


def ran(house: House, project: str) -> str:
    """A run of a project; its id."""
    asker = context_of("asker")
    experiment = house.desk.do(asker, house.tracking.create_experiment, project, "trials")
    run = house.desk.do(asker, house.tracking.create_run, experiment.experiment_id, project=project)
    return run.info.run_id


class _Undone(Exception):
    """Carries what a rehearsed write returned, while the store takes the write back."""

    def __init__(self, value: object) -> None:
        super().__init__("rehearsed")
        self.value = value


class _Rehearsed:
    """Tells whoever waits for a rehearsed write what it returned."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self.set_running_or_notify_cancel = outcome.set_running_or_notify_cancel
        self.set_result = outcome.set_result

    def set_exception(self, exception: BaseException | None, /) -> None:
        if isinstance(exception, _Undone):
            self._outcome.set_result(exception.value)
        else:
            self._outcome.set_exception(exception)


class Rehearsal(Desk):
    """A desk whose writes are carried out, answered, and taken back: one world serves any number of
    requests.
    """

    def post(
        self,
        context: Context,
        outcome: Outcome,
        method: Callable[Concatenate[Act, P], Any],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        def rehearse(act: Act) -> None:
            raise _Undone(method(act, *args, **kwargs))

        super().post(context, _Rehearsed(outcome), rehearse)


def rehearsing(house: House) -> House:
    """The same house, in which no write stays."""
    return replace(house, desk=Rehearsal(house.desk.database))
