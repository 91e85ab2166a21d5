PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

# Real data sets, where they lie beside the checkout; without them MNIST is downloaded and the tests of it skip.
ifneq ($(wildcard ../shared/data),)
export L2O_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test lint figures benchmarks clean

demo: $(VENV)/.installed  ## train on embedded data, race against tuned classics: a table, a figure, a checkpoint
	$(BIN)/l2o train digits --out $(DEMO) --threads 1
	$(BIN)/l2o benchmark digits --checkpoint $(DEMO) --out $(DEMO)/benchmark --threads 1

test: $(VENV)/.installed  ## the whole test suite; on tensors this small a second thread only waits
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

figures: $(VENV)/.installed  ## rebuild every README and figure in results/ from its CSV files
	$(BIN)/l2o report $(patsubst %/protocol.json,%,$(wildcard results/*/protocol.json))
	$(BIN)/l2o estimators --rebuild --out results/estimators

benchmarks: $(VENV)/.installed  ## speed
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "l2o needs Python 3.11 or newer: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
