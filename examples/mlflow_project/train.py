"""A model that learns epoch by epoch, as a packaged MLflow project runs it: plain MLflow code.

    export MLFLOW_TRACKING_URI=http://127.0.0.1:5000
    mlflow run examples/mlflow_project --env-manager local -P epochs=10

The run's params, its commit and its entry point are recorded by `mlflow run`; here are recorded the data, the
loss of each epoch and the model. Nothing is registered: whoever likes the run does that.
"""

import argparse

import mlflow
import pandas as pd
from mlflow.models import infer_signature
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def read_data() -> tuple[pd.DataFrame, pd.DataFrame, pd.Series, pd.Series]:
    """Rows to learn from and rows to test on, then the labels of both."""
    table = load_breast_cancer(as_frame=True)
    columns = [name for name in table.data.columns if name.startswith("mean")]
    return train_test_split(table.data[columns], table.target, test_size=0.3, random_state=1)


def train(epochs: int, learning_rate: float) -> None:
    """One run: learn, measure after each epoch, and keep the model."""
    rows, test_rows, labels, test_labels = read_data()
    scaler = StandardScaler().fit(rows)
    learner = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=learning_rate, random_state=1)
    with mlflow.start_run():
        mlflow.log_params({"epochs": epochs, "learning_rate": learning_rate})
        data = mlflow.data.from_pandas(rows.assign(target=labels), targets="target", name="breast-cancer")
        mlflow.log_input(data, context="training")
        for epoch in range(epochs):
            learner.partial_fit(scaler.transform(rows), labels, classes=[0, 1])
            loss = log_loss(test_labels, learner.predict_proba(scaler.transform(test_rows)))
            mlflow.log_metric("test_loss", loss, step=epoch)
        model = make_pipeline(scaler, learner)
        mlflow.log_metric("test_accuracy", accuracy_score(test_labels, model.predict(test_rows)))
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(rows, model.predict(rows)),
            # skops refuses a type that it does not know: the loss function within SGDClassifier is one
            skops_trusted_types=["sklearn.linear_model._sgd_fast.Log"],
        )


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--epochs", type=int, default=5)
    words.add_argument("--learning-rate", type=float, default=0.1)
    given = words.parse_args()
    train(given.epochs, given.learning_rate)
