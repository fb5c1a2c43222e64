# make demo: install and see the phenomenon.  make test: install and run the tests.
# On Linux without a GPU: make demo PIP="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
VENV ?= .venv
PIP ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP) -c constraints.txt

.PHONY: demo test lint notebook clean

demo: $(VENV)/.installed
	$(BIN)/interp run repeated_tokens --out results/demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebook: $(VENV)/.installed-notebooks
	$(BIN)/jupyter lab notebooks

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a minute or two)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-%: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a minute or two)"
	$(INSTALL) -e ".[$*]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) results
