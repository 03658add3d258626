# Everything a newcomer, a developer and CI type. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# Two environments: the demo's holds cachebus as a user installs it, the developer's holds the checkout itself.
VENV := .venv
DEV := .venv-dev
BIN := $(DEV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check
SOURCES := pyproject.toml hatch_build.py README.md LICENSE $(shell find cachebus transports -name '*.py')

# CI=1 or CI=true: install missing servers first, and let no test be skipped.
export CI
IN_CI := $(filter 1 true True TRUE yes,$(CI))

.PHONY: help demo test test-deps lint types contracts docs fuzz soak bench clean dev

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## a cluster of four nodes on this machine: sharing off, then over each transport; one table
	@$(VENV)/bin/cachebus demo

test: $(if $(IN_CI),ci-test-deps) $(DEV)/.installed  ## lint, types, import contracts, docs build, tests
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/test.sh

test-deps:  ## install the Debian packages (servers and tools) that the interop tests use
	@scripts/test-deps.sh

lint: dev  ## ruff check and ruff format --check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: dev  ## mypy --strict
	@$(BIN)/mypy

contracts: dev  ## which module may import which
	@$(BIN)/lint-imports

docs: dev  ## the documentation in build/docs/html; a warning is an error
	@$(BIN)/sphinx-build -W --keep-going -q -b html -d build/docs/doctrees docs build/docs/html
	@echo "documentation: build/docs/html/index.html"

fuzz: dev  ## every parser with 100,000 examples (FUZZ_EXAMPLES), and the branches that they reach
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/fuzz.sh

soak: dev  ## the long runs; SOAK_SECONDS (default 600) each
	@SOAK_SECONDS="$${SOAK_SECONDS:-600}" $(BIN)/pytest -m soak

# The demo's environment: what users install is compiled where it can be, the developer's checkout never.
bench: $(VENV)/.installed  ## compare the transports with their floor and with dnspython
	@$(VENV)/bin/cachebus version
	@$(VENV)/bin/cachebus bench

clean:  ## remove everything that the other targets made
	rm -rf $(VENV) $(DEV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find cachebus transports tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

dev: $(DEV)/.installed

# A package that cannot be installed is named; the tests that need it then fail by name, and the others still run.
.PHONY: ci-test-deps
ci-test-deps:
	@scripts/test-deps.sh || true

$(VENV)/.installed: $(SOURCES)
	@scripts/check-python.sh "$(PYTHON)"
	@echo "installing cachebus in $(VENV); where a C compiler is at hand, it takes a minute to compile"
	@"$(PYTHON)" -m venv $(VENV)
	@$(VENV)/bin/pip install $(PIP_FLAGS) .
	@touch $@

$(DEV)/.installed: pyproject.toml
	@scripts/check-python.sh "$(PYTHON)"
	@echo "installing cachebus with all its extras in $(DEV)"
	@"$(PYTHON)" -m venv $(DEV)
	@CACHEBUS_COMPILE=0 $(DEV)/bin/pip install $(PIP_FLAGS) --editable '.[test,docs,bench,quic]'
	@touch $@
