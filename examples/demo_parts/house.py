"""Who takes part in the demo, and the small steps that every act shares: the people with their tokens, the
server and the gateway, the callers, and the questions that the story asks between two commands.

It tells next to nothing itself; the acts (beginning, four_ways, taking_back, proof) do.
"""

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from demo_parts.narration import Broken, Story
from demo_parts.premises import Premises, Program, Traffic, free_ports
from demo_parts.shell import Person, Shell
from demo_parts.watching import Board, Lane
from modelkeep import Client, errors
from modelkeep.core.rollout import Rollout

TOKEN = re.compile(r"\bmk_[A-Za-z0-9]+_[A-Za-z0-9]{12}_[A-Za-z0-9]{38}\b")
"""How a token looks."""
SUMMARIES = 2
"""Once so many more summaries were written, all that was answered before is in the last of them."""


class House:
    """The people, the place and the running programs of one demo.

    Attributes:
        registry: the server as Ben's Python would ask it.
        traffic: the callers of `flights`, from the moment on that it serves.
        wide_was_live: a moment at which 2.1.0 was in production.
    """

    admin: Person
    ana: Person
    ben: Person
    registry: Client
    up: Program
    traffic: Traffic
    wide_was_live: datetime

    def __init__(self, story: Story, premises: Premises) -> None:
        self.story = story
        self.premises = premises
        self.shell = Shell(story, premises.folder)
        self.rows = premises.folder / "flights.jsonl"
        self.port, self.gateway_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.ops = Person("ops", None)

    def address(self, endpoint: str, *, preview: bool = False) -> str:
        """Where an endpoint, or the candidate that it shows beforehand, answers."""
        door = "preview/predict" if preview else "predict"
        return f"http://127.0.0.1:{self.gateway_port}/endpoints/{endpoint}/{door}"

    # ------------------------------------------------------------------------------------------------- people

    def first_token(self) -> str:
        """The admin's token, which the first start shows once."""
        found = TOKEN.search(self.up.log.read_text())
        if found is None:
            raise Broken(f"the first start shows no token; it said:\n{self.up.last_words()}")
        return found.group()

    def person(self, name: str) -> Person:
        """Add somebody, and make a token for their shell."""
        self.shell.type(self.admin, f"modelkeep user create {name}", quiet=True)
        made = self.shell.type(self.admin, f"modelkeep token create --for {name}", quiet=True)
        found = TOKEN.search(made.out)
        if found is None:
            raise Broken(f"'modelkeep token create' printed no token, but: {made.out}")
        return Person(name, found.group())

    def agree_on(self, reference: str, reason: str) -> None:
        """Ana asks, Ben agrees."""
        self.shell.type(self.ana, f"modelkeep request {reference} --to production -m '{reason}'", quiet=True)
        self.shell.type(self.ben, f"modelkeep review {self.open_request()} --approve", quiet=True)

    def written(self, name: str, text: str, lines_from: int = 0) -> None:
        """A file that somebody has written, shown as its reader sees it, from one of its lines on."""
        (self.premises.folder / name).write_text(text)
        self.story.typed("ben", f"tail -n +{lines_from + 1} {name}" if lines_from else f"cat {name}")
        self.story.printed("\n".join(text.splitlines()[lines_from:]))

    # -------------------------------------------------------------------------------------------------- facts

    def open_request(self) -> str:
        """The id of the request that waits for somebody."""
        return next(iter(self.registry.list_requests(model="flights", state="open"))).id

    def stage(self, model: str = "flights") -> str | None:
        """The version in production."""
        try:
            return self.registry.get_version(f"{model}#production").semver
        except errors.StageEmpty:
            return None

    def rollout(self, endpoint: str = "flights") -> Rollout:
        """The latest rollout of an endpoint."""
        return next(iter(self.registry.list_rollouts(endpoint=endpoint, limit=1)))

    def finished(self, rollout_id: str) -> bool:
        """Whether a rollout has ended."""
        return self.registry.get_rollout(rollout_id).state.finished

    def answered_by(self, address: str | None = None) -> str:
        """The version that answers one question now."""
        with self.rows.open() as rows:
            question = json.loads(next(rows))
        body = json.dumps({"inputs": [question["inputs"]]}).encode()
        headers = {"Content-Type": "application/json", "x-user-id": "ops"}
        with open_url(Request(address or self.address("flights"), body, headers)) as answer:
            return str(answer.headers["X-Modelkeep-Version"])

    # ------------------------------------------------------------------------------------------------ waiting

    def let_traffic_run(self, seconds: float) -> None:
        """Wait, and for a summary that was begun since."""
        time.sleep(seconds)
        for _ in range(SUMMARIES):
            known = self.traffic.seen()["seconds"]
            self.up.until(lambda: self.traffic.seen()["seconds"] > known, "callers said what they saw")  # noqa: B023 - now

    def watch(self, endpoint: str = "flights") -> Rollout:
        """Show the latest rollout of an endpoint until it has ended."""
        lane = Lane(endpoint, "canary", self.rollout(endpoint).id, self.traffic)
        return Board(self.story, self.registry, [lane]).watch()[endpoint]


def open_url(asked: Request | str) -> Any:
    """Ask a server of this machine, whatever proxy the environment names."""
    return build_opener(ProxyHandler({})).open(asked, timeout=30)


def flip(path: Path, offset: int) -> None:
    """Turn one bit of a byte round; a second time it is as before."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
