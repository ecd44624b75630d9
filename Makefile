# Everything a user or a developer does, in one word each. `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LMMS := .venv-lmms
LM := .venv-lm
DOCS := .venv-docs
OTHER := .venv-transformers
TRITON := .venv-triton
CORE := tests/engine tests/families/test_engine.py tests/families/test_prompts.py tests/models
ARGS ?=

help: ## list these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## make .venv and install what is needed

$(READY): requirements.txt requirements-dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed. Set PYTHON to a Python 3.11 or newer."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(READY)

run: setup ## set up, then run the main job (ARGS="pruner=diversity stages=2" changes it)
	$(BIN)/python run.py $(ARGS)

test: setup ## set up, then run the tests that need no GPU, but for those that take long and rarely break
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not slurm and not long and not slow" -n 2 --dist loadfile $(ARGS)

test-long: setup ## those that take long: whole command lines, jobs of every family, notebooks, an installed wheel
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "(long or slow) and not gpu and not slurm" -n 2 --dist loadfile $(ARGS)

test-all: test test-long ## all tests that need no GPU

setup-lmms: $(LMMS)/.ready ## make .venv-lmms, with lmms-eval and what it pins, for task=lmms_eval

# torchvision, which lmms-eval asks for and works without, breaks transformers beside a CPU build of torch
$(LMMS)/.ready: requirements.txt requirements-lmms.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed. Set PYTHON to a Python 3.11 or newer."; exit 1; }
	test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	grep -v '^wandb==' requirements.txt > $(LMMS)/requirements.txt
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check -r $(LMMS)/requirements.txt -r requirements-lmms.txt
	$(LMMS)/bin/python -m pip uninstall --quiet --yes torchvision
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(LMMS)/.ready

setup-lm: $(LM)/.ready ## make .venv-lm, with lm-eval, for task=lm_eval

$(LM)/.ready: requirements.txt requirements-lm.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed. Set PYTHON to a Python 3.11 or newer."; exit 1; }
	test -x $(LM)/bin/python || $(PYTHON) -m venv $(LM)
	$(LM)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-lm.txt
	$(LM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(LM)/.ready

test-lm: setup-lm ## the tests that need lm-eval
	OMP_NUM_THREADS=1 $(LM)/bin/python -m pytest tests/lm $(ARGS)

test-lmms: setup-lmms ## the tests that need lmms-eval
	OMP_NUM_THREADS=1 $(LMMS)/bin/python -m pytest tests/lmms $(ARGS)

# the libraries of .venv, with another transformers in front of them: seconds to install
test-transformers: setup ## the core of the tests on another transformers: make test-transformers VERSION=5.20.0
	@test -n "$(VERSION)" || { echo "Say which: make test-transformers VERSION=5.20.0"; exit 1; }
	test -d $(OTHER)/$(VERSION) || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(OTHER)/$(VERSION) transformers==$(VERSION)
	OMP_NUM_THREADS=1 PYTHONPATH=$(OTHER)/$(VERSION):. $(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile $(CORE) $(ARGS)

# the libraries of .venv, with the Triton of that torch's CUDA builds in front of them: 200 MB, 690 unpacked
test-triton: setup ## the kernel's tests, by Triton's interpreter and its compiler; needs no GPU
	test -d $(TRITON)/triton || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(TRITON) triton==3.7.1
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 PYTHONPATH=$(TRITON):. $(BIN)/python -m pytest tests/ops/test_farthest_kernel.py $(ARGS)

test-gpu: setup ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

test-slurm: setup ## a sweep on a Slurm of one node that the test starts for itself (apt: slurmctld slurmd munge)
	$(BIN)/python -m pytest tests/slurm $(ARGS)

support: setup ## run every method on every family and write docs/support.md (ARGS="--pruner NAME": that one alone)
	cd tests && OMP_NUM_THREADS=1 PYTHONPATH=.:engine ../$(BIN)/python -m families.support $(ARGS)

# without --quiet, which hides warnings from --strict
docs: $(DOCS)/.ready ## build the site in site/ and check it: every link, every public docstring, nothing from elsewhere
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict $(ARGS)
	@echo "site/index.html; its search needs a server: $(BIN)/python -m http.server -d site"

$(DOCS)/.ready: requirements-docs.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed. Set PYTHON to a Python 3.11 or newer."; exit 1; }
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $(DOCS)/.ready

smoke: setup ## a small run of everything, in seconds
	$(BIN)/python run.py experiment=smoke $(ARGS)

lint: setup ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup ## let ruff put the code in form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

speed: setup ## the selection benchmark of experiments/speed
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.speed.selection $(ARGS)

.PHONY: help setup run test test-long test-all test-transformers test-triton setup-lmms test-lmms setup-lm test-lm test-slurm support test-gpu docs smoke lint format speed
