"""Lists of packages: what is the same list, what is another one, and what is open."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.environment_lock import read_conda, read_lock, read_named, read_requirements

PINNED = b"scikit-learn==1.9.1\nnumpy==2.4.0\n"
CONDA = b"""\
name: mlflow-env
channels: [conda-forge]
dependencies:
- python=3.11.7
- pip<=25.1
- pip:
  - numpy==2.4.0
  - scikit-learn==1.9.1
"""


@pytest.mark.req("V4")
@pytest.mark.parametrize(
    "text",
    [
        b"numpy==2.4.0\nscikit-learn==1.9.1",
        b"# what it needs\n\n  Scikit_Learn == 1.9.1   # the newest\r\nNumPy==2.4.0\r\n",
        b"--index-url https://mirror.example/simple\nscikit.learn==1.9.1\nnumpy==2.4.0\nnumpy==2.4.0\n",
        b"\xef\xbb\xbfscikit-learn==\\\n1.9.1\nnumpy==2.4.0",
    ],
)
def test_the_same_list(text: bytes) -> None:
    """Order, comments, white space, line ends, spellings, repetitions and mirrors make no other list."""
    assert read_lock({"requirements.txt": text}) == read_lock({"requirements.txt": PINNED})


@pytest.mark.req("V4")
@pytest.mark.parametrize(
    "text",
    [
        PINNED + b"pandas==3.0.0",
        b"scikit-learn==1.9.1\nnumpy==2.4.1\n",
        b"scikit-learn==1.9.1\nnumpy==2.4.0; python_version < '3.12'\n",
        b"scikit-learn[alldeps]==1.9.1\nnumpy==2.4.0\n",
        b"scikit-learn==1.9.1 --hash=sha256:00\nnumpy==2.4.0\n",
    ],
)
def test_another_list(text: bytes) -> None:
    """Another package, version, marker, extra or hash is another list."""
    one, other = read_lock({"requirements.txt": text}), read_lock({"requirements.txt": PINNED})
    assert one is not None
    assert other is not None
    assert one.digest != other.digest
    assert one.pinned


@pytest.mark.req("V4")
@pytest.mark.parametrize(
    "text",
    [
        b"numpy\n",
        b"numpy>=2\n",
        b"numpy==2.*\n",
        b"numpy==2.4.0,!=2.4.1\n",
        b"numpy~=2.4\n",
        b"-r other.txt\n",
        b"-e .\n",
        b"./wheels/x.whl\n",
    ],
)
def test_a_list_that_leaves_it_open(text: bytes) -> None:
    """An entry that allows several versions, or leads elsewhere, makes the list open."""
    assert not read_requirements(text).pinned


@pytest.mark.parametrize(
    "text",
    [
        b"a @ https://x.example/a.whl#sha256=00\n",
        b"numpy===2.4.0\n",
        b"pip\nsetuptools>=60\nnumpy==2.4.0\n",
        b"numpy == 2.4.0 ; sys_platform == 'linux'\n",
    ],
)
def test_a_list_that_says_it_all(text: bytes) -> None:
    """An exact version, or an address, is enough; what installs packages may float."""
    assert read_requirements(text).pinned


@pytest.mark.req("V4")
def test_which_list_counts() -> None:
    """requirements.txt goes before conda.yaml, and the Python of python_env.yaml belongs to it."""
    alone = read_lock({"requirements.txt": PINNED})
    python = read_lock(
        {"requirements.txt": PINNED, "python_env.yaml": b"python: 3.11.7\n", "conda.yaml": CONDA}
    )
    other = read_lock({"requirements.txt": PINNED, "python_env.yaml": b"python: 3.12.1\n"})
    conda = read_lock({"conda.yaml": CONDA, "requirements.txt": b"# nothing\n"})
    found = [alone, python, other, conda]
    assert None not in found
    assert len({lock.digest for lock in found if lock is not None}) == 4
    assert [lock.kind for lock in found if lock is not None] == ["requirements"] * 3 + ["conda"]
    assert read_lock({}) is None
    assert read_lock({"python_env.yaml": b"python: 3.11.7\n"}) is None


def test_conda_lists() -> None:
    """The name, the channels and the order of a conda environment do not count; an open entry does."""
    again = b"dependencies: [{pip: ['scikit_learn==1.9.1', numpy==2.4.0]}, 'pip<=25.1', 'python = 3.11.7']\n"
    assert read_conda(CONDA) == read_conda(again)
    assert read_conda(CONDA).pinned
    assert not read_conda(b"dependencies: [python>=3.11]\n").pinned
    assert not read_conda(b"dependencies: [{other: 1}]\n").pinned


def test_a_file_that_somebody_names() -> None:
    """A requirements file is read as one, whatever stands before its name; the lock of a tool counts as it
    is.
    """
    assert read_named("env/requirements-train.txt", PINNED) == read_lock({"requirements.txt": PINNED})
    assert read_named("environment.yml", CONDA).kind == "conda"
    lock = read_named("uv.lock", b"version = 1\r\n")
    assert lock == read_named("uv.lock", b"version = 1\n")
    assert (lock.kind, lock.pinned) == ("file", True)
    assert read_named("conda-lock.yml", b"a: 1").kind == "file"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("requirements.txt", b""),
        ("requirements.txt", b"\xff\xfe"),
        ("requirements.txt", b"x" * (1024 * 1024 + 1)),
        ("requirements.txt", b"\n".join(b"p%d==1" % n for n in range(10_001))),
        ("conda.yaml", b"dependencies: 3\n"),
        ("conda.yaml", b"- a\n"),
        ("conda.yaml", b"a: &a [*a]\n"),
        ("conda.yaml", b"!!python/object:os.system {}\n"),
        ("uv.lock", b" \n"),
    ],
)
def test_what_is_no_list_is_refused(name: str, data: bytes) -> None:
    """What cannot be read, or lists nothing, is refused by a sentence, and nothing in it is executed."""
    with pytest.raises(errors.Invalid) as caught:
        read_named(name, data)
    assert caught.value.message.isprintable() or "\n" in caught.value.message


NAMES = st.text("abc.-_", min_size=1, max_size=6).filter(
    lambda name: name[0].isalnum() and name[-1].isalnum()
)


@pytest.mark.req("V4")
@given(st.dictionaries(NAMES, st.integers(0, 99), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_no_order_and_no_comment_counts(packages: dict[str, int], chance: object) -> None:
    """Shuffled, spaced and commented, a list stays the list it is."""
    lines = [f"{name}=={number}" for name, number in packages.items()]
    noisy = [f"  {line.replace('==', ' == ')}   # {place}" for place, line in enumerate(reversed(lines))]
    noisy.insert(len(noisy) // 2, "# a comment")
    assert read_requirements("\n".join(lines).encode()) == read_requirements("\r\n\r\n".join(noisy).encode())


@given(st.binary(max_size=200))
def test_bytes_are_a_list_or_refused(data: bytes) -> None:
    """Whatever comes, it is read or refused: no other error gets out."""
    for name in ("requirements.txt", "conda.yaml", "uv.lock"):
        try:
            lock = read_named(name, data)
        except errors.Invalid:
            continue
        assert lock.digest.startswith("sha256:")
