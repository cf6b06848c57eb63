# Everything a clone needs: Python 3.11+ and make. Each target builds what it needs in .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup quickstart quickstart-baseline test test-slow lint clean

setup: .venv/.quickstart

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; run make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/.quickstart: pyproject.toml constraints.txt | .venv/.created
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[quickstart]'
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/.created
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ .venv/.quickstart

quickstart: .venv/.quickstart
	$(BIN)/python scripts/quickstart.py

quickstart-baseline: .venv/.quickstart
	$(BIN)/python scripts/quickstart.py --baseline

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf .venv runs
