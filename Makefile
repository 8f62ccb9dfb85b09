# One command each, set-up included; what is set up already is reused.
#
#   make demo           train and evaluate on generated data    make setup      only the set-up
#   make demo-distill   teach a flow-free student on it         make clean      remove what was built (not data, not runs)
#   make demo-video     the same from pixels: rendered videos, features, teacher, student, a page with the videos, what each costs
#   make test           the tests                               make lint       style, types and spelling
#   make test-fast      without those that train or start       make coverage   the tests with line coverage
#                       programs: under a minute
#   make test-all       every test                              make test-browser   the report page in Chromium
#   make PYTHON=python3.12 ...    another interpreter           make TEST_JOBS=1 ...   tests in one process (default: one a core)
#
# Three stamps in .venv tell what is done: created (the environment), packages/dev (what pip installed), installed (this tree
# and its compiled libraries). The last one carries the folder's checksum: a moved or copied tree installs itself again.

PYTHON ?= python3
PYTEST_ARGS ?=
TEST_JOBS ?= auto
SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo demo-distill demo-video test test-fast test-all coverage test-browser lint setup clean

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --disable-pip-version-check --quiet
HERE := $(shell pwd | cksum | cut -d' ' -f1)
CREATED := $(VENV)/.stamp-created
PACKAGES := $(VENV)/.stamp-packages
DEV := $(VENV)/.stamp-dev
BROWSER := $(VENV)/.stamp-browser
INSTALLED := $(VENV)/.stamp-installed-$(HERE)
SOURCES := $(wildcard libs/utils/csrc/*.cpp libs/utils/csrc/*.cu libs/utils/csrc/*.h)

help:
	@sed -n '3,11s/^# *//p' Makefile

demo: $(INSTALLED)
	$(RUN) train.py configs/demo.yaml --output demo --resume auto
	$(RUN) eval.py configs/demo.yaml ckpt/demo_demo

demo-distill: $(INSTALLED)
	$(RUN) tools/run_distill.py configs/distill/demo --stages baseline student_alone student --jobs 2

CLIPS := data/clips
CLIP_RUNS := ckpt/distill/clips
clip_results = $(CLIP_RUNS)/$(1)_seed0/eval/epoch_180_ema/predictions.json

demo-video: $(INSTALLED) $(DEV)
	$(RUN) tools/make_clips.py $(CLIPS)
	$(RUN) tools/extract_features.py $(CLIPS)/videos $(CLIPS)/features
	$(RUN) tools/run_distill.py configs/distill/clips --stages student student_alone --jobs 2
	$(RUN) tools/diagnose.py $(call clip_results,teacher_long) $(CLIPS)/annotations.json --compare $(call clip_results,student) \
	  --names teacher student --video-folder $(CLIPS)/videos -o $(CLIP_RUNS)/report.html
	$(RUN) tools/cost.py $(CLIP_RUNS)/teacher_long_seed0 --beside $(CLIP_RUNS)/student_seed0 --video $(CLIPS)/videos/clip_040.mp4

# one thread in each test process, and the tests of a file in one process, since they share what their fixtures make
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_JOBS) --dist loadfile

test: $(INSTALLED) $(DEV)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-fast: $(INSTALLED) $(DEV)
	$(PYTEST) tests/core tests/utils tests/modeling tests/datasets -m "not slow" $(PYTEST_ARGS)

test-all: $(INSTALLED) $(DEV)
	$(PYTEST) $(PYTEST_ARGS)

coverage: $(INSTALLED) $(DEV)
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=html $(PYTEST_ARGS)

# the report page in a real browser: headless Chromium, from Debian's packages where it is missing and this user may install them
test-browser: $(INSTALLED) $(DEV) $(BROWSER)
	@missing=; for p in chromium chromedriver; do command -v $$p >/dev/null 2>&1 || missing=yes; done; \
	if [ -n "$$missing" ]; then \
	  command -v apt-get >/dev/null 2>&1 && { [ "$$(id -u)" = 0 ] || sudo -n true 2>/dev/null; } || { \
	    echo "error: chromium and chromedriver are needed and cannot be installed here (no apt-get, or no right to use it);" \
	      "install them, on Debian: apt-get install chromium chromium-driver" >&2; exit 2; }; \
	  as_root=; [ "$$(id -u)" = 0 ] || as_root="sudo -n"; \
	  echo "installing Debian's chromium and chromium-driver"; \
	  { $$as_root apt-get update -qq && $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    chromium chromium-driver fonts-dejavu-core >/dev/null; } || { \
	    echo "error: apt-get could not install chromium and chromium-driver (its message is above); install them by hand" >&2; exit 2; }; \
	fi
	$(RUN) -m pytest tests/browser $(PYTEST_ARGS)

lint: $(PACKAGES) $(DEV)
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m codespell_lib libs tools benchmarks docs examples *.md *.py

setup: $(INSTALLED) $(DEV)
	@echo "ready: $(RUN)"

$(CREATED):
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "error: $(PYTHON): no such program; install Python 3.10 to 3.13, or name one: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $$("$(PYTHON)" --version 2>&1) is not supported; Python 3.10 to 3.13 are, name one: make PYTHON=python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "creating $(VENV)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(PACKAGES): requirements.txt | $(CREATED)
	@echo "installing requirements.txt (the first time: several minutes)"
	@$(PIP) -r requirements.txt
	@touch $@

$(DEV): requirements-dev.txt | $(CREATED)
	@echo "installing requirements-dev.txt"
	@$(PIP) -r requirements-dev.txt
	@touch $@

$(BROWSER): requirements-browser.txt | $(CREATED)
	@echo "installing requirements-browser.txt"
	@$(PIP) -r requirements-browser.txt
	@touch $@

$(INSTALLED): $(PACKAGES) setup.py pyproject.toml $(SOURCES)
	@echo "installing this folder and compiling its libraries"
	@$(RUN) setup.py --quiet build_ext --inplace
	@$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache htmlcov .coverage $(VENV)/.stamp-installed-*
	rm -f libs/utils/csrc/*.so
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
