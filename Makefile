# make demo    match the two example photographs and draw the result
# make test    run the tests, in two processes of one thread each
# make test-fast  run those of the house, the commands, pictures, modules, the operator's definition and LoFTR: for those who change one thing
# make fuzz    try damaged files for an hour
# make check   lint, format, types
# make docs    build the documentation site into site/; broken links fail
# Each sets up .venv by itself, and again only after pyproject.toml has changed. PYTHON=... chooses the interpreter that makes it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
export PYTHONNOUSERSITE := 1

.PHONY: demo test test-fast fuzz check docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-vision
	$(BIN)/quadtree match examples/leuven_a.jpg examples/leuven_b.jpg --geometry fundamental --picture demo.png

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# TESTS=tests/predict adds a folder.
test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q tests/test_package.py tests/cli/test_commands.py tests/cli/test_errors.py tests/viz tests/nn tests/ops/test_operator.py tests/models/loftr $(TESTS)

fuzz: $(VENV)/.installed-test
	$(BIN)/python -m tests.fuzz --seconds 3600

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[test]'
	touch $(VENV)/.installed-vision $@

# The test extras hold the vision ones: a .venv that has them needs nothing more.
$(VENV)/.installed-vision: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[vision]'
	touch $@

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[docs]'
	touch $@

clean:
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis demo.png
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
