# Every task of a developer, one word each. `make help` lists them.
# What it does not do: hold logic. A task that is more than a line or two stands in scripts/.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-system setup-mlflow pins demo test lint format bench bench-peers golden docs clean

VENV ?= .venv
PY := $(VENV)/bin/python
# Two processes: the machines that run this are small, and the tests start servers beside themselves.
WORKERS ?= 2
# Words for pytest or the benchmarks, as in: make test ARGS="tests/core -k semver"
ARGS ?=
KEEP ?=
VENV_MLFLOW ?= .venv-mlflow
export VENV VENV_MLFLOW
# The tests start hundreds of processes; where this is set, each of them would compile the whole package again.
export PYTHONDONTWRITEBYTECODE =

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv with everything, from pinned and hashed requirements
	@scripts/setup_venv.sh

setup-system: ## Install the programs the tests drive (Debian, as root; else say what is missing)
	@scripts/setup_system.sh

setup-mlflow: setup ## Make .venv-mlflow with the real MLflow, for tests and benchmarks (900 MB)
	@scripts/setup_mlflow.sh

pins: ## Renew the pinned requirements (ONLY_NEW=1 keeps the versions there are)
	@scripts/pins.sh

demo: setup ## Watch one model's whole life in three minutes (KEEP=1 leaves it running)
	@KEEP="$(KEEP)" $(PY) examples/demo.py

test: setup setup-system setup-mlflow ## Run the tests (ARGS="tests/core -k semver" goes to pytest)
	$(PY) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: setup ## Check style, types and the directions of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo

format: setup ## Put the code into the one format, and imports in order
	$(PY) -m ruff check --fix --select I .
	$(PY) -m ruff format .

bench: setup setup-system ## Run the benchmarks and print one table (ARGS="transfer" picks one)
	$(PY) -m bench $(ARGS)

bench-peers: setup-mlflow ## Install MLflow beside us, for the benchmarks to measure

golden: setup ## Write the golden files anew; read their diff before you commit it
	WRITE_GOLDEN=1 $(PY) -m pytest -m golden $(ARGS)

docs: setup ## Write docs/reference anew from the code
	@if [ -e scripts/reference.py ]; then $(PY) scripts/reference.py; else echo "docs: nothing is generated yet"; fi

clean: ## Remove the environment and everything that tools left behind
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
