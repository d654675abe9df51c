# make demo   see it work            make check       format, lint, types, the rules of the house
# make test   check and all tests    make bench       all measurements, quick form
# make setup  .venv, once            make gpu-check   what needs a GPU: tests, copies, pipelines
# make figures  the paper's figures that need no GPU, and docs/paper.md
# make soak   transfers with faults, make campaign    the slow tests, and those that kill at random
#             SOAK_S=1800 seconds
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; \
	done; echo python3)
endif
KEY := $(shell { cat pyproject.toml constraints.txt .ci/setup transport/streaming_copy.c; pwd; $(PYTHON) -V; command -v cc gcc clang; } 2>&1 | cksum | cut -d' ' -f1)
READY := .venv/.ready-$(KEY)
RUN := .venv/bin/python -m
PYTEST := $(RUN) pytest -q
# Test processes side by side. Of 203 s one after the other, two left 150 s and four 140 s.
JOBS ?= 2
SOAK_S ?= 1800

.PHONY: setup demo test check bench figures nixl gpu-check soak campaign clean
.DEFAULT_GOAL := test

$(READY):
	@.ci/setup $(PYTHON) $@

setup: $(READY)
	@:

demo: $(READY)
	@$(RUN) dvrt demo

check: $(READY)
	@$(RUN) ruff format --check --quiet .
	@$(RUN) ruff check --quiet .
	@$(RUN) mypy
	@$(PYTEST) tests/house

test: $(READY)
	@$(RUN) ruff format --check --quiet .
	@$(RUN) ruff check --quiet .
	@$(RUN) mypy
	@$(PYTEST) -n $(JOBS) -m "not slow and not chaos"

bench: $(READY)
	@$(RUN) dvrt bench all --quick

figures: $(READY)
	@$(RUN) dvrt figures

nixl: $(READY)
	@.venv/bin/python -m venv .venv-nixl
	@.venv-nixl/bin/python -m pip install -qq --no-deps -c constraints.txt nixl-cu12==1.5.1 numpy

gpu-check: $(READY)
	@.venv/bin/python tests/gpu/check.py

soak: $(READY)
	@DVRT_SOAK_S=$(SOAK_S) $(PYTEST) -s -m "slow and chaos" tests/streaming/test_soak.py

campaign: $(READY)
	@$(PYTEST) -m "slow or chaos" --timeout=600

clean:
	rm -rf .venv .venv-nixl build dist *.egg-info dvrt/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
