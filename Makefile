# make, or make help, lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# The environment is rebuilt only when a lock file or the pinned torch changes.
LOCKED := $(shell { cat requirements.lock requirements-model.lock .ci/setup; grep torch== pyproject.toml; } | cksum | tr ' ' '-')
STAMP := $(VENV)/.installed-$(LOCKED)

# Test files run in this many parallel processes, each with one thread for torch: more threads than
# cores wait for each other. A hanging test costs its process, and is not retried forever.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 2

# For few-shot: numbers of training examples, and the seeds that draw them.
SIZES ?= [16, 64, 256]
DRAWS ?= [1, 2, 3]

export PATH := $(BIN):$(PATH)
export PYTHON TORCH_FLAGS
export PYTHONUNBUFFERED := 1
# Several stages load torch and transformers: without byte code, each would compile 3,000 modules again.
unexport PYTHONDONTWRITEBYTECODE
export PREFECT_HOME := $(CURDIR)/.prefect
# No telemetry, and no more threads than assigned.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := 1
export ITERATIVE_DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup run flow audit serve bench bench-quick study few-shot test coverage test-slow lint docs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo "Variables: PYTHON=/path/to/python3.12   TORCH_FLAGS=\"--index-url ...\"   TARGETS=\"plan\"   TESTS=\"tests/fit\"   JOBS=2   PORT=4200   HOURS=2   SIZES=\"[16, 64]\"   DRAWS=\"[1, 2]\""

$(STAMP):
	@.ci/setup $(VENV)
	@rm -f $(VENV)/.installed-*
	@touch $@

setup: $(STAMP) ## create the environment from the lock files (called by the other targets)

run: setup ## run the stages that changed (TARGETS=...: only up to these), then print the result
	@python -m flows.workspace dvc repro $(TARGETS)
	@python -m flows.lineage record
	@python -m stages.report --summary

flow: setup ## run the chain as a Prefect flow, one task per stage, on a local server
	@python -m flows.pipeline $(if $(TARGETS),--targets $(TARGETS))

serve: setup ## serve the deployments of prefect.yaml: server, schedules and worker, until Ctrl-C
	@python -m flows.serve $(if $(PORT),--port $(PORT))

audit: setup ## recompute every hash and compare with dvc.lock and the run records
	@python -m flows.workspace
	@python -m flows.lineage verify

bench: setup ## compare speed with transformers' Trainer (up to 40 minutes) into reports/benchmark.json
	@python -m flows.workspace dvc repro prepare
	@python -m stages.bench

bench-quick: setup ## the short benchmark: a small model, fewer points (3 minutes)
	@python -m stages.bench --quick --out reports/benchmark-quick.json

study: setup ## compare the selectors over many datasets (hours; resumes where it stopped; HOURS=2, PLAN=1)
	@python -m stages.study $(if $(HOURS),--budget-hours $(HOURS)) $(if $(PLAN),--plan)
	$(if $(PLAN),,@python -m stages.study --analyse --page docs/method.md docs/techniques.md)

few-shot: setup ## compare.methods with few training examples (SIZES, DRAWS; resumes), then the report (hours)
	@python -m flows.sweep --name few-shot --table reports/few-shot.csv --targets evaluate \
	  --set "data.limits.train=$(SIZES)" --set "data.seed=$(DRAWS)"
	@python -m flows.workspace dvc repro evaluate
	@python -m flows.workspace dvc repro --force --single-item report

test: setup ## run the tests (TESTS=...: only these)
	@$(PYTEST) -m "not slow" $(TESTS)

coverage: setup ## run the tests and show their line coverage (takes half as long again)
	@$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered $(TESTS)

test-slow: setup ## run the slow tests: kills, servers, remotes, validators
	@$(PYTEST) -m slow $(TESTS)

lint: setup ## check format, style, types and import directions
	@ruff format --check .
	@ruff check .
	@mypy
	@lint-imports

docs: setup ## build the documentation into site/ (open site/index.html)
	@NO_MKDOCS_2_WARNING=1 mkdocs build --quiet

lock: setup ## recompile requirements.lock from pyproject.toml
	@uv pip compile pyproject.toml --extra dev --universal --fork-strategy fewest --generate-hashes \
	  --python-version 3.11 --excludes .ci/lock-excludes.txt --no-header --quiet -o requirements.lock

clean: ## remove caches and the environment; data, models, reports and DVC's cache stay
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage site
	@find salf stages flows tests -name __pycache__ -type d -prune -exec rm -rf {} +
