PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := $(if $(UNPINNED),,-c constraints.txt)

.PHONY: demo test truth soak bench lint clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[test,dev]'
	touch $@

demo: $(VENV)/.installed  ## install and attack the bundled classifier
	$(BIN)/robust attack

test: $(VENV)/.installed-test  ## the default suite
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

truth: $(VENV)/.installed-test  ## checks against published facts (needs ROBUST_SHARED)
	$(BIN)/python -m pytest -m truth -s

soak: $(VENV)/.installed-test  ## long runs: every fault twenty times, every parser fuzzed, gates simulated, the zoo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[fuzz]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak -s

bench: $(VENV)/.installed-test  ## speed and strength side by side with a bare loop and with peers (hours)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchattacks==3.5.1 adv-lib==0.2.8
	$(BIN)/python benchmarks/attack_speed.py
	$(BIN)/python benchmarks/search_speed.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/strength.py --plot benchmarks/results/strength.png
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training_speed.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/defenses.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gate_statistics.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/verdicts.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/verdicts.py --part honest
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/verdicts.py --part published
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/verdicts.py --part cost

lint: $(VENV)/.installed-test  ## style, and types against the installed wheel
	$(BIN)/ruff check .
	rm -rf build/types && $(BIN)/python -m build --wheel --outdir build/types . > /dev/null
	cd build/types && $(CURDIR)/$(BIN)/python -m zipfile -e *.whl . && cp $(CURDIR)/pyproject.toml . && $(CURDIR)/$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
