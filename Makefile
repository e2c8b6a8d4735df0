# Each target sets up what it needs: a bare clone and Python >= 3.10 are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/pip install -q --disable-pip-version-check --no-compile -c constraints.txt

# What is imported is compiled once and kept; without that, every process of the tests compiles it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test fuzz bench lint docs clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[test,train]"
	@touch $(STAMP)

$(STAMP)-dev: $(STAMP)
	$(PIP) -e ".[dev]"
	@touch $@

$(STAMP)-docs: $(STAMP)
	$(PIP) -e ".[docs]"
	@touch $@

demo: $(STAMP)
	$(BIN)/geomtx demo -o demo-out

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder  # a file's fixtures are made once

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz_exports.py

bench: $(STAMP)
	benchmarks/cpu.sh

lint: $(STAMP)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)-docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site demo-out build dist
