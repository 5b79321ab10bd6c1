"""The server's own figures in Prometheus' text format: requests by operation and status, time spent, the
process.

Plain counters in one dictionary: a request costs a few additions here. Labels are operation names from the
route table and statuses, so the number of series is bounded.
"""

import time
from bisect import bisect_left
from datetime import UTC, datetime

from modelkeep import __version__, telemetry
from modelkeep.service.deliveries import Counts

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the duration histogram."""


class Figures:
    """Counts of one server process; touched by its event loop only."""

    def __init__(self, deliveries: Counts | None = None) -> None:
        self._deliveries = deliveries or Counts()
        self._requests: dict[tuple[str, int], int] = {}
        self._durations: dict[str, list[float]] = {}
        self._running = 0
        self._started = time.time()

    def began(self) -> None:
        """A request is under way; it ends in `count`."""
        self._running += 1

    def count(self, operation: str, status: int, duration_s: float) -> None:
        """Take in one finished request."""
        self._running -= 1
        key = (operation, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        row = self._durations.get(operation)
        if row is None:
            row = self._durations[operation] = [0.0] * (len(BUCKETS_S) + 2)
        row[bisect_left(BUCKETS_S, duration_s)] += 1
        row[-1] += duration_s

    def exposition(self) -> bytes:
        """All figures as text."""
        use = telemetry.process_use()
        lines = [
            *_single("modelkeep_build_info", "gauge", "The release.", 1, f'version="{__version__}"'),
            *_single("process_start_time_seconds", "gauge", "When the process started.", self._started),
            *_single("process_resident_memory_bytes", "gauge", "Resident memory.", use.memory_bytes),
            *_single("process_cpu_seconds_total", "counter", "Processor time.", use.cpu_s),
            *_single("process_open_fds", "gauge", "Open descriptors.", use.descriptors),
            *_single("modelkeep_http_requests_running", "gauge", "Requests under way.", self._running),
            *_head("modelkeep_http_requests_total", "counter", "Requests by operation and status."),
        ]
        for (operation, status), times in sorted(self._requests.items()):
            lines.append(
                f'modelkeep_http_requests_total{{operation="{operation}",status="{status}"}} {times}'
            )
        name = "modelkeep_http_request_duration_seconds"
        lines += _head(name, "histogram", "Time from the request to its whole answer.")
        for operation, row in sorted(self._durations.items()):
            total = 0.0
            for bound, count in zip((*BUCKETS_S, "+Inf"), row[:-1], strict=True):
                total += count
                lines.append(f'{name}_bucket{{operation="{operation}",le="{bound}"}} {total:.0f}')
            lines.append(f'{name}_sum{{operation="{operation}"}} {row[-1]:.6f}')
            lines.append(f'{name}_count{{operation="{operation}"}} {total:.0f}')
        lines += self._webhooks()
        return ("\n".join(lines) + "\n").encode()

    def _webhooks(self) -> list[str]:
        """What was delivered to webhooks, by this process."""
        told, name = self._deliveries, "modelkeep_webhook_attempts_total"
        return [
            *_head(name, "counter", "Attempts to deliver to webhooks by outcome."),
            f'{name}{{outcome="delivered"}} {told.delivered}',
            f'{name}{{outcome="failed"}} {told.failed}',
            *_single(
                "modelkeep_webhook_set_aside_total",
                "counter",
                "Messages given up after their last attempt.",
                told.set_aside,
            ),
            *_single(
                "modelkeep_webhook_waiting",
                "gauge",
                "Webhooks whose receiver takes nothing.",
                len(told.late),
            ),
            *_single(
                "modelkeep_webhook_lag_seconds",
                "gauge",
                "Age of the oldest event that a receiver did not take.",
                told.lag_s(datetime.now(UTC)),
            ),
        ]


def _head(name: str, kind: str, meaning: str) -> list[str]:
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]


def _single(name: str, kind: str, meaning: str, value: float, labels: str = "") -> list[str]:
    return [*_head(name, kind, meaning), f"{name}{f'{{{labels}}}' if labels else ''} {value}"]
