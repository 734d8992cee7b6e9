"""What `collect.py` does with its options: which runs or published figures, what of them, once or again and
again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable

from roadmap.cli.arguments import read_overrides
from roadmap.errors import ConfigError, Problem, config_error, one_of_these
from roadmap.report.columns import COLUMNS
from roadmap.report.runs import Experiment, RunSelection, experiment_of
from roadmap.report.tolerance import published_figures, read_expected
from roadmap.report.write import Report, ReportOptions, held_against, name_files, papers, parts_of
from roadmap.steps import load_roadmap

OUT_OF_TOLERANCE = 3
RUNS_ONLY = ("profile", "overrides", "init_from", "kind", "as_trained", "holm", "watch", "check", "against")


def make_report(arguments: argparse.Namespace) -> int:
    """Reads, writes, and prints the table; returns the exit code."""
    _refuse_nonsense(arguments)
    how = ReportOptions(*_chosen(arguments), arguments.tables_only)
    if arguments.paper is None:
        return _watch(arguments, how) if arguments.watch is not None else _collect(arguments, how)
    names = list(dict.fromkeys(arguments.paper)) or [arguments.roadmap or "convnext_t"]
    report = Report(papers([load_roadmap(arguments.steps_file, name) for name in names]))
    files = report.write(arguments.out, how)
    report.show(how)
    name_files(files)
    return 0


def _refuse_nonsense(arguments: argparse.Namespace) -> None:
    """ConfigError for options that have no meaning, or none together."""
    problems = []
    if (arguments.paper is None) == (not arguments.runs):
        problems.append(Problem("collect.py", "takes either a folder of RUNS, or two, or --paper"))
    if max(len(arguments.runs), len(arguments.paper or ())) > 2:
        problems.append(
            Problem("collect.py", "compares two folders of RUNS or two roadmaps of the paper, not more")
        )
    if arguments.paper and arguments.roadmap is not None:
        problems.append(Problem("--roadmap", "is not needed where --paper names the roadmaps"))
    if arguments.paper is not None and (given := [name for name in RUNS_ONLY if getattr(arguments, name)]):
        words = ", ".join(
            {"overrides": "--set", "kind": f"--{arguments.kind}"}.get(name, f"--{name.replace('_', '-')}")
            for name in given
        )
        problems.append(Problem("--paper", f"takes no {words}: the paper's figures are of its own runs"))
    if arguments.paper is not None and arguments.ablate is not None:
        problems.append(Problem("--ablate", "the paper has figures for the path only"))
    if arguments.as_trained and (arguments.overrides or arguments.init_from):
        problems.append(
            Problem("--as-trained", "takes what is set from the runs; leave out --set and --init-from")
        )
    numbers = {
        f"--{name}": value for name in ("watch", "check") if (value := getattr(arguments, name)) is not None
    }
    problems += [
        Problem(name, f"must be more than 0, not {value:g}")
        for name, value in numbers.items()
        if not 0 < value < math.inf
    ]
    if arguments.against is not None and arguments.check is None:
        problems.append(Problem("--against", "is what --check TOLERANCE checks against; give both"))
    if arguments.check is not None and (len(arguments.runs) > 1 or arguments.watch is not None):
        problems.append(Problem("--check", "takes one folder of RUNS and no --watch"))
    if problems:
        raise ConfigError(problems)


def _chosen(arguments: argparse.Namespace) -> tuple[list[str] | None, list[str]]:
    """The columns and the axes; ConfigError for one that there is not."""
    columns = None if arguments.columns is None else _keys("--columns", arguments.columns, COLUMNS)
    if arguments.x is None:
        return columns, ["gmacs"]
    from roadmap.report.figures.accuracy_vs_cost import COSTS  # which needs matplotlib

    return columns, list(dict.fromkeys(["gmacs", *_keys("--x", arguments.x, COSTS)]))


def _keys(option: str, text: str, known: Iterable[str]) -> list[str]:
    """The keys of a list with commas, each once."""
    keys, known = list(dict.fromkeys(key.strip() for key in text.split(",") if key.strip())), list(known)
    if not keys:
        raise config_error(option, f"names nothing; there are {', '.join(known)}")
    if unknown := [key for key in keys if key not in known]:
        raise ConfigError(
            [Problem(option, f"unknown key '{key}'{one_of_these(key, known)}") for key in unknown]
        )
    return keys


def _experiments(arguments: argparse.Namespace) -> list[Experiment]:
    """What the folders hold."""
    choices = RunSelection(
        arguments.steps_file,
        arguments.roadmap,
        arguments.profile,
        read_overrides(arguments),
        arguments.ablate,
        arguments.holm,
        arguments.as_trained,
    )
    return [experiment_of(folder, choices) for folder in arguments.runs]


def _collect(arguments: argparse.Namespace, how: ReportOptions) -> int:
    """Collects runs once, and holds them against what they should be if asked to."""
    expected = read_expected(arguments.against) if arguments.against else None
    report = Report(parts_of([experiment.look() for experiment in _experiments(arguments)]))
    if arguments.check is not None and expected is None:
        expected = published_figures(report.parts[0].ablation)
    files = report.write(arguments.out, how)
    report.show(how)
    name_files(files)
    if expected is None or held_against(report.parts[0], expected, arguments.check).passed:
        return 0
    return OUT_OF_TOLERANCE


def _watch(arguments: argparse.Namespace, how: ReportOptions) -> int:
    """Collects runs until all are finished or Ctrl-C is pressed."""
    from roadmap.report.watch import watch

    watch(
        _experiments(arguments),
        lambda found: Report(parts_of(found)).write(arguments.out, how),
        arguments.watch,
    )
    return 0
