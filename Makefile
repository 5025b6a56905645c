# `make demo` (train, export and use a small codec), `make demo-stream` (the same for a streaming one), `make downstream` (six tasks
# on its tokens) and `make test`. Each makes its own environment.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo demo-stream downstream test lint env clean

demo: $(VENV)/.demo
	$(PY) -m recipes.demo

# Its pipeline runs under Snakemake, which comes with what the tests need.
demo-stream: $(VENV)/.test
	$(PY) -m recipes.demo_stream

downstream: $(VENV)/.demo
	$(PY) -m recipes.demo_downstream

test: $(VENV)/.test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/.test
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

env: $(VENV)/.test

$(PY):
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, 12); \
	sys.exit(None if ok else "Python 3.10 to 3.12 is needed, $(PYTHON) is %d.%d; name another one: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than the files that it was made from, so a second run installs nothing.
$(VENV)/.demo: extra_requirements.txt tools/repair_torchaudio.py | $(PY)
	$(PY) -m pip install -r extra_requirements.txt
	$(PY) tools/repair_torchaudio.py
	touch $@

$(VENV)/.test: extra_requirements.txt tests/requirements.txt tools/repair_torchaudio.py | $(PY)
	$(PY) -m pip install -r tests/requirements.txt
	$(PY) tools/repair_torchaudio.py
	touch $@ $(VENV)/.demo

clean:
	rm -rf results
