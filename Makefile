# Everything a developer runs. A fresh machine needs git, make and Python 3.11 or newer; the rest is
# installed into .venv from constraints/, where every distribution has its version and its hash.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip --quiet --no-input
USE := $(VENV)/.ready-to-use
DEVELOP := $(VENV)/.ready-to-develop

# SEED=7 repeats a run's random choices: the order of the tests, Hypothesis, the generated cases.
SEED ?=
SEEDED = $(if $(SEED),SECONDPASS_SEED=$(SEED))
PYTEST = $(SEEDED) $(BIN)/python -m pytest -q $(if $(SEED),--randomly-seed=$(SEED) --hypothesis-seed=$(SEED))
PARALLEL = -n auto --maxprocesses=4
LONG = -x --timeout=0

KILLS ?= 5000
IMAGES ?= 1000000
CASES ?= 100000
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 3600
LIVE_EVENTS ?= 10000000
ARGS ?=

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

# ---------------------------------------------------------------------------------- try and check

.PHONY: demo
demo: $(USE)  ## install what secondpass needs and run the demo
	$(BIN)/secondpass demo $(ARGS)

.PHONY: install
install: $(DEVELOP)  ## install everything that development needs

.PHONY: test
test: $(DEVELOP)  ## the normal test suite (ARGS='-k name' chooses, SEED= repeats)
	$(PYTEST) $(PARALLEL) $(ARGS)

.PHONY: lint
lint: $(DEVELOP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: $(DEVELOP)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: $(DEVELOP)  ## the strict type check
	$(BIN)/basedpyright --warnings

.PHONY: check
check: test lint types  ## test, lint and types

# ------------------------------------------------------------------------------- hours, not minutes

.PHONY: crash
crash: $(DEVELOP)  ## kill the running engine at every pass of every point, and at KILLS random moments (SEED=)
	SECONDPASS_KILLS=$(KILLS) $(PYTEST) $(PARALLEL) $(LONG) tests/crash/test_kill_points.py tests/crash/test_timers.py tests/crash/test_random_kills.py $(ARGS)

.PHONY: powerloss
powerloss: $(DEVELOP)  ## restart from IMAGES disk images of a power loss (SEED=)
	SECONDPASS_POWERLOSS_IMAGES=$(IMAGES) $(PYTEST) $(PARALLEL) $(LONG) tests/crash/test_power_loss.py $(ARGS)

.PHONY: differential
differential: $(DEVELOP)  ## compare CASES random apps with the plain loop (SEED=)
	SECONDPASS_DIFFERENTIAL_CASES=$(CASES) $(PYTEST) $(PARALLEL) $(LONG) tests/differential $(ARGS)

.PHONY: fuzz
fuzz: $(DEVELOP)  ## run each script of tests/fuzz for FUZZ_SECONDS (SEED=)
	@set -e; ls tests/fuzz/fuzz_*.py >/dev/null; for script in tests/fuzz/fuzz_*.py; do \
		echo "$$script: $(FUZZ_SECONDS) seconds"; \
		$(SEEDED) SECONDPASS_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python $$script $(ARGS); \
	done

.PHONY: soak
soak: $(DEVELOP)  ## run under load and faults for SOAK_SECONDS (SEED=)
	SECONDPASS_SOAK_SECONDS=$(SOAK_SECONDS) SECONDPASS_LIVE_EVENTS=$(LIVE_EVENTS) $(PYTEST) $(LONG) tests/soak $(ARGS)

.PHONY: bench
bench: $(DEVELOP)  ## measure: the tables in the docs come from this
	$(BIN)/python benchmarks/run.py $(ARGS)

# --------------------------------------------------------------------------------- the environment

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "secondpass needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(USE): pyproject.toml constraints/run.txt | $(BIN)/python
	$(PIP) install --require-hashes -r constraints/run.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(DEVELOP): constraints/dev.txt $(USE)
	$(PIP) install --require-hashes -r constraints/dev.txt
	@touch $@

# Versions younger than a week are left alone (BEFORE=), so that a bad release is found by others first.
BEFORE ?= $(shell $(BIN)/python -c 'import datetime as d; print(d.date.today() - d.timedelta(days=7))')
COMPILE = $(BIN)/uv --no-config pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-emit-index-url --no-header --no-annotate --exclude-newer $(BEFORE)

.PHONY: constraints
constraints: $(DEVELOP)  ## choose the newest versions again and write constraints/
	$(PIP) install --require-hashes -r constraints/lock.txt
	$(COMPILE) pyproject.toml --extra numpy --group dev -o constraints/dev.txt
	$(COMPILE) pyproject.toml --group build -c constraints/dev.txt -o constraints/run.txt
	$(COMPILE) --group pyproject.toml:lock -o constraints/lock.txt

.PHONY: clean
clean:  ## remove .venv, caches and builds
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
