# Two commands are all that a newcomer needs: `make run` and `make test`. Both set everything up first.
# They take Python 3.11 or newer, make, git and a package index; whatever else helps is looked for and left out if absent.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SHELLFLAGS := -eu -c

VENV := .venv
BIN := $(VENV)/bin
# Written when everything is installed. Newer than the two files it depends on: nothing to do, no network needed.
STAMP := $(VENV)/.installed
CHECKOV := 3.3.30
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

APP ?= worker/examples/01_basic/app.py
ARGS ?=
TESTS ?= tests
TYPING_TESTS := $(wildcard tests/typing/*.py)

.PHONY: help
help: ## this list
	@echo "make TARGET, one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1  \2/p' $(MAKEFILE_LIST)

.PHONY: run
run: $(STAMP) ## the whole cluster on this machine, with a Redis of its own (APP=file.py, ARGS="--workers 2")
	$(BIN)/bridgectl up $(APP) $(ARGS)

.PHONY: test
test: lint helm ## what must pass before anything lands: lint, types, and the tests that are not slow
	$(BIN)/pytest -n 2 -m "not slow" $(TESTS)

.PHONY: check-all
check-all: lint helm helm-oldest checkov ## the same with the slow tests
	$(BIN)/pytest -n 2 $(TESTS)

.PHONY: helm
helm: $(STAMP) ## fetch helm for the tests of the chart, if there is none on PATH (without it they are skipped)
	@command -v helm >/dev/null || test -x $(BIN)/helm || $(BIN)/python tests/helm/get_helm.py $(BIN) \
	  || echo "helm cannot be fetched here; the tests of the chart will be skipped"

.PHONY: helm-oldest
helm-oldest: $(STAMP) ## fetch the oldest helm that the chart works with, for one test of it (without it that is skipped)
	@test -x $(BIN)/helm-oldest || $(BIN)/python tests/helm/get_helm.py $(BIN) helm-oldest \
	  || echo "the oldest helm cannot be fetched here; its test will be skipped"

.PHONY: checkov
checkov: $(STAMP) ## install checkov for one test of the chart, if there is none on PATH, in an environment of its own (without it that is skipped)
	@command -v checkov >/dev/null || test -x $(VENV)/checkov/bin/checkov || { $(BIN)/python -m venv $(VENV)/checkov && \
	  $(VENV)/checkov/bin/python -m pip --disable-pip-version-check --quiet install checkov==$(CHECKOV); } || \
	  { rm -rf $(VENV)/checkov; echo "checkov cannot be installed here; its test will be skipped"; }

.PHONY: chaos
chaos: $(STAMP) ## every experiment with faults, one after the other; what they measure goes into tests/chaos/RESULTS.md
	rm -f .chaos.jsonl
	CHAOS_RESULTS=$(CURDIR)/.chaos.jsonl CHAOS_ROUNDS=10 $(BIN)/pytest tests/chaos
	$(BIN)/python tests/chaos/table.py .chaos.jsonl > tests/chaos/RESULTS.md
	cat tests/chaos/RESULTS.md

.PHONY: fuzz
fuzz: $(STAMP) ## a million inputs to everything that reads what others wrote; figures go into tests/fuzz/RESULTS.md (ARGS="--inputs N")
	$(BIN)/python tests/fuzz/run.py --out tests/fuzz/RESULTS.md $(ARGS)

.PHONY: bench
bench: $(STAMP) ## the product beside a plain single-process bridge, under load (ARGS="--calls 100 --repeats 5"); into tests/benchmarks/RESULTS.md
	$(BIN)/python tests/benchmarks/run.py --json tests/benchmarks/results.json $(ARGS)
	$(BIN)/python tests/benchmarks/results.py tests/benchmarks/results.json

.PHONY: bench-scale
bench-scale: $(STAMP) ## what grows with pods, with calls at once and with what is kept (ARGS="--parts burst"); into the same RESULTS.md
	$(BIN)/python tests/benchmarks/scale.py --json tests/benchmarks/results.json $(ARGS)
	$(BIN)/python tests/benchmarks/results.py tests/benchmarks/results.json

.PHONY: soak
soak: $(STAMP) ## memory of edge, worker and Redis over half an hour of calls that come and go (ARGS="--minutes 5"); into the same RESULTS.md
	$(BIN)/python tests/benchmarks/scale.py --parts soak --json tests/benchmarks/results.json $(ARGS)
	$(BIN)/python tests/benchmarks/results.py tests/benchmarks/results.json

.PHONY: transcripts
transcripts: $(STAMP) ## record the conversations of tests/transcripts anew
	PYTHONPATH=tests $(BIN)/python tests/transcripts/recording.py

.PHONY: lint
lint: $(STAMP) ## style, formatting, who imports whom, types
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(if $(TYPING_TESTS),$(BIN)/mypy --strict $(TYPING_TESTS))

.PHONY: format
format: $(STAMP) ## mend style and formatting
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

.PHONY: install
install: $(STAMP) ## the environment only

.PHONY: lock
lock: $(STAMP) ## write requirements.txt, and that of the image, anew from pyproject.toml (keeps versions that still fit; ARGS=--upgrade moves them)
	$(PIP) install uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" --quiet \
	  --output-file requirements.txt $(ARGS)
	$(BIN)/uv pip compile pyproject.toml --extra otel --extra build --constraints requirements.txt --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
	  --custom-compile-command "make lock" --quiet --output-file deploy/requirements.txt
	@if grep -nE '://|--(extra-)?index-url|--find-links' requirements.txt deploy/requirements.txt; then \
	  echo "requirements.txt must name no package source" >&2; exit 1; fi

.PHONY: clean
clean: ## remove the environment and every cache
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.txt pyproject.toml
	@if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  found=; \
	  for python in $(PYTHON) python3.11 python3 python3.12 python3.13 python; do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "Python 3.11 or newer is needed and none of python3.11, python3 is. Install one, or name it: make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$($$found --version)"; \
	  rm -rf $(VENV); \
	  "$$found" -m venv $(VENV) \
	    || { echo "That Python cannot make environments. On Debian: apt-get install python3-venv" >&2; exit 1; }; \
	fi
	@echo "installing what requirements.txt names into $(VENV)"
	@$(PIP) install --require-hashes --no-deps --only-binary :all: -r requirements.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
