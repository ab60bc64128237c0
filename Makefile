PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q -n 2 --dist loadscope

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check fmt bench bench-teacher

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(READY)  ## compress a small model end to end, then show the report (minutes)
	$(BIN)/minitron demo

test: test-fast  ## every test that needs neither an accelerator nor the network
	$(PYTEST) -m "slow and not gpu and not network"

test-fast: $(READY)  ## the tests that take a minute in all
	$(PYTEST) -m "not slow and not gpu and not network"

check: $(READY)  ## style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(READY)  ## format and sort imports
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(READY)  ## measure speed and memory
	$(BIN)/python -m benchmarks

bench-teacher: $(READY)  ## train the small teachers that quality is measured on (an hour)
	$(BIN)/python scripts/bench_teacher.py

# Made again when what it was made from has changed. pip takes the pinned versions through the constraints.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
