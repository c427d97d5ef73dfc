# Every target does its own set-up. All that is needed: make, Python 3.11 or
# later, and the package index. `make demo ARGS="--runs 100"` passes options on.

VENV = .venv
OLDEST = .venv-oldest
SIMULATION = .venv-simulation
INSTALL = bin/python -m pip install --quiet --disable-pip-version-check
PYTEST = bin/python -m pytest

.PHONY: help demo test lint format test-oldest test-simulation clean
.NOTPARALLEL:

help:
	@echo "make demo             the same agent on both kinds of session, side by side"
	@echo "make test             all tests but the simulation"
	@echo "make lint             ruff, mypy, import-linter"
	@echo "make format           let ruff put the code in order"
	@echo "make test-oldest      the tests on the oldest supported versions"
	@echo "make test-simulation  the fault campaign; needs Python 3.12 or later"
	@echo "make clean            remove what the others made"

demo: $(VENV)/.demo
	@$(VENV)/bin/cached-session demo $(ARGS)

test: $(VENV)/.test
	$(VENV)/$(PYTEST) --ignore=tests/simulation $(ARGS)

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

test-oldest: $(OLDEST)/.test
	$(OLDEST)/bin/python -m pip list | grep -i -E '^(openai|openai-agents|cachetools|tenacity) '
	$(OLDEST)/$(PYTEST) --ignore=tests/simulation $(ARGS)

# simloop, the deterministic event loop, needs Python 3.12.
test-simulation:
	@if .ci/find-python 12 >/dev/null; then \
		$(MAKE) --no-print-directory $(SIMULATION)/.test && \
		$(SIMULATION)/$(PYTEST) tests/simulation $(ARGS); \
	else \
		echo "no Python 3.12 or later was found: tests/simulation is not run"; \
	fi

clean:
	rm -rf $(VENV) $(OLDEST) $(SIMULATION) build dist
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed anew when pyproject.toml changes; the package itself is editable.
$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(VENV)/$(INSTALL) --editable ".[cli]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(VENV)/$(INSTALL) --editable ".[test]"
	@touch $@

$(VENV)/.lint: pyproject.toml | $(VENV)/bin/python
	$(VENV)/$(INSTALL) --editable ".[cli,lint]"
	@touch $@

$(OLDEST)/.test: pyproject.toml .ci/lowest.py | $(OLDEST)/bin/python
	$(OLDEST)/bin/python .ci/lowest.py > $(OLDEST)/lowest.txt
	$(OLDEST)/$(INSTALL) --editable ".[test]" --constraint $(OLDEST)/lowest.txt
	@touch $@

$(SIMULATION)/.test: pyproject.toml | $(SIMULATION)/bin/python
	$(SIMULATION)/$(INSTALL) --editable ".[test,simulation]"
	@touch $@

define make-venv
@python=$$(.ci/find-python $(1)) || \
	{ echo "Python 3.$(firstword $(1)) or later, with its venv module, was not found" >&2; exit 1; }; \
echo "$$python -m venv $(2)"; "$$python" -m venv $(2)
endef

$(VENV)/bin/python:
	$(call make-venv,11 $(PYTHON),$(VENV))

$(OLDEST)/bin/python:
	$(call make-venv,11 $(PYTHON) python3.11,$(OLDEST))

$(SIMULATION)/bin/python:
	$(call make-venv,12 $(PYTHON),$(SIMULATION))
