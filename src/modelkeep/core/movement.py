"""What a movement of traffic is, as data: an endpoint, its rollout, what was seen of it, what has changed.

How a rollout gets from one state to the next is decided in `rollout`; what gateways are to do for it and what
they say of it is in `rollout_routes`. Nothing is decided here.
"""

import re
from datetime import datetime
from enum import StrEnum

from msgspec import Struct, field

from modelkeep.core import errors, values
from modelkeep.core.evidence import Evidence
from modelkeep.core.judgement import Judgement
from modelkeep.core.observation import BandCounts, Labelled, PairCounts, SideCounts, Tick, VersionPhase
from modelkeep.core.plan import CANARY, Plan, Step
from modelkeep.core.recording import KEEP_ALL, Privacy, check_privacy
from modelkeep.core.routing import WHOLE_PPM, Epoch, Loading, Strictness
from modelkeep.core.values import Actor, Digest, ModelName
from modelkeep.core.winner import WinnerReport

_COOKIE = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_POINTER = re.compile(r"(?=.{1,200}$)(/([^/~\x00-\x1f]|~[01])*)+")
SLOW_MS_MAX = 3_600_000.0
"""An answer that takes an hour is slow for everybody."""
WORKERS_MAX = 64
"""Processes of one version on one gateway: as many as a large machine has cores to spare."""
LEASE_S_MIN, LEASE_S_MAX = 3.0, 86_400.0
"""A lease outlives a few reports that are lost, and ends within a day."""


class Rift(StrEnum):
    """How what an endpoint follows and what it serves can be apart.

    apart      the stage or alias names another version than is served
    vacant     the alias is gone, and the endpoint goes on serving the last
    withdrawn  it names a version that was taken back
    lost       the endpoint names a rollout that is not under way
    outrun     a gateway has a newer route than the registry, and would ignore it
    deaf       a gateway has the present table and serves something else
    """

    APART = "apart"
    VACANT = "vacant"
    WITHDRAWN = "withdrawn"
    LOST = "lost"
    OUTRUN = "outrun"
    DEAF = "deaf"


class Disagreement(Struct, frozen=True, kw_only=True):
    """What the reconciler found at an endpoint and has not seen mended yet: `why` in words, `mend` what it
    did about it. `pointed` and `served` are version numbers."""

    rift: Rift
    mend: str
    why: str
    pointed: int | None = None
    served: int | None = None
    since: datetime


class Endpoint(Struct, frozen=True, kw_only=True):
    """A stable name that callers use; it follows a stage of one model, or an alias.

    `stable` and `previous` are version numbers; `epoch` is the age of its route. `key_header` names the
    request header with the caller's key, `key_cookie` a cookie, `key_field` (a JSON pointer) a place
    in the body; the first that is there counts, and without any the connection's address is the key.
    `workers` is how many processes each of its versions has on a gateway.
    """

    id: str
    name: str
    model: ModelName
    stage: str | None = None
    """The stage that it follows; None where it follows an alias."""
    alias: str | None = None
    key_header: str | None = None
    key_cookie: str | None = None
    key_field: str | None = None
    slow_ms: float = 250.0
    lease_s: float = 0.0
    workers: int = 1
    log_ppm: int = 0
    """Share of the answers that gateways keep in their prediction logs, as `privacy` lets them."""
    privacy: Privacy = KEEP_ALL
    load: Loading = Loading.ALWAYS
    schema: Strictness = Strictness.STRICT
    """What becomes of requests that miss the signature."""
    plan: Plan = CANARY
    stable: int | None = None
    previous: int | None = None
    epoch: Epoch = Epoch(1, 0)
    rollout: str | None = None
    disagreement: Disagreement | None = None
    created_at: datetime
    created_by: str

    @property
    def pointer(self) -> str:
        """What it follows, as a reference names it behind its model: `#production`, `@champion`."""
        return pointer(self.stage, self.alias)

    @property
    def follows(self) -> str:
        """The same with the model: `churn#production`."""
        return f"{self.model}{self.pointer}"


def pointer(stage: str | None, alias: str | None) -> str:
    """What an endpoint follows, as a reference names it behind its model."""
    return f"@{alias}" if alias is not None else f"#{stage}"


def check_endpoint(
    slow_ms: float, lease_s: float, workers: int = 1, log_ppm: int = 0, privacy: Privacy = KEEP_ALL
) -> None:
    """Refuse settings of an endpoint that mean nothing.

    Raises:
        Invalid: names the setting and what it may be.
    """
    if not 0 < slow_ms <= SLOW_MS_MAX:
        raise errors.Invalid("'slow_ms' is a number of milliseconds above 0, up to an hour.", field="slow_ms")
    if lease_s != 0 and not LEASE_S_MIN <= lease_s <= LEASE_S_MAX:
        raise errors.Invalid(
            f"'lease_s' is 0 (never) or from {LEASE_S_MIN:.0f} to {LEASE_S_MAX:.0f} seconds.", field="lease_s"
        )
    if not 0 <= log_ppm <= WHOLE_PPM:
        raise errors.Invalid(
            f"'log_ppm' is the share of answers to log, from 0 to {WHOLE_PPM:,} ppm.", field="log_ppm"
        )
    check_privacy(privacy)
    if not 1 <= workers <= WORKERS_MAX:
        raise errors.Invalid(f"'workers' is a number of processes from 1 to {WORKERS_MAX}.", field="workers")


def check_keys(cookie: str | None, field: str | None) -> None:
    """Refuse names by which no caller's key could be found.

    Raises:
        Invalid: names the setting and what it may be.
    """
    if cookie is not None and not _COOKIE.fullmatch(cookie):
        raise errors.Invalid(f"{values.quoted(cookie, 60)} cannot be a cookie's name.", field="key_cookie")
    if field is not None and not _POINTER.fullmatch(field):
        raise errors.Invalid(
            "'key_field' is a JSON pointer into the body, such as /customer/id, of at most 200 characters.",
            field="key_field",
        )


class RolloutState(StrEnum):
    """Where a rollout stands."""

    PREPARING = "preparing"
    SHADOWING = "shadowing"
    PREVIEWING = "previewing"
    STEPPING = "stepping"
    ROLLING_BACK = "rolling_back"
    SUCCEEDED = "succeeded"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    CONCLUDED = "concluded"

    @property
    def finished(self) -> bool:
        return self is RolloutState.SUCCEEDED or self in WITHOUT_SUCCESS


WITHOUT_SUCCESS = frozenset(
    {
        RolloutState.ROLLED_BACK,
        RolloutState.FAILED,
        RolloutState.CANCELLED,
        RolloutState.SUPERSEDED,
        RolloutState.CONCLUDED,
    }
)
"""How a rollout ends whose candidate does not enter the stage."""


class Contender(Struct, frozen=True, kw_only=True):
    """A further version of an A/B test: its share, where its callers begin among all, and how it fares. `out`
    is why it was taken out while the others went on."""

    number: int
    semver: str
    digest: Digest
    weight_ppm: int
    from_ppm: int
    counts: SideCounts = field(default_factory=SideCounts)
    judgement: Judgement | None = None
    out: str | None = None


class Rollout(Struct, frozen=True, kw_only=True):
    """One movement of an endpoint from one version to another, with everything that was counted and
    concluded. Once it has succeeded, the stage or the alias that its endpoint follows names the candidate.

    `table` is the number of the first routing table that carries it. `labels` are what became known of
    predictions so far, `outputs` what was predicted. `step_since` is when the clock of the present state
    began to run: for a step, when the gateways had confirmed its weight. `requests_before` are the
    candidate's requests before the present step. `report` is what an A/B test came to, `pairs` what a
    shadow's answers to copies were, beside stable's. `others` are the further versions of an A/B test, and
    `out` is why the candidate was taken out of one while they went on. `ticks` were taken in, the last of
    which arrived at `ticks_until`.
    """

    id: str
    endpoint: str
    model: ModelName
    stage: str | None = None
    alias: str | None = None
    shielded: bool = False
    """Whether the alias shall be protected, where this rollout is the first to set it."""
    stable: int | None
    stable_digest: Digest | None
    stable_semver: str | None
    candidate: int
    candidate_digest: Digest
    candidate_semver: str
    plan: Plan
    salt: str
    state: RolloutState = RolloutState.PREPARING
    step: int = 0
    epoch: Epoch
    table: int = 0
    weight_ppm: int = 0
    started_at: datetime
    started_by: Actor
    reason: str
    request: str | None = None
    step_since: datetime | None = None
    paused: str | None = None
    held: str | None = None
    finished_at: datetime | None = None
    outcome: str | None = None
    evidence: Evidence = field(default_factory=Evidence)
    candidate_counts: SideCounts = field(default_factory=SideCounts)
    stable_counts: SideCounts = field(default_factory=SideCounts)
    requests_before: int = 0
    ticks: int = 0
    ticks_until: datetime | None = None
    notes: tuple[str, ...] = ()
    judgement: Judgement | None = None
    report: WinnerReport | None = None
    pairs: PairCounts | None = None
    labels: Labelled | None = None
    outputs: BandCounts | None = None
    note: str | None = None
    """Why it goes another way than was asked for, where it does."""
    others: tuple[Contender, ...] = ()
    out: str | None = None

    @property
    def others_ppm(self) -> tuple[int, ...]:
        """The shares that the further versions shall have now; none where no route names them."""
        if self.state.finished or self.state is RolloutState.ROLLING_BACK:
            return ()
        stepping = self.state is RolloutState.STEPPING
        return tuple(other.weight_ppm if stepping and not other.out else 0 for other in self.others)

    @property
    def stable_from_ppm(self) -> int:
        """Where stable's own callers begin in a test of several versions, whoever was taken out of it; 0
        elsewhere."""
        if self.state is not RolloutState.STEPPING:
            return 0
        return max((other.from_ppm + other.weight_ppm for other in self.others), default=0)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The versions that are tried: the candidate, and the further ones of an A/B test."""
        return (self.candidate, *(other.number for other in self.others))

    @property
    def lost(self) -> tuple[int, ...]:
        """The versions whose callers were taken from them: all of a rollout that is taken back, and whoever
        was taken out of a test."""
        if self.state is RolloutState.ROLLING_BACK:
            return self.numbers
        return tuple(number for place, number in enumerate(self.numbers) if place not in self.in_test)

    @property
    def in_test(self) -> tuple[int, ...]:
        """Who is tried still: 0 is the candidate, from 1 on the others."""
        outs = (self.out, *(other.out for other in self.others))
        return tuple(place for place, out in enumerate(outs) if out is None)

    @property
    def current(self) -> Step:
        return self.plan.steps[self.step]

    @property
    def last(self) -> bool:
        """Whether this step is the plan's last."""
        return self.step == len(self.plan.steps) - 1


class Sight(Struct, frozen=True, kw_only=True):
    """A version's worst phase among the gateways that answer (None: one does not say), and its text."""

    phase: VersionPhase | None = None
    error: str | None = None


class Observed(Struct, frozen=True, kw_only=True):
    """What was learned since the last look.

    `applied` is the oldest epoch among the gateways that answer now and split the traffic as wanted (None: no
    gateway answers). `phase` is the candidate's worst phase among them, `error` its text. `rolled_back` is
    set when a gateway took the candidate back by itself, with why. `ticks` are in order of arrival, each
    once. `others` are the further versions of an A/B test, in order.
    """

    applied: Epoch | None = None
    phase: VersionPhase | None = None
    error: str | None = None
    rolled_back: str | None = None
    rolled_back_epoch: Epoch | None = None
    ticks: tuple[Tick, ...] = ()
    others: tuple[Sight, ...] = ()

    def sight(self, place: int) -> Sight:
        """The candidate (0), or one of the others (from 1 on)."""
        if place == 0:
            return Sight(phase=self.phase, error=self.error)
        return self.others[place - 1] if place <= len(self.others) else Sight()


class Change(StrEnum):
    """What an `advance` brought about; the service makes one event of it."""

    STEPPED = "stepped"
    HELD = "held"
    TAKEN_OUT = "taken_out"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    CONCLUDED = "concluded"


class Advanced(Struct, frozen=True, kw_only=True):
    """The rollout after a look, and what changed in a way that people and routes need to know."""

    rollout: Rollout
    change: Change | None = None
    why: str = ""


class Attempt(Struct, frozen=True, kw_only=True):
    """A rollout that ended without its candidate in the stage, or behind the alias: taken back, failed,
    cancelled, or superseded by another."""

    id: str
    endpoint: str
    stage: str | None = None
    alias: str | None = None
    number: int
    semver: str
    state: RolloutState
    started_at: datetime
    started_by: Actor
    finished_at: datetime
    outcome: str


def attempt_of(rollout: Rollout) -> Attempt | None:
    """What history tells of a rollout; None for one that goes on or succeeded."""
    if rollout.state not in WITHOUT_SUCCESS or rollout.finished_at is None:
        return None
    return Attempt(
        id=rollout.id,
        endpoint=rollout.endpoint,
        stage=rollout.stage,
        alias=rollout.alias,
        number=rollout.candidate,
        semver=rollout.candidate_semver,
        state=rollout.state,
        started_at=rollout.started_at,
        started_by=rollout.started_by,
        finished_at=rollout.finished_at,
        outcome=rollout.outcome or "",
    )
