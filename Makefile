# clipdistill: every target sets up what it needs. `make` alone lists them.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Before 3.11.4 tarfile has no `filter`, which keeps what an archive unpacks inside its root.
FITS := import sys; sys.exit(not (3, 11, 4) <= sys.version_info < (3, 13))
# The first that fits makes the environment, of all that are on PATH and those that pyenv installed; PYTHON=... names another.
PYTHON ?= $(shell IFS=:; for name in python3 python3.12 python3.11; do for folder in $$PATH $${PYENV_ROOT:-$$HOME/.pyenv}/versions/*/bin; do "$$folder/$$name" -c '$(FITS)' 2>/dev/null && { echo "$$folder/$$name"; exit; }; done; done)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
# No dependency reports anything to anyone; .dvc/config says the same for DVC.
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export ITERATIVE_DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast soak check check-remote format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install; again only when pyproject.toml or constraints.txt change

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "clipdistill needs Python 3.12, or 3.11 from 3.11.4 on; neither was found as python3, python3.12 or python3.11, on PATH or installed by pyenv (python3 is $$(python3 --version 2>&1)). Install one (pyenv install 3.12, uv python install 3.12), or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c '$(FITS)' || { echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1); clipdistill needs Python 3.12, or 3.11 from 3.11.4 on: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module: on Debian or Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY) ## run the whole pipeline on the embedded data set and print the metrics
	@clipdistill mend >&2
	dvc repro
	@echo
	clipdistill summary

# Two processes of one thread each: a file of tests runs in one of them, in the order of tests/pipeline/conftest.py.
PYTEST := OMP_NUM_THREADS=1 CLIPDISTILL_THREADS=1 python -m pytest -q --numprocesses=2 --dist=loadfile --no-loadscope-reorder

test: $(READY) ## all tests, the slow pipeline tests among them
	$(PYTEST)

test-fast: $(READY) ## only the tests that take seconds
	$(PYTEST) -m 'not slow'

soak: $(READY) ## kill and harm the whole pipeline at random for an hour; MINUTES=60 SEED=0 (no test)
	python tests/soak.py --minutes $(or $(MINUTES),60) --seed $(or $(SEED),0)

check: $(READY) ## ruff (lint and format) and mypy
	ruff check .
	ruff format --check .
	mypy

check-remote: $(READY) ## name what the DVC remote lacks of this commit; it fails where that is anything
	@name=$$(dvc remote default) || { echo "there is no default remote: dvc remote add --default NAME URL (docs/sharing.md)" >&2; exit 1; }; \
	place=$$(dvc config "remote.$$name.url") || exit 1; \
	case "$$place" in \
	*://*) ;; \
	*) test -d "$$place" || { echo "the remote's folder $$place is not there: mount it, or make it with the first dvc push" >&2; exit 1; } ;; \
	esac; \
	status=$$(dvc data status --not-in-remote --granular --json) || { echo "the remote $$place could not be asked: see above" >&2; exit 1; }; \
	printf '%s' "$$status" | python -c 'import json, sys; lacking = json.load(sys.stdin).get("not_in_remote", []); print("\n".join(lacking) or "the remote has all of this commit"); sys.exit("the remote lacks these: run dvc push where they are" if lacking else 0)'

format: $(READY) ## let ruff put the code in order
	ruff check --fix .
	ruff format .

clean: ## remove unfinished work and tool caches; data, cache and the environment stay
	rm -rf .work .pytest_cache .mypy_cache .ruff_cache .hypothesis
