# The commands that README.md names. Everything is installed into $(VENV); nothing outside of it is touched.
PYTHON ?= $(firstword $(foreach version,3.11 3.12 3.10,$(if $(shell python$(version) -c "" 2>/dev/null && echo yes),python$(version))) python3)
VENV ?= .venv
DEMO_OUTPUT ?= demo_output
TEST_ARGUMENTS ?=
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed

.PHONY: help install demo test lint bench clean

help: ## list the commands
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /: /'

install: $(INSTALLED) ## create .venv and install the package with everything that demo and tests need

$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 12) else "lact-asr needs Python 3.10, 3.11 or 3.12; name one: make PYTHON=python3.11 …")'
	@command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "kenlm is compiled during installation and needs a C++ compiler: apt-get install g++ (or your system's package)"; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -c constraints.txt torch
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(RUN) -m pip install --quiet -c constraints.txt --only-binary :all: flashlight-text ctc-beam-decoder || echo "Tests of these decoders will be skipped."
	@touch $(INSTALLED)

demo: $(INSTALLED) ## make a corpus, train on it, adapt and transcribe; prints a table, writes a plot
	$(RUN) demo/run_demo.py --output_dir $(DEMO_OUTPUT)

test: $(INSTALLED) lint ## lint and run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal $(TEST_ARGUMENTS)

lint: $(INSTALLED) ## ruff: rules and layout
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: $(INSTALLED) ## every benchmark, on a CUDA device
	PYTHON=$(RUN) benchmarks/run_gpu.sh

clean: ## remove the virtual environment and what the demo wrote
	rm -rf $(VENV) $(DEMO_OUTPUT)
