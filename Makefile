PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test pytest lint install clean

quickstart: install ## install and run the main job on embedded data, offline
	$(BIN)/hf-transfer quickstart --output_dir runs/quickstart

test: lint pytest ## all checks; with --jobs 2 side by side

pytest: $(BIN)/ready-to-test ## the whole test suite, a file a process; browser tests if chromium is here
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 12

lint: $(BIN)/ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(BIN)/ready ## what users need: the encoder and the demo

$(BIN)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[quickstart,demo]'
	touch $@

$(BIN)/ready-to-test: $(BIN)/ready
	$(PIP) -e '.[quickstart,demo,onnx,dev]'
	touch $@

clean: ## remove the environment and the runs
	rm -rf .venv runs
