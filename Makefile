PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := $(if $(UNPINNED),,-c constraints.txt)

.PHONY: demo test lint types coverage truth soak bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[test,dev]'
	touch $@

demo: $(VENV)/.installed  ## install and attack the bundled classifier
	$(BIN)/robust attack

test: lint types  ## lint, types and the default suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 10 --durations-min 1

lint: $(VENV)/.installed-test  ## style and form
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test  ## types, of the package as a wheel installs it
	rm -rf build/types && $(BIN)/python -m build --wheel --outdir build/types . > /dev/null
	cd build/types && $(CURDIR)/$(BIN)/python -m zipfile -e *.whl . && cp $(CURDIR)/pyproject.toml . && $(CURDIR)/$(BIN)/mypy

coverage: $(VENV)/.installed-test  ## the default suite with its coverage, at least 90 %
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n 2 --dist loadfile
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

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
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/verdicts.py --part subtle
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/verdicts.py --part honest
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/verdicts.py --part published
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/verdicts.py --part cost

clean:
	rm -rf $(VENV) build dist *.egg-info
