# On a fresh machine every command sets up .venv first, once: `make demo`, `make pipeline`, `make test`.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
CONSTRAINTS ?= constraints.txt
DEMO_DIR ?= demo
PIPELINE_DIR ?= pipeline
PYTEST_FLAGS ?=
EXTRAS ?= .venv-extras
EXTRAS_TESTS ?= tests/model/test_bitsandbytes_weights.py tests/train/test_distributed.py::test_eight_bit_moments \
	tests/runtimes/test_robots.py tests/runtimes/server/test_openpi_client.py \
	tests/benchmarks/test_success.py::test_ray_gives_the_same_result
TEST_PROCESSES ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# MuJoCo renders without a screen; MUJOCO_GL=osmesa is the other choice.
export MUJOCO_GL ?= egl

.DEFAULT_GOAL := help
.PHONY: help setup demo pipeline test test-extras test-slow check check-jetson check-rendering clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: $(STAMP) ## create .venv and install rfedge with everything that demo, pipeline and tests need

# PyTorch goes first and alone: a later package that asks for "torch" then finds the CPU build and leaves it.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit("Python %d.%d is too old, rfedge needs 3.10 or newer; set PYTHON=" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing (some minutes the first time)"
	@$(PIP) torch==2.13.0
	@$(PIP) --editable '.[train,export,sim,data,serve,tensorrt-rtx,openvino,plots,dev]'
	@touch $@
	@echo "ready: $(BIN)/rfedge"

check-rendering: $(STAMP)
	@$(BIN)/python tools/check_rendering.py

demo: $(STAMP) check-rendering ## the shipped policy at work: films, success, latency
	@$(BIN)/python tools/demo.py --output $(DEMO_DIR)

pipeline: $(STAMP) check-rendering ## the whole road in small: demonstrations -> train -> export int8 -> run -> latency table
	@$(BIN)/python tools/pipeline.py --output $(PIPELINE_DIR)

test: $(STAMP) check-rendering ## set-up plus the whole default test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(PYTEST_FLAGS)

# In an environment of its own on top of .venv: ray and bitsandbytes would change what the default suite sees.
test-extras: $(STAMP) check-rendering ## install ray, bitsandbytes, rerun, openpi-client; run the tests that skip without them
	@test -x $(EXTRAS)/bin/python || $(BIN)/python -m venv $(EXTRAS)
	@cd $(EXTRAS)/lib/python*/site-packages && echo 'import site; site.addsitedir("$(abspath $(VENV))"+"'/$$(cd $(abspath $(VENV)) && echo lib/python*/site-packages)'")' > base.pth
	@$(subst $(BIN),$(EXTRAS)/bin,$(PIP)) ray bitsandbytes rerun-sdk
	@$(subst $(BIN),$(EXTRAS)/bin,$(PIP)) --no-deps openpi-client
	@OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m pytest -m 'not gpu and not trt' $(EXTRAS_TESTS) $(PYTEST_FLAGS)

test-slow: $(STAMP) check-rendering ## the tests marked slow
	@$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

check: $(STAMP) ## ruff, mypy --strict, codespell
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/codespell

check-jetson: $(STAMP) ## prove that the core resolves to aarch64 wheels on JetPack 6 and 7
	@$(BIN)/python tools/check_jetson.py

clean: ## remove what demo, pipeline and tests made; .venv stays
	rm -rf $(EXTRAS) $(DEMO_DIR) $(PIPELINE_DIR) .pytest_cache .mypy_cache .ruff_cache .hypothesis
