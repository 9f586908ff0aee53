# One command each: setup, run, test, test-long, lint, bench, results, train. All work in a fresh clone.
#
# Stamp files under .venv make a second call quick: a step runs again only when the file that
# describes it has changed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
TORCH ?= torch==2.13.0
HOST ?= 127.0.0.1
PORT ?= 7860
# The first Python that is new enough; PYTHON=/path/to/python overrides.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
WORKERS ?= 2
RESULTS ?= build/results

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check --quiet
VENV_STAMP := $(VENV)/.stamp-venv
RUN_STAMP := $(VENV)/.stamp-run
DEV_STAMP := $(VENV)/.stamp-dev
TOOLS_STAMP := $(VENV)/.stamp-tools

.PHONY: help setup run test test-long lint bench results train clean

help:
	@echo "make setup      install run-time and development packages into $(VENV)"
	@echo "make run        serve the lab on http://$(HOST):$(PORT)"
	@echo "make test       lint, types, all tests (browser tests included)"
	@echo "make test-long  the tests that take minutes"
	@echo "make lint       ruff and mypy"
	@echo "make bench      decoding speed of the embedded model"
	@echo "make results    the README's tables and the Evidence page, measured anew (3,672 replies)"
	@echo "make train      train the embedded model, its codec and its exit heads"

$(VENV_STAMP):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none was found." \
		"Install one (Debian: apt-get install python3 python3-venv)" \
		"or say where it is: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)" || { echo "Could not make a virtual environment." \
		"On Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

# torch first: another package's looser range must not choose its version.
$(RUN_STAMP): $(VENV_STAMP) requirements.txt
	@echo "Installing run-time packages into $(VENV) (a CPU build of torch takes about 1.5 GB; the build that Linux gets by default brings CUDA, several GB more)"
	@$(PIP) "$(TORCH)"
	@$(PIP) "$(TORCH)" -r requirements.txt
	@$(PY) -m spark.compiled
	@touch $@

$(DEV_STAMP): $(RUN_STAMP) requirements-dev.txt requirements-evaluation.txt
	@$(PIP) "$(TORCH)" -r requirements.txt -r requirements-dev.txt -r requirements-evaluation.txt
	@touch $@

# Chromium for the browser tests and flite for the corpus tests: installed where that is possible
# without asking anybody (root, apt); elsewhere the test that misses one fails and says the remedy.
$(TOOLS_STAMP): $(VENV_STAMP)
	@missing=""; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null \
		|| command -v google-chrome >/dev/null || missing="$$missing chromium"; \
	command -v flite >/dev/null || missing="$$missing flite"; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing$$missing (apt-get)"; \
			export DEBIAN_FRONTEND=noninteractive; \
			apt-get update -qq </dev/null; \
			apt-get install -y -qq --no-install-recommends $$missing </dev/null >/dev/null; \
		else \
			echo "Not installed:$$missing. The tests that need them will fail." \
				"Remedy: sudo apt-get install$$missing" >&2; exit 0; \
		fi; \
	fi; \
	touch $@

setup: $(DEV_STAMP)

run: $(RUN_STAMP)
	@$(PY) app.py --host $(HOST) --port $(PORT)

lint: $(DEV_STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m mypy

test: $(DEV_STAMP) $(TOOLS_STAMP) lint
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

test-long: $(DEV_STAMP) $(TOOLS_STAMP)
	@$(PY) -m pytest -m long

bench: $(RUN_STAMP)
	@$(PY) -m benchmarks.decode --model embedded

# `fixed` is the half depth of the model card's goals; `spark:text` a second look at the text claim.
# Goes on where it was stopped; the clock is last, when nothing else runs.
results: $(DEV_STAMP) $(TOOLS_STAMP)
	@$(PY) -m spark.evaluation --model embedded --suite builtin \
		--policies claims,fixed,spark:text --out "$(RESULTS)"
	@$(PY) -m spark.evaluation.claims "$(RESULTS)"
	@for name in decode growth first_audio; do \
		$(PY) -m benchmarks.$$name --model embedded --out "$(RESULTS)/$$name.json"; done
	@mkdir -p assets/evidence
	@cp "$(RESULTS)/claims.json" "$(RESULTS)/summary.json" assets/evidence/
	@$(PY) -m spark.evaluation.readme "$(RESULTS)"

# The sentences come from Debian's wordnet-base and scowl.
train: $(DEV_STAMP) $(TOOLS_STAMP)
	@[ -e /usr/share/wordnet/data.noun ] && [ -e /usr/share/dict/scowl ] \
		|| apt-get install -y -qq wordnet-base scowl </dev/null >/dev/null \
		|| { echo "Remedy: sudo apt-get install wordnet-base scowl" >&2; exit 1; }
	@$(PY) -m spark.training

clean:
	rm -rf "$(VENV)" .pytest_cache .mypy_cache .ruff_cache .hypothesis
