# iTrain: `make demo` runs the main job, `make test` proves it. Everything else is in `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
LOCKS := requirements/bootstrap.txt requirements/dev.txt requirements/bfcl.txt
PACKAGES := crds operator pipeline
STAMP := $(VENV)/.synced-$(firstword $(shell cat $(LOCKS) crds/pyproject.toml operator/pyproject.toml pipeline/pyproject.toml | sha256sum))
COMPILE = $(UV) pip compile --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help
help: ## what can be made
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}'

## --- environment -----------------------------------------------------------------------------------------------

.PHONY: install
install: $(STAMP) ## the environment in .venv, from hashed requirement files

$(STAMP): $(LOCKS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 12) else "make: Python 3.11 or 3.12 is needed; this is " + sys.version.split()[0] + ". Set PYTHON=/path/to/python3.11")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@test -x $(UV) || $(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@echo "installing the environment (about 3 GB with torch; a minute on a fast line)"
	@DS_BUILD_OPS=0 $(UV) pip sync --quiet --compile-bytecode --python $(PY) --require-hashes $(LOCKS)
	@$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation $(addprefix -e ,$(PACKAGES))
	@rm -f $(VENV)/.synced-* && touch $@

VOLTA := .venv-volta
VOLTA_STAMP := $(VOLTA)/.synced-$(firstword $(shell cat requirements/volta-cpu.txt | sha256sum))

$(VOLTA_STAMP): requirements/volta-cpu.txt | $(STAMP)
	@test -x $(VOLTA)/bin/python || $(PYTHON) -m venv $(VOLTA)
	@echo "installing the Volta images' library versions into $(VOLTA) (3 GB)"
	@$(UV) pip sync --quiet --python $(VOLTA)/bin/python --require-hashes requirements/volta-cpu.txt
	@$(UV) pip install --quiet --python $(VOLTA)/bin/python --no-deps --no-build-isolation -e crds -e pipeline
	@rm -f $(VOLTA)/.synced-* && touch $@

.PHONY: lock
lock: $(STAMP) ## upgrade every pinned requirement (edit requirements/*.in first to widen a range)
	cd requirements && for e in bootstrap audit operator pipeline; do ../$(COMPILE) --upgrade $$e.in -o $$e.txt; done
	cd requirements && ../$(COMPILE) --upgrade --no-deps bfcl.in -o bfcl.txt
	cd requirements && ../$(COMPILE) --upgrade --override dev-overrides.in dev.in -o dev.txt
	cd requirements && ../$(COMPILE) --upgrade --override volta-cpu-overrides.in volta-cpu.in -o volta-cpu.txt
	@$(MAKE) --no-print-directory images-lock UPGRADE=--upgrade

## --- the product -----------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(STAMP) ## the quickstart run, locally: seven stages, two iterations, a table and a report
	@$(VENV)/bin/itrain run crds/examples/quickstart.yaml --local --dir build/demo --summary build/demo/summary.json

.PHONY: tiny
tiny: $(STAMP) ## the same seven stages on a few rows
	@$(VENV)/bin/itrain run crds/examples/tiny.yaml --local --dir build/tiny --summary build/tiny/summary.json

.PHONY: base-model
base-model: $(STAMP) ## pre-train the quickstart's base model again (25 minutes on 2 busy cores)
	$(PY) -m itrain_pipeline.learn.pretrain --out build/base-model --seed 0

## --- proof -----------------------------------------------------------------------------------------------------

.PHONY: test
test: $(STAMP) ## every unit, repository and integration test (an S3 server and a control plane are built with Go on first use)
	$(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile tests/integration tests/engines tests/unit tests/repo

.PHONY: test-volta
test-volta: $(VOLTA_STAMP) ## both engines on the library versions of the Volta images (on a CPU)
	$(VOLTA)/bin/python -m pytest tests/engines

.PHONY: test-gpu
test-gpu: $(STAMP) ## rows, precisions, loss scaler and DeepSpeed on a GPU (fails where there is none)
	$(PY) -m pytest tests/gpu

.PHONY: chart-test
chart-test: $(STAMP) ## the Helm chart: linted, its own suites, every object held against its API (Helm is built with Go on first use)
	@PYTHONPATH=tests/support $(PY) -m itrain_testing.chart
	$(PY) -m pytest tests/repo/test_chart.py tests/repo/test_chart_rights.py

.PHONY: e2e
e2e: $(STAMP) ## whole runs: local, killed and resumed, against a real S3 server and on a real node (as root)
	$(PY) -m pytest --numprocesses auto --maxprocesses 2 --dist loadfile -m "not recording" tests/e2e

.PHONY: record-quickstart
record-quickstart: $(STAMP) ## the quickstart on a real node by Helm and kubectl (as root): build/quickstart-watch.txt for docs/recordings
	$(PY) -m pytest -m recording tests/e2e

CLUSTER := PYTHONPATH=tests/support $(PY) -m itrain_testing.cluster

.PHONY: cluster-up
cluster-up: $(STAMP) ## a Kubernetes cluster in the background, with the CRD and (as root) a node; prints its KUBECONFIG
	@$(CLUSTER) up

.PHONY: cluster-down
cluster-down: $(STAMP) ## end that cluster and remove everything it made
	@$(CLUSTER) down

.PHONY: bench-operator
bench-operator: $(STAMP) ## the operator with 10, 100 and 1,000 runs: build/bench/operator.json (QUICK=1: 100 runs, 3 minutes)
	@PYTHONPATH=tests/bench:tests/support $(PY) -m itrain_bench.controller

.PHONY: bench-search
bench-search: $(STAMP) ## the search beside the released one, and each lever alone: build/bench/search.json (QUICK=1: 5 minutes)
	@PYTHONPATH=tests/bench:tests/support $(PY) -m itrain_bench.search

.PHONY: bench-evaluate
bench-evaluate: $(STAMP) ## gold answers and planted mistakes through the judging, and what asking costs: build/bench/evaluate.json (QUICK=1: 3 minutes; ONLY=correct, speed or official)
	@PYTHONPATH=tests/bench:tests/support $(PY) -m itrain_bench.evaluate

.PHONY: bench-train
bench-train: $(STAMP) ## SimPO next to TRL's CPOTrainer, SFT next to its SFTTrainer, perplexity next to the plain loop: build/bench/train.json (QUICK=1: short; ONLY=simpo, sft or ppl)
	@PYTHONPATH=tests/bench:tests/support $(PY) -m itrain_bench.training

.PHONY: bench-train-gpu
bench-train-gpu: $(STAMP) ## the same next to TRL on one GPU, an 8B-shaped model: build/bench/train-gpu.json (80 GB, 5 minutes)
	@PYTHONPATH=tests/bench:tests/support $(PY) -m itrain_bench.training.gpu

## --- images ----------------------------------------------------------------------------------------------------

IMAGES_VENV := build/images/venv
IMAGES_STAMP := $(IMAGES_VENV)/.synced-$(firstword $(shell cat requirements/bootstrap.txt requirements/images.txt | sha256sum))
IMAGE_LOCKS := $(foreach image,trainer rollout,$(foreach hardware,volta current cpu,$(image)-$(hardware)))
UPGRADE :=

$(IMAGES_STAMP): requirements/bootstrap.txt requirements/images.txt
	@test -x $(IMAGES_VENV)/bin/python || $(PYTHON) -m venv $(IMAGES_VENV)
	@$(IMAGES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes $(addprefix -r ,$^)
	@rm -f $(IMAGES_VENV)/.synced-* && touch $@

.PHONY: images
images: $(IMAGES_STAMP) ## the container images as OCI archives in build/images, with their SBOMs (ONLY="operator trainer-volta", BASE_IMAGE=, PREFIX=, UNCOMPRESSED=1, TWICE=1)
	@PYTHONPATH=images/src $(IMAGES_VENV)/bin/python -m itrain_images $(if $(BASE_IMAGE),--base-image $(BASE_IMAGE)) $(if $(PREFIX),--prefix $(PREFIX)) $(if $(TWICE),--twice) $(if $(UNCOMPRESSED),--uncompressed) $(ONLY)

.PHONY: images-lock
images-lock: UV := $(IMAGES_VENV)/bin/uv
images-lock: $(IMAGES_STAMP) ## resolve the packages of every image again: each matrix must give the lock that is committed
	@rm -rf build/locks && mkdir -p build && cp -r requirements build/locks
	cd build/locks && for e in bootstrap images operator; do ../../$(COMPILE) $(UPGRADE) $$e.in -o $$e.txt; done
	cd build/locks && for e in $(IMAGE_LOCKS); do \
	  ../../$(COMPILE) $(UPGRADE) --python-platform x86_64-manylinux_2_31 $$(ls $$e-overrides.in 2>/dev/null | sed 's/^/--override /') $$e.in -o $$e.txt; done
	@if [ -n "$(UPGRADE)" ]; then cp build/locks/*.txt requirements; \
	  else diff -ru requirements build/locks || { echo "make images-lock: these locks are not what their matrix gives; make lock writes them"; exit 1; }; fi

## --- checks ----------------------------------------------------------------------------------------------------

.PHONY: bench-learning
bench-learning: $(STAMP) ## do the iterations beat plain fine-tuning on a long-tailed toolworld? build/bench/learning.json (QUICK=1: one seed)
	@PYTHONPATH=tests/bench:tests/support $(PY) -m itrain_bench.learning

.PHONY: bench-learning-sweep
bench-learning-sweep: $(STAMP) ## one iteration with another rate, weight, β, γ, fraction or number of simulations, on dev tasks: build/bench/learning-sweep.json
	@PYTHONPATH=tests/bench:tests/support $(PY) -m itrain_bench.learning.sweep

.PHONY: verify
verify: generate ## generate, format, lint, types, import contracts; then no diff in what is generated
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	@git diff --exit-code --stat -- crds docs charts || { echo "make verify: generated files changed; commit them"; exit 1; }

AUDIT_VENV := build/audit/venv
AUDIT_STAMP := $(AUDIT_VENV)/.synced-$(firstword $(shell cat requirements/bootstrap.txt requirements/audit.txt | sha256sum))
AUDIT_SERVICE := pypi

$(AUDIT_STAMP): requirements/bootstrap.txt requirements/audit.txt
	@test -x $(AUDIT_VENV)/bin/python || $(PYTHON) -m venv $(AUDIT_VENV)
	@$(AUDIT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes $(addprefix -r ,$^)
	@rm -f $(AUDIT_VENV)/.synced-* && touch $@

.PHONY: audit
audit: $(AUDIT_STAMP) ## known vulnerabilities of every hashed requirement file (asks the package index; AUDIT_SERVICE=osv asks OSV)
	@found=0; for file in $(sort $(wildcard requirements/*.txt)); do \
	  report=build/audit/$$(basename $$file .txt).json; rm -f $$report; echo "$$file"; \
	  $(AUDIT_VENV)/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off --vulnerability-service $(AUDIT_SERVICE) \
	    --format json --output $$report --requirement $$file 2> $$report.log && continue; \
	  test -s $$report || { tail -n 1 $$report.log; echo "make audit: not audited, the service $(AUDIT_SERVICE) did not answer or does not know a package; it needs HTTPS to the package index, or to OSV with AUDIT_SERVICE=osv"; exit 2; }; \
	  $(PY) -c 'import json, sys; [print(" ", d["name"], d["version"], v["id"], "fixed in", ", ".join(v["fix_versions"]) or "no version") for d in json.load(open(sys.argv[1]))["dependencies"] for v in d.get("vulns", ())]' $$report; \
	  found=1; \
	done; test $$found = 0 || { echo "make audit: vulnerabilities are known; see build/audit"; exit 1; }

.PHONY: generate
generate: $(STAMP) ## the CRD, the field references and the chart's part of both, from the types
	@$(PY) -m itrain_contract.crdgen
	@$(PY) -m itrain_operator.settingsdoc
	@$(PY) charts/valuesschema.py

.PHONY: format
format: $(STAMP) ## format and mend what ruff can
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

.PHONY: clean
clean: ## remove build/ and the environment
	rm -rf build $(VENV) $(VOLTA)
