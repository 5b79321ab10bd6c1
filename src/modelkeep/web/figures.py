"""The server's own figures in Prometheus' text format: requests by operation and status, time spent, the
process.

Plain counters in one dictionary: a request costs two additions here. Labels are operation names from the
route table and status classes, so the number of series is bounded.
"""

import time

from modelkeep import __version__, telemetry

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the duration histogram."""


class Figures:
    """Counts of one server process; touched by its event loop only."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int], int] = {}
        self._durations: dict[str, list[float]] = {}

    def count(self, operation: str, status: int, duration_s: float) -> None:
        """Take in one finished request."""
        key = (operation, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        row = self._durations.get(operation)
        if row is None:
            row = self._durations[operation] = [0.0] * (len(BUCKETS_S) + 2)
        place = next((i for i, bound in enumerate(BUCKETS_S) if duration_s <= bound), len(BUCKETS_S))
        row[place] += 1
        row[-1] += duration_s

    def exposition(self, started: float) -> bytes:
        """All figures as text."""
        use = telemetry.process_use()
        lines = [
            "# HELP modelkeep_build_info The release.",
            "# TYPE modelkeep_build_info gauge",
            f'modelkeep_build_info{{version="{__version__}"}} 1',
            "# HELP process_start_time_seconds When the process started.",
            "# TYPE process_start_time_seconds gauge",
            f"process_start_time_seconds {started:.3f}",
            "# HELP process_uptime_seconds How long the process has run.",
            "# TYPE process_uptime_seconds gauge",
            f"process_uptime_seconds {time.time() - started:.3f}",
            "# HELP process_resident_memory_bytes Resident memory.",
            "# TYPE process_resident_memory_bytes gauge",
            f"process_resident_memory_bytes {use.memory_bytes}",
            "# HELP process_cpu_seconds_total Processor time.",
            "# TYPE process_cpu_seconds_total counter",
            f"process_cpu_seconds_total {use.cpu_s:.3f}",
            "# HELP modelkeep_http_requests_total Requests by operation and status.",
            "# TYPE modelkeep_http_requests_total counter",
        ]
        for (operation, status), count in sorted(self._requests.items()):
            lines.append(
                f'modelkeep_http_requests_total{{operation="{operation}",status="{status}"}} {count}'
            )
        lines += [
            "# HELP modelkeep_http_request_duration_seconds Time from the request to its whole answer.",
            "# TYPE modelkeep_http_request_duration_seconds histogram",
        ]
        for operation, row in sorted(self._durations.items()):
            total = 0.0
            for bound, count in zip((*BUCKETS_S, "+Inf"), row[:-1], strict=True):
                total += count
                lines.append(
                    "modelkeep_http_request_duration_seconds_bucket"
                    f'{{operation="{operation}",le="{bound}"}} {total:.0f}'
                )
            lines.append(
                f'modelkeep_http_request_duration_seconds_sum{{operation="{operation}"}} {row[-1]:.6f}'
            )
            lines.append(
                f'modelkeep_http_request_duration_seconds_count{{operation="{operation}"}} {total:.0f}'
            )
        return ("\n".join(lines) + "\n").encode()
