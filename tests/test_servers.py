"""The servers that other tests lean on: they start, keep what they are given, and are gone afterwards.

What Modelkeep does with a database or a bucket is tested elsewhere; here only the ground is tried.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import obstore
import psycopg
import pytest
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from tests import servers
from tests.servers import PostgresServer, S3Server

ROOT = Path(__file__).parents[1]


def _store(server: S3Server, bucket: str, secret_key: str) -> S3Store:
    return S3Store(
        bucket,
        endpoint=server.endpoint,
        region=server.region,
        access_key_id=server.access_key,
        secret_access_key=secret_key,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
        virtual_hosted_style_request=False,
    )


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_database_keeps_rows(postgres_url: str) -> None:
    """A row that one connection commits is read by another."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute("create table t (x int)")
        connection.execute("insert into t values (7)")
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("select x from t").fetchone() == (7,)


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_gets_an_empty_database(postgres_url: str, turn: int) -> None:
    """What one test makes, the next does not find."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute("create table only_mine (x int)")


def test_a_prepared_database_is_made_once_and_copied(postgres_server: PostgresServer) -> None:
    """The work of preparing is done once, and each copy goes its own way."""
    calls: list[str] = []

    def prepare(url: str) -> None:
        calls.append(url)
        with psycopg.connect(url) as connection:
            connection.execute("create table t (x int)")

    first, second = (postgres_server.new_database(prepare) for _ in range(2))
    with psycopg.connect(first) as connection:
        connection.execute("insert into t values (1)")
    with psycopg.connect(second) as connection:
        assert connection.execute("select count(*) from t").fetchone() == (0,)
    assert len(calls) == 1
    postgres_server.drop_database(first)
    postgres_server.drop_database(second)


def test_a_lent_database_comes_back_as_it_was(postgres_server: PostgresServer) -> None:
    """Rows that were added, changed or removed are as before, although they refer to each other."""

    def prepare(url: str) -> None:
        with psycopg.connect(url) as connection:
            connection.execute("create table a (x int primary key)")
            connection.execute("create table b (y int references a)")
            connection.execute("insert into a values (1)")

    with postgres_server.lend(prepare) as first, psycopg.connect(first, autocommit=True) as connection:
        connection.execute("update a set x = 2")
        connection.execute("insert into b values (2)")
    with postgres_server.lend(prepare) as second, psycopg.connect(second, autocommit=True) as connection:
        assert second == first
        assert connection.execute("select x from a").fetchall() == [(1,)]
        assert connection.execute("select y from b").fetchall() == []
        connection.execute("alter table b add column z int")
    with postgres_server.lend(prepare) as third, psycopg.connect(third) as connection:
        assert third != second
        assert connection.execute("select * from b").description is not None
        assert len(connection.execute("select * from b").description or ()) == 1
    postgres_server.drop_database(third)


@pytest.mark.external
def test_a_durable_server_comes_back_after_a_crash_with_every_committed_row() -> None:
    """Killed in the middle, it starts again on the same address and has what it acknowledged."""
    with servers.run_postgres(durable=True) as server:
        url = server.new_database()
        with psycopg.connect(url, autocommit=True) as connection:
            assert connection.execute("show fsync").fetchone() == ("on",)
            connection.execute("create table t (x int)")
            connection.execute("insert into t values (1)")
        server.kill()
        server.start()
        with psycopg.connect(url) as connection:
            assert connection.execute("select x from t").fetchone() == (1,)


@pytest.mark.external
def test_nothing_is_left_of_a_server_after_its_block() -> None:
    """Process and folder are gone when the block ends, also by an error."""
    with pytest.raises(ZeroDivisionError), servers.run_postgres() as server:
        pid, folder = server.pid, server.folder
        raise ZeroDivisionError
    assert not _process_exists(pid)
    assert not folder.exists()


@pytest.mark.external
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="only Linux's setpriv ties a child to our life")
def test_servers_end_when_the_test_process_is_killed() -> None:
    """A test process that is killed outright leaves no server running behind it."""
    script = (
        "import time\n"
        "from tests import servers\n"
        "with servers.run_postgres() as one, servers.run_s3() as other:\n"
        "    print(one.pid, other.pid, one.folder, other.folder, flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    with child.stdout:
        words = child.stdout.readline().split()
        child.kill()
        child.wait()
    assert len(words) == 4
    deadline = time.monotonic() + 60
    pids = [int(word) for word in words[:2]]
    while any(_process_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in pids if _process_exists(pid)]
    for folder in words[2:]:
        shutil.rmtree(folder, ignore_errors=True)
    assert not left


def test_a_bucket_keeps_objects_and_refuses_to_overwrite_when_asked(s3_server: S3Server) -> None:
    """An object is read back whole and in part, and a create-only put has one winner."""
    store = _store(s3_server, s3_server.bucket, s3_server.secret_key)
    obstore.put(store, "a/b", b"0123456789", mode="create")
    assert bytes(obstore.get(store, "a/b").bytes()) == b"0123456789"
    assert bytes(obstore.get_range(store, "a/b", start=2, end=5)) == b"234"
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "a/b", b"other", mode="create")


def test_buckets_are_apart_and_a_wrong_key_is_refused(s3_server: S3Server) -> None:
    """A new bucket is empty, and nobody enters with a key that was not given out."""
    bucket = s3_server.new_bucket()
    store = _store(s3_server, bucket, s3_server.secret_key)
    assert list(store.list()) == []
    obstore.put(store, "mine", b"x")
    with pytest.raises(BaseError):
        obstore.get(_store(s3_server, bucket, "wrong"), "mine")


@pytest.mark.external
def test_a_killed_s3_server_comes_back_with_its_objects() -> None:
    """What was acknowledged before a kill is there after a new start."""
    with servers.run_s3() as server:
        obstore.put(_store(server, server.bucket, server.secret_key), "kept", b"x" * 100_000)
        server.kill()
        server.start()
        store = _store(server, server.bucket, server.secret_key)
        assert len(bytes(obstore.get(store, "kept").bytes())) == 100_000


def test_a_server_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    """A broken start is an error with the server's own words, and soon."""
    folder = tmp_path
    process = servers.ServerProcess(["sh", "-c", "echo no such option >&2; exit 3"], folder / "log", folder)
    started = time.monotonic()
    with pytest.raises(servers.ServerFailed, match=r"status 3:\nno such option"):
        process.wait_until(lambda: False)
    assert time.monotonic() - started < 50


def test_a_missing_program_skips_at_home_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same lack is a skip with a reason on a desk and an error in CI."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no test may skip"):
        servers.missing("a server", "apt-get install it")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="a server is not installed"):
        servers.missing("a server", "apt-get install it")
