# make env         .venv with the `surveybridge` command, everything pinned by constraints.txt
# make demo        simulate two surveys, ingest, translate, query; writes demo/demo.png
# make test        formatting, lint, types and all tests, in lanes (what .ci/run runs)
# make test-fast   the first three, and the tests that take no minutes and share nothing
# make lint        the first three only
# make docs        the documentation site, in site/
# make clean       removes the environment and what the demo wrote

PYTHON ?= python3.11
PIP = .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt
STAMP = .venv/.installed

.PHONY: env demo test test-fast lint docs clean

env: $(STAMP)

# torch goes first: with its pin alone pip prefers a local CPU build (2.13.0+cpu) wherever one is on offer.
# setuptools comes from the pins too (no build isolation), so that the build reaches for nothing else.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make env: no $(PYTHON) here; name one of 3.11-3.13: make env PYTHON=python3" >&2; exit 2; }
	@test -x .venv/bin/python || { echo "env: creating .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@echo "env: installing torch (minutes on a new machine)"
	@$(PIP) setuptools torch
	@echo "env: installing surveybridge and its pinned dependencies"
	@$(PIP) --no-build-isolation -e '.[sim,dev]'
	@-.venv/bin/python -m surveybridge.kernels.pixel_norm.build
	@touch $@
	@echo "env: ready: .venv/bin/surveybridge"

demo: env
	.venv/bin/surveybridge demo --out demo

lint: env
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

test: env
	.venv/bin/python -m tests.lanes

test-fast: env
	.venv/bin/python -m tests.lanes lint fast

docs: env
	.venv/bin/sphinx-build -W --keep-going -q docs site

clean:
	rm -rf .venv demo site build *.egg-info .mypy_cache .pytest_cache .ruff_cache
