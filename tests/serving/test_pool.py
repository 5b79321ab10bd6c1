"""Who may hold memory: pinned versions always, others as far as the budget goes and always one of them, and
the longest unasked gives way first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core.routing import VersionKey
from modelkeep.serving.pool import Cause, Decision, Resident, Stay, decide, expected_bytes, room_bytes

KEYS = [VersionKey(f"version:{letter * 64}") for letter in "abcdefgh"]
NOW = 1_000.0
IDLE = 300.0


@st.composite
def residents(draw: st.DrawFn) -> list[Resident]:
    """Up to eight versions in any state."""
    return [
        Resident(
            key=key,
            stay=draw(st.sampled_from(Stay)),
            memory_bytes=draw(st.integers(1, 100)),
            pinned=draw(st.booleans()),
            busy=draw(st.booleans()),
            used_s=draw(st.integers(0, 1_000)) * 1.0,
            asked_s=draw(st.none() | st.integers(900, 1_000).map(float)),
        )
        for key in KEYS[: draw(st.integers(0, len(KEYS)))]
    ]


BUDGET = st.integers(1, 400)


def of(everybody: list[Resident]) -> dict[VersionKey, Resident]:
    """The versions by key."""
    return {one.key: one for one in everybody}


def held(everybody: list[Resident]) -> int:
    """What those that are not pinned hold just now."""
    return sum(one.memory_bytes for one in everybody if one.stay is not Stay.ASLEEP and not one.pinned)


def done(everybody: list[Resident], decision: Decision) -> list[Resident]:
    """The versions right after a decision was carried out: nothing that leaves has left yet."""
    after = []
    for one in everybody:
        if one.key in decision.wake:
            one = structs.replace(one, stay=Stay.LOADING, asked_s=None)
        elif one.key in dict(decision.sleep):
            one = structs.replace(one, stay=Stay.LEAVING)
        after.append(one)
    return after


def settled(everybody: list[Resident]) -> list[Resident]:
    """The versions once whoever leaves has left and whoever loads is loaded."""
    moved = {Stay.LEAVING: Stay.ASLEEP, Stay.LOADING: Stay.AWAKE}
    return [structs.replace(one, stay=moved.get(one.stay, one.stay)) for one in everybody]


@pytest.mark.req("S2")
@given(everybody=residents(), budget=st.just(0) | BUDGET)
def test_who_is_pinned_or_busy_is_never_put_to_sleep(everybody: list[Resident], budget: int) -> None:
    """Only an awake version that nothing pins and nobody is being answered by goes to sleep, and each at most
    once."""
    decision = decide(everybody, budget_bytes=budget, idle_s=IDLE, now_s=NOW)
    put = [of(everybody)[key] for key, _ in decision.sleep]
    assert all(one.stay is Stay.AWAKE and not one.pinned and not one.busy for one in put)
    assert len({one.key for one in put}) == len(put)
    assert not {one.key for one in put} & set(decision.wake)


@pytest.mark.req("S2")
@given(everybody=residents(), budget=st.just(0) | BUDGET)
def test_who_is_pinned_is_loaded_whatever_the_budget_says(everybody: list[Resident], budget: int) -> None:
    """A rollout does not wait for memory; and nobody is loaded whom nobody asked for."""
    decision = decide(everybody, budget_bytes=budget, idle_s=IDLE, now_s=NOW)
    for one in everybody:
        if one.pinned and one.stay is Stay.ASLEEP:
            assert one.key in decision.wake
        elif one.key in decision.wake:
            assert one.stay is Stay.ASLEEP
            assert one.asked_s is not None


@pytest.mark.req("S2")
@given(everybody=residents(), budget=BUDGET)
def test_what_is_pinned_takes_room_but_never_all(everybody: list[Resident], budget: int) -> None:
    """Beside whatever is pinned there is room for each other version that fits into the budget, and where the
    largest of them fits beside the pinned ones, the budget holds for all together."""
    room = room_bytes(everybody, budget)
    pinned = sum(one.memory_bytes for one in everybody if one.pinned)
    fitting = [one.memory_bytes for one in everybody if not one.pinned and one.memory_bytes <= budget]
    assert all(size <= room for size in fitting)
    assert room <= budget
    if pinned + max(fitting, default=0) <= budget:
        assert pinned + room == budget


@pytest.mark.req("S2")
@given(everybody=residents(), budget=BUDGET)
def test_loading_on_demand_never_exceeds_the_room(everybody: list[Resident], budget: int) -> None:
    """Whoever is loaded on demand fits beside all others on demand that hold memory at that moment, also by
    those that are leaving."""
    decision = decide(everybody, budget_bytes=budget, idle_s=IDLE, now_s=NOW)
    demanded = [of(everybody)[key] for key in decision.wake if not of(everybody)[key].pinned]
    if demanded:
        assert held(done(everybody, decision)) <= room_bytes(everybody, budget)


@pytest.mark.req("S2")
@given(everybody=residents(), budget=BUDGET)
def test_the_room_is_not_exceeded_while_somebody_could_give_way(
    everybody: list[Resident], budget: int
) -> None:
    """Once those that leave have left, either all fit or nobody is left who could sleep."""
    decision = decide(everybody, budget_bytes=budget, idle_s=0, now_s=NOW)
    after = done(everybody, decision)
    staying = held([one for one in after if one.stay is not Stay.LEAVING])
    assert staying <= room_bytes(everybody, budget) or not any(one.free for one in after)


@pytest.mark.req("S2")
@given(everybody=residents(), budget=BUDGET)
def test_the_longest_unasked_gives_way_first(everybody: list[Resident], budget: int) -> None:
    """Nobody sleeps for want of memory while another who was asked earlier, and could sleep, stays awake."""
    decision = decide(everybody, budget_bytes=budget, idle_s=0, now_s=NOW)
    after = of(done(everybody, decision))
    stayed = [one.used_s for one in after.values() if one.free]
    for key, cause in decision.sleep:
        assert cause is Cause.MEMORY
        assert all(after[key].used_s <= used_s for used_s in stayed)


@pytest.mark.req("S2")
@given(everybody=residents(), budget=BUDGET)
def test_nobody_gives_way_in_vain(everybody: list[Resident], budget: int) -> None:
    """Where the room is not exceeded already, versions sleep only if somebody who waits gets in by it."""
    decision = decide(everybody, budget_bytes=budget, idle_s=0, now_s=NOW)
    pinned = [one.key for one in everybody if one.pinned]
    staying = held([one for one in everybody if one.stay is not Stay.LEAVING])
    if decision.sleep and staying <= room_bytes(everybody, budget):
        later = decide(settled(done(everybody, decision)), budget_bytes=budget, idle_s=0, now_s=NOW)
        demanded = {*decision.wake, *later.wake}.difference(pinned)
        assert demanded


@pytest.mark.req("S2")
@given(everybody=residents(), budget=BUDGET)
def test_whoever_waits_gets_in_as_soon_as_there_is_room(everybody: list[Resident], budget: int) -> None:
    """Carried out again and again with nobody busy, everybody who was asked for is loaded sooner or later,
    whatever is pinned, unless it alone is larger than the budget; and it comes to rest."""
    everybody = settled([structs.replace(one, busy=False) for one in everybody])
    asked = {one.key for one in everybody if one.asked_s is not None and one.stay is Stay.ASLEEP}
    woken: set[VersionKey] = set()
    for _ in range(4 * len(KEYS)):
        decision = decide(everybody, budget_bytes=budget, idle_s=0, now_s=NOW)
        woken |= set(decision.wake)
        everybody = settled(done(everybody, decision))
    assert decision == Decision(hopeless=decision.hopeless)
    assert asked <= woken | set(decision.hopeless)
    for key in decision.hopeless:
        assert of(everybody)[key].memory_bytes > budget


@pytest.mark.req("S2")
@given(everybody=residents())
def test_without_a_budget_everybody_asked_for_is_loaded_at_once(everybody: list[Resident]) -> None:
    """No budget, no queue; then idleness alone puts to sleep, and exactly those not asked for so long."""
    decision = decide(everybody, budget_bytes=0, idle_s=IDLE, now_s=NOW)
    for one in everybody:
        if one.stay is Stay.ASLEEP and one.asked_s is not None:
            assert one.key in decision.wake
        assert ((one.key, Cause.IDLE) in decision.sleep) == (one.free and NOW - one.used_s >= IDLE)
    assert not decision.hopeless


@pytest.mark.req("S2")
def test_who_was_asked_first_is_served_first() -> None:
    """Room for one: the one that waits longer gets it, and the other waits."""
    first, second, old = (
        Resident(key=KEYS[1], stay=Stay.ASLEEP, memory_bytes=60, asked_s=990.0),
        Resident(key=KEYS[0], stay=Stay.ASLEEP, memory_bytes=60, asked_s=995.0),
        Resident(key=KEYS[2], stay=Stay.AWAKE, memory_bytes=60, used_s=10.0),
    )
    begun = decide([first, second, old], budget_bytes=100, idle_s=0, now_s=NOW)
    assert begun == Decision(sleep=((old.key, Cause.MEMORY),))
    left = structs.replace(old, stay=Stay.ASLEEP)
    assert decide([first, second, left], budget_bytes=100, idle_s=0, now_s=NOW).wake == (first.key,)


@pytest.mark.req("S2")
def test_a_rollout_beyond_the_budget_leaves_room_for_one_on_demand() -> None:
    """Two pinned versions hold more than there is: one at a time of those on demand is there, and the next
    that is asked for takes its place; only who is larger than the whole budget is told so."""
    canary = [
        Resident(key=key, stay=Stay.AWAKE, memory_bytes=70, pinned=True, used_s=NOW) for key in KEYS[:2]
    ]
    here = Resident(key=KEYS[2], stay=Stay.AWAKE, memory_bytes=40, used_s=10.0)
    asked = Resident(key=KEYS[3], stay=Stay.ASLEEP, memory_bytes=60, asked_s=990.0)
    large = Resident(key=KEYS[4], stay=Stay.ASLEEP, memory_bytes=101, asked_s=980.0)
    everybody = [*canary, here, asked, large]
    begun = decide(everybody, budget_bytes=100, idle_s=0, now_s=NOW)
    assert begun == Decision(sleep=((here.key, Cause.MEMORY),), hopeless=(large.key,))
    then = decide(settled(done(everybody, begun)), budget_bytes=100, idle_s=0, now_s=NOW)
    assert then.wake == (asked.key,)
    assert not decide([*canary, here], budget_bytes=100, idle_s=0, now_s=NOW).sleep


@pytest.mark.req("S2")
def test_what_a_version_will_hold_is_what_it_held() -> None:
    """Measured once, it is believed; before that its files count beside a bare process, for each of them."""
    assert expected_bytes(10, 2, 77) == 77
    assert expected_bytes(30, 2, None) == 2 * expected_bytes(30, 1, None) > 60
