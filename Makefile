# Tasks of the project; `make help` lists them. All of them run in .venv, installed from the exact pins in requirements/;
# where pip looks is up to its own configuration (PIP_EXTRA_INDEX_URL and the like). Stamp files in .venv remember what
# is installed, so that a second run starts at once.
PYTHON ?= python3
# As MORLFAST_CUDA in CMakeLists.txt: AUTO builds the CUDA kernels when nvcc is found, ON requires it, OFF leaves them out.
CUDA ?= AUTO
# ON treats the compiler's warnings as errors.
WERROR ?= OFF

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := CMakeLists.txt pyproject.toml README.md $(shell find csrc cmake python -type f -not -name '*.pyc' 2>/dev/null)
CXX_SOURCES := $(shell find csrc tests -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' | grep -v third_party)
INSTALLED := $(VENV)/morlfast-$(CUDA)-$(WERROR).stamp

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# ---- what a user runs ----

.PHONY: demo
demo: $(INSTALLED) ## learn Deep Sea Treasure on the CPU; writes demo/
	$(BIN)/python -m morlfast demo --out demo

.PHONY: test
test: $(INSTALLED) $(VENV)/test.stamp ## the ordinary test suite
	$(BIN)/python -m pytest $(SEPARATE:%=--ignore=%)

# Suites with a process, a compiler or an hour of their own.
SEPARATE := tests/triton tests/cuda tests/cuda_on_cpu tests/integrations tests/trainers

# Their pins conflict, so that each trainer has a folder of its own in front of the common environment.
TRAINERS := $(basename $(notdir $(wildcard requirements/trainers/*.txt)))
.PHONY: integrations
integrations: $(INSTALLED) $(VENV)/integrations.stamp $(TRAINERS:%=trainer-%) ## drop-ins against the libraries they stand in for
	$(BIN)/python -m pytest tests/integrations

.PHONY: $(TRAINERS:%=trainer-%)
$(TRAINERS:%=trainer-%): trainer-%: $(INSTALLED) $(VENV)/test.stamp $(VENV)/trainer-%.stamp
	PYTHONPATH=$(CURDIR)/$(VENV)/trainers/$* $(BIN)/python -m pytest tests/trainers/test_$(subst -,_,$*)*.py

# ---- how a kernel is trusted, without a GPU ----

.PHONY: triton
triton: $(INSTALLED) $(VENV)/test.stamp ## Triton kernels in the interpreter
	$(BIN)/python -m pytest tests/triton/test_interpreter.py

.PHONY: compile-gate
compile-gate: $(INSTALLED) $(VENV)/test.stamp ## every kernel compiled: no spills, registers within budget (ARCHS=all for all)
	MORLFAST_ALL_ARCHS=$(if $(filter all,$(ARCHS)),1,0) $(BIN)/python -m pytest tests/triton/test_compile.py tests/cuda

.PHONY: cuda-on-cpu
cuda-on-cpu: $(VENV)/test.stamp ## the CUDA kernels run on the CPU, under the address and thread sanitizers
	$(BIN)/python -m pytest tests/cuda_on_cpu

SANITIZED := build/sanitize
.PHONY: sanitize-build
sanitize-build: $(VENV)/packaging.stamp
	$(BIN)/cmake -S tests/cpp -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DMORLFAST_WERROR=$(WERROR)
	$(BIN)/cmake --build $(SANITIZED)

.PHONY: sanitize
sanitize: sanitize-build ## the C++ core under the address, undefined-behaviour and leak sanitizers
	OMP_NUM_THREADS=1 MORLFAST_SIMD=baseline $(SANITIZED)/driver
	OMP_NUM_THREADS=2 $(SANITIZED)/driver

SECONDS_OF_FUZZING ?= 600
SEED ?= $(shell date +%s)
.PHONY: fuzz
fuzz: sanitize-build ## random calls of the C++ core under the sanitizers (SECONDS_OF_FUZZING=600 SEED=...)
	OMP_NUM_THREADS=2 $(SANITIZED)/driver --fuzz $(SECONDS_OF_FUZZING) --seed $(SEED)

.PHONY: packaging
packaging: $(VENV)/packaging.stamp ## wheels and sdist: contents, ABI, build options, C++ users
	$(BIN)/python -m pytest tests/packaging

# ---- style ----

.PHONY: lint
lint: $(VENV)/lint.stamp ## ruff, clang-format, clang-tidy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/cmake -S . -B build/tidy -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DMORLFAST_PYTHON=OFF -DMORLFAST_CUDA=OFF \
		-DCMAKE_EXPORT_COMPILE_COMMANDS=ON >/dev/null
	printf '%s\n' csrc/cpu/*.cpp | xargs -P 2 -n 1 $(BIN)/clang-tidy --quiet -p build/tidy \
		--extra-arg=-idirafter$$($${CXX:-c++} -print-file-name=include) --warnings-as-errors='*'

.PHONY: format
format: $(VENV)/lint.stamp ## rewrite the sources as the linters want them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

.PHONY: types
types: $(INSTALLED) $(VENV)/lint.stamp ## mypy --strict, and the stub that the build generated
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/packaging/test_types.py

# ---- before a release ----

.PHONY: oldest
oldest: ## the suite on the oldest Python and torch of the metadata: PYTHON310=python3.10 (downloads gigabytes)
	$(PYTHON310) -c 'import sys; assert sys.version_info[:2] == (3, 10), sys.version'
	$(PYTHON310) -m venv build/oldest
	grep -hvE '^(-|torch=|triton=)' requirements/demo.txt requirements/test.txt > build/oldest.txt
	build/oldest/bin/python -m pip install --quiet -c requirements/constraints.txt -r build/oldest.txt torch==2.10.0
	build/oldest/bin/python -m pip install --quiet --no-deps --config-settings=cmake.define.MORLFAST_CUDA=OFF .
	build/oldest/bin/python -m pytest $(SEPARATE:%=--ignore=%)

.PHONY: full
full: ## everything, for all architectures
	$(MAKE) lint types test integrations sanitize fuzz triton cuda-on-cpu packaging demo
	$(MAKE) compile-gate ARCHS=all

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf .venv build dist demo

# ---- the environment ----

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("morlfast needs Python >= 3.10: make PYTHON=..." if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/%.stamp: requirements/%.txt requirements/demo.txt requirements/test.txt requirements/constraints.txt | $(BIN)/python
	$(PIP) install -r $<
	@touch $@

# MORL-Baselines comes alone: a pip requirement cannot say --no-deps for itself.
$(VENV)/integrations.stamp: requirements/integrations.txt requirements/integrations-alone.txt requirements/demo.txt \
		requirements/test.txt requirements/constraints.txt | $(BIN)/python
	$(PIP) install -r $<
	$(PIP) install --no-deps -r requirements/integrations-alone.txt
	@touch $@

$(VENV)/trainer-%.stamp: requirements/trainers/%.txt | $(BIN)/python
	rm -rf $(VENV)/trainers/$*
	$(PIP) install --no-deps --target $(VENV)/trainers/$* -r $<
	@touch $@

# --no-deps: what it depends on is installed above, at its pins.
$(INSTALLED): $(SOURCES) | $(VENV)/demo.stamp
	$(PIP) install --no-deps --config-settings=cmake.define.MORLFAST_CUDA=$(CUDA) \
		--config-settings=cmake.define.MORLFAST_WERROR=$(WERROR) .
	@rm -f $(VENV)/morlfast-*.stamp
	@touch $@
