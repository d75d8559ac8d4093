# make demo   a whole study on built-in synthetic faces, in minutes, without Slurm or GPU
# make test   every test but those on a real Slurm
# make test-slurm   those; as root it installs Slurm and MariaDB from Debian's packages if they are missing
# make docs   the documentation as HTML in docs/_build
# All make a virtual environment in .venv and install into it; PYTHON=… chooses the interpreter (3.11 or later).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What the test cluster itself does; alone on the machine, while the others run on two clusters at once.
CLUSTER_TESTS := tests/cluster/test_cluster.py

# What Sphinx is told; `make docs DOCS_OUT=…` builds elsewhere.
DOCS_OUT ?= docs/_build

.PHONY: demo test test-slurm docs lint clean cluster cluster-down

demo: $(VENV)/.installed
	$(BIN)/fluence check studies/demo.yaml
	$(BIN)/fluence run studies/demo.yaml

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest -m "not slurm" -n 2 --dist worksteal

test-slurm: $(VENV)/.installed-test
	FLUENCE_REQUIRE_SLURM=1 $(BIN)/python -m pytest -m slurm $(CLUSTER_TESTS)
	FLUENCE_REQUIRE_SLURM=1 $(BIN)/python -m pytest -m slurm -n 2 --dist worksteal --ignore=$(CLUSTER_TESTS)

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs $(DOCS_OUT)
	@echo "the pages begin with $(DOCS_OUT)/index.html"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "fluence needs Python 3.11 or later; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "this Python has no venv; on Debian and Ubuntu type: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-docs: setup.cfg $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-test: setup.cfg $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $(VENV)/.installed $(VENV)/.installed-docs $@

clean:
	rm -rf $(VENV) build docs/_build *.egg-info

# A real Slurm on this machine, to try things on; see tests/cluster.
cluster: $(VENV)/.installed-test
	$(BIN)/python -m tests.cluster start

cluster-down: $(VENV)/.installed-test
	$(BIN)/python -m tests.cluster stop
