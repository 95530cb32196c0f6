# `make quickstart` and `make test` need only Python (>= 3.11) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TEST := -m pytest tests --numprocesses=auto --maxprocesses=4 --dist=loadfile

.PHONY: quickstart test test-newest lint golden generated docs clean

quickstart: $(VENV)/installed
	$(BIN)/python -m looped_jax.main --config=experiments/quickstart.py

test: $(VENV)/installed-test lint
	$(BIN)/python $(TEST)
	$(BIN)/python $(TEST) -m exact_bits

# The newest releases of all packages, without TensorFlow, which follows late.
test-newest:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/pip install --quiet --upgrade --editable '.[test-core]'
	$(VENV)-newest/bin/python $(TEST)
	$(VENV)-newest/bin/python $(TEST) -m exact_bits

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: $(VENV)/installed-test
	$(BIN)/python tests/golden.py

# What is written from the code: BUILD, the map in docs/code.md, docs/config.md.
generated: $(VENV)/installed
	$(BIN)/python tests/build_file.py
	$(BIN)/python docs/code_map.py
	mkdir -p build
	$(BIN)/python -m looped_jax.config.reference > build/config.md
	mv build/config.md docs/config.md

docs: $(VENV)/installed-test
	$(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

clean:
	rm -rf $(VENV) $(VENV)-newest

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python setup.py constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: $(BIN)/python setup.py constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@ $(VENV)/installed
