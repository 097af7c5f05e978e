# `make demo` and `make test` set everything up on a machine with Python 3.11+, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
READY := $(VENV)/.ready
LOCK_OPTIONS := --extra dev --extra wandb --generate-hashes --no-emit-index-url \
	--python-version 3.11 --universal
TEST_PROCESSES ?= 3
CODE := imgtool commands tests benchmarks

.PHONY: help setup demo test test-slow lint format lock completions reference docs bench wheel clean

help:
	@echo "make demo         set up, then run the main job on data made on the spot"
	@echo "make test         set up, then run the tests (make test-slow: the long ones)"
	@echo "make lint         ruff, mypy and import-linter"
	@echo "make bench        time this tool against stated baselines"
	@echo "make wheel        build the wheel and try it in an empty environment"
	@echo "make completions  write completions/ anew"
	@echo "make reference    write docs/reference/ anew"
	@echo "make docs         build the site of docs/ into site/"
	@echo "make lock         resolve requirements.lock anew"

setup: $(READY)

# uv, not plain pip: it takes the matching pair of torch and torchvision.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("imgtool needs Python 3.11 or newer; make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q imgtool commands
	@touch $(READY)

demo: setup
	$(BIN)/imgtool demo out/demo

test: setup
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

lock: setup
	$(UV) pip compile pyproject.toml $(LOCK_OPTIONS) --quiet -o requirements.lock

reference: setup
	$(BIN)/python -m commands._reference docs/reference

# The site has an environment of its own: the extra `docs` alone, without torch.
DOCS_EXTRA := import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")

docs: setup
	test -x .venv-docs/bin/python || $(UV) venv --quiet --python $(BIN)/python .venv-docs
	$(BIN)/python -c '$(DOCS_EXTRA)' | $(UV) pip install --quiet --python .venv-docs/bin/python -r -
	.venv-docs/bin/sphinx-build -W --keep-going -q docs site

completions: setup
	$(BIN)/python -m commands._completion completions

bench: setup
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/compile.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/faces.py
	$(BIN)/python benchmarks/genegan.py
	$(BIN)/python benchmarks/fid.py
	$(BIN)/python benchmarks/coding.py
	$(BIN)/python benchmarks/hpcm.py
	$(BIN)/python benchmarks/codec.py --tuned
	$(BIN)/python benchmarks/memory.py

wheel: setup
	UV=$(abspath $(UV)) bash .ci/try-wheel $(abspath $(BIN))

clean:
	rm -rf $(VENV) .venv-docs site dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
