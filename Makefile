# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make test   sets up .venv and runs lint, types and tests
#   make tour   sets up .venv and runs the main job end to end
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup browser tour test lint types tests docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vlbert needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

tour: setup
	$(BIN)/vlb tour

test: lint types tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

browser:
	tests/install_browser.sh

tests: setup browser
	$(BIN)/python -m pytest

docs: setup
	$(BIN)/python -m docs.make_cli
	$(BIN)/python -m docs.make_architecture

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
