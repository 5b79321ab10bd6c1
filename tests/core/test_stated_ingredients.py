"""Metadata that is written for a version states its ingredients, and registers them again."""

import pytest

from modelkeep.core.catalog import DraftSpec, FileEntry
from modelkeep.core.metadata import check_metadata, write_metadata
from modelkeep.core.provenance import Code, DatasetSnapshot, EnvironmentLock, Provenance, identity
from modelkeep.core.registration import check_spec
from modelkeep.core.stated_provenance import with_ingredients
from modelkeep.core.values import Digest

FILE = FileEntry(path="model.onnx", size_bytes=1, digest=Digest("sha256:" + "0" * 64))
STATED = Provenance(
    code=Code(commit="f" * 40, branch="main", repository="https://git.example/churn.git"),
    datasets=(DatasetSnapshot(name="rows", digest="sha256:" + "a" * 64, role="training"),),
    environment=EnvironmentLock(kind="requirements", digest=Digest("sha256:" + "5" * 64)),
)


@pytest.mark.req("V4", "V6")
def test_the_round_trip_keeps_the_identity() -> None:
    """The metadata of a version, written and registered again, gives the same identity."""
    document = with_ingredients({"environment": {"python": "3.11.7"}}, STATED)
    assert write_metadata(document)
    spec = check_spec(DraftSpec(files=(FILE,), metadata=document, params={"depth": "6"}))
    found = identity(spec.provenance, spec.params)
    assert found is not None
    assert found.whole
    assert found == identity(STATED, {"depth": "6"})
    assert spec.metadata["environment"] == {"lock_digest": "sha256:" + "5" * 64, "python": "3.11.7"}


def test_what_a_person_wrote_stays() -> None:
    """Sections that the document has are not touched, and what metadata cannot say is left out."""
    document = {"code": {"commit": "4117c4b"}, "data": {"datasets": []}}
    short = Provenance(code=STATED.code, datasets=(DatasetSnapshot(digest="a1b2c3d4"),))
    assert with_ingredients(document, short) == document
    assert with_ingredients({}, None) == {}
    assert "data" not in with_ingredients({}, short)
    dirty = with_ingredients({}, Provenance(code=Code(commit="f" * 40, dirty=True)))
    assert dirty == {"code": {"commit": "f" * 40, "dirty": True}}
    check_metadata(dirty)
