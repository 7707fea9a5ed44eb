# make demo    install the light package into .venv and run the main job on the bundled model
# make test    install what tests need, lint, run every test
# make lint    formatting, lint, types, import rules
# make format  format Python and C++
# make native  compile the kernels: the module in .venv, and their own test program, which is run
# make neon    the same for 64-bit Arm: cross-compiled, and run under qemu
# make light   install the built wheel alone, with nothing but its dependencies, and try it
# make app     build the phone app into the package; needs Node 18 or newer and npm
# make docs    write the generated pages again
# make clean   remove what was built, .venv included

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
DEMO_DEVICE := raspberry-pi-zero-2w
# Files of tests that run side by side. More take more memory: each has a PyTorch of its own.
TESTS_AT_ONCE := 2
# In this budget the plan that keeps 32-bit weights does not fit.
DEMO_RAM_MIB := 80
DEMO_PROMPT := def read_json(path):\n    with open(path) as f:

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
NATIVE := $(shell find native -name '*.cpp' -o -name '*.h')
BUILT_FROM := pyproject.toml CMakeLists.txt constraints.txt src/haversack/core/method.py native/CMakeLists.txt $(NATIVE)

.PHONY: help demo test lint native neon light app docs format clean

help:
	@sed -n 's/^# make/  make/p' Makefile

$(VENV)/.made:
	@python=$$(tools/prerequisites.sh) && echo "making $(VENV) with $$python" && "$$python" -m venv $(VENV)
	@$(PIP) install --upgrade pip
	@touch $@

# Editable, so that a changed Python file needs nothing. The build tools stay in .venv (no build isolation), so that
# a changed kernel is compiled again, and only it.
BUILD_TOOLS := 'scikit-build-core>=0.11' 'nanobind>=2.4' 'ninja>=1.11' 'cmake>=3.20'
# What packages that come as source alone are built with: jericho, behind textworld.
SOURCE_TOOLS := setuptools wheel
$(VENV)/.light: $(VENV)/.made $(BUILT_FROM)
	@tools/prerequisites.sh >/dev/null
	@echo "installing haversack: its dependencies, and its kernels compiled"
	@$(PIP) install -c constraints.txt $(BUILD_TOOLS)
	@$(PIP) install -c constraints.txt --no-build-isolation --editable .
	@touch $@

$(VENV)/.tests: $(VENV)/.light
	@echo "installing what the tests need: PyTorch, transformers, the linters"
	@$(PIP) install -c constraints.txt $(SOURCE_TOOLS)
	@$(PIP) install -c constraints.txt --no-build-isolation --editable '.[dev,workshop]'
	@touch $@

demo: $(VENV)/.light
	@mkdir -p $(DEMO)
	@echo '$$ haversack pack code --device $(DEMO_DEVICE) --ram-mib $(DEMO_RAM_MIB) -o $(DEMO)/code.pack'
	@$(BIN)/haversack pack code --device $(DEMO_DEVICE) --ram-mib $(DEMO_RAM_MIB) -o $(DEMO)/code.pack
	@echo
	@echo "\$$ haversack run $(DEMO)/code.pack --prompt \$$'$(DEMO_PROMPT)' --repetition-penalty 1.1 --max-tokens 40"
	@$(BIN)/haversack run $(DEMO)/code.pack --prompt $$'$(DEMO_PROMPT)' --repetition-penalty 1.1 --max-tokens 40
	@echo
	@echo 'The report: $(DEMO)/code.pack/report.html'

test: $(VENV)/.tests
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile --durations=40 --durations-min=5 tests

lint: $(VENV)/.tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

FIND_CMAKE = cmake=$$([ -x $(BIN)/cmake ] && echo $(BIN)/cmake || command -v cmake) || \
	{ echo "cmake is missing; run: make test (which installs it), or apt install cmake" >&2; exit 2; }

native: $(VENV)/.light
	@tools/prerequisites.sh >/dev/null
	@$(FIND_CMAKE); \
	$$cmake -S . -B build/native -DCMAKE_BUILD_TYPE=Release && \
	$$cmake --build build/native -j $$(nproc) && build/native/native/test_native

neon:
	@for part in aarch64-linux-gnu-g++ qemu-aarch64-static; do command -v $$part >/dev/null || \
		{ echo "$$part is missing; on Debian and Ubuntu: apt install g++-aarch64-linux-gnu qemu-user-static" >&2; \
		  exit 2; }; done
	@$(FIND_CMAKE); \
	$$cmake -S . -B build/aarch64 -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
		-DCMAKE_EXE_LINKER_FLAGS=-static && \
	$$cmake --build build/aarch64 -j $$(nproc) --target test_native && \
	qemu-aarch64-static build/aarch64/native/test_native

light:
	@tools/light.sh

app/node_modules/.made: app/package.json app/package-lock.json
	@command -v npm >/dev/null || \
		{ echo "npm is missing; on Debian and Ubuntu: apt install nodejs npm" >&2; exit 2; }
	@cd app && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

app: app/node_modules/.made
	@cd app && npm run --silent build -- --logLevel warn
	@du -sh src/haversack/collect/app

format: $(VENV)/.tests
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

docs: $(VENV)/.tests
	$(BIN)/python tools/docs.py

clean:
	rm -rf app/node_modules app/out src/haversack/collect/app
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests tools reference examples -name __pycache__ -prune -exec rm -rf {} +
