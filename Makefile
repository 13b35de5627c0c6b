# make demo, make test: everything from a fresh clone, with Python 3.11+ and git.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# On Linux the index's own torch is a CUDA build of several gigabytes; constraints.txt pins the CPU-sized one
# that CI tests with. Set CONSTRAINTS= to install your own.
CONSTRAINTS ?= -c constraints.txt
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-all bench lint docs release-check clean

help:  ## Show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --editable

.stamp-package: $(BIN)/python setup.cfg constraints.txt
	@echo "installing into $(VENV), this takes a minute or two"
	$(INSTALL) .
	@touch $@

.stamp-%: .stamp-package
	$(INSTALL) '.[$*]'
	@touch $@

demo: .stamp-package  ## Translate a simulated scene
	$(BIN)/python examples/demo.py demo

test: .stamp-test  ## Run the suite
	$(PYTEST) -m "not slow" --benchmark-skip -n 2 --dist loadfile

test-all: .stamp-test  ## Run the suite with slow and full-size tests
	$(PYTEST) --benchmark-skip

bench: .stamp-test  ## Measure, as ratios against baselines of the same run
	$(PYTEST) tests/benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds

lint: .stamp-lint  ## Check style, types and the import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: .stamp-docs  ## Build the documentation into site/, with warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

release-check: .stamp-release  ## Build wheel and sdist into dist/ and check them (PROJECT_URL=... makes links absolute)
	$(BIN)/python .ci/release_check.py --out dist $(if $(PROJECT_URL),--url $(PROJECT_URL))

clean:  ## Remove what make has made
	rm -rf $(VENV) .stamp-* build dist *.egg-info demo site
