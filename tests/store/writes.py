"""A process that writes events until it is done or killed, and says of each when it was acknowledged.

    python -m tests.store.writes URL NAME THREADS COUNT

It prints `NAME THREAD INDEX SEQUENCE` once the store has answered, and `error CODE` where it answered with an
error, after which it goes on. The tests compare what was printed with what a new process finds.
"""

import os
import sys
import threading
import time
from datetime import UTC, datetime

from modelkeep.core import errors
from modelkeep.core.events import Event, EventKind
from modelkeep.core.values import SYSTEM
from modelkeep.store.database import Database, Transaction
from modelkeep.store.schema import settings
from modelkeep.store.statements import insert

ADD = insert(settings)


def append(tx: Transaction, subject: str) -> Event:
    """One change and its event, which must be kept or lost together."""
    tx.run(ADD, key=subject, value="", updated_at="")
    return tx.events.append(EventKind.MODEL_CREATED, at=datetime.now(UTC), actor=SYSTEM, subject=subject)


def main(url: str, name: str, threads: int, count: int) -> None:
    """Write `count` events on each of `threads` threads."""
    with Database.open(url) as database:

        def work(thread: int) -> None:
            for index in range(count):
                subject = f"{name}.{thread}.{index}"
                try:
                    event = database.write(lambda tx: append(tx, subject)).result(60)  # noqa: B023
                    line = f"{name} {thread} {index} {event.sequence}\n"
                except errors.ModelkeepError as problem:
                    line = f"error {problem.code}\n"
                    time.sleep(0.05)
                os.write(
                    1, line.encode()
                )  # one call a line: nothing waits in a buffer when the process is killed

        workers = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
