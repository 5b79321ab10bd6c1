"""The way of a prediction request once its side is known: to a worker, back from it, or to a second chance.

The stable version never suffers from the candidate: whatever goes wrong on the candidate (dead, full, too
slow, an error of its own) is counted against it and tried once more on the stable version. Every request is
counted once, on the side it was given, and answered once. Which side that is, and how a worker is reached, is
decided elsewhere.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from modelkeep.core import codec, errors
from modelkeep.core.routing import CANDIDATE_PLACE, STABLE_PLACE, WHOLE_PPM, Role, Route
from modelkeep.serving import frames, records
from modelkeep.serving.answers import Answers
from modelkeep.serving.counting import count
from modelkeep.serving.http import HttpConnection, Request
from modelkeep.serving.messages import JSON_LENGTH, Door
from modelkeep.serving.mirror import Copy, Mirror
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.router import Target
from modelkeep.serving.tap import Tap, sampled
from modelkeep.serving.upstream import ServedVersion

_CANDIDATE_SHARE = 0.5
"""Of a request's time, what the candidate may use before the request goes to the stable version."""

WANT_AGAIN_S = 1.0
"""Between two words to the supervisor that requests wait for a version that sleeps; it forgets whoever is
silent for longer. After a failure nobody waits for so long."""

_REFUSALS = (400, 413, 422)
"""What a worker may answer when the fault is the caller's."""
_NONSENSE = "The version's process answered what is no answer."
_TRIES = 4
"""Workers of one version that a request is sent to, should they all die without its fault."""


class Call:
    """One prediction request on its way."""

    __slots__ = (
        "body", "caller", "connection", "counted", "deadline", "door", "endpoint", "expires", "hurried",
        "identity", "lenient", "parked_until", "place", "received", "request_id", "role", "sent",
        "suspect", "target", "tried", "tries", "version",
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
        self.place = STABLE_PLACE
        self.version = target.stable
        self.caller = 0
        self.counted = False
        self.tries = 0
        self.suspect = False
        """A worker died with it, so it is computed by itself from now on."""
        self.tried = False
        """It is being computed by itself: should the worker die now, this was why."""
        self.sent = 0.0
        self.deadline = 0.0
        self.expires = 0.0
        self.hurried = False
        """Its caller gave it less time than the gateway would have: that it ran out is no version's fault."""
        self.parked_until = 0.0
        self.received = request.received
        self.identity = 0
        self.lenient = target.lenient

    def hurry(self, milliseconds: bytes, now: float) -> bool:
        """Keep to the time that the caller gives it. Returns False when that is no number."""
        given = int(milliseconds) if milliseconds.isdigit() and len(milliseconds) < 10 else 0
        if given and now + given / 1000 < self.expires:
            self.expires = now + given / 1000
            self.hurried = True
        return given > 0

    def cut(self, length: bytes) -> bool:
        """Say where the JSON of its body ends and bytes begin. Returns False when that cannot be."""
        end = int(length) if length.isdigit() and len(length) < 10 else len(self.body) + 1
        if end > len(self.body):
            return False
        self.door = Door.INFER_BINARY
        self.body = JSON_LENGTH.pack(end) + self.body
        return True


def _reason(payload: bytes) -> dict[str, Any] | None:
    """Why a worker refused a request. None where it says nothing that a caller could be told: what runs in a
    worker is foreign."""
    try:
        reason: dict[str, Any] = codec.decode(payload, dict)
    except errors.ModelkeepError:
        return None
    words = isinstance(reason.get("code"), str) and isinstance(reason.get("detail"), str)
    status = reason.get("status")
    return reason if words and type(status) is int and status in _REFUSALS else None


def _weight(route: Route, place: int) -> int:
    """The share of the callers that a side has, in ppm."""
    if place > CANDIDATE_PLACE:
        return route.others[place - CANDIDATE_PLACE - 1].weight_ppm
    return route.candidate_ppm if place == CANDIDATE_PLACE else WHOLE_PPM - route.tried_ppm


class Dispatch:
    """One front's requests under way. `retries` and `shed` count by endpoint since they were last taken."""

    def __init__(
        self, options: GatewayOptions, answers: Answers, tap: Tap, want: Callable[[ServedVersion], None]
    ) -> None:
        self._options = options
        self._want = want
        self._answers = answers
        self._tap = tap
        self.mirror = Mirror(tap)
        self.retries: dict[str, int] = {}
        self.shed: dict[str, int] = {}

    def send(self, call: Call, now: float) -> None:
        """Send a request to its version, or on to where it is answered without."""
        version = call.version
        upstream = version.upstream
        if upstream is None:
            self._no_worker(call)
            return
        options = self._options
        full = version.in_flight >= options.queue_max
        if full or version.bytes_in_flight + len(call.body) > options.queue_max_bytes:
            name = call.target.route.endpoint
            self.shed[name] = self.shed.get(name, 0) + 1
            detail = "Too many requests wait for this version; try again soon."
            self._failed(call, 503, "OVERLOADED", detail, now - (call.sent or now))
            return
        call.tries += 1
        share = _CANDIDATE_SHARE if call.place and not call.counted else 1.0
        call.deadline = now + (call.expires - now) * share
        upstream.send(call, now, alone=call.suspect)

    def _no_worker(self, call: Call) -> None:
        """The version has no process just now: the candidate's requests go to stable, the stable one's wait,
        and so do those for a version that sleeps, which is thereby woken."""
        version, options, now = call.version, self._options, time.monotonic()
        again = version.sleeps and now - version.wanted_at >= WANT_AGAIN_S
        if again:
            version.failed = False
        until = self._patience(call, now)
        parked = version.parked
        full = len(parked) >= options.queue_max
        full = full or parked.size_bytes + len(call.body) > options.queue_max_bytes
        if until is None or version.failed or full or call.tries >= _TRIES:
            self.unavailable(call)
            return
        call.parked_until = call.parked_until or until
        parked.put(call)
        if again:
            version.wanted_at = now
            self._want(version)

    def _patience(self, call: Call, now: float) -> float | None:
        """Until when a request waits for a process of its version; None: it does not."""
        if call.version.sleeps and (not call.place or call.counted):
            return call.expires
        if call.role is not None and call.version is call.target.stable:
            return min(call.expires, now + self._options.hold_s)
        return None

    def unavailable(self, call: Call) -> None:
        """Nobody answers for the request's version."""
        detail = "The version that answers here is not running just now; try again soon."
        if call.version.sleeps and not call.version.failed:
            detail = "The version that answers here is being loaded, which takes longer; try again soon."
        self._failed(call, 503, "WORKER_UNAVAILABLE", detail, 0.0)

    def lost(self, calls: list[Call | Copy], now: float) -> None:
        """A worker went away with requests on it. The stable version's go to another one, or wait for it;
        each is then computed by itself, so that of all of them only the one that kills a second time is given
        up."""
        for call in calls:
            if isinstance(call, Copy):
                self.mirror.lost(call)
                continue
            call.suspect = True
            if call.place and not call.counted:
                self._failed(
                    call, 503, "WORKER_UNAVAILABLE", "The worker died with the request.", now - call.sent
                )
            elif call.tried:
                self.unavailable(call)
            elif call.version.upstreams and call.tries < _TRIES and now < call.expires:
                self.send(call, now)
            else:
                self._no_worker(call)

    def answered(self, call: Call | Copy, kind: int, payload: bytes) -> None:
        """A worker answered."""
        if isinstance(call, Copy):
            self.mirror.answered(call, kind, payload)
            return
        elapsed_s = time.monotonic() - call.sent
        if kind == frames.Kind.ANSWER:
            if not call.counted:
                self._count(call, elapsed_s, failed=False, refused=False)
            self._answers.count(200)
            call.connection.answer(
                b"%bContent-Length: %d\r\nX-Request-Id: %b\r\n%b"
                % (call.version.ok_head, len(payload), call.request_id, call.target.rollout_header),
                payload,
            )
            if call.target.watched:
                self._watched(call, 200, payload, elapsed_s)
            return
        if kind == frames.Kind.REFUSED:
            reason = _reason(payload)
            if reason is None:
                self._failed(call, 500, "MODEL_FAILED", _NONSENSE, elapsed_s)
                return
            if not call.counted:
                self._count(call, elapsed_s, failed=False, refused=True)
            self._refuse(call, reason.pop("status"), reason.pop("code"), reason.pop("detail"), reason)
            return
        if kind == frames.Kind.EXPIRED:
            self._late(call, elapsed_s)
            return
        if kind == frames.Kind.ANSWER_BINARY and len(payload) >= JSON_LENGTH.size:
            self._answered_with_bytes(call, payload, elapsed_s)
            return
        if kind == frames.Kind.CANCELLED:
            self._gone(call, elapsed_s)
            return
        violation = kind == frames.Kind.VIOLATION
        text = payload.decode("utf-8", "replace")
        self._failed(
            call, 500, "OUTPUT_INVALID" if violation else "MODEL_FAILED", text, elapsed_s, violation=violation
        )

    def _answered_with_bytes(self, call: Call, payload: bytes, elapsed_s: float) -> None:
        """The answer has tensors as bytes behind its JSON."""
        if not call.counted:
            self._count(call, elapsed_s, failed=False, refused=False)
        self._answers.count(200)
        body = payload[JSON_LENGTH.size :]
        head = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n%bContent-Length: %d\r\n"
            b"Inference-Header-Content-Length: %d\r\nX-Request-Id: %b\r\n%b"
        )
        (length,) = JSON_LENGTH.unpack_from(payload)
        version, rollout = call.version.version_header, call.target.rollout_header
        call.connection.answer(head % (version, len(body), length, call.request_id, rollout), body)
        if call.target.watched:
            self._watched(call, 200, payload, elapsed_s)

    def leave(self, connection: HttpConnection, versions: Iterable[ServedVersion]) -> None:
        """A caller hung up: its request is taken back where it has not been begun."""
        for version in versions:
            for upstream in version.upstreams:
                for call in upstream.pending.values():
                    if getattr(call, "connection", None) is connection:  # copies for a shadow have none
                        upstream.cancel(call)
            for call in version.parked.remove(lambda call: call.connection is connection):
                self._gone(call, 0.0)

    def _gone(self, call: Call, elapsed_s: float) -> None:
        """It was not computed because its caller hung up: no version's fault, though slow is slow."""
        if not call.counted:
            self._count(call, elapsed_s, failed=False, refused=True)
        detail = "The connection was closed on the caller's side while the request waited; keep it open."
        self._refuse(call, 499, "CANCELLED", detail, {})

    def _late(self, call: Call, elapsed_s: float) -> None:
        """Its time is over."""
        detail = "The version did not answer in time."
        self._failed(call, 504, "TIMED_OUT", detail, elapsed_s, blame=not call.hurried)

    def _failed(
        self,
        call: Call,
        status: int,
        code: str,
        detail: str,
        elapsed_s: float,
        *,
        violation: bool = False,
        blame: bool = True,
    ) -> None:
        """The version is to blame, unless told otherwise. The candidate's request gets a second chance on the
        stable version."""
        first = not call.counted
        if first:
            self._count(call, elapsed_s, failed=blame, refused=not blame, violation=violation)
        if first and call.place:
            if blame:
                which = f"{call.version.semver}: " if call.target.others else ""
                call.target.tally.note_error(f"{which}{code}: {detail}")
            name = call.target.route.endpoint
            self.retries[name] = self.retries.get(name, 0) + 1
            call.version = call.target.stable
            call.tries = 0
            now = time.monotonic()
            if now < call.expires:
                self.send(call, now)
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
        count(
            tally.side(call.place),
            target.callers if call.caller else None,
            call.caller,
            milliseconds,
            failed=failed,
            refused=refused,
            violation=violation,
            slow=warm and milliseconds > target.route.slow_ms,
        )

    def _refuse(self, call: Call, status: int, code: str, detail: str, details: dict[str, Any]) -> None:
        extra = call.version.version_header + call.target.rollout_header
        self._answers.problem(call.connection, status, code, detail, call.request_id, extra, details)
        if call.target.watched:
            self._watched(call, status, b"", time.monotonic() - call.sent if call.sent else 0.0)

    def _watched(self, call: Call, status: int, payload: bytes, elapsed_s: float) -> None:
        """The caller has the answer: have the prediction log and the shadow version take part in it."""
        route, role, request_id = call.target.route, call.role, call.request_id
        now = time.monotonic()
        key = call.version.key
        log = sampled("log", request_id, route.log_ppm)
        if log:
            latency_ms = (now - call.received) * 1000
            record = records.Logged(
                route.endpoint, route.rollout, request_id.decode("latin-1"),
                role.value if role is not None else "pinned",
                None if role is None else _weight(route, call.place),
                time.time(), call.door, call.body, records.Reply(key, status, latency_ms, payload),
            )  # fmt: skip
            self._tap.put(route.endpoint, record)
        if call.target.remembered and status == 200:
            self._remember(call, payload)
        shadow, stable = call.target.shadow, call.target.stable
        # The caller's own mistakes and haste say nothing about a version.
        told = status == 200 or (status >= 500 and not call.hurried)
        if shadow is None or role is not Role.STABLE or not told:
            return
        if sampled("shadow", request_id, route.shadow_ppm):
            reply = records.Reply(key, status, elapsed_s * 1000, payload)
            copy = Copy(call.target, shadow, call.door, call.body, request_id, reply, log=log)
            self.mirror.send(copy, stable, now)

    def _remember(self, call: Call, payload: bytes) -> None:
        """Have an answer wait for its label. One that stable gave in another's place is neither's, or
        that one alone would have a second chance to be wrong."""
        route, target = call.target.route, call.target
        own = target.at(call.place) if call.place else target.stable
        if call.role is None or call.version is not own or route.rollout is None or not call.caller:
            return
        record = records.Predicted(
            route.endpoint, route.rollout, call.request_id.decode("latin-1"), call.version.key,
            route.epoch.term, route.epoch.seq, route.candidate_ppm, call.place, call.caller, time.time(),
            call.door, payload, route.others_ppm, route.aside_ppm,
        )  # fmt: skip
        self._tap.put(route.endpoint, record)

    def sweep(self, version: ServedVersion, now: float) -> None:
        """Give up on a version's requests whose time is over."""
        for upstream in version.upstreams:
            late = [call for call in upstream.pending.values() if now > call.deadline]
            for call in late:
                upstream.drop(call)
                if isinstance(call, Copy):
                    self.mirror.lost(call)
                else:
                    self._late(call, now - call.sent)
        for call in version.parked.remove(lambda call: call.parked_until < now):
            self.unavailable(call)
