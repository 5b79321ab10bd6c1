"""What a version was made of, as the side that registers knows it: the commit of the checkout that the files
lie in, the data, the list of packages.

Git is asked, not read: it alone knows what a checkout holds. It is asked briefly, without locks and without
the monitor that a checkout may configure, and where it does not answer nothing is stated.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from modelkeep.core import environment_lock, errors, values
from modelkeep.core.provenance import Code, DatasetSnapshot, EnvironmentLock, Provenance, without_userinfo

GIT_S = 2.0
"""How long git may take: a large checkout on a cold disk; longer is not worth a line of a record."""
CHUNK_BYTES = 1024 * 1024
"""Read at a time when data is hashed."""
BRANCH_LOST = "(detached)"
"""What git says instead of a branch when none is checked out."""

Data = DatasetSnapshot | str | Path


def provenance_of(
    root: Path | None,
    *,
    code_commit: str | None = None,
    data: Iterable[Data] = (),
    env_lock: str | Path | None = None,
) -> Provenance | None:
    """What is stated of a version's ingredients.

    Args:
        root: the file or folder that is registered; its checkout is asked when no commit is stated.
        code_commit: the commit; None has it looked for, and an empty text states none.
        data: files, which are hashed, or digests, each with `ROLE=` before it where it has one.
        env_lock: a file that lists packages.

    Raises:
        InvalidInput: a file cannot be read. Invalid: a list of packages that is none.
    """
    code = Code(commit=code_commit) if code_commit else None
    if code_commit is None and root is not None:
        code = checkout_of(root)
    stated = Provenance(
        code=code,
        datasets=tuple(snapshot(given) for given in data),
        environment=_lock(Path(env_lock)) if env_lock is not None else None,
    )
    return stated if stated != Provenance() else None


def checkout_of(root: Path) -> Code | None:
    """The state of the git checkout that holds a file or folder; None where there is none, or git does not
    say.
    """
    folder = root if root.is_dir() else root.parent
    if not any((parent / ".git").exists() for parent in (folder.absolute(), *folder.absolute().parents)):
        return None
    said = _git(
        folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=all"
    )
    if said is None:
        return None
    lines = said.splitlines()
    head = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# ") and line.count(" ") > 1)
    commit, branch = head.get("branch.oid", ""), head.get("branch.head", BRANCH_LOST)
    if not set(commit) <= set("0123456789abcdef") or len(commit) not in (40, 64):
        return None  # a checkout without a commit yet
    remote = _git(folder, "config", "--get", "remote.origin.url")
    return Code(
        commit=commit,
        branch=None if branch == BRANCH_LOST else branch,
        repository=without_userinfo(remote.strip()) or None if remote else None,
        dirty=any(not line.startswith("#") for line in lines),
        detected=True,
    )


def _git(folder: Path, *words: str) -> str | None:
    """What git answers; None where it is missing, fails, or takes too long."""
    import subprocess  # only a registration needs it

    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *words]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=GIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def snapshot(given: Data) -> DatasetSnapshot:
    """A state of data: a digest as it is, or a file by the digest of its bytes; `training=customers.csv` says
    the role.

    Raises:
        InvalidInput: the file cannot be read.
    """
    if isinstance(given, DatasetSnapshot):
        return given
    role, text = "", str(given)
    if isinstance(given, str) and not Path(given).exists():
        before, equals, after = given.partition("=")
        role, text = (before.strip(), after.strip()) if equals else ("", given)
    if text.startswith("sha256:"):
        return DatasetSnapshot(digest=values.check_digest(text), role=role)
    hashed = hashlib.sha256()
    try:
        with Path(text).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                hashed.update(chunk)
    except OSError as problem:
        raise errors.InvalidInput(
            f"The data {values.quoted(text)} cannot be read: {problem.strerror}; name a file, or a digest "
            "that begins with 'sha256:'.",
            field="data",
        ) from problem
    return DatasetSnapshot(name=Path(text).name, digest=f"sha256:{hashed.hexdigest()}", role=role)


def _lock(path: Path) -> EnvironmentLock:
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise errors.InvalidInput(
            f"The list of packages {values.quoted(str(path))} cannot be read: {problem.strerror}.",
            field="env_lock",
        ) from problem
    return environment_lock.read_named(path.name, data)
