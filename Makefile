# Each target sets up what it needs: a bare clone and Python >= 3.10 are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test bench lint docs clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,docs,train,bench]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/geomtx demo -o demo-out

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile  # a file's fixtures are made once

bench: $(STAMP)
	benchmarks/cpu.sh

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site demo-out build dist
