# Verbs of the project. `make help` lists them; everything they need is set up by `make install` and `make services`.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CACHE  := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/premoe
PY     := premoe_runtime operator services tests tools benchmarks
CRD    := charts/premoe-crds/templates/prunedmodels.yaml
CRD_PAGE := docs/reference/prunedmodel.md
PYTEST := $(BIN)/python -m pytest
# What needs no services, and so runs two at a time.
FAST   := tests/unit tests/architecture
# Marks of what needs helm, a control plane or a node.
KUBERNETES := cluster or node
# Of all tiers that `make test` leaves out.
APART  := $(KUBERNETES) or vllm or ratios
# vLLM's versions are its own choice, so what runs on it has an environment of its own.
VLLM   := .venv-vllm
# Of a benchmark alone.
LLAMA  := .venv-llama
LOADERS := .loaders
ON_VLLM := $(filter --engine=vllm,$(ARGS))$(findstring --engine vllm,$(ARGS))
ENGINE_ENV := $(if $(ON_VLLM),$(VLLM),$(VENV))
# Torch and other processes share the cores in tests: spinning OpenMP threads make both 10 times slower.
export OMP_WAIT_POLICY := PASSIVE
export OMP_NUM_THREADS ?= 2
export PATH := $(CURDIR)/$(BIN):$(CACHE)/bin:$(PATH)

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[36m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(STAMP) ## Create .venv with everything pinned by constraints.txt (quick the second time)

$(STAMP): pyproject.toml constraints.txt tools/install.sh
	@tools/install.sh $(VENV)
	@touch $@

.PHONY: services
services: ## Install the servers that tests use: redis-server and nginx (apt), versitygw (Go module)
	@tools/install_services.sh $(CACHE)/bin

.PHONY: browser
browser: ## Install the browser in which the console is tested: Chromium and its driver (apt)
	@tools/install_browser.sh

.PHONY: cluster-tools
cluster-tools: ## Build the Kubernetes programs that tests start, from Go modules (once, 10 to 25 minutes)
	@tools/build_cluster.sh

.PHONY: node-tools
node-tools: ## Install what the test node needs: containerd, runc, CNI plugins (apt)
	@tools/install_node.sh

.PHONY: vllm
vllm: ## Create .venv-vllm with vLLM for CPUs (once, 6 GB)
	@REQUIRE_VLLM=1 tools/install_vllm.sh $(VLLM)

.PHONY: demo
demo: $(if $(ON_VLLM),vllm,install) ## Pack, profile and serve the fixture model; print what each request moved and answered
	@$(ENGINE_ENV)/bin/premoe demo $(ARGS)

.PHONY: up
up: $(if $(ON_VLLM),vllm,install) ## Serve a pack on this machine: make up ARGS="--model URL --budget 4/16"
	@$(ENGINE_ENV)/bin/premoe up $(ARGS)

# Several processes with torch run side by side in tests: one thread each is quicker on two cores.
test test-fast test-cluster: export OMP_NUM_THREADS := 1

.PHONY: test
# The cluster's programs are hidden, so a test that needs them without its mark fails here instead of running now and then.
test: export PREMOE_CLUSTER_BIN := /nonexistent
test: export REQUIRE_CLUSTER := 1
test: install services $(if $(filter 0,$(shell id -u)),browser) ## Set up and run the checks and every tier of tests but ratios of speeds and those of Kubernetes and vLLM
	@$(MAKE) --no-print-directory check
	@$(PYTEST) $(FAST) -n 2 -m "not ($(APART))" $(ARGS)
	@$(PYTEST) $(FAST:%=--ignore=%) -n 2 --dist loadfile -m "not ($(APART))" $(ARGS)

.PHONY: test-all
test-all: ## The same, ratios of speeds, the tier of vLLM and the Kubernetes tiers
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory test-ratios
	@$(MAKE) --no-print-directory test-vllm
	@$(MAKE) --no-print-directory test-cluster

.PHONY: test-ratios
test-ratios: install services ## Compare how experts travel with what this machine can, with slack, in a minute; alone on the machine
	@$(PYTEST) tests/services -m ratios $(ARGS)

.PHONY: test-fast
test-fast: install ## Run the tests that need no services, two at a time (about 80 s on two cores)
	@$(PYTEST) $(FAST) -m "not slow" -n 2 $(ARGS)

.PHONY: test-cluster
test-cluster: export REQUIRE_CLUSTER := 1
test-cluster: install cluster-tools $(if $(filter 0,$(shell id -u)),node-tools) ## Run the Kubernetes tiers: charts, control plane and, when root, a node
	@$(PYTEST) $(FAST) -n 2 -m "$(KUBERNETES)" $(ARGS)
	@$(PYTEST) $(FAST:%=--ignore=%) -m "$(KUBERNETES)" $(ARGS)

.PHONY: test-vllm
test-vllm: ## Run the tests of the engine vllm, in an environment of its own; without its package says so and ends
	@tools/install_vllm.sh $(VLLM) || { code=$$?; [ $$code = 3 ] && exit 0; exit $$code; }; \
	$(VLLM)/bin/python -m pytest tests/vllm tests/contract/test_engine.py tests/contract/test_engine_grammar.py -m vllm $(ARGS)

.PHONY: check
check: install ## Formatting, lint, types, architecture contracts, stubs up to date
	@$(BIN)/ruff format --check $(PY)
	@$(BIN)/ruff check $(PY)
	@$(MAKE) --no-print-directory types imports
	@tools/check_stubs.sh
	@$(BIN)/python tools/crd.py --check $(CRD)
	@$(BIN)/python tools/crd.py --reference --check $(CRD_PAGE)
	@$(BIN)/python tools/chart_readme.py --check
	@$(BIN)/python tools/metrics_page.py --check
	@$(BIN)/python tools/families_page.py --check
	@$(BIN)/python tools/scores_page.py --check

.PHONY: fmt
fmt: install ## Format and fix what can be fixed
	@$(BIN)/ruff format $(PY)
	@$(BIN)/ruff check --fix $(PY)

.PHONY: lint
lint: install ## Lint only
	@$(BIN)/ruff check $(PY)

.PHONY: types
types: install ## mypy --strict, tests included
	@$(BIN)/mypy

.PHONY: imports
imports: install ## Architecture contracts
	@$(BIN)/lint-imports

.PHONY: protos
protos: install ## Regenerate the committed stubs from protos/
	@PYTHON=$(BIN)/python tools/generate_stubs.sh

.PHONY: crds
crds: install ## Regenerate the custom resource definition and its reference from the pydantic classes
	@$(BIN)/python tools/crd.py --write $(CRD)
	@$(BIN)/python tools/crd.py --reference --write $(CRD_PAGE)

.PHONY: charts
charts: install cluster-tools ## Lint the charts and renew their tables of values
	@$(BIN)/python tools/chart_readme.py
	@helm=$$(tools/build_cluster.sh --print)/helm; $$helm lint --strict --quiet charts/premoe-crds; \
	for values in charts/premoe/ci/*.yaml; do $$helm lint --strict --quiet charts/premoe --values $$values; done

.PHONY: images
images: ## Build the images with docker, podman or buildah: make images IMAGES=registry.example/premoe/ TAG=0.1.0 [WITH_VLLM=vllm==0.32.0]
	@tools/build_images.sh "$(IMAGES)" "$(or $(TAG),0.1.0)" "$(WITH_VLLM)"

.PHONY: lock
lock: install ## Renew constraints.txt from pyproject.toml
	@tools/lock.sh

.PHONY: bench
bench: install ## Run the benchmarks: make bench ARGS="--json out/"
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-serve
bench-serve: vllm ## Compare vLLM over slots with vLLM as it comes, an exported checkpoint, transformers and llama.cpp, in environments of their own
	@tools/install_llama.sh $(LLAMA) || [ $$? = 3 ]
	@PYTHONPATH=tests:tools $(VLLM)/bin/python benchmarks/serving.py $(ARGS)

.PHONY: bench-data
bench-data: install services ## Compare every way that experts travel with memcpy, raw TCP, the disk and stock clients, in 5 minutes
	@PYTHONPATH=tests:tools $(BIN)/python benchmarks/data.py $(ARGS)

.PHONY: bench-cold
bench-cold: install services ## Compare a worker's cold start from S3 at a quarter of the experts with the quickest loader of whole models
	@tools/install_loaders.sh $(VENV) $(LOADERS) || [ $$? = 3 ]
	@PYTHONPATH=tests:tools $(BIN)/python benchmarks/cold_start.py $(ARGS)

.PHONY: bench-mixture
bench-mixture: vllm ## Compare requests under four patterns in one batch with one pattern after another, on vLLM
	@$(VLLM)/bin/python benchmarks/mixture.py $(ARGS)

.PHONY: bench-arrival
bench-arrival: vllm ## Measure what a pattern that arrives cold costs those who decode, on vLLM
	@$(VLLM)/bin/python benchmarks/arrival.py $(ARGS)

.PHONY: bench-gpu
bench-gpu: ## What wants one NVIDIA GPU, in 8 minutes at most; takes vLLM for GPUs from .venv-vllm, where somebody put it
	@PYTHONPATH=tests:tools $(VLLM)/bin/python benchmarks/gpu.py $(ARGS)

.PHONY: soak
soak: $(if $(ON_VLLM),vllm,install) services ## Load a mesh for half an hour while its store and Redis are killed: make soak ARGS="--minutes 30 --engine vllm"
	@PYTHONPATH=tests:tools $(ENGINE_ENV)/bin/python benchmarks/soak.py $(ARGS)

.PHONY: clean
clean: ## Remove the virtual environment and caches of this checkout
	@rm -rf $(VENV) $(VLLM) $(LLAMA) $(LOADERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
