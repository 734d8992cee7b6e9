"""What commands print where the terminal lacks characters, and that they never fail because of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roadmap import ROOT
from tests.test_cli import COMMANDS
from tests.test_status import PLAN, make

PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TERMINALS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "the locale C": PLAIN,
}
LINES: dict[str, tuple[str, ...]] = {
    "steps": ("roadmap", "steps"),
    "verify": ("roadmap", "verify"),
    "collect": ("collect", "--paper", "--tables-only", "--out", "out"),
    "run_step": ("run_step", "gelu", "--profile", "digits", "--plan"),
    "submit": ("submit", "--profile", "digits", "--steps", "gelu", "--dry-run", "--cluster", "local", *PLAN),
    "status": ("status", "runs"),
}


def output(cwd: Path, terminal: dict[str, str], command: str, *words: str | bytes) -> bytes:
    """What a command prints; it must succeed and have nothing to complain of."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))
    }
    environment = inherited | {"PYTHONPATH": str(ROOT)} | terminal
    done = subprocess.run(
        [sys.executable, *COMMANDS[command], *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.mark.parametrize("terminal", TERMINALS.values(), ids=TERMINALS)
@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_command_prints_at_any_terminal(
    line: tuple[str, ...], terminal: dict[str, str], tmp_path: Path
) -> None:
    make(tmp_path / "runs", "gelu")
    printed = output(tmp_path, terminal, *line).decode(terminal.get("PYTHONIOENCODING", "ascii"))
    assert printed
    assert "\\" not in printed, "a character without a lookalike"


def test_columns_stay_aligned_with_lookalikes(tmp_path: Path) -> None:
    plain = output(tmp_path, TERMINALS["ascii"], "roadmap", "steps").decode("ascii").splitlines()
    (base,) = [line for line in plain if " resnet50 " in f" {line.strip('|')} " and "the base" in line]
    (branch,) = [line for line in plain if "` kernel_5 " in line]
    assert "spatial.kernel 3 -> 5 " in branch
    assert branch.rindex("|") == base.rindex("|")
    assert branch.index("dw5 bn") == base.index("pw(1w) bn")


def test_at_a_terminal_with_utf8_nothing_is_replaced(tmp_path: Path) -> None:
    printed = output(tmp_path, {"PYTHONIOENCODING": "utf-8"}, "roadmap", "steps").decode()
    assert "└ kernel_5 " in printed
    assert "spatial.kernel 3 → 5 " in printed


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_file_name_that_is_no_text_is_printed_as_it_is(encoding: str, tmp_path: Path) -> None:
    words = ("--paper", "--tables-only", "--out", b"out-\xff")
    assert b"tables: out-\xff/ablation.md, " in output(
        tmp_path, {"PYTHONIOENCODING": encoding}, "collect", *words
    )


def test_a_pipe_may_be_closed_early(tmp_path: Path) -> None:
    line = [sys.executable, *COMMANDS["roadmap"], "steps"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"ResNet-50" in process.stdout.read(60)
        process.stdout.close()
        assert process.stderr.read() == b""
