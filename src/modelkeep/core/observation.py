"""What a gateway saw: the counts and states that flow back to the control plane.

Counts are per tick and per side of one endpoint. The unit that rollouts are judged by is the caller, because
callers are what is split: besides requests a tick counts the callers seen for the first time in this rollout
(on either side), those of them whose very first request failed, and those who failed (or were answered
slowly) for the first time on either side. A tick is closed once and numbered, so that a report may be sent
twice and is counted once. This file does not judge.
"""

from datetime import datetime
from enum import StrEnum

from msgspec import Struct

from modelkeep.core.routing import Epoch
from modelkeep.core.values import Digest

TICKS_PER_REPORT_MAX = 120
"""Ticks that one report carries; older unsent ones are merged, never dropped."""
CALLERS_TRACKED_MAX = 200_000
"""Distinct callers remembered per rollout. Past that, new callers are no longer counted as first-time ones,
which costs power and never validity."""


class SideCounts(Struct, frozen=True, kw_only=True):
    """One side of one endpoint during one tick.

    `errors` are answers the version is to blame for (5xx, crash, time-out, output that breaks its own
    signature); `refused` are the caller's own faults (4xx) and never count against a version.
    """

    requests: int = 0
    errors: int = 0
    slow: int = 0
    refused: int = 0
    schema_violations: int = 0
    crashes: int = 0
    new_callers: int = 0
    new_callers_failed: int = 0
    callers_first_error: int = 0
    callers_first_slow: int = 0
    duration_ms_sum: float = 0.0
    duration_ms_max: float = 0.0

    def plus(self, other: "SideCounts") -> "SideCounts":
        """The counts of two spans together."""
        return SideCounts(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            slow=self.slow + other.slow,
            refused=self.refused + other.refused,
            schema_violations=self.schema_violations + other.schema_violations,
            crashes=self.crashes + other.crashes,
            new_callers=self.new_callers + other.new_callers,
            new_callers_failed=self.new_callers_failed + other.new_callers_failed,
            callers_first_error=self.callers_first_error + other.callers_first_error,
            callers_first_slow=self.callers_first_slow + other.callers_first_slow,
            duration_ms_sum=self.duration_ms_sum + other.duration_ms_sum,
            duration_ms_max=max(self.duration_ms_max, other.duration_ms_max),
        )


class Tick(Struct, frozen=True, kw_only=True):
    """One closed span of one endpoint under one epoch.

    `number` rises by one within (gateway, endpoint, rollout). A new epoch closes the tick, so that the weight
    is one number for the whole span.
    """

    endpoint: str
    rollout: str | None
    epoch: Epoch
    number: int
    started_at: datetime
    ended_at: datetime
    candidate_ppm: int
    stable: SideCounts
    candidate: SideCounts
    errors_seen: tuple[str, ...] = ()
    """At most three error texts of the candidate, shortened: what a person wants to read first."""


class VersionPhase(StrEnum):
    """How far a version is on a gateway."""

    FETCHING = "fetching"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    DRAINING = "draining"


class VersionReport(Struct, frozen=True, kw_only=True):
    """One version on one gateway. `crashes` counts since it was first started there."""

    digest: Digest
    phase: VersionPhase
    crashes: int = 0
    error: str | None = None
    memory_bytes: int = 0


class LocalRollback(Struct, frozen=True, kw_only=True):
    """A rollback done by the gateway itself or on a local command; the control plane takes it over."""

    endpoint: str
    epoch: Epoch
    rollout: str | None
    cause: str
    actor: str
    at: datetime
    took_ms: float
    stable: Digest
    removed: Digest


class RouteState(Struct, frozen=True, kw_only=True):
    """What an endpoint really does on a gateway."""

    endpoint: str
    epoch: Epoch
    stable: Digest
    candidate: Digest | None
    candidate_ppm: int
    previous: Digest | None


class GatewayReport(Struct, frozen=True, kw_only=True):
    """What a gateway tells the control plane, about once a second. Sending it twice changes nothing."""

    gateway: str
    table: int
    url: str
    sent_at: datetime
    routes: tuple[RouteState, ...] = ()
    versions: tuple[VersionReport, ...] = ()
    ticks: tuple[Tick, ...] = ()
    rollbacks: tuple[LocalRollback, ...] = ()


class GatewayReply(Struct, frozen=True, kw_only=True):
    """The answer to a report: the highest tick taken in per (endpoint, rollout), which need not be sent
    again.
    """

    taken: tuple[tuple[str, str | None, int], ...] = ()
    rollbacks_taken: int = 0
