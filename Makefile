PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# more workers than the cores of a small machine, because many tests wait; a worker takes neighboring tests, which
# share what was trained or collected for them
PARALLEL := -n 3 --dist worksteal
PACKAGES := --constraint constraints.txt --editable '.[dev]'
# uv takes a fifth of pip's time, and does not know the package indexes of pip's own configuration
INSTALL_WITH_UV := uv venv --quiet --allow-existing --seed --python $(PYTHON) .venv && uv pip install --quiet --python .venv $(PACKAGES)
INSTALL_WITH_PIP := $(PYTHON) -m venv .venv && $(BIN)/pip install --quiet --disable-pip-version-check $(PACKAGES)

# Where a shell has pip put packages would be elsewhere than in the environment that is made here.
unexport PIP_PREFIX PIP_TARGET PIP_USER

.PHONY: demo test test-lowest test-newest slurm-test slurm-chaos check lint clean

# All steps of the roadmap with SEEDS seeds on this machine, then the table and the figures.
SEEDS ?= 3
demo: $(INSTALLED)
	$(BIN)/python slurm/submit.py --cluster local --profile digits_noisy --seeds $(SEEDS)
	$(BIN)/python collect.py runs --profile digits_noisy --out reports/digits_noisy

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL) --ignore=tests/slurm

# Tests of what depends on versions, in environments of their own: on the lowest Python with the lowest packages that pyproject.toml
# allows, and on the newest Python that is installed, by pyenv, too, with the pinned packages. No picture is held against another one,
# for each version draws it differently.
UV = $(or $(shell command -v uv),$(BIN)/uv)
PYTHON_lowest := 3.11
PYTHON_newest = $(shell PATH="$$PATH:$$(echo "$$HOME"/.pyenv/versions/*/bin | tr ' ' :)" $(UV) python list --only-installed 2> /dev/null | awk 'NR == 1 {print $$2}')
VERSIONS_lowest := --resolution lowest-direct
VERSIONS_newest := --constraint constraints.txt
VERSIONED := config strict_yaml schema networks timm_parity engine compiled data loader randaugment streams weights \
    trackers tables curves html stats cluster disk
# what takes minutes and depends on versions no more than the rest, and pictures
UNVERSIONED := drawn_as_before or too_little_memory or command_lines_write
test-lowest test-newest: test-%: $(INSTALLED)
	$(UV) venv --quiet --clear --python $(PYTHON_$*) .venv-$*
	$(UV) pip install --quiet --python .venv-$* $(VERSIONS_$*) --editable '.[dev]'
	.venv-$*/bin/python -m pytest $(PARALLEL) -k 'not ($(UNVERSIONED))' $(VERSIONED:%=tests/test_%.py)

# The tests that need a real Slurm, which they start and stop themselves: as root, after `python3 -m slurm.testbed install`.
slurm-test: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL) tests/slurm

# The whole roadmap under random kills, some minutes long.
slurm-chaos: $(INSTALLED)
	$(BIN)/python -m pytest -s tests/slurm/chaos.py

check: lint test

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	$(if $(shell command -v uv),$(INSTALL_WITH_UV) || ($(INSTALL_WITH_PIP)),$(INSTALL_WITH_PIP))
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest .cache *.egg-info
