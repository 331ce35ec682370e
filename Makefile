.DEFAULT_GOAL := help
SHELL := /bin/bash
# Bytecode that is kept spares every start of the model 12 s of compiling; the environment may forbid keeping it.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := infra/requirements.txt
STAMP := $(VENV)/.installed
# TORCH_BACKEND=cpu or cu130 … asks uv for that build of torch; empty takes the package index's own.
TORCH_BACKEND ?=
UV := VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND))

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

.PHONY: install
install: $(STAMP) ## Create .venv and install the locked environment

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed; {sys.executable} is {v[0]}.{v[1]}")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y python3-venv; } \
	  || { echo "Python's venv module is missing. Install it first: sudo apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python $(LOCK) pyproject.toml
	@echo "Installing the locked environment into $(VENV) …"
	@$(BIN)/python -m pip install --quiet "$$(grep -E '^uv==' $(LOCK))"
	@$(UV) -r $(LOCK)
	@$(UV) --no-deps --editable .
	@echo "Compiling the model's libraries …"
	@$(BIN)/python -c 'import workers.engines.musicgen.engine'
	@touch $(STAMP)

.PHONY: demo
demo: $(STAMP) ## Start everything in one process, make two samples from one prompt, show them
	@$(BIN)/text2song demo

.PHONY: demo-cluster
demo-cluster: $(STAMP) ## The same, each role a process of its own, on real Kafka, MongoDB and S3
	@$(BIN)/text2song demo --cluster --output text2song-demo-cluster

.PHONY: up
up: $(STAMP) ## Serve the studio on this machine until stopped
	@$(BIN)/text2song up

.PHONY: servers
servers: $(STAMP) ## Start real Kafka, MongoDB and S3 on this machine, without Docker; text2song servers down stops them
	@$(BIN)/text2song servers up

.PHONY: test
test: $(STAMP) ## Run every test
	@command -v chromium chromium-browser google-chrome >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } \
	  || echo "The tests of the page need Chromium, and are skipped without: sudo apt-get install chromium"
	@$(BIN)/python -m pytest -n 4

.PHONY: chaos
chaos: $(STAMP) ## Kill every role and server in turn, KILLS=200 times, and check that nothing accepted is lost
	@KILLS=$${KILLS:-200} $(BIN)/python -m pytest -s -o faulthandler_timeout=0 tests/cluster/test_chaos.py

.PHONY: lint
lint: $(STAMP) ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: bench
bench: $(STAMP) ## Measure speed as ratios, side by side
	@$(BIN)/python -m tests.bench

.PHONY: lock
lock: $(STAMP) ## Resolve every dependency again and write the lock
	@# The accelerator's libraries follow from the build of torch that is installed, so they stay out.
	@$(BIN)/uv pip compile --quiet --universal --upgrade --all-extras --no-annotate --no-header pyproject.toml \
	  | grep -vE '^(nvidia-|cuda-|triton)' > $(LOCK).new && mv $(LOCK).new $(LOCK)
