"""The reports in reports/ that are of runs: `python -m tests.helpers.committed_reports` makes them again from
the records beside them, such as after a change of a table or figure.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from roadmap import ROOT
from roadmap.report.records_archive import NAME

# by folder, the options of collect.py
REPORTS = {
    "cifar10_small": "--profile cifar10_small --set data.dataset=folder --set data.val_split=val",
    "digits_as_timm": f"--steps-file {ROOT}/examples/as_timm.yaml --profile digits_as_timm --tables-only",
    "digits_noisy": "--profile digits_noisy",
    "digits_noisy_beyond": "--roadmap beyond --profile digits_noisy",
    "digits_noisy_factorial": "--ablate factorial:32 --profile digits_noisy",
    "digits_noisy_references": "--profile digits_noisy",
}


def unpack(archive: Path, runs: Path) -> None:
    """Unpacks records into a folder of runs."""
    with tarfile.open(archive) as opened:
        opened.extractall(runs, filter="data")


def collect(report: str, out: Path, folder: Path, *options: str) -> None:
    """Makes a report from its records, which are unpacked into `folder`."""
    unpack(ROOT / "reports" / report / NAME, folder / "runs")
    words = ["runs", "--out", str(out), *shlex.split(REPORTS[report]), *options]
    subprocess.run([sys.executable, str(ROOT / "collect.py"), *words], cwd=folder, check=True, timeout=600)


if __name__ == "__main__":
    for name in REPORTS:
        with tempfile.TemporaryDirectory() as folder:
            collect(name, ROOT / "reports" / name, Path(folder), "--records")
