# make demo · make test · make test-kernels · make test-full · make lint · make bench · make bench-check · make clean
#
# Needs Python 3.10 to 3.13, a C++17 compiler (`make test`: C++20) and make; all else comes from PyPI
# into .venv.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet --disable-pip-version-check -c constraints.txt
BUILD := build

RECIPE := pyproject.toml constraints.txt CMakeLists.txt
NATIVE := $(shell find csrc -type f)
PACKAGES := engine kernels export benchmarks
SOURCES := $(shell find $(PACKAGES) -type f -not -path '*/__pycache__/*')

.PHONY: help demo test test-packages test-models test-kernels test-interpreted test-compiled test-full lint tidy analyze types ctest sanitize bench bench-check clean

help:
	@sed -n '1,4s/^# //p' Makefile

# --- environments -----------------------------------------------------------------------------

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed (on Debian: apt install python3-venv)" >&2; exit 1; }

# What builds the package, so that it need not be fetched again for every build; and on a machine
# without an NVIDIA GPU torch's CPU build, some 200 MB rather than 3 GB.
TORCH_CPU := https://download.pytorch.org/whl/cpu

$(VENV)/.build-tools: constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV); the first time this takes some minutes."
	$(INSTALL) scikit-build-core pybind11 cmake ninja
	command -v nvidia-smi > /dev/null \
	  || $(INSTALL) --no-deps --retries 1 --index-url $(TORCH_CPU) torch \
	  || echo "No CPU build of torch could be had from $(TORCH_CPU); taking PyPI's." >&2
	touch $@

# The package and what it needs to run.
$(VENV)/.installed: $(RECIPE) $(NATIVE) | $(VENV)/.build-tools
	$(INSTALL) --no-build-isolation -e .
	touch $@

# And what its tests need.
$(VENV)/.installed-dev: $(RECIPE) $(NATIVE) | $(VENV)/.build-tools
	$(INSTALL) --no-build-isolation -e '.[dev]'
	touch $(VENV)/.installed $@

# The wheel, and a folder it is unpacked in for those that look at what users get.
$(BUILD)/wheel/.built: $(RECIPE) $(NATIVE) $(SOURCES) README.md LICENSE | $(VENV)/.installed-dev
	rm -rf $(BUILD)/wheel $(BUILD)/site && mkdir -p $(BUILD)
	$(BIN)/python -m build --wheel --no-isolation --outdir $(BUILD)/wheel . > $(BUILD)/wheel.log 2>&1 \
	  || { cat $(BUILD)/wheel.log; exit 1; }
	$(PIP) install --quiet --no-deps --target $(BUILD)/site $(BUILD)/wheel/*.whl
	touch $@

# --- what people run --------------------------------------------------------------------------

DEMO_PROMPT ?= a large orange circle moving right on a gray background

# One clip and a contact sheet of it; prints time to first frame, frames a second, peak memory.
demo: $(VENV)/.installed
	@mkdir -p out
	$(BIN)/livereel generate "$(DEMO_PROMPT)" --seed 1 -o out/demo.mp4 --sheet out/demo.png

ORDINARY := not gpu and not interpreter and not compile

# What only computes is tested in two processes side by side; what waits and is waited for, alone.
PACKAGED := tests/export tests/engine/runners
COMPUTED := $(addprefix tests/engine/,checkpoint demo layers models sampling)

test: lint types ctest test-kernels $(BUILD)/wheel/.built
	$(MAKE) --no-print-directory -j2 --output-sync=target test-packages test-models
	$(BIN)/pytest -m "$(ORDINARY) and not slow" --wheel=$(BUILD)/wheel \
	  $(addprefix --ignore=,$(PACKAGED) $(COMPUTED))

test-packages test-models: $(VENV)/.installed-dev
test-packages: PARTS := $(PACKAGED)
test-models: PARTS := $(COMPUTED)
test-packages test-models:
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "$(ORDINARY) and not slow" $(PARTS)

# Ray is large; only its slow tests need it.
$(VENV)/.installed-ray: constraints.txt | $(VENV)/.installed-dev
	$(INSTALL) 'ray[serve]'
	touch $@

test-full: lint analyze types ctest sanitize test-kernels $(BUILD)/wheel/.built $(VENV)/.installed-ray
	$(BIN)/pytest -m "$(ORDINARY)" --timeout 7200 --wheel=$(BUILD)/wheel
	$(MAKE) --no-print-directory bench-check

# Triton's kernels without a GPU, side by side: what they compute, alone and in the models, and what
# they compile to.
INTERPRETED := tests/kernels $(shell grep -rl mark.interpreter tests/engine tests/benchmarks)

test-kernels: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory -j2 --output-sync=target test-interpreted test-compiled

test-interpreted: $(VENV)/.installed-dev
	TRITON_INTERPRET=1 $(BIN)/pytest -m "interpreter and not gpu" $(INTERPRETED)

test-compiled: $(VENV)/.installed-dev
	$(BIN)/pytest -m "compile and not gpu" tests/kernels

lint: tidy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(find csrc tests/csrc -name '*.cpp' -o -name '*.h')
	$(BIN)/lint-imports --no-logo

# clang-tidy on the C++ core, its binding and its tests. Its analyzer, which follows every path and
# takes twice as long as all else, is for `make test-full`.
tidy: CHECKS := -clang-analyzer-*
analyze: CHECKS := -*,clang-analyzer-*
tidy analyze: $(VENV)/.installed-dev
	$(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DLIVEREEL_TESTS=ON \
	  -DLIVEREEL_RUNTIME=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	  -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" -S . -B $(BUILD)/tidy > /dev/null
	find csrc tests/csrc -name '*.cpp' -print0 \
	  | xargs -0 -P 2 -n 1 $(BIN)/clang-tidy --quiet --checks='$(CHECKS)' -p $(BUILD)/tidy

# Types as users see them: on the built wheel, for the oldest and the newest Python.
types: $(BUILD)/wheel/.built
	printf '%s\n' 3.10 3.13 | MYPYPATH=$(BUILD)/site xargs -P 2 -I {} \
	  $(BIN)/mypy --python-version {} $(PACKAGES:%=-p livereel.%)

CMAKE_TESTS := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
  -DLIVEREEL_PYTHON=OFF -DLIVEREEL_TESTS=ON

ctest: $(VENV)/.installed-dev
	$(CMAKE_TESTS) -S . -B $(BUILD)/csrc > /dev/null
	$(BIN)/cmake --build $(BUILD)/csrc
	$(BIN)/ctest --test-dir $(BUILD)/csrc --output-on-failure

sanitize: $(VENV)/.installed-dev
	$(CMAKE_TESTS) -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLIVEREEL_SANITIZE=address,undefined \
	  -S . -B $(BUILD)/csrc-sanitize > /dev/null
	$(BIN)/cmake --build $(BUILD)/csrc-sanitize
	$(BIN)/ctest --test-dir $(BUILD)/csrc-sanitize --output-on-failure
	$(CMAKE_TESTS) -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLIVEREEL_SANITIZE=thread \
	  -S . -B $(BUILD)/csrc-threads > /dev/null
	$(BIN)/cmake --build $(BUILD)/csrc-threads --target test_frame_ring test_threads
	TSAN_OPTIONS=die_after_fork=0 $(BIN)/ctest --test-dir $(BUILD)/csrc-threads \
	  -R '^(frame_ring|threads)$$' --output-on-failure

bench: $(VENV)/.installed-dev
	$(BIN)/python -m livereel.benchmarks.bench_peer

# Whether the demo's stream has lost more than 30 % of its lead over a plain loop in the same run.
# What ran in another dtype or on another road than the committed result is not compared.
RATIOS := benchmarks/results/demo-cpu-stream.json

bench-check: $(VENV)/.installed-dev
	@mkdir -p $(BUILD)
	$(BIN)/livereel bench stream --runs 12 --baseline loop --json $(BUILD)/ratios.json
	$(BIN)/livereel bench compare --ratios --by 30 $(RATIOS) $(BUILD)/ratios.json

clean:
	rm -rf $(BUILD) dist out .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
