"""A world to track in: people with roles, a clock that only tests move, and the two services of tracking.

Acts run through the real desk on the real store. It holds no experiment but the one that is always there.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from modelkeep.core.access import Caller, Grant, Role
from modelkeep.core.events import Event, EventKind
from modelkeep.core.tracking import Experiment, Metric, Run, Tag
from modelkeep.core.values import Actor
from modelkeep.service.act import SYSTEM_CONTEXT, Context, Desk
from modelkeep.service.logged_models import LoggedModels
from modelkeep.service.tracking import Tracking
from modelkeep.store.database import Database

T = TypeVar("T")

START = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
NOW_MS = int(START.timestamp() * 1000)


def metric(key: str, value: float, *, at: int = 0, step: int = 0, **more: Any) -> Metric:
    """A point."""
    return Metric(key=key, value=value, timestamp=at, step=step, **more)


def tags(**pairs: str) -> tuple[Tag, ...]:
    """Tags or params; `__` stands for a dot."""
    return tuple(Tag(key.replace("__", "."), value) for key, value in pairs.items())


class TrackingWorld:
    """A desk, the services, and people. Whoever has no name acts as the installation itself."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = START
        self.desk = Desk(database, lambda: self.now)
        self.tracking = Tracking()
        self.logged_models = LoggedModels()
        self._people: dict[str, Context] = {"": SYSTEM_CONTEXT}

    def person(self, name: str, role: Role, project: str | None = None) -> str:
        """Somebody with one role, everywhere or in one project."""
        grant = Grant(
            id=name, principal=name, role=role, project=project, created_at=START, created_by="root"
        )
        self._people[name] = Context(caller=Caller(actor=Actor(name=name), grants=(grant,)))
        return name

    def do(self, method: Callable[..., T], *args: Any, who: str = "", **more: Any) -> T:
        """A verb that writes."""
        return self.desk.do(self._people[who], method, *args, **more)

    def read(self, method: Callable[..., T], *args: Any, who: str = "", **more: Any) -> T:
        """A verb that reads."""
        return self.desk.read(self._people[who], method, *args, **more)

    def experiment(self, name: str = "churn", project: str = "default") -> Experiment:
        """A new experiment."""
        return self.do(self.tracking.create_experiment, project, name)

    def run(self, experiment: str = "0", **more: Any) -> str:
        """The id of a new run."""
        return self.do(self.tracking.create_run, experiment, **more).info.run_id

    def log(
        self,
        run: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Tag] = (),
        tags: Sequence[Tag] = (),
    ) -> None:
        """One batch."""
        self.do(self.tracking.log_batch, run, metrics, params, tags)

    def get(self, run: str) -> Run:
        """A run whole."""
        return self.read(self.tracking.get_run, run)

    def events(self, *kinds: EventKind) -> list[Event]:
        """What was recorded, of some kinds or of all."""
        stored = self.database.read(lambda tx: tx.events.after(0, limit=1000))
        return [one.event for one in stored if not kinds or one.event.kind in kinds]

    def pass_time(self, milliseconds: int = 1) -> int:
        """Move the clock; the new time in ms."""
        self.now += timedelta(milliseconds=milliseconds)
        return int(self.now.timestamp() * 1000)
