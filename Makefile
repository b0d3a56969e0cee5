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
	@echo "Installing skyloom into $(VENV); the compiler takes some minutes."
	$(BIN)/python -m pip install -q -e '.[progress]'
	touch $@
# The packages of an extra alone, without building skyloom again.
LIST_EXTRA := import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")
$(VENV)/.installed-%: $(VENV)/.installed
	$(BIN)/python -c '$(LIST_EXTRA)' $* > $(VENV)/extra-$*.txt
	$(BIN)/python -m pip install -q -r $(VENV)/extra-$*.txt
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
