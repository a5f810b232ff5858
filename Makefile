PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint install clean

quickstart: install ## install and run the main job on embedded data, offline
	$(BIN)/hf-transfer quickstart --output_dir runs/quickstart

test: install lint ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quickstart,dev]'
	touch $@

clean: ## remove the environment and the runs
	rm -rf .venv runs
