# `make help` lists the targets. Every target makes what it needs; a second run is quick.
# .venv is ours alone; what is built or fetched once per machine lies in the user's cache.

SHELL := /bin/sh
.DEFAULT_GOAL := help
PY := .venv/bin/python
ENVIRONMENT := .venv/.complete
SPOT := $(PY) -m spotinference
PYTEST := $(PY) -m pytest
PEERS := benchmarks/gateway/requirements
BENCHMARKS := wake crowd steady reclaims notices ramp no_capacity second_wake parked_memory parked_cost trace_play

# Where byte code is forbidden every process that a test starts would compile its imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(ENVIRONMENT): requirements/dev.txt requirements/uv.txt pyproject.toml tools/environment.sh
	@sh tools/environment.sh
	@touch $@

.PHONY: env assets vllm tools proxies
env: $(ENVIRONMENT) ## create .venv from the locked requirements
assets: env ## find, fetch or build the control plane (once per machine)
	@$(SPOT) dev assets >/dev/null
tools: env
	@$(SPOT) dev tools >/dev/null
proxies: env
	@$(PY) -m tests.support.debian >/dev/null
vllm: env ## install the real vLLM for the CPU (once per machine)
	@$(SPOT) dev engine install

.PHONY: demo
demo: assets vllm ## the story: a stream that survives its GPU (real vLLM, about six minutes)
	@$(SPOT) demo

.PHONY: test
test: assets tools proxies vllm ## every layer of the tests; nothing is skipped
	@$(PYTEST) --all-layers

.PHONY: check
check: env ## format, lint, types, import contracts, generated files
	@.venv/bin/ruff format --check --quiet . || { echo "remedy: .venv/bin/ruff format ."; exit 1; }
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy operator tests benchmarks
	@out=$$(.venv/bin/lint-imports --no-cache) || { echo "$$out"; exit 1; }
	@$(SPOT) crds check

.PHONY: unit cluster engine golden chart gateway
unit: env ## unit and property tests: seconds, no processes
	@$(PYTEST) tests/unit tests/properties
golden: env ## manifests compared with the golden files
	@$(PYTEST) tests/golden
gateway: proxies ## the gateway against the small engine
	@$(PYTEST) tests/gateway
chart: assets tools ## the Helm chart and the Argo CD examples
	@$(PYTEST) tests/chart
cluster: assets ## a real control plane with operator and gateway as processes
	@$(PYTEST) tests/cluster
engine: assets vllm ## one contract on both engines; the story on the real vLLM
	@$(PYTEST) tests/engine

.PHONY: crds lock bench bench-gateway bench-policies soak wheel clean
crds: env ## write the generated files: crds/, the chart's copy, docs/reference/
	@$(SPOT) crds write
lock: env ## resolve the requirements anew (hashes, no index addresses)
	@UV_CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/uv pip compile --quiet --upgrade pyproject.toml -o requirements/runtime.txt
	@UV_CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/uv pip compile --quiet --upgrade pyproject.toml --group dev -o requirements/dev.txt
	@echo uv | UV_CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/uv pip compile --quiet --upgrade - -o requirements/uv.txt
	@echo hatchling | UV_CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/uv pip compile --quiet --upgrade - -o requirements/build.txt
	@UV_CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/uv pip compile --quiet --upgrade --no-annotate --override requirements/engine-overrides.txt requirements/engine.in -o requirements/engine.txt
	@for p in vllm-router sglang-router litellm; do UV_CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/uv pip compile --quiet --upgrade $(PEERS)/$$p.in -o $(PEERS)/$$p.txt || exit 1; done
bench: assets ## measure wakes, crowds, reclaims, idle writes, parking (about 20 minutes)
	@for b in $(BENCHMARKS); do echo "== benchmarks.$$b"; $(PY) -m benchmarks.$$b || exit 1; done
bench-gateway: env ## the gateway beside nginx and other routers (about 25 minutes; needs a C compiler)
	@$(PY) -m benchmarks.gateway
bench-policies: env ## every policy on public traces: tables and plots (about a quarter of an hour; skips without ../shared/traces)
	@$(PY) -m benchmarks.policies
soak: env ## an hour of load on the gateway: its memory must stay flat (for nightly runs)
	@$(PY) -m benchmarks.gateway --soak 3600
wheel: env ## build the wheel into dist/
	@.venv/bin/uv build --quiet --wheel --no-build-isolation --python .venv/bin/python
clean: ## remove .venv, caches and build output (the machine's cache stays)
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find operator tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
