"""How straight the main path is: the calls between run_step.py and the network's forward pass."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from blocks.model import Network
from roadmap import ROOT
from roadmap.cli.run import parser, run
from tests.test_resume import BUSY


class Reached(Exception):
    """The network is called for the first time."""


def test_training_reaches_the_network_in_six_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[str] = []

    def forward(self: Network, images: Any) -> Any:
        for frame in inspect.stack()[1:]:
            path = Path(frame.filename)
            if path.is_relative_to(ROOT / "roadmap"):
                calls.insert(0, f"{path.relative_to(ROOT / 'roadmap')} {frame.function}")
        raise Reached

    monkeypatch.setattr(Network, "forward", forward)
    values = [word for value in BUSY for word in ("--set", value)]
    with pytest.raises(Reached):
        run(parser().parse_args(["gelu", "--profile", "digits", "--runs", str(tmp_path), *values]))
    assert calls == [
        "cli/run.py run",
        "run.py train_run",
        "train.py train",
        "training/trainer.py fit",
        "training/trainer.py _train_epoch",
        "training/engine.py train_step",
    ]
