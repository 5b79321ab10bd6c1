"""A small world to move traffic in: the real store and services, a clock, and gateways made of plain Python.

A `FakeGateway` obeys, counts and takes back by the data plane's own pure functions (`serving.moves`), and can
be slow, silent, deaf or killed; it starts no process and opens no socket. What this file does not do: decide
anything that the services or a real gateway would decide.
"""

from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from msgspec import structs

from modelkeep.adapters.webhook_secrets import WebhookSecrets
from modelkeep.controller import Controller
from modelkeep.core.access import AuthMode, Role
from modelkeep.core.answers import RolloutStatus
from modelkeep.core.observation import (
    GatewayReply,
    GatewayReport,
    LocalRollback,
    PairCounts,
    SideCounts,
    Tick,
    VersionPhase,
    VersionReport,
    state_of,
)
from modelkeep.core.policy import ALONE
from modelkeep.core.rollout import Endpoint, Plan, Rollout, RolloutState, Step
from modelkeep.core.routing import EMPTY_TABLE, WHOLE_PPM, Epoch, Route, RoutingTable, VersionKey
from modelkeep.ports import BlobStore
from modelkeep.service.access import Access
from modelkeep.service.act import SYSTEM_CONTEXT, Desk
from modelkeep.service.artifacts import Artifacts
from modelkeep.service.audit import Audit
from modelkeep.service.catalog import Catalog
from modelkeep.service.deliveries import Deliveries
from modelkeep.service.house import House
from modelkeep.service.imports import Imports
from modelkeep.service.logged_models import LoggedModels
from modelkeep.service.promotion import Promotions
from modelkeep.service.rollout import Rollouts
from modelkeep.service.sources import Sources
from modelkeep.service.tracking import Tracking
from modelkeep.service.traffic import Traffic
from modelkeep.service.webhooks import Webhooks
from modelkeep.serving import moves
from modelkeep.serving.ledger import first_number
from modelkeep.store.database import Database
from tests.fakes import MemoryBlobs
from tests.receivers import FakeReceiver
from tests.service.failing_store import BROKEN
from tests.service.promotion_world import CHURN, World

STEP_S = 10.0
PLAN = Plan(
    steps=tuple(Step(weight_ppm=w, min_s=STEP_S, max_s=600.0) for w in (100_000, 500_000, WHOLE_PPM)),
    prepare_s=120.0,
)
NAME = "churn"
OWNER = "tests"


class RolloutWorld(World):
    """Models, an owner, and the rollout column as the house has it."""

    def __init__(self, database: Database, blobs: BlobStore | None = None) -> None:
        super().__init__(database, ALONE)
        self.desk = Desk(database, self._clock)
        blobs = blobs or MemoryBlobs()
        catalog = Catalog(blobs, self.desk)
        artifacts = Artifacts(blobs)
        self.rollouts = Rollouts()
        self.promotions = Promotions(catalog=catalog, rollouts=self.rollouts, default_policy=ALONE)
        self.rollouts.promotions = self.promotions
        catalog.followers = self.rollouts
        access = Access(self.desk, AuthMode.LOCAL, b"0" * 32, "owner")
        webhooks = Webhooks(access, WebhookSecrets(b"0" * 32, Path("nowhere"), {}.get), FakeReceiver())
        self.house = House(
            desk=self.desk,
            blobs=blobs,
            access=access,
            audit=Audit(),
            tracking=Tracking(),
            logged_models=LoggedModels(),
            artifacts=artifacts,
            catalog=catalog,
            sources=Sources(blobs, catalog, artifacts),
            promotions=self.promotions,
            rollouts=self.rollouts,
            imports=Imports(blobs, catalog, artifacts),
            webhooks=webhooks,
            deliveries=Deliveries(webhooks),
        )
        self.person("gate", Role.GATEWAY)

    def _clock(self) -> datetime:
        """No two acts at the same time, as in life: ids sort by it."""
        self.now += timedelta(milliseconds=1)
        return self.now

    def made(self, name: str = NAME, **settings: object) -> Endpoint:
        """An endpoint on churn's production."""
        fields = {"plan": PLAN} | settings
        return self.do("owner", self.rollouts.put_endpoint, name, CHURN, **fields)

    def endpoint(self, name: str = NAME) -> Endpoint:  # type: ignore[override]  # the real one takes its place
        """The endpoint as it is stored."""
        return self.read("owner", self.rollouts.get_endpoint, name)

    def status(self, name: str = NAME) -> RolloutStatus:
        """How its traffic stands."""
        return self.read("owner", self.rollouts.status, name)

    def latest(self, name: str = NAME) -> Rollout:
        """The endpoint's latest rollout."""
        found = self.status(name).rollout
        assert found is not None
        return found

    def state(self, name: str = NAME) -> RolloutState:
        """Where its latest rollout stands."""
        return self.latest(name).state

    def key(self, semver: str) -> VersionKey:
        """What gateways call a version."""
        version = self.get(semver)
        return self.desk.read(SYSTEM_CONTEXT, Traffic().spec, version.model, version.number).key

    def look(self, owner: str = OWNER) -> None:
        """What a controller does in one round."""
        for rollout_id in self.desk.read(SYSTEM_CONTEXT, self.rollouts.active):
            self.desk.do(SYSTEM_CONTEXT, self.rollouts.reconcile, rollout_id, owner)

    def table_number(self) -> int:
        """The number of the routing table."""
        table = self.read("gate", self.rollouts.table_if_newer, -1)
        assert table is not None
        return table.number

    def turn(
        self, *gateways: "FakeGateway", seconds: float = 1.0, controller: Controller | None = None
    ) -> None:
        """Let time pass, let the gateways do as they are told and report, and look once."""
        self.later(seconds=seconds)
        for gateway in gateways:
            gateway.turn()
        if controller is not None:
            controller.look()
        else:
            self.look()

    def serving(self, semver: str = "1.0.0") -> "FakeGateway":
        """A gateway and an endpoint that serves a version in production."""
        self.promote(semver, by="owner")
        self.made()
        gateway = FakeGateway(self)
        self.turn(gateway)
        self.turn(gateway)
        assert self.state() is RolloutState.SUCCEEDED
        self.turn(gateway)
        return gateway

    def until(self, state: RolloutState, *gateways: "FakeGateway", turns: int = 60) -> Rollout:
        """Go on until the latest rollout has come so far."""
        for _ in range(turns):
            if self.state() is state:
                return self.latest()
            self.turn(*gateways, seconds=STEP_S / 4)
        raise AssertionError(f"it is still {self.state()}: {self.latest()}")


class FakeGateway:
    """A gateway in this process.

    Attributes:
        broken: versions that cannot be loaded, each with the error.
        failing: of a version's callers, how many of a hundred fail.
        silent: it can neither fetch nor report; what it would have sent waits.
        ahead: how far its wall clock is ahead of the registry's.
        steady: callers also come while nothing moves.
    """

    def __init__(self, world: RolloutWorld, name: str = "g1") -> None:
        self.world = world
        self.name = name
        self.live: RoutingTable = EMPTY_TABLE
        self.desired: RoutingTable = EMPTY_TABLE
        self.ready: set[VersionKey] = set()
        self.broken: dict[VersionKey, str] = {}
        self.failing: dict[VersionKey, int] = {}
        self.silent = False
        self.callers = 4_000
        self.steady = False
        self.waiting: list[Tick] = []
        self.rollbacks: list[LocalRollback] = []
        self.sent: list[GatewayReport] = []
        self.applied: list[RoutingTable] = []
        self.ahead = timedelta(0)
        self._number = first_number(self.now)

    @property
    def now(self) -> datetime:
        """By its own clock."""
        return self.world.now + self.ahead

    def turn(self) -> None:
        """Fetch, load, obey, serve, report."""
        self.poll()
        self.obey()
        self.serve()
        self.report()

    def poll(self) -> None:
        """Fetch the table."""
        if not self.silent:
            read = self.world.rollouts.table_if_newer
            with suppress(*BROKEN):
                self.desired = self.world.read("gate", read, self.desired.number) or self.desired

    def obey(self) -> None:
        """Load what is named, and swap the table in as far as it is loaded."""
        wanted = set(moves.needed(self.live, self.desired))
        self.ready = {key for key in wanted if key not in self.broken}
        self.live = moves.next_table(self.live, self.desired, self.ready)
        self.applied.append(self.live)

    def serve(self) -> None:
        """Answer many callers who were never here before, as the live routes split them."""
        for route in self.live.routes:
            if route.rollout is not None or self.steady:
                self.waiting.append(self._tick(route))

    def _tick(self, route: Route) -> Tick:
        self._number += 1
        shares = (route.candidate_ppm, *route.others_ppm)
        callers, *others = (self.callers * share // WHOLE_PPM for share in shares)
        aside = self.callers * route.aside_ppm // WHOLE_PPM
        return Tick(
            endpoint=route.endpoint,
            rollout=route.rollout,
            epoch=route.epoch,
            number=self._number,
            started_at=self.now,
            ended_at=self.now,
            candidate_ppm=route.candidate_ppm,
            stable=self._side(route.stable, self.callers - callers - sum(others) - aside),
            candidate=self._side(route.candidate, callers) if route.candidate else SideCounts(),
            pairs=self._pairs(route),
            others=tuple(self._side(arm.key, n) for arm, n in zip(route.others, others, strict=True)),
            others_ppm=route.others_ppm,
            aside_ppm=route.aside_ppm,
        )

    def _pairs(self, route: Route) -> PairCounts | None:
        """What copies for a shadow came to: where only one of the two failed, and how many were compared."""
        if route.shadow is None:
            return None
        count = self.callers * route.shadow_ppm // WHOLE_PPM
        return PairCounts(
            version=route.shadow,
            pairs=count,
            only_shadow_failed=count * self.failing.get(route.shadow, 0) // 100,
            only_stable_failed=count * self.failing.get(route.stable, 0) // 100,
            compared=count,
        )

    def _side(self, key: VersionKey, callers: int) -> SideCounts:
        failed = callers * self.failing.get(key, 0) // 100
        return SideCounts(
            requests=callers,
            callers_arrived=callers,
            new_callers=callers,
            errors=failed,
            new_callers_failed=failed,
            callers_first_error=failed,
        )

    def make_report(self) -> GatewayReport:
        """What there is to tell."""
        wanted = moves.needed(self.live, self.desired)
        return GatewayReport(
            gateway=self.name,
            table=self.desired.number,
            url=f"http://{self.name}:5001",
            sent_at=self.now,
            routes=tuple(state_of(route) for route in self.live.routes),
            versions=tuple(
                VersionReport(key=key, phase=VersionPhase.FAILED, error=self.broken[key])
                if key in self.broken
                else VersionReport(key=key, phase=VersionPhase.READY)
                for key in sorted(wanted)
            ),
            ticks=tuple(self.waiting[:120]),
            rollbacks=tuple(self.rollbacks),
        )

    def report(self) -> None:
        """Report, and forget what was taken."""
        if not self.silent:
            report = self.make_report()
            with suppress(*BROKEN):
                self.taken(report, self.send(report))

    def send(self, report: GatewayReport) -> GatewayReply:
        """Deliver a report, the answer to which may be lost."""
        self.sent.append(report)
        return self.world.do("gate", self.world.rollouts.report, report)

    def taken(self, report: GatewayReport, reply: GatewayReply) -> None:
        """The answer came: what was taken need not be sent again."""
        highest = {(endpoint, rollout): number for endpoint, rollout, number in reply.taken}
        self.waiting = [
            tick for tick in self.waiting if tick.number > highest.get((tick.endpoint, tick.rollout), -1)
        ]
        self.rollbacks = self.rollbacks[min(reply.rollbacks_taken, len(report.rollbacks)) :]

    def roll_back(self, endpoint: str = NAME, cause: str = "by hand") -> LocalRollback:
        """Take traffic back here and now, asking nobody. Raises NoRollbackTarget."""
        self.live, before, removed = moves.taken_back(self.live, endpoint)
        after = self.live.route(endpoint)
        assert after is not None
        self.applied.append(self.live)
        done = LocalRollback(
            endpoint=endpoint,
            epoch=after.epoch,
            rollout=before.rollout,
            cause=cause,
            actor="ann",
            at=self.now,
            took_ms=0.3,
            stable=after.stable,
            removed=removed,
        )
        self.rollbacks.append(done)
        return done

    def restart(self) -> None:
        """Be killed and come back: stable alone, until the table is fetched again; unsent ticks are lost."""
        self.live = moves.stable_only(self.live)
        self.desired = structs.replace(self.live, number=0)
        self.waiting = []
        self._number = first_number(self.now)
        self.applied.append(self.live)

    def route(self, endpoint: str = NAME) -> Route:
        """What it does for an endpoint."""
        found = self.live.route(endpoint)
        assert found is not None
        return found

    def serves(self, endpoint: str = NAME) -> VersionKey:
        """Who answers most callers of an endpoint."""
        route = self.route(endpoint)
        share = max(route.arms, key=lambda arm: arm.weight_ppm)
        return share.key


def epoch_of(world: RolloutWorld, name: str = NAME) -> Epoch:
    """The age of the route as it is stored."""
    endpoint = world.endpoint(name)
    status = world.status(name)
    if status.active and status.rollout is not None:
        return max(endpoint.epoch, status.rollout.epoch)
    return endpoint.epoch
