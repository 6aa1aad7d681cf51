# StrandBERT: `make quickstart` and `make test` do everything from an empty machine with Python 3.10 or later.
PYTHON ?= python3
VENV ?= .venv
FASTA ?=
OUTPUT ?= quickstart

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
OLDEST := $(VENV)/matrix/transformers-4.57
TRITON := $(VENV)/matrix/triton
PIP := $(PY) -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test test-matrix test-gpu check-cards demo bench bench-gpu lint clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make quickstart FASTA=genome.fa.gz           the quick start on your own genome (plain, .gz or .bgz)"
	@echo "  make test PYTHON=python3.12 VENV=.venv312    any target with another interpreter, in an environment of its own"

venv: $(INSTALLED)  ## Make .venv and install the pinned versions (runs by itself when needed)

# torch comes first and alone, so that a torch which is already there (CPU, CUDA or ROCm build) is kept.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e ".[train,corpus,export,space,dev]"
	@touch $@

quickstart: $(INSTALLED)  ## Pre-train a tiny model on a synthetic genome (or FASTA=...) and fill a mask
	$(PY) quickstart.py --output $(OUTPUT) $(if $(FASTA),--fasta "$(FASTA)")

# pytest comes last: its closing line is the last line of `make test` and of .ci/run.
test: test-matrix  ## Load matrix, then all tests
	$(PY) -m pytest -n logical --maxprocesses 8 --dist loadfile

test-matrix: $(INSTALLED) $(OLDEST)/.installed $(TRITON)/.installed  ## Load a model folder with the oldest and newest transformers
	$(PY) -m tests.matrix.run_matrix --oldest $(OLDEST) --triton $(TRITON)

# Overlays for PYTHONPATH: only the packages that differ from $(VENV), never torch.
$(VENV)/matrix/%/.installed: tests/matrix/%.txt $(INSTALLED)
	rm -rf $(@D) && mkdir -p $(@D)
	$(PIP) --quiet --no-deps --target $(@D) -r $<
	@touch $@

demo: $(INSTALLED)  ## Open the demo in a browser (MODEL=folder CLASSIFIER=folder)
	$(PY) -m space.app $(if $(MODEL),--model "$(MODEL)") $(if $(CLASSIFIER),--classifier "$(CLASSIFIER)")

check-cards: $(INSTALLED)  ## Check that every model card is what its sources give
	$(PY) -m hub_configs.card --check

test-gpu: $(INSTALLED)  ## Tests that need a CUDA device
	$(PY) -m pytest tests/gpu -m gpu

bench: $(INSTALLED)  ## Measure attention and encoder against rivals on this CPU; rows go to benchmarks/results
	$(PY) -m benchmarks.bench_attention
	$(PY) -m benchmarks.bench_encoder
	$(PY) -m benchmarks.bench_encoder --lengths 2048 24576 147456

bench-gpu: $(INSTALLED)  ## The same on a CUDA device
	$(PY) -m benchmarks.bench_attention --device cuda --rounds 20
	$(PY) -m benchmarks.bench_encoder --device cuda --rounds 20
	$(PY) -m benchmarks.bench_encoder --device cuda --lengths 128 2048 24576 147456 --dtypes bfloat16

lint: $(INSTALLED)  ## Check style
	$(PY) -m ruff check .

clean:  ## Remove everything that make made, except quick start outputs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
