"""A front: the process that speaks HTTP to callers, decides each caller's side, and counts what they meet.

It forwards bodies as they are; decoding and checking them is the worker's business, so that a poisonous
request can hurt one version's process only. The stable version never suffers from the candidate: whatever
goes wrong on the candidate (dead, full, too slow, an error of its own) is counted against it and tried once
more on the stable version. A front holds no state that its supervisor could not give it again, and dies with
it.
"""

import asyncio
import gc
import os
import signal
import socket
import time
from email.utils import formatdate
from typing import Any, cast

from modelkeep import telemetry
from modelkeep.core import codec, errors
from modelkeep.core.routing import Role, VersionKey
from modelkeep.serving import frames, messages
from modelkeep.serving.answers import Answers
from modelkeep.serving.counting import arrive, count
from modelkeep.serving.guard import Guard
from modelkeep.serving.http import HttpConnection, Request
from modelkeep.serving.messages import Door
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.pages import PROBES, Pages
from modelkeep.serving.processes import die_with_parent, new_loop
from modelkeep.serving.router import Router, Target
from modelkeep.serving.upstream import ServedVersion, Upstream

_SWEEP_S = 0.1
_CONNECTION_SWEEP_EVERY = 5
"""Sweeps over which all connections are looked at once: a part at a time, so that thousands of them make no
pause that a caller feels."""
_COLLECT_AFTER = (10_000, 20, 50)
"""When the garbage collector looks: a request leaves nothing behind for it, a closed connection does."""
_RECONNECT_S = 0.1
"""Between two tries to reach a worker; by then the supervisor knows when it is dead."""
_CANDIDATE_SHARE = 0.5
"""Of a request's time, what the candidate may use before the request goes to the stable version."""
_GUARD_SWEEPS = 20
"""Sweeps between two looks at the callers' tokens."""
_DOORS = {b"predict": Door.PREDICT, b"invocations": Door.INVOCATIONS}
_JSON_TYPES = (b"application/json", b"application/vnd.api+json")

log = telemetry.Log("gateway.front")


class Call:
    """One prediction request on its way."""

    __slots__ = (
        "body", "caller", "connection", "counted", "deadline", "door", "endpoint", "expires", "identity",
        "parked_until", "request_id", "role", "sent", "target", "tries", "version",
    )  # fmt: skip

    def __init__(
        self, connection: HttpConnection, request: Request, door: Door, target: Target[ServedVersion]
    ) -> None:
        self.connection = connection
        self.door = door
        self.target = target
        self.endpoint = target.name
        self.body = request.body
        self.request_id = b""
        self.role: Role | None = None
        """None for a pinned request: it is on no side and is counted on none."""
        self.version = target.stable
        self.caller = 0
        self.counted = False
        self.tries = 0
        self.sent = 0.0
        self.deadline = 0.0
        self.expires = 0.0
        self.parked_until = 0.0
        self.identity = 0


class Front:
    """The application behind every connection, and the supervisor's partner."""

    def __init__(self, channel: "Channel", hello: messages.Hello) -> None:
        self.options: GatewayOptions = hello.options
        self.answers = Answers()
        self.draining = False
        self._channel = channel
        self._versions: dict[VersionKey, ServedVersion] = {}
        self._router: Router[ServedVersion] = Router()
        self._connections: set[HttpConnection] = set()
        self._retries: dict[str, int] = {}
        self._shed: dict[str, int] = {}
        self._pages = Pages(self.answers, self._router, self._ask_metrics, known=hello.known)
        self._guard: Guard | None = None
        if self.options.callers_token_file is not None:
            self._guard = Guard(self.options.callers_token_file)
        self._sweeps = 0
        self._sweep_share = 0
        self._unswept: list[HttpConnection] = []
        self._server: asyncio.Server | None = None
        self._loop = asyncio.get_running_loop()
        self._sweep()
        self.obey(hello.swap)

    # --------------------------------------------------------------------------- what the supervisor asks for

    def receive(self, message: messages.ToFront) -> None:
        """Do what the supervisor says."""
        match message:
            case messages.Swap():
                self.obey(message)
            case messages.WorkerUp(version=name, path=path):
                self._version_up(name, path)
            case messages.WorkerDown(key=key, failed=failed):
                self._version_down(key, failed)
            case messages.Collect():
                self._report()
            case messages.Page(number=number, text=text):
                self._pages.metrics(number, text)
            case messages.Drain(close=close):
                self._pages.draining = True
                if close:
                    self._begin_drain()
            case messages.Hello():
                raise errors.Invalid("A front is greeted once.")

    def obey(self, swap: messages.Swap) -> None:
        """Swap the routes and confirm, with the counts that belong to the former ones first."""
        for name in swap.versions:
            self._version(name)
        self._router.swap(swap, self._versions)
        self._pages.known = self._pages.known or swap.number > 0
        last_sent = {v.key: v.last_sent for v in self._versions.values() if v.last_sent}
        self._report()
        self._channel.send(messages.Swapped(serial=swap.serial, last_sent=last_sent))

    def _report(self) -> None:
        """Hand over the counts."""
        routes = [counts for tally in self._router.tallies() if (counts := tally.collect()) is not None]
        self._channel.send(
            messages.FrontCounts(
                routes=routes,
                statuses=self.answers.statuses,
                retries=self._retries,
                shed=self._shed,
                connections=len(self._connections),
                in_flight=sum(version.in_flight for version in self._versions.values()),
                cpu_s=telemetry.cpu_s(),
                memory_bytes=telemetry.memory_bytes(os.getpid()),
            )
        )
        self.answers.statuses, self._retries, self._shed = {}, {}, {}

    def _version(self, name: messages.VersionName) -> ServedVersion:
        version = self._versions.get(name.key)
        if version is None:
            version = self._versions[name.key] = ServedVersion(name)
        return version

    def _version_up(self, name: messages.VersionName, path: str) -> None:
        version = self._version(name)
        version.path, version.failed = path, False
        if not version.connecting:
            version.connecting = True
            self._loop.create_task(self._connect(version, 0.0))

    def _version_down(self, key: VersionKey, failed: bool) -> None:
        version = self._versions.get(key)
        if version is None:
            return
        version.path, version.failed = None, failed
        if version.upstream is not None:
            version.upstream.close()
        if failed:
            while version.parked:
                self._unavailable(version.parked.popleft())
        used = {id(v) for t in self._router.targets.values() for v in (t.stable, t.candidate, t.previous)}
        if id(version) not in used and not version.in_flight and not version.parked:
            del self._versions[key]

    async def _connect(self, version: ServedVersion, wait_s: float) -> None:
        """Reach a worker; try again for as long as the supervisor says that it is there.

        Args:
            wait_s: after a loss: a dying worker's socket still accepts for a moment, and would take a request
                with it a second time.
        """
        try:
            await asyncio.sleep(wait_s)
            while version.path is not None and version.upstream is None:
                try:
                    _, upstream = await self._loop.create_unix_connection(
                        lambda: Upstream(version, self._answered, self._lost), version.path
                    )
                except OSError:
                    await asyncio.sleep(_RECONNECT_S)
                    continue
                version.upstream = upstream
                version.warm_left = self.options.warmup_requests
                self._channel.send(messages.Connected(key=version.key))
                while version.parked and version.upstream is not None:
                    self._dispatch(version.parked.popleft(), time.monotonic())
        finally:
            version.connecting = False

    # ----------------------------------------------------------------------------- what a connection asks for

    def opened(self, connection: HttpConnection) -> bool:
        """Count a new connection in; False when there is no room."""
        if self.draining or len(self._connections) >= self.options.connections_max:
            return False
        self._connections.add(connection)
        return True

    def closed(self, connection: HttpConnection) -> None:
        """Count a connection out."""
        self._connections.discard(connection)

    def handle(self, connection: HttpConnection, request: Request) -> None:
        """Answer one request, now or when its worker has."""
        path = request.path
        if b"?" in path:
            path = path.partition(b"?")[0]
        parts = path.split(b"/")
        length = len(parts)
        try:
            if self._guard is not None and path not in PROBES and not self._guard.admits(request.headers):
                self._stranger(connection, request)
                return
            if length == 4 and parts[1] == b"endpoints":
                door = _DOORS.get(parts[3])
                if door is not None:
                    self._predict(connection, request, parts[2], door, None)
                    return
            elif length > 4 and parts[1] == b"v2" and parts[2] == b"models" and parts[-1] == b"infer":
                if length == 5:
                    self._predict(connection, request, parts[3], Door.INFER, None)
                    return
                if length == 7 and parts[4] == b"versions":
                    self._predict(connection, request, parts[3], Door.INFER, parts[5])
                    return
            self._pages.page(connection, request, parts)
        except Exception:  # noqa: BLE001 - the caller is owed an answer whatever happened
            log.failure("A request could not be handled.", path=path.decode("latin-1"))
            detail = "The gateway failed; its log says why."
            self.answers.problem(connection, 500, "INTERNAL", detail, self.answers.request_id(request))

    def _stranger(self, connection: HttpConnection, request: Request) -> None:
        detail = "Send one of this gateway's callers' tokens as 'Authorization: Bearer TOKEN'."
        extra = b"WWW-Authenticate: Bearer\r\n"
        request_id = self.answers.request_id(request)
        self.answers.problem(connection, 401, "NOT_AUTHENTICATED", detail, request_id, extra)

    def _predict(
        self, connection: HttpConnection, request: Request, endpoint: bytes, door: Door, semver: bytes | None
    ) -> None:
        headers = request.headers
        request_id = self.answers.request_id(request)
        problem = self.answers.problem
        if request.method != b"POST":
            detail = "Predictions are asked for by POST."
            problem(connection, 405, "METHOD", detail, request_id, b"Allow: POST\r\n")
            return
        content_type = headers.get(b"content-type")
        if content_type is not None and content_type != b"application/json":
            kind = content_type.partition(b";")[0].strip().lower()
            if kind == b"text/csv" and door is Door.INVOCATIONS:
                door = Door.INVOCATIONS_CSV
            elif kind not in _JSON_TYPES and not kind.endswith(b"+json"):
                problem(connection, 415, "MALFORMED_BODY", "Send the body as application/json.", request_id)
                return
        target = self._router.targets.get(endpoint)
        if target is None:
            detail = f"There is no endpoint {endpoint.decode('utf-8', 'replace')[:80]!r} here."
            problem(connection, 404, "ENDPOINT_NOT_FOUND", detail, request_id)
            return
        if not request.body:
            problem(connection, 400, "MALFORMED_BODY", "The body is empty; send inputs as JSON.", request_id)
            return
        call = Call(connection, request, door, target)
        call.request_id = request_id
        now = request.received
        call.expires = now + self.options.request_deadline_s
        if semver is None:
            call.role, call.caller = target.assign(headers, connection.peer_key)
            tally = target.tally
            tally.open += 1
            if target.callers is not None:
                side = tally.candidate if call.role is Role.CANDIDATE else tally.stable
                arrive(side, target.callers, call.caller)
            if call.role is Role.CANDIDATE and target.candidate is not None:
                call.version = target.candidate
        else:
            pinned = target.pinned(semver.decode("latin-1"))
            if pinned is None:
                detail = "This endpoint has not loaded that version; ask for one that its route names."
                problem(connection, 404, "VERSION_NOT_FOUND", detail, request_id)
                return
            call.version = pinned
        self._dispatch(call, now)

    # ---------------------------------------------------------------------------------------- a request's way

    def _dispatch(self, call: Call, now: float) -> None:
        version = call.version
        upstream = version.upstream
        if upstream is None:
            self._no_worker(call)
            return
        options = self.options
        full = version.in_flight >= options.queue_max
        if full or version.bytes_in_flight + len(call.body) > options.queue_max_bytes:
            name = call.target.route.endpoint
            self._shed[name] = self._shed.get(name, 0) + 1
            detail = "Too many requests wait for this version; try again soon."
            self._failed(call, 503, "OVERLOADED", detail, now - (call.sent or now))
            return
        call.tries += 1
        candidate = call.role is Role.CANDIDATE and not call.counted
        share = _CANDIDATE_SHARE if candidate else 1.0
        call.deadline = min(call.expires, now + options.request_deadline_s * share)
        upstream.send(call, now)

    def _no_worker(self, call: Call) -> None:
        """The version has no process just now: the candidate's requests go to stable, the stable one's
        wait."""
        version = call.version
        waits_for_stable = call.role is not None and version is call.target.stable
        room = len(version.parked) < self.options.queue_max
        if not waits_for_stable or version.failed or not room or call.tries > 1:
            self._unavailable(call)
            return
        if not call.parked_until:
            call.parked_until = min(call.expires, time.monotonic() + self.options.hold_s)
        version.parked.append(call)

    def _unavailable(self, call: Call) -> None:
        detail = "The version that answers here is not running just now; try again soon."
        self._failed(call, 503, "WORKER_UNAVAILABLE", detail, 0.0)

    def _lost(self, upstream: Upstream, calls: list[Call]) -> None:
        """A worker went away with requests on it."""
        version = upstream.version
        if version.upstream is upstream:
            version.upstream = None
        now = time.monotonic()
        for call in calls:
            if call.role is Role.CANDIDATE and not call.counted:
                self._failed(
                    call, 503, "WORKER_UNAVAILABLE", "The worker died with the request.", now - call.sent
                )
            else:
                self._no_worker(call)
        if version.path is not None and not version.connecting:
            version.connecting = True
            self._loop.create_task(self._connect(version, _RECONNECT_S))

    def _answered(self, call: Call, kind: int, payload: bytes) -> None:
        """A worker answered."""
        elapsed_s = time.monotonic() - call.sent
        if kind == frames.Kind.ANSWER:
            if not call.counted:
                self._count(call, elapsed_s, failed=False, refused=False)
            self.answers.count(200)
            call.connection.answer(
                b"%bContent-Length: %d\r\nX-Request-Id: %b\r\n%b"
                % (call.version.ok_head, len(payload), call.request_id, call.target.rollout_header),
                payload,
            )
            return
        if kind == frames.Kind.REFUSED:
            if not call.counted:
                self._count(call, elapsed_s, failed=False, refused=True)
            reason = codec.decode(payload, dict)
            details = {key: value for key, value in reason.items() if key not in ("status", "code", "detail")}
            self._refuse(call, int(reason["status"]), reason["code"], reason["detail"], details)
            return
        if kind == frames.Kind.EXPIRED:
            self._failed(call, 504, "TIMED_OUT", "The version did not answer in time.", elapsed_s)
            return
        violation = kind == frames.Kind.VIOLATION
        text = payload.decode("utf-8", "replace")
        self._failed(
            call, 500, "OUTPUT_INVALID" if violation else "MODEL_FAILED", text, elapsed_s, violation=violation
        )

    def _failed(
        self, call: Call, status: int, code: str, detail: str, elapsed_s: float, *, violation: bool = False
    ) -> None:
        """The version is to blame. The candidate's request gets a second chance on the stable version."""
        first = not call.counted
        if first:
            self._count(call, elapsed_s, failed=True, refused=False, violation=violation)
        if first and call.role is Role.CANDIDATE:
            call.target.tally.note_error(f"{code}: {detail}")
            name = call.target.route.endpoint
            self._retries[name] = self._retries.get(name, 0) + 1
            call.version = call.target.stable
            call.tries = 0
            now = time.monotonic()
            if now < call.expires:
                self._dispatch(call, now)
                return
        self._refuse(call, status, code, detail, {})

    def _count(
        self, call: Call, elapsed_s: float, *, failed: bool, refused: bool, violation: bool = False
    ) -> None:
        """Count a call on the side it was assigned to: once, whatever happens to it later."""
        role = call.role
        if role is None:
            return
        call.counted = True
        target, version = call.target, call.version
        tally = target.tally
        tally.open -= 1
        milliseconds = elapsed_s * 1000.0
        warm = version.warm_left == 0
        if not warm:
            version.warm_left -= 1
        candidate = role is Role.CANDIDATE
        count(
            tally.candidate if candidate else tally.stable,
            target.callers,
            call.caller,
            milliseconds,
            failed=failed,
            refused=refused,
            violation=violation,
            slow=warm and milliseconds > target.route.slow_ms,
        )

    def _refuse(self, call: Call, status: int, code: str, detail: str, details: dict[str, Any]) -> None:
        extra = call.version.version_header + call.target.rollout_header
        self.answers.problem(call.connection, status, code, detail, call.request_id, extra, details)

    # ---------------------------------------------------------------------------------------------- the clock

    def _sweep(self) -> None:
        """Everything that time does to requests and connections, some ten times a second."""
        self._loop.call_later(_SWEEP_S, self._sweep)
        now = time.monotonic()
        self._sweeps += 1
        if self._sweeps % _CONNECTION_SWEEP_EVERY == 1:
            self.answers.date = formatdate(usegmt=True).encode()
            self._unswept = list(self._connections)
            self._sweep_share = -(-len(self._unswept) // _CONNECTION_SWEEP_EVERY)
        for _ in range(min(self._sweep_share, len(self._unswept))):
            self._unswept.pop().sweep(now)
        for version in list(self._versions.values()):
            if version.upstream is not None:
                late = [call for call in version.upstream.pending.values() if now > call.deadline]
                for call in late:
                    version.upstream.drop(call)
                    self._failed(
                        call, 504, "TIMED_OUT", "The version did not answer in time.", now - call.sent
                    )
            if version.parked and version.parked[0].parked_until < now:
                waiting = list(version.parked)
                version.parked.clear()
                version.parked.extend(call for call in waiting if call.parked_until >= now)
                for call in waiting:
                    if call.parked_until < now:
                        self._unavailable(call)
        self._pages.sweep(now)
        if self._guard is not None and self._sweeps % _GUARD_SWEEPS == 1:
            self._guard.refresh()
        if self.draining and not self._connections:
            self._report()
            self._channel.send(messages.Drained())
            self._channel.finish()

    def _ask_metrics(self, number: int) -> None:
        self._report()
        self._channel.send(messages.WantPage(number=number))

    async def listen(self, listener: socket.socket) -> None:
        """Take connections from now on."""
        self._server = await self._loop.create_server(
            lambda: HttpConnection(self), sock=listener, backlog=2048
        )

    def _begin_drain(self) -> None:
        self.draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close_if_idle()


class Channel(asyncio.Protocol):
    """The front's end of the channel to its supervisor; when it breaks, there is nobody left to serve for."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._reader = frames.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._front: Front | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._transport.set_write_buffer_limits(high=1 << 30)

    def connection_lost(self, exc: Exception | None) -> None:
        os._exit(0 if self._front is not None and self._front.draining else 1)

    def data_received(self, data: bytes) -> None:
        for _, _, payload in self._reader.feed(data):
            message: messages.ToFront = messages.unpack(payload, messages.ToFront)  # type: ignore[arg-type]  # a union
            if self._front is not None:
                self._front.receive(message)
            elif isinstance(message, messages.Hello):
                telemetry.configure(level=message.options.log_level)
                self._front = Front(self, message)
                self._task = asyncio.get_running_loop().create_task(self._listen(self._front))

    async def _listen(self, front: Front) -> None:
        await front.listen(self._listener)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECT_AFTER)

    def send(self, message: messages.FromFront) -> None:
        """Say something to the supervisor."""
        if self._transport is not None:
            self._transport.write(messages.pack(message))

    def finish(self) -> None:
        """Close once everything said is out; the process ends with it."""
        if self._transport is not None:
            self._transport.close()


async def _serve(channel_fd: int, listener_fd: int) -> None:
    listener = socket.socket(fileno=listener_fd)
    channel = socket.socket(fileno=channel_fd)
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: Channel(listener), sock=channel)
    await asyncio.Event().wait()


def main(arguments: list[str]) -> None:
    """Run a front. Arguments: the parent's pid, and the descriptors of the channel and of the listening
    socket."""
    parent, channel_fd, listener_fd = (int(argument) for argument in arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(parent)
    with new_loop() as runner:
        runner.run(_serve(channel_fd, listener_fd))
