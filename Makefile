# Every task of a developer, one word each. `make help` lists them.
# What it does not do: hold logic. Where a task is more than a line it stands in scripts/.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-system pins demo test lint bench golden docs clean

VENV ?= .venv
PY := $(VENV)/bin/python
# Two processes: most machines that run this have few cores, and the tests start servers beside themselves.
WORKERS ?= 2
# Arguments for pytest, as in: make test ARGS="tests/core -k semver"
ARGS ?=
export VENV

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv with everything, from pinned and hashed requirements
	@scripts/setup_venv.sh

setup-system: ## Install the servers that the tests drive (Debian, as root)
	@scripts/setup_system.sh

pins: ## Renew the pinned requirements (ONLY_NEW=1 keeps what is there)
	@scripts/pins.sh

demo: setup ## One model's whole life in three minutes (KEEP=1 leaves it running)
	@KEEP=$(KEEP) $(PY) examples/demo.py

test: setup setup-system ## Run the tests (ARGS="..." goes to pytest)
	$(PY) -m pytest -n $(WORKERS) $(ARGS)

lint: setup ## Check style, types and the directions of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-timing 2>/dev/null || $(VENV)/bin/lint-imports

bench: setup setup-system ## Run the benchmarks and print one table
	$(PY) -m bench $(ARGS)

golden: setup ## Write the golden files anew; read the diff before you commit it
	MODELKEEP_WRITE_GOLDEN=1 $(PY) -m pytest tests/golden $(ARGS)

docs: setup ## Write docs/reference anew from the code
	$(PY) scripts/reference.py

clean: ## Remove the environment and everything tools left behind
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
