"""Which version answers which caller: the routing table, and the one function that reads it.

A table is immutable and replaced whole. Its routes carry an epoch (term, seq): the control plane raises
`seq`, a rollback raises `term`, and whoever sees an older epoch than it has ignores it, so that a late or
partitioned controller can never put weight back on a version that was taken away. This file does not move
traffic and does not judge.

Weights are integers in ppm and sum to exactly 1,000,000. A caller's bucket is a keyed hash of its key with
the rollout's salt: the same in every process and after every restart. The candidate holds the buckets [0,
ppm), so raising its weight moves callers one way only.
"""

import hashlib
from enum import StrEnum
from typing import NewType

from msgspec import Struct, structs

from modelkeep.core import codec, errors
from modelkeep.core.catalog import FileEntry
from modelkeep.core.quality import Quality
from modelkeep.core.recording import KEEP_ALL, Privacy
from modelkeep.core.shift import Shift
from modelkeep.core.signature import Signature
from modelkeep.core.values import Digest

VersionKey = NewType("VersionKey", str)
"""Names one served version: `version:` and 64 hexadecimal digits. Not a digest of content: two versions with
equal bytes have two keys."""

WHOLE_PPM = 1_000_000
"""All of the traffic."""
ROUTES_MAX = 10_000
"""Endpoints of one table."""
OTHERS_MAX = 7
"""Further versions of one A/B test, beside candidate and stable: each is a process, and each more pair to
compare costs every pair some power."""
_KEY_DOMAIN = b"modelkeep served version 1\n"
"""Before what a key is taken of, so that it is never the digest of anything else."""


class Epoch(Struct, frozen=True, order=True):
    """The age of a route: compared by term first, then by sequence."""

    term: int
    seq: int


class VersionSpec(Struct, frozen=True, kw_only=True):
    """All that a gateway needs in order to fetch, verify, load and serve a version without asking anyone.

    `key` is what routes, messages and reports call it. Only `of` makes one; a gateway never derives it anew,
    so that a gateway and a control plane of different releases mean the same. `digest` is the content's, for
    people and for verification: several versions may share it.
    """

    key: VersionKey
    model: str
    number: int
    semver: str
    digest: Digest
    files: tuple[FileEntry, ...]
    signature: Signature | None = None
    runtime: str | None = None

    @staticmethod
    def of(
        *,
        model: str,
        number: int,
        semver: str,
        digest: Digest,
        files: tuple[FileEntry, ...],
        signature: Signature | None = None,
        runtime: str | None = None,
    ) -> "VersionSpec":
        """A version under its own key: that of all that makes it answer as it does, and under which name."""
        told = (model, number, semver, digest, signature, runtime)
        return VersionSpec(
            key=VersionKey(f"version:{hashlib.sha256(_KEY_DOMAIN + codec.canonical(told)).hexdigest()}"),
            model=model,
            number=number,
            semver=semver,
            digest=digest,
            files=files,
            signature=signature,
            runtime=runtime,
        )

    @property
    def label(self) -> str:
        """`churn:2.1.0`: what answers carry in their version header and metrics in their label."""
        return f"{self.model}:{self.semver}"


class Arm(Struct, frozen=True, kw_only=True):
    """A version and its share; among a route's others, of the callers whose buckets begin at `from_ppm`."""

    key: VersionKey
    weight_ppm: int
    from_ppm: int = 0


class Role(StrEnum):
    """What a version is to a route. `previous` has no weight; loaded, it makes a rollback one swap. `shadow`
    gets copies of requests and answers nobody. `other` is one of an A/B test's further versions."""

    STABLE = "stable"
    CANDIDATE = "candidate"
    OTHER = "other"
    PREVIOUS = "previous"
    SHADOW = "shadow"


class Loading(StrEnum):
    """When gateways load the versions of an endpoint: as soon as its route names them, or when somebody asks
    for them. What a rollout needs is loaded always."""

    ALWAYS = "always"
    ON_DEMAND = "on_demand"


class Strictness(StrEnum):
    """What becomes of a request that misses its version's signature. `strict`: it is refused. `lenient`: what
    can be converted is, unknown columns are left out, values out of their range or categories are passed on.
    """

    STRICT = "strict"
    LENIENT = "lenient"


class Route(Struct, frozen=True, kw_only=True):
    """How one endpoint's callers are split.

    `stable` answers whatever nobody else does. `others` are the further versions of an A/B test, in order,
    behind the candidate's callers; each keeps its place, so that one whose share sinks, or who is taken out
    (and then stands there as stable, with no share), sends its callers to stable and moves nobody else's.
    Stable's own callers begin at `stable_from_ppm`, behind them all: who comes before and is nobody's any
    more is set aside, answered by stable and counted on no side (0: nobody is).
    `rollout` names the movement under way. `key_header` names the request header that holds the caller's key,
    `key_cookie` a cookie, `key_field` (a JSON pointer) a place in the body; the first that is there counts.
    Without any the connection's address is the key. `preview`: the candidate may be asked under the
    endpoint's preview address, whatever its share. `slow_ms` is the response time above which an answer
    counts as slow. `lease_s`: when the gateway has not heard from its control plane for this long while the
    candidate has weight, it takes the candidate back by itself (0: never).
    """

    endpoint: str
    epoch: Epoch
    stable: VersionKey
    candidate: VersionKey | None = None
    candidate_ppm: int = 0
    previous: VersionKey | None = None
    salt: str = ""
    rollout: str | None = None
    preview: bool = False
    key_header: str | None = None
    key_cookie: str | None = None
    key_field: str | None = None
    slow_ms: float = 250.0
    lease_s: float = 0.0
    workers: int = 1
    """Processes of each version of this route."""
    schema: Strictness = Strictness.STRICT
    shadow: VersionKey | None = None
    shadow_ppm: int = 0
    """Share of the requests that stable answers of which the shadow gets a copy; outside the weights."""
    log_ppm: int = 0
    """Share of the requests that go to the gateway's prediction log, as `privacy` lets them."""
    privacy: Privacy = KEEP_ALL
    quality: Quality | None = None
    """How predictions under this route are held against labels that come later; None: they are not."""
    shift: Shift | None = None
    """How they are compared with stable's as they are made; None: they are not."""
    load: Loading = Loading.ALWAYS
    others: tuple[Arm, ...] = ()
    stable_from_ppm: int = 0

    @property
    def others_ppm(self) -> tuple[int, ...]:
        """The shares of the further versions."""
        return tuple(other.weight_ppm for other in self.others)

    @property
    def aside_ppm(self) -> int:
        """The share of the callers who are set aside: those of versions that were taken out of the test."""
        return max(0, self.stable_from_ppm - self.tried_ppm)

    @property
    def tried_ppm(self) -> int:
        """The share of the callers whom somebody else than stable answers."""
        return self.candidate_ppm + sum(self.others_ppm)

    @property
    def tried(self) -> frozenset[VersionKey]:
        """The versions that are tried beside stable."""
        keys = (self.candidate, *(other.key for other in self.others))
        return frozenset(key for key in keys if key is not None and key != self.stable)

    @property
    def may_sleep(self) -> bool:
        """Whether its versions need not be loaded while nobody asks for them: never while traffic moves, for
        then each has to be seen to work, or to be there for the way back."""
        moving = self.candidate or self.others or self.shadow or self.rollout or self.preview
        return self.load is Loading.ON_DEMAND and not moving

    @property
    def judged(self) -> bool:
        """Whether what is predicted under this route is evidence."""
        return self.quality is not None or self.shift is not None

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The versions with a share of the traffic; the shares sum to 1,000,000."""
        arms = [Arm(key=self.stable, weight_ppm=WHOLE_PPM - self.tried_ppm, from_ppm=self.tried_ppm)]
        if self.candidate is not None and self.candidate_ppm:
            arms.append(Arm(key=self.candidate, weight_ppm=self.candidate_ppm))
        return (*arms, *(other for other in self.others if other.weight_ppm))

    @property
    def keys(self) -> frozenset[VersionKey]:
        """All versions that have to be loaded for this route."""
        named = (self.stable, self.candidate, self.previous, self.shadow)
        return frozenset(key for key in named if key is not None) | self.tried


class RoutingTable(Struct, frozen=True, kw_only=True):
    """All routes of a gateway and the versions they name."""

    number: int
    routes: tuple[Route, ...] = ()
    versions: tuple[VersionSpec, ...] = ()

    def route(self, endpoint: str) -> Route | None:
        return next((route for route in self.routes if route.endpoint == endpoint), None)

    def version(self, key: VersionKey) -> VersionSpec:
        """Raises VersionNotFound when the table does not carry the version."""
        for spec in self.versions:
            if spec.key == key:
                return spec
        raise errors.VersionNotFound(f"The routing table names the version {key} but does not describe it.")


EMPTY_TABLE = RoutingTable(number=0)


def check_table(table: RoutingTable) -> RoutingTable:
    """Refuse a table that could not be obeyed.

    Raises:
        Invalid: a share outside 0..1,000,000, a share without a candidate or a shadow, an endpoint twice, an
        undescribed version, two versions under one key.
    """
    if len(table.routes) > ROUTES_MAX:
        raise errors.LimitExceeded(f"A routing table has at most {ROUTES_MAX:,} routes.")
    known = {spec.key for spec in table.versions}
    if len(known) < len(table.versions):
        raise errors.Invalid("Two versions of the routing table have the same key.")
    seen: set[str] = set()
    for route in table.routes:
        if not 0 <= route.candidate_ppm <= WHOLE_PPM:
            raise errors.Invalid(
                f"The candidate's share on {route.endpoint!r} is not within 0 and 1,000,000 ppm."
            )
        if route.candidate is None and route.candidate_ppm:
            raise errors.Invalid(
                f"The route {route.endpoint!r} gives a share to a candidate it does not name."
            )
        if not 0 <= route.shadow_ppm <= WHOLE_PPM or not 0 <= route.log_ppm <= WHOLE_PPM:
            raise errors.Invalid(
                f"The shares of shadow and log on {route.endpoint!r} are not within 0 and 1,000,000 ppm."
            )
        if route.shadow is None and route.shadow_ppm:
            raise errors.Invalid(f"The route {route.endpoint!r} gives a share to a shadow it does not name.")
        _check_others(route)
        if route.endpoint in seen:
            raise errors.Invalid(f"The endpoint {route.endpoint!r} stands twice in one table.")
        if not route.keys <= known:
            raise errors.Invalid(
                f"The route {route.endpoint!r} names a version that the table does not describe."
            )
        seen.add(route.endpoint)
    return table


def _check_others(route: Route) -> None:
    """Refuse places that overlap: a caller would have two versions. Raises Invalid."""
    if len(route.others) > OTHERS_MAX:
        raise errors.LimitExceeded(f"A route has at most {OTHERS_MAX} versions beside candidate and stable.")
    free = route.candidate_ppm
    for other in route.others:
        if other.weight_ppm < 0 or other.from_ppm < free or other.from_ppm + other.weight_ppm > WHOLE_PPM:
            raise errors.Invalid(
                f"The shares of the versions on {route.endpoint!r} overlap, or are more than 1,000,000 ppm."
            )
        free = other.from_ppm + other.weight_ppm
    if route.stable_from_ppm and not free <= route.stable_from_ppm <= WHOLE_PPM:
        raise errors.Invalid(f"On {route.endpoint!r}, stable's own callers begin where others have theirs.")


def bucket(salt: str, key: bytes) -> int:
    """The caller's place in 0..999,999.

    BLAKE2b keyed with the salt (RFC 7693): uniform, not steerable by callers who do not know the salt, and
    the same on every machine. The bias of taking 64 bits modulo a million is below 1e-13.
    """
    digest = hashlib.blake2b(key, digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "big") % WHOLE_PPM


STABLE_PLACE, CANDIDATE_PLACE = 0, 1


def place(route: Route, key: bytes) -> int:
    """Whom a caller is answered by: 0 is stable, 1 the candidate, 2 and above are the others in order. The
    same key gets the same place for as long as weights and salt stand."""
    if not route.candidate_ppm and not route.others:
        return STABLE_PLACE
    if route.candidate_ppm >= WHOLE_PPM:
        return CANDIDATE_PLACE
    at = bucket(route.salt, key)
    if at < route.candidate_ppm:
        return CANDIDATE_PLACE
    for number, other in enumerate(route.others, start=2):
        if other.from_ppm <= at < other.from_ppm + other.weight_ppm:
            return number
    return STABLE_PLACE


def set_aside(route: Route, key: bytes) -> bool:
    """Whether a caller was on a version that was taken out of the test. Stable answers, and the caller counts
    on no side: who had trouble there has no first trouble left, so stable would look better than it is."""
    if not route.aside_ppm or place(route, key) != STABLE_PLACE:
        return False
    return bucket(route.salt, key) < route.stable_from_ppm


def role_at(number: int) -> Role:
    """What whoever stands at a place is to the route."""
    return (Role.STABLE, Role.CANDIDATE, Role.OTHER)[min(number, 2)]


def rolled_back(route: Route) -> Route:
    """The route after a rollback: needs nothing but the route itself.

    With a candidate (or others) under way the stable version keeps everything. Without one the previous
    version, kept loaded for this, becomes the stable one. The term rises, so that nothing older can undo it.

    Raises:
        NoRollbackTarget: there is neither a candidate nor a previous version.
    """
    epoch = Epoch(route.epoch.term + 1, 0)
    # Nothing of a movement stays: neither its weights nor its shadow.
    settled = structs.replace(
        route,
        epoch=epoch,
        candidate=None,
        candidate_ppm=0,
        preview=False,
        shadow=None,
        shadow_ppm=0,
        rollout=None,
        quality=None,
        shift=None,
        others=(),
        stable_from_ppm=0,
    )
    if route.candidate is not None or route.others:
        return settled
    if route.previous is None:
        raise errors.NoRollbackTarget(
            f"The endpoint {route.endpoint!r} has no former version loaded; roll back in the registry: "
            "modelkeep rollback MODEL --to VERSION -m WHY."
        )
    return structs.replace(settled, stable=route.previous, previous=None)
