# Everything starts from Python 3.11 or later and make; each target makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# These matrices are small: one thread is as fast as two, and two processes test faster.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint docs clean

define TOO_OLD
This needs Python 3.11 or later, and `$(PYTHON)` is not: install one and name it, as in `make PYTHON=python3.12 demo`.
endef
define NO_PACKAGES
The packages could not be installed; pip says above why. Without a network, fetch them where there is one by
`pip download --dest wheels -r constraints.txt 'setuptools>=77'`, and then put `PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels` before `make`.
endef
export TOO_OLD NO_PACKAGES

$(READY): pyproject.toml constraints.txt setup.py $(wildcard geoopt_projunn/backends/*/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "$$TOO_OLD" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the package and what its tests need into $(VENV), which takes some minutes the first time."
	@$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip && \
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' || { echo "$$NO_PACKAGES" >&2; exit 1; }
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/learn_a_rotation.py

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard geoopt_projunn/backends/*/csrc/*)
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf geoopt_projunn/backends/*/*.so $(VENV) site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
