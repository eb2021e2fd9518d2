# Everything here is made on first use and kept. Variables: `make demo EXTRA=cuda12`, `make test PYTEST_ARGS="-k rope"`.

# Python 3.11 or newer. The oldest tested versions need 3.11 or 3.12; the newest JAX may need a newer one.
PYTHON ?= python3
PYTHON_OLDEST ?= $(PYTHON)
PYTHON_NEWEST ?= $(PYTHON)
# cuda12, cuda13 or tpu: which JAX to install. Without it JAX runs on the CPU.
EXTRA ?=
PYTEST_ARGS ?=
# The tests of a file stay in one process, as they share what they compile and train.
# EQJAX_TEST_PLATFORM=cuda runs them on a GPU, which one process holds.
EQJAX_TEST_PLATFORM ?= cpu
export EQJAX_TEST_PLATFORM
PYTEST = -m pytest --numprocesses=$(if $(filter cpu,$(EQJAX_TEST_PLATFORM)),2,0) --dist=loadfile --no-loadscope-reorder
VENV ?= .venv
VENV_OLDEST ?= .venv-oldest
VENV_NEWEST ?= .venv-newest
OUTPUT ?= outputs/train_demo
# The GPU compiler: JAX's CUDA plugin alone, beside the environment, so that nothing else finds a GPU that is not there.
GPU_COMPILER ?= .cache/gpu-compiler
GPU_ARGS ?= sampling --config=L --batch_size=64 --dtype=bfloat16

# Stamps: an environment is installed into again when its requirements or EXTRA change.
INSTALLED = $(VENV)/installed$(addprefix -,$(EXTRA))
INSTALLED_DEV = $(INSTALLED)-dev
INSTALLED_OLDEST = $(VENV_OLDEST)/installed
COMMA := ,

.PHONY: help demo serve train-demo test test-slow gpu-compile test-gpu-compile browser test-oldest test-newest
.PHONY: notebooks docs dist lint clean

help:  ## Lists the targets.
	@echo "make TARGET [EXTRA=cuda12|cuda13|tpu] [PYTHON=python3.12] [PYTEST_ARGS=…]"
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

demo: $(INSTALLED)  ## Samples images and a panorama with the weights in this repository.
	$(VENV)/bin/eqjax demo

serve: $(INSTALLED)  ## Serves the page on which a panorama grows, at http://localhost:7860/.
	$(VENV)/bin/eqjax serve

# After so short a training, guidance makes the difference between coins and bricks.
train-demo: $(INSTALLED)  ## Trains both stages from scratch on built-in photographs (6 to 10 minutes on 2 CPU cores) and samples.
	$(VENV)/bin/eqjax train-tokenizer --config=photos_tokenizer:quick --workdir=$(OUTPUT)/tokenizer
	$(VENV)/bin/eqjax train-generator --config=photos_generator:quick --workdir=$(OUTPUT)/generator \
		--config.tokenizer_weights=$(OUTPUT)/tokenizer
	$(VENV)/bin/eqjax demo --weights=$(OUTPUT)/tokenizer,$(OUTPUT)/generator --guidance_scale=2 \
		--output=$(OUTPUT)/samples

test: $(INSTALLED_DEV)  ## Runs the tests.
	$(VENV)/bin/python $(PYTEST) $(PYTEST_ARGS)

test-slow: $(INSTALLED_DEV)  ## Runs the tests that take minutes: all meshes, kills, several processes.
	$(VENV)/bin/python $(PYTEST) -m slow $(PYTEST_ARGS)

gpu-compile: $(GPU_COMPILER)/installed  ## Compiles for a GPU without one (0.6 GB of packages): GPU_ARGS="training --config=L".
	PYTHONPATH=$(GPU_COMPILER) $(VENV)/bin/python -m eqjax gpu-compile $(GPU_ARGS)

test-gpu-compile: $(INSTALLED_DEV) $(GPU_COMPILER)/installed  ## Compares programs compiled for GPUs with their budgets (minutes).
	PYTHONPATH=$(GPU_COMPILER) $(VENV)/bin/python -m pytest -m gpu_compiler $(PYTEST_ARGS) tests/perf/test_gpu_budgets.py

browser:  ## Installs the browser that the slow tests of the page drive (Debian, Ubuntu).
	for name in chromium chromium-browser google-chrome chrome; do command -v $$name && exit; done; \
	install="$(if $(filter-out 0,$(shell id -u)),sudo )apt-get"; \
	$$install install --yes chromium || { $$install update && $$install install --yes chromium; }

test-oldest: $(INSTALLED_OLDEST)  ## Runs the tests with the oldest supported versions (tests/oldest.txt).
	$(VENV_OLDEST)/bin/python $(PYTEST) $(PYTEST_ARGS)

test-newest:  ## Runs the tests with the newest releases of everything; PYTHON_NEWEST chooses the Python.
	@echo "Installing the newest releases into $(VENV_NEWEST)."
	$(PYTHON_NEWEST) -m venv $(VENV_NEWEST)
	$(VENV_NEWEST)/bin/python -m pip install --quiet --no-compile --upgrade --upgrade-strategy eager --editable '.[dev]'
	$(VENV_NEWEST)/bin/python $(PYTEST) $(PYTEST_ARGS)

notebooks: $(INSTALLED_DEV)  ## Builds the notebooks in colabs/ from their sources.
	$(VENV)/bin/python -m colabs.build

dist: $(INSTALLED_DEV)  ## Builds a wheel and an archive of the sources in dist/.
	rm -rf build dist
	$(VENV)/bin/python -m build --outdir dist .

lint: $(INSTALLED_DEV)  ## Checks code, formatting and types.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

docs: $(INSTALLED_DEV)  ## Builds the documentation into .cache/docs/html; warnings are errors.
	$(VENV)/bin/python -m sphinx -q -W --keep-going -d .cache/docs/doctrees .docs .cache/docs/html
	@echo "Open .cache/docs/html/index.html"

clean:  ## Removes the environments, caches and outputs/.
	rm -rf .docs/generated .docs/tutorials/notebooks
	rm -rf $(VENV) $(VENV_OLDEST) $(VENV_NEWEST) .cache outputs build dist eqjax.egg-info

# No dependencies: neither CUDA's libraries nor another JAX.
$(GPU_COMPILER)/installed: $(INSTALLED)
	version=$$($(VENV)/bin/python -c "import jax; print(jax.__version__)"); \
	$(VENV)/bin/python -m pip install --quiet --no-compile --no-deps --upgrade --target $(GPU_COMPILER) \
		jax-cuda12-plugin==$$version jax-cuda12-pjrt==$$version nvidia-cuda-nvcc-cu12
	touch $@

# pip need not compile what is never imported: Python does it at the first import.
$(INSTALLED): requirements.txt pyproject.toml setup.py
	@echo "Installing into $(VENV); this takes a minute or two, once."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile --editable '.[photos,serve$(addprefix $(COMMA),$(EXTRA))]'
	touch $@

$(INSTALLED_DEV): requirements.txt pyproject.toml setup.py
	@echo "Installing into $(VENV); this takes a minute or two, once."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile --editable '.[dev$(addprefix $(COMMA),$(EXTRA))]'
	touch $(INSTALLED) $@

$(INSTALLED_OLDEST): requirements.txt pyproject.toml setup.py tests/oldest.txt
	@echo "Installing into $(VENV_OLDEST); this takes a minute or two, once."
	$(PYTHON_OLDEST) -m venv $(VENV_OLDEST)
	$(VENV_OLDEST)/bin/python -m pip install --quiet --no-compile --constraint tests/oldest.txt --editable '.[dev]'
	touch $@
