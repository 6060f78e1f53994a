# The one list of verbs; `make` alone prints them. CI calls the same ones.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long check format generate bench soak clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything in it
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[sandbox,dev]'
	@touch $@

demo: $(STAMP) ## bring up a model on a simulated GPU node, from nothing (KEEP=1 leaves it up)
	@$(BIN)/kaito sandbox demo $(if $(KEEP),--keep)

test: $(STAMP) ## all tests, with coverage; builds the control plane the first time
	@$(BIN)/kaito sandbox build > /dev/null
	@rm -f .coverage .coverage.*
	$(PYTEST) -n 2 --dist loadgroup -m "not long" --cov --cov-report=
	@$(BIN)/coverage report --fail-under=90

test-long: $(STAMP) ## the tests that take minutes
	@$(BIN)/kaito sandbox build > /dev/null
	$(PYTEST) -m long

check: $(STAMP) ## format, lint, types, import contracts, generated files, docs, statements
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_repo.py
	$(BIN)/python tools/check_statements.py

format: $(STAMP) ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(STAMP) ## write the generated files anew
	$(BIN)/kaito crds --write deploy/crds

bench: $(BENCH_STAMP) ## measure; JSON to bench/results/, a table to the screen (BENCH="idle ..." for some)
	@$(BIN)/kaito sandbox build > /dev/null
	$(BIN)/python -m bench $(BENCH)

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[bench]'
	@touch $@

soak: $(STAMP) ## 20 minutes of churn (SOAK_MINUTES); fails when memory moves more than 5 %
	@$(BIN)/kaito sandbox build > /dev/null
	$(BIN)/python -m bench.soak --minutes $(or $(SOAK_MINUTES),20)

clean: ## remove what the verbs above made here (the control plane's cache stays)
	rm -rf $(VENV) .coverage .coverage.* .mypy_cache .ruff_cache .hypothesis dist bench/results
