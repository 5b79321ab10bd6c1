"""Routing: who is on which side, for how long, and what a rollback leaves. Property tests of invariants 9, 10
and 11."""

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors, routing
from modelkeep.core.recording import Privacy, Treatment
from modelkeep.core.routing import (
    CANDIDATE_PLACE,
    STABLE_PLACE,
    WHOLE_PPM,
    Arm,
    Epoch,
    Route,
    RoutingTable,
    VersionKey,
    VersionSpec,
)
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.core.values import Digest

STABLE, CANDIDATE, PREVIOUS = (VersionKey(f"version:{letter * 64}") for letter in "abc")
SHADOW = VersionKey(f"version:{'d' * 64}")
CONTENT = Digest(f"sha256:{'e' * 64}")
KEYS = st.binary(min_size=0, max_size=64)
SALTS = st.text(max_size=80)
PPM = st.integers(0, WHOLE_PPM)


def route(**changes: Any) -> Route:
    """A canary at half, changed as asked."""
    fields: dict[str, Any] = {
        "endpoint": "churn",
        "epoch": Epoch(3, 7),
        "stable": STABLE,
        "candidate": CANDIDATE,
        "candidate_ppm": 500_000,
        "previous": PREVIOUS,
        "salt": "salt",
        "rollout": "ro_1",
        "key_header": "X-User",
        "slow_ms": 80.0,
        "lease_s": 30.0,
    }
    return Route(**{**fields, **changes})


def spec(key: VersionKey) -> VersionSpec:
    """A version of no files."""
    return VersionSpec(key=key, model="churn", number=1, semver="1.0.0", digest=CONTENT, files=())


@pytest.mark.req("S2", "S3")
@given(salt=SALTS, key=KEYS, low=PPM, high=PPM)
def test_raising_a_weight_moves_callers_one_way(salt: str, key: bytes, low: int, high: int) -> None:
    """A caller on the candidate's side stays there when the weight grows."""
    low, high = sorted((low, high))
    before = routing.place(route(salt=salt, candidate_ppm=low), key)
    after = routing.place(route(salt=salt, candidate_ppm=high), key)
    assert not (before == CANDIDATE_PLACE and after == STABLE_PLACE)


@given(salt=SALTS, key=KEYS)
def test_none_and_all_are_exactly_that(salt: str, key: bytes) -> None:
    """Weight 0 sends nobody and weight 1,000,000 everybody to the candidate."""
    assert routing.place(route(salt=salt, candidate_ppm=0), key) == STABLE_PLACE
    assert routing.place(route(salt=salt, candidate_ppm=WHOLE_PPM), key) == CANDIDATE_PLACE
    assert routing.place(route(salt=salt, candidate=None, candidate_ppm=0), key) == STABLE_PLACE


@pytest.mark.req("S3")
def test_the_same_key_has_the_same_side_in_every_process() -> None:
    """Sides do not depend on the process, its hash seed or its start: a restart moves nobody."""
    keys = [f"user-{number}".encode() for number in range(500)]
    here = [routing.bucket("rollout-salt", key) for key in keys]
    program = (
        "from modelkeep.core.routing import bucket\n"
        "print([bucket('rollout-salt', f'user-{n}'.encode()) for n in range(500)])"
    )
    for seed in ("0", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        result = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == str(here)


def test_a_known_bucket_never_changes() -> None:
    """A change of the hash would move every caller of every rollout under way; this fails before it does."""
    assert routing.bucket("salt", b"alice") == 315_241
    assert routing.bucket("", b"") == 269_876


@pytest.mark.req("S3")
def test_buckets_are_uniform_and_salts_independent() -> None:
    """Callers spread evenly over the buckets, and the side under one salt says nothing of the side under
    another."""
    keys = [f"caller-{number}".encode() for number in range(40_000)]
    tenths = Counter(routing.bucket("one", key) // 100_000 for key in keys)
    chi_square = sum((count - 4_000) ** 2 / 4_000 for count in tenths.values())
    assert len(tenths) == 10
    assert chi_square < 27.9  # 99.9 % of 9 degrees of freedom
    both = sum(routing.bucket("one", key) < 500_000 and routing.bucket("two", key) < 500_000 for key in keys)
    assert abs(both - 10_000) < 4 * (40_000 * 0.25 * 0.75) ** 0.5


@given(ppm=PPM, candidate=st.booleans())
def test_shares_are_whole_numbers_that_sum_to_a_million(ppm: int, candidate: bool) -> None:
    """The arms of any route are positive and sum to exactly 1,000,000."""
    made = route(candidate_ppm=ppm) if candidate else route(candidate=None, candidate_ppm=0)
    assert sum(arm.weight_ppm for arm in made.arms) == WHOLE_PPM
    assert all(isinstance(arm, Arm) and arm.weight_ppm >= 0 for arm in made.arms)


@pytest.mark.req("S7")
@given(key=KEYS, ppm=PPM)
def test_after_a_rollback_nobody_reaches_the_candidate(key: bytes, ppm: int) -> None:
    """A rollback keeps the stable version, drops the candidate, and cannot be undone by anything older."""
    before = route(candidate_ppm=ppm)
    after = routing.rolled_back(before)
    assert routing.place(after, key) == STABLE_PLACE
    assert (after.stable, after.candidate, after.previous) == (STABLE, None, PREVIOUS)
    assert after.epoch > before.epoch
    assert after.epoch > Epoch(before.epoch.term, 10**9)
    kept = ("endpoint", "salt", "key_header", "slow_ms", "lease_s")
    assert all(getattr(after, name) == getattr(before, name) for name in kept)
    assert after.rollout is None


@pytest.mark.req("S7")
def test_a_rollback_without_a_candidate_goes_to_the_former_version_once() -> None:
    """The version that was taken away is no target of the next rollback, so rollbacks never ping-pong."""
    after = routing.rolled_back(route(candidate=None, candidate_ppm=0))
    assert after.stable == PREVIOUS
    assert after.keys == {PREVIOUS}
    with pytest.raises(errors.NoRollbackTarget, match="modelkeep rollback"):
        routing.rolled_back(after)


@pytest.mark.req("S5", "S8", "S11")
def test_a_rollback_ends_the_shadow_and_keeps_what_is_logged() -> None:
    """What belongs to a movement goes with it; what an endpoint is set to stays, whichever way back."""
    privacy = Privacy(fields={"age": Treatment.HASH}, others=Treatment.DROP)
    moving = route(shadow=SHADOW, shadow_ppm=10, log_ppm=20, privacy=privacy)
    assert moving.keys == {STABLE, CANDIDATE, PREVIOUS, SHADOW}
    for before in (moving, msgspec.structs.replace(moving, candidate=None, candidate_ppm=0)):
        after = routing.rolled_back(before)
        assert (after.shadow, after.shadow_ppm) == (None, 0)
        assert (after.log_ppm, after.privacy) == (20, privacy)
        assert (after.key_header, after.slow_ms, after.lease_s) == ("X-User", 80.0, 30.0)
    assert privacy.of("age") == "hash"
    assert privacy.of("name") == "drop"


@pytest.mark.hostile("impossible-moves")
def test_a_table_that_cannot_be_obeyed_is_refused() -> None:
    """Shares out of range or without a candidate, endpoints twice, and undescribed versions are refused."""
    versions = (spec(STABLE), spec(CANDIDATE), spec(PREVIOUS))
    good = RoutingTable(number=1, routes=(route(),), versions=versions)
    assert routing.check_table(good) is good
    bad = [
        msgspec.structs.replace(good, routes=(route(candidate_ppm=WHOLE_PPM + 1),)),
        msgspec.structs.replace(good, routes=(route(candidate_ppm=-1),)),
        msgspec.structs.replace(good, routes=(route(candidate=None),)),
        msgspec.structs.replace(good, routes=(route(), route())),
        msgspec.structs.replace(good, versions=versions[:2]),
        msgspec.structs.replace(good, routes=(route(log_ppm=WHOLE_PPM + 1),)),
        msgspec.structs.replace(good, routes=(route(shadow_ppm=1),)),
        msgspec.structs.replace(good, routes=(route(shadow=STABLE, shadow_ppm=-1),)),
        msgspec.structs.replace(good, routes=(route(shadow=SHADOW),)),
    ]
    for table in bad:
        with pytest.raises(errors.Invalid):
            routing.check_table(table)


def test_a_table_finds_its_routes_and_versions() -> None:
    """Lookups give what is there, None for an unknown endpoint, and an error for an undescribed version."""
    table = RoutingTable(number=1, routes=(route(),), versions=(spec(STABLE),))
    assert table.route("churn") == route()
    assert table.route("other") is None
    assert table.version(STABLE).label == "churn:1.0.0"
    with pytest.raises(errors.VersionNotFound):
        table.version(CANDIDATE)


@pytest.mark.req("S1", "V1")
def test_a_served_version_has_a_key_of_its_own_whatever_its_bytes() -> None:
    """Two versions with the same files differ as soon as name, number, signature or runtime do; the same
    facts give the same key on every machine."""
    facts: dict[str, Any] = {
        "model": "churn", "number": 1, "semver": "1.0.0", "digest": CONTENT, "files": (),
        "signature": None, "runtime": None,
    }  # fmt: skip
    others = (
        {"model": "team/churn"},
        {"number": 2},
        {"semver": "1.0.1"},
        {"signature": Signature(inputs=(Field(name="age", type=DataType.FLOAT32),))},
        {"runtime": "skops"},
        {"digest": Digest(f"sha256:{'f' * 64}")},
    )
    keys = [VersionSpec.of(**(facts | other)).key for other in ({}, *others)]
    assert len(set(keys)) == len(keys)
    assert keys[0] == VersionSpec.of(**facts).key
    assert keys[0] == "version:8a49478c31e875a771ef3e62e3b512baecc59771f78a9ccf380ca3e62ebaf5c1"
    assert CONTENT not in keys


def test_a_table_calls_no_two_versions_the_same() -> None:
    """What a key names must not depend on who reads the table."""
    table = RoutingTable(number=1, versions=(spec(STABLE), spec(STABLE)))
    with pytest.raises(errors.Invalid, match="same key"):
        routing.check_table(table)
