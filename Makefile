# Requires Python 3.11 or newer and git. Dependencies are installed into .venv, again whenever pyproject.toml changes.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-slow test-real test-browser test-engine lint clean

demo: $(INSTALLED)
	$(BIN)/mmrlhf demo

# A process per core with one thread each: tiny models gain nothing from more threads. Each takes an equal share of
# the tests, in their order, so that few fixtures of a module are set up twice; who has finished takes from another's share.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: $(INSTALLED)
	$(PYTEST)

# Training on several processes, kills, servers, packages.
test-slow: $(INSTALLED)
	$(PYTEST) -m slow

# Published tokenizers and chat templates, fetched once into the user's cache folder.
test-real: $(INSTALLED)
	$(PYTEST) --dist loadgroup -m real tests/real

# The annotators' page in Chromium, 50 tasks of each mode. axe-core's rules of accessibility need npm, and skip without it.
AXE := build/axe/node_modules/axe-core/axe.min.js

test-browser: $(INSTALLED) $(AXE)
	MMRLHF_BROWSER_TASKS=50 $(BIN)/python -m pytest -m browser tests/labeling

$(AXE):
	npm install --silent --no-audit --no-fund --prefix build/axe axe-core@4 || echo "note: no axe-core, so its tests skip"

# vLLM, in an environment of its own: 4 GB, and some minutes when it is made.
ENGINE_ENV ?= .venv-engine
test-engine:
	PYTHON=$(PYTHON) .ci/vllm_env.sh $(ENGINE_ENV)
	OMP_NUM_THREADS=1 $(ENGINE_ENV)/bin/python -m pytest -m engine tests/with_vllm

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-engine build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: mmrlhf needs Python 3.11 or newer, and '$(PYTHON)' is older: run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
