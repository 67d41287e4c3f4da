# Every target needs the environment in .venv and makes it when it is missing.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: help install demo test test-slow lint bench app clean

help:
	@echo "make demo       train a small Mini on built-in text, evaluate, reload, fill masks (under 10 minutes)"
	@echo "make test       run the tests that CI runs"
	@echo "make test-slow  run the long proofs too"
	@echo "make lint       ruff"
	@echo "make bench      benchmark tables"
	@echo "make app        the Gradio page on localhost"
	@echo "make install    create .venv and install everything, torch first"

install: $(READY)

# torch comes first and pinned: left to a resolver, a plain `torch` may pull gigabytes of CUDA libraries.
$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[train,lab,app,dev]"
	touch $(READY)

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

# transformers' own model tests, which tests/modeling/test_common_hf.py runs on our classes
COMMON := .cache/transformers_tests/VERSION
$(COMMON): $(READY)
	$(BIN)/python tests/tools/lay_out_common_tests.py
	touch $(COMMON)

# Threads that wait by spinning slow each other down many times over on a busy machine, as CI's may be.
test test-slow: export OMP_WAIT_POLICY ?= passive

test: $(READY) $(COMMON)
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(READY) $(COMMON)
	$(BIN)/python -m pytest -m "not gpu" $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)
	$(BIN)/python scripts/bench_mixers.py
	$(BIN)/python scripts/bench_training.py
	$(BIN)/python scripts/bench_decode.py --threads 2 --rounds 5

app: $(READY)
	$(BIN)/python app.py

clean:
	rm -rf $(VENV) build *.egg-info
