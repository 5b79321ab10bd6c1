"""Modelkeep from Python, from the first registration to a rollback and a look back; nothing of the server.

It trains two small models on a data set that scikit-learn ships, and needs a running Modelkeep:

    modelkeep up &                      # or set MODELKEEP_URL and MODELKEEP_TOKEN
    python examples/quickstart.py
"""

import json
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import skops.io
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modelkeep import Client
from modelkeep.core.rollout import Plan, Step, Strategy
from modelkeep.core.signature import check_signature

AT_ONCE = Plan(strategy=Strategy.IMMEDIATE, steps=(Step(weight_ppm=1_000_000, min_s=0, max_s=60),))
TABLE, LABELS = load_breast_cancer(return_X_y=True, as_frame=True)
TRAIN, TEST, KNOWN, ASKED = train_test_split(TABLE, LABELS, random_state=7)


def train(strength: float, folder: Path) -> tuple[Path, float]:
    """Fit a model and save it. Returns the file and its accuracy on rows it has not seen."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength)).fit(TRAIN, KNOWN)
    path = folder / "model.skops"
    skops.io.dump(model, path)
    return path, model.score(TEST, ASKED)


def ask(client: Client, endpoint: str) -> tuple[str, list[int]]:
    """Ask the gateway about three patients. Returns which version answered, and what."""
    gateway = client.rollout_status(endpoint).gateways[0].url
    body = json.dumps({"inputs": TEST.head(3).to_dict(orient="records")}).encode()
    request = urllib.request.Request(
        f"{gateway}/endpoints/{endpoint}/predict", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["X-Modelkeep-Version"], json.load(answer)["outputs"]


def main(client: Client) -> None:
    """Register two versions, promote both one after the other, go back, and look back."""
    signature = check_signature(
        {"inputs": dict.fromkeys(TABLE.columns, "float64"), "outputs": {"benign": "int64"}}
    )
    for strength in (0.001, 1.0):
        with tempfile.TemporaryDirectory() as folder:
            path, accuracy = train(strength, Path(folder))
            metrics, params = {"accuracy@test": accuracy}, {"C": strength}
            version = client.register(
                "tumour", path, metrics=metrics, params=params, signature=signature
            ).version
        print(f"{version.reference}: accuracy {accuracy:.3f}")
        client.promote(version.reference, "production", f"accuracy {accuracy:.3f}")
        client.put_endpoint("tumour", "tumour", plan=AT_ONCE)
        while client.rollout_status("tumour").stable != version.semver:  # until the gateway has loaded it
            time.sleep(0.1)
        print("  answered by", *ask(client, "tumour"))
    before = datetime.now(UTC)
    client.rollback("tumour", "the ward prefers the cautious one")
    print("rolled back to", client.get_version("tumour#production").reference)
    was = client.whatwas("tumour#production", before)
    print(f"a moment ago it was {was.version.reference}, because of {was.interval.reason}")


if __name__ == "__main__":
    with Client() as found:
        main(found)
