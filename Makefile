# Two commands: `make demo` and `make test`. Both install into .venv first, from setup.cfg, at the
# versions of constraints.txt. `make test-all` adds the slow tests. `make demo PYTHON=python3.12` picks another interpreter.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
MINOR := import sys; print(sys.version_info[:2])
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help python demo test test-all lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      install, then the whole path on synthetic data (a few minutes)"
	@echo "make test      install, then format, lint, types and the tests"
	@echo "make test-all  the same with the slow tests: kills, Slurm, a browser, the documentation"
	@echo "make clean     remove the environment and the demo's files"

# The Python that .venv is made of, or one that was named, fits; and .venv is of that one.
NAMED := $(filter-out file,$(origin PYTHON))
python:
	@test -d .venv -a -z "$(NAMED)" || "$(PYTHON)" -c '$(FITS)' 2>/dev/null || { \
		echo "make: needs Python 3.11, 3.12 or 3.13, not '$(PYTHON)'; name one: make PYTHON=..." >&2; exit 1; }
	@test ! -d .venv || { $(BIN)/python -c '$(FITS)' && { test -z "$(NAMED)" || \
		test "$$($(BIN)/python -c '$(MINOR)')" = "$$("$(PYTHON)" -c '$(MINOR)')"; }; } 2>/dev/null || { \
		echo "make: .venv is of another Python; remove it (rm -rf .venv), and it is made anew" >&2; exit 1; }

.venv/base: setup.cfg constraints.txt pyproject.toml | python
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@echo "Installing into .venv (torch is large: a few minutes the first time) ..."
	@$(PIP) --editable .
	@touch $@

.venv/dev: .venv/base
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: .venv/base
	@$(BIN)/python tools/demo.py

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-all: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not soak"

clean:
	rm -rf .venv runs/demo shards/phantoms shards/phantoms-source
