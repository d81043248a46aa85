# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/demo
BIN := $(VENV)/bin
# pip compiles modules one after another, which takes longer than all else; here on every core.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

.PHONY: demo test lint docs notebooks clean

demo: $(VENV)/.installed
	$(BIN)/defection demo --out $(OUT)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --nbmake --nbmake-timeout=1800 notebooks tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	BIN=$(BIN) sh tests/structure.sh

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Executed again, in place, with the outputs that the documentation shows: half an hour on two cores.
notebooks: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb

# Plain (not editable) installs go stale; the marker depends on every file that is installed.
SOURCES := pyproject.toml constraints.txt $(shell find activations training probes experiments -type f -not -path '*/__pycache__/*')

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	$(INSTALL) .
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) ".[dev]"
	@$(COMPILE)
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
