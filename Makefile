# Short names for the commands of scripts/. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help env fast test slow format docs lock quickstart

help:        ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: *## */\t/' | expand -t 14

env:         ## make the environment (.venv)
	./scripts/env.sh

fast:        ## style, and the tests that start no process
	./scripts/test.sh --fast

test:        ## what CI runs
	./scripts/test.sh

slow:        ## the slow tests too
	./scripts/test.sh --slow

format:      ## format the code
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .

docs:        ## remake docs/configuration.md from the settings' types
	PYTHONPATH=. .venv/bin/python scripts/config_docs.py

lock:        ## remake requirements.lock from pyproject.toml
	./scripts/lock.sh

quickstart:  ## build a world, train in it, report
	./scripts/quickstart.sh
