"""Every benchmark runs, prints its table, and says in its answer whether its promises were kept.

No time is judged here: a machine that runs the tests is busy. What is judged is that the figures come from
real work, that the table of benchmarks names all there are, and that the page has a place for each.
"""

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench import __main__ as whole
from bench import filling, load, peers, report
from bench.filling import Wanted
from bench.load import Call, Refused
from bench.report import Row, Table
from modelkeep import wiring
from modelkeep.core.values import parse_ref
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "performance.md"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m WORDS` in the checkout."""
    return subprocess.run(
        [sys.executable, "-m", *words], check=False, cwd=ROOT, capture_output=True, text=True, timeout=280
    )


# ------------------------------------------------------------------------------------------------- benchmarks

BRIEF: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("control_plane", "mlflow_side_by_side", "serving_side_by_side", "start_times"), ("--alone",)
) | {"soak": ("--seconds", "3")}
"""MLflow, where a developer has installed it, is left out: it takes ten seconds to start."""


@pytest.mark.long
@pytest.mark.journey
@pytest.mark.parametrize("bench", whole.BENCHES, ids=lambda bench: bench.name)
def test_each_benchmark_runs_quickly_and_answers(bench: whole.Bench, tmp_path: Path) -> None:
    """Each one measures something, in its short form, and its answer makes a table that can be read."""
    words = [f"bench.{bench.name}", "--json", *bench.quick, *BRIEF.get(bench.name, ())]
    done = run(*words)
    assert done.returncode in (0, 1), done.stderr
    table = bench.read(json.loads(done.stdout))
    assert table.name == bench.name
    assert table.rows
    text = report.markdown(table)
    assert all(row.what in text and row.figure in text for row in table.rows)
    assert done.returncode == (0 if table.kept else 1)


@pytest.mark.journey
def test_some_are_chosen_by_name_and_their_promises_come_last() -> None:
    """The whole program runs what it is told to, prints each table, then the promises, in words."""
    done = run("bench", "transfer", "--quick")
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.index("**One large file through the server**") < done.stdout.index(
        "**What is promised"
    )
    assert "transfer: pull, 16 MiB" in done.stdout
    assert "start_times" not in done.stdout


def test_an_unknown_name_is_told() -> None:
    """Whoever mistypes a benchmark's name sees all names."""
    done = run("bench", "trasnfer")
    assert done.returncode == 2
    assert "trasnfer" in done.stderr
    assert "transfer" in done.stderr


def test_the_table_names_every_benchmark() -> None:
    """A module with a main of its own is in the table, unless it only prepares something to look at."""
    programs = {
        path.stem for path in (ROOT / "bench").glob("*.py") if "def main(" in path.read_text(encoding="utf-8")
    }
    assert programs - {"__main__", "filling"} == {bench.name for bench in whole.BENCHES}


def test_the_page_has_a_place_for_each_benchmark() -> None:
    """Figures are put into the page by a program, so each table has its marks there, once."""
    page = PAGE.read_text(encoding="utf-8")
    for name in [*(bench.name for bench in whole.BENCHES), "promises"]:
        assert page.count(f"<!-- bench:{name} -->\n") == 1
        assert page.count(f"<!-- /bench:{name} -->") == 1
        assert name == "promises" or f"python -m bench.{name}" in (ROOT / "bench" / "README.md").read_text()


# ----------------------------------------------------------------------------------------------------- report


def test_a_page_keeps_what_stands_around_its_tables() -> None:
    """Only what is between the marks of a table is written anew."""
    page = "before\n<!-- bench:a -->\nold\n<!-- /bench:a -->\nbetween\n<!-- bench:b -->\n<!-- /bench:b -->\n"
    once = report.rewrite(page, {"a": "new\n"})
    assert once == page.replace("old", "new")
    assert report.rewrite(once, {"a": "new"}) == once
    with pytest.raises(ValueError, match="no place for 'c'"):
        report.rewrite(page, {"c": "new"})


def test_a_broken_promise_is_seen_in_the_table_and_in_the_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A row that broke its promise says NO, and the program leaves with 1; without a promise nothing is
    judged."""
    kept = Row(what="reads", figure="7,000/s", goal="at least 20x", kept=True, ratio=21.5)
    open_row = Row(what="promotions", figure="900/s", beside="100/s", ratio=9.0)
    broken = Row(what="rollbacks", figure="70 ms", goal="at most 50 ms", kept=False)
    fine = Table(name="t", title="T", rows=(kept, open_row))
    machine = report.this_machine()
    assert report.finish(fine, machine, as_json=False) == 0
    assert report.finish(Table(name="t", title="T", rows=(kept, broken)), machine, as_json=False) == 1
    shown = capsys.readouterr().out
    assert machine.sentence() in shown
    assert "| rollbacks | 70 ms   |           |       | at most 50 ms | NO   |" in shown
    assert "22x" in shown
    assert "9.00x" in shown


# ------------------------------------------------------------------------------------------- load and filling


class Answering(BaseHTTPRequestHandler):
    """Notes each request and answers `ok` with a status."""

    protocol_version = "HTTP/1.1"
    status = 200
    seen: list[tuple[str, bytes]]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((f"{self.command} {self.path}", body))
        self.send_response(self.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_GET = do_PATCH = answer  # noqa: N815  (the names that the standard library calls)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def answering(seen: list[tuple[str, bytes]], status: int = 200) -> Iterator[int]:
    """A little HTTP server, for the while; its port."""
    handler = type("Handler", (Answering,), {"seen": seen, "status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.network
def test_each_request_is_sent_once_and_each_mark_is_a_number_of_its_own() -> None:
    """Our own client sends all requests, over the connections it may have, and repeats no number."""
    seen: list[tuple[str, bytes]] = []
    calls = [Call("GET", f"/{index}") for index in range(20)] + [Call("PATCH", "/x", '{"k": "v@N@"}')] * 20
    with answering(seen) as port:
        figure = load.drive_each(port, calls, connections=4)
    assert figure.requests == 40
    assert figure.failed == 0
    assert {line for line, _ in seen[:40]} >= {f"GET /{index}" for index in range(20)}
    bodies = [body for _, body in seen if body]
    assert len(set(bodies)) == 20
    assert all(json.loads(body)["k"][1:].isdigit() for body in bodies)


@pytest.mark.network
@pytest.mark.parametrize("wrk", [True, False], ids=["wrk", "asyncio"])
def test_a_loop_of_requests_is_measured_with_wrk_and_without(
    monkeypatch: pytest.MonkeyPatch, wrk: bool
) -> None:
    """Both ways of making load send what is listed, in order, and count answers."""
    if not wrk:
        monkeypatch.setattr(shutil, "which", lambda _name: None)
    elif shutil.which("wrk") is None:
        pytest.skip("wrk is not installed; make setup-system installs it")
    seen: list[tuple[str, bytes]] = []
    with answering(seen) as port:
        calls = [Call("GET", "/a"), Call("PATCH", "/b", '{"k": "v@N@"}')]
        figure = load.drive(port, calls, connections=2, seconds=1)
    assert figure.requests > 0
    assert figure.per_second > 0
    assert {line for line, _ in seen} == {"GET /a", "PATCH /b"}
    bodies = [body for _, body in seen if body]
    assert len(set(bodies)) == len(bodies) > 1


@pytest.mark.network
def test_errors_end_a_measurement() -> None:
    """What a server refuses is no figure: the load stops, and says what the server said."""
    with answering([], status=404) as port:
        with pytest.raises(Refused, match="404 ok"):
            load.drive(port, [Call("GET", "/gone")], connections=1, seconds=1)
        with pytest.raises(Refused, match="404 ok"):
            load.drive_each(port, [Call("GET", "/gone")] * 3, connections=1)


@pytest.mark.network
def test_a_peer_that_hangs_up_is_counted_and_asked_on() -> None:
    """A connection closed in the place of an answer is one failed request, where some may be."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for said in (b"", b"HTTP/1.1 200 ok\r\nContent-Length: 0\r\n\r\n"):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1_000)
                    connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        calls = [Call("GET", "/a")] * 2
        figure = load.drive_each(listener.getsockname()[1], calls, connections=1, errors_max=0.5)
        thread.join()
    assert (figure.requests, figure.failed) == (2, 1)


def test_a_filled_registry_is_a_real_one(tmp_path: Path) -> None:
    """What was filled in can be read by the services, its history verifies, and its bytes are there."""
    filling.fill(tmp_path / "data", [Wanted("big", 1_005, champion=1_000), Wanted("small", 2)])
    with wiring.open_house(Settings(data=str(tmp_path / "data"))) as house:
        desk, catalog = house.desk, house.catalog
        latest = desk.read(SYSTEM_CONTEXT, catalog.get_version, parse_ref("big@latest"))
        champion = desk.read(SYSTEM_CONTEXT, catalog.get_version, parse_ref("big@champion"))
        assert (latest.number, latest.semver, champion.number) == (1_005, "1.1004.0", 1_000)
        assert desk.read(SYSTEM_CONTEXT, catalog.get_model, champion.model).versions == 1_005
        verified = catalog.verify(desk, SYSTEM_CONTEXT, parse_ref("small:1.1.0"))
        assert verified.ok
        assert house.audit.verify(desk, SYSTEM_CONTEXT).intact


def test_a_peer_that_is_not_installed_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its environment MLflow is left out; with it its version is known."""
    monkeypatch.setattr(peers, "VENV", tmp_path)
    assert peers.installed() is None
    (tmp_path / "lib" / "python3.11" / "site-packages" / "mlflow-3.18.0.dist-info").mkdir(parents=True)
    assert peers.installed() == "3.18.0"
