"""Webhooks over the real store: who may make them, what they are told, and that every message arrives at
least once, in order, whoever delivers and whatever fails.
"""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.controller import Postman
from modelkeep.core import errors, webhooks
from modelkeep.core.access import AuthMode, PrincipalKind, Role
from modelkeep.core.events import EventKind
from modelkeep.core.values import ModelName
from modelkeep.core.webhooks import (
    Delivery,
    DeliveryState,
    NewWebhook,
    Sent,
    Style,
    Webhook,
    WebhookChange,
    WebhookStatus,
)
from modelkeep.service import renaming
from modelkeep.service.act import SYSTEM_CONTEXT, Act
from modelkeep.service.deliveries import LEASE_S, Letter, Quiet
from modelkeep.store import events
from modelkeep.store import webhooks as store
from modelkeep.store.database import Database
from tests.receivers import FakeReceiver
from tests.service.rollout_world import RolloutWorld

pytestmark = pytest.mark.req("G16")

URL = "https://hooks.example/in"


class HookWorld(RolloutWorld):
    """A receiver, subscriptions, and postmen that are turned by hand."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.hooks = self.house.webhooks
        assert isinstance(self.hooks.outbound, FakeReceiver)
        self.receiver: FakeReceiver = self.hooks.outbound
        self.model(ModelName("default", "churn"))

    def hook(self, *words: str, by: str = "owner", **more: Any) -> Webhook:
        """Make one."""
        new = NewWebhook(**({"name": "ci", "url": URL, "events": words or ("*",)} | more))
        return self.do(by, self.hooks.create_webhook, new).webhook

    def happen(
        self, count: int = 1, model: str = "churn", kind: EventKind = EventKind.MODEL_CHANGED
    ) -> list[int]:
        """Events of a model; their numbers."""

        def job(act: Act) -> int:
            return act.record(kind, model, model=ModelName(*_named(model))).sequence

        return [self.do("owner", job) for _ in range(count)]

    def postman(self, owner: str = "one") -> Postman:
        """A deliverer that nothing runs by itself."""
        return Postman(self.house, owner)

    def turn(self, postman: Postman | None = None) -> None:
        """Deliver all that is due now."""
        postman = postman or self.postman()
        for _ in range(10):
            due = postman.due()
            if not due:
                return
            for hook in due:
                postman.deliver(hook)
        raise AssertionError("it never ends")

    def sequences(self) -> list[int]:
        """The events that were told, as they came."""
        return [message.json()["sequence"] for message in self.receiver.taken]

    def deliveries(self, hook: Webhook, state: DeliveryState | None = None) -> list[Delivery]:
        """What is on record, the newest first."""
        page = self.read(
            "owner", self.hooks.list_deliveries, hook.id, state=state, limit=100, page_token=None
        )
        return list(page.items)

    def now_of(self, hook: Webhook) -> Webhook:
        """The webhook as it stands."""
        return self.read("owner", self.hooks.get_webhook, hook.id)


def _named(text: str) -> tuple[str, str]:
    project, _, name = text.rpartition("/")
    return project or "default", name


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An open SQLite database."""
    with Database.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened


@pytest.fixture
def world(database: Database) -> HookWorld:
    """A model and nobody subscribed."""
    return HookWorld(database)


# ------------------------------------------------------------------------------------------------- delivering


def test_what_happens_is_told_in_order_and_signed(world: HookWorld) -> None:
    """Every event after the webhook was made, once, each with a good signature under its own id."""
    world.happen(3)
    made = world.do("owner", world.hooks.create_webhook, NewWebhook(name="ci", url=URL, events=("model.*",)))
    expected = world.happen(5)
    world.turn()
    assert world.sequences() == expected
    assert made.secret is not None
    for message in world.receiver.taken:
        stamp = int(message.headers["webhook-timestamp"])
        key = webhooks.key_of(made.secret)
        assert message.headers["webhook-signature"] == webhooks.sign(key, message.id, stamp, message.body)
        assert message.url == URL
    assert len({message.id for message in world.receiver.taken}) == 5
    assert {one.state for one in world.deliveries(made.webhook)} == {DeliveryState.DELIVERED}
    world.turn()
    assert world.sequences() == expected, "nothing is told twice"


def test_only_what_is_subscribed_and_of_the_project_is_told(world: HookWorld) -> None:
    """Other kinds, other projects, other models, and what belongs to the installation stay unsaid."""
    world.person("dan", Role.ADMIN)
    world.model(ModelName("other", "churn"))
    world.model(ModelName("default", "fraud"))
    whole, one = world.hook("model.changed"), world.hook("model.changed", name="one", model="churn")
    world.happen(1, "other/churn")
    world.happen(1, kind=EventKind.INTEGRITY_FAILED)
    mine, fraud = world.happen(1), world.happen(1, "fraud")
    world.turn()
    told = {(message.headers["webhook-id"], message.json()["sequence"]) for message in world.receiver.taken}
    assert told == {
        (webhooks.delivery_id(whole.id, mine[0], 0), mine[0]),
        (webhooks.delivery_id(whole.id, fraud[0], 0), fraud[0]),
        (webhooks.delivery_id(one.id, mine[0], 0), mine[0]),
    }


def test_a_model_s_webhook_follows_it_to_another_name(world: HookWorld) -> None:
    """What happened before is told as it was, what happens after under the new name; none is missed."""
    world.hook("*", model="churn")
    before = world.happen(1)
    world.do("owner", renaming.rename, world.house.access, ModelName("default", "churn"), "leavers")
    after = world.happen(1, "leavers")
    world.turn()
    told = {message.json()["sequence"]: message.json()["model"] for message in world.receiver.taken}
    assert told[before[0]] == "churn"
    assert told[after[0]] == "leavers"
    assert {message.json()["type"] for message in world.receiver.taken} >= {"model.renamed"}


def test_nothing_is_told_before_it_is_committed_nor_with_a_transaction_open(world: HookWorld) -> None:
    """While a receiver thinks, others write; and what it is told is in the log for everybody."""
    world.hook("model.changed")
    seen: list[int] = []

    def look(message: Any) -> None:
        sequence = message.json()["sequence"]
        assert (
            world.desk.read(SYSTEM_CONTEXT, lambda act: act.tx.events.get(sequence)).event.sequence
            == sequence
        )
        done = threading.Event()
        threading.Thread(
            target=lambda: (world.happen(1, kind=EventKind.INTEGRITY_FAILED), done.set())
        ).start()
        assert done.wait(60), "a write has to wait for a receiver"
        seen.append(sequence)

    world.receiver.before = look
    expected = world.happen(2)
    world.turn()
    assert seen == expected


def test_a_failed_message_holds_up_those_behind_it_and_is_tried_again(world: HookWorld) -> None:
    """In order, under the same id, when its time has come and not before."""
    hook = world.hook("model.changed")
    world.receiver.answers = [500, "The receiver could not be reached: nobody listens there.", 200]
    first, second = world.happen(2)
    postman = world.postman()
    world.turn(postman)
    assert world.sequences() == [first]
    assert world.now_of(hook).failures == 1
    for _ in range(3):
        world.turn(world.postman("one"))
        assert world.sequences() == [first], "it is not due yet"
    world.later(seconds=7)
    world.turn(world.postman("one"))
    world.later(seconds=40)
    world.turn(world.postman("one"))
    assert world.sequences() == [first, first, first, second]
    assert len({message.id for message in world.receiver.taken[:3]}) == 1
    assert len({message.body for message in world.receiver.taken[:3]}) == 1
    (told,) = [one for one in world.deliveries(hook) if one.sequence == first]
    assert told.state is DeliveryState.DELIVERED
    assert [(a.number, a.status) for a in told.attempts] == [(1, 500), (2, None), (3, 200)]
    assert "nobody listens" in (told.attempts[1].error or "")
    assert world.now_of(hook).failures == 0


def test_a_receiver_that_is_down_for_long_loses_its_turn_and_then_the_webhook(world: HookWorld) -> None:
    """After its last attempt a message is set aside and shown, and the next one is tried; after some in a row
    the webhook is disabled, with an event that says why; enabled, it goes on from there: nothing is lost."""
    hook = world.hook("model.changed")
    world.receiver.usual = 503
    happened = world.happen(webhooks.FAILED_MAX + 3)
    for _ in range(200):
        world.later(hours=10)
        world.turn()
        if world.now_of(hook).status is WebhookStatus.DISABLED:
            break
    stopped = world.now_of(hook)
    assert stopped.status is WebhookStatus.DISABLED
    assert "in a row" in (stopped.disabled_because or "")
    failed = world.deliveries(hook, DeliveryState.FAILED)
    assert [one.sequence for one in reversed(failed)] == happened[: webhooks.FAILED_MAX]
    assert all(len(one.attempts) == len(webhooks.RETRIES_S) + 1 for one in failed)
    assert world.events(EventKind.WEBHOOK_CHANGED)[-1].body["status"] == {"from": "active", "to": "disabled"}
    world.receiver.usual, world.receiver.taken = 200, []
    world.do("owner", world.hooks.set_status, hook.id, WebhookStatus.ACTIVE, None)
    world.turn()
    assert world.sequences() == happened[webhooks.FAILED_MAX :]
    for one in failed:
        world.do("owner", world.hooks.replay, hook.id, sequence=one.sequence)
    world.turn()
    assert sorted(world.sequences()) == happened
    assert not world.deliveries(hook, DeliveryState.FAILED)


def test_a_receiver_that_is_gone_is_left_alone(world: HookWorld) -> None:
    """410 disables the webhook at once; the message stays its next one."""
    hook = world.hook("model.changed")
    world.receiver.answers = [410]
    happened = world.happen(2)
    world.turn()
    assert world.sequences() == happened[:1]
    assert world.now_of(hook).status is WebhookStatus.DISABLED
    world.later(days=3)
    world.turn()
    assert world.sequences() == happened[:1]
    world.do("owner", world.hooks.set_status, hook.id, WebhookStatus.ACTIVE, None)
    world.turn()
    assert world.sequences() == [happened[0], *happened]


def test_a_receiver_that_asks_for_time_gets_it(world: HookWorld) -> None:
    """Retry-After holds where it is longer than our own wait, up to its limit."""
    hook = world.hook("model.changed")
    world.receiver.answers = [Sent(status=429, error=None, duration_ms=1.0, retry_after_s=900.0)]
    world.happen(1)
    world.turn()
    due = world.now_of(hook).next_at
    assert due is not None
    assert timedelta(seconds=899) < due - world.now <= timedelta(seconds=900)
    world.later(seconds=600)
    world.turn()
    assert len(world.receiver.taken) == 1
    world.later(seconds=301)
    world.turn()
    assert len(world.receiver.taken) == 2


def test_one_slow_webhook_holds_up_no_other(world: HookWorld) -> None:
    """Each has its own place in the log."""
    world.hook("model.changed", name="bad", url="https://bad.example/")
    world.hook("model.changed", name="good")
    happened = world.happen(3)

    def answer(message: Any) -> None:
        world.receiver.usual = 500 if "bad" in message.url else 200

    world.receiver.before = answer
    world.turn()
    good = [message for message in world.receiver.taken if "bad" not in message.url]
    assert [message.json()["sequence"] for message in good] == happened


# ------------------------------------------------------------------------------------------------ two of them


def test_two_deliverers_send_nothing_twice(world: HookWorld) -> None:
    """The lease lets one deliver; the other waits, and takes over when the lease has ended."""
    hook = world.hook("model.changed")
    one, two = world.postman("one"), world.postman("two")
    first = world.happen(1)
    world.turn(one)
    second = world.happen(1)
    world.turn(two)
    assert world.sequences() == first, "the lease is held"
    world.turn(one)
    assert world.sequences() == first + second
    third = world.happen(1)
    world.later(seconds=LEASE_S + 1)
    world.turn(world.postman("two"))
    assert world.sequences() == first + second + third
    one.stop()
    assert world.now_of(hook).cursor == third[0]


@pytest.mark.parametrize("dies", ["claimed", "sent"])
def test_a_deliverer_that_dies_loses_nothing(world: HookWorld, dies: str) -> None:
    """Before sending or before writing down what came of it: after the lease the next one sends the same
    message under the same id, and goes on in order."""
    hook = world.hook("model.changed")
    happened = world.happen(3)
    found = world.desk.read(SYSTEM_CONTEXT, world.house.deliveries.next, hook.id, "dead")
    assert isinstance(found, Letter)
    assert world.desk.do(SYSTEM_CONTEXT, world.house.deliveries.claim, found, "dead")
    if dies == "sent":
        world.house.deliveries.send(found, world.now)
    world.turn(world.postman("alive"))
    assert len(world.receiver.taken) == (1 if dies == "sent" else 0)
    world.later(seconds=LEASE_S + 1)
    world.turn(world.postman("alive"))
    assert [message.json()["sequence"] for message in world.receiver.good] == happened
    assert len(world.receiver.taken) == (4 if dies == "sent" else 3)


def test_one_that_was_thought_dead_moves_nothing(world: HookWorld) -> None:
    """It comes back after its lease: its attempt is on record, the other's place stands."""
    hook = world.hook("model.changed")
    happened = world.happen(2)
    deliveries = world.house.deliveries
    late = world.desk.read(SYSTEM_CONTEXT, deliveries.next, hook.id, "late")
    assert isinstance(late, Letter)
    world.desk.do(SYSTEM_CONTEXT, deliveries.claim, late, "late")
    world.later(seconds=LEASE_S + 1)
    world.turn(world.postman("quick"))
    assert world.sequences() == happened
    failed = Sent(status=500, error=None, duration_ms=1.0)
    world.desk.do(SYSTEM_CONTEXT, deliveries.settle, late, failed, world.now, "late")
    after = world.now_of(hook)
    assert (after.cursor, after.failures) == (happened[1], 0)
    first = world.deliveries(hook)[-1]
    assert first.state is DeliveryState.DELIVERED
    assert [attempt.status for attempt in first.attempts] == [200, 500]
    assert not world.desk.do(SYSTEM_CONTEXT, deliveries.claim, late, "late")


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["happen", "turn", "die", "fail", "late", "other"]), max_size=25))
def test_whatever_fails_all_is_told_in_order(steps: list[str]) -> None:
    """Any mixture of events, deaths, failures and takeovers: in the end every message was taken, and the
    order in which each was first taken is that of the log."""
    with TemporaryDirectory() as folder, Database.open(f"sqlite:///{folder}/store.db") as database:
        world = HookWorld(database)
        hook = world.hook("model.changed")
        happened: list[int] = []
        for step in steps:
            match step:
                case "happen":
                    happened += world.happen(2)
                case "turn":
                    world.turn(world.postman("one"))
                case "other":
                    world.turn(world.postman("two"))
                case "fail":
                    world.receiver.answers = [500]
                case "late":
                    world.later(seconds=60)
                case "die":
                    found = world.desk.read(SYSTEM_CONTEXT, world.house.deliveries.next, hook.id, "dead")
                    if isinstance(found, Letter):
                        world.desk.do(SYSTEM_CONTEXT, world.house.deliveries.claim, found, "dead")
                        world.house.deliveries.send(found, world.now)
        world.receiver.answers = []
        for _ in range(3):
            world.later(hours=10)
            world.turn()
        good = [message.json()["sequence"] for message in world.receiver.good]
        assert good == happened
        events.verify(database)


# ----------------------------------------------------------------------------------------------------- replay


def test_a_message_is_sent_again_under_its_id(world: HookWorld) -> None:
    """One event at once, or all after one in order; what never was for the webhook is told so."""
    hook = world.hook("model.changed")
    happened = world.happen(3)
    world.turn()
    ids = [message.id for message in world.receiver.taken]
    found = world.do("owner", world.hooks.replay, hook.id, sequence=happened[1])
    assert found.messages == 1
    world.turn()
    assert [message.id for message in world.receiver.taken] == [*ids, ids[1]]
    world.do("owner", world.hooks.replay, hook.id, after=happened[0])
    world.turn()
    assert [message.id for message in world.receiver.taken] == [*ids, ids[1], *ids[1:]]
    with pytest.raises(errors.DeliveryNotFound):
        world.do("owner", world.hooks.replay, hook.id, sequence=1)
    for wrong in ({}, {"sequence": 1, "after": 1}, {"sequence": 10**9}, {"after": 10**9}):
        with pytest.raises(errors.InvalidWebhook):
            world.do("owner", world.hooks.replay, hook.id, **wrong)


def test_a_message_that_was_asked_for_fails_by_itself(world: HookWorld) -> None:
    """It is tried again by the same schedule and holds up nothing."""
    hook = world.hook("model.changed")
    first = world.happen(1)[0]
    world.turn()
    world.do("owner", world.hooks.replay, hook.id, sequence=first)
    world.receiver.answers = [500]
    second = world.happen(1)[0]
    world.turn()
    assert world.sequences() == [first, first, second]
    world.later(seconds=7)
    world.turn()
    assert world.sequences() == [first, first, second, first]
    assert [one.state for one in world.deliveries(hook)] == [DeliveryState.DELIVERED] * 2


# ------------------------------------------------------------------------------------------------ whose it is


@pytest.fixture
def guarded(world: HookWorld, monkeypatch: pytest.MonkeyPatch) -> HookWorld:
    """An installation with tokens: people are looked up."""
    access = world.house.access
    monkeypatch.setattr(access, "mode", AuthMode.TOKEN)
    for name, role, project in (("mia", Role.MAINTAINER, "default"), ("ned", Role.MAINTAINER, "default"),
                                ("vic", Role.VIEWER, "default")):  # fmt: skip
        world.do("owner", access.create_principal, name, PrincipalKind.USER)
        world.do("owner", access.add_grant, principal=name, role=role, project=project)
        world.person(name, role, project)
    return world


def test_a_webhook_is_made_by_who_may_configure(guarded: HookWorld) -> None:
    """Others may not make one, nor see that there is one."""
    hook = guarded.hook(by="mia")
    with pytest.raises(errors.NotAllowed):
        guarded.hook(by="vic")
    with pytest.raises(errors.NotAllowed):
        guarded.hook(by="mia", project="other")
    with pytest.raises(errors.NotAllowed):
        guarded.hooks.look_at_new(
            guarded.desk,
            guarded.context("vic"),
            NewWebhook(name="x", url="https://inner.example/", events=("*",)),
        )
    assert not guarded.receiver.checked, "nothing is looked up for somebody who may not"
    with pytest.raises(errors.WebhookNotFound):
        guarded.read("vic", guarded.hooks.get_webhook, hook.id)
    listed = guarded.read("vic", guarded.hooks.list_webhooks, project=None, limit=10, page_token=None)
    assert listed.items == ()
    listed = guarded.read("ned", guarded.hooks.list_webhooks, project=None, limit=10, page_token=None)
    assert [one.id for one in listed.items] == [hook.id]


def test_a_webhook_is_told_what_its_person_may_read_now(guarded: HookWorld) -> None:
    """Rights that were taken away count at the delivery; whoever changes a webhook answers for it."""
    hook = guarded.hook("model.changed", by="mia")
    before = guarded.happen(1)
    guarded.turn()
    grants = guarded.read("owner", guarded.house.access.list_grants, 100, None).items
    (held,) = [grant for grant in grants if grant.principal == "mia"]
    guarded.do("owner", guarded.house.access.remove_grant, held.id)
    guarded.happen(2)
    guarded.turn()
    assert guarded.sequences() == before
    guarded.do("ned", guarded.hooks.change_webhook, hook.id, WebhookChange(description="mine now"))
    after = guarded.happen(1)
    guarded.turn()
    assert guarded.sequences() == before + after
    assert guarded.now_of(hook).answerable == "ned"


def test_a_webhook_whose_person_was_shut_out_is_disabled(guarded: HookWorld) -> None:
    """Nothing is told, the reason is there, and somebody else may take it over without a gap."""
    hook = guarded.hook("model.changed", by="mia")
    guarded.do("owner", guarded.house.access.disable_principal, "mia")
    happened = guarded.happen(2)
    guarded.turn()
    stopped = guarded.now_of(hook)
    assert stopped.status is WebhookStatus.DISABLED
    assert "mia" in (stopped.disabled_because or "")
    assert not guarded.receiver.taken
    guarded.do("ned", guarded.hooks.set_status, hook.id, WebhookStatus.ACTIVE, None)
    guarded.turn()
    assert guarded.sequences() == happened


# ---------------------------------------------------------------------------------------- making and changing


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "file:///etc/passwd"}, {"url": ""}, {"events": ("nothing.happened",)}, {"events": ()},
        {"name": "a b"}, {"name": ""}, {"description": "x" * 1_001}, {"project": "a/b"}, {"model": "none"},
        {"secret": ""}, {"secret": "whsec_x"}, {"style": Style.MLFLOW},
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_whole(world: HookWorld, wrong: dict[str, Any]) -> None:
    """With an error that says what, and nothing left behind."""
    before = len(world.events())
    with pytest.raises((errors.Invalid, errors.ModelNotFound)):
        world.hook(**wrong) if "events" not in wrong else world.hook(*wrong["events"], **wrong)
    assert len(world.events()) == before
    assert not world.read("owner", world.hooks.list_webhooks, project=None, limit=10, page_token=None).items


def test_a_project_has_only_so_many(world: HookWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is said."""
    monkeypatch.setattr(webhooks, "WEBHOOKS_MAX", 2)
    world.hook()
    world.hook()
    with pytest.raises(errors.LimitExceeded):
        world.hook()


def test_a_secret_is_shown_once_and_kept_sealed(world: HookWorld) -> None:
    """Not in an answer, an event, a repr, nor readable in the database; a former one signs for a day."""
    made = world.do("owner", world.hooks.create_webhook, NewWebhook(name="ci", url=URL, events=("model.*",)))
    assert made.secret is not None
    stored = world.desk.read(SYSTEM_CONTEXT, lambda act: store.get(act.tx, made.webhook.id))
    assert stored is not None
    assert stored.sealed is not None
    again = world.do("owner", world.hooks.rotate_secret, made.webhook.id)
    assert again.secret is not None
    assert again.secret != made.secret
    for shown in (
        repr(made),
        stored.sealed,
        str([event.body for event in world.events()]),
        str(again.webhook),
    ):
        assert made.secret not in shown
        assert again.secret not in shown
    world.happen(1)
    world.turn()
    world.later(days=1.1)
    world.happen(1)
    world.turn()
    during, after = (message.headers["webhook-signature"].split() for message in world.receiver.taken)
    assert len(during) == 2
    assert len(after) == 1
    message = world.receiver.taken[0]
    stamp = int(message.headers["webhook-timestamp"])
    for secret, signature in zip((again.secret, made.secret), during, strict=True):
        assert signature == webhooks.sign(webhooks.key_of(secret), message.id, stamp, message.body)


def test_an_address_is_told_by_its_host_alone(world: HookWorld) -> None:
    """The path of a webhook's address is a secret in many products, and the log is read by many."""
    hook = world.hook(url="https://hooks.example/services/T0/B0/word")
    world.do("owner", world.hooks.change_webhook, hook.id, WebhookChange(url="https://other.example/word"))
    said = [event.body for event in world.events(EventKind.WEBHOOK_CREATED)]
    said += [event.body for event in world.events(EventKind.WEBHOOK_CHANGED)]
    assert "word" not in str(said)
    assert said[-1]["host"] == {"from": "hooks.example", "to": "other.example"}


def test_deleting_removes_it_all(world: HookWorld) -> None:
    """Its deliveries too; a message under way then changes nothing."""
    hook = world.hook("model.changed")
    world.happen(2)
    world.turn()
    world.happen(1)
    found = world.desk.read(SYSTEM_CONTEXT, world.house.deliveries.next, hook.id, "one")
    assert isinstance(found, Letter)
    world.do("owner", world.hooks.delete_webhook, hook.id)
    world.desk.do(
        SYSTEM_CONTEXT,
        world.house.deliveries.settle,
        found,
        Sent(status=200, error=None, duration_ms=1.0),
        world.now,
        "one",
    )
    with pytest.raises(errors.WebhookNotFound):
        world.now_of(hook)
    assert world.desk.read(SYSTEM_CONTEXT, world.house.deliveries.next, hook.id, "one") is None


@pytest.mark.hostile("forged-requests")
def test_trying_a_receiver_tells_its_status_and_no_more(world: HookWorld) -> None:
    """An example, signed; ten a minute, and it leaves no delivery."""
    hook = world.hook("stage.moved")
    context = world.context("owner")
    found = world.hooks.try_receiver(world.desk, context, hook.id)
    assert (found.delivered, found.status, found.error) == (True, 200, None)
    assert world.receiver.taken[0].json()["type"] == "webhook.test"
    world.receiver.usual = 404
    assert not world.hooks.try_receiver(world.desk, context, hook.id).delivered
    with pytest.raises(errors.Overloaded):
        for _ in range(20):
            world.hooks.try_receiver(world.desk, context, hook.id)
    assert not world.deliveries(hook)
    with pytest.raises(errors.InvalidWebhook):
        world.hooks.try_receiver(world.desk, context, hook.id, "registered_model.created")


def test_what_it_hears_anew_does_not_begin_with_the_past(world: HookWorld) -> None:
    """A subscription that is widened hears what happens from then on, after what was still due."""
    hook = world.hook("stage.moved")
    world.happen(3)
    world.do("owner", world.hooks.change_webhook, hook.id, WebhookChange(events=("model.changed",)))
    expected = world.happen(2)
    world.turn()
    assert world.sequences() == expected


# ----------------------------------------------------------------------------------------------------- caring


def test_a_webhook_that_hears_nothing_costs_nothing(world: HookWorld) -> None:
    """Thousands of events that are not for it: its cursor follows from time to time, and a new deliverer does
    not begin at the beginning."""
    hook = world.hook("stage.moved")
    began = world.now_of(hook).cursor

    def many(act: Act) -> None:
        for _ in range(2_500):
            act.record(EventKind.MODEL_CHANGED, "churn", model=ModelName("default", "churn"))

    world.do("owner", many)
    world.turn()
    assert world.now_of(hook).cursor >= began + 2_000
    quiet = world.desk.read(SYSTEM_CONTEXT, world.house.deliveries.next, hook.id, "one")
    assert isinstance(quiet, Quiet)


def test_old_records_are_swept(world: HookWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a month, or beyond so many; never what waits."""
    hook = world.hook("model.changed")
    world.happen(6)
    world.turn()
    monkeypatch.setattr("modelkeep.service.deliveries.KEEP_MAX", 4)
    world.desk.do(SYSTEM_CONTEXT, world.house.deliveries.sweep)
    assert len(world.deliveries(hook)) == 4
    world.later(days=31)
    world.receiver.answers = [500]
    world.happen(1)
    world.turn()
    world.desk.do(SYSTEM_CONTEXT, world.house.deliveries.sweep)
    assert [one.state for one in world.deliveries(hook)] == [DeliveryState.WAITING]


def test_deliveries_are_paged(world: HookWorld) -> None:
    """The newest first, each once; a token of another list is refused."""
    hook = world.hook("model.changed")
    happened = world.happen(5)
    world.turn()
    found: list[int] = []
    token = None
    while True:
        page = world.read(
            "owner", world.hooks.list_deliveries, hook.id, state=None, limit=2, page_token=token
        )
        found += [one.sequence for one in page.items]
        token = page.next_page_token
        if token is None:
            break
    assert found == happened[::-1]
    with pytest.raises(errors.Invalid):
        world.read("owner", world.hooks.list_webhooks, project=None, limit=2, page_token="made-up")
