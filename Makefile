# Two commands do all the set-up: `make demo` and `make test`. Needs git, make and a Python from 3.10 to 3.13.
SHELL := /bin/bash
VENV ?= .venv
# The first suitable interpreter on this machine; choose yourself with `make PYTHON=python3.12 ...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
BIN := $(VENV)/bin
OUT ?= demo
DATA ?= ../shared/datasets/mtd
WORK ?= runs
TRUTH ?= ../shared/edgetpu_ground_truth
QUALITY ?=
RECIPES ?=
QUANTIZATION ?=
# A backend that the toolkit installs must not be skipped.
REQUIRED := --require-backend openvino --require-backend litert --require-backend onnx

.DEFAULT_GOAL := help
.PHONY: help demo test quick lint system results clean bench-mtd-first bench-quality bench-recipes bench-grids bench-quantization bench-edgetpu-lint

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/toolkit.done: pyproject.toml
	@test -n "$(PYTHON)" || { echo "edgeqc needs a Python from 3.10 to 3.13; install one, or say which: make PYTHON=... $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing the toolkit into $(VENV) (some minutes the first time) ..."
	$(BIN)/python -m pip install --quiet --progress-bar on -e '.[toolkit]'
	@touch $@

$(VENV)/dev.done: $(VENV)/toolkit.done
	$(BIN)/python -m pip install --quiet --progress-bar on -e '.[toolkit,dev]'
	@# NVIDIA's parser and builder check what a Jetson gets; without them those tests skip, saying so.
	$(BIN)/python -m pip install --quiet --progress-bar on -e '.[tensorrt-check]' || echo "tensorrt-rtx is not to be had for this machine: its checks will skip"
	@touch $@

system:  ## install rauc and squashfs-tools (root), or print the one command to type
	@if command -v rauc >/dev/null && command -v mksquashfs >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq rauc squashfs-tools >/dev/null; \
	else echo "signed bundles need two system packages; type:  sudo apt-get install rauc squashfs-tools"; fi

demo: $(VENV)/toolkit.done  ## the whole way on synthetic surfaces: train, quantize, three targets, bundle, self-test
	@$(MAKE) --no-print-directory system || true
	$(BIN)/edgeqc demo --out $(OUT)

test: $(VENV)/dev.done  ## lint, types, import rules and every test, the slow ones included
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 15 -rs $(REQUIRED)

quick: $(VENV)/dev.done  ## the fast tests only
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/dev.done  ## ruff, mypy --strict on edge and firmware_bridge, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-mtd-first: $(VENV)/toolkit.done  ## the whole way on the tile photographs in DATA; writes benchmarks/results/mtd-first.json
	$(BIN)/python -m benchmarks.mtd_first --data $(DATA) --work $(WORK)/mtd-first

bench-quality: $(VENV)/toolkit.done  ## every learning system, three seeds each; resumes; QUALITY="--rows weak --seeds 0 --jobs 2" makes a part
	$(BIN)/python -m benchmarks.quality --data $(DATA) --work $(WORK)/quality $(QUALITY)

bench-recipes: $(VENV)/toolkit.done  ## which recipe is best, on parts held out of train and val; resumes; RECIPES="--recipes fine --folds 0" makes a part
	$(BIN)/python -m benchmarks.recipes --data $(DATA) --work $(WORK)/recipes $(RECIPES)

bench-grids: $(VENV)/toolkit.done  ## roundings and ranges against each other, for the networks of bench-recipes; resumes
	$(BIN)/python -m benchmarks.grids --work $(WORK)/recipes

bench-quantization: $(VENV)/toolkit.done  ## what int8 changes, for the networks of bench-quality; resumes; QUANTIZATION="--grids calibrated" makes a part
	$(BIN)/python -m benchmarks.quantization --data $(DATA) --work $(WORK)/quantization --quality $(WORK)/quality $(QUANTIZATION)

bench-edgetpu-lint: $(VENV)/toolkit.done  ## the Edge TPU lint against what the compiler made of the models in TRUTH
	$(BIN)/python -m benchmarks.edgetpu_lint --truth $(TRUTH)

results: $(VENV)/toolkit.done  ## regenerate the tables in docs/results.md and README.md from benchmarks/results
	$(BIN)/python -m benchmarks.tables

clean:  ## remove the environment and what the demo wrote
	rm -rf $(VENV) $(OUT) build *.egg-info
