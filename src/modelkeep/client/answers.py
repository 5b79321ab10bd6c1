"""What the server answers, where the core has no shape for it already: pages, reports, and what a verb has
done.

The client may not know the services that make these answers, so the shapes stand here once more; a test
compares each with the operation that answers it, field by field. They hold no behaviour but how a notebook
shows them.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

from msgspec import Struct

from modelkeep.core.access import Grant, TokenInfo, Verb
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import ChainedEvent, ChainReport, Event, KnownHead
from modelkeep.core.forecast import Flow, Outlook
from modelkeep.core.observation import VersionPhase
from modelkeep.core.plan import Plan
from modelkeep.core.policy import GateResult, Policy
from modelkeep.core.promotion import Interval, PromotionRequest
from modelkeep.core.rollout import Attempt, Endpoint, Evidence, Judgement, Rollout
from modelkeep.core.routing import Epoch
from modelkeep.core.semver import Bump
from modelkeep.core.values import Actor, Digest, ModelName

T = TypeVar("T")


class Page(Struct, Generic[T], frozen=True, kw_only=True):
    """One page of a list."""

    items: tuple[T, ...]
    next_page_token: str | None = None


class Listing(Generic[T]):
    """A list on the server, fetched page by page while it is walked. Each walk asks anew."""

    def __init__(self, fetch: Callable[[int | None, str | None], Page[T]], limit: int | None = None) -> None:
        self._fetch = fetch
        self._limit = limit

    def __iter__(self) -> Iterator[T]:
        for page in self.pages():
            yield from page.items

    def pages(self) -> Iterator[Page[T]]:
        """The pages as the server cuts them, until `limit` rows are there."""
        token: str | None = None
        left = self._limit
        while True:
            page = self._fetch(left if left is None else min(left, PAGE_ROWS), token)
            yield page
            token = page.next_page_token
            if left is not None:
                left -= len(page.items)
            if token is None or (left is not None and left <= 0):
                return

    def whole(self) -> Page[T]:
        """All rows up to the limit as one page, with where the rest begins."""
        items: list[T] = []
        token = None
        for page in self.pages():
            items += page.items
            token = page.next_page_token
        return Page(items=tuple(items), next_page_token=token)


PAGE_ROWS = 1_000
"""Rows that are asked for at a time, which is what the server gives at most."""


class Done(Struct, frozen=True):
    """The answer of a write that has nothing else to say."""

    done: bool = True


class Health(Struct, frozen=True):
    """Whether the server is alive, and its release."""

    status: str
    version: str


# ------------------------------------------------------------------------------------------------------------
# ---------------------------------------------------------------------------------------------------- catalog


class UploadPlan(Struct, frozen=True, kw_only=True):
    """Where the bytes of one announced file go: `offset` have come, `present` says that none are missing."""

    draft: str
    path: str
    upload_id: str
    digest: Digest
    size_bytes: int
    offset: int = 0
    present: bool = False


class Registration(Struct, frozen=True, kw_only=True):
    """A registration's end; `created` is False when an equal version was there already, which is then
    `version`.
    """

    version: ModelVersion
    created: bool
    reasons: tuple[str, ...]


class Preview(Struct, frozen=True, kw_only=True):
    """What registering would come to. `created` False: it is that version again.

    `bump` is the inferred one, `parent` the number of the version that the new one is compared with.
    `to_send` are the paths whose bytes are not stored yet, at most a page of them, and `to_send_bytes` the
    size of all.
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


class FileProblem(Struct, frozen=True, kw_only=True):
    """A file that is missing or has other bytes, and the versions that name it; without a path, a list of
    files.
    """

    digest: Digest
    path: str | None
    versions: tuple[str, ...]
    problem: str
    actual: Digest | None = None


class VerifyReport(Struct, frozen=True, kw_only=True):
    """What hashing the bytes of a version again has shown."""

    version: str
    digest: Digest
    ok: bool
    files: int
    size_bytes: int
    problems: tuple[FileProblem, ...] = ()


class StoredBlob(Struct, frozen=True, kw_only=True):
    """Bytes in the blob store."""

    digest: Digest
    size_bytes: int
    modified_at: datetime


class Altered(Struct, frozen=True, kw_only=True):
    """A stored row that is not what the audit log says: of which version or model, in which table, row and
    column; what is recorded (None: no such row) and what stands there.
    """

    where: str
    what: str
    recorded: str | None
    found: str | None


class FsckReport(Struct, frozen=True, kw_only=True):
    """What hashing everything again has shown. `dangling` blobs belong to no version, which is no fault;
    `altered` rows are.
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


class Pulled(Struct, frozen=True, kw_only=True):
    """What a pull has brought."""

    version: ModelVersion
    folder: str
    fetched: int
    already_there: int


# -----------------------------------------------------------------------------------------------------------
# promotion


class Ruling(StrEnum):
    """What the gates and the people say together."""

    GRANTED = "granted"
    AWAITING_APPROVAL = "awaiting_approval"
    DENIED = "denied"


class GateReport(Struct, frozen=True, kw_only=True):
    """Whether a version may enter a stage now, and why.

    `obstacle` stands in the way before any gate is asked; `next` is the command that gets one further.
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


class PromotionKind(StrEnum):
    """How a move is made: at once, or by a rollout of the endpoint that follows the stage."""

    MOVED = "moved"
    ROLLOUT = "rollout"


class Promotion(Struct, frozen=True, kw_only=True):
    """A granted promotion: the version is in the stage, or its traffic has begun to move."""

    kind: PromotionKind
    version: ModelVersion
    stage: str
    displaced: int | None = None
    rollout: str | None = None
    endpoint: str | None = None
    request: str | None = None
    gates: tuple[GateResult, ...] = ()
    interval: Interval | None = None


class Rollback(Struct, frozen=True, kw_only=True):
    """A rollback that was made: `version` is what the stage holds now, `from_number` what was taken back."""

    kind: PromotionKind
    stage: str
    version: ModelVersion | None
    from_number: int | None
    from_semver: str | None
    tombstoned: bool
    rollout: str | None = None
    endpoint: str | None = None
    incident: str | None = None
    interval: Interval | None = None


class PolicyRecord(Struct, frozen=True, kw_only=True):
    """The policy that holds for `scope`, and where it was set (`source`); `version` 0 nobody has set."""

    scope: str
    source: str
    version: int
    digest: Digest
    policy: Policy
    set_at: datetime | None = None
    set_by: str | None = None


class History(Struct, frozen=True, kw_only=True):
    """Who stood in which stage, the latest first; the latest rollouts that ended without success; and the
    model's latest events for who may read the log.
    """

    model: ModelName
    intervals: tuple[Interval, ...]
    attempts: tuple[Attempt, ...] = ()
    events: tuple[ChainedEvent, ...] = ()


class WhatWas(Struct, frozen=True, kw_only=True):
    """What stood in a stage at a moment, and why; `event` is the one that brought it there."""

    version: ModelVersion
    stage: str
    at: datetime
    sequence: int
    interval: Interval
    event: Event
    gates: tuple[GateResult, ...] = ()
    approved_by: tuple[str, ...] = ()
    request: PromotionRequest | None = None


# ----------------------------------------------------------------------------------------------------- access
# and audit


class AuthMode(StrEnum):
    """Whom the server believes."""

    LOCAL = "local"
    TOKEN = "token"


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
    """A page of the audit log; `next_after` continues it."""

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


# ------------------------------------------------------------------------------------------------------------
# ---------------------------------------------------------------------------------------------------- rollout


class GatewayStatus(Struct, frozen=True, kw_only=True):
    """What one gateway does for an endpoint, as far as it has told."""

    gateway: str
    url: str
    seen_at: datetime
    answering: bool
    epoch: Epoch | None
    candidate_ppm: int
    in_step: bool
    phases: dict[str, VersionPhase]


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


class RolloutForecast(Struct, frozen=True, kw_only=True):
    """What moving an endpoint to a version may be expected to look like; `given` and `assumed` name the
    figures that were not counted. In `outlook` each regression's `formula_s` and the promised `alpha` are
    computed; all else there is simulated, from its seed.
    """

    endpoint: str
    version: str
    stable: str | None
    stage: str
    plan: Plan
    flow: Flow
    measured: Measured | None
    given: tuple[str, ...]
    assumed: tuple[str, ...]
    outlook: Outlook


class Explanation(Struct, frozen=True, kw_only=True):
    """Evidence recomputed from the stored counts; `equal` says whether it agrees to the last bit."""

    rollout: str
    ticks: int
    recomputed: Evidence
    equal: bool
    judgement: Judgement
