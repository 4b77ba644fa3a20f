# Every target makes the environment it needs first, and does nothing twice.
PYTHON ?= python3
BIN := .venv/bin
TEST_OPTIONS ?=

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all quality format clean

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

quickstart: .venv/installed  ## the main job: a plain Trainer and SharpTrainer on long-tailed digits, side by side
	$(BIN)/accelerate launch --config_file recipes/accelerate/single_gpu.yaml recipes/image_classification.py --config recipes/configs/quickstart.yaml

test: .venv/installed-test  ## the test suite
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(TEST_OPTIONS)

test-all: .venv/installed-test  ## the test suite, with the slow ones
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(TEST_OPTIONS)

quality: .venv/installed-test  ## format check, lint (docstrings included) and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-test  ## format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and what runs left in outputs/
	rm -rf .venv outputs
