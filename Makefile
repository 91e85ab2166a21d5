PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INTEROP := build/interop
PIP_INTEROP := PIP_CONSTRAINT=constraints.txt $(INTEROP)/bin/python -m pip --quiet --disable-pip-version-check
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

# Real data sets, where they lie beside the checkout; without them MNIST is downloaded and the tests of it skip.
ifneq ($(wildcard ../shared/data),)
export L2O_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test lint figures benchmarks browser interop clean

demo: $(VENV)/.installed  ## train on embedded data, race against tuned classics: a table, a figure, a checkpoint
	$(BIN)/l2o train digits --out $(DEMO) --threads 1
	$(BIN)/l2o benchmark digits --checkpoint $(DEMO) --out $(DEMO)/benchmark --threads 1

test: $(VENV)/.installed  ## the whole test suite; on tensors this small a second thread only waits
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

figures: $(VENV)/.installed  ## rebuild READMEs, figures and the page in results/ from the CSV files
	$(BIN)/l2o estimators --rebuild --out results/estimators
	$(BIN)/l2o card
	$(BIN)/l2o report

benchmarks: $(VENV)/.installed  ## speed
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only

browser:  ## Chromium, in which the page of all results is tested (Debian, as root); the tests skip without one
	apt-get install -y -q --no-install-recommends chromium-headless-shell || \
		{ apt-get update -q && apt-get install -y -q --no-install-recommends chromium-headless-shell; }

interop: $(INTEROP)/.installed  ## the tests of l2o/interop inside higher and learn2learn, and those against jaxopt and torchdeq
	OMP_NUM_THREADS=1 $(INTEROP)/bin/python -m pytest tests/l2o/test_interop_higher.py \
		tests/l2o/test_interop_learn2learn.py tests/l2o/test_jaxopt.py tests/l2o/test_torchdeq.py

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "l2o needs Python 3.11 or newer: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# learn2learn 0.2.0 ships C that an old Cython generated, which Python 3.11 and newer cannot compile: it is generated
# again. Its requirements are taken apart: torchvision 0.16.2 imports beside every torch, for its compiled parts, which
# need a certain one, are not used; gsutil and qpth are not needed. None of this goes into .venv, where Lightning would
# find the old torchvision; a line in a .pth file lends .venv's packages to this environment.
$(INTEROP)/.installed: $(VENV)/.installed
	rm -rf $(INTEROP)
	$(PYTHON) -m venv $(INTEROP)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(INTEROP)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dotvenv.pth
	$(PIP_INTEROP) install cython setuptools higher gym jaxopt torchdeq
	$(PIP_INTEROP) install --no-deps torchvision
	$(PIP_INTEROP) download --no-deps --no-build-isolation --no-binary learn2learn --dest $(INTEROP)/source learn2learn
	tar -xzf $(INTEROP)/source/learn2learn-*.tar.gz -C $(INTEROP)/source --strip-components 1
	rm $(INTEROP)/source/learn2learn/data/*.c
	$(INTEROP)/bin/cython -3 $(INTEROP)/source/learn2learn/data/*.pyx
	CFLAGS=-O0 $(PIP_INTEROP) install --no-deps --no-build-isolation $(INTEROP)/source
	touch $@
