# Everything is done in .venv, made on first use. Python 3.11 or newer is all that is needed; a real Caddy comes
# with the packages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.ready
SECONDS ?= 600
# The tests start many daemons, each of which would compile all of trafficd anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all check fuzz bench setup clean lock

demo: $(SETUP)  ## a real Caddy, three instances, load, and a deploy: prints the verdict
	$(BIN)/trafficd demo

test: $(SETUP)  ## the checks and the tests, under 8 minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -n 2 --dist worksteal

test-all: test  ## also the long fault and load runs
	$(BIN)/pytest -m slow -n 2 --dist worksteal

check: $(SETUP)  ## style, types and import rules only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fuzz: $(SETUP)  ## new examples for the properties of the core (EXAMPLES of each), and damaged responses (SECONDS)
	HYPOTHESIS_PROFILE=explore $(BIN)/pytest --timeout 0 tests/core/test_queue.py tests/core/test_rolling.py -k "whatever_is_queued or any_rollout_in"
	$(BIN)/python -m tests.loadtest.fuzz_response --seconds $(SECONDS)

bench: $(SETUP)  ## the figures in the README
	$(BIN)/python -m tests.bench

setup: $(SETUP)

$(SETUP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --group dev --editable .
	touch $@

lock:  ## write the versions that are installed now into requirements.lock
	$(BIN)/python -m pip freeze --exclude-editable > requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
