# make demo | test | check | docs | bench | bench-quick: each does all of its set-up in .venv; Python 3.11 or newer, pip and make are enough.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiling all of torch, diffusers and transformers takes longer than the tests take to compile what they import.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable
BUILT := pyproject.toml constraints.txt $(wildcard src/reverie/runtime/c/*)
RUN := film,sound,server,mcp
TEST := $(RUN),gguf,faiss,c2pa,train,test

.PHONY: help demo test lint check docs bench bench-quick models clean

help:
	@echo "make demo    draw a panda with the bundled model"
	@echo "make test    run the tests, or TESTS=tests/requests"
	@echo "make lint    check format, style and types"
	@echo "make check   lint and test, as scripts/check does"
	@echo "make docs    write the documentation as a site into out/docs, links checked"
	@echo "make bench   measure beside its peers (half an hour; BENCH=--quick for two minutes)"
	@echo "make bench-quick   the main ratios in two minutes, to see whether anything became slower"
	@echo "make models  train the bundled models of pictures from nothing, resumable (hours)"

demo: $(VENV)/.run
	$(BIN)/reverie image "a panda on a green background" -o demo.png --seed 7
	@echo "The picture is $(CURDIR)/demo.png"

# All tests are shared out to the cores; the ones that TESTS names run at once, in one process.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(or $(TESTS),-n logical --dist worksteal)

lint: $(VENV)/.dev
	scripts/check lint

check: $(VENV)/.dev
	scripts/check

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The site is $(CURDIR)/out/docs/index.html"

bench: $(VENV)/.test
	$(BIN)/python benchmarks/bench.py $(BENCH)

bench-quick: $(VENV)/.test
	$(BIN)/python benchmarks/quick.py

models: $(VENV)/.dev
	$(BIN)/python scripts/models.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

# Debian's Python may lack ensurepip (package python3-venv); pip can fill the environment from outside.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }

# One installation is enough: a larger one stands for the smaller.
$(VENV)/.run: $(BUILT) | $(BIN)/python
	$(PIP) ".[$(RUN)]"
	@touch $@

$(VENV)/.test: $(BUILT) | $(BIN)/python
	$(PIP) ".[$(TEST)]"
	@touch $(VENV)/.run $@

$(VENV)/.dev: $(BUILT) | $(BIN)/python
	$(PIP) ".[$(TEST),dev]"
	@touch $(VENV)/.run $(VENV)/.test $@

$(VENV)/.docs: $(BUILT) | $(BIN)/python
	$(PIP) ".[$(RUN),docs]"
	@touch $(VENV)/.run $@
