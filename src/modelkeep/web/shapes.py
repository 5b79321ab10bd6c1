"""The shapes of requests: query parameters and bodies, one struct each.

Answers have no shapes of their own: what a service returns is what goes over the wire. Unknown fields are
refused, so that a misspelt option is told and not ignored.
"""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from modelkeep.core import values
from modelkeep.core.access import Effect, PrincipalKind, Role, Verb
from modelkeep.core.catalog import StageGraph
from modelkeep.core.forecast import RUNS, RUNS_MAX, SEED_MAX
from modelkeep.core.plan import CANARY, Plan, Strategy
from modelkeep.core.promotion import RequestState, Vote
from modelkeep.core.recording import KEEP_ALL, Privacy
from modelkeep.core.routing import Loading, Strictness

Limit = Annotated[int, Meta(ge=1, le=values.PAGE_MAX, description="Rows of a page.")]
Token = Annotated[
    str, Meta(max_length=2_000, description="Where the next page begins, from the page before.")
]
RefText = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=values.REFERENCE_MAX,
        description="A reference, like churn:2.1.0 or churn#production.",
    ),
]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""What a name is, for the description: it is checked where it is used, which says more when it is none."""
_SEGMENT = NAME_PATTERN[1:-1]
_FULL_NAME_PATTERN = f"^({_SEGMENT}/)?{_SEGMENT}$"

NameText = Annotated[str, Meta(min_length=1, max_length=300, extra_json_schema={"pattern": NAME_PATTERN})]
ModelText = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=300,
        description="A model: `name`, or `project/name`.",
        extra_json_schema={"pattern": _FULL_NAME_PATTERN},
    ),
]
TimeText = Annotated[
    str, Meta(max_length=60, description="RFC 3339.", extra_json_schema={"format": "date-time"})
]
Reason = Annotated[str, Meta(max_length=values.TEXT_MAX, description="Why; people read it later.")]
Tags = dict[
    Annotated[str, Meta(max_length=values.TAG_KEY_MAX)], Annotated[str, Meta(max_length=values.TAG_VALUE_MAX)]
]


class Shape(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request's shape."""


class ListQuery(Shape, frozen=True, kw_only=True):
    """A page of a list."""

    limit: Limit = values.PAGE_DEFAULT
    page_token: Token | None = None


class NewName(Shape, frozen=True, kw_only=True):
    """What a model is to be called, within its project."""

    name: Annotated[str, Meta(min_length=1, max_length=values.NAME_MAX)]


class SearchQuery(ListQuery, frozen=True, kw_only=True):
    """A page of what a filter selects."""

    filter: Annotated[str, Meta(max_length=4_096)] | None = None
    order: Annotated[str, Meta(max_length=1_000)] | None = None
    project: NameText | None = None


class RefQuery(Shape, frozen=True, kw_only=True):
    """The version meant."""

    ref: RefText


class RefAtQuery(Shape, frozen=True, kw_only=True):
    """The version meant, at a moment."""

    ref: RefText
    at: TimeText | None = None


class FileQuery(Shape, frozen=True, kw_only=True):
    """A file of a version."""

    ref: RefText
    path: Annotated[str, Meta(min_length=1, max_length=values.PATH_MAX)]


class UploadQuery(Shape, frozen=True, kw_only=True):
    """Where the bytes of an announced file go."""

    path: Annotated[str, Meta(min_length=1, max_length=values.PATH_MAX)]
    offset: Annotated[int, Meta(ge=0, le=2**50)] = 0


class CompareQuery(Shape, frozen=True, kw_only=True):
    """What to compare: metrics and versions, comma-separated; all when left out."""

    metrics: Annotated[str, Meta(max_length=4_000)] | None = None
    refs: Annotated[str, Meta(max_length=16_000)] | None = None


class BestQuery(Shape, frozen=True, kw_only=True):
    """By which metric, and among which versions."""

    metric: Annotated[str, Meta(min_length=1, max_length=values.TAG_KEY_MAX)]
    direction: Annotated[str, Meta(pattern="^(higher|lower)$")] | None = None
    filter: Annotated[str, Meta(max_length=4_096)] | None = None
    split: Annotated[str, Meta(min_length=1, max_length=values.TAG_KEY_MAX)] | None = None


class DiffQuery(Shape, frozen=True, kw_only=True):
    """The two versions to set against each other."""

    a: RefText
    b: RefText


class GateQuery(Shape, frozen=True, kw_only=True):
    """A version and the stage it would enter."""

    ref: RefText
    to: NameText


class RequestsQuery(ListQuery, frozen=True, kw_only=True):
    """Which promotion requests."""

    model: ModelText | None = None
    state: RequestState | None = None


class RolloutsQuery(ListQuery, frozen=True, kw_only=True):
    """Which rollouts."""

    endpoint: NameText | None = None
    model: ModelText | None = None


class ForecastQuery(Shape, frozen=True, kw_only=True):
    """The version to move traffic to, or else the endpoint whose traffic it is, and what is to be reckoned
    with instead of what was counted.

    `plan` is a rollout plan in YAML or JSON in the place of the endpoint's.
    """

    ref: RefText | None = None
    endpoint: NameText | None = None
    to: NameText = "production"
    traffic_per_s: Annotated[float, Meta(gt=0, le=1e6, description="Requests a second.")] | None = None
    requests_per_caller: Annotated[float, Meta(ge=1, le=1e6)] | None = None
    error_rate: Annotated[float, Meta(gt=0, lt=1, description="Share of stable's callers.")] | None = None
    plan: Annotated[str, Meta(min_length=1, max_length=8_000)] | None = None
    seed: Annotated[int, Meta(ge=0, le=SEED_MAX)] = 1
    runs: Annotated[int, Meta(ge=1, le=RUNS_MAX, description="Simulated rollouts.")] = RUNS


class ScopeQuery(Shape, frozen=True, kw_only=True):
    """A model, a project (`project/`), or the installation when left out."""

    scope: Annotated[str, Meta(min_length=1, max_length=300)] | None = None


class HistoryQuery(Shape, frozen=True, kw_only=True):
    """Which stage's history."""

    stage: NameText | None = None
    limit: Limit = values.PAGE_DEFAULT


class EventsQuery(Shape, frozen=True, kw_only=True):
    """Which events: those after a sequence, oldest first, or the newest first with `newest`."""

    after: Annotated[int, Meta(ge=0, le=2**62)] = 0
    limit: Limit = values.PAGE_DEFAULT
    model: ModelText | None = None
    kind: Annotated[str, Meta(max_length=100)] | None = None
    subject: Annotated[str, Meta(max_length=600)] | None = None
    newest: bool = False


class HeadQuery(Shape, frozen=True, kw_only=True):
    """A head of an earlier walk, `SEQ:HASH`, which the log must still hold."""

    head: Annotated[str, Meta(max_length=100)] | None = None


class ExportQuery(Shape, frozen=True, kw_only=True):
    """In which form, from which event on."""

    format: Annotated[str, Meta(pattern="^(jsonl|csv)$")] = "jsonl"
    after: Annotated[int, Meta(ge=0, le=2**62)] = 0


class TableQuery(Shape, frozen=True, kw_only=True):
    """A gateway's question: anything newer than this?"""

    after: Annotated[int, Meta(ge=-1, le=2**62)] = -1
    wait_s: Annotated[float, Meta(ge=0, le=60)] = 0


class NewModel(Shape, frozen=True, kw_only=True):
    """A model to register."""

    name: NameText
    project: NameText = values.DEFAULT_PROJECT
    description: Annotated[str, Meta(max_length=values.TEXT_MAX)] = ""
    owner: NameText | None = None
    tags: Tags = {}
    stages: StageGraph | None = None


class NewAlias(Shape, frozen=True, kw_only=True):
    """Where an alias shall point. `expect` is the number it must point to now (null: nowhere), left out:
    whatever. Where an endpoint follows the alias, `plan`, or `strategy` with the plan that it has by itself,
    stands in the place of the endpoint's, and `supersede` ends the rollout that is under way.
    """

    ref: RefText
    expect: int | UnsetType | None = UNSET
    protected: bool | None = None
    reason: Annotated[str, Meta(max_length=values.TEXT_MAX)] = ""
    plan: Plan | None = None
    strategy: Strategy | None = None
    supersede: bool = False


class NewPromotion(Shape, frozen=True, kw_only=True):
    """A version and the stage it shall enter.

    `plan`, or `strategy` with the plan that it has by itself, stands in the place of the policy's or the
    endpoint's. `supersede` ends the rollout that is under way.
    """

    ref: RefText
    to: NameText
    reason: Reason
    request: NameText | None = None
    ticket: Annotated[str, Meta(max_length=500)] | None = None
    plan: Plan | None = None
    strategy: Strategy | None = None
    supersede: bool = False


class NewRequest(Shape, frozen=True, kw_only=True):
    """A promotion to be reviewed."""

    ref: RefText
    to: NameText
    reason: Reason
    ticket: Annotated[str, Meta(max_length=500)] | None = None


class NewRollback(Shape, frozen=True, kw_only=True):
    """A model to take back, to its last healthy version or to a named one, in a stage (production, when
    neither is said) or behind an alias that an endpoint follows."""

    model: ModelText
    reason: Reason
    to: RefText | None = None
    stage: NameText | None = None
    alias: NameText | None = None
    incident: Annotated[str, Meta(max_length=500)] | None = None


class RollbackQuery(Shape, frozen=True, kw_only=True):
    """What a rollback would go back in, and to; as `NewRollback`."""

    model: ModelText
    to: RefText | None = None
    stage: NameText | None = None
    alias: NameText | None = None


class NewReview(Shape, frozen=True, kw_only=True):
    """A reviewer's word: a vote, ticked items of checklists, gates taken upon oneself."""

    vote: Vote
    comment: Annotated[str, Meta(max_length=values.TEXT_MAX)] = ""
    checks: dict[Annotated[str, Meta(max_length=500)], Annotated[str, Meta(max_length=2_000)]] = {}
    waive: tuple[Annotated[str, Meta(max_length=300)], ...] = ()


class Because(Shape, frozen=True, kw_only=True):
    """Why."""

    reason: Reason


class NewEndpoint(Shape, frozen=True, kw_only=True):
    """An endpoint to create or change. It follows a stage (production, when neither is said) or an alias."""

    model: ModelText
    stage: NameText | None = None
    alias: NameText | None = None
    key_header: Annotated[str, Meta(max_length=100)] | None = None
    key_cookie: Annotated[str, Meta(max_length=100)] | None = None
    key_field: Annotated[str, Meta(max_length=200, description="A JSON pointer.")] | None = None
    slow_ms: Annotated[float, Meta(gt=0, le=3_600_000)] = 250.0
    lease_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    log_ppm: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    privacy: Privacy = KEEP_ALL
    load: Loading = Loading.ALWAYS
    schema: Strictness = Strictness.STRICT
    plan: Plan = CANARY


class NewPrincipal(Shape, frozen=True, kw_only=True):
    """A person or program."""

    name: NameText
    kind: PrincipalKind = PrincipalKind.USER


class NewTokenBody(Shape, frozen=True, kw_only=True):
    """A token to make, for oneself when no principal is named."""

    label: Annotated[str, Meta(max_length=200)]
    principal: NameText | None = None
    expires_s: Annotated[float, Meta(gt=0, le=366 * 86_400)] | None = None
    verbs: tuple[Verb, ...] | None = None
    project: NameText | None = None


class NewGrant(Shape, frozen=True, kw_only=True):
    """A role to give or to deny, on a model, a project, or everywhere."""

    principal: NameText
    role: Role
    project: NameText | None = None
    model: NameText | None = None
    effect: Effect = Effect.ALLOW
