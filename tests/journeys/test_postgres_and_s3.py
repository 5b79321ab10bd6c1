"""The same house beyond one machine: Postgres, S3, servers and gateway apart, and what happens when one dies.

The journey of a model on one machine is told elsewhere; here stands what differs: nothing lies in a server's
folder that another server would need but the key of the tokens.
"""

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

from modelkeep import Client, errors
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import ChainedEvent, EventKind
from modelkeep.core.rollout import Plan, Rollout, RolloutState, Step
from tests.journeys.apart import Apart, Site, until
from tests.journeys.houses import MODELKEEP
from tests.servers import PostgresServer, S3Server, run_postgres, run_s3
from tests.serving import models

ACCESS_PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "access.md"
TRAFFIC = Path(__file__).parents[2] / "examples" / "traffic.py"
RATE = 240
QUICK = Plan(
    steps=(
        Step(weight_ppm=400_000, min_s=0.5, max_s=600),
        Step(weight_ppm=1_000_000, min_s=0.5, max_s=600),
    )
)
SLOW_MS = 30_000.0
"""That nothing takes: what a busy machine does to one version for a second says nothing about it."""
LARGE_BYTES = 96 * 1024 * 1024
"""More than the sockets between client and server hold, so that a crash finds some of it stored."""

pytestmark = [pytest.mark.journey, pytest.mark.req("I9", "V1", "V3", "G1", "G2", "G8", "G10", "S1", "S3")]


@pytest.fixture(scope="module")
def durable_postgres() -> Iterator[PostgresServer]:
    """A cluster that may be killed: what it has acknowledged is on disk."""
    with run_postgres(durable=True) as server:
        yield server


@pytest.fixture
def told(durable_postgres: PostgresServer, s3_server: S3Server) -> dict[str, str]:
    """The environment of every server: a database and a bucket that nobody else uses."""
    return {
        "MODELKEEP_DATABASE": durable_postgres.new_database(),
        "MODELKEEP_BLOBS": f"s3://{s3_server.new_bucket()}/registry",
        "MODELKEEP_S3_ENDPOINT": s3_server.endpoint,
        "MODELKEEP_S3_REGION": s3_server.region,
        "MODELKEEP_S3_ACCESS_KEY_ID": s3_server.access_key,
        "MODELKEEP_S3_SECRET_ACCESS_KEY": s3_server.secret_key,
    }


@pytest.fixture
def site(told: dict[str, str]) -> Iterator[Site]:
    """Processes of one installation."""
    with Site(told) as made:
        yield made


class Callers:
    """Several hundred people who ask all the time, from a process of their own."""

    def __init__(self, site: Site, gateway: Apart, endpoint: str) -> None:
        rows = site.folder / "rows.jsonl"
        with rows.open("w") as lines:
            for index in range(5_000):
                row = {"key": f"caller-{index}", "inputs": {"age": 18.0 + index % 80, "income": 1.0}}
                lines.write(json.dumps(row) + "\n")
        self._summary = site.folder / "seen.json"
        words = [sys.executable, str(TRAFFIC), "--url", f"{gateway.url}/endpoints/{endpoint}/predict"]
        words += ["--rows", str(rows), "--callers-per-key", "1", "--rate", str(RATE)]
        self._process = subprocess.Popen([*words, "--summary", str(self._summary)], stdout=subprocess.DEVNULL)
        until(self._summary.exists, "the first summary")

    def seen(self) -> dict[str, Any]:
        """Everything they have seen up to the last second."""
        summary: dict[str, Any] = json.loads(self._summary.read_text())
        return summary

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        assert self._process.wait(60) == 0


class People:
    """Ana makes versions and asks, Ben agrees and promotes; the gateway has a token of its own."""

    def __init__(self, site: Site, server: Apart) -> None:
        self.site = site
        for name, role in (("ana", "contributor"), ("ben", "maintainer")):
            self.said(server, "user", "create", name)
            self.said(server, "grant", "add", name, role, "--on", "default/")
        self.said(server, "user", "create", "edge", "--service")
        self.said(server, "grant", "add", "edge", "gateway")
        self.tokens = {name: self.token(server, name) for name in ("ana", "ben", "edge")}
        self.ana = site.client(server, self.tokens["ana"])
        self.ben = site.client(server, self.tokens["ben"])

    def said(self, server: Apart, *words: str) -> str:
        """What a command of the admin's printed; it succeeds."""
        done = self.site.run(server, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def token(self, server: Apart, name: str) -> str:
        """A token for somebody, made at the command line."""
        return self.said(server, "token", "create", "--for", name, "--label", "journey")

    def register(self, data: bytes) -> ModelVersion:
        """Ana registers a file."""
        path = self.site.folder / "model.onnx"
        path.write_bytes(data)
        return self.ana.register("churn", path, metadata=OWNED, signature=models.SIGNATURE).version

    def agree(self, version: ModelVersion) -> None:
        """Ana asks, Ben agrees."""
        self.ben.review(self.ana.open_request(version.reference, "production", "better").id, "approve")

    def promote(self, version: ModelVersion) -> str:
        """Ben promotes; the rollout's id."""
        done = self.ben.promote(version.reference, "production", "better")
        assert done.rollout is not None
        return done.rollout


OWNED = {"business": {"owner": "risk"}}


def finished(client: Client, rollout: str) -> Rollout:
    """A rollout when it has come to its end."""
    until(lambda: client.get_rollout(rollout).state.finished, f"the end of {rollout}", 120)
    return client.get_rollout(rollout)


def ask(gateway: Apart) -> tuple[int, str | None]:
    """One prediction: its status, and the version that answered."""
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=60)
    try:
        body = json.dumps({"inputs": [{"age": 40.0, "income": 1.0}]})
        connection.request("POST", "/endpoints/churn/predict", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("X-Modelkeep-Version")
    finally:
        connection.close()


def raw(server: Apart, token: str, method: str, path: str) -> tuple[int, dict[str, Any], str | None]:
    """One request without a client's patience: status, problem, and when to come again."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    body = json.dumps({"ref": "churn:1.1.0", "to": "production", "reason": "x"}) if method == "POST" else None
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.getheader("Retry-After")
    finally:
        connection.close()


def log_of(client: Client) -> list[ChainedEvent]:
    """The whole audit log, oldest first."""
    found: list[ChainedEvent] = []
    while page := client.list_events(after=found[-1].event.sequence if found else 0, limit=1_000).items:
        found += page
    return found


def kinds(client: Client, *wanted: str) -> list[str]:
    """The kinds of events that happened, in order, of those that are asked for."""
    return [event.event.kind.value for event in log_of(client) if event.event.kind.value in wanted]


def test_a_models_life_on_postgres_and_s3(site: Site) -> None:
    """Registered, agreed on, rolled out by canary, taken back, explained, pulled and proven, with the server,
    the gateway, the database and the bytes in four places."""
    server = site.server("one")
    people = People(site, server)
    gateway = site.gateway("edge", server, people.tokens["edge"])
    first, second = (people.register(models.linear_onnx(slope)) for slope in (1.0, 2.0))
    assert not (server.folder / "modelkeep.db").exists()
    assert not (server.folder / "blobs").exists()

    # Given a version in production, behind an endpoint
    people.agree(first)
    people.ben.put_endpoint("churn", "churn", key_header="x-user-id", plan=QUICK, slow_ms=SLOW_MS)
    assert finished(people.ben, people.promote(first)).state is RolloutState.SUCCEEDED
    until(lambda: ask(gateway) == (200, "churn:1.0.0"), "the first version answers")

    # when another is asked for, nobody agrees with themselves, and a canary brings it in
    request = people.ana.open_request(second.reference, "production", "auc +0.05")
    with pytest.raises(errors.SelfApproval):
        people.ana.review(request.id, "approve")
    with pytest.raises(errors.ApprovalRequired):
        people.ben.promote(second.reference, "production", "auc +0.05")
    people.ben.review(request.id, "approve")
    with Callers(site, gateway, "churn") as callers:
        rollout = finished(people.ben, people.promote(second))
        assert rollout.state is RolloutState.SUCCEEDED, rollout.outcome
        assert rollout.candidate_counts.requests > 0
        assert callers.seen()["failed"] == 0
    between = datetime.now(UTC)

    # then a rollback brings back the first, for the record and for callers
    back = people.ben.rollback("churn", "complaints")
    assert back.version is not None
    assert back.version.semver == "1.0.0"
    until(lambda: ask(gateway) == (200, "churn:1.0.0"), "the first version answers again")

    # and everything can be asked for, pulled and proven
    was = people.ana.whatwas("churn#production", between)
    assert (was.version.digest, was.approved_by) == (second.digest, ("ben",))
    assert people.said(server, "audit", "verify")
    assert people.said(server, "fsck")
    target = site.folder / "pulled"
    people.said(server, "pull", "churn:1.1.0", "--to", str(target))
    assert (target / "model.onnx").read_bytes() == models.linear_onnx(2.0)


@pytest.mark.long
def test_the_database_dies_and_comes_back(site: Site, durable_postgres: PostgresServer) -> None:
    """kill -9 of Postgres: callers hear what to do and get predictions; then all goes on, nothing lost."""
    server = site.server("one")
    people = People(site, server)
    gateway = site.gateway("edge", server, people.tokens["edge"])
    first, second = (people.register(models.linear_onnx(slope)) for slope in (1.0, 2.0))
    people.agree(first)
    people.ben.put_endpoint("churn", "churn", key_header="x-user-id", plan=QUICK, slow_ms=SLOW_MS)
    finished(people.ben, people.promote(first))
    until(lambda: ask(gateway) == (200, "churn:1.0.0"), "the first version answers")
    known = len(log_of(site.client(server)))

    # When the database is gone, reads and writes are refused with what to do, and nothing hangs
    durable_postgres.kill()
    try:
        for method, path in (("GET", "/api/v1/models"), ("POST", "/api/v1/requests"), ("GET", "/ready")):
            status, problem, retry = raw(server, people.tokens["ana"], method, path)
            assert (status, problem["code"], retry) == (503, "STORE_UNAVAILABLE", "1")
            assert "start it or check its address" in problem["detail"]
        assert raw(server, people.tokens["ana"], "GET", "/health")[0] == 200
        told = site.run(server, "ls", token=people.tokens["ana"])
        assert told.returncode == 1
        assert "start it or check its address" in told.stderr

        # while the gateway answers, and can take back, as before
        assert ask(gateway) == (200, "churn:1.0.0")
    finally:
        durable_postgres.start()

    # then, once it is there again, all goes on without anybody touching server or gateway
    until(lambda: raw(server, people.tokens["ana"], "GET", "/ready")[0] == 200, "the server is ready")
    assert len(log_of(site.client(server))) == known
    people.agree(second)
    with Callers(site, gateway, "churn"):
        rollout = people.promote(second)
        assert finished(people.ben, rollout).state is RolloutState.SUCCEEDED
    until(lambda: ask(gateway) == (200, "churn:1.1.0"), "the second version answers")
    assert site.client(server).verify_audit().intact


@pytest.mark.long
def test_the_bucket_goes_away_and_comes_back(told: dict[str, str]) -> None:
    """What needs no bytes goes on; what does hears what to do, and works when the bucket is back."""
    with run_s3() as bucket:
        told |= {
            "MODELKEEP_BLOBS": f"s3://{bucket.bucket}",
            "MODELKEEP_S3_ENDPOINT": bucket.endpoint,
            "MODELKEEP_S3_ACCESS_KEY_ID": bucket.access_key,
            "MODELKEEP_S3_SECRET_ACCESS_KEY": bucket.secret_key,
        }
        with Site(told) as site:
            people = People(site, site.server("one"))
            first = people.register(models.linear_onnx(1.0))
            bucket.kill()
            try:
                people.ana.change_version(first.reference, set_tags={"team": "risk"})
                for refused in (
                    lambda: people.register(models.linear_onnx(2.0)),
                    lambda: people.ana.pull(first.reference, site.folder / "pulled"),
                    lambda: people.ana.verify_version(first.reference),
                ):
                    with pytest.raises(errors.BlobsUnavailable, match="bucket"):
                        refused()
            finally:
                bucket.start()
            assert people.register(models.linear_onnx(2.0)).semver == "1.1.0"
            assert people.ana.verify_version(first.reference).ok


@pytest.mark.long
def test_a_server_dies_in_the_middle_of_an_upload(site: Site) -> None:
    """kill -9 with half a file sent: once a server runs again, the same call goes on from what is stored."""
    server = site.server("one")
    people = People(site, server)
    path = site.folder / "large.bin"
    path.write_bytes(os.urandom(LARGE_BYTES))
    sent: list[int] = []
    crashed_after: list[int] = []

    def watch(phase: str, done_bytes: int, total_bytes: int) -> None:
        if phase != "upload":
            return
        sent.append(done_bytes)
        if done_bytes >= total_bytes // 2 and not crashed_after:
            crashed_after.append(len(sent))
            server.kill()
            server.start()
            with pytest.raises(errors.ModelNotFound):
                people.ben.get_version("large:1.0.0")

    made = people.ana.register("large", path, metadata=OWNED, progress=watch)
    assert made.created
    steps = [later - earlier for earlier, later in pairwise([0, *sent[crashed_after[0] :]])]
    assert max(steps) > LARGE_BYTES // 4, steps  # stored before the crash, and not sent again
    assert sent[-1] == LARGE_BYTES
    assert people.ana.verify_version("large:1.0.0").ok
    assert kinds(site.client(server), "version.registered") == ["version.registered"]


@pytest.mark.long
def test_two_servers_share_one_database_and_one_bucket(site: Site, told: dict[str, str]) -> None:
    """A token made at one works at the other, so does everything else, and a rollout is moved on once."""
    # Given two servers with folders of their own, and the key of the tokens of the first
    one = site.server("one")
    key = str(one.folder / "keys" / "token.key")
    people = People(site, one)
    with pytest.raises(AssertionError, match="copy the key file"):
        site.server("stranger")
    two = site.server("two", MODELKEEP_TOKEN_KEY_FILE=key)
    gateway = site.gateway("edge", two, people.tokens["edge"])
    ben = site.client(two, people.tokens["ben"])
    assert ben.whoami().actor.name == "ben"
    later = people.token(two, "ana")
    assert site.client(one, later).whoami().actor.name == "ana"

    # and each keeps a token for a gateway of its own
    own = [(server.folder / "gateway" / "token").read_text().strip() for server in (one, two)]
    two.stop()
    two.start()
    for token in (own[0], (two.folder / "gateway" / "token").read_text().strip()):
        assert site.client(one, token).whoami().actor.name == "gateway"
    with pytest.raises(errors.NotAuthenticated):
        site.client(one, own[1]).whoami()

    # when a version that came in at one is promoted there, and the gateway talks to the other
    first, second = (people.register(models.linear_onnx(slope)) for slope in (1.0, 2.0))
    assert ben.verify_version("churn:1.0.0").ok
    people.agree(first)
    ben.put_endpoint("churn", "churn", key_header="x-user-id", plan=QUICK, slow_ms=SLOW_MS)
    finished(people.ben, people.promote(first))
    until(lambda: ask(gateway) == (200, "churn:1.0.0"), "the first version answers")
    people.agree(second)
    with Callers(site, gateway, "churn"):
        rollout = people.promote(second)
        until(lambda: kinds(site.client(two), "rollout.stepped"), "the first step")
        one.kill()  # whoever holds the lease may die
        assert finished(ben, rollout).state is RolloutState.SUCCEEDED
    one.start()

    # then each thing happened once; that it waited, for a gateway that was held up, may be said beside them
    events = [event.event for event in log_of(site.client(one)) if event.event.body.get("rollout") == rollout]
    events = [event for event in events if event.kind is not EventKind.ROLLOUT_HELD]
    assert [event.kind.value for event in events] == [
        "rollout.started",
        "promotion.granted",
        "rollout.stepped",
        "rollout.stepped",
        "rollout.succeeded",
        "stage.moved",
    ]
    assert [event.body["step"] for event in events if event.kind is EventKind.ROLLOUT_STEPPED] == [0, 1]
    assert site.client(one).get_version("churn#production").semver == "1.1.0"
    assert site.client(one).verify_audit() == site.client(two).verify_audit()


@pytest.mark.long
def test_the_page_on_access_does_what_it_says(site: Site) -> None:
    """Every command of docs/how-to/access.md that starts no process works as it stands there."""
    server = site.server("one")
    admin = site.client(server)
    own = {"MODELKEEP_URL": server.url, "MODELKEEP_TOKEN": site.admin_token}
    own["PATH"] = f"{Path(MODELKEEP).parent}:{os.environ['PATH']}"
    page = re.findall(r"^    ((?:modelkeep|chmod) .*)$", ACCESS_PAGE.read_text(), re.MULTILINE)
    commands = [line for line in page if not re.match(r"modelkeep (server|gateway) |.*after the loss", line)]
    assert len(commands) >= 14
    for command in commands:
        line = command.replace(" ID ", f" {admin.create_token('spare').info.id} ")
        line = line.replace("grt_...", admin.list_grants().whole().items[-1].id)
        line = line.replace("disable ana", "disable ana --yes")  # nobody is there to be asked
        done = subprocess.run(
            ["bash", "-c", line], env=own, cwd=site.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    token = (site.folder / "edge.token").read_text().strip()
    assert site.client(server, token).whoami().actor.name == "edge"
    gateway = site.gateway("edge", server, token)
    status = site.run(server, "gateway", "status", "--data", str(gateway.folder))
    assert status.returncode == 0, status.stderr
