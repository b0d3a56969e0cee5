# make demo | test | test-slow | lint | bench | docs | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := skyloom-demo

.PHONY: demo test test-slow lint bench docs clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "skyloom needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# One stamp per set of dependencies: installed again when the build files or the compiled sources change.
SOURCES := pyproject.toml CMakeLists.txt $(wildcard src/skyloom/_kernels/*.[ch]pp)
$(VENV)/.installed: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install -q -e '.[progress]'
	touch $@
$(VENV)/.installed-%: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[progress,$*]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/skyloom demo --output $(DEMO) --overwrite

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench
	for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf build $(VENV) $(DEMO) docs/_build
