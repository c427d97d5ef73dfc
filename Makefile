# Every target does its own set-up. All that is needed: make, Python 3.11 or
# later, and the package index. `make demo ARGS="--runs 100"` passes options on.

VENV = .venv
OLDEST = .venv-oldest
SIMULATION = .venv-simulation
INSTALL = bin/python -m pip install --quiet --disable-pip-version-check
PYTEST = bin/python -m pytest
# A process for each core, with servers of its own. The campaigns run in one: they
# do many things at once themselves, and by the clock.
PARALLEL = -n auto --maxprocesses 8 --dist worksteal
NOT_SIMULATED = --ignore=tests/simulation
# What no other version of a package can change: pure code, the emulator, the benchmarks.
PINNED = $(addprefix --ignore=tests/,core emulator test_house.py test_house_figures.py test_benchmarks.py)
# Where the HTTP client and the driver of PostgreSQL do all that they do for the product.
DRIVERS = tests/session/test_connections.py tests/outbox tests/outbox_sessions/test_lost_calls.py tests/outbox_sessions/test_coherence.py
BENCHMARKS = benchmarks/requirements.txt
# It finds the packages by the first Python on the path.
PYRIGHT = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" pyright
CHECK_SCHEMA = $(VENV)/bin/check-jsonschema --builtin-schema

# Without this, where it is set, every run and every process of it compiles all of its modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint format test-long test-processes test-campaigns test-oldest test-simulation prepare bench bench-bars bench-fleet bench-guard bench-web docs dist clean
.NOTPARALLEL:

help:
	@echo "make demo             the same agent on both kinds of session, side by side"
	@echo "make test             the tests, without those of the next five"
	@echo "make lint             ruff, mypy, import-linter"
	@echo "make format           let ruff put the code in order"
	@echo "make test-long        the same in many more ways, as ends of event loops"
	@echo "make test-processes   commands, workers and PostgreSQL servers, each in a process of its own"
	@echo "make test-campaigns   random operations, killed processes, measured tables"
	@echo "make test-simulation  the fault campaign; needs Python 3.12 or later"
	@echo "make test-oldest      what other versions may change, on the oldest supported ones"
	@echo "make bench            all benchmarks, into benchmarks/results"
	@echo "make bench-bars       the table of what has to be reached"
	@echo "make bench-fleet      what a fleet on PostgreSQL has to reach, on servers of its own"
	@echo "make bench-guard      ratios that a change must not make worse"
	@echo "make bench-web        what a web request costs, side by side, for docs/web.md"
	@echo "make docs             the documentation as a site, into site; a broken link is an error"
	@echo "make dist             wheel and sdist, into dist, and the wheel used in an empty environment"
	@echo "make clean            remove what the others made"

demo: $(VENV)/.demo
	@$(VENV)/bin/cached-session demo $(ARGS)

test: $(VENV)/.test
	$(VENV)/$(PYTEST) $(NOT_SIMULATED) $(PARALLEL) -m "not campaign and not processes and not long" $(ARGS)

test-long: $(VENV)/.test
	$(VENV)/$(PYTEST) $(NOT_SIMULATED) $(PARALLEL) -m "long and not campaign and not processes" $(ARGS)

test-processes: $(VENV)/.test $(VENV)/.node
	$(VENV)/$(PYTEST) $(NOT_SIMULATED) $(PARALLEL) -m "processes and not campaign" $(ARGS)

test-campaigns: $(VENV)/.test
	$(VENV)/$(PYTEST) $(NOT_SIMULATED) -m campaign $(ARGS)

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYRIGHT)
	$(PYRIGHT) --verifytypes cached_session --ignoreexternal > $(VENV)/types.txt || { grep -B 1 error: $(VENV)/types.txt; exit 1; }
	$(VENV)/bin/lint-imports
	$(CHECK_SCHEMA) vendor.github-workflows $(wildcard .github/workflows/*.yml)
	$(CHECK_SCHEMA) vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(CHECK_SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(CHECK_SCHEMA) vendor.dependabot .github/dependabot.yml

format: $(VENV)/.lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Before openai-agents 0.24 the SDK's own session sends more than 20 items in one
# request, which is refused, and keeps no order among calls. The tests that hold
# it beside ours in these points are left out here.
test-oldest: $(OLDEST)/.test
	@cat $(OLDEST)/lowest.txt
	$(OLDEST)/$(PYTEST) $(NOT_SIMULATED) $(PINNED) $(PARALLEL) -m "not campaign and not processes and not long" @.ci/oldest-deselect.txt $(ARGS)
	$(OLDEST)/$(PYTEST) $(DRIVERS) $(PARALLEL) -m "not campaign and (processes or long)" $(ARGS) || [ $$? -eq 5 ]

# What the targets that use another Python, or other versions, install first.
prepare: $(OLDEST)/.test
	@if .ci/find-python 12 >/dev/null; then $(MAKE) --no-print-directory $(SIMULATION)/.test; fi

# simloop, the deterministic event loop, needs Python 3.12.
test-simulation:
	@if .ci/find-python 12 >/dev/null; then \
		$(MAKE) --no-print-directory $(SIMULATION)/.test && \
		$(SIMULATION)/$(PYTEST) $(PARALLEL) tests/simulation $(ARGS); \
	else \
		echo "no Python 3.12 or later was found: tests/simulation is not run"; \
	fi

bench: $(VENV)/.bench
	$(VENV)/bin/python -m benchmarks all --output benchmarks/results $(ARGS)

bench-bars: $(VENV)/.bench
	$(VENV)/bin/python -m benchmarks bars --output benchmarks/results $(ARGS)

bench-fleet: $(VENV)/.bench
	$(VENV)/bin/python -m benchmarks fleet --output benchmarks/results $(ARGS)

bench-guard: $(VENV)/.bench
	$(VENV)/bin/python -m benchmarks guard

bench-web: $(VENV)/.bench
	$(VENV)/bin/python -m benchmarks web --output benchmarks/results $(ARGS)
	$(VENV)/bin/python -m benchmarks workers --output benchmarks/results

docs: $(VENV)/.docs
	$(VENV)/bin/python .ci/site.py stage
	$(VENV)/bin/zensical build --clean --strict
	$(VENV)/bin/python .ci/site.py check

dist: $(VENV)/.dist
	rm -rf dist
	$(VENV)/bin/python -m build --outdir dist .
	$(VENV)/bin/twine check --strict dist/*
	.ci/stranger $(VENV)/bin/python dist/*.whl

clean:
	rm -rf $(VENV) $(OLDEST) $(SIMULATION) build dist site
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed anew when pyproject.toml changes; the package itself is editable.
$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(VENV)/$(INSTALL) --editable ".[cli]"
	@touch $@

$(VENV)/.test: pyproject.toml $(BENCHMARKS) | $(VENV)/bin/python
	$(VENV)/$(INSTALL) --editable ".[test]" -r $(BENCHMARKS)
	@touch $@

# One test talks to the emulator as a program in JavaScript does. Without node, npm or
# its registry that test is skipped, and says so.
$(VENV)/.node: | $(VENV)/bin/python
	@if npm install --silent --fetch-retries=0 --fetch-timeout=30000 --no-audit --no-fund --prefix $(VENV)/node openai >/dev/null 2>&1; then \
		touch $@; \
	else \
		echo "npm cannot install openai: the test of the emulator with openai-node is skipped"; \
	fi

$(VENV)/.bench: pyproject.toml $(BENCHMARKS) | $(VENV)/bin/python
	$(VENV)/$(INSTALL) --editable ".[cli]" -r $(BENCHMARKS)
	@touch $@

$(VENV)/.docs: docs/requirements.txt | $(VENV)/bin/python
	$(VENV)/$(INSTALL) -r $<
	@touch $@

$(VENV)/.dist: | $(VENV)/bin/python
	$(VENV)/$(INSTALL) build twine
	@touch $@

$(VENV)/.lint: pyproject.toml $(BENCHMARKS) | $(VENV)/bin/python
	$(VENV)/$(INSTALL) --editable ".[test,lint]" -r $(BENCHMARKS)
	@touch $@

$(OLDEST)/.test: pyproject.toml .ci/lowest.py $(BENCHMARKS) | $(OLDEST)/bin/python
	$(OLDEST)/bin/python .ci/lowest.py > $(OLDEST)/lowest.txt
	$(OLDEST)/$(INSTALL) --editable ".[test]" -r $(BENCHMARKS) --constraint $(OLDEST)/lowest.txt
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
