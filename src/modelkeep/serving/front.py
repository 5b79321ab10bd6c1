"""A front: the process that speaks HTTP to callers, decides each caller's side, and counts what they meet.

It forwards bodies as they are; decoding and checking them is the worker's business, so that a poisonous
request can hurt one version's process only. What happens to a request once its side is known stands in
`dispatch.py`. A front holds no state that its supervisor could not give it again, and dies with it.
"""

import asyncio
import gc
import os
import signal
import socket
import time
from email.utils import formatdate
from typing import cast

from modelkeep import telemetry
from modelkeep.core import errors
from modelkeep.core.routing import VersionKey, role_at
from modelkeep.serving import frames, messages
from modelkeep.serving.answers import Answers
from modelkeep.serving.counting import arrive
from modelkeep.serving.dispatch import Call, Dispatch
from modelkeep.serving.guard import Guard
from modelkeep.serving.http import HttpConnection, Request
from modelkeep.serving.messages import Door
from modelkeep.serving.mirror import Copy
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.origins import Origins
from modelkeep.serving.pages import PROBES, Pages
from modelkeep.serving.processes import die_with_parent, new_loop
from modelkeep.serving.router import Router
from modelkeep.serving.tap import Tap
from modelkeep.serving.upstream import ServedVersion, Upstream

_SWEEP_S = 0.1
_CONNECTION_SWEEP_EVERY = 5
"""Sweeps over which all connections are looked at once: a part at a time, so that thousands of them make no
pause that a caller feels."""
_COLLECT_AFTER = (10_000, 20, 50)
"""When the garbage collector looks: a request leaves nothing behind for it, a closed connection does."""
_RECONNECT_S = 0.1
"""Between two tries to reach a worker; by then the supervisor knows when it is dead."""
_GUARD_SWEEPS = 20
"""Sweeps between two looks at the callers' tokens."""
_LAST_RECORDS_S = 2.0
"""When stopping, for what was recorded to leave for the recorder."""
_DOORS = {b"predict": Door.PREDICT, b"invocations": Door.INVOCATIONS}
_STRICT_DOORS = (Door.PREDICT, Door.INVOCATIONS)
"""They refuse members of a body that they do not know; the Open Inference Protocol passes over them."""
_HURRY = b"x-request-timeout-ms"
_JSON_LENGTH = b"inference-header-content-length"
_JSON_TYPES = (b"application/json", b"application/vnd.api+json")
PREVIEW = b"preview"
"""Stands where a pinned version does, for the candidate under its preview address."""
_NOT_LOADED = "This endpoint has not loaded that version; ask for one that its route names."
_NO_PREVIEW = "No candidate of this endpoint stands under a preview address just now."

log = telemetry.Log("gateway.front")


class Front:
    """The application behind every connection, and the supervisor's partner."""

    def __init__(self, channel: "Channel", hello: messages.Hello) -> None:
        self.options: GatewayOptions = hello.options
        self.answers = Answers()
        self.draining = False
        self._drain_until = 0.0
        self._channel = channel
        self._versions: dict[VersionKey, ServedVersion] = {}
        self._router: Router[ServedVersion] = Router()
        self._connections: set[HttpConnection] = set()
        self._tap = Tap(self.answers)
        self._dispatch = Dispatch(self.options, self.answers, self._tap, self._want)
        self._first_waits_s: list[float] = []
        self._pages = Pages(self.answers, self._router, self._ask_page, known=hello.known)
        self._guard: Guard | None = None
        self._origins = Origins(self.options.cors_origins, host=self.options.host, url=self.options.url)
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
            case messages.WorkerUp():
                self._version_up(message)
            case messages.WorkerDown():
                self._version_down(message)
            case messages.Asleep(version=name, failed=failed):
                self._version_asleep(name, failed=failed)
            case messages.Collect():
                self._report()
            case messages.Page(number=number, text=text):
                self._pages.told(number, text)
            case messages.RecorderAt(path=path):
                self._tap.point(path)
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
                retries=self._dispatch.retries,
                shed=self._dispatch.shed,
                log_lost=self._tap.lost,
                copies_dropped=self._dispatch.mirror.dropped,
                used=self._used(),
                busy=[v.key for v in self._versions.values() if v.in_flight or v.parked],
                first_waits_s=self._first_waits_s,
                connections=len(self._connections),
                in_flight=sum(version.in_flight for version in self._versions.values()),
                cpu_s=telemetry.cpu_s(),
                memory_bytes=telemetry.memory_bytes(os.getpid()),
            )
        )
        self.answers.statuses, self._dispatch.retries, self._dispatch.shed = {}, {}, {}
        self._tap.lost, self._dispatch.mirror.dropped = {}, {}
        self._first_waits_s = []

    def _used(self) -> dict[VersionKey, float]:
        """The versions that were asked since this was last told, and when."""
        used: dict[VersionKey, float] = {}
        for version in self._versions.values():
            if version.last_sent > version.told:
                used[version.key] = version.told = version.last_sent
        return used

    def _want(self, version: ServedVersion) -> None:
        """Have a version loaded: requests wait for it."""
        self._channel.send(messages.Wanted(key=version.key))

    def _version(self, name: messages.VersionName) -> ServedVersion:
        version = self._versions.get(name.key)
        if version is None:
            version = self._versions[name.key] = ServedVersion(name)
        return version

    def _version_up(self, up: messages.WorkerUp) -> None:
        version = self._version(up.version)
        version.failed = False
        version.paths[up.path] = up.device
        self._reach(version, up.path, 0.0)

    def _version_down(self, down: messages.WorkerDown) -> None:
        version = self._versions.get(down.key)
        if version is None:
            return
        gone = {down.path} if down.path else set(version.paths)
        self._unreach(version, gone, gently=down.gently)
        self._failed(version, failed=down.failed)
        if down.failed:
            version.sleeps = False
        targets = self._router.targets.values()
        used = {id(v) for t in targets for v in (t.stable, t.candidate, t.previous, t.shadow, *t.others)}
        if id(version) not in used and not version.in_flight and not version.parked and not version.paths:
            del self._versions[down.key]

    def _version_asleep(self, name: messages.VersionName, *, failed: bool) -> None:
        version = self._version(name)
        version.sleeps = True
        self._unreach(version, set(version.paths), gently=True)
        version.wanted_at = time.monotonic() if failed or version.parked else 0.0
        self._failed(version, failed=failed)
        if version.parked:
            self._want(version)

    def _unreach(self, version: ServedVersion, gone: set[str], *, gently: bool) -> None:
        """Send nothing to some workers any more.

        Args:
            gently: let them answer what they have.
        """
        for path in gone:
            version.paths.pop(path, None)
        for upstream in [upstream for upstream in version.upstreams if upstream.path in gone]:
            version.upstreams.remove(upstream)
            if gently:
                upstream.leave()
            else:
                upstream.close()

    def _failed(self, version: ServedVersion, *, failed: bool) -> None:
        """Whether it is of any use to wait for a version; where it is not, nobody does any more."""
        version.failed = failed
        while failed and version.parked:
            self._dispatch.unavailable(version.parked.take())

    def _reach(self, version: ServedVersion, path: str, wait_s: float) -> None:
        """Have a connection to a worker soon.

        Args:
            wait_s: after a loss: a dying worker's socket still accepts for a moment, and would take a request
                with it a second time.
        """
        if path in version.paths and path not in version.connecting:
            version.connecting.add(path)
            self._loop.create_task(self._connect(version, path, wait_s))

    async def _connect(self, version: ServedVersion, path: str, wait_s: float) -> None:
        """Reach a worker; try again for as long as the supervisor says that it is there."""
        try:
            await asyncio.sleep(wait_s)
            while path in version.paths:
                if any(upstream.path == path for upstream in version.upstreams):
                    return
                try:
                    _, upstream = await self._loop.create_unix_connection(
                        lambda: Upstream(version, path, self._dispatch.answered, self._lost), path
                    )
                except OSError:
                    await asyncio.sleep(_RECONNECT_S)
                    continue
                if path not in version.paths:  # it went while it was reached
                    upstream.close()
                    return
                version.upstreams.append(upstream)
                version.warm_left = self.options.warmup_requests
                self._channel.send(messages.Connected(key=version.key))
                self._awake(version)
                while version.parked and version.upstreams:
                    self._dispatch.send(version.parked.take(), time.monotonic())
        finally:
            version.connecting.discard(path)

    def _awake(self, version: ServedVersion) -> None:
        """A version that slept is there: take note of how long the first who asked had to wait."""
        if version.sleeps:
            version.sleeps = False
            first = next(iter(version.parked), None)
            if first is not None:
                self._first_waits_s.append(time.monotonic() - first.received)

    def _lost(self, upstream: Upstream, calls: list[Call | Copy]) -> None:
        """A worker went away; its requests go where they still can, and it is reached anew if it is to be."""
        version = upstream.version
        if upstream in version.upstreams:
            version.upstreams.remove(upstream)
        self._dispatch.lost(calls, time.monotonic())
        self._reach(version, upstream.path, _RECONNECT_S)

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

    def leaving(self, connection: HttpConnection) -> None:
        """A caller hung up while its request was under way: what was not begun need not be."""
        self._dispatch.leave(connection, self._versions.values())

    def handle(self, connection: HttpConnection, request: Request) -> None:
        """Answer one request, now or when its worker has."""
        path = request.path
        if b"?" in path:
            path = path.partition(b"?")[0]
        parts = path.split(b"/")
        length = len(parts)
        try:
            origin = request.headers.get(b"origin")
            if origin is not None and path not in PROBES:
                if self._origins.refuses(request, origin):
                    self._foreign_page(connection, request)
                    return
                if self._origins.preflight(connection, request):
                    self.answers.count(204)
                    return
            if self._guard is not None and path not in PROBES and not self._guard.admits(request.headers):
                self._stranger(connection, request)
                return
            if length == 4 and parts[1] == b"endpoints":
                door = _DOORS.get(parts[3])
                if door is not None:
                    self._predict(connection, request, parts[2], door, None)
                    return
                if parts[3] == b"feedback":
                    self._feedback(connection, request, parts[2])
                    return
            elif length > 4 and parts[1] == b"v2" and parts[2] == b"models" and parts[-1] == b"infer":
                if length == 5:
                    self._predict(connection, request, parts[3], Door.INFER, None)
                    return
                if length == 7 and parts[4] == b"versions":
                    self._predict(connection, request, parts[3], Door.INFER, parts[5])
                    return
            elif length == 5 and parts[1] == b"endpoints" and parts[3] == b"preview":
                door = _DOORS.get(parts[4])
                if door is not None:
                    self._predict(connection, request, parts[2], door, PREVIEW)
                    return
            self._pages.page(connection, request, parts)
        except Exception:  # noqa: BLE001 - the caller is owed an answer whatever happened
            log.failure("A request could not be handled.", path=path.decode("latin-1"))
            detail = "The gateway failed; its log says why."
            self.answers.problem(connection, 500, "INTERNAL", detail, self.answers.request_id(request))

    def _foreign_page(self, connection: HttpConnection, request: Request) -> None:
        detail = "Pages of this origin may not ask here; the gateway's owner names those that may."
        self.answers.problem(connection, 403, "OTHER_ORIGIN", detail, self.answers.request_id(request))

    def _stranger(self, connection: HttpConnection, request: Request) -> None:
        detail = "Send one of this gateway's callers' tokens as 'Authorization: Bearer TOKEN'."
        extra = b"WWW-Authenticate: Bearer\r\n"
        request_id = self.answers.request_id(request)
        self.answers.problem(connection, 401, "NOT_AUTHENTICATED", detail, request_id, extra)

    def _feedback(self, connection: HttpConnection, request: Request, endpoint: bytes) -> None:
        """What became known of predictions: the recorder's, who answers when it is kept."""
        request_id = self.answers.request_id(request)
        problem = self.answers.problem
        target = self._router.targets.get(endpoint)
        if request.method != b"POST":
            problem(connection, 405, "METHOD", "Feedback is sent by POST.", request_id, b"Allow: POST\r\n")
        elif target is None:
            detail = f"There is no endpoint {endpoint.decode('utf-8', 'replace')[:80]!r} here."
            problem(connection, 404, "ENDPOINT_NOT_FOUND", detail, request_id)
        elif not self._tap.there:
            detail = "This gateway keeps no prediction log; give an endpoint one first (--log)."
            problem(connection, 409, "INVALID_STATE", detail, request_id)
        else:
            self._tap.feedback(connection, target.route.endpoint, request.body, request_id)

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
            elif kind == b"application/octet-stream" and _JSON_LENGTH in headers:
                pass
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
        if (hurry := headers.get(_HURRY)) is not None and not call.hurry(hurry, now):
            detail = "X-Request-Timeout-Ms is a whole number of milliseconds above 0."
            problem(connection, 400, "MALFORMED_REQUEST", detail, request_id)
            return
        words = request.body
        if door is Door.INFER and (length := headers.get(_JSON_LENGTH)) is not None:
            if not call.cut(length):
                detail = "Inference-Header-Content-Length is the number of bytes of the body's JSON."
                problem(connection, 400, "MALFORMED_BODY", detail, request_id)
                return
            words = words[: int(length)]
        if target.trims is not None and door in _STRICT_DOORS:
            call.body = target.trims(words)
        if semver is None:
            call.place, call.caller = target.assign(headers, connection.peer_key, words)
            call.role = role_at(call.place)
            tally = target.tally
            tally.open += 1
            if target.callers is not None and call.caller:
                arrive(tally.side(call.place), target.callers, call.caller)
            if call.place and (tried := target.at(call.place)) is not None:
                call.version = tried
        else:
            preview = semver is PREVIEW
            pinned = target.previewed if preview else target.pinned(semver.decode("latin-1"))
            if pinned is None:
                detail = _NO_PREVIEW if preview else _NOT_LOADED
                problem(connection, 404, "VERSION_NOT_FOUND", detail, request_id)
                return
            call.version = pinned
        self._dispatch.send(call, now)

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
            self._dispatch.sweep(version, now)
        self._pages.sweep(now)
        self._tap.sweep(now)
        if self._guard is not None and self._sweeps % _GUARD_SWEEPS == 1:
            self._guard.refresh()
        if self.draining and not self._connections and (self._tap.empty or now > self._drain_until):
            self._report()
            self._channel.send(messages.Drained())
            self._channel.finish()

    def _ask_page(self, number: int, endpoint: str) -> None:
        if not endpoint:
            self._report()
        self._channel.send(messages.WantPage(number=number, endpoint=endpoint))

    async def listen(self, listener: socket.socket) -> None:
        """Take connections from now on."""
        self._server = await self._loop.create_server(
            lambda: HttpConnection(self), sock=listener, backlog=2048
        )

    def _begin_drain(self) -> None:
        self.draining = True
        self._drain_until = time.monotonic() + _LAST_RECORDS_S
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
