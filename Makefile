# The whole project in one command each; needs Python 3.11, git and make. State is kept in .venv/, data/ and var/.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3.11
STLM := .venv/bin/stlm
INSTALLED := .venv/.installed
PARALLEL := .venv/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist
FORMATTED := components dags stlm tests
export UV_LINK_MODE ?= copy
# pip asks rustc for its version, and a rustup without a folder at home would make one to answer.
export RUSTUP_HOME ?= $(or $(wildcard $(HOME)/.rustup),$(CURDIR)/.venv/.rustup)
# Nothing about what is built or tested here leaves this machine.
export DO_NOT_TRACK := true
export GX_ANALYTICS_ENABLED := false
export ORT_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1

.PHONY: help setup data nightly up up-services down status doctor report test test-slow chaos benchmark check format lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup: $(INSTALLED) ## Make .venv with everything in it, as requirements.lock pins it

$(INSTALLED): requirements.lock infra/bootstrap.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed; name it: make PYTHON=...")'
	@echo "Setting up .venv; the first time takes a few minutes"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r infra/bootstrap.lock
	@.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --require-hashes -r requirements.lock
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

data: setup ## Make the quick start's data in data/
	@$(STLM) data

nightly: setup ## Three nights on real photographs, under Airflow's own scheduler
	@$(STLM) nightly --nights 3

up: setup ## Start the web interfaces of Airflow and MLflow (Ctrl-C ends them)
	@$(STLM) up

up-services: setup ## PostgreSQL, an S3 server, MLflow and all of Airflow on them (Ctrl-C ends them)
	@$(STLM) up-services

down: setup ## Stop them from elsewhere
	@$(STLM) down

status: setup ## Champion, threshold and last nights
	@$(STLM) status

doctor: setup ## Check the installation and the stores
	@$(STLM) doctor

report: setup ## Where the newest night's page is
	@$(STLM) report

test: setup ## The tests, on up to four cores
	$(PARALLEL) worksteal

test-slow: setup ## The tests of more than a minute each
	$(PARALLEL) loadfile -m slow

chaos: setup ## Break everything that can break, and print how each case ended (half an hour)
	$(PARALLEL) loadfile -m 'chaos and not gpu'

benchmark: setup ## the figures of tests/benchmarks/README.md, as tables
	.venv/bin/python -m pytest -m benchmark -s tests/benchmarks

check: setup ## Format, lint, types, layers, docstrings, spelling
	.venv/bin/ruff format --check $(FORMATTED)
	.venv/bin/ruff check $(FORMATTED)
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/pydoclint --quiet components dags stlm
	.venv/bin/codespell $(FORMATTED) infra *.md pyproject.toml Makefile

format: setup ## Put every file into the common form
	.venv/bin/ruff check --fix $(FORMATTED)
	.venv/bin/ruff format $(FORMATTED)

lock: setup ## Resolve requirements.lock and infra/bootstrap.lock anew
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--all-extras --group dev pyproject.toml --output-file requirements.lock
	printf 'uv\nhatchling\neditables\n' | .venv/bin/uv pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-header --constraints requirements.lock - --output-file infra/bootstrap.lock

clean: down ## Forget every night: Airflow, MLflow, data repository and landing zone of the quick start
	rm -rf var
