"""Counting: callers once per rollout whatever front they reach, ticks numbered and sent until taken, nothing
lost."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core.observation import (
    TICKS_PER_REPORT_MAX,
    LabelCounts,
    Labelled,
    PairCounts,
    SideCounts,
    Tick,
)
from modelkeep.core.routing import Arm, Epoch, Route, VersionKey
from modelkeep.serving import ledger as ledger_of
from modelkeep.serving.counting import BUCKETS_MS, Callers, RouteTally, arrive, count
from modelkeep.serving.ledger import Ledger
from modelkeep.serving.memory import Memory

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 2),  # front
        st.integers(0, 7),  # caller
        st.booleans(),  # failed
        st.booleans(),  # slow
        st.booleans(),  # then collect
    ),
    max_size=60,
)


def record(
    tally: RouteTally, callers: Callers, caller: int, *, failed: bool = False, slow: bool = False
) -> None:
    """One answered request of the candidate."""
    count(tally.candidate, callers, caller, 2.0, failed=failed, refused=False, violation=False, slow=slow)


@pytest.mark.req("S6")
@given(events=EVENTS)
def test_a_caller_is_new_and_first_failing_once_over_all_fronts(
    events: list[tuple[int, int, bool, bool, bool]],
) -> None:
    """However requests spread over fronts and ticks, sums over a rollout count each caller once."""
    ledger = Ledger(NOW, 1)
    tallies = [RouteTally("e", "ro", Epoch(1, 1), 500_000) for _ in range(3)]
    books = [Callers() for _ in range(3)]
    for front, caller, failed, slow, collect in events:
        record(tallies[front], books[front], caller, failed=failed, slow=slow)
        if collect:
            for tally in tallies:
                if (counts := tally.collect()) is not None:
                    ledger.add(counts)
            ledger.close(NOW)
    for tally in tallies:
        if (counts := tally.collect()) is not None:
            ledger.add(counts)
    ledger.close(NOW)
    total = SideCounts()
    for tick in ledger.to_send():
        total = total.plus(tick.candidate)
    assert total.requests == len(events)
    assert total.errors == sum(failed for _, _, failed, _, _ in events)
    assert total.new_callers == len({caller for _, caller, _, _, _ in events})
    assert total.callers_first_error == len({caller for _, caller, failed, _, _ in events if failed})
    assert total.callers_first_slow == len({caller for _, caller, _, slow, _ in events if slow})
    assert total.new_callers_failed <= min(total.new_callers, total.callers_first_error)


@given(callers=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60))
def test_on_one_front_the_first_request_of_a_caller_decides(callers: list[tuple[int, bool]]) -> None:
    """`new_callers_failed` are those whose very first request failed."""
    tally, book, ledger = RouteTally("e", "ro", Epoch(1, 1), 1), Callers(), Ledger(NOW, 1)
    first: dict[int, bool] = {}
    for caller, failed in callers:
        record(tally, book, caller, failed=failed)
        first.setdefault(caller, failed)
    if (counts := tally.collect()) is not None:
        ledger.add(counts)
    ledger.close(NOW)
    assert sum(tick.candidate.new_callers_failed for tick in ledger.to_send()) == sum(first.values())


@pytest.mark.req("S7")
def test_a_caller_whom_a_higher_weight_moves_is_not_new_on_the_other_side() -> None:
    """Seen and failing on stable first, then moved to the candidate: neither a new caller nor a first failure
    there."""
    ledger, book = Ledger(NOW, 1), Callers()
    before, after = (
        RouteTally("e", "ro", Epoch(1, 1), 100_000),
        RouteTally("e", "ro", Epoch(1, 2), 500_000),
    )
    for side in (before.stable, after.candidate):
        count(side, book, 7, 2.0, failed=True, refused=False, violation=False, slow=True)
    for tally in (before, after):
        counts = tally.collect()
        assert counts is not None
        ledger.add(counts)
    ledger.close(NOW)
    first, second = ledger.to_send()

    assert (first.stable.new_callers, first.stable.callers_first_error, first.stable.callers_first_slow) == (
        1,
        1,
        1,
    )
    assert second.candidate.requests == second.candidate.errors == 1
    moved = second.candidate
    assert (moved.new_callers, moved.callers_first_error, moved.callers_first_slow) == (0, 0, 0)


@pytest.mark.req("S7")
def test_callers_are_shared_out_when_they_come_not_when_they_are_answered() -> None:
    """A side that answers nobody for a while still has the callers it was given; each caller comes once."""
    ledger, book, tally = Ledger(NOW, 1), Callers(), RouteTally("e", "ro", Epoch(1, 1), 500_000)
    for caller in (1, 2, 3, 2):
        arrive(tally.stable if caller % 2 else tally.candidate, book, caller)
    record(tally, book, 2)
    counts = tally.collect()
    assert counts is not None
    ledger.add(counts)
    ledger.close(NOW)
    (tick,) = ledger.to_send()

    assert (tick.stable.callers_arrived, tick.stable.new_callers) == (2, 0)
    assert (tick.candidate.callers_arrived, tick.candidate.new_callers) == (1, 1)


def test_past_the_bound_callers_are_no_longer_new() -> None:
    """A full book counts requests and errors on, and no new or first-time caller: power is lost, validity is
    not."""
    book, tally = Callers(maximum=3), RouteTally("e", "ro", Epoch(1, 1), 1)
    for caller in range(5):
        record(tally, book, caller, failed=True)
    assert (tally.candidate.requests, tally.candidate.errors) == (5, 5)
    assert tally.candidate.new_failed == [0, 1, 2]
    assert tally.candidate.first_error == [0, 1, 2]


def test_refusals_and_violations_are_told_apart() -> None:
    """The caller's fault is refused and no error; a violation is an error and named as such."""
    tally = RouteTally("e", None, Epoch(1, 1), 0)
    count(tally.stable, None, 0, 0.4, failed=False, refused=True, violation=False, slow=False)
    count(tally.stable, None, 0, 99_999.0, failed=True, refused=False, violation=True, slow=True)
    side = tally.stable
    assert (side.requests, side.refused, side.errors, side.schema_violations, side.slow) == (2, 1, 1, 1, 1)
    assert (side.buckets[0], side.buckets[-1], sum(side.buckets)) == (1, 1, 2)
    assert side.duration_ms_max == 99_999.0
    assert len(side.buckets) == len(BUCKETS_MS) + 1


def test_few_different_error_texts_are_kept() -> None:
    """What a person wants to read first: at most three, shortened, none twice."""
    tally = RouteTally("e", "ro", Epoch(1, 1), 1)
    for text in ("a", "a", "b" * 5_000, "c", "d"):
        tally.note_error(text)
    assert tally.errors_seen == ["a", "b" * 300, "c"]


def moving(epoch: Epoch, ppm: int, rollout: str | None = "ro", others: tuple[Arm, ...] = ()) -> Route:
    """A route under a rollout."""
    a, b = (VersionKey(f"version:{letter}") for letter in "ab")
    return Route(
        endpoint="e", epoch=epoch, stable=a, candidate=b, candidate_ppm=ppm, rollout=rollout, others=others
    )


@pytest.mark.req("S3", "S7")
def test_every_version_of_a_test_has_counts_of_its_own() -> None:
    """Requests, crashes and first-time callers, each on the side they met, under the shares of the route; a
    caller who changes to stable is not new there."""
    others = tuple(
        Arm(key=VersionKey(f"version:{letter}"), weight_ppm=200_000, from_ppm=at)
        for letter, at in (("c", 100_000), ("d", 300_000))
    )
    route, ledger, book = moving(Epoch(1, 1), 100_000, others=others), Ledger(NOW, 1), Callers()
    route = structs.replace(route, stable_from_ppm=600_000)
    tally = RouteTally("e", "ro", route.epoch, 100_000, route.others_ppm, route.aside_ppm)
    for place, caller in ((0, 1), (1, 2), (2, 3), (3, 4), (3, 5), (0, 5)):
        arrive(tally.side(place), book, caller)
        failed = caller == 5
        count(tally.side(place), book, caller, 1.0, failed=failed, refused=False, violation=False, slow=False)
    counts = tally.collect()
    assert counts is not None
    assert tally.collect() is None
    ledger.add(counts)
    ledger.crashed(route, 3)
    ledger.touch(route)
    ledger.close(NOW)
    (tick,) = ledger.to_send()
    sides = (tick.stable, tick.candidate, *tick.others)
    assert (tick.candidate_ppm, tick.others_ppm, tick.aside_ppm) == (100_000, (200_000, 200_000), 100_000)
    assert [side.requests for side in sides] == [2, 1, 1, 2]
    assert [side.new_callers for side in sides] == [1, 1, 1, 2]
    assert [side.callers_first_error for side in sides] == [0, 0, 0, 1]
    assert [side.crashes for side in sides] == [0, 0, 0, 1]
    assert [side.requests for side in ledger_of.merge(tick, tick).others] == [2, 4]


def _ticks(ledger: Ledger, number: int, rollout: str | None = "ro") -> None:
    for index in range(number):
        ledger.crashed(moving(Epoch(1, 1), 1, rollout), 1)
        ledger.close(NOW + timedelta(seconds=index))


def test_ticks_are_numbered_and_sent_until_they_are_taken() -> None:
    """Numbers rise by one from the start's own number; a lost answer has the same ticks sent again."""
    ledger = Ledger(NOW, 1000)
    _ticks(ledger, 3)
    first = ledger.to_send()
    assert [tick.number for tick in first] == [1000, 1001, 1002]
    assert ledger.to_send() == first
    ledger.taken([("e", "ro", 1001)])
    assert ledger.to_send() == first[2:]
    ledger.taken([("e", "ro", 1002), ("other", None, 5)])
    assert ledger.waiting == 0


@pytest.mark.req("S6")
def test_while_the_control_plane_is_away_ticks_merge_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory is bounded, the sums are kept, and what went out once is never merged into something new."""
    monkeypatch.setattr(ledger_of, "TICKS_KEPT_MAX", 50)
    ledger = Ledger(NOW, 1)
    _ticks(ledger, 5)
    sent = ledger.to_send()
    _ticks(ledger, 500)
    assert ledger.waiting <= 5 + 51
    again = ledger.to_send()
    assert again[:5] == sent
    got: list[Tick] = []
    while batch := ledger.to_send():
        assert len(batch) <= TICKS_PER_REPORT_MAX
        got += batch
        ledger.taken([("e", "ro", batch[-1].number)])
    assert sum(tick.candidate.crashes for tick in got) == 505
    numbers = [tick.number for tick in got]
    assert numbers == sorted(set(numbers))


def test_a_rollout_without_traffic_has_ticks_too() -> None:
    """ "Nothing came" is reported, so that silence can be told from absence; epochs are never mixed."""
    ledger = Ledger(NOW, 1)
    ledger.touch(moving(Epoch(1, 2), 7))
    ledger.touch(moving(Epoch(1, 1), 3))
    ledger.close(NOW + timedelta(seconds=1))
    ticks = ledger.to_send()
    assert [(tick.epoch.seq, tick.candidate_ppm, tick.stable.requests) for tick in ticks] == [
        (1, 3, 0),
        (2, 7, 0),
    ]
    assert [tick.number for tick in ticks] == [1, 2]
    assert all(tick.ended_at - tick.started_at == timedelta(seconds=1) for tick in ticks)


def test_callers_of_a_past_rollout_are_forgotten() -> None:
    """A book is dropped with its rollout; the next one starts afresh."""
    ledger, tally = Ledger(NOW, 1), RouteTally("e", "ro", Epoch(1, 1), 1)
    record(tally, Callers(), 1)
    counts = tally.collect()
    assert counts is not None
    ledger.add(counts)
    ledger.add(counts)
    ledger.forget([("e", "ro_2")])
    ledger.add(counts)
    ledger.close(NOW)
    assert ledger.to_send()[0].candidate.new_callers == 2


@pytest.mark.req("S5")
def test_pairs_go_with_their_tick_and_are_merged_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compared belongs to the epoch and weight of its copy, adds up within a tick, and survives the
    merging of ticks that nobody takes."""
    monkeypatch.setattr(ledger_of, "TICKS_KEPT_MAX", 2)
    ledger = Ledger(NOW, 1)
    one = PairCounts(version=VersionKey("version:2"), pairs=1, compared=1, difference_sum=0.5)
    for second in range(6):
        for _ in range(2):
            ledger.paired("e", None, Epoch(1, 1), 0, one)
        if second == 0:
            ledger.paired("e", None, Epoch(1, 2), 0, one)
        ledger.close(NOW + timedelta(seconds=second))
    ticks = ledger.to_send()
    assert len(ticks) < 7
    by_epoch = {
        epoch: [tick.pairs for tick in ticks if tick.epoch == epoch and tick.pairs is not None]
        for epoch in (Epoch(1, 1), Epoch(1, 2))
    }
    assert sum(pairs.pairs for pairs in by_epoch[Epoch(1, 1)]) == 12
    assert sum(pairs.difference_sum for pairs in by_epoch[Epoch(1, 1)]) == 6.0
    assert sum(pairs.pairs for pairs in by_epoch[Epoch(1, 2)]) == 1


@pytest.mark.req("S7")
def test_labels_count_each_caller_once_in_the_tick_of_its_prediction(tmp_path: Path) -> None:
    """However often and late a caller is labelled, over restarts too; of a rollout that is over nothing
    counts, and without a memory nobody does."""
    key, counts = ("e", "ro"), LabelCounts(labels=3, wrong=2)
    memory = Memory(tmp_path / "callers")

    def tell(ledger: Ledger, seq: int) -> None:
        callers = [(1, False), (1, True), (2, True)]
        ledger.labelled(key, Epoch(1, seq), seq * 100_000, (counts, callers), (LabelCounts(), []))

    ledger = Ledger(NOW, 1, memory=memory)
    tell(ledger, 1)
    ledger.close(NOW)
    assert ledger.to_send() == ()
    ledger.begin(*key)
    for seq in (1, 2):
        tell(ledger, seq)
    ledger.close(NOW)
    first, second = ledger.to_send()
    assert first.labels == Labelled(
        candidate=structs.replace(counts, callers_labelled=2, callers_wrong_at_once=1, callers_first_wrong=2)
    )
    assert (second.epoch, second.labels) == (Epoch(1, 2), Labelled(candidate=counts))
    other = (structs.replace(counts, labels=1), [(2, False), (9, True)])
    nobody = (LabelCounts(), [])
    ledger.labelled(key, Epoch(2, 0), 0, nobody, nobody, [other], (200_000,), 100_000)
    ledger.close(NOW)
    *_, of_others = ledger.to_send()
    assert (of_others.candidate_ppm, of_others.others_ppm, of_others.aside_ppm) == (0, (200_000,), 100_000)
    assert of_others.labels is not None
    assert of_others.labels.others[0].callers_labelled == 1, "the other one had a label already"
    again = Ledger(NOW, 9, memory=memory, resumed=[key])
    tell(again, 3)
    again.close(NOW)
    (late,) = again.to_send()
    assert late.labels == Labelled(candidate=counts)
    both = ledger_of.merge(first, second).labels
    assert both is not None
    assert (both.candidate.labels, both.candidate.callers_labelled) == (6, 2)


@pytest.mark.req("S7")
def test_predictions_are_compared_once_a_caller(tmp_path: Path) -> None:
    """Over ticks and restarts; of a rollout that is over nobody is."""
    key, memory = ("e", "ro"), Memory(tmp_path / "callers")
    ledger = Ledger(NOW, 1, memory=memory)
    ledger.predicted(key, Epoch(1, 1), 5, [(1, 0)], [])
    ledger.begin(*key)
    ledger.predicted(key, Epoch(1, 1), 5, [(1, 0), (2, 3)], [(3, 9)])
    ledger.predicted(key, Epoch(1, 1), 5, [(1, 4), (4, 0)], [])
    ledger.close(NOW)
    (first,) = ledger.to_send()
    assert first.outputs is not None
    assert (first.outputs.candidate[:4], first.outputs.stable[9]) == ((2, 0, 0, 1), 1)
    again = Ledger(NOW, 9, memory=memory, resumed=[key])
    again.predicted(key, Epoch(1, 2), 5, [(1, 0), (5, 1)], [])
    again.close(NOW)
    (second,) = again.to_send()
    both = ledger_of.merge(first, second).outputs
    assert both is not None
    assert both.candidate[:4] == (2, 1, 0, 1)
