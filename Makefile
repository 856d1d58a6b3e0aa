# Everything here sets itself up: `make test` on a fresh machine needs python3.11+ and make only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-avx2 test-slow lint format bench docs clean

help:
	@echo "make demo       set up, train a dense transformer and its twins on the built-in data, print the table"
	@echo "make test       set up, run the tests (and doctests)"
	@echo "make test-avx2  the same as on a processor without AVX-512"
	@echo "make test-slow  the tests that take long"
	@echo "make test-triton  the GPU kernels without a GPU, in an environment of its own (.venv-triton, 691 MB more)"
	@echo "make lint       ruff, pyright"
	@echo "make bench      time every method against torch's Linear; writes benchmarks/results/"
	@echo "make bench-peers  time nplex beside other packages' layers, in an environment of its own (.venv-peers)"
	@echo "make docs       the documentation as a site: builds site/, every page and link checked"
	@echo "make clean      delete the environment and caches"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nplex needs Python 3.11 or later; name one: make PYTHON=python3.12 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/nplex compare agreement --rule dense 2 4 8 --out runs/demo --resume

test: $(READY)
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-avx2: $(READY)
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

.venv-triton/.ready: pyproject.toml constraints.txt
	test -x .venv-triton/bin/python || $(PYTHON) -m venv .venv-triton
	.venv-triton/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv-triton/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,triton]'
	touch $@

.PHONY: test-triton
test-triton: .venv-triton/.ready
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 .venv-triton/bin/python -m pytest tests/test_fused.py

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/ruff format --check src tests benchmarks scripts
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff format src tests benchmarks scripts
	$(BIN)/ruff check --fix src tests benchmarks scripts

bench: $(READY)
	$(BIN)/python benchmarks/ops.py --threads 1
	$(BIN)/python benchmarks/ops.py --threads 2
	$(BIN)/python benchmarks/ops.py --dtype bfloat16
	$(BIN)/python benchmarks/errors.py
	$(BIN)/python benchmarks/plan.py --every 1 --repeats 3
	$(BIN)/python benchmarks/conv.py
	$(BIN)/python benchmarks/find.py
	$(BIN)/python benchmarks/models.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/rules.py

.venv-peers/.ready: pyproject.toml constraints.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[lab,peers]'
	touch $@

.PHONY: bench-peers
bench-peers: .venv-peers/.ready
	OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/peers.py --threads 1

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "open site/index.html; to search it: $(BIN)/python -m http.server --directory site"

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis
