# make demo: install and see the phenomenon.  make test: install and run the tests.
# On Linux without a GPU: make demo PIP="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
VENV ?= .venv
PIP ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP) -c constraints.txt

.PHONY: demo test lint notebook figures docs filter clean

demo: $(VENV)/.installed
	$(BIN)/interp run repeated_tokens --out results/demo
	@echo "writing the report (about a minute; interrupted, the same command goes on)"
	$(BIN)/interp report --out results/report

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope

lint: $(VENV)/.installed-dev filter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# every picture under figures/, with the result that it is drawn from; interp/gallery/entries.py lists them
figures: $(VENV)/.installed-figures
	$(BIN)/interp figures

# a page for every module, in build/api
docs: $(VENV)/.installed-docs
	$(BIN)/python scripts/api_pages.py build/api

# notebooks go into git without their outputs, which stay on the screen
filter:
	@if test -e .git; then git config filter.notebooks.clean "$(PYTHON) scripts/strip_notebooks.py"; fi 2>/dev/null || true

notebook: $(VENV)/.installed-notebooks filter
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
