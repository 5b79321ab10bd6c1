"""Webhooks by themselves: published vectors of signatures, schedules, addresses, subscriptions, messages."""

import base64
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import addresses, codec, errors, webhook_payloads, webhooks
from modelkeep.core.events import Event, EventKind
from modelkeep.core.values import Actor
from modelkeep.core.webhook_payloads import Facts
from modelkeep.core.webhooks import RETRIES_S, Style, Webhook

pytestmark = pytest.mark.req("G16")

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
ANN = Actor(name="ann")


def webhook(*events: str, **more: object) -> Webhook:
    """A subscription."""
    fields: dict[str, object] = {
        "id": "hook_1",
        "name": "ci",
        "project": "default",
        "url": "https://hooks.example/x",
        "events": events or ("*",),
        "answerable": "ann",
        "created_at": NOW,
        "created_by": "ann",
        "updated_at": NOW,
    }
    return Webhook(**(fields | more))  # type: ignore[arg-type]  # the fields are named above


def event(kind: EventKind, model: str | None = "churn", number: int | None = None, **body: object) -> Event:
    """Something that happened."""
    return Event(
        sequence=7,
        kind=kind,
        at=NOW,
        actor=ANN,
        subject=model or "x",
        model=model,
        number=number,
        body=dict(body),
    )


# ------------------------------------------------------------------------------------------------- signatures


def test_a_signature_is_that_of_the_published_example() -> None:
    """The vector that Standard Webhooks' libraries share."""
    key = webhooks.key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = webhooks.sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_mlflow_headers_are_signed_with_the_secret_as_it_stands() -> None:
    """MLflow's key is the text, also of a secret that Standard Webhooks would decode; both header sets go."""
    secret = "whsec_" + base64.b64encode(b"k" * 24).decode()
    found = webhooks.headers(Style.MLFLOW, "msg_1", 1_700_000_000, b"{}", [secret])
    assert found["X-MLflow-Signature"] == webhooks.sign(secret.encode(), "msg_1", 1_700_000_000, b"{}")
    assert found["webhook-signature"] == webhooks.sign(b"k" * 24, "msg_1", 1_700_000_000, b"{}")
    assert found["X-MLflow-Delivery-Id"] == found["webhook-id"] == "msg_1"
    assert found["X-MLflow-Timestamp"] == found["webhook-timestamp"] == "1700000000"


def test_a_replaced_secret_signs_along() -> None:
    """One header, a signature for each secret, so that a receiver may know either."""
    found = webhooks.headers(Style.MODELKEEP, "msg_1", 1, b"{}", ["new", "old"])
    assert found["webhook-signature"].split() == [
        webhooks.sign(b"new", "msg_1", 1, b"{}"),
        webhooks.sign(b"old", "msg_1", 1, b"{}"),
    ]
    assert not any(name.startswith("X-MLflow") for name in found)
    assert "webhook-signature" not in webhooks.headers(Style.MODELKEEP, "msg_1", 1, b"{}", [])


@given(st.binary(min_size=32, max_size=32))
def test_a_made_secret_is_one_that_is_taken(entropy: bytes) -> None:
    """Whatever chance gives, the secret has the standard's form and its bytes come back."""
    secret = webhooks.new_secret(entropy)
    assert webhooks.check_secret(secret) == secret
    assert webhooks.key_of(secret) == entropy


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!!", "whsec_c2hvcnQ=", "a\nb", "x" * 1_001])
def test_a_secret_that_is_none_is_refused(secret: str) -> None:
    """Empty, too long, unprintable, or not what its prefix says."""
    with pytest.raises(errors.InvalidWebhook):
        webhooks.check_secret(secret)


# ------------------------------------------------------------------------------------------------- schedules


@given(st.text(max_size=20), st.integers(1, len(RETRIES_S)), st.none() | st.floats(0, 1e9))
def test_a_retry_comes_when_it_should(delivery: str, attempt: int, retry_after_s: float | None) -> None:
    """Never sooner than four fifths of the plan nor than the receiver asked, never later than it may ask, and
    always at the same moment for the same question."""
    found = webhooks.retry_at(delivery, attempt, NOW, retry_after_s)
    assert found == webhooks.retry_at(delivery, attempt, NOW, retry_after_s)
    assert found is not None
    wait_s, planned_s = (found - NOW).total_seconds(), RETRIES_S[attempt - 1]
    asked_s = min(retry_after_s or 0.0, webhooks.RETRY_AFTER_MAX_S)
    assert wait_s >= max(0.8 * planned_s, asked_s) - 1e-3
    assert wait_s <= max(1.2 * planned_s, asked_s) + 1e-3


def test_attempts_end_after_about_a_day() -> None:
    """The budget is stated, and after it there is no next attempt."""
    assert timedelta(hours=20) < timedelta(seconds=sum(RETRIES_S)) < timedelta(hours=28)
    assert webhooks.retry_at("msg_1", len(RETRIES_S) + 1, NOW) is None


def test_receivers_do_not_all_come_back_at_once() -> None:
    """A thousand deliveries that failed together are spread over the whole jitter."""
    waits = sorted(
        (found - NOW).total_seconds()
        for found in (webhooks.retry_at(f"msg_{n}", 6, NOW) for n in range(1_000))
        if found is not None
    )
    assert waits[0] < 0.82 * RETRIES_S[5]
    assert waits[-1] > 1.18 * RETRIES_S[5]


@given(st.text(), st.integers(0, 2**62), st.integers(0, 100))
def test_a_delivery_has_one_id(hook: str, sequence: int, part: int) -> None:
    """Made of webhook, event and part alone, and of each of them."""
    found = webhooks.delivery_id(hook, sequence, part)
    assert found == webhooks.delivery_id(hook, sequence, part)
    assert found not in (
        webhooks.delivery_id(hook + "x", sequence, part),
        webhooks.delivery_id(hook, sequence + 1, part),
        webhooks.delivery_id(hook, sequence, part + 1),
    )


# ------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "0.1.2.3",
        "169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16",
        "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "198.18.0.1", "203.0.113.5",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1",
        "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
        "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::8.8.8.8", "::127.0.0.1", "::10.0.0.1",
        "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:c0a8:101::1",
        "2001:0:4136:e378:8000:63bf:807f:fffe", "2001:0:a00:1:0:0:f7f7:f7f7",
        "2606:4700::5efe:10.0.0.1", "not an address", "127.1", "2130706433", "0x7f.1", "0177.0.0.1",
    ],
)  # fmt: skip
@pytest.mark.hostile("forged-requests")
def test_an_inner_address_is_refused(address: str) -> None:
    """Private, reserved, multicast, metadata, and each of them inside every wrapping that IPv6 has."""
    assert addresses.refusal(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"],
)
def test_an_outer_address_may_be_reached(address: str) -> None:
    """Also when it stands in a wrapping that leads outside."""
    assert addresses.refusal(address) is None


def test_an_allow_list_opens_what_it_names_and_never_metadata() -> None:
    """A private network that is listed may be reached, in every wrapping; link-local and clouds' services
    may not, whatever is listed."""
    allowed = (ip_network("10.0.0.0/8"), ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert addresses.refusal("10.1.2.3", allowed) is None
    assert addresses.refusal("::ffff:10.1.2.3", allowed) is None
    assert addresses.refusal("127.0.0.1", allowed) is None
    for never in ("169.254.169.254", "::ffff:169.254.169.254", "100.100.100.200", "168.63.129.16",
                  "0.0.0.0", "fd00:ec2::254", "224.0.0.1", "fe80::1"):  # fmt: skip
        assert addresses.refusal(never, allowed), never
    assert addresses.refusal("10.1.2.3", allowed[:0])


@given(st.ip_addresses(v=4))
def test_wrapping_changes_nothing(address: object) -> None:
    """What an IPv4 address may not do, it may not do mapped, translated or tunnelled either."""
    plain = addresses.refusal(str(address))
    mapped = addresses.refusal(f"::ffff:{address}")
    translated = addresses.refusal(f"64:ff9b::{address}")
    assert (plain is None) == (mapped is None) == (translated is None)
    if plain is not None:
        packed = int(address)  # type: ignore[call-overload]  # an IPv4Address is a number
        assert addresses.refusal(f"2002:{packed >> 16:x}:{packed & 0xFFFF:x}::1")


@pytest.mark.parametrize("text", ["10.0.0.1/8", "everything", "", "10.0.0.0/33"])
def test_a_network_that_is_none_is_told_at_the_start(text: str) -> None:
    """An allow-list with a slip of the pen must not open something else."""
    with pytest.raises(errors.InvalidSetting):
        addresses.networks([text])


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks.example", "ftp://hooks.example/", "file:///etc/passwd", "gopher://x/", "https://", "https:///x",
        "http://hooks.example/", "https://user@hooks.example/", "https://user:word@hooks.example/",
        "https://hooks.example/#part", "https://hooks.example/a b", "https://hooks.example/\r\nHost: x",
        "https://hooks.example\\@10.0.0.1/", "https://hooks.example:0/", "https://hooks.example:99999/",
        "https://hooks.example:/", "https://[::1", "https://[fe80::1%25eth0]/", "https://１２７.0.0.1/",
        "https://hööks.example/", "https://hooks.example/" + "x" * 2_000, "https://%31%32%37.0.0.1/",
        "javascript:alert(1)", "//hooks.example/",
    ],
)  # fmt: skip
@pytest.mark.hostile("forged-requests")
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """Other schemes, users, fragments, line breaks, foreign letters, ports that are none."""
    with pytest.raises(errors.InvalidWebhook):
        webhooks.check_url(url)


def test_an_address_is_taken_apart() -> None:
    """Host, port, path with its query, and the name for the Host header."""
    target = webhooks.check_url("https://hooks.example:8443/a/b?c=d")
    assert (target.host, target.port, target.path) == ("hooks.example", 8443, "/a/b?c=d")
    assert target.host_header == "hooks.example:8443"
    assert webhooks.check_url("https://[2606:4700::1]/").host_header == "[2606:4700::1]"
    assert webhooks.check_url("https://hooks.example").path == "/"
    assert webhooks.check_url("http://hooks.example/", http=True).port == 80


# --------------------------------------------------------------------------------------------- subscriptions


def test_a_subscription_hears_what_it_names() -> None:
    """One kind, a family, or all; never what belongs to the installation alone."""
    assert webhooks.wants(webhook("stage.moved"), EventKind.STAGE_MOVED)
    assert not webhooks.wants(webhook("stage.moved"), EventKind.STAGES_CHANGED)
    assert webhooks.wants(webhook("rollout.*"), EventKind.ROLLOUT_FAILED)
    assert webhooks.wants(webhook("*"), EventKind.RUN_ENDED)
    for kind in webhooks.UNHEARD:
        assert not webhooks.wants(webhook("*"), kind)


@pytest.mark.parametrize(
    "words", [(), ("stage.mowed",), ("[s]tage.moved",), ("token.created",), ("?",), ("x",) * 2]
)
def test_a_subscription_to_nothing_is_refused(words: tuple[str, ...]) -> None:
    """A misspelt event is told, and so is one that nobody is told of."""
    with pytest.raises(errors.InvalidWebhook):
        webhooks.check_events(Style.MODELKEEP, words)


def test_our_own_message_is_the_event() -> None:
    """Kind, time, number, subject, who and the body; the same bytes each time."""
    moved = event(EventKind.STAGE_MOVED, number=3, stage="production", to="2.1.0")
    (message,) = webhook_payloads.messages(webhook(), moved, Facts())
    assert message == webhook_payloads.messages(webhook(), moved, Facts())[0]
    assert codec.decode(message.body, dict) == {
        "type": "stage.moved",
        "timestamp": "2026-01-25T14:03:00Z",
        "sequence": 7,
        "project": "default",
        "subject": "churn",
        "model": "churn",
        "number": 3,
        "actor": {"name": "ann", "kind": "user", "asserted": False},
        "reason": None,
        "data": {"stage": "production", "to": "2.1.0"},
        "truncated": False,
    }


def test_an_event_that_is_too_large_is_told_without_its_body() -> None:
    """The message says so, and stays below what receivers take."""
    large = event(EventKind.POLICY_CHANGED, document="x" * webhook_payloads.PAYLOAD_MAX_BYTES)
    (message,) = webhook_payloads.messages(webhook(), large, Facts())
    found = codec.decode(message.body, dict)
    assert found["truncated"] is True
    assert found["data"] == {}
    assert len(message.body) < 1_000


MLFLOW = webhook(*webhooks.MLFLOW_EVENTS, style=Style.MLFLOW)
PROMPT = {"mlflow.prompt.is_prompt": "true", "mlflow.prompt.text": "Hi {{x}}", "a": "b"}


@pytest.mark.parametrize(
    ("happened", "facts", "expected"),
    [
        (
            event(EventKind.MODEL_CREATED, description="d", tags={"a": "b"}),
            Facts(),
            [("registered_model", "created", {"name": "churn", "tags": {"a": "b"}, "description": "d"})],
        ),
        (
            event(EventKind.VERSION_REGISTERED, number=2, tags={"a": "b"}, description=""),
            Facts(source="models:/m-1", run_id="r1"),
            [("model_version", "created", {"name": "churn", "version": "2", "source": "models:/m-1",
              "run_id": "r1", "tags": {"a": "b"}, "description": None})],
        ),
        (
            event(EventKind.VERSION_CHANGED, number=2,
                  tags={"a": {"from": None, "to": "b"}, "c": {"from": "d", "to": None}}),
            Facts(),
            [("model_version_tag", "set", {"name": "churn", "version": "2", "key": "a", "value": "b"}),
             ("model_version_tag", "deleted", {"name": "churn", "version": "2", "key": "c"})],
        ),
        (
            event(EventKind.ALIAS_SET, number=2, alias="champion", to=2),
            Facts(),
            [("model_version_alias", "created", {"name": "churn", "alias": "champion", "version": "2"})],
        ),
        (
            event(EventKind.ALIAS_DELETED, number=2, alias="champion"),
            Facts(),
            [("model_version_alias", "deleted", {"name": "churn", "alias": "champion"})],
        ),
        (
            event(EventKind.MODEL_CREATED, description="", tags=PROMPT),
            Facts(prompt=True),
            [("prompt", "created", {"name": "churn", "tags": {"mlflow.prompt.text": "Hi {{x}}", "a": "b"},
              "description": ""})],
        ),
        (
            event(EventKind.VERSION_REGISTERED, number=1, tags=PROMPT),
            Facts(prompt=True),
            [("prompt_version", "created", {"name": "churn", "version": "1", "template": "Hi {{x}}",
              "tags": {"a": "b"}, "description": None})],
        ),
        (
            event(EventKind.MODEL_CHANGED, tags={"a": {"from": None, "to": "b"}}),
            Facts(prompt=True),
            [("prompt_tag", "set", {"name": "churn", "key": "a", "value": "b"})],
        ),
        (event(EventKind.MODEL_CHANGED, tags={"a": {"from": None, "to": "b"}}), Facts(), []),
        (event(EventKind.STAGE_MOVED), Facts(), []),
    ],
)  # fmt: skip
def test_an_event_in_mlflow_s_words(
    happened: Event, facts: Facts, expected: list[tuple[str, str, dict[str, object]]]
) -> None:
    """Each as MLflow's server would have said it: entity, action, time and data, and no other field."""
    found = [codec.decode(one.body, dict) for one in webhook_payloads.messages(MLFLOW, happened, facts)]
    assert [(one["entity"], one["action"], one["data"]) for one in found] == expected
    for one in found:
        assert set(one) == {"entity", "action", "timestamp", "data"}
        assert datetime.fromisoformat(one["timestamp"]) == NOW


def test_a_part_keeps_its_number_whatever_is_wanted() -> None:
    """A message's id must not change with the subscription."""
    changed = event(
        EventKind.VERSION_CHANGED,
        number=2,
        tags={"a": {"from": "b", "to": None}, "c": {"from": None, "to": "d"}},
    )
    only = webhook("model_version_tag.set", style=Style.MLFLOW)
    (message,) = webhook_payloads.messages(only, changed, Facts())
    assert message.part == 1


@pytest.mark.parametrize("word", webhooks.MLFLOW_EVENTS)
def test_there_is_an_example_of_every_word(word: str) -> None:
    """A receiver can be tried with each, before anything happens."""
    found = codec.decode(webhook_payloads.example(MLFLOW, word, NOW).body, dict)
    assert f"{found['entity']}.{found['action']}" == word
    assert found["data"]
