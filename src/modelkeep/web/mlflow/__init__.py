"""The MLflow door: the paths, words and error codes that the unmodified MLflow client speaks.

A face like `web.api`: it translates between MLflow's wire and the same services, holds no rule of its own,
and its rows stand in the one route table. What differs from MLflow on purpose is listed, with the reason, in
`docs/reference/mlflow.md`.
"""
