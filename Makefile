VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# Compiled once per environment; sagemaker-training has no wheel, so it is installed where there is a compiler.
COMPILER = $(shell command -v cc || command -v gcc)
# Two processes: most of a test's time is a process's start-up or TensorFlow on one core. A file stays in one of them.
SPREAD = -n 2 --dist loadfile --no-loadscope-reorder
# Environments with other versions: tests/versions/ says which, and here is the Python that each of them wants.
OLDEST = .venv-oldest
AWS = .venv-aws-2.19 .venv-aws-2.21
OLDEST_PYTHON ?= $(call started,3.10)
AWS_PYTHON ?= $(call started,3.12)
# A Python that starts (a shim of pyenv may be there and refuse), pyenv's own, or else the usual one.
started = $(shell for it in python$(1) "$$(pyenv root 2>/dev/null)"/versions/$(1).*/bin/python$(1) $(PYTHON); do \
	"$$it" -c '' 2>/dev/null && echo "$$it" && break; done)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-oldest test-aws unit lint types docs check soak bench lock image train-local serve-local predict-local clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 15

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
	$(BIN)/python -m pytest -m 'not soak' $(SPREAD)

test-oldest: $(OLDEST)/.ready ## run all tests with the lowest versions that setup.cfg allows, on Python 3.10 if it is there (ONLY=tests/unit)
	$(OLDEST)/bin/python -m pytest -m 'not soak' $(SPREAD) $(ONLY)

test-aws: $(AWS:=/.ready) ## run all tests with the versions of AWS's TensorFlow 2.19 and 2.21 training images (ONLY=)
	for it in $(AWS); do echo "== $$it"; $$it/bin/python -m pytest -m 'not soak' $(SPREAD) $(ONLY) || failed="$$failed $$it"; done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

$(OLDEST)/.ready: setup.cfg pyproject.toml tests/versions/oldest.txt
	@$(OLDEST_PYTHON) -c 'import sys; sys.version_info[:2] == (3, 10) or print("no Python 3.10 here: taking", sys.version)'
	test -x $(OLDEST)/bin/python || $(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet --constraint tests/versions/oldest.txt \
		--requirement tests/versions/tools.txt --editable '.[text,kaggle,litert,onnx]'
	$(call toolkit,$(OLDEST),oldest)
	touch $@

# What the image has, then what a job has pip install there, and the package without what else it declares: a job from
# `tf-finetune submit` brings tensorflow-hub for hubs only.
.venv-aws-%/.ready: setup.cfg pyproject.toml tests/versions/aws-%.txt tests/versions/tools.txt
	@$(AWS_PYTHON) -c 'import sys; sys.version_info[:2] == (3, 12) or print("no Python 3.12 here: taking", sys.version)'
	test -x $(@D)/bin/python || $(AWS_PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	grep -v sagemaker-training tests/versions/aws-$*.txt > $(@D)/image.txt
	$(@D)/bin/python -m pip install --quiet --requirement $(@D)/image.txt
	$(@D)/bin/python -c 'from tf_finetune.launch import code; print(code.requirements("$*", False, False))' > $(@D)/job.txt
	$(@D)/bin/python -m pip install --quiet --constraint tests/versions/aws-$*.txt \
		--requirement $(@D)/job.txt --requirement tests/versions/tools.txt
	$(@D)/bin/python -m pip install --quiet --no-deps --editable .
	$(call toolkit,$(@D),aws-$*)
	touch $@

toolkit = $(if $(COMPILER),$(1)/bin/python -m pip install --quiet --constraint tests/versions/$(2).txt sagemaker-training \
	|| echo 'sagemaker-training did not install: its tests are skipped',@echo 'no C compiler: the toolkit tests are skipped')

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
	$(BIN)/python -m pytest -m 'not soak' $(SPREAD)

soak: $(READY) ## run the long proofs
	$(BIN)/python -m pytest -m soak

bench: $(READY) ## measure against stock Keras, TF-Hub and scikit-learn, side by side (DATA=, TEXTS= folders, ONLY= sections)
	$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/run.py $(if $(DATA),--data $(DATA)) $(if $(TEXTS),--texts $(TEXTS)) $(if $(ONLY),--only $(ONLY)) $(ARGS)

lock: ## write the exact versions that the image installs anew, from setup.cfg
	test -x $(VENV)/lock/bin/uv || { $(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/python -m pip install --quiet uv; }
	$(VENV)/lock/bin/python container/lock.py

# These read the variables of make's command line. They need docker, podman or buildah, and Python alone.
image: ## build the container image (BASE_IMAGE=, TENSORFLOW='tensorflow[and-cuda]', BACKBONES=, IMAGE=name)
	@$(PYTHON) container/local.py image

train-local: ## train in the image (DATA=folder OUT=folder; HYPERPARAMETERS='epochs=3', VALIDATION=, TEST=, MODEL=)
	@$(PYTHON) container/local.py train

serve-local: ## serve a model in the image (MODEL=folder or model.tar.gz; PORT=8080)
	@$(PYTHON) container/local.py serve

predict-local: ## ask the model that serve-local serves (FILE=photo, or .txt, .csv, .json, .jsonl; PORT=8080)
	@$(PYTHON) container/local.py predict

clean: ## remove the virtual environments and what tools left behind
	rm -rf $(VENV) $(OLDEST) $(AWS) build *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache
