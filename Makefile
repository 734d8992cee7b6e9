PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test slurm-test slurm-chaos check lint clean

# All steps of the roadmap with three seeds on this machine, then the table and the figures.
demo: $(INSTALLED)
	$(BIN)/python slurm/submit.py --cluster local --profile digits_noisy --seeds 3
	$(BIN)/python collect.py runs --profile digits_noisy --out reports/digits_noisy

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --ignore=tests/slurm

# The tests that need a real Slurm, which they start and stop themselves: as root, after `python3 -m slurm.testbed install`.
slurm-test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 tests/slurm

# The whole roadmap under random kills, some minutes long.
slurm-chaos: $(INSTALLED)
	$(BIN)/python -m pytest -s tests/slurm/chaos.py

check: lint test

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .cache *.egg-info
