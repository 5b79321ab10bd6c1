"""The clock's face: looks after what is unfinished, delivers what webhooks are to hear, and sweeps.

One thread wakes on every commit, at the latest twice a second, and gives each unfinished rollout one look. A
look is a read; only where it finds news does it write (`Rollouts.reconcile`), one act each. Whatever it does
is saved before anybody obeys it, so it may be killed anywhere and started anew; two of them on one database
share the work by lease. A rollout that cannot be looked at waits longer each time and holds up no other. It
decides nothing by itself.

A second thread finds the webhooks that have something to hear and hands each to one of a few deliverers, so
that a slow receiver holds up neither rollouts nor, while there are few slow ones, other receivers.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

from modelkeep.core import errors
from modelkeep.core.movement import Rift
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.service.agreement import UNCERTAIN
from modelkeep.service.deliveries import Letter, Orphan, Quiet, Unsendable
from modelkeep.service.house import House

LOOK_S = 0.5
"""A rollout is looked at so often although nothing woke us: time itself can be what changes."""
PAUSE_S = 0.1
"""The least pause between two looks, so that our own commits do not keep us spinning."""
AGREE_S = 5.0
"""How often endpoints are compared with what they follow: every act of ours keeps the two together."""
SWEEP_S = 60.0
"""How often drafts, requests and gateways are swept."""
DRAFT_GRACE_S = 24 * 3_600.0
"""A registration to which nothing was added for so long is given up."""
BACKOFF_MAX_S = 30.0
"""The longest that a rollout which could not be looked at waits for the next try."""
DELIVERERS = 8
"""Receivers that are spoken with at a time; each exchange ends within seconds."""
LETTERS = 50
"""Messages to one receiver in a row, before the others get their turn."""
RETRY_S = 2.0
"""A webhook that could not be looked at, for a fault of ours or the store's, is tried again so soon."""
SKIP_MIN = 1_000
"""Events looked through for nothing after which a webhook's cursor is moved over them."""

_log = logging.getLogger("modelkeep.controller")


class Controller:
    """Runs in a thread of the server's process from `start` to `stop`.

    Attributes:
        looks: the rounds so far, for tests and metrics.
    """

    def __init__(self, house: House) -> None:
        self._house = house
        self._owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modelkeep-controller", daemon=True)
        self._forget = house.desk.database.on_commit(lambda _sequence: self._woken.set())
        self._swept_at: float | None = None
        self._agreed_at: float | None = None
        self._behind = ""
        """Behind which endpoint the next comparison begins."""
        self._suspected: dict[str, Rift | None] = {}
        """What the last comparison found that a report on its way may explain."""
        self._failures: dict[str, tuple[int, float]] = {}
        """Rollouts whose last look failed: how often in a row, and when (monotonic) they are tried again."""
        self.looks = 0
        self.postman = Postman(house, self._owner)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()
        self.postman.start()

    def stop(self) -> None:
        """Finish the look under way, let go of the leases, and end."""
        self._stopping.set()
        self._woken.set()
        self._forget()
        self.postman.stop()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._attempt("release", lambda: self._do(self._house.rollouts.release, self._owner))

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            self._attempt("look", self.look)
            self._stopping.wait(PAUSE_S)
            self._woken.wait(LOOK_S)

    def look(self) -> None:
        """One round: every unfinished rollout once, and the sweeping when it is time.

        Raises:
            StoreUnavailable, Overloaded: nothing could be read.
        """
        self.looks += 1
        active = self._house.desk.read(SYSTEM_CONTEXT, self._house.rollouts.active)
        self._failures = {known: failed for known, failed in self._failures.items() if known in active}
        for rollout_id in active:
            if self._stopping.is_set():
                return
            self._look_at(rollout_id)
        if self._agreed_at is None or time.monotonic() - self._agreed_at >= AGREE_S:
            self._agreed_at = time.monotonic()
            self._attempt("agreement", self.compare)
        if self._swept_at is None or time.monotonic() - self._swept_at >= SWEEP_S:
            self._swept_at = time.monotonic()
            self._sweep()

    def compare(self) -> None:
        """One page of endpoints: have those mended that do not serve what they follow.

        Raises:
            StoreUnavailable, Overloaded: nothing could be read.
        """
        rollouts = self._house.rollouts
        began = self._behind
        news, self._behind = self._house.desk.read(SYSTEM_CONTEXT, rollouts.disagreeing, began)
        for name, rift in news.items():
            if rift in UNCERTAIN and self._suspected.get(name) is not rift:
                continue
            self._attempt("agreement", partial(self._do, rollouts.agree, name), endpoint=name)
        others = {
            name: rift
            for name, rift in self._suspected.items()
            if name <= began or (self._behind and name > self._behind)
        }
        self._suspected = others | {name: rift for name, rift in news.items() if rift in UNCERTAIN}

    def _look_at(self, rollout_id: str) -> None:
        failures, again_at = self._failures.get(rollout_id, (0, 0.0))
        if time.monotonic() < again_at:
            return
        rollouts = self._house.rollouts

        def look() -> None:
            if self._house.desk.read(SYSTEM_CONTEXT, rollouts.has_news, rollout_id):
                self._do(rollouts.reconcile, rollout_id, self._owner)

        if self._attempt("rollout", look, rollout=rollout_id):
            self._failures.pop(rollout_id, None)
        else:
            wait_s = min(LOOK_S * 2**failures, BACKOFF_MAX_S)
            self._failures[rollout_id] = (failures + 1, time.monotonic() + wait_s)

    def _sweep(self) -> None:
        house = self._house
        older = house.desk.clock() - timedelta(seconds=DRAFT_GRACE_S)
        self._attempt("drafts", lambda: self._do(house.catalog.sweep_drafts, older))
        self._attempt("requests", lambda: self._do(house.promotions.expire_requests))
        self._attempt("gateways", lambda: self._do(house.rollouts.housekeeping))
        self._attempt("uploads", lambda: house.blobs.sweep_uploads(older))
        self._attempt("deliveries", lambda: self._do(house.deliveries.sweep))

    def _do(self, method: Callable[..., object], *args: object) -> None:
        self._house.desk.do(SYSTEM_CONTEXT, method, *args)

    def _attempt(self, what: str, work: Callable[[], object], **about: str) -> bool:
        return _attempt(what, work, **about)


class Postman:
    """Delivers what webhooks are to hear, from `start` to `stop`."""

    def __init__(self, house: House, owner: str) -> None:
        self._house = house
        self._owner = owner
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modelkeep-webhooks", daemon=True)
        self._pool = ThreadPoolExecutor(DELIVERERS, thread_name_prefix="modelkeep-deliverer")
        self._forget = house.desk.database.on_commit(lambda _sequence: self._woken.set())
        self._scanned: int | None = None
        self._known: dict[str, int] = {}
        self._guard = threading.Lock()
        self._ready: set[str] = set()
        self._under_way: set[str] = set()
        self._again_at: dict[str, float] = {}
        """Webhooks that are to be looked at at a time (monotonic) although nothing new has happened."""

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the exchanges under way, let go of the leases, and end."""
        self._stopping.set()
        self._woken.set()
        self._forget()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._known:
            _attempt("release", lambda: self._do(self._house.deliveries.release, self._owner))

    def _run(self) -> None:
        if not self._house.desk.database.reads_block:  # a file on this machine: there is no other server
            _attempt("begin", lambda: self._do(self._house.deliveries.release, None))
        while not self._stopping.is_set():
            self._woken.clear()
            _attempt("webhooks", self.look)
            self._stopping.wait(PAUSE_S)
            self._woken.wait(LOOK_S)

    def look(self) -> None:
        """One round: hand every webhook that may have something to hear to a deliverer."""
        for webhook in self.due():
            self._pool.submit(self._deliver, webhook)

    def due(self) -> list[str]:
        """The webhooks that may have something to hear and that nobody serves; they count as served from here
        on, until `deliver` has been called.

        Raises:
            StoreUnavailable, Overloaded: nothing could be read.
        """
        desk, deliveries = self._house.desk, self._house.deliveries
        news = desk.read(SYSTEM_CONTEXT, deliveries.news, self._scanned, self._known)
        now = time.monotonic()
        with self._guard:
            self._scanned, self._known = news.scanned, news.known
            timed = {one for one, at in self._again_at.items() if at <= now}
            self._ready = (self._ready | news.ready | timed) & news.known.keys()
            self._again_at = {
                one: at for one, at in self._again_at.items() if one in news.known and one not in timed
            }
            found = sorted(self._ready - self._under_way)
            self._ready -= set(found)
            self._under_way |= set(found)
        return found

    def _deliver(self, webhook: str) -> None:
        if not _attempt("webhook", lambda: self.deliver(webhook), webhook=webhook):
            with self._guard:
                self._under_way.discard(webhook)
                self._again_at[webhook] = time.monotonic() + RETRY_S

    def deliver(self, webhook: str) -> None:
        """Send a webhook what is due, one message after the other, until there is nothing more or others
        should have their turn."""
        more = self._letters(webhook)
        with self._guard:
            self._under_way.discard(webhook)
            if more:
                self._again_at[webhook] = time.monotonic()
        self._woken.set()

    def _letters(self, webhook: str) -> bool:
        """Send until nothing is due; True when there is more."""
        desk, deliveries = self._house.desk, self._house.deliveries
        for _ in range(LETTERS):
            if self._stopping.is_set():
                return False
            match desk.read(SYSTEM_CONTEXT, deliveries.next, webhook, self._owner):
                case Letter() as letter:
                    if not deliveries.holds(letter, self._owner, desk.clock()) and not desk.do(
                        SYSTEM_CONTEXT, deliveries.claim, letter, self._owner
                    ):
                        continue  # it was changed, or somebody else was quicker: look again
                    began_at = desk.clock()
                    sent = deliveries.send(letter, began_at)
                    self._do(deliveries.settle, letter, sent, began_at, self._owner)
                case Quiet() as quiet:
                    self._rest(webhook, quiet)
                    return quiet.more
                case Orphan(reason=reason):
                    self._do(deliveries.stop, webhook, reason)
                    return False
                case Unsendable(delivery=delivery):
                    self._do(deliveries.give_up, delivery)
                case None:
                    return False
        return True

    def _rest(self, webhook: str, quiet: Quiet) -> None:
        """Nothing is due: remember when to look again, and how far was looked."""
        desk, deliveries = self._house.desk, self._house.deliveries
        if quiet.again_at is not None:
            wait_s = max(0.0, (quiet.again_at - desk.clock()).total_seconds())
            with self._guard:
                self._again_at[webhook] = time.monotonic() + wait_s
        if quiet.skipped >= SKIP_MIN:
            self._do(deliveries.skip, webhook, quiet.looked)

    def _do(self, method: Callable[..., object], *args: object) -> None:
        self._house.desk.do(SYSTEM_CONTEXT, method, *args)


def _attempt(what: str, work: Callable[[], object], **about: str) -> bool:
    """Do something that must not end the controller; whether it went well."""
    try:
        work()
    except errors.ModelkeepError as problem:
        _log.warning("controller.failed", extra={"what": what, "error": str(problem), **about})
    except Exception:  # noqa: BLE001  (nothing may end the controller; the log has the trace, and it tries again)
        _log.exception("controller.failed", extra={"what": what, **about})
    else:
        return True
    return False
