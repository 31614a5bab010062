# make serve   the environment, a model if there is none, and the service on 127.0.0.1:$(PORT)
# make test    the development environment, then every check
# make lock    the locks anew, from pyproject.toml
VERTICAL ?= finance
PORT ?= 3000
HOST ?= 127.0.0.1
PYTHON ?= python3
VERTICALS := finance manufacturing medical multimodal
BIN := .venv/bin
COMPILE := $(BIN)/uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock"

.PHONY: serve test lock env clean
.DELETE_ON_ERROR:

serve: .venv/.$(VERTICAL)
	$(BIN)/verticals serve $(VERTICAL) --host $(HOST) --port $(PORT) --train-if-missing

test: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

env: .venv/.dev

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv

# A vertical's own lock holds the same versions as the development lock, so one environment can take both.
.venv/.%: requirements/%.lock pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes --compile-bytecode -r $<
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	touch $@

lock: | $(BIN)/uv
	$(COMPILE) --all-extras --group dev -o requirements/dev.lock
	for vertical in $(VERTICALS); do $(COMPILE) --extra $$vertical -c requirements/dev.lock -o requirements/$$vertical.lock; done

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
