"""The check of reference steps' models before a submission: in another process, because it needs PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

from roadmap import ROOT
from roadmap.config import RunConfig, TimmSpec
from roadmap.errors import ConfigError, Problem

TIMEOUT_S = 300


def check_references(configs: Iterable[RunConfig]) -> None:
    """ConfigError for models that timm does not have, or cannot build as configured.

    Where PyTorch cannot be imported, as on some login nodes, or not in time, only their runs find that out.
    """
    lines = [config.model_dump_json() for config in configs if isinstance(config.model, TimmSpec)]
    if not lines:
        return
    try:
        done = subprocess.run(
            [sys.executable, "-m", "roadmap.networks"],
            cwd=ROOT,
            input="\n".join(lines),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return
    if done.returncode == 0 and (problems := done.stdout.split("\n")[:-1]):
        raise ConfigError([Problem("", problem) for problem in problems])
