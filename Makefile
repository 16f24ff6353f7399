# make demo   set up .venv, install, and run the seven commands on the built-in sample data
# make test   the same environment with the test extras: lint, types, all tests
# make docs   build the documentation site into build/site; warnings are errors
# make kill   kill commands at random moments and check that nothing is lost, docs/reliability.md; some minutes
# make scale  run training, eval and predict as jobs of 2 and 4 processes, docs/scale.md; some minutes
# make fuzz   feed 50,000 mutated files to every reader, docs/reliability.md; some minutes
# make long   import, train on and predict 10,000 photos, and watch the memory; some minutes
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test docs kill scale fuzz long clean

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/quickstart.sh

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -q --numprocesses 2 --dist loadfile

docs: $(VENV)/.installed-docs
	$(BIN)/python -m mkdocs build --strict

kill: $(VENV)/.installed-test
	$(BIN)/python tests/kill.py resume --kills 20
	$(BIN)/python tests/kill.py commands --kills 100

scale: $(VENV)/.installed-test
	$(BIN)/python tests/scale.py equal --ranks 2,4
	$(BIN)/python tests/scale.py kill --ranks 2,4

fuzz: $(VENV)/.installed-test
	$(BIN)/python tests/fuzz.py --inputs 50000

long: $(VENV)/.installed-test
	$(BIN)/python tests/long.py --photos 10000

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "zsseg needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "python3 -m venv failed; install it (Debian: python3-venv), then run make again" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing zsseg with PyTorch: some gigabytes, a few minutes"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	@echo "installing zsseg with PyTorch and the test tools: some gigabytes, a few minutes"
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	@echo "installing zsseg with PyTorch and the documentation's tools: some gigabytes, a few minutes"
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) demo build/site
