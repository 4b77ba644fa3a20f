# Every target first makes the environment it needs. Finished steps are skipped.
PYTHON ?= python3
BIN := .venv/bin
TEST_OPTIONS ?=
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal
# The rooms whose tests take seconds, without runs of several processes or of commands.
FAST_TESTS := tests/data tests/losses tests/sharpness tests/geometry tests/model tests/reports \
  tests/trainer/test_sharp_trainer.py tests/test_training_args.py hf_sharp

.DEFAULT_GOAL := help
.PHONY: help install dev quickstart test test-all check quality format docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

install: .venv/installed  ## make .venv and install hf_sharp into it

dev: .venv/installed-test  ## the same, with what tests and checks need

quickstart: .venv/installed  ## train a plain Trainer and SharpTrainer on long-tailed digits, and compare them
	$(BIN)/accelerate launch --config_file recipes/accelerate/single_gpu.yaml recipes/image_classification.py --config recipes/configs/quickstart.yaml

test: dev  ## run the tests
	$(PYTEST) -m "not slow" $(TEST_OPTIONS)

test-all: dev  ## run the tests, including the slow ones
	$(PYTEST) $(TEST_OPTIONS)

check: quality  ## before every commit: quality and the fast tests, about 2 minutes
	$(PYTEST) -m "not slow" -k "not processes and not command_line" $(TEST_OPTIONS) $(FAST_TESTS)

quality: dev  ## check format, lint (docstrings included), types and generated tables
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/tables.py --check

format: dev  ## format the code and fix what can be fixed automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: dev  ## rewrite the generated tables in README.md and docs/
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/tables.py

clean:  ## remove the environment and the outputs of runs
	rm -rf .venv outputs
