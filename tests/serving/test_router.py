"""The router of a front: swaps whole, assigns by key, pins by version, and loses no count over a swap."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core.routing import Arm, Epoch, Route, VersionKey, VersionSpec, bucket, place
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.core.values import Digest
from modelkeep.serving.counting import caller_hash, count
from modelkeep.serving.messages import Swap
from modelkeep.serving.router import Router, changes, named

STABLE, CANDIDATE, PREVIOUS = (VersionKey(f"version:{letter * 64}") for letter in "abc")


class Version:
    """What a router needs of a version."""

    def __init__(self, key: VersionKey, semver: str) -> None:
        self.key = key
        self.semver = semver


VERSIONS = {
    STABLE: Version(STABLE, "1.0.0"),
    CANDIDATE: Version(CANDIDATE, "2.0.0"),
    PREVIOUS: Version(PREVIOUS, "0.9.0"),
}


def route(**changed: Any) -> Route:
    """A canary at half, changed as asked."""
    fields: dict[str, Any] = {
        "endpoint": "churn",
        "epoch": Epoch(1, 1),
        "stable": STABLE,
        "candidate": CANDIDATE,
        "previous": PREVIOUS,
        "candidate_ppm": 500_000,
        "salt": "s",
        "rollout": "ro_1",
        "key_header": "X-User",
    }
    return Route(**{**fields, **changed})


def swap(serial: int, *changed: Route, removed: tuple[str, ...] = ()) -> Swap:
    """A swap of these routes."""
    return Swap(serial=serial, number=serial, changed=changed, removed=removed, versions=())


def router(*swaps: Swap) -> Router[Version]:
    """A router that obeyed these swaps."""
    made: Router[Version] = Router()
    for each in swaps:
        made.swap(each, VERSIONS)
    return made


@pytest.mark.req("S3")
@given(key=st.binary(min_size=1, max_size=40), ppm=st.integers(0, 1_000_000))
def test_a_request_goes_where_the_core_says(key: bytes, ppm: int) -> None:
    """The key header decides, whatever its case in the route; two fronts with one table agree."""
    wanted = route(candidate_ppm=ppm)
    for made in (router(swap(1, wanted)), router(swap(1, route()), swap(2, wanted))):
        at, caller = made.targets[b"churn"].assign({b"x-user": key}, b"10.0.0.1")
        assert at == place(wanted, key)
        assert caller == (caller_hash(key) if ppm else 0)


@pytest.mark.req("S3")
@given(key=st.binary(min_size=1, max_size=40))
def test_each_version_of_a_test_answers_its_own_callers(key: bytes) -> None:
    """A place of the route is a version and a side to count on, first seen and remembered alike; one that was
    taken out is stable, and its callers are nobody who is counted."""
    others = (
        Arm(key=PREVIOUS, weight_ppm=300_000, from_ppm=300_000),
        Arm(key=STABLE, weight_ppm=0, from_ppm=600_000),
    )
    wanted = route(candidate_ppm=300_000, previous=None, others=others, stable_from_ppm=800_000)
    target = router(swap(1, wanted)).targets[b"churn"]
    for _ in range(2):
        at, caller = target.assign({b"x-user": key}, b"")
        gone = 600_000 <= bucket(wanted.salt, key) < 800_000
        assert (at, caller) == (place(wanted, key), 0 if gone else caller_hash(key))
    version = target.at(at) or target.stable
    assert version.key == {0: STABLE, 1: CANDIDATE, 2: PREVIOUS}[at]
    side = target.tally.side(at)
    arrived = [side is one for one in (target.tally.stable, target.tally.candidate, *target.tally.others)]
    assert arrived.index(True) == at
    assert (target.tally.others_ppm, target.tally.aside_ppm) == ((300_000, 0), 200_000)


def test_without_its_header_a_caller_is_its_address() -> None:
    """A missing or empty header falls back to the address; so does a route that names none."""
    target = router(swap(1, route())).targets[b"churn"]
    for headers in ({}, {b"x-user": b""}):
        assert target.assign(headers, b"10.0.0.1") == (place(route(), b"10.0.0.1"), caller_hash(b"10.0.0.1"))
    plain = router(swap(1, route(key_header=None))).targets[b"churn"]
    assert plain.assign({b"x-user": b"me"}, b"10.0.0.1")[1] == caller_hash(b"10.0.0.1")


@pytest.mark.req("S2")
def test_a_key_is_looked_for_in_header_cookie_body_and_address() -> None:
    """The first that is there counts; what cannot be read has none; a route that names neither cookie nor
    field looks for neither."""
    keyed = route(key_cookie="visitor", key_field="/customer/ids/1")
    target = router(swap(1, keyed)).targets[b"churn"]
    cookie = {b"cookie": b"a=1; visitor=v7; b=2"}
    body = b'{"customer": {"ids": ["x", "y"]}}'
    for headers, data, key in (
        ({b"x-user": b"me"} | cookie, body, b"me"),
        (cookie, body, b"v7"),
        ({b"cookie": b"visitor="}, body, b"y"),
        ({}, body, b"y"),
        ({}, b'{"customer": {"ids": ["x", 7]}}', b"7"),
        ({}, b'{"customer": {"ids": ["x"]}}', b"10.0.0.1"),
        ({}, b'{"customer": {"ids": ["x", null]}}', b"10.0.0.1"),
        ({}, b'{"customer": 3}', b"10.0.0.1"),
        ({}, b"{", b"10.0.0.1"),
        ({}, b"", b"10.0.0.1"),
    ):
        assert target.assign(headers, b"10.0.0.1", data) == (place(keyed, key), caller_hash(key)), data
    plain = router(swap(1, route())).targets[b"churn"]
    assert plain.assign(cookie, b"10.0.0.1", body)[1] == caller_hash(b"10.0.0.1")


@pytest.mark.req("S6")
def test_what_stands_in_a_body_for_the_key_alone_is_taken_out_of_it() -> None:
    """Values stay as they were written; what a version knows stays where it is, and so does what cannot be
    read."""
    trims = router(swap(1, route(key_field="/customer/id"))).targets[b"churn"].trims
    assert trims is not None
    for sent, left in (
        (b'{"customer": {"id": 1}, "inputs": {"x": [1.50e1]}}', b'{"inputs":{"x": [1.50e1]}}'),
        (b'{"cust\\u006fmer": 1, "inputs": []}', b'{"inputs":[]}'),
        (b'{"inputs": {"customer": [1]}}', b'{"inputs": {"customer": [1]}}'),
        (b'[{"customer": 1}]', b'[{"customer": 1}]'),
        (b'{"customer": ', b'{"customer": '),
    ):
        assert trims(sent) == left
    for pointer in ("/inputs/customer/0", "/dataframe_split/data/0/0", None):
        assert router(swap(1, route(key_field=pointer))).targets[b"churn"].trims is None


def test_without_a_rollout_nobody_is_hashed() -> None:
    """A route without candidate and rollout costs no hash: everybody is on stable, counted as requests
    only."""
    quiet = route(candidate=None, candidate_ppm=0, rollout=None)
    assert router(swap(1, quiet)).targets[b"churn"].assign({b"x-user": b"me"}, b"") == (0, 0)


def test_an_older_swap_changes_nothing() -> None:
    """Swaps that arrive out of order or twice are ignored."""
    made = router(swap(5, route(candidate_ppm=1)))
    made.swap(swap(4, route(candidate_ppm=999_999)), VERSIONS)
    made.swap(swap(5, removed=("churn",)), VERSIONS)
    assert made.targets[b"churn"].route.candidate_ppm == 1


def test_a_pinned_version_is_one_that_the_route_has_loaded() -> None:
    """Stable, candidate and previous can be asked for by version; others cannot."""
    target = router(swap(1, route())).targets[b"churn"]
    assert [target.pinned(text) for text in ("1.0.0", "2.0.0", "0.9.0", "3.0.0")] == [
        VERSIONS[STABLE],
        VERSIONS[CANDIDATE],
        VERSIONS[PREVIOUS],
        None,
    ]


@pytest.mark.req("S4")
def test_only_a_route_with_a_preview_shows_its_candidate() -> None:
    """Without a share nobody else meets it, nobody is hashed, and nobody's first time is used up."""
    shown = router(swap(1, route(candidate_ppm=0, preview=True))).targets[b"churn"]
    assert shown.previewed is VERSIONS[CANDIDATE]
    assert shown.assign({b"x-user": b"me"}, b"") == (0, 0)
    assert shown.callers is None
    assert router(swap(1, route())).targets[b"churn"].previewed is None


@pytest.mark.req("S6")
def test_a_late_answer_is_counted_under_the_epoch_it_was_sent_under() -> None:
    """After a swap the former epoch's tally stays until its last request is answered and handed over."""
    made = router(swap(1, route()))
    old = made.targets[b"churn"]
    old.tally.open += 1
    made.swap(swap(2, route(epoch=Epoch(1, 2), candidate_ppm=900_000)), VERSIONS)
    assert old.tally in made.tallies()
    count(old.tally.candidate, None, 0, 1.0, failed=False, refused=False, violation=False, slow=False)
    old.tally.open -= 1
    handed_over = [counts for tally in made.tallies() if (counts := tally.collect())]
    assert [(c.epoch, c.candidate_ppm, c.candidate.counts.requests) for c in handed_over] == [
        (Epoch(1, 1), 500_000, 1)
    ]
    assert old.tally not in made.tallies()


def test_callers_are_remembered_for_a_rollout_and_forgotten_after_it() -> None:
    """Raising the weight keeps the rollout's callers; the end of the rollout frees them."""
    made = router(swap(1, route()))
    books = made.targets[b"churn"].callers
    made.swap(swap(2, route(epoch=Epoch(1, 2), candidate_ppm=900_000)), VERSIONS)
    assert made.targets[b"churn"].callers is books
    made.swap(swap(3, route(epoch=Epoch(1, 3), rollout="ro_2")), VERSIONS)
    assert made.targets[b"churn"].callers is not books


def test_only_what_changed_is_sent() -> None:
    """The difference of two tables is the new, the changed and the gone."""
    same, before, gone = route(endpoint="same"), route(endpoint="x"), route(endpoint="gone")
    after, new = route(endpoint="x", candidate_ppm=1), route(endpoint="new")
    assert changes((same, before, gone), (same, after, new)) == ((after, new), ("gone",))


def test_a_versions_name_is_safe_in_a_header() -> None:
    """Whatever a table calls a version, no line break reaches a header; tensors are named in the protocol's
    words."""
    fields = (Field(name="img", type=DataType.FLOAT32, shape=(3, -1)),)
    spec = VersionSpec.of(
        model="a\r\nX: y",
        number=1,
        semver="1.0.0",
        digest=Digest(f"sha256:{'e' * 64}"),
        files=(),
        signature=Signature(inputs=fields),
    )
    name = named(spec)
    assert name.label == "a??X: y:1.0.0"
    assert (name.inputs[0].datatype, name.inputs[0].shape) == ("FP32", (-1, 3, -1))
