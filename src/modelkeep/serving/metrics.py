"""The gateway's metrics page: what all fronts counted, added up by the supervisor, in Prometheus' text
format.

Labels are endpoints and versions of the table and a few fixed words, never anything a caller sent, so that
the page cannot grow with traffic. Counters of versions that are gone go with them. Nothing is judged here.
"""

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelkeep.core.observation import VersionPhase, VersionReport
from modelkeep.core.routing import RoutingTable, VersionKey
from modelkeep.serving.counting import BUCKETS_MS, SideDelta
from modelkeep.serving.messages import DELAY_BUCKETS_MS, ROWS_BUCKETS, FrontCounts, Noted, Worked

WAIT_BUCKETS_S = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram of what first requests waited."""
_OUTCOMES = ("ok", "refused", "error")


class Metrics:
    """Running totals since the supervisor started."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, str, str], int] = {}
        self._buckets: dict[tuple[str, str], list[int]] = {}
        self._sums_ms: dict[tuple[str, str], float] = {}
        self._statuses: dict[int, int] = {}
        self._retries: dict[str, int] = {}
        self._shed: dict[str, int] = {}
        self._log_lost: dict[str, int] = {}
        self._copies_dropped: dict[str, int] = {}
        self.log: Noted | None = None
        """How the prediction log stands; None while there is none."""
        self._fronts: dict[int, FrontCounts] = {}
        self._work: dict[str, Worked] = {}
        self._slept: dict[tuple[str, str], int] = {}
        self._waits = [0] * (len(WAIT_BUCKETS_S) + 1)
        self._waited_s = 0.0
        self.rollbacks: dict[str, int] = {}
        self.crashes: dict[str, int] = {}

    def add(self, front: int, counts: FrontCounts, labels: Mapping[tuple[str, int], str]) -> None:
        """Take in what one front counted. `labels` names the version at each (endpoint, place of its route)
        under the counts' epoch."""
        self._fronts[front] = counts
        for status, number in counts.statuses.items():
            self._statuses[status] = self._statuses.get(status, 0) + number
        for totals, more in (
            (self._retries, counts.retries),
            (self._shed, counts.shed),
            (self._log_lost, counts.log_lost),
            (self._copies_dropped, counts.copies_dropped),
        ):
            for endpoint, number in more.items():
                totals[endpoint] = totals.get(endpoint, 0) + number
        for waited_s in counts.first_waits_s:
            self._waits[bisect.bisect_left(WAIT_BUCKETS_S, waited_s)] += 1
            self._waited_s += waited_s
        for route in counts.routes:
            for place, delta in enumerate((route.stable, route.candidate, *route.others)):
                label = labels.get((route.endpoint, place))
                if delta.counts.requests and label is not None:
                    self._add_side(route.endpoint, label, delta)

    def _add_side(self, endpoint: str, label: str, delta: SideDelta) -> None:
        counts = delta.counts
        ok = counts.requests - counts.refused - counts.errors
        for outcome, number in zip(_OUTCOMES, (ok, counts.refused, counts.errors), strict=True):
            key = (endpoint, label, outcome)
            self._outcomes[key] = self._outcomes.get(key, 0) + number
        buckets = self._buckets.setdefault((endpoint, label), [0] * (len(BUCKETS_MS) + 1))
        for index, number in enumerate(delta.buckets):
            buckets[index] += number
        self._sums_ms[endpoint, label] = self._sums_ms.get((endpoint, label), 0.0) + counts.duration_ms_sum

    def worked(self, label: str, more: Worked) -> None:
        """Take in what one of a version's workers did since it last said so."""
        have = self._work.get(label)
        self._work[label] = more if have is None else _together(have, more)

    def slept(self, label: str, cause: str) -> None:
        """A version was put to sleep."""
        self._slept[label, cause] = self._slept.get((label, cause), 0) + 1

    def forget(self, labels: Iterable[str]) -> None:
        """Drop the counters of versions that are not among these."""
        keep = set(labels)
        self._outcomes = {key: value for key, value in self._outcomes.items() if key[1] in keep}
        self._buckets = {key: value for key, value in self._buckets.items() if key[1] in keep}
        self._sums_ms = {key: value for key, value in self._sums_ms.items() if key[1] in keep}
        self._work = {key: value for key, value in self._work.items() if key in keep}
        self.crashes = {key: value for key, value in self.crashes.items() if key in keep}
        self._slept = {key: value for key, value in self._slept.items() if key[0] in keep}

    def render(
        self,
        table: RoutingTable,
        versions: Iterable[VersionReport],
        labels: Mapping[VersionKey, str],
        *,
        budget_bytes: int,
        contact_age_s: float | None,
        ticks_waiting: int,
        journal_ok: bool,
        cpu_s: float,
        memory_bytes: int,
    ) -> str:
        """The page. `labels` names versions by key."""
        page = _Page()
        self._render_answers(page)
        self._render_work(page)
        self._render_losses(page)
        page.totals(
            "rollbacks_total",
            "Rollbacks that this gateway made by itself or on a local command.",
            self.rollbacks,
        )
        page.family("http_responses_total", "counter", "Answers by HTTP status, all pages together.")
        for status, number in sorted(self._statuses.items()):
            page.sample("http_responses_total", number, status=str(status))
        reports = sorted(versions, key=lambda version: labels.get(version.key, version.key))
        _render_versions(page, table, reports, labels)
        self._render_sleep(page, reports, labels)
        held = sum(report.memory_bytes for report in reports)
        text = "Memory that the versions together may hold; 0 for no limit."
        page.single("memory_budget_bytes", "gauge", text, budget_bytes)
        page.single(
            "resident_memory_bytes",
            "gauge",
            "Resident memory of supervisor, fronts and workers.",
            held + memory_bytes + sum(front.memory_bytes for front in self._fronts.values()),
        )
        page.single("table_number", "gauge", "Number of the routing table that is obeyed.", table.number)
        if contact_age_s is not None:
            text = "Seconds since the control plane last answered."
            page.single("control_plane_contact_age_seconds", "gauge", text, contact_age_s)
        page.single(
            "ticks_waiting", "gauge", "Counts that the control plane has not taken yet.", ticks_waiting
        )
        page.single("journal_ok", "gauge", "0 while the journal cannot be written.", int(journal_ok))
        self._render_processes(page, cpu_s, memory_bytes)
        return page.text()

    def _render_answers(self, page: "_Page") -> None:
        """What the versions answered, and how long that took."""
        page.family("requests_total", "counter", "Prediction requests answered, by version and outcome.")
        for (endpoint, label, outcome), number in sorted(self._outcomes.items()):
            page.sample("requests_total", number, endpoint=endpoint, version=label, outcome=outcome)
        name = "request_duration_seconds"
        page.family(
            name, "histogram", "Time from sending a request to its version until the answer, queue included."
        )
        bounds = [f"{ms / 1000:g}" for ms in BUCKETS_MS]
        for (endpoint, label), buckets in sorted(self._buckets.items()):
            total_s = self._sums_ms[endpoint, label] / 1000
            page.histogram(name, bounds, buckets, total_s, endpoint=endpoint, version=label)

    def _render_work(self, page: "_Page") -> None:
        """How the workers put requests together, and what they never computed."""
        work = sorted(self._work.items())
        page.family("batches_total", "counter", "Calls of a model, by the reason why each held no more.")
        for label, done in work:
            for reason, number in sorted(done.batches.items()):
                page.sample("batches_total", number, version=label, reason=reason)
        page.family("batch_rows", "histogram", "Rows of one call of a model.")
        bounds = [str(bound) for bound in ROWS_BUCKETS]
        for label, done in work:
            page.histogram("batch_rows", bounds, done.rows_buckets, done.rows, version=label)
        page.family(
            "queue_delay_seconds", "histogram", "A request's time in its worker before its call began."
        )
        bounds = [f"{ms / 1000:g}" for ms in DELAY_BUCKETS_MS]
        for label, done in work:
            page.histogram("queue_delay_seconds", bounds, done.delay_buckets, done.delay_s, version=label)
        page.family(
            "not_computed_total",
            "counter",
            "Requests that left a worker's queue because their time was over or their caller was gone.",
        )
        for label, done in work:
            page.sample("not_computed_total", done.expired, version=label, why="expired")
            page.sample("not_computed_total", done.cancelled, version=label, why="cancelled")
        page.family(
            "input_violations_total",
            "counter",
            "Requests that missed the signature, by field: refused, or made to fit by a lenient endpoint.",
        )
        for label, done in work:
            for outcome, fields in (("refused", done.misses.refused), ("fitted", done.misses.fitted)):
                for field, number in sorted(fields.items()):
                    page.sample("input_violations_total", number, version=label, field=field, outcome=outcome)

    def _render_losses(self, page: "_Page") -> None:
        """What had to be tried again, turned away or left out, and how the prediction log stands."""
        page.totals(
            "retries_total", "Requests that the candidate failed and the stable version got.", self._retries
        )
        page.totals("shed_total", "Requests turned away because too many were waiting.", self._shed)
        page.totals(
            "log_lost_total",
            "Answers that were to be logged and found no room on their way to the recorder.",
            self._log_lost,
        )
        page.totals(
            "shadow_dropped_total",
            "Copies for a shadow version that were not made, because something was busy.",
            self._copies_dropped,
        )
        if self.log is not None:
            text = "Rows in the prediction log since its recorder began."
            page.single("log_rows_total", "counter", text, self.log.rows)
            text = "Rows that the recorder could not write since it began."
            page.single("log_rows_lost_total", "counter", text, self.log.lost)
            page.single("log_size_bytes", "gauge", "Size of the prediction log's files.", self.log.size_bytes)

    def _render_sleep(
        self, page: "_Page", reports: Sequence[VersionReport], labels: Mapping[VersionKey, str]
    ) -> None:
        """Which versions are loaded on demand, and what that costs those who ask."""
        page.family("version_asleep", "gauge", "1 when a version will be loaded when somebody asks for it.")
        page.family("version_loads_total", "counter", "Times that a version was loaded.")
        for report in reports:
            label = labels.get(report.key, report.key)
            page.sample("version_asleep", int(report.phase is VersionPhase.SLEEPING), version=label)
            page.sample("version_loads_total", report.loads, version=label)
        page.family(
            "version_evictions_total",
            "counter",
            "Times that a version was put to sleep: nobody asked (idle), or another needed its memory.",
        )
        for (label, cause), number in sorted(self._slept.items()):
            page.sample("version_evictions_total", number, version=label, cause=cause)
        name = "first_request_wait_seconds"
        page.family(name, "histogram", "Time that the first request for a sleeping version waited for it.")
        page.histogram(name, [f"{bound:g}" for bound in WAIT_BUCKETS_S], self._waits, self._waited_s)

    def _render_processes(self, page: "_Page", cpu_s: float, memory_bytes: int) -> None:
        """What is under way in the fronts, and what each process uses. `cpu_s` and `memory_bytes` are the
        supervisor's."""
        fronts = self._fronts.values()
        page.single(
            "connections", "gauge", "Open connections of callers.", sum(f.connections for f in fronts)
        )
        page.single(
            "requests_in_flight", "gauge", "Requests at workers now.", sum(f.in_flight for f in fronts)
        )
        page.family("process_cpu_seconds_total", "counter", "Processor time by process.")
        page.family("process_memory_bytes", "gauge", "Resident memory by process.")
        uses = [
            ("supervisor", cpu_s, memory_bytes),
            *((f"front-{i}", f.cpu_s, f.memory_bytes) for i, f in self._fronts.items()),
        ]
        for process, cpu, memory in uses:
            page.sample("process_cpu_seconds_total", cpu, process=process)
            page.sample("process_memory_bytes", memory, process=process)


def _render_versions(
    page: "_Page", table: RoutingTable, reports: Sequence[VersionReport], labels: Mapping[VersionKey, str]
) -> None:
    """Which share each version has, and how it stands."""
    page.family("route_weight_ratio", "gauge", "Share of an endpoint's callers that a version has.")
    for route in table.routes:
        for arm in route.arms:
            label = labels.get(arm.key, arm.key)
            page.sample("route_weight_ratio", arm.weight_ppm / 1e6, endpoint=route.endpoint, version=label)
    page.family("version_ready", "gauge", "1 when a version's worker is loaded and serving.")
    for report in reports:
        ready = report.phase is VersionPhase.READY
        page.sample("version_ready", int(ready), version=labels.get(report.key, report.key))
    page.family("version_device", "gauge", "Workers of a version that compute on a device.")
    for report in reports:
        for device in sorted(set(report.devices)):
            label, number = labels.get(report.key, report.key), report.devices.count(device)
            page.sample("version_device", number, version=label, device=device)
    page.family("version_crashes_total", "counter", "Deaths of a version's worker.")
    text = "Workers replaced by fresh ones because they grew towards their limit of memory."
    page.family("version_replacements_total", "counter", text)
    page.family("version_memory_bytes", "gauge", "Resident memory of a version's worker.")
    for report in reports:
        label = labels.get(report.key, report.key)
        page.sample("version_crashes_total", report.crashes, version=label)
        page.sample("version_replacements_total", report.replaced, version=label)
        page.sample("version_memory_bytes", report.memory_bytes, version=label)


class _Page:
    """Families with their samples, each family in one piece as the format asks."""

    def __init__(self) -> None:
        self._heads: dict[str, str] = {}
        self._samples: dict[str, list[str]] = {}

    def family(self, name: str, kind: str, text: str) -> None:
        full = f"modelkeep_gateway_{name}"
        self._heads[name] = f"# HELP {full} {text}\n# TYPE {full} {kind}\n"
        self._samples[name] = []

    def sample(self, name: str, value: float, **labels: Any) -> None:
        family = max((head for head in self._heads if name.startswith(head)), key=len)
        inner = ",".join(f'{key}="{_escaped(str(text))}"' for key, text in labels.items())
        braces = f"{{{inner}}}" if labels else ""
        self._samples[family].append(f"modelkeep_gateway_{name}{braces} {value}\n")

    def histogram(
        self, name: str, bounds: Sequence[str], buckets: Sequence[int], total: float, **labels: str
    ) -> None:
        """The samples of one histogram; `buckets` has one more than `bounds`, for what is beyond them."""
        count = 0
        for bound, number in zip((*bounds, "+Inf"), buckets, strict=True):
            count += number
            self.sample(f"{name}_bucket", count, **labels, le=bound)
        self.sample(f"{name}_sum", total, **labels)
        self.sample(f"{name}_count", count, **labels)

    def single(self, name: str, kind: str, text: str, value: float) -> None:
        self.family(name, kind, text)
        self.sample(name, value)

    def totals(self, name: str, text: str, by_endpoint: Mapping[str, int]) -> None:
        self.family(name, "counter", text)
        for endpoint, number in sorted(by_endpoint.items()):
            self.sample(name, number, endpoint=endpoint)

    def text(self) -> str:
        return "".join(head + "".join(self._samples[name]) for name, head in self._heads.items())


def _together(one: Worked, two: Worked) -> Worked:
    reasons = one.batches.keys() | two.batches.keys()
    return Worked(
        batches={reason: one.batches.get(reason, 0) + two.batches.get(reason, 0) for reason in reasons},
        rows=one.rows + two.rows,
        rows_buckets=[a + b for a, b in zip(one.rows_buckets, two.rows_buckets, strict=True)],
        delay_s=one.delay_s + two.delay_s,
        delay_buckets=[a + b for a, b in zip(one.delay_buckets, two.delay_buckets, strict=True)],
        expired=one.expired + two.expired,
        cancelled=one.cancelled + two.cancelled,
        misses=one.misses.plus(two.misses),
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
