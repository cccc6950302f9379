# Everything starts from Python 3.11 or later and make; each target makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# These matrices are small: one thread is as fast as two, and two processes test faster.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint docs clean

$(READY): pyproject.toml constraints.txt setup.py $(wildcard geoopt_projunn/backends/cpu/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/permuted_digits.py

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard geoopt_projunn/backends/cpu/csrc/*)
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf geoopt_projunn/backends/cpu/*.so $(VENV) site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
