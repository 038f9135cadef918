# `make` alone says what there is. Everything lives in .venv and goes with it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo check format test chaos fuzz soak bench clean
export PYTHON

PINS := requirements/base.txt pyproject.toml scripts/setup.sh

help: ## say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1 /' | \
		while read -r target text; do printf '  make %-8s %s\n' "$$target" "$$text"; done

setup: .venv/dev.stamp ## make .venv with all that development needs

demo: .venv/base.stamp ## deploy the digits example, call it from zero, and see the bill
	@PATH="$(CURDIR)/.venv/bin:$$PATH" scripts/demo.sh

check: .venv/dev.stamp ## lint, formatting, types, who may import whom
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -P -m pytest -q tests/architecture

test: check ## everything that CI asks for
	.venv/bin/python -P -m pytest -q

chaos: .venv/dev.stamp ## a million requests while replicas, zygote, ledger and platform are killed; then the audit
	.venv/bin/python -m tests.chaos --requests 1000000

fuzz: .venv/dev.stamp ## fuzz parsers and whole processes, then the simulator with new seeds until stopped (FUZZ_S=60: seconds of the two searches)
	.venv/bin/python -m tests.fuzz all --seconds $(or $(FUZZ_S),600)
	.venv/bin/python -m tests.sim $(if $(FUZZ_S),--seconds $(FUZZ_S))

soak: .venv/dev.stamp ## half an hour of deployments that wake, sleep, die and change: is everything flat?
	.venv/bin/python -m benchmarks.soak

format: .venv/dev.stamp ## put the source into its format
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/dev.stamp ## measure, each figure beside its floor (half an hour; wants an idle machine)
	@scripts/wrk.sh
	.venv/bin/python -m benchmarks

clean: ## remove .venv and everything that was made
	rm -rf .venv .bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/base.stamp: $(PINS)
	@scripts/setup.sh base
	@touch $@

.venv/dev.stamp: requirements/dev.txt $(PINS)
	@scripts/setup.sh dev
	@touch .venv/base.stamp $@
