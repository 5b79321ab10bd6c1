"""Provenance and identity: the documented vectors, what counts and what does not, and what cannot be kept."""

import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from modelkeep.core import errors
from modelkeep.core.catalog import DraftSpec, FileEntry
from modelkeep.core.provenance import (
    INGREDIENTS,
    Code,
    DatasetSnapshot,
    EnvironmentLock,
    Project,
    Provenance,
    Script,
    check_provenance,
    described,
    identity,
)
from modelkeep.core.registration import check_spec
from modelkeep.core.values import Digest

COMMIT = "4117c4b0d3f0a1b2c3d4e5f60718293a4b5c6d7e"
LOCK = Digest("sha256:" + "5" * 64)
WHOLE = Provenance(
    code=Code(commit=COMMIT),
    datasets=(DatasetSnapshot(digest="sha256:" + "a" * 64), DatasetSnapshot(digest="b2c3d4e5")),
    environment=EnvironmentLock(kind="requirements", digest=LOCK),
)
PARAMS = {"depth": "6", "lr": "0.1"}
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "identity.md"

VECTORS: list[tuple[str, Provenance | None, dict[str, str]]] = [
    ("all", WHOLE, PARAMS),
    ("all but the parameters", WHOLE, {}),
    ("the commit", Provenance(code=Code(commit=COMMIT)), {}),
    ("the parameters `naïve` = `ü` and `a` = an empty text", None, {"naïve": "ü", "a": ""}),
]


@pytest.mark.req("V4")
@pytest.mark.parametrize(("stated", "provenance", "params"), VECTORS, ids=[v[0][:12] for v in VECTORS])
def test_the_documented_vectors(stated: str, provenance: Provenance | None, params: dict[str, str]) -> None:
    """Each vector of the page is what comes out, missing ingredients included."""
    row = re.search(
        rf"^\| {re.escape(stated)} \| (.*?) ?\| `(sha256:[0-9a-f]{{64}})` \|$", PAGE.read_text(), re.M
    )
    assert row is not None
    found = identity(provenance, params)
    assert found is not None
    assert found.digest == row[2]
    assert ", ".join(found.missing) == row[1].strip()


@pytest.mark.req("V4")
def test_the_encoding_by_hand() -> None:
    """The encoding written out byte by byte, as the page says it, gives the same."""

    def text(value: str) -> bytes:
        return len(value.encode()).to_bytes(8, "big") + value.encode()

    two = (2).to_bytes(8, "big")
    whole = b"modelkeep.identity.v1\n"
    whole += text("code") + b"\x01" + text(COMMIT)
    whole += text("data") + b"\x01" + two + text("b2c3d4e5") + text("sha256:" + "a" * 64)
    whole += text("params") + b"\x01" + two + text("depth") + text("6") + text("lr") + text("0.1")
    whole += text("environment") + b"\x01" + text(LOCK)
    found = identity(WHOLE, PARAMS)
    assert found is not None
    assert found.whole
    assert found.digest == f"sha256:{hashlib.sha256(whole).hexdigest()}"


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), max_size=8)
COMMITS = st.text("0123456789abcdef", min_size=40, max_size=40)
SNAPSHOTS = st.builds(
    DatasetSnapshot, name=TEXTS, digest=st.text("abc123", min_size=1, max_size=4), source=TEXTS, role=TEXTS
)
LOCKS = st.builds(
    EnvironmentLock,
    kind=st.sampled_from(["requirements", "conda"]),
    digest=st.text("0123456789abcdef", min_size=64, max_size=64).map(lambda text: Digest(f"sha256:{text}")),
    pinned=st.booleans(),
)
PROVENANCES = st.builds(
    Provenance,
    code=st.none()
    | st.builds(Code, commit=st.none() | COMMITS, branch=st.none() | TEXTS, dirty=st.booleans()),
    datasets=st.lists(SNAPSHOTS, max_size=4).map(tuple),
    environment=st.none() | LOCKS,
    user=st.none() | TEXTS,
)
PARAMS_OF = st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=4)


def ingredients_of(stated: Provenance, params: dict[str, str]) -> tuple[object, ...]:
    """What counts, said another way; None for what is unknown."""
    code, lock = stated.code, stated.environment
    return (
        code.commit if code is not None and not code.dirty else None,
        frozenset(d.digest for d in stated.datasets) or None,
        frozenset(params.items()) or None,
        lock.digest if lock is not None and lock.pinned else None,
    )


@pytest.mark.req("V4")
@given(PROVENANCES, PARAMS_OF, PROVENANCES, PARAMS_OF)
def test_equal_ingredients_and_nothing_else(
    one: Provenance, params: dict[str, str], other: Provenance, others: dict[str, str]
) -> None:
    """Two identities are equal exactly when the known ingredients are, and what is missing is named."""
    first, second = check_provenance(one), check_provenance(other)
    left, right = ingredients_of(first, params), ingredients_of(second, others)
    a, b = identity(first, params), identity(second, others)
    assert (a == b) == (left == right)
    for found, parts in ((a, left), (b, right)):
        missing = tuple(name for name, part in zip(INGREDIENTS, parts, strict=True) if part is None)
        assert (found is None) == (len(missing) == len(INGREDIENTS))
        if found is not None:
            assert found.missing == missing
            assert found.whole == (not missing)


@given(PROVENANCES)
def test_the_normal_form_is_normal(stated: Provenance) -> None:
    """Checking twice changes nothing, and the order of data changes nothing."""
    checked = check_provenance(stated)
    assert check_provenance(checked) == checked
    assert check_provenance(replace(stated, datasets=stated.datasets[::-1])) == checked


@pytest.mark.req("V4")
def test_what_leaves_it_open_makes_it_partial() -> None:
    """Changes beside the commit, and a list of packages that is not pinned, are unknown ingredients."""
    dirty = replace(WHOLE, code=Code(commit=COMMIT, dirty=True))
    loose = replace(WHOLE, environment=EnvironmentLock(kind="requirements", digest=LOCK, pinned=False))
    for stated, missing in ((dirty, ("code",)), (loose, ("environment",))):
        found = identity(stated, PARAMS)
        assert found is not None
        assert found.missing == missing


def test_nothing_known_is_no_identity() -> None:
    """Where nothing at all is known there is no identity, not one of nothing."""
    assert identity(None, {}) is None
    assert identity(Provenance(user="ann", run_id="abc"), {}) is None


@pytest.mark.req("V4")
def test_secrets_in_addresses_are_not_kept() -> None:
    """The user and password of an address are dropped wherever an address is kept."""
    address = "https://bob:secret@git.example/churn.git"
    checked = check_provenance(
        Provenance(
            code=Code(commit=COMMIT.upper(), repository=address),
            project=Project(uri=address),
            script=Script(name=address),
            datasets=(DatasetSnapshot(digest="1", source="s3://key:secret@bucket/data"),),
        )
    )
    assert "secret" not in str(checked)
    assert checked.code is not None
    assert checked.code.commit == COMMIT
    assert described(checked)["code"] == COMMIT


@pytest.mark.parametrize(
    "stated",
    [
        Provenance(code=Code(commit="4117c4b")),
        Provenance(code=Code(commit="x" * 40)),
        Provenance(code=Code(branch="\x1b[31m")),
        Provenance(code=Code(repository="x" * 2_001)),
        Provenance(run_id="../x"),
        Provenance(run_id=""),
        Provenance(logged_model_id="m/1"),
        Provenance(datasets=(DatasetSnapshot(digest=""),)),
        Provenance(datasets=(DatasetSnapshot(digest="\u202e"),)),
        Provenance(datasets=tuple(DatasetSnapshot(digest=str(n)) for n in range(1_001))),
        Provenance(environment=EnvironmentLock(kind="requirements", digest=Digest("sha256:1"))),
        Provenance(environment=EnvironmentLock(kind="", digest=LOCK)),
        Provenance(user="x" * 501),
    ],
)
def test_what_cannot_be_kept_is_refused(stated: Provenance) -> None:
    """Short commits, control characters, over-long texts and paths as ids are refused by a sentence."""
    with pytest.raises(errors.Invalid) as caught:
        check_provenance(stated)
    assert caught.value.message.isprintable()


# ----------------------------------------------------------------------------------- beside and in the
# metadata

FILE = FileEntry(path="model.onnx", size_bytes=1, digest=Digest("sha256:" + "0" * 64))


@pytest.mark.req("V4", "V6")
def test_metadata_states_ingredients_too() -> None:
    """Commit, data and lock of a metadata document are the version's, as if they stood beside it."""
    document = {
        "code": {"commit": COMMIT},
        "data": {"datasets": [{"name": "rows", "digest": "sha256:" + "a" * 64, "role": "training"}]},
        "environment": {"lock_digest": LOCK},
    }
    spec = check_spec(DraftSpec(files=(FILE,), metadata=document, params=PARAMS))
    assert spec.provenance is not None
    assert spec.provenance.code == Code(commit=COMMIT)
    found = identity(spec.provenance, spec.params)
    assert found is not None
    assert found.whole
    assert check_spec(spec) == spec


@pytest.mark.parametrize(
    "inside", [{"code": {"commit": "f" * 40}}, {"environment": {"lock_digest": "sha256:" + "6" * 64}}]
)
def test_two_statements_must_agree(inside: dict[str, object]) -> None:
    """Another commit or lock in the metadata than beside it is refused; code only found gives way."""
    with pytest.raises(errors.InvalidMetadata, match="state one of them"):
        check_spec(DraftSpec(files=(FILE,), metadata=inside, provenance=WHOLE))
    found = replace(WHOLE, code=Code(commit=COMMIT, detected=True), environment=None)
    spec = check_spec(DraftSpec(files=(FILE,), metadata=inside, provenance=found))
    assert spec.provenance is not None
    assert spec.provenance.code == (Code(commit="f" * 40) if "code" in inside else found.code)


def test_a_short_commit_in_the_metadata_is_no_ingredient() -> None:
    """Seven digits of a commit may be another one's tomorrow: they stay metadata."""
    spec = check_spec(DraftSpec(files=(FILE,), metadata={"code": {"commit": "4117c4b"}}))
    assert spec.provenance is None
    assert spec.metadata["code"] == {"commit": "4117c4b"}
