"""Moves between tables: forward as far as versions are ready and epochs allow, back at once, stable after a
crash."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.routing import (
    EMPTY_TABLE,
    Arm,
    Epoch,
    Loading,
    Route,
    RoutingTable,
    VersionKey,
    VersionSpec,
    check_table,
)
from modelkeep.core.values import Digest
from modelkeep.serving import moves

KEYS = [VersionKey(f"version:{letter * 64}") for letter in "abcd"]
CONTENT = Digest(f"sha256:{'e' * 64}")
ENDPOINTS = ["one", "two", "three"]
EPOCHS = st.builds(Epoch, st.integers(1, 3), st.integers(0, 3))


@st.composite
def routes(draw: st.DrawFn, endpoint: str) -> Route:
    """Any route of an endpoint."""
    candidate = draw(st.none() | st.sampled_from(KEYS))
    share = draw(st.integers(0, 1_000_000)) if candidate else 0
    cuts = sorted(draw(st.lists(st.integers(share, 1_000_000), max_size=4)))
    others = tuple(
        Arm(key=draw(st.sampled_from(KEYS)), weight_ppm=high - low, from_ppm=low)
        for low, high in zip(cuts[::2], cuts[1::2], strict=False)
    )
    return Route(
        endpoint=endpoint,
        epoch=draw(EPOCHS),
        stable=draw(st.sampled_from(KEYS)),
        candidate=candidate,
        candidate_ppm=share,
        others=others,
        previous=draw(st.none() | st.sampled_from(KEYS)),
        load=draw(st.sampled_from(Loading)),
        preview=draw(st.booleans()),
        rollout=draw(st.sampled_from([None, None, "ro_1"])),
    )


@st.composite
def tables(draw: st.DrawFn) -> RoutingTable:
    """Any table of up to three endpoints."""
    chosen = tuple(draw(routes(name)) for name in ENDPOINTS if draw(st.booleans()))
    named = set().union(*(route.keys for route in chosen)) if chosen else set()
    specs = tuple(
        VersionSpec(key=key, model="m", number=1, semver="1.0.0", digest=CONTENT, files=())
        for key in sorted(named)
    )
    return RoutingTable(number=draw(st.integers(1, 9)), routes=chosen, versions=specs)


@pytest.mark.req("S1")
@given(live=tables(), desired=tables())
def test_what_a_movement_needs_does_not_sleep(live: RoutingTable, desired: RoutingTable) -> None:
    """A version may sleep only if every route that names it, and is not fenced, is loaded on demand and has
    no movement under way; and only one that is needed at all."""
    may = moves.may_sleep(live, desired)
    assert may <= moves.needed(live, desired).keys()
    for route in (*live.routes, *desired.routes):
        have = live.route(route.endpoint)
        counts = have is None or route.epoch >= have.epoch
        moving = route.candidate or route.others or route.shadow or route.rollout or route.preview
        if counts and (route.load is Loading.ALWAYS or moving):
            assert not route.keys & may


@pytest.mark.req("S1")
def test_the_versions_of_a_settled_route_on_demand_may_sleep() -> None:
    """The stable version and the former one, as long as no other route needs one of them awake."""
    route = Route(endpoint="one", epoch=Epoch(1, 0), stable=KEYS[0], previous=KEYS[1], load=Loading.ON_DEMAND)
    live = RoutingTable(number=1, routes=(route,))
    assert moves.may_sleep(live, live) == {KEYS[0], KEYS[1]}
    other = Route(endpoint="two", epoch=Epoch(1, 0), stable=KEYS[1])
    assert moves.may_sleep(live, RoutingTable(number=2, routes=(route, other))) == {KEYS[0]}


READY = st.sets(st.sampled_from(KEYS))


@pytest.mark.req("S1", "S7")
@given(live=tables(), desired=tables(), ready=READY)
def test_a_move_forward_obeys_fencing_and_readiness(
    live: RoutingTable, desired: RoutingTable, ready: set[VersionKey]
) -> None:
    """No route goes back in its epoch, and none gives weight to a version that is not ready."""
    after = check_table(moves.next_table(live, desired, ready))
    assert {route.endpoint for route in after.routes} <= {route.endpoint for route in desired.routes}
    for route in after.routes:
        have, want = live.route(route.endpoint), desired.route(route.endpoint)
        assert want is not None
        if route == have:
            continue
        assert have is None or route.epoch >= have.epoch
        assert route.stable in ready
        if route.tried_ppm:
            assert route.tried <= ready
            assert route == want


@pytest.mark.req("S8")
@given(live=tables(), desired=tables(), ready=READY)
def test_a_raised_term_takes_traffic_away_whatever_is_not_loaded_yet(
    live: RoutingTable, desired: RoutingTable, ready: set[VersionKey]
) -> None:
    """A rollback or a rollout that takes another's place does not wait for the next candidate: with stable
    ready, the former candidate has nothing any more."""
    after = moves.next_table(live, desired, ready)
    for want in desired.routes:
        have, now = live.route(want.endpoint), after.route(want.endpoint)
        if have is None or want.epoch.term <= have.epoch.term or want.stable not in ready:
            continue
        assert now is not None
        assert now.epoch == want.epoch
        assert (now.stable, now.candidate) == (want.stable, want.candidate)
        nothing = (0, (0,) * len(want.others))
        assert (now.candidate_ppm, now.others_ppm) in (nothing, (want.candidate_ppm, want.others_ppm))


@given(live=tables(), desired=tables())
def test_a_move_ends_where_it_wants_when_all_is_ready(live: RoutingTable, desired: RoutingTable) -> None:
    """With everything ready, routes that are not fenced are as wanted; going on changes nothing more."""
    after = moves.next_table(live, desired, KEYS)
    for want in desired.routes:
        have = live.route(want.endpoint)
        fenced = have is not None and want.epoch < have.epoch
        assert after.route(want.endpoint) == (have if fenced else want)
    assert moves.next_table(after, desired, KEYS) == after


@given(live=tables(), desired=tables(), ready=READY)
def test_everything_that_is_obeyed_or_wanted_is_kept_loaded(
    live: RoutingTable, desired: RoutingTable, ready: set[VersionKey]
) -> None:
    """The versions to load cover every route before and after the move."""
    needed = moves.needed(live, desired)
    for table in (live, moves.next_table(live, desired, ready)):
        for route in table.routes:
            assert route.keys <= set(needed)


@pytest.mark.req("S7")
@given(live=tables(), late=tables())
def test_nothing_late_undoes_a_rollback(live: RoutingTable, late: RoutingTable) -> None:
    """A table of the same age as the one before the rollback leaves the rolled-back route alone."""
    for route in live.routes:
        try:
            after, former, removed = moves.taken_back(live, route.endpoint)
        except errors.NoRollbackTarget:
            assert route.candidate is None
            assert route.previous is None
            continue
        assert former == route
        rolled = after.route(route.endpoint)
        assert rolled is not None
        assert rolled.candidate is None
        assert rolled.others == ()
        assert removed in route.tried | {route.stable}
        assert route.others or removed == (route.candidate or route.stable)
        same_age = msgspec.structs.replace(live, number=99)
        assert moves.next_table(after, same_age, KEYS).route(route.endpoint) == rolled
        others = [other for other in after.routes if other.endpoint != route.endpoint]
        assert others == sorted(
            (other for other in live.routes if other.endpoint != route.endpoint), key=lambda r: r.endpoint
        )


def test_an_unknown_endpoint_cannot_be_taken_back() -> None:
    """The refusal says where to look."""
    with pytest.raises(errors.RouteNotFound, match="gateway status"):
        moves.taken_back(EMPTY_TABLE, "nothing")


@given(live=tables())
def test_after_a_crash_nobody_has_weight_but_the_stable_versions(live: RoutingTable) -> None:
    """Stable-only changes weights and nothing else, so that the same table from the control plane restores
    it."""
    after = moves.stable_only(live)
    assert all(route.tried_ppm == 0 for route in after.routes)
    assert moves.next_table(after, live, KEYS).routes == tuple(sorted(live.routes, key=lambda r: r.endpoint))


def test_only_newer_routes_ask_for_their_versions_anew() -> None:
    """The same route again, or one that is fenced, is no new wish; a new endpoint and a newer epoch are."""
    a, b, c, d = KEYS
    old = Route(endpoint="one", epoch=Epoch(2, 1), stable=a, candidate=b)
    live = RoutingTable(number=1, routes=(old,))
    before = RoutingTable(number=2, routes=(msgspec.structs.replace(old, epoch=Epoch(2, 3)),))

    def anew(*routes: Route) -> set[VersionKey]:
        return moves.named_anew(live, before, RoutingTable(number=3, routes=routes))

    assert anew(*live.routes) == anew(*before.routes) == set()
    assert anew(msgspec.structs.replace(old, epoch=Epoch(1, 9))) == set()
    assert anew(msgspec.structs.replace(old, epoch=Epoch(2, 4), candidate=c)) == {a, c}
    assert anew(old, Route(endpoint="two", epoch=Epoch(1, 0), stable=d)) == {d}


@pytest.mark.req("S2")
def test_a_version_has_the_workers_of_its_most_demanding_route() -> None:
    """Every version of a route has as many as it says; of two routes the greater counts; what is live and no
    longer wanted by its endpoint counts no more."""

    def route(endpoint: str, workers: int, *keys: VersionKey) -> Route:
        candidate = keys[1] if len(keys) > 1 else None
        return Route(
            endpoint=endpoint, epoch=Epoch(1, 0), stable=keys[0], candidate=candidate, workers=workers
        )

    live = RoutingTable(number=1, routes=(route("one", 5, KEYS[0]), route("gone", 4, KEYS[3])))
    desired = RoutingTable(number=2, routes=(route("one", 2, KEYS[0], KEYS[1]), route("two", 3, KEYS[1])))
    assert moves.workers(live, desired) == {KEYS[0]: 2, KEYS[1]: 3, KEYS[3]: 4}
