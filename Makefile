# See README.md. Every target works from a fresh checkout and is quick when there is nothing to do.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

# The target is Python 3.11; `make PYTHON=python3.13 VENV=.venv-3.13 test` tries another one.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
KEY_PROFILE ?=
export KEY_PROFILE PYTHON

TRACED := build/traced
SOURCES := $(wildcard src/azaion_loader/*.pyx src/azaion_loader/*.pxd)
PYTEST := $(BIN)/python -m pytest
# What the build backend needs; the pins stand in pyproject.toml alone.
BUILD_REQUIREMENTS = $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')

.PHONY: build dev demo try test test-release test-traced test-faults test-browser lint types bench clean

# -- build -----------------------------------------------------------------------------------------------------------

$(VENV)/.requirements: requirements.txt pyproject.toml
	scripts/need build
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(BUILD_REQUIREMENTS) -r requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.requirements setup.py $(SOURCES) $(KEY_PROFILE) key_profiles/development.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

build: $(VENV)/.built ## .venv with everything the service needs, compiled

$(VENV)/.dev: requirements-dev.txt $(VENV)/.built
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

dev: $(VENV)/.dev
	scripts/need tests

# -- run -------------------------------------------------------------------------------------------------------------

demo: dev ## the whole job on this machine: servers, engine, seven images, unlock to ready
	$(BIN)/python -m azaion_devkit.demo

try: dev ## the same, left standing on port 8080 for the page and the commands, until Ctrl-C
	$(BIN)/python -m azaion_devkit.demo --stay --port 8080

# -- check -----------------------------------------------------------------------------------------------------------

test: test-release test-traced

test-release: dev
	$(PYTEST)

# A copy of the tree, so that the traced modules never take the place of the release ones.
test-traced: dev
	rm -rf $(TRACED)/tests $(TRACED)/.coverage*
	mkdir -p $(TRACED)
	cp -a --parents $$(git ls-files --cached --others --exclude-standard src tests key_profiles) $(TRACED)/
	cp -a setup.py pyproject.toml requirements*.txt README.md CHANGELOG.md Makefile image.mk docs scripts $(TRACED)/
	cd $(TRACED) && AZAION_BUILD=traced $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace --parallel 2
	cd $(TRACED) && PYTHONPATH=src $(CURDIR)/$(BIN)/python -m coverage run -m pytest -m "not slow and not exhaustive"
	cd $(TRACED) && PYTHONPATH=src $(CURDIR)/$(BIN)/python -m coverage combine --quiet
	cd $(TRACED) && PYTHONPATH=src $(CURDIR)/$(BIN)/python -m coverage report

FAMILY ?=
FAILED ?=
test-faults: dev ## every fault suite; `make test-faults FAMILY='kill matrix'` runs one, FAILED=1 what failed before
	scripts/need faults
	$(BIN)/python -m tests.faults.report $(if $(FAMILY),--family '$(FAMILY)') $(if $(FAILED),--last-failed)

test-browser: dev ## the operator's page in a real headless Chromium; pictures in build/screenshots
	scripts/need browser
	$(PYTEST) tests/browser

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint src

types: dev
	$(BIN)/mypy
	$(BIN)/python scripts/check_stubs.py

ONLY ?=
bench: dev ## figures into docs/performance.md; `make bench ONLY=resources` (or unlock) measures one half
	$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf build dist $(VENV) src/*.egg-info
	find src -name '*.so' -delete

include image.mk
