"""What the server answers, where no record of the registry is the answer itself: plans, reports, and what a
verb has done.

The services make these shapes and the client reads them, so they stand here once. They hold no behaviour but
how they are shown, and nothing is decided here; pages of lists are each side's own.
"""

from datetime import datetime
from enum import StrEnum

from msgspec import Struct

from modelkeep.core.access import AuthMode, Grant, TokenInfo, Verb
from modelkeep.core.catalog import ModelVersion, RegisteredModel, StoredBlob
from modelkeep.core.events import ChainedEvent, ChainReport, Event, KnownHead
from modelkeep.core.forecast import ContestOutlook, Flow, Outlook
from modelkeep.core.label_outlook import LabelsOutlook
from modelkeep.core.observation import FieldMisses, VersionPhase
from modelkeep.core.plan import Plan
from modelkeep.core.policy import GateResult, Policy
from modelkeep.core.promotion import Interval, PromotionRequest
from modelkeep.core.rollout import Attempt, Endpoint, Evidence, Judgement, Rollout
from modelkeep.core.routing import Epoch
from modelkeep.core.semver import Bump
from modelkeep.core.values import Actor, Digest, ModelName
from modelkeep.core.winner import WinnerReport


class Done(Struct, frozen=True):
    """The answer of a write that has nothing else to say."""

    done: bool = True


class Health(Struct, frozen=True):
    """Whether the server is alive, and its release."""

    status: str
    version: str


# ---------------------------------------------------------------------------------------------------- catalog


class UploadPlan(Struct, frozen=True, kw_only=True):
    """Where the bytes of one announced file go: `offset` is how many have come, `present` that none are
    missing."""

    draft: str
    path: str
    upload_id: str
    digest: Digest
    size_bytes: int
    offset: int = 0
    present: bool = False


class Registration(Struct, frozen=True, kw_only=True):
    """What a draft ended in. `created` False: this version was there before, with the same bytes and nothing
    new.

    `reasons` are the sentences behind the version's number. `same_identity` are other versions of the model,
    the highest first, that were made of the same code, data, parameters and environment.
    """

    version: ModelVersion
    created: bool
    reasons: tuple[str, ...]
    same_identity: tuple[str, ...] = ()


class Preview(Struct, frozen=True, kw_only=True):
    """What registering would come to. `created` False: it is that version again.

    `bump` is the inferred one, `parent` the number of the version that the new one is compared with.
    `to_send` are the paths whose bytes are not stored yet, at most a page of them, and `to_send_bytes` the
    size of all. `same_identity` are as in `Registration`.
    """

    version: str
    created: bool
    new_model: bool
    bump: Bump
    reasons: tuple[str, ...]
    parent: int | None
    files: int
    size_bytes: int
    to_send: tuple[str, ...]
    to_send_bytes: int
    same_identity: tuple[str, ...] = ()


class FileProblem(Struct, frozen=True, kw_only=True):
    """A file that is missing, or has other bytes (`actual` is their digest), in the versions that name it,
    and as the artifacts that runs and logged models keep (`runs:/<id>/<path>`).

    A `path` of None is the list of files itself: what is stored of it is not what was digested.
    """

    digest: Digest
    path: str | None
    versions: tuple[str, ...]
    problem: str
    actual: Digest | None = None
    artifacts: tuple[str, ...] = ()


class VerifyReport(Struct, frozen=True, kw_only=True):
    """What a version's bytes were found to be. `ok` is the whole answer."""

    version: str
    digest: Digest
    ok: bool
    files: int
    size_bytes: int
    problems: tuple[FileProblem, ...] = ()


class Altered(Struct, frozen=True, kw_only=True):
    """A stored row that is not what the events say.

    `where` is the version (or model) it is about, `what` the table, the row in it and the column:
    `version_metrics[auc].value`. `recorded` is what the events vouch for, `found` what stands there; None is
    no row, or no value.
    """

    where: str
    what: str
    recorded: str | None
    found: str | None


class FsckReport(Struct, frozen=True, kw_only=True):
    """What everything was found to be.

    `missing` and `damaged` count contents, `dangling` the blobs that no version and no open draft names: room
    that could be given back, and no fault. `ok` is that no version has a problem and nothing was altered:
    no stored row says something else than the events do.
    """

    ok: bool
    versions: int
    blobs: int
    size_bytes: int
    missing: int
    damaged: int
    problems: tuple[FileProblem, ...] = ()
    dangling: int = 0
    dangling_bytes: int = 0
    dangling_blobs: tuple[StoredBlob, ...] = ()
    altered: tuple[Altered, ...] = ()


# -------------------------------------------------------------------------------------------------- promotion


class Ruling(StrEnum):
    """What the gates and the people say together."""

    GRANTED = "granted"
    AWAITING_APPROVAL = "awaiting_approval"
    DENIED = "denied"


class GateReport(Struct, frozen=True, kw_only=True):
    """Whether a version may enter a stage now, and why.

    `obstacle` is what stands in the way before any gate is asked: no such move, or a tombstone. `next` is the
    command that gets one further. Where an endpoint follows the stage, `plan` is how its traffic would move,
    and `plan_from` who says so: `policy` or `endpoint`.
    """

    version: str
    number: int
    stage: str
    ruling: Ruling
    gates: tuple[GateResult, ...]
    policy: str
    policy_version: int
    policy_digest: str
    incumbent: int | None
    request: str | None
    approved_by: tuple[str, ...]
    approvals_missing: int
    approvals_roles: tuple[str, ...]
    obstacle: str | None
    next: str
    endpoint: str | None = None
    plan: Plan | None = None
    plan_from: str | None = None


class PromotionKind(StrEnum):
    """What a granted promotion has brought about."""

    MOVED = "moved"
    ROLLOUT = "rollout"


class Promotion(Struct, frozen=True, kw_only=True):
    """A granted promotion. `moved`: the version is in the stage. `rollout`: its traffic has begun to move,
    and the stage follows when that has succeeded.
    """

    kind: PromotionKind
    version: ModelVersion
    stage: str
    displaced: int | None = None
    rollout: str | None = None
    endpoint: str | None = None
    request: str | None = None
    gates: tuple[GateResult, ...] = ()
    interval: Interval | None = None
    plan: Plan | None = None
    note: str | None = None


class AliasMove(RegisteredModel, frozen=True, kw_only=True):
    """A model after one of its aliases was set. `moved`: the alias points there. `rollout`: an endpoint
    follows the alias, its traffic has begun to move, and the alias follows when that has succeeded.
    """

    kind: PromotionKind = PromotionKind.MOVED
    rollout: str | None = None
    endpoint: str | None = None
    plan: Plan | None = None


class Rollback(Struct, frozen=True, kw_only=True):
    """A rollback that was made.

    `moved`: the stage (or the alias) went back from `from_number` to `version`, at once. `rollout`: a rollout
    was under way and `from_number` is the candidate whose traffic was taken back; `version` is who stayed.
    """

    kind: PromotionKind
    stage: str | None
    version: ModelVersion | None
    from_number: int | None
    from_semver: str | None
    tombstoned: bool
    rollout: str | None = None
    endpoint: str | None = None
    incident: str | None = None
    interval: Interval | None = None
    alias: str | None = None


class PolicyRecord(Struct, frozen=True, kw_only=True):
    """The policy that holds for a scope.

    `scope` is what was asked for and `source` where the policy was set; `version` 0 is the one Modelkeep
    begins with, which nobody set.
    """

    scope: str
    source: str
    version: int
    digest: Digest
    policy: Policy
    set_at: datetime | None = None
    set_by: str | None = None


class History(Struct, frozen=True, kw_only=True):
    """Who stood where, the latest first; the latest rollouts that ended without success; and the model's
    latest events for whoever may read the audit log.
    """

    model: ModelName
    intervals: tuple[Interval, ...]
    attempts: tuple[Attempt, ...] = ()
    events: tuple[ChainedEvent, ...] = ()


class WhatWas(Struct, frozen=True, kw_only=True):
    """What stood in a stage at a moment, and why.

    `sequence` is the last event up to that moment, and so what "then" means exactly; `event` is the one that
    brought the version there, with every gate's answer in its body.
    """

    version: ModelVersion
    stage: str
    at: datetime
    sequence: int
    interval: Interval
    event: Event
    gates: tuple[GateResult, ...] = ()
    approved_by: tuple[str, ...] = ()
    request: PromotionRequest | None = None


# ---------------------------------------------------------------------------------------------------- rollout


class GatewayStatus(Struct, frozen=True, kw_only=True):
    """What one gateway does for an endpoint, as far as it has told.

    `in_step` says that it obeys the newest route; `phases` are of the versions that this route names,
    by semver, and `misses` what requests missed of the signatures of those.
    """

    gateway: str
    url: str
    seen_at: datetime
    answering: bool
    epoch: Epoch | None
    candidate_ppm: int
    in_step: bool
    phases: dict[str, VersionPhase]
    misses: FieldMisses = FieldMisses()


class RolloutStatus(Struct, frozen=True, kw_only=True):
    """How an endpoint's traffic stands: the rollout under way, or else the last one."""

    endpoint: Endpoint
    stable: str | None
    previous: str | None
    rollout: Rollout | None
    active: bool
    gateways: tuple[GatewayStatus, ...]


class Measured(Struct, frozen=True, kw_only=True):
    """What gateways counted for an endpoint in its latest rollouts: for so long, both sides together, and of
    stable alone what its callers met with."""

    rollouts: tuple[str, ...]
    from_at: datetime
    to_at: datetime
    span_s: float
    requests: int
    callers: int
    stable_callers: int
    stable_failed: int
    stable_failed_first: int
    stable_slow: int
    stable_labelled: int = 0
    stable_wrong: int = 0


class RolloutForecast(Struct, frozen=True, kw_only=True):
    """What moving an endpoint to a version, or to any other one, may be expected to look like.

    `flow` is the traffic that was reckoned with; `measured` what of it was counted, None for nothing.
    `given` and `assumed` name the figures that were said and those that nobody knows. In `outlook` each
    regression's `formula_s` and the promised `alpha` are computed; all else there is simulated, from its
    seed. Of an A/B test of several versions it is that of the candidate beside stable.
    """

    endpoint: str
    version: str | None
    stable: str | None
    stage: str | None
    plan: Plan
    flow: Flow
    measured: Measured | None
    given: tuple[str, ...]
    assumed: tuple[str, ...]
    outlook: Outlook
    labels: LabelsOutlook | None = None
    """What is to be expected of labels, by formula; None where the plan has none judged."""
    contest: ContestOutlook | None = None
    """What is to be expected of each version of an A/B test; None elsewhere."""
    alias: str | None = None


class Explanation(Struct, frozen=True, kw_only=True):
    """Evidence recomputed from the stored counts; `equal` says whether it agrees to the last bit."""

    rollout: str
    ticks: int
    recomputed: Evidence
    equal: bool
    judgement: Judgement
    report: WinnerReport | None = None
    """Of an A/B test: what it has come to by the recomputed evidence."""


# ------------------------------------------------------------------------------------------- access and audit


class WhoAmI(Struct, frozen=True, kw_only=True):
    """Who the server takes you for, and what you hold."""

    actor: Actor
    mode: AuthMode
    owner: bool
    grants: tuple[Grant, ...]
    verbs: tuple[Verb, ...] | None
    project: str | None


class NewToken(Struct, frozen=True, kw_only=True):
    """A token just made; `secret` is shown this once."""

    info: TokenInfo
    secret: str

    def __repr__(self) -> str:
        return f"NewToken(info={self.info!r}, secret='***')"


class EventPage(Struct, frozen=True, kw_only=True):
    """A page of the log; `next_after` continues it in the direction it was read."""

    items: tuple[ChainedEvent, ...]
    next_after: int | None = None


class Verification(Struct, frozen=True, kw_only=True):
    """The whole audit log was walked. Keep its `head` elsewhere and hand it to the next walk."""

    intact: bool
    report: ChainReport

    @property
    def head(self) -> str:
        """`SEQ:HASH`: the last event's number and link."""
        return str(KnownHead(self.report.events, self.report.head))
