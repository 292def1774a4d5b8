# `make demo` and `make test` need Python 3.11+ and a C compiler, and set up everything else.
PYTHON ?= python3
# cpu or cuda
DEVICE ?= cpu
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
UV := uv==0.13.9

.PHONY: setup models demo test test-containers test-cluster test-harnesses lint protos release-contract dashboards pictures lock clean

setup: $(VENV)/.$(DEVICE)

# The CPU build of torch is not on PyPI: it comes from an index or folder that pip is configured with, or from its own index.
$(VENV)/.cpu: requirements/cpu.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Charter needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/python -c 'import torch; assert torch.__version__ == "$(TORCH)+cpu"' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torch==$(TORCH)+cpu 2>/dev/null || \
	  $(BIN)/python -m pip install --disable-pip-version-check --no-deps torch==$(TORCH)+cpu --index-url https://download.pytorch.org/whl/cpu
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements/cpu.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.cuda: requirements/cuda.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements/cuda.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# The model, prompts and labelled pairs of the demo and of the tests with a real model.
models: setup
	$(BIN)/charter demo --prepare-only

demo: setup
	$(BIN)/charter demo

# One file of tests after the other in each process; a thread each, so that the processes do not fight for cores.
test: setup models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

# Builds the image of workers and services, and runs its services with podman from the rendered manifests.
# PODMAN_BUILD: more options of `podman build`, for example --build-arg BASE_IMAGE=my-registry/python:3.11
test-containers: setup
	podman build $(PODMAN_BUILD) -f deploy/Dockerfile --target worker -t localhost/charter-worker:0.1.0 .
	CHARTER_TEST_CONTAINERS=1 $(BIN)/python -m pytest tests/deploy/test_podman.py

# On the cluster of CHARTER_TEST_KUBECONFIG; docs/kubernetes.md says what it needs.
test-cluster: setup
	$(BIN)/python -m pytest tests/cluster

# lm-evaluation-harness and inspect, from an environment of their own, on a gateway before a tiny model.
test-harnesses: setup
	test -x .venv-harnesses/bin/python || $(BIN)/python -m venv .venv-harnesses
	$(BIN)/uv pip install --quiet --python .venv-harnesses/bin/python -r requirements/harnesses.txt
	CHARTER_TEST_HARNESSES=.venv-harnesses/bin/python $(BIN)/python -m pytest tests/harnesses

lint: setup
	$(BIN)/buf lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

protos: setup
	scripts/protos.sh

# At a release: the contract that later versions must stay compatible with.
release-contract: setup
	$(BIN)/buf build --exclude-source-info -o protos/released.binpb

dashboards: setup
	PYTHONPATH=. $(BIN)/python -m deploy.monitoring

# docs/dashboards, from a run of 100 steps of a tiny model recorded by Prometheus (Debian: prometheus); a few minutes.
pictures: setup
	OMP_NUM_THREADS=1 PYTHONPATH=services:. $(BIN)/python -m tests.deploy.pictured_run

# Pins the newest versions that fit together; run it to upgrade.
lock: setup
	cd requirements && ../$(BIN)/uv pip compile --quiet --upgrade --no-header --annotation-style line --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --find-links https://download.pytorch.org/whl/cpu/torch --no-emit-find-links \
	  --override overrides.txt -o cpu.lock cpu.in dev.in
	cd requirements && ../$(BIN)/uv pip compile --quiet --upgrade --no-header --annotation-style line --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 -o cuda.lock cuda.in dev.in

clean:
	rm -rf $(VENV) build services/*.egg-info .mypy_cache .ruff_cache .pytest_cache
