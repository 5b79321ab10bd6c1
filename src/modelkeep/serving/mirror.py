"""Copies of requests for a shadow version: sent after the caller has its answer, and dropped first of all.

A shadow's answer reaches no caller. It goes to the recorder beside the stable version's, to be compared.
Copies are few at a time and wait in no queue of ours: where the shadow is busy, or stable has much to do, the
copy is not made and that is counted. Judging a shadow is not done here.
"""

import time

from modelkeep.core.routing import Role
from modelkeep.serving import frames, records
from modelkeep.serving.messages import Door
from modelkeep.serving.router import Target
from modelkeep.serving.tap import Tap
from modelkeep.serving.upstream import ServedVersion

COPIES_MAX = 16
"""Copies under way from one front."""
COPIES_MAX_BYTES = 4 * 1024 * 1024
"""Of the bodies and answers that those copies hold on to."""
STABLE_BUSY = 16
"""Requests that the stable version has from this front: from here on no copy is made, for both versions may
share a processor."""
COPY_S = 5.0
"""For the shadow to answer a copy; later is a failure of its own."""
_STATUSES = {
    frames.Kind.ANSWER: 200,
    frames.Kind.ANSWER_BINARY: 200,
    frames.Kind.REFUSED: 422,
    frames.Kind.EXPIRED: 504,
}


class Copy:
    """A copy of one request on its way to a shadow version."""

    __slots__ = (
        "at", "body", "deadline", "door", "endpoint", "identity", "lenient", "log", "reply", "request_id",
        "role", "sent", "target", "version",
    )  # fmt: skip

    def __init__(
        self,
        target: Target[ServedVersion],
        version: ServedVersion,
        door: Door,
        body: bytes,
        request_id: bytes,
        reply: records.Reply,
        *,
        log: bool,
    ) -> None:
        self.role = Role.SHADOW
        self.target = target
        self.version = version
        self.endpoint = target.name
        self.door = door
        self.body = body
        self.request_id = request_id
        self.reply = reply
        """What the stable version said."""
        self.log = log
        self.at = time.time()
        self.sent = 0.0
        self.deadline = 0.0
        self.identity = 0
        self.lenient = target.lenient

    @property
    def held_bytes(self) -> int:
        """What it keeps in memory."""
        return len(self.body) + len(self.reply.body)


class Mirror:
    """One front's copies. `dropped` counts those not made or not told since it was last taken, by
    endpoint."""

    def __init__(self, tap: Tap) -> None:
        self.dropped: dict[str, int] = {}
        self._tap = tap
        self._under_way = 0
        self._held_bytes = 0

    def send(self, copy: Copy, stable: ServedVersion, now: float) -> None:
        """Send a copy, unless there is no room for it."""
        upstream = copy.version.upstream
        full = self._under_way >= COPIES_MAX or self._held_bytes + copy.held_bytes > COPIES_MAX_BYTES
        if upstream is None or full or stable.in_flight >= STABLE_BUSY:
            self._drop(copy)
            return
        self._under_way += 1
        self._held_bytes += copy.held_bytes
        copy.deadline = now + COPY_S
        upstream.send(copy, now)

    def _drop(self, copy: Copy) -> None:
        name = copy.target.route.endpoint
        self.dropped[name] = self.dropped.get(name, 0) + 1

    def answered(self, copy: Copy, kind: int, payload: bytes) -> None:
        """The shadow said something: it goes to the recorder and nowhere else."""
        status = _STATUSES.get(frames.Kind(kind), 500)
        self._over(copy, status, payload if status == 200 else b"")

    def lost(self, copy: Copy) -> None:
        """The shadow died with the copy, or kept it for too long: that is its failure."""
        self._over(copy, 503, b"")

    def _over(self, copy: Copy, status: int, body: bytes) -> None:
        self._under_way -= 1
        self._held_bytes -= copy.held_bytes
        route = copy.target.route
        elapsed_ms = (time.monotonic() - copy.sent) * 1000
        reply = records.Reply(copy.version.key, status, elapsed_ms, body)
        pair = records.Pair(
            route.endpoint, route.rollout, route.epoch.term, route.epoch.seq, route.candidate_ppm,
            route.slow_ms, copy.door, copy.reply, reply, copy.request_id.decode("latin-1"),
        )  # fmt: skip
        if not self._tap.put(route.endpoint, pair):
            self._drop(copy)
        if copy.log:
            request_id, side = copy.request_id.decode("latin-1"), Role.SHADOW.value
            logged = records.Logged(
                route.endpoint, route.rollout, request_id, side, route.shadow_ppm, copy.at, copy.door,
                copy.body, reply,
            )  # fmt: skip
            self._tap.put(route.endpoint, logged)
