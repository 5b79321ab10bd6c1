"""Labels joined to the predictions of rollouts that are judged by them, counted by side, epoch and weight.

A prediction is remembered when it is answered, under the route that it was answered under; a label counts
when it comes, in a tick of that route. Callers go on as hashes: who is counted for the first time is the
ledger's business, what the counts say is judged elsewhere, and labels are kept whether they find a prediction
here or not.
"""

import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from modelkeep import telemetry
from modelkeep.core.feedback import Label
from modelkeep.core.observation import PairCounts
from modelkeep.core.quality import Quality, Value, is_wrong, label_of, value_of
from modelkeep.core.recording import Privacy, Treatment
from modelkeep.core.routing import Epoch, Route, VersionKey, VersionSpec
from modelkeep.serving import messages, records
from modelkeep.serving.awaiting import Awaiting, Prediction
from modelkeep.serving.messages import Door
from modelkeep.serving.pairing import UNREADABLE, outputs
from modelkeep.serving.prediction_log import FOLDER, endpoint_folder

SUFFIX = ".awaiting"
FILES_KEPT = 8
"""Tables of rollouts that no route names, the newest: one may be named again when a gateway has restarted."""
ROWS_MAX = 100
"""Rows of one request that are remembered: a batch job is one caller however many rows it asks about."""

log = telemetry.Log("gateway.joining")

TickKey = tuple[str, str, Epoch, int, tuple[int, ...], int]
"""Endpoint, rollout, epoch, and the weights in ppm: the candidate's, those of a test's further versions, and
what is set aside."""


_PAIRED_ROWS = (-1, -2)
"""Where what stable and what the shadow said to a request waits for its label, beside the rows of others."""


class _Rule(Struct, frozen=True):
    """Of a rollout: what makes a prediction wrong, how many further versions there are, and who gets copies,
    or did."""

    quality: Quality
    others: int
    tried: VersionKey | None


class _Tally:
    """Labels of all sides under one set of weights, since they were last told."""

    def __init__(self, others: int) -> None:
        self.sides = [messages.ToldSide() for _ in range(2 + others)]
        """By their places in the route."""

    def add(self, made: Prediction, wrong: bool | None) -> None:
        """One label."""
        if made.place >= len(self.sides):
            return  # of a table that was made for another test
        side = self.sides[made.place]
        side.labels += 1
        if wrong is None:
            side.odd += 1
            return
        side.callers.append((made.caller, wrong))
        side.wrong += wrong


class Joining:
    """What one recorder joins."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._rules: dict[tuple[str, str], _Rule] = {}
        self._tables: dict[tuple[str, str], Awaiting | None] = {}
        """None: the disk refused it."""
        self._pairs: dict[tuple[str, str, Epoch, int], PairCounts] = {}
        self._tallies: dict[TickKey, _Tally] = {}

    def watch(self, routes: Sequence[Route]) -> None:
        """Join for the rollouts of these routes from now on."""
        self._rules = {
            (route.endpoint, route.rollout): _Rule(
                route.quality, len(route.others), route.shadow or route.candidate
            )
            for route in routes
            if route.rollout is not None and route.quality is not None
        }
        for key in [key for key in self._tables if key not in self._rules]:
            table = self._tables.pop(key)
            if table is not None:
                table.close()
        self._forget()

    def _path(self, key: tuple[str, str]) -> Path:
        name = hashlib.sha256(key[1].encode()).hexdigest()[:32]
        return endpoint_folder(self._data, key[0]) / f"{name}{SUFFIX}"

    def _forget(self) -> None:
        """Remove the tables of former rollouts, but for the newest."""
        used = {self._path(key) for key in self._rules}
        with contextlib.suppress(OSError):
            former = [path for path in (self._data / FOLDER).glob(f"*/*{SUFFIX}") if path not in used]
            former.sort(key=lambda path: path.stat().st_mtime, reverse=True)
            for path in former[FILES_KEPT:]:
                path.unlink(missing_ok=True)

    def _table(self, key: tuple[str, str]) -> Awaiting | None:
        if key not in self._tables:
            try:
                self._tables[key] = Awaiting(self._path(key), others=self._rules[key].others)
            except OSError as problem:
                self._given_up(key, problem)
        return self._tables[key]

    def _given_up(self, key: tuple[str, str], problem: OSError) -> None:
        log.error(
            "Predictions cannot be remembered: labels of this rollout count no more.",
            endpoint=key[0],
            rollout=key[1],
            error=str(problem),
        )
        table = self._tables.get(key)
        if table is not None:
            table.close()
        self._tables[key] = None

    def predicted(self, record: records.Predicted, spec: VersionSpec | None, privacy: Privacy | None) -> None:
        """Remember an answer, row by row, as far as privacy lets its output be kept. Never raises for what a
        model answered.
        """
        key = (record.endpoint, record.rollout)
        rule = self._rules.get(key)
        table = self._table(key) if rule is not None else None
        if rule is None or table is None or len(record.others_ppm) != rule.others:
            return
        rows = judged_rows(record.door, record.body, rule.quality.output, spec, privacy)
        epoch = Epoch(record.term, record.seq)
        try:
            for row, said in enumerate(rows[:ROWS_MAX]):
                value = value_of(said)
                if value is None:
                    continue
                made = Prediction(
                    value=value,
                    caller=record.caller,
                    place=record.place,
                    epoch=epoch,
                    candidate_ppm=record.candidate_ppm,
                    at=int(record.at),
                    others_ppm=record.others_ppm,
                    aside_ppm=record.aside_ppm,
                )
                table.put(record.request_id, row, made)
        except OSError as problem:
            self._given_up(key, problem)

    def labelled(self, endpoint: str, given: Sequence[Label]) -> None:
        """Count the labels that belong to predictions of a rollout under way: each once, the first that was
        said."""
        for key, rule in self._rules.items():
            if key[0] != endpoint:
                continue
            table = self._table(key)
            for label in given if table is not None else ():
                assert table is not None, "there are labels only for a table"
                try:
                    made = table.take(label.request_id, label.row)
                except OSError as problem:
                    self._given_up(key, problem)
                    break
                true = label_of(label.label, rule.quality.label)
                if made is None:
                    if label.row == 0 and rule.tried is not None:
                        self._label_pair(key, table, rule, rule.tried, label.request_id, true)
                    continue
                wrong = is_wrong(rule.quality, made.value, true) if true is not None else None
                tick = (*key, made.epoch, made.candidate_ppm, made.others_ppm, made.aside_ppm)
                self._tallies.setdefault(tick, _Tally(rule.others)).add(made, wrong)

    def paired(
        self,
        record: records.Pair,
        specs: tuple[VersionSpec | None, VersionSpec | None],
        privacy: Privacy | None,
    ) -> None:
        """Remember what both said to a request of which the shadow got a copy, where both answered: of its
        first row alone, for all of them have one caller. Never raises for what a model answered.

        Args:
            specs: stable's, and the shadow's.
        """
        key = (record.endpoint, record.rollout or "")
        rule = self._rules.get(key)
        table = self._table(key) if rule is not None and record.request_id else None
        if rule is None or table is None:
            return
        said = [
            judged_rows(record.door, reply.body, rule.quality.output, spec, privacy)[:1]
            for reply, spec in zip((record.stable, record.shadow), specs, strict=True)
            if reply.status == 200
        ]
        values = [value_of(rows[0]) for rows in said if rows]
        epoch = Epoch(record.term, record.seq)
        try:
            for row, value in zip(_PAIRED_ROWS, values, strict=False):
                if len(values) == len(_PAIRED_ROWS) and value is not None:
                    made = Prediction(
                        value=value, caller=0, place=0, epoch=epoch, candidate_ppm=record.candidate_ppm,
                        at=int(time.time()),
                    )  # fmt: skip
                    table.put(record.request_id, row, made)
        except OSError as problem:
            self._given_up(key, problem)

    def _label_pair(
        self,
        key: tuple[str, str],
        table: Awaiting,
        rule: "_Rule",
        tried: VersionKey,
        request_id: str,
        true: Value | None,
    ) -> None:
        """Count the label of a request that both answered, on the side that was wrong alone."""
        made = [table.take(request_id, row) for row in _PAIRED_ROWS]
        stable, shadow = made
        if stable is None or shadow is None or true is None:
            return
        wrong = [is_wrong(rule.quality, each.value, true) for each in (stable, shadow)]
        if None in wrong:
            return
        counts = PairCounts(
            version=tried,
            labelled=1,
            only_stable_wrong=int(wrong == [True, False]),
            only_shadow_wrong=int(wrong == [False, True]),
        )
        tick = (*key, stable.epoch, stable.candidate_ppm)
        known = self._pairs.get(tick)
        self._pairs[tick] = counts if known is None else known.plus(counts)

    def noted_pairs(self) -> dict[tuple[str, str, Epoch, int], PairCounts]:
        """What labels said of copies since the last time, by endpoint, rollout, epoch and weight."""
        pairs, self._pairs = self._pairs, {}
        return pairs

    def noted(self) -> list[messages.LabelsOf]:
        """What was counted since the last time."""
        tallies, self._tallies = self._tallies, {}
        return [
            messages.LabelsOf(
                endpoint=endpoint,
                rollout=rollout,
                epoch=epoch,
                candidate_ppm=ppm,
                stable=tally.sides[0],
                candidate=tally.sides[1],
                others=tuple(tally.sides[2:]),
                others_ppm=others_ppm,
                aside_ppm=aside_ppm,
            )
            for (endpoint, rollout, epoch, ppm, others_ppm, aside_ppm), tally in tallies.items()
        ]

    def close(self) -> None:
        """Let go of all files."""
        for table in self._tables.values():
            if table is not None:
                table.close()
        self._tables.clear()


def judged_rows(
    door: int, body: bytes, output: str | None, spec: VersionSpec | None, privacy: Privacy | None
) -> list[Any]:
    """The rows of the output of that name (None: the first); none where it is not there, or not to be kept.

    Raises:
        Nothing: a model may have answered anything.
    """
    try:
        found: Mapping[str, list[Any]] = outputs(Door(door), body)
    except UNREADABLE:
        return []
    known = spec.signature.outputs if spec is not None and spec.signature is not None else ()
    first = known[0].name if known else next(iter(found), "")
    name = output or first
    if privacy is not None and privacy.of(name) is not Treatment.KEEP:
        return []
    if name in found:
        return found[name]
    return found[""] if "" in found and len(known) <= 1 else []
