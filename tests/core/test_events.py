"""The chain of events: every bit of it counts, and a walk names the first event that does not fit."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core import codec, errors
from modelkeep.core.events import GENESIS, ChainedEvent, Event, EventKind, chain, leaf_hash, link, verify
from modelkeep.core.values import Actor

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)

bodies = st.dictionaries(
    st.text(max_size=8),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
    ),
    max_size=4,
)


def log_of(*contents: dict[str, object]) -> list[ChainedEvent]:
    """A log with one event for each body."""
    log, previous = [], GENESIS
    for number, body in enumerate(contents, 1):
        event = Event(
            sequence=number,
            kind=EventKind.MODEL_CHANGED,
            at=NOW + timedelta(seconds=number),
            actor=Actor(name="ann"),
            subject="churn",
            model="churn",
            reason="why",
            body=body,
        )
        linked = chain(previous, event)
        previous = bytes.fromhex(linked.link)
        log.append(linked)
    return log


@pytest.mark.req("G8")
def test_leaf_and_link_are_what_anybody_can_compute() -> None:
    """RFC 6962's leaf hash over the canonical encoding, then our link: a verifier needs nothing of ours."""
    (only,) = log_of({"b": 1, "a": "é"})
    encoded = codec.canonical(only.event)
    assert b'"a":"\xc3\xa9","b":1' in encoded
    leaf = hashlib.sha256(b"\x00" + encoded).digest()
    assert only.leaf == leaf.hex() == leaf_hash(only.event).hex()
    assert only.link == hashlib.sha256(b"\x02" + GENESIS + leaf).hexdigest()
    assert hashlib.sha256(b"modelkeep.chain.v1").digest() == GENESIS


@pytest.mark.req("G8")
@given(st.lists(bodies, max_size=6))
def test_an_untouched_log_verifies(contents: list[dict[str, object]]) -> None:
    """Also after a trip through its stored form, and in parts, each from where the former ended."""
    log = [codec.decode(codec.encode(stored), ChainedEvent) for stored in log_of(*contents)]
    report = verify(log)
    assert (report.events, report.head) == (len(log), log[-1].link if log else GENESIS.hex())
    for cut in range(1, len(log)):
        first = verify(log[:cut])
        rest = verify(log[cut:], after=cut, previous=bytes.fromhex(first.head))
        assert (first.events + rest.events, rest.head) == (report.events, report.head)


@pytest.mark.req("G8")
@given(st.lists(bodies, min_size=1, max_size=4), st.data())
def test_any_flipped_bit_is_found_and_named(contents: list[dict[str, object]], data: st.DataObject) -> None:
    """Wherever a bit of a stored event flips: it is no event any more, or the walk names it."""
    log = log_of(*contents)
    victim = data.draw(st.integers(0, len(log) - 1), label="event")
    stored = bytearray(codec.canonical(log[victim]))
    bit = data.draw(st.integers(0, len(stored) * 8 - 1), label="bit")
    stored[bit // 8] ^= 1 << bit % 8
    try:
        changed = codec.decode(bytes(stored), ChainedEvent)
    except errors.MalformedBody:
        return
    if codec.canonical(changed) == codec.canonical(log[victim]):
        return  # another way to write the same; the store compares the text as well
    with pytest.raises(errors.BrokenChain) as caught:
        verify([*log[:victim], changed, *log[victim + 1 :]])
    assert caught.value.details["sequence"] == victim + 1


@pytest.mark.req("G8")
def test_every_single_bit_of_a_whole_log() -> None:
    """All of them, one after the other, in content, leaf and link."""
    log = log_of({"from": "staging", "to": "production"}, {"n": 1})
    for place, stored in enumerate(log):
        whole = codec.canonical(stored)
        for bit in range(len(whole) * 8):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            try:
                event = codec.decode(bytes(changed), ChainedEvent)
            except errors.MalformedBody:
                continue
            if event == stored:
                continue  # a key that nobody reads; the store compares the text as well
            with pytest.raises(errors.BrokenChain, match=f"vent {place + 1} "):
                verify([*log[:place], event, *log[place + 1 :]])


@pytest.mark.req("G8")
def test_what_was_removed_added_or_moved_is_found() -> None:
    """Holes, doubles and swaps are jumps in the numbers; events made anew do not fit their neighbours."""
    log = log_of({"n": 1}, {"n": 2}, {"n": 3})
    for tampered, sequence in (
        ([log[0], log[2]], 2),
        ([log[1], log[2]], 1),
        ([log[0], log[0], log[1]], 2),
        ([log[1], log[0], log[2]], 1),
        ([log[0], structs.replace(log[2], event=structs.replace(log[2].event, sequence=2))], 2),
    ):
        with pytest.raises(errors.BrokenChain) as caught:
            verify(tampered)
        assert caught.value.details["sequence"] == sequence
    forged = chain(bytes.fromhex(log[0].link), structs.replace(log[1].event, reason="another why"))
    with pytest.raises(errors.BrokenChain, match=r"Event 3 .* its link does not match"):
        verify([log[0], forged, log[2]])


@pytest.mark.req("G8")
def test_a_log_cut_at_its_end_needs_its_head() -> None:
    """A prefix of a log is a log: only who knows the last link sees that something is missing."""
    log = log_of({"n": 1}, {"n": 2})
    assert verify(log[:1]).head != verify(log).head


def test_events_hold_no_number_without_a_canonical_form() -> None:
    """What two encoders would write differently is refused when it is recorded."""
    with pytest.raises(errors.Invalid):
        log_of({"x": float("nan")})


def test_kinds_are_subject_and_verb() -> None:
    """`subject.verb_past`, each once, so that a subscriber can filter by prefix."""
    assert all(
        kind.count(".") == 1 and kind.replace("_", "").replace(".", "").isalpha() for kind in EventKind
    )


@pytest.mark.req("G8")
@given(bodies)
def test_linking_gives_the_text_that_was_hashed(body: dict[str, object]) -> None:
    """The document that is stored is the one whose hash is the leaf, and both forms of a link agree."""
    (stored,) = log_of(body)
    linked = link(GENESIS, stored.event)
    assert linked.document == codec.canonical(stored.event)
    assert (linked.leaf.hex(), linked.link.hex()) == (stored.leaf, stored.link)
    assert hashlib.sha256(b"\x00" + linked.document).digest() == linked.leaf
