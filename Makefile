# Needs make and Python 3.11 or newer; everything else is installed into .venv, at the versions and hashes of locks/.

PYTHON ?= python3
ARGS ?=
# How many processes run all tests, some of which mostly wait; chosen ones run in one.
WORKERS ?= 3

ENV := .venv
UV := $(ENV)/bin/uv pip
INSTALL := $(UV) install --quiet --python $(ENV)/bin/python
FROM_LOCK := --require-hashes --only-binary :all: --requirement
SHADOWS := $(wildcard operator/__init__.py tests/operator/__init__.py)
COMPILE := $(UV) compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links

# Where Python may not keep bytecode as it imports, each process would spend half of its start on making it anew.
KEEP_BYTECODE := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/finetune-operator
# Tests of what imports neither torch nor Ray, without those that compare it with them.
FAST := tests/crds tests/operator tests/chart/test_monitoring.py \
	$(patsubst %,tests/cli/test_%.py,convert progress_bar progress_lines progress_words status_view validate) \
	$(patsubst %,--ignore-glob='*/test_%.py',lora numbers accelerator_profiles)

# Another checkout of this machine has checked most files already.
export MYPY_CACHE_DIR := $(CACHE)/mypy
export RUFF_CACHE_DIR := $(CACHE)/ruff

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo demo-cost demo-cluster test test-fast test-chaos test-harness test-long test-gpu e2e bench bench-start bench-memory cluster cluster-down environment lint format lock generate run-operator clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: demo-cost $(ENV)/trainer.installed $(ENV)/project.installed ## fine-tune a small language model on this machine, and see what it learnt
	$(ENV)/bin/python examples/make_inputs.py
	$(ENV)/bin/python examples/demo.py

demo-cost:
	@echo "The first time this takes about 4 minutes and 7 GB of disk (mostly torch with CUDA, in $(ENV)); later two and a half; on 2 cores."

demo-cluster: $(ENV)/dev.installed $(ENV)/project.installed ## the same on a Kubernetes cluster of its own, which is made here
	PYTHONPATH=.:examples $(ENV)/bin/python -m devcluster.demo

test: $(ENV)/dev.installed $(ENV)/project.installed ## run the tests; ARGS="-k lora" chooses some
	$(ENV)/bin/python -m pytest $(or $(ARGS),-n $(WORKERS))

test-fast: $(ENV)/dev.installed $(ENV)/project.installed ## run those that need neither torch nor a server, in half a minute
	$(ENV)/bin/python -m pytest --no-server $(FAST) $(ARGS)

test-long: $(ENV)/dev.installed $(ENV)/project.installed ## run the tests of what takes minutes: a real model on two devices and beside TRL, a compiled one in parts, Liger's kernels in an interpreter
	$(ENV)/bin/python -m pytest tests/long $(ARGS)

test-gpu: $(ENV)/dev.installed $(ENV)/project.installed ## run the tests that need a GPU; without one this fails
	$(ENV)/bin/python -m pytest tests/gpu $(ARGS)

e2e: $(ENV)/dev.installed $(ENV)/project.installed ## run the tests that need pods, on a cluster of their own
	$(ENV)/bin/python -m pytest tests/e2e --ignore=tests/e2e/harness --ignore=tests/e2e/chaos $(ARGS)

test-chaos: $(ENV)/dev.installed $(ENV)/project.installed ## run the tests in which workers are lost and the operator is killed, on the same cluster
	$(ENV)/bin/python -m pytest tests/e2e/chaos $(ARGS)

test-harness: $(ENV)/dev.installed $(ENV)/project.installed ## test the cluster of `make cluster` itself
	$(ENV)/bin/python -m pytest tests/devcluster tests/e2e/harness $(ARGS)

bench: $(ENV)/dev.installed $(ENV)/project.installed ## measure this machine's benchmarks; ARGS="trainer threads" chooses some
	$(ENV)/bin/python bench/__main__.py $(ARGS)

bench-start: $(ENV)/dev.installed $(ENV)/project.installed ## measure a run to its first step beside a plain script
	$(ENV)/bin/python bench/start.py $(ARGS)

bench-memory: $(ENV)/dev.installed $(ENV)/project.installed ## measure a training step's memory on a GPU beside the estimate; ARGS="--device cpu --small" tries it without one
	PYTHONPATH=.:examples $(ENV)/bin/python -m bench.peak_memory $(ARGS)

cluster: $(ENV)/dev.installed ## start that cluster, and print the line that makes kubectl use it
	@$(ENV)/bin/python -m devcluster up

cluster-down: $(ENV)/dev.installed ## stop it
	@$(ENV)/bin/python -m devcluster down

environment: $(ENV)/dev.installed $(ENV)/project.installed ## install what development needs into .venv, which all others do as well

lint: $(ENV)/dev.installed $(ENV)/project.installed ## check style, types and imports
	@test -z "$(SHADOWS)" || { echo "remove $(SHADOWS): it would shadow Python's own module operator" >&2; exit 1; }
	$(ENV)/bin/ruff check
	$(ENV)/bin/ruff format --check
	$(ENV)/bin/mypy
	$(ENV)/bin/lint-imports

format: $(ENV)/dev.installed ## write the code as `make lint` wants it
	$(ENV)/bin/ruff check --fix
	$(ENV)/bin/ruff format

lock: $(ENV)/build.installed ## bring locks/ in step with pyproject.toml; ARGS=--upgrade takes the newest versions
	$(COMPILE) $(ARGS) --all-extras --group dev --group examples pyproject.toml --output-file locks/dev.txt
	$(COMPILE) $(ARGS) --extra trainer --group examples --constraint locks/dev.txt pyproject.toml --output-file locks/trainer.txt
	$(COMPILE) $(ARGS) --extra trainer --group image --constraint locks/dev.txt pyproject.toml --output-file locks/image.txt
	$(COMPILE) $(ARGS) --extra operator --constraint locks/dev.txt pyproject.toml --output-file locks/operator.txt
	$(COMPILE) $(ARGS) --group build --constraint locks/dev.txt --output-file locks/build.txt

clean: ## remove what make and the examples made here, the environment included
	rm -rf $(ENV) build dist finetune-runs examples/inputs .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

generate: $(ENV)/dev.installed $(ENV)/project.installed ## write what is generated from the models: the CRD, files of the chart, two pages of docs/
	$(ENV)/bin/python -m finetune_api.crd > crds/finetunejobs.yaml
	$(ENV)/bin/python -m finetune_api.reference > docs/fields.md
	$(ENV)/bin/python -m finetune_operator.settings.page > docs/configuration.md
	$(ENV)/bin/python charts/chart_files.py

# What its jobs train in.
TRAINER_IMAGE ?= localhost/finetune-trainer:latest

run-operator: $(ENV)/dev.installed $(ENV)/project.installed ## run the operator from this checkout on the cluster of `make cluster`
	uses_the_cluster=$$($(ENV)/bin/python -m devcluster up) && eval "$$uses_the_cluster" && \
	kubectl apply --server-side --filename crds/finetunejobs.yaml && \
	exec env FINETUNE_OPERATOR_LOG_FORMAT=text FINETUNE_OPERATOR_TRAINER_IMAGE=$(TRAINER_IMAGE) $(ENV)/bin/python -m finetune_operator

$(ENV)/build.installed: locks/build.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or name it with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version 2>&1) is too old: name Python 3.11 or newer with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks venv: install it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(ENV)
	$(ENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --requirement $<
	@touch $@

$(ENV)/trainer.installed $(ENV)/dev.installed: $(ENV)/%.installed: locks/%.txt $(ENV)/build.installed
	$(INSTALL) $(KEEP_BYTECODE) $(FROM_LOCK) $<
	@touch $@

$(ENV)/project.installed: pyproject.toml $(ENV)/build.installed
	$(INSTALL) --offline --no-deps --no-build-isolation --editable .
	@touch $@
