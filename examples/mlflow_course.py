"""What courses on MLflow do with a registry, from the first run to a rollback: plain MLflow code.

It runs with nothing but MLFLOW_TRACKING_URI set; each step checks what came of it.
"""

import warnings
from collections.abc import Callable

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

warnings.filterwarnings("ignore")
NAME = "churn"
X, Y = load_iris(return_X_y=True)
client = MlflowClient()


def train(strength: float) -> str:
    """A run with a model that is registered; the run's id."""
    with mlflow.start_run(run_name=f"C={strength}") as run:
        model = LogisticRegression(C=strength, max_iter=500).fit(X, Y)
        mlflow.log_param("C", strength)
        mlflow.log_metric("accuracy", model.score(X, Y))
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(X, model.predict(X)),
            registered_model_name=NAME,
        )
        return run.info.run_id


def loads(address: str) -> bool:
    """Whether an address leads to a model that predicts."""
    return mlflow.pyfunc.load_model(address).predict(X[:5]).shape == (5,)


def stage_of(version: str) -> str:
    """Where a version stands."""
    return client.get_model_version(NAME, version).current_stage


def refused(act: Callable[[], object]) -> str | None:
    """The error code with which something is refused; None when it is not."""
    try:
        act()
    except MlflowException as problem:
        return str(problem.error_code)
    return None


# Train and register.
mlflow.set_experiment("course")
runs = [train(strength) for strength in (0.001, 0.1, 10.0)]
versions = sorted(client.search_model_versions(f"name='{NAME}'"), key=lambda each: int(each.version))
assert [each.version for each in versions] == ["1", "2", "3"]
assert [each.run_id for each in versions] == runs
assert all(each.status == "READY" for each in versions)

# The same by hand, from a run's address.
again = mlflow.register_model(f"runs:/{runs[0]}/model", NAME)
assert again.version == "4", again
client.delete_model_version(NAME, "4")

# Describe and tag.
client.update_registered_model(NAME, description="who leaves")
client.update_model_version(NAME, "1", description="a first try")
client.set_registered_model_tag(NAME, "team", "growth")
client.set_model_version_tag(NAME, "2", "validated", "yes")
client.delete_model_version_tag(NAME, "2", "validated")
model = client.get_registered_model(NAME)
assert model.description == "who leaves"
assert model.tags["team"] == "growth"
assert client.get_model_version(NAME, "1").description == "a first try"

# Ask for approval and give it, by tags.
for key, value in (("approval_status", "pending"), ("request_reason", "better"), ("approver", "bob")):
    client.set_model_version_tag(NAME, "1", key, value)
client.set_model_version_tag(NAME, "1", "approval_status", "approved")
found = client.search_model_versions("tags.approval_status = 'approved'")
assert [each.version for each in found] == ["1"]

# Promote, first to Staging.
assert client.transition_model_version_stage(NAME, "1", "Staging").current_stage == "Staging"
assert client.transition_model_version_stage(NAME, "1", "Production").current_stage == "Production"
assert [each.version for each in client.get_latest_versions(NAME, ["Production"])] == ["1"]

# Compare the versions and choose the best.
scores = {
    each.version: client.get_run(each.run_id).data.metrics["accuracy"]
    for each in client.search_model_versions(f"name='{NAME}'")
}
best = max(scores, key=lambda version: (scores[version], int(version)))
assert len(scores) == 3
assert scores[best] > scores["1"]

# Promote the best, and see the old one archived.
client.transition_model_version_stage(NAME, best, "Production", archive_existing_versions=True)
assert (stage_of(best), stage_of("1")) == ("Production", "Archived")

# Roll back as people do: by the same call, without the flag.
client.transition_model_version_stage(NAME, "1", "Production")
assert (stage_of("1"), stage_of(best)) == ("Production", "Archived")
client.transition_model_version_stage(NAME, best, "Production")

# Aliases.
client.set_registered_model_alias(NAME, "champion", best)
assert client.get_model_version_by_alias(NAME, "champion").version == best
assert client.get_registered_model(NAME).aliases == {"champion": best}

# Load by every name that a version has.
semver = client.get_model_version(NAME, best).tags["modelkeep.semver"]
for address in (best, semver, "Production", "latest"):
    assert loads(f"models:/{NAME}/{address}"), address
assert loads(f"models:/{NAME}@champion")
assert loads(f"runs:/{runs[0]}/model")
assert np.isclose(
    mlflow.sklearn.load_model(f"models:/{NAME}/{semver}").C,
    mlflow.sklearn.load_model(f"models:/{NAME}@champion").C,
)

# Copy to another model.
copied = client.copy_model_version(f"models:/{NAME}@champion", "churn-prod")
assert (copied.name, copied.version, copied.run_id) == ("churn-prod", "1", versions[int(best) - 1].run_id)
assert loads("models:/churn-prod/1")

# What is relied on stays.
refusals: dict[str, Callable[[], object]] = {
    "RESOURCE_CONFLICT": lambda: client.delete_model_version(NAME, best),
    "INVALID_PARAMETER_VALUE": lambda: client.set_model_version_tag(NAME, best, "modelkeep.semver", "9"),
    "RESOURCE_ALREADY_EXISTS": lambda: client.create_registered_model(NAME),
    "RESOURCE_DOES_NOT_EXIST": lambda: client.get_model_version(NAME, "99"),
}
for code, act in refusals.items():
    assert refused(act) == code, code
assert refused(lambda: client.delete_registered_model(NAME)) == "RESOURCE_CONFLICT"

# Deleting a run takes nothing from the registry.
client.delete_run(runs[int(best) - 1])
assert loads(f"models:/{NAME}/Production")

# Clean up.
client.rename_registered_model("churn-prod", "churn-live")
assert loads("models:/churn-live/1")
client.delete_registered_model("churn-live")
assert [each.name for each in client.search_registered_models()] == [NAME]
print(f"best {best} is {semver}")
