"""An MLflow server that lies: what comes of it is an error with a sentence, and never bytes from elsewhere, a
hang, or memory without end.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from modelkeep.adapters import mlflow_http
from modelkeep.adapters.mlflow_rest import MlflowServer
from modelkeep.adapters.mlflow_roots import Roots
from modelkeep.core import errors

pytestmark = [pytest.mark.req("T5"), pytest.mark.network]

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def lying(answer: Answer) -> Iterator[MlflowServer]:
    """A server that answers everything in one way, and a source over it."""

    class Liar(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            answer(self)

        def log_message(self, form: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    source = MlflowServer(f"http://127.0.0.1:{server.server_port}")
    try:
        yield source
    finally:
        source.close()
        server.shutdown()
        thread.join()
        server.server_close()


def saying(body: bytes, status: int = 200, **headers: str) -> Answer:
    """An answer with a body."""

    def answer(to: BaseHTTPRequestHandler) -> None:
        to.send_response(status)
        for name, value in headers.items():
            to.send_header(name.replace("_", "-"), value)
        to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        to.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    "body",
    [
        b"<html>log in</html>",
        b"",
        b"[]",
        b'{"experiments": 3}',
        b'{"experiments": [{"experiment_id": 1}]}',
        b'{"experiments": [{"experiment_id": "1", "name": "a", "creation_time": true}]}',
        b'{"experiments": [{"experiment_id": "1", "name": "a", "creation_time": "much"}]}',
        b'{"experiments": [{"experiment_id": "1", "name": "a", "creation_time": 99999999999999999999999}]}',
        b"[" * 100_000,
        b'{"experiments": [], "next_page_token": "again"}',
    ],
)
def test_what_is_no_answer_of_mlflow_is_refused(body: bytes) -> None:
    """Answers that are no JSON, of another shape, with numbers that are none, nested without end, or whose
    pages go round in circles, end the import with a sentence."""
    with lying(saying(body)) as source, pytest.raises(errors.SourceUnreadable):
        list(source.experiments())


def test_no_redirect_is_followed() -> None:
    """A server that sends elsewhere, to a metadata address perhaps, is not obeyed."""
    away = saying(b"", 302, Location="http://169.254.169.254/latest/meta-data/")
    with lying(away) as source, pytest.raises(errors.SourceUnreadable, match="sends elsewhere"):
        list(source.experiments())


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer has a limit, whatever it announces."""
    monkeypatch.setattr(mlflow_http, "ANSWER_MAX_BYTES", 100_000)

    def endless(to: BaseHTTPRequestHandler) -> None:
        to.send_response(200)
        to.send_header("Connection", "close")
        to.end_headers()
        try:
            while True:
                to.wfile.write(b" " * 65_536)
        except OSError:
            to.close_connection = True

    with lying(endless) as source, pytest.raises(errors.SourceUnreadable, match="more than"):
        list(source.experiments())


def test_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends byte by byte holds nobody for ever."""
    monkeypatch.setattr(mlflow_http, "ANSWER_S", 0.1)
    stop = threading.Event()

    def drip(to: BaseHTTPRequestHandler) -> None:
        to.send_response(200)
        to.send_header("Connection", "close")
        to.end_headers()
        try:
            while not stop.wait(0.01):
                to.wfile.write(b" ")
        except OSError:
            to.close_connection = True

    try:
        with lying(drip) as source, pytest.raises(errors.TimedOut):
            list(source.experiments())
    finally:
        stop.set()


def test_a_refusal_is_told() -> None:
    """A server that wants a credential is said to; one that is overloaded may be asked again."""
    with lying(saying(b"no", 401)) as source, pytest.raises(errors.NotAuthenticated, match="MLFLOW_TRACKING"):
        list(source.experiments())
    with lying(saying(b"no", 503)) as source, pytest.raises(errors.ServerUnavailable):
        list(source.experiments())


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\\\b", "C:x", "a\\u0000b"])
def test_listed_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    """A path out of a run's listing has to be one of plain names."""
    listing = f'{{"files": [{{"path": "{path}", "is_dir": false, "file_size": 3}}]}}'.encode()
    with lying(saying(listing)) as source, pytest.raises(errors.FilesUnreachable):
        source.files("file:///somewhere", "run/abc")


def test_folders_without_end_are_refused() -> None:
    """A folder that holds itself is noticed."""
    listing = b'{"files": [{"path": "again", "is_dir": true}]}'
    with lying(saying(listing)) as source, pytest.raises(errors.FilesUnreachable):
        source.files("mlflow-artifacts:/1/abc/artifacts", "run/abc")


def test_a_servers_word_opens_no_local_file(tmp_path: Path) -> None:
    """A version whose source is a folder of this machine is not read because a server says so."""
    (tmp_path / "secret").write_text("mine")
    with lying(saying(b"{}")) as source, pytest.raises(errors.FilesUnreachable):
        source.files(tmp_path.as_uri(), "version/churn/1")


def test_a_file_that_ends_early_is_no_file() -> None:
    """A file that is shorter than its server announces is told, and not taken."""

    def short(to: BaseHTTPRequestHandler) -> None:
        to.send_response(200)
        to.send_header("Content-Length", "100")
        to.end_headers()
        to.wfile.write(b"only this")
        to.close_connection = True

    with lying(short) as source, pytest.raises(errors.ServerUnavailable):
        list(source.open("mlflow-artifacts:/1/abc/artifacts", "a.txt", "run/abc"))


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    """A link among artifacts is told and not followed."""
    root = tmp_path / "artifacts"
    root.mkdir()
    (tmp_path / "secret").write_text("mine")
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(errors.FilesUnreachable, match="link"):
        Roots().files(str(root))
    with pytest.raises(errors.FilesUnreachable):
        list(Roots().open(str(root), "link"))
    (root / "link").unlink()
    (root / "folder").symlink_to(tmp_path)
    with pytest.raises(errors.FilesUnreachable, match="link"):
        Roots().files(str(root))
    with pytest.raises(errors.FilesUnreachable):
        list(Roots().open(str(root), "folder/secret"))
