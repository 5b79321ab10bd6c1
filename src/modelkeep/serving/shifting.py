"""Predictions of rollouts put into bands, a caller once: what tells whether the candidate predicts otherwise.

The bands are learned from the first callers after a start, and nobody is counted before; a recorder that is
started again learns anew, which changes what a band is and not what may be concluded. Only counts leave this
process, and nothing is written down. Who was counted before a restart, the ledger knows.
"""

from collections.abc import Sequence

from modelkeep.core.observation import CALLERS_TRACKED_MAX
from modelkeep.core.quality import Value, value_of
from modelkeep.core.recording import Privacy
from modelkeep.core.routing import CANDIDATE_PLACE, Epoch, Route, VersionSpec
from modelkeep.core.shift import LEARNED_FROM, Bands, Shift, learned
from modelkeep.serving import messages, records
from modelkeep.serving.joining import TickKey, judged_rows


class _Seen:
    """The callers of one rollout."""

    def __init__(self, shift: Shift) -> None:
        self.shift = shift
        self.callers: set[int] = set()
        self.first: list[Value] = []
        self.bands: Bands | None = None


class Shifting:
    """What one recorder puts into bands."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._counted: dict[TickKey, messages.BandsOf] = {}

    def watch(self, routes: Sequence[Route]) -> None:
        """Compare for the rollouts of these routes from now on."""
        wanted = {
            (route.endpoint, route.rollout): route.shift
            for route in routes
            if route.rollout is not None and route.shift is not None
        }
        self._seen = {key: self._seen.get(key) or _Seen(shift) for key, shift in wanted.items()}

    def predicted(self, record: records.Predicted, spec: VersionSpec | None, privacy: Privacy | None) -> None:
        """Count a caller's first answer, by its first row. Never raises for what a model answered."""
        seen = self._seen.get((record.endpoint, record.rollout))
        if seen is None or record.caller in seen.callers or len(seen.callers) >= CALLERS_TRACKED_MAX:
            return
        rows = judged_rows(record.door, record.body, seen.shift.output, spec, privacy)
        value = value_of(rows[0]) if rows else None
        if value is None:
            return
        seen.callers.add(record.caller)
        if seen.bands is None:
            seen.first.append(value)
            if len(seen.first) >= LEARNED_FROM:
                seen.bands = learned(seen.first)
                seen.first.clear()
            return
        epoch = Epoch(record.term, record.seq)
        weights = (record.candidate_ppm, record.others_ppm, record.aside_ppm)
        key = (record.endpoint, record.rollout, epoch, *weights)
        counted = self._counted.get(key)
        if counted is None:
            counted = self._counted[key] = messages.BandsOf(
                endpoint=record.endpoint,
                rollout=record.rollout,
                epoch=epoch,
                candidate_ppm=record.candidate_ppm,
            )
        side = counted.candidate if record.place == CANDIDATE_PLACE else counted.stable
        side.append((record.caller, seen.bands.place(value)))

    def noted(self) -> list[messages.BandsOf]:
        """Who was counted since the last time."""
        counted, self._counted = self._counted, {}
        return list(counted.values())
