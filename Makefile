# `make demo` shows the whole system on this machine, `make test` proves it, `make check` runs what CI runs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env system-packages demo test soak reliability lint check bench clean

PYTHON ?= python3
PYTEST_ARGS ?=
STAMP := .venv/.synced
# uv would otherwise follow a virtual environment that happens to be active.
export UV_PROJECT_ENVIRONMENT := .venv
unexport VIRTUAL_ENV

help: ## show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(STAMP) ## make the Python environment in .venv

# Debian's pip refuses to install outside a virtual environment, so uv lives inside ours.
$(STAMP): pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; \
	  sys.exit(None if sys.version_info >= (3, 11) else f"dispenser-fleet: $(PYTHON) is Python {v}; Python 3.11 or newer is needed. Try: make env PYTHON=python3.12")'
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@test -x .venv/bin/uv || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv sync --quiet --locked --inexact --all-extras --all-groups --python .venv/bin/python
	@touch $@

# Mosquitto, Chromium and a Chinese font; without them their tests skip and say so.
system-packages:
	@.ci/install-system-packages

demo: $(STAMP) ## run the whole system on this machine: make demo ARGS="--help"
	.venv/bin/dispenser-fleet demo $(ARGS)

# Most tests wait for something real: three at a time keep two cores busy. A module's tests stay together, with what they share.
test: $(STAMP) system-packages ## run the tests: make test PYTEST_ARGS="-k ledger"
	.venv/bin/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

soak: $(STAMP) system-packages ## run the long forms: make soak PYTEST_ARGS="-k n1"
	.venv/bin/python -m pytest -m soak $(PYTEST_ARGS)

reliability: $(STAMP) system-packages ## run the fault matrix and write docs/reliability.md
	.venv/bin/python -m pytest -p tests.reliability.report $(PYTEST_ARGS)

lint: $(STAMP) ## ruff and mypy, without tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

check: lint test ## what CI runs: lint, types, tests

bench: $(STAMP) ## run the benchmarks: make bench ARGS="ingest"
	.venv/bin/python -m tests.benchmarks $(ARGS)

clean: ## remove the environment and the caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
