"""Where a result comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from roadmap.provenance import commit


def test_the_commit_is_that_of_this_project_whatever_repository_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = commit()
    if before is None:
        pytest.skip("this is no checkout of git's")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert commit() == before
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert commit() == before
