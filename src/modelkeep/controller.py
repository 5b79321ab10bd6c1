"""The clock's face: looks after what is unfinished, and sweeps.

One thread wakes on every commit, at the latest twice a second, and gives each unfinished rollout one look
(`Rollouts.reconcile`), one act each. Whatever it does is saved before anybody obeys it, so it may be killed
anywhere and started anew; two of them on one database share the work by lease. It decides nothing by itself.
"""

import logging
import os
import secrets
import threading
import time
from datetime import timedelta

from modelkeep.core import errors
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.service.house import House

LOOK_S = 0.5
"""A rollout is looked at so often although nothing woke us: time itself can be what changes."""
PAUSE_S = 0.1
"""The least pause between two looks, so that our own commits do not keep us spinning."""
SWEEP_S = 60.0
"""How often drafts, requests and old counts are swept."""
DRAFT_GRACE_S = 24 * 3_600.0
"""A registration to which nothing was added for so long is given up."""

_log = logging.getLogger("modelkeep.controller")


class Controller:
    """Runs in a thread of the server's process from `start` to `stop`."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modelkeep-controller", daemon=True)
        self._forget = house.desk.database.on_commit(lambda _sequence: self._woken.set())
        self._swept_at = 0.0

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the look under way and end."""
        self._stopping.set()
        self._woken.set()
        self._forget()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                self.look()
                failures = 0
            except Exception:  # noqa: BLE001  (nothing may end the controller; the log has the trace, and it tries again)
                failures += 1
                _log.exception("controller.look_failed")
            self._stopping.wait(PAUSE_S * min(2**failures, 100))
            self._woken.wait(LOOK_S)

    def look(self) -> None:
        """One round: every unfinished rollout once, and the sweeping when it is time."""
        desk, rollouts = self._house.desk, self._house.rollouts
        for rollout_id in desk.read(SYSTEM_CONTEXT, rollouts.active):
            try:
                desk.do(SYSTEM_CONTEXT, rollouts.reconcile, rollout_id, self._owner)
            except errors.ModelkeepError as error:
                _log.warning("controller.rollout_failed", extra={"rollout": rollout_id, "error": str(error)})
        if time.monotonic() - self._swept_at >= SWEEP_S or not self._swept_at:
            self._swept_at = time.monotonic()
            self._sweep()

    def _sweep(self) -> None:
        house = self._house
        desk = house.desk
        older = desk.clock() - timedelta(seconds=DRAFT_GRACE_S)
        desk.do(SYSTEM_CONTEXT, house.catalog.sweep_drafts, older)
        desk.do(SYSTEM_CONTEXT, house.promotions.expire_requests)
        desk.do(SYSTEM_CONTEXT, house.rollouts.housekeeping)
        house.blobs.sweep_uploads(older)
