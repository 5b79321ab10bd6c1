"""Random histories of one model, lived through by the real services and by a plain dictionary beside them.

After each step both agree: who stands where, what was refused and why, how a request stands. In the end the
projections are made anew from the events alone, and every moment is asked for again. Each of the design's
invariants that this bears on is named where it is checked.
"""

import tempfile
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import Struct, field

from modelkeep.core import errors, promotion
from modelkeep.core.catalog import DEFAULT_STAGES
from modelkeep.core.events import EventKind
from modelkeep.core.promotion import Interval, RequestState, Vote
from modelkeep.core.values import PAGE_MAX, parse_ref
from modelkeep.service.projections import find_altered
from modelkeep.store import events as event_store
from modelkeep.store import promotion as store
from modelkeep.store.database import Database, Transaction
from modelkeep.store.events import FAR
from tests.properties.kept_answers import KeptAnswers
from tests.service.promotion_world import CHURN, START, World

STAGES = [spec.name for spec in DEFAULT_STAGES.stages]
EXCLUSIVE = ("staging", "production")
PEOPLE = ("ann", "cat", "dan")
NUMBERS = st.integers(1, 4)


class Known(Struct):
    """What the dictionary knows of a version."""

    semver: str
    stage: str = "none"
    tombstoned: bool = False
    deleted: bool = False


class Asked(Struct):
    """What it knows of an open request for production; `approved` maps people to the policy they saw."""

    id: str
    number: int
    by: str
    expires_at: datetime
    approved: dict[str, int] = field(default_factory=dict)


class Snapshot(Struct, frozen=True):
    """Who stood in each exclusive stage when an act had ended."""

    at: datetime
    sequence: int
    occupants: dict[str, int]


def policy(version: int) -> bytes:
    """A policy that asks for one person; each version is another document."""
    return b"name: p\ndescription: version %d\nstages: {production: {approvals: {count: 1}}}" % version


class StageMachine(RuleBasedStateMachine):
    """Everything that promotion's verbs do to one model."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        url = f"sqlite:///{Path(folder) / 'store.db'}"
        self.database = self.stack.enter_context(Database.open(url))
        self.world = World(self.database)
        self.kept_answers = KeptAnswers()
        self.world.model()
        self.policy = 0
        self.known: dict[int, Known] = {}
        self.asked: list[Asked] = []
        self.entered: list[int] = []
        self.snapshots: list[Snapshot] = []
        self.events = 0
        self.set_policy()
        for _ in range(3):
            self.register()

    # ----------------------------------------------------------------------------------- what is done

    @rule()
    def set_policy(self) -> None:
        self.policy += 1
        self.world.do("dan", self.world.promotions.set_policy, "churn", policy(self.policy))

    @precondition(lambda self: len(self.known) < 4)
    @rule()
    def register(self) -> None:
        number = len(self.known) + 1
        made = self.world.version(f"1.{number}.0")
        assert made.number == number
        self.known[number] = Known(semver=made.semver)

    @rule(seconds=st.sampled_from([-1, 0, 1, 60, 8 * 86_400]))
    def time_passes(self, seconds: int) -> None:
        self.world.later(seconds=seconds)

    @rule(number=NUMBERS, by=st.sampled_from(PEOPLE))
    def ask(self, number: int, by: str) -> None:
        asked = self.open_for(number)
        expected = self.obstacle(number, "production") or (errors.Conflict if asked is not None else None)
        request = self.attempt(expected, self.world.ask, self.semver(number), by=by)
        if request is not None:
            self.remember(request.id, number, by)

    @rule(number=NUMBERS, by=st.sampled_from(PEOPLE), vote=st.sampled_from([Vote.APPROVE, Vote.REJECT]))
    def review(self, number: int, by: str, vote: Vote) -> None:
        """Invariant 7: nobody approves their own request."""
        asked = next((one for one in reversed(self.asked) if one.number == number), None)
        if asked is None:
            return
        expected: type[errors.ModelkeepError] | None = None
        if self.world.now >= asked.expires_at:
            expected = errors.RequestClosed
        elif asked.by == by:
            expected = errors.SelfApproval
        elif self.known[number].deleted:
            expected = errors.VersionNotFound
        done = self.attempt(expected, self.world.review, asked.id, by, vote)
        if expected is errors.RequestClosed or (done is not None and vote is Vote.REJECT):
            self.asked.remove(asked)
        elif done is not None:
            asked.approved[by] = self.policy
            assert done.approved_by == tuple(sorted(self.agreeing(asked)))

    @rule(number=NUMBERS, to=st.sampled_from(STAGES), by=st.sampled_from(PEOPLE))
    def promote(self, number: int, to: str, by: str) -> None:
        expected = self.obstacle(number, to)
        asked = self.open_for(number) if to == "production" else None
        if expected is None and to == "production" and (asked is None or not self.agreeing(asked)):
            expected = errors.ApprovalRequired
        error = self.refused(expected, self.world.promote, self.semver(number), to, by)
        if isinstance(error, errors.ApprovalRequired):
            if asked is None:
                self.remember(error.details["request"], number, by)
            else:
                assert error.details["request"] == asked.id
                asked.approved.clear()
        elif error is None:
            if asked is not None:
                self.asked.remove(asked)
            self.enter(number, to)

    @rule(number=NUMBERS)
    def bring_to_production(self, number: int) -> None:
        """The usual way, which chance alone seldom walks: ask, have it approved, promote."""
        if self.obstacle(number, "production") is None:
            if self.open_for(number) is None:
                self.ask(number, "ann")
            for by in PEOPLE:
                self.review(number, by, Vote.APPROVE)
            self.promote(number, "production", "ann")

    @rule(number=NUMBERS, by=st.sampled_from(PEOPLE))
    def approve_late(self, number: int, by: str) -> None:
        """Invariant 7: what was approved under other rules is not what is asked for now."""
        if self.open_for(number) is not None:
            self.review(number, by, Vote.APPROVE)
            self.set_policy()
            self.promote(number, "production", by)

    @rule(by=st.sampled_from(PEOPLE))
    def rollback(self, by: str) -> None:
        """Invariant 9: it goes to the last that was not taken back, so never back and forth."""
        current = self.occupants().get("production")
        target = next((n for n in reversed(self.entered) if self.fit(n) and n != current), None)
        expected = errors.NoRollbackTarget if target is None else None
        done = self.attempt(expected, self.world.rollback, by)
        if done is not None and target is not None:
            assert (done.version.number, done.from_number) == (target, current)
            self.taken_back(current, target)

    @rule(number=NUMBERS, by=st.sampled_from(PEOPLE))
    def rollback_to(self, number: int, by: str) -> None:
        known, current = self.known.get(number), self.occupants().get("production")
        expected: type[errors.ModelkeepError] | None = None
        if known is None or known.deleted:
            expected = errors.VersionNotFound
        elif number == current:
            expected = errors.InvalidTransition
        elif known.tombstoned:
            expected = errors.Tombstoned
        elif number not in self.entered:
            expected = errors.NoRollbackTarget
        ref = parse_ref(f"churn:{self.semver(number)}")
        if self.attempt(expected, self.world.rollback, by, to=ref) is not None:
            self.taken_back(current, number)

    @rule(number=NUMBERS)
    def clear(self, number: int) -> None:
        known = self.known.get(number)
        gone = known is None or known.deleted
        expected = errors.VersionNotFound if gone else None if known.tombstoned else errors.Conflict
        ref = parse_ref(f"churn:{self.semver(number)}")
        if (
            self.attempt(expected, self.world.do, "ann", self.world.promotions.clear, ref, "mended")
            is not None
        ):
            self.known[number].tombstoned = False

    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        known = self.known.get(number)
        if known is None or known.deleted or known.stage in EXCLUSIVE:
            return  # the catalog refuses these
        self.world.delete(known.semver)
        known.deleted, known.stage = True, "none"

    # ------------------------------------------------------------------------- what the dictionary says

    def semver(self, number: int) -> str:
        return f"1.{number}.0"

    def fit(self, number: int) -> bool:
        return not self.known[number].tombstoned and not self.known[number].deleted

    def occupants(self) -> dict[str, int]:
        return {k.stage: n for n, k in self.known.items() if k.stage in EXCLUSIVE}

    def obstacle(self, number: int, to: str) -> type[errors.ModelkeepError] | None:
        """Why a version cannot go there at all."""
        known = self.known.get(number)
        if known is None or known.deleted:
            return errors.VersionNotFound
        if (known.stage, to) not in DEFAULT_STAGES.transitions:
            return errors.InvalidTransition
        return errors.Tombstoned if known.tombstoned and to == "production" else None

    def remember(self, request: str, number: int, by: str) -> None:
        ends = self.world.now + timedelta(days=14)
        self.asked.append(Asked(id=request, number=number, by=by, expires_at=ends))

    def open_for(self, number: int) -> Asked | None:
        """The request that is open now for a version; one that has expired is forgotten when it is met."""
        for one in list(self.asked):
            if one.number == number:
                if self.world.now < one.expires_at:
                    return one
                if self.obstacle(number, "production") is None:
                    self.asked.remove(one)
        return None

    def agreeing(self, asked: Asked) -> set[str]:
        return {who for who, seen in asked.approved.items() if seen == self.policy}

    def enter(self, number: int, to: str) -> None:
        former = self.occupants().get(to) if to in EXCLUSIVE else None
        if former is not None:
            self.known[former].stage = "archived"
        self.known[number].stage = to
        if to == "production":
            self.entered.append(number)

    def taken_back(self, current: int | None, target: int) -> None:
        self.enter(target, "production")
        if current is not None:
            self.known[current].tombstoned = True

    # ------------------------------------------------------------------------------------- both compared

    def attempt(self, expected: type[Exception] | None, method: Any, *args: Any, **kwargs: Any) -> Any:
        """Do it; None when it was refused, as expected."""
        event(f"{method.__name__} {expected.__name__ if expected else 'done'}")
        if expected is None:
            return method(*args, **kwargs)
        with pytest.raises(expected):
            method(*args, **kwargs)
        return None

    def refused(self, expected: type[Exception] | None, method: Any, *args: Any) -> Exception | None:
        """Do it; the error when it was refused, as expected."""
        event(f"{method.__name__} {args[1]} {expected.__name__ if expected else 'done'}")
        if expected is None:
            method(*args)
            return None
        with pytest.raises(expected) as caught:
            method(*args)
        return caught.value

    @invariant()
    def everybody_stands_where_the_dictionary_says(self) -> None:
        """Invariant 1: at most one version of a model is in an exclusive stage: the last one moved there."""
        for number, known in self.known.items():
            if not known.deleted:
                version = self.world.get(known.semver)
                assert (version.stage, version.tombstone is not None) == (known.stage, known.tombstoned), (
                    number
                )
        assert len(set(self.occupants().values())) == len(self.occupants())

    @invariant()
    def what_changed_has_an_event(self) -> None:
        """Invariant 2: no state change without an event: an act that left none left all where they were."""
        stored = self.database.read(lambda tx: tx.events.after(self.events, limit=PAGE_MAX))
        if stored:
            last = stored[-1].event
            self.events = last.sequence
            self.snapshots.append(Snapshot(last.at, last.sequence, self.occupants()))
        elif self.snapshots:
            assert self.snapshots[-1].occupants == self.occupants()

    @invariant()
    def answers_that_are_kept_still_hold(self) -> None:
        """Invariant 12, as the MLflow door leans on it: the same history, the same answer."""
        self.kept_answers.check(self.database)

    def teardown(self) -> None:
        try:
            self.check_requests()
            self.check_the_past()
            self.check_rebuilding()
            self.check_one_transaction_each()
            self.check_the_chain()
        finally:
            self.stack.close()

    def check_requests(self) -> None:
        """Each request that nobody decided is open until its time is over."""
        for one in self.asked:
            state = self.world.read("dan", self.world.promotions.get_request, one.id).state
            ended = self.world.now >= one.expires_at
            assert state is (RequestState.EXPIRED if ended else RequestState.OPEN)

    def check_the_chain(self) -> None:
        """Invariant 2: the chain verifies; its order is by sequence, never by the clock, which goes back."""
        assert event_store.verify(self.database).events == self.events
        assert [one.sequence for one in self.world.events()] == list(range(1, self.events + 1))

    def check_one_transaction_each(self) -> None:
        """Invariant 1: promotion and rollback are one transaction each: every event that brings a version to
        production says who left, and that one's stay ends with the same event."""
        holder: int | None = None
        for move in self.world.events(EventKind.STAGE_MOVED):
            if move.body["to"] == "production":
                displaced = move.body["displaced"]
                assert (displaced["number"] if displaced else None) == holder
                holder = move.number
            elif move.number == holder:
                holder = None

    def check_the_past(self) -> None:
        """Invariant 12: at every moment of the past, each stage is held by whom the dictionary saw there."""
        moments = {snapshot.at + timedelta(seconds=d) for snapshot in self.snapshots for d in (-0.5, 0, 0.5)}
        for moment in sorted(moments):
            past = [one for one in self.snapshots if one.at <= moment]
            then = max(past, key=lambda one: (one.at, one.sequence)).occupants if past else {}
            for stage in EXCLUSIVE:
                assert self.was(stage, moment) == then.get(stage), (stage, moment - START)

    def was(self, stage: str, moment: datetime) -> int | None:
        ref = parse_ref(f"churn#{stage}")
        try:
            found = self.world.read("dan", self.world.promotions.whatwas, ref, moment)
        except errors.StageEmpty:
            return None
        assert found.version.stage == stage
        assert found.event.kind is EventKind.STAGE_MOVED
        return int(found.version.number)

    def check_rebuilding(self) -> None:
        """Invariant 12: history and places made anew from the events are the ones that stand there."""

        def projections(tx: Transaction) -> tuple[list[Interval], list[Any]]:
            stays = store.stays(tx, "mod_default_churn", None, FAR, 10_000)
            places = tx.all(store.occupancy.select().order_by(store.occupancy.c.number))
            return stays, places

        assert list(find_altered(self.world.desk, self.world.context("dan"))) == []
        written = self.database.read(projections)
        self.database.write(store.rebuild).result()
        assert self.database.read(projections) == written
        moves = self.world.events(EventKind.STAGE_MOVED, EventKind.VERSION_DELETED)
        folded = promotion.fold_stays(moves).get(str(CHURN), [])
        assert sorted(folded, key=str) == sorted(written[0], key=str)


StageMachine.TestCase.settings = settings(stateful_step_count=50, suppress_health_check=list(HealthCheck))
TestStageMachine = pytest.mark.req("G1", "G2", "G7", "G8", "G9")(StageMachine.TestCase)
