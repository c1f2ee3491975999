# `make demo` and `make test` set up everything on first use; python3.11+ and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo deploy-demo test test-all check wheel clean help

help:
	@echo "make demo    six domains on this machine, learnt naively and with a memory, side by side"
	@echo "make deploy-demo   server, key holder and clients as services on this machine; two updates"
	@echo "make test    unit and integration tests"
	@echo "make check   style, types, layers, and the built wheel in a clean environment"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "python 3.11 or newer is needed; got $$($(PYTHON) --version). Try: make PYTHON=python3.11 demo"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/perennial simulate examples/demo.toml --set run.name=demo-naive --set continual.name=none
	$(BIN)/perennial simulate examples/demo.toml
	$(BIN)/perennial compare demo-naive demo --page runs/compare.html
	@echo "both runs in one plot: runs/compare.html"

deploy-demo: $(READY)
	rm -rf runs/fleet
	$(BIN)/perennial init runs/fleet --loopback --clients 3 --config examples/deploy.toml
	$(BIN)/perennial up runs/fleet --updates 2
	$(BIN)/perennial releases list --home runs/fleet/server/service
	$(BIN)/perennial releases verify --home runs/fleet/server/service

# The tests of the house itself are those of `make check`.
test: $(READY)
	$(BIN)/python -m pytest --ignore=tests/house --numprocesses 2 --dist worksteal -m "not integration and not slow and not gpu"
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "integration and not slow and not gpu"

test-all: $(READY)
	$(BIN)/python -m pytest

check: $(READY) wheel
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/house
	cd .build && ../$(BIN)/mypy --config-file ../pyproject.toml --python-executable env/bin/python -p perennial

# The wheel in an environment of its own, which borrows the installed dependencies and nothing else.
wheel: $(READY)
	rm -rf .build build && mkdir -p .build
	$(BIN)/python -m build --wheel --no-isolation --outdir .build .  > .build/log 2>&1 || { cat .build/log; exit 1; }
	$(PYTHON) -m venv --without-pip .build/env
	$(BIN)/python tests/house/borrow.py .build/env
	$(BIN)/python -m pip --python .build/env/bin/python install --quiet --no-deps .build/*.whl
	cd .build && env/bin/python -c 'import perennial, sys; assert "torch" not in sys.modules; print(perennial.__file__)'
	cd .build && env/bin/perennial check ../examples/demo.toml

clean:
	rm -rf .build build *.egg-info .pytest_cache .mypy_cache .ruff_cache
