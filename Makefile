# Everything a clone needs: Python 3.11+ and make. Each target builds what it needs in .venv first.
# The first interpreter on the path that runs and is new enough; override with make PYTHON=...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo $$p && break; done)
# The newest JAX needs Python 3.12 or later; TensorFlow, which the tests import, has no release for 3.14.
NEWEST_PYTHON ?= $(shell for p in python3.13 python3.12 python3; do $$p -c "import sys; sys.exit(not (3, 12) <= sys.version_info < (3, 14))" 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
NEWEST_BIN := .venv-newest/bin
# Processes that share the default tests.
JOBS ?= 2

.PHONY: setup quickstart quickstart-baseline test test-slow test-newest lint docs clean

setup: .venv/.quickstart

.venv/.created:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later on the path; install one or give make PYTHON=/its/path" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/.quickstart: pyproject.toml constraints.txt | .venv/.created
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[quickstart]'
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/.created
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ .venv/.quickstart

# The slow tests also compare with open_clip itself (PyTorch, several GB where pip has no smaller build), and compile for
# TPUs (libtpu, 0.5 GB).
.venv/.slow: pyproject.toml constraints.txt | .venv/.created
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,open-clip,plan]'
	touch $@ .venv/.dev .venv/.quickstart

quickstart: .venv/.quickstart
	$(BIN)/python scripts/quickstart.py

quickstart-baseline: .venv/.quickstart
	$(BIN)/python scripts/quickstart.py --baseline

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/shellcheck --external-sources scripts/*.sh scripts/launch/*.sh findings/*.sh .ci/run
	@# The types that users of the installed package see; its list of modules is only shown when something is missing.
	@said=$$(PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes clipa_eqx --ignoreexternal) || { echo "$$said"; exit 1; }

# A file of tests stays in one process: its tests share what they compile.
test: lint
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: .venv/.slow
	$(BIN)/python -m pytest -m slow

# The default tests on the newest release of every package that pyproject.toml admits; asks the registry each time.
test-newest: .venv-newest/.created
	$(NEWEST_BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager -e '.[dev]'
	@$(NEWEST_BIN)/python -m pip list --format freeze | grep -iE '^(jax|jaxlib|equinox|optax|orbax-checkpoint|grain|numpy|pillow)=='
	$(NEWEST_BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

.venv-newest/.created:
	@test -n "$(NEWEST_PYTHON)" || { printf '%s\n' "error: no Python 3.12 or 3.13 on the path, which the newest JAX needs" "install one ('apt install python3-venv' on Debian 13, or 'uv python install 3.13' on any system), or give its path: make test-newest NEWEST_PYTHON=/its/path" >&2; exit 2; }
	$(NEWEST_PYTHON) -m venv .venv-newest
	$(NEWEST_BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# The manual as pages in build/docs; needs no network, and a warning is an error.
docs: .venv/.dev
	$(BIN)/mkdocs build --quiet
	@echo "open build/docs/index.html"

clean:
	rm -rf .venv .venv-newest
