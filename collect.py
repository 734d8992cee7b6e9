"""Makes tables and figures from finished runs: python collect.py runs --out reports/mine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from roadmap.command import add_config_options, choices_of, main_of
from roadmap.steps import load_roadmap
from roadmap.strict_yaml import ConfigError, Problem


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description="Make the ablation's tables and figures; runs that are missing are shown as missing.")
    options.add_argument("runs", type=Path, nargs="?", metavar="RUNS", help="a folder of runs of one roadmap and profile")
    options.add_argument("--paper", action="store_true", help="use the paper's own figures instead of runs")
    options.add_argument("--out", type=Path, required=True, metavar="DIR", help="where tables and figures go")
    add_config_options(options)
    return options


def run(arguments: argparse.Namespace) -> int:
    """Reads, writes, and prints the table."""
    from roadmap.report.collect import collect_paper, collect_runs

    if arguments.paper == (arguments.runs is not None):
        raise ConfigError([Problem("collect.py", "takes either a folder of RUNS or --paper")])
    if arguments.paper and arguments.ablate is not None:
        raise ConfigError([Problem("--ablate", "the paper has figures for the path only")])
    if arguments.paper and (arguments.profile is not None or arguments.overrides):
        raise ConfigError([Problem("--paper", "takes no --profile and no --set: the paper's figures are of its own runs")])
    roadmap, choices = load_roadmap(arguments.steps_file, arguments.roadmap), choices_of(arguments)
    if arguments.paper:
        collect_paper(roadmap, arguments.out)
    else:
        collect_runs(roadmap, arguments.runs, arguments.out, ablation=arguments.ablate, **choices)
    return 0


if __name__ == "__main__":
    sys.exit(main_of(parser(), run))
