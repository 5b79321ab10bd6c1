"""Artifacts with the unmodified MLflow client: folders, names, files in parts, images, deletion.

Each way is one that the client really takes; what single requests answer is in tests/web.
"""

from pathlib import Path

import pytest

from tests.mlflow_client import MlflowClient
from tests.web.processes import serving

pytestmark = pytest.mark.journey

SCRIPT = """
import os, pathlib, tempfile
import mlflow
import numpy as np
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

client = mlflow.MlflowClient()
run = client.create_run("0")
run_id = run.info.run_id
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "sub").mkdir()
files = {"a.txt": b"a", "empty": b"", "sub/b c.bin": os.urandom(5000), "sub/\u00fc.txt": b"u"}
for name, data in files.items():
    (folder / name).write_bytes(data)

def paths(under=None):
    return [found.path for found in client.list_artifacts(run_id, under)]

client.log_artifacts(run_id, str(folder), "dir")
assert [(f.path, f.is_dir, f.file_size) for f in client.list_artifacts(run_id)] == [("dir", True, None)]
assert paths("dir") == ["dir/a.txt", "dir/empty", "dir/sub"]
assert paths("dir/a.txt") == []
back = pathlib.Path(client.download_artifacts(run_id, "dir", tempfile.mkdtemp()))
for path in folder.rglob("*"):
    assert path.is_dir() or (back / path.relative_to(folder)).read_bytes() == path.read_bytes()

big = folder / "big.bin"
big.write_bytes(os.urandom(12 * 1024 * 1024 + 7))
os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"] = "true"
os.environ["MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE"] = "1"
os.environ["MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE"] = str(5 * 1024 * 1024)
client.log_artifact(run_id, str(big), "parts")
client.log_artifact(run_id, str(folder / "empty"), "parts")
os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"] = "true"
found = client.download_artifacts(run_id, "parts/big.bin", tempfile.mkdtemp())
assert pathlib.Path(found).read_bytes() == big.read_bytes()
assert [f.file_size for f in client.list_artifacts(run_id, "parts")] == [big.stat().st_size, 0]

client.log_dict(run_id, {"a": 1}, "t/x.json")
assert mlflow.artifacts.load_dict(f"runs:/{run_id}/t/x.json") == {"a": 1}
client.log_image(run_id, np.zeros((4, 4, 3), dtype="uint8"), key="img/one", step=12)
assert len(paths("images")) == 2

store = get_artifact_repository(run.info.artifact_uri)
store.delete_artifacts("t")
assert paths() == ["dir", "images", "parts"]
store.delete_artifacts()
assert paths() == []
print("all artifacts are as they were logged")
"""


@pytest.mark.req("T1")
def test_artifacts_of_the_real_client(mlflow_client: MlflowClient, tmp_path: Path) -> None:
    """What it logs is what it lists and reads, in one go and in parts, and what it deletes is gone."""
    with serving(tmp_path / "data") as server:
        assert "as they were logged" in mlflow_client.run(SCRIPT, server.url, folder=tmp_path)
