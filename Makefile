# make lab        set up everything, check it, show a demonstration and open the course in JupyterLab
# make demo       the same without JupyterLab
# make setup      only set up: .venv with all packages, and the default model
# make test       set up, then lint, types, every test and every notebook
# make notebooks  set up, then execute every notebook from a clean kernel, write it in normal form, make the exercises
# make clean      remove .venv and caches (not the model)
#
# Options, as in `make lab PYTHON=python3.12 LAB_ARGS=--no-browser`:
#   PYTHON       the interpreter that makes .venv, 3.11 or newer
#   PIP_ARGS     passed to pip: --proxy, --index-url ..., or --extra-index-url with the index of PyTorch's CPU builds,
#                which saves several GB on a Linux machine without an NVIDIA GPU
#   LAB_ARGS     passed to JupyterLab
#   PYTEST_ARGS  passed to pytest: -k paged, -x ...
#   XDIST        how pytest shares out the tests: -n 4 ...
#
# Needs only what make 3.81 (macOS) has.

SHELL = /bin/sh
NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo $$p; exit; }; done; echo python3)
PIP_ARGS ?=
LAB_ARGS ?=
PYTEST_ARGS ?=
# One process where there is a GPU: each would claim most of its memory.
XDIST ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && printf '%s' '-n 0' || printf '%s' '-n auto --maxprocesses 8')

VENV = .venv
BIN = $(VENV)/bin
# A stamp is named after the content that it stands for: touching a file does nothing, changing it installs again.
CONTENT := $(shell cat pyproject.toml constraints.txt | cksum | tr ' ' '-')
INSTALLED = $(VENV)/.installed-$(CONTENT)
NEEDED_MB = 3000
NOTEBOOKS = $(shell find chapters exercises solutions -name '*.ipynb' -not -path '*/.*' 2>/dev/null)

.PHONY: help lab demo setup test lint types unit notebooks notebooks-test clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

setup: $(INSTALLED)
	@$(BIN)/pagedlab models --fetch

lab: setup
	@$(BIN)/pagedlab doctor
	@$(BIN)/pagedlab demo --short
	@$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/chapters $(LAB_ARGS)

demo: setup
	@$(BIN)/pagedlab doctor
	@$(BIN)/pagedlab demo --short

test: setup lint types unit notebooks-test

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy pagedlab

unit: $(INSTALLED)
	$(BIN)/pytest $(XDIST) --dist loadgroup $(PYTEST_ARGS)

# Cells of one notebook must run in order, in one process: --dist loadscope. One thread for each kernel, since several
# run at once and would fight over the cores.
notebooks-test: $(INSTALLED)
	@if [ -z "$(NOTEBOOKS)" ]; then echo "There are no notebooks to test yet."; \
	else OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest --nbval-lax --nbval-current-env $(XDIST) --dist loadscope $(PYTEST_ARGS) $(NOTEBOOKS); fi

# One after another: each has the machine to itself, so that the times it shows are fair. exercises/ is made from
# solutions/, and holds no outputs.
notebooks: setup
	@$(BIN)/pagedlab notebooks run $(filter-out exercises/%,$(NOTEBOOKS))
	@$(BIN)/pagedlab exercises build

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

$(INSTALLED):
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
	  echo "pagedlab needs Python 3.11 or newer: install it, then run make PYTHON=python3.12 (or where it is)."; exit 1; }
	@free=`df -Pm . | awk 'NR == 2 {print $$4}'`; [ "$$free" -ge $(NEEDED_MB) ] || { \
	  echo "The packages need $(NEEDED_MB) MB of disk, $$free MB are free here: make room, then run make again."; exit 1; }
	@$(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian: apt install python3-venv)."; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip || { \
	  echo "There is no pip in $(VENV): delete $(VENV), then run make again."; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[test]' || { \
	  echo "pip could not install the packages: see its last lines, check network and disk (PIP_ARGS passes options" \
	       "such as --proxy), then run make again."; exit 1; }
	@rm -f $(VENV)/.installed-*
	@touch $@
