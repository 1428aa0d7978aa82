VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# Compiled once per environment; sagemaker-training has no wheel, so it is installed where there is a compiler.
COMPILER = $(shell command -v cc || command -v gcc)

.DEFAULT_GOAL := help
.PHONY: help install demo test unit lint types docs check soak bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

install: $(READY) ## make the virtual environment and install the package into it

$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(if $(COMPILER),$(BIN)/python -m pip install --quiet --editable '.[container]' || echo 'sagemaker-training did not install: its tests are skipped',@echo 'no C compiler: the tests of the SageMaker toolkit are skipped')
	touch $(READY)

demo: $(READY) ## run the whole job on photos from a PyPI wheel
	$(BIN)/tf-finetune demo

test: $(READY) ## run all tests but the long proofs
	$(BIN)/python -m pytest -m 'not soak'

unit: $(READY) ## run the tests that need no TensorFlow
	$(BIN)/python -m pytest tests/unit -m 'not soak'

lint: $(READY) ## check the style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY) ## check the types
	$(BIN)/mypy

docs: $(READY) ## write the generated parts of README.md anew
	$(BIN)/python tests/readme.py --write

check: lint types ## lint, types, generated docs current, all tests: what CI runs
	$(BIN)/python tests/readme.py --check
	$(BIN)/python -m pytest -m 'not soak'

soak: $(READY) ## run the long proofs
	$(BIN)/python -m pytest -m soak

bench: $(READY) ## measure against stock Keras, TF-Hub and scikit-learn, side by side (DATA=, TEXTS= folders, ONLY= sections)
	$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/run.py $(if $(DATA),--data $(DATA)) $(if $(TEXTS),--texts $(TEXTS)) $(if $(ONLY),--only $(ONLY)) $(ARGS)

clean: ## remove the virtual environment and what tools left behind
	rm -rf $(VENV) build *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache
