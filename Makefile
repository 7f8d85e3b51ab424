# Everything that the project does, from a machine with Python 3.11+, make and git.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
# The Dockerfile's: one version everywhere.
UV_VERSION := $(shell sed -n 's/.*uv==\([0-9.]*\).*/\1/p' Dockerfile.gpu)
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := $(UV) run --frozen --all-extras
OUT ?= demo-output
DATA ?=
PORT ?= 8000
# Without bytecode every process compiles PyTorch's sources anew.
export UV_COMPILE_BYTECODE := 1
export UV_PROJECT_ENVIRONMENT := .venv

.PHONY: help setup demo serve test check browser format bench

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.uv/bin/uv:
	@echo "uv is not on this machine: installing it into .uv/"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv uv==$(UV_VERSION)

setup: $(if $(findstring .uv,$(UV)),.uv/bin/uv)  ## make the environment in .venv (3 GB the first time)
	@[ -d .venv ] || echo "making the environment in .venv: this downloads 3 GB"
	@$(UV) sync --frozen --all-extras

demo: setup  ## the whole job on real photographs; DATA=my.zip takes your own, OUT=folder
	@$(RUN) sepgate demo --out "$(OUT)" $(if $(DATA),--data "$(DATA)")

serve: setup  ## start the service and leave it running; PORT=8000
	@$(RUN) sepgate serve --port $(PORT)

check: setup  ## format, lint, types, import contracts, Dockerfile and compose file
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) hadolint Dockerfile.gpu
	$(RUN) check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

# Not reordered: the acceptance tests take longest and come first.
test: check browser  ## `check` and every test, on a real Redis, a real PostgreSQL and a real browser
	$(RUN) pytest -n auto --dist loadfile --no-loadscope-reorder --durations 15

# Not on PyPI, so from Debian's packages, where we may: the tests of pages skip without it.
browser:
	@command -v chromium chromium-browser chrome >/dev/null || ( [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && echo "installing Chromium for the tests of pages" && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium >/dev/null ) \
	  || echo "no Chromium here: the tests of pages are skipped"

format: setup  ## format and mend what can be mended
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

bench: setup  ## how strong and how fast, on the demo's photographs
	$(RUN) python -m benchmarks.trial
