"""A real Slurm for the tests of this folder, one for each worker of pytest-xdist; without root or packages
they are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.testbed.bed import Testbed
from slurm.testbed.config import Settings
from slurm.testbed.packages import hindrance


@pytest.fixture(scope="session")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """Shared by all tests: whoever kills a daemon starts it again."""
    if reason := hindrance():
        pytest.skip(reason)
    with Testbed(tmp_path_factory.mktemp("bed")) as bed:
        yield bed


@pytest.fixture
def plain(testbed: Testbed, tmp_path: Path) -> Iterator[Testbed]:
    """A second one, beside the first and without accounting, that may be ill-treated."""
    with Testbed(tmp_path / "plain", Settings(accounting=False)) as bed:
        yield bed
