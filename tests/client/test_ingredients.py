"""What the registering side says of a version's ingredients: the checkout, the data, the list of packages."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from modelkeep.client.ingredients import checkout_of, provenance_of
from modelkeep.core import errors
from modelkeep.core.provenance import Code, DatasetSnapshot


def git(folder: Path, *words: str) -> str:
    """What git says, with nobody's own settings."""
    isolated = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=ann", "-c", "user.email=ann@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *who, "-C", str(folder), *words], check=True, capture_output=True, env=isolated
    )
    return done.stdout.decode().strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit, and a model in it that no commit has."""
    git(tmp_path, "init", "-q")
    (tmp_path / "train.py").write_text("print(1)\n")
    git(tmp_path, "add", "train.py")
    git(tmp_path, "commit", "-q", "-m", "Train")
    git(tmp_path, "remote", "add", "origin", "https://bob:secret@git.example/churn.git")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").write_bytes(b"weights")
    return tmp_path


@pytest.mark.req("V4", "T6")
def test_the_checkout_says_its_commit(checkout: Path) -> None:
    """The commit, the branch and the repository of the checkout that holds the file, without anybody's
    password; files that git does not know are no change."""
    found = checkout_of(checkout / "out" / "model.onnx")
    assert found == Code(
        commit=git(checkout, "rev-parse", "HEAD"),
        branch="main",
        repository="https://git.example/churn.git",
        detected=True,
    )
    assert checkout_of(checkout / "out") == found


@pytest.mark.req("V4")
def test_changes_beside_the_commit_are_seen(checkout: Path) -> None:
    """A changed file makes the checkout dirty, and a commit of it clean again; without a branch there is
    none.
    """
    (checkout / "train.py").write_text("print(2)\n")
    dirty = checkout_of(checkout / "out")
    assert dirty is not None
    assert dirty.dirty
    git(checkout, "commit", "-q", "-am", "Train better")
    git(checkout, "checkout", "-q", "--detach")
    clean = checkout_of(checkout / "out")
    assert clean is not None
    assert (clean.dirty, clean.branch) == (False, None)
    assert clean.commit != dirty.commit


def test_where_git_says_nothing_nothing_is_stated(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkout, one without a commit, a broken one, and a machine without git: nothing is stated, and
    nothing raised."""
    assert checkout_of(Path("/")) is None
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    assert checkout_of(empty) is None
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / ".git").write_text("gitdir: /nowhere\n")
    assert checkout_of(broken) is None
    monkeypatch.setenv("PATH", str(empty))
    assert checkout_of(checkout / "out") is None


def test_nothing_that_the_checkout_configures_is_run(checkout: Path) -> None:
    """A checkout that names a program as its monitor does not get it run."""
    trace = checkout / "ran"
    hook = checkout / "monitor.sh"
    hook.write_text(f"#!/bin/sh\ntouch {trace}\n")
    hook.chmod(0o755)
    git(checkout, "config", "core.fsmonitor", str(hook))
    assert checkout_of(checkout / "out") is not None
    assert not trace.exists()


@pytest.mark.req("V4")
def test_what_is_stated_goes_before_what_is_found(checkout: Path) -> None:
    """A commit that is stated is taken, an empty one states none; without a word the checkout is asked."""
    stated = provenance_of(checkout / "out", code_commit="f" * 40)
    assert stated is not None
    assert stated.code == Code(commit="f" * 40)
    assert provenance_of(checkout / "out", code_commit="") is None
    found = provenance_of(checkout / "out")
    assert found is not None
    assert found.code is not None
    assert found.code.detected


@pytest.mark.req("V4")
def test_data_and_packages(tmp_path: Path) -> None:
    """Files are hashed, digests are taken as they are, a word before `=` is the role, and the packages are
    locked."""
    rows, digest = tmp_path / "rows.csv", "sha256:" + "a" * 64
    rows.write_bytes(b"a,b\n1,2\n")
    odd = tmp_path / "a=b.csv"
    odd.write_bytes(b"")
    lock = tmp_path / "requirements.txt"
    lock.write_text("numpy==2.4.0\n")
    whole = DatasetSnapshot(name="other", digest="1")
    found = provenance_of(
        None, data=[f"training={rows}", str(odd), rows, f"test={digest}", digest, whole], env_lock=lock
    )
    assert found is not None
    hashed = f"sha256:{hashlib.sha256(rows.read_bytes()).hexdigest()}"
    assert [(d.role, d.name, d.digest) for d in found.datasets] == [
        ("training", "rows.csv", hashed),
        ("", "a=b.csv", f"sha256:{hashlib.sha256(b'').hexdigest()}"),
        ("", "rows.csv", hashed),
        ("test", "", digest),
        ("", "", digest),
        ("", "other", "1"),
    ]
    assert found.environment is not None
    assert (found.environment.kind, found.environment.pinned) == ("requirements", True)


@pytest.mark.parametrize("given", ["nothing.csv", "training=nothing.csv", "sha256:abc", "."])
def test_data_that_cannot_be_read_is_refused(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is not there, half a digest and a folder are refused by a sentence."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.Invalid):
        provenance_of(None, data=[given])
    with pytest.raises(errors.InvalidInput):
        provenance_of(None, env_lock=tmp_path / given)
