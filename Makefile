# make demo    sets everything up and moves a running VM over five hops
# make test    sets everything up and runs all tests that this machine can run: first those that need only processors, by as many
#              processes as there are (CORES), then those of kind host, by WORKERS processes (0: by one, in order)
# make soak    runs the long tests; SEEDS=A..B JOBS=N for the simulation
# make bench   runs the benchmarks; NAME=migration for one, FULL=1 for all that it knows (hours); JSON under out/bench/
# make check   the style checks: ruff, mypy, import-linter, tidy
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
NAME ?=
FULL ?=
ARGS ?=
WORKERS ?= 0
CORES ?= $(shell n=$$(nproc); echo $$((n > 4 ? 4 : n)))
PYTEST := $(PYTHON) -m pytest --dist loadfile --no-loadscope-reorder

.PHONY: setup packages venv demo test check bench soak clean

setup: packages venv

packages:
	@./tools/packages.sh

venv: $(VENV)/.done

$(VENV)/.done: pyproject.toml setup.py $(wildcard native/*.c native/Makefile native/*/*.c native/*/*.h architect/conduit/bpf/*.c architect/conduit/bpf/*.h)
	@./tools/venv.sh $(VENV)
	@touch $@

demo: setup
	@$(PYTHON) -m demo.main

test: setup
	@failed=0; \
	$(PYTEST) -m "not soak and not host" --numprocesses $(CORES) tests || failed=1; \
	$(PYTEST) -m "not soak and host" --numprocesses $(WORKERS) tests || failed=1; \
	exit $$failed

soak: setup
	@$(PYTHON) -m pytest -m soak --timeout 7200 tests

check: venv
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check --quiet .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(PYTHON) -m pytest -q tests/tidy

bench: setup
	@$(PYTHON) -m bench.main $(NAME) $(if $(FULL),--full) $(ARGS)

clean:
	rm -rf build dist out *.egg-info $(VENV) architect/artifacts
