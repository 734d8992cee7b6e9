"""`python -m roadmap doctor`: is this machine ready to train?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from roadmap.cli.arguments import select
from roadmap.config import RunConfig
from roadmap.data.locate import kind_of
from roadmap.doctor.environment import check_dataset, check_environment
from roadmap.doctor.findings import Finding, is_wrong, show, summary
from roadmap.doctor.options import CORRECTNESS, SECONDS, SPEED
from roadmap.doctor.runner import Runner
from roadmap.doctor.slurm_checks import check_slurm
from roadmap.errors import config_error, relative
from roadmap.files import write_errors
from slurm import CLUSTER_YAML
from slurm.cluster import load_cluster

OUT = Path("doctor")


def doctor(arguments: argparse.Namespace) -> int:
    """Prints the findings as they come; returns 1 if something is wrong."""
    config = _config(arguments)
    names = _wanted(arguments)
    cluster = None
    if arguments.cluster is not None:
        cluster = load_cluster(arguments.cluster, arguments.cluster_file or CLUSTER_YAML)
    elif arguments.cluster_file is not None:
        raise config_error("--cluster-file", "needs the name of an entry, --cluster")
    out = (arguments.out or OUT).absolute()
    if names:
        with write_errors(out):
            out.mkdir(parents=True, exist_ok=True)
    printing = not arguments.json
    findings: list[Finding] = []

    def section(heading: str, found: Iterable[Finding]) -> None:
        made = list(found)
        findings.extend(made)
        if printing:
            show(made, heading)

    section("Environment", check_environment(arguments.runs))
    if arguments.profile or config.system.data_dir is not None:
        section("Data", check_dataset(config))
    section("Slurm", check_slurm(arguments.cluster, cluster))
    from roadmap.doctor.device import check_device, check_torchvision  # import PyTorch

    found, device = check_device(config)
    section("Device", found)
    if kind_of(config.data) == "torch" and not is_wrong(findings):
        section("Images", check_torchvision(config))
    if names and device is not None:
        seconds = arguments.seconds or SECONDS
        findings = _run(names, device, out, seconds, findings, show if printing else None)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(summary(findings))
    return int(is_wrong(findings))


def _run(
    names: list[str],
    device: str,
    out: Path,
    seconds: float,
    before: list[Finding],
    show: Callable[[list[Finding], str], None] | None,
) -> list[Finding]:
    """Runs the checks of --check and --bench; returns all findings."""

    def ended(name: str, found: list[Finding], seconds: float) -> None:
        if show is not None:
            what = (CORRECTNESS | SPEED)[name][0]
            show(found, f"{name}: {what} ({seconds:.0f} s)")

    runner = Runner(device, out, seconds, before, ended)
    findings = runner.run(names)
    if show is not None:
        print(f"{relative(out)}/checks.csv")
    return findings


def _wanted(arguments: argparse.Namespace) -> list[str]:
    """The checks to run, in their order; ConfigError for options that only --check and --bench use."""
    if arguments.seconds is not None and not 0 < arguments.seconds < float("inf"):
        raise config_error("--seconds", f"must be more than 0, not {arguments.seconds:g}")
    for option in ("seconds", "out"):
        if getattr(arguments, option) is not None and not (arguments.check or arguments.bench):
            raise config_error(f"--{option}", "needs --check or --bench")
    chosen = [*(CORRECTNESS if arguments.check else ()), *(SPEED if arguments.bench else ())]
    if arguments.only is None:
        return chosen
    if other := [name for name in arguments.only if name not in chosen]:
        option = "--check" if other[0] in CORRECTNESS else "--bench"
        raise config_error("--only", f"{other[0]} is a part of {option}, which is not given")
    return [name for name in chosen if name in arguments.only]


def _config(arguments: argparse.Namespace) -> RunConfig:
    """The configuration of the roadmap's last step, on the device of the command line."""
    selection = select(arguments)
    config = selection.resolve(list(selection.roadmap.steps)[-1])
    if arguments.device is None:
        return config
    return config.model_copy(update={"system": config.system.model_copy(update={"device": arguments.device})})
