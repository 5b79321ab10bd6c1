"""Real gateways for tests and benchmarks: started as processes, asked over HTTP, stopped by their pid."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelkeep.core.errors import GatewayUnavailable
from modelkeep.core.routing import RoutingTable
from modelkeep.serving import control
from modelkeep.serving.journal import DiskFile, Journal
from tests.serving.control_plane import until

PATIENCE = {"ack_timeout_s": 20.0, "hold_s": 25.0}
"""A machine that lets a front or a new worker wait for some seconds is no fault of theirs: unless a test says
otherwise, none is taken for hung for that, and no caller is turned away."""


class Answer:
    """Status, headers and body of one answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def version(self) -> str | None:
        return self.headers.get("x-modelkeep-version")


class Gateway:
    """One gateway process. What it says goes to a file beside its folder, unless told where else."""

    def __init__(
        self,
        data: Path,
        server: str | None,
        *,
        options: str = "",
        fronts: int = 1,
        log: Path | None = None,
    ) -> None:
        self.data = data
        self._log = log or data.parent / f"{data.name}.log"
        self._options = options
        arguments = [f"data=Path({str(data)!r})", "port=PORT", f"fronts={fronts}", "log_level='WARNING'"]
        arguments += [f"{name}={value}" for name, value in PATIENCE.items() if f"{name}=" not in options]
        if server is not None:
            arguments.append(f"server={server!r}")
        self._program = (
            "from pathlib import Path\n"
            "from modelkeep import telemetry\n"
            "from modelkeep.serving.main import run_gateway\n"
            "from modelkeep.serving.options import GatewayOptions\n"
            "telemetry.configure(level='WARNING')\n"
            f"run_gateway(GatewayOptions({', '.join(arguments)}{', ' + options if options else ''}), "
            "on_start=lambda url: print(url, flush=True))\n"
        )
        self.process: subprocess.Popen[str] | None = None
        self.port = 0

    def start(self) -> "Gateway":
        self.data.parent.mkdir(parents=True, exist_ok=True)
        log = open(self._log, "a")  # noqa: SIM115 - the child's
        program = self._program.replace("PORT", str(self.port))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, stderr=log, text=True
        )
        log.close()
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        port = line.rpartition(":")[2]
        if not port.isdigit():
            self.close()
            raise AssertionError(f"the gateway did not start: {line} {self.log()}")
        self.port = int(port)
        return self

    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self._wait()

    def kill(self) -> None:
        """kill -9 of the supervisor."""
        assert self.process is not None
        self.process.kill()
        self._wait()

    def _wait(self) -> int:
        assert self.process is not None
        try:
            return self.process.wait(60)
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
            self._wait()

    def status(self) -> dict[str, Any]:
        return control.call(self.data, "status")

    def version(self, label: str) -> dict[str, Any]:
        absent = {"phase": "absent", "pid": 0}
        try:
            return next((v for v in self.status()["versions"] if v["version"] == label), absent)
        except GatewayUnavailable:  # it answers callers a moment before it takes commands
            return absent

    def wait_ready(self, label: str) -> None:
        until(lambda: self.version(label)["phase"] == "ready", f"{label} is ready; log: {self.log()[-2000:]}")

    def wait_route(self, endpoint: str, **wanted: Any) -> None:
        """Until the live route has these values."""

        def so() -> bool:
            try:
                routes = {route["endpoint"]: route for route in self.status()["routes"]}
            except GatewayUnavailable:  # it answers callers a moment before it takes commands
                return False
            return endpoint in routes and all(routes[endpoint][key] == value for key, value in wanted.items())

        try:
            until(so, f"route {endpoint} has {wanted}")
        except AssertionError as late:
            late.add_note(f"log: {self.log()[-4000:]}")
            with contextlib.suppress(GatewayUnavailable):
                late.add_note(f"status: {json.dumps(self.status())}")
            raise

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        timeout_s: float = 60,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def in_flight(self) -> int:
        """Requests at workers, as the metrics page has it: once a second."""
        page = self.request("GET", "/metrics").body.decode()
        return int(page.partition("\nmodelkeep_gateway_requests_in_flight ")[2].split("\n")[0])

    def predict(self, inputs: Any, *, endpoint: str = "churn", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", f"/endpoints/{endpoint}/predict", {"inputs": inputs}, named)


@contextlib.contextmanager
def running(data: Path, server: str | None, *, options: str = "", fronts: int = 1) -> Iterator[Gateway]:
    """A gateway that is gone afterwards."""
    gateway = Gateway(data, server, options=options, fronts=fronts).start()
    try:
        yield gateway
    finally:
        gateway.close()


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def kill(pid: int) -> None:
    """kill -9."""
    os.kill(pid, signal.SIGKILL)


class Load:
    """Callers in threads, on kept connections, until told to stop; everything they got is kept."""

    def __init__(self, gateway: Gateway, callers: int = 4) -> None:
        self.answers: list[tuple[str, Answer]] = []
        self.passed = [0] * callers
        """Answers by caller."""
        self.broken: list[tuple[str, str]] = []
        self._gateway = gateway
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(callers)]

    def _run(self, number: int) -> None:
        sent = 0
        while not self._stop.is_set():
            sent += 1
            user = f"user-{number}-{sent % 40}"
            try:
                answer = self._gateway.predict([[10, 0]], X_User=user)
            except OSError as problem:
                self.broken.append((user, repr(problem)))
                time.sleep(0.01)
            else:
                self.answers.append((user, answer))
                self.passed[number] += 1

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        time.sleep(0.3)
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def settled(self, *, answers: int = 2) -> None:
        """Wait until every caller has had this many more answers: whatever was under way is over."""
        before = list(self.passed)
        until(
            lambda: all(now >= then + answers for now, then in zip(self.passed, before, strict=True)),
            f"every caller is answered; {self.broken[-1:]}; {self._gateway.log()[-2000:]}",
        )

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for _, answer in self.answers)


def replayed(gateway: Gateway) -> RoutingTable:
    """What the journal on disk says, read from a copy."""
    copy = gateway.data.parent / "copy.jsonl"
    copy.write_bytes((gateway.data / "journal.jsonl").read_bytes())
    journal = Journal(DiskFile(copy))
    try:
        return journal.open().table
    finally:
        journal.close()


def live(gateway: Gateway) -> list[tuple[str, str, str | None, int]]:
    """What the gateway obeys, briefly."""
    listed = gateway.status()["routes"]
    return [(r["endpoint"], r["stable"], r["candidate"], r["candidate_ppm"]) for r in listed]


def briefly(found: RoutingTable) -> list[tuple[str, str, str | None, int]]:
    """The same of a table."""
    names = {spec.key: spec.label for spec in found.versions}
    return [
        (r.endpoint, names[r.stable], names[r.candidate] if r.candidate else None, r.candidate_ppm)
        for r in found.routes
    ]
