"""`collect.py`: runs or published values to a report, once or until all runs are finished."""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from roadmap.cli.arguments import read_overrides, read_precision
from roadmap.errors import ConfigError, Problem, config_error, one_of_these, relative
from roadmap.files import write_atomic, write_errors
from roadmap.report.ablation import Ablation, published
from roadmap.report.columns import ALL, COLUMNS
from roadmap.report.records_archive import NAME, pack_records
from roadmap.report.runs import Experiment, read_experiment
from roadmap.report.tolerance import check, published_top1, read_expected
from roadmap.report.write import AblationReport
from roadmap.steps import load_roadmap
from roadmap.terminal import console, count, live_text, repeat, tally

OUT_OF_TOLERANCE = 3
RUNS_ONLY = (
    "profile", "overrides", "init_from", "kind", "as_trained", "holm", "watch", "check", "against",
    "precision", "interactions", "records",
)  # fmt: skip


def make_report(arguments: argparse.Namespace) -> int:
    """Reads, writes, and prints the table; returns the exit code."""
    _check_options(arguments)
    columns = None if arguments.columns is None else _keys("--columns", arguments.columns, [*COLUMNS, ALL])
    costs = _costs(arguments.x)
    if arguments.watch is not None:
        return _watch(arguments, columns, costs)
    expected = read_expected(arguments.against) if arguments.against else None
    experiments = _experiments(arguments)
    ablations = [_collected(experiment) for experiment in experiments] or [
        _published(arguments.steps_file, name) for name in _paper_names(arguments)
    ]
    if arguments.check is not None and expected is None:
        expected = published_top1(ablations[0])
    records = pack_records(experiments[0].all_runs) if arguments.records else None
    report = AblationReport(ablations, columns)
    files = report.write(arguments.out, costs, tables_only=arguments.tables_only)
    if records is not None:
        files["records"] = [arguments.out / NAME]
        with write_errors(arguments.out):
            write_atomic(arguments.out / NAME, records)
    report.show()
    for kind, paths in files.items():
        console().print(f"{kind}: {', '.join(map(relative, paths))}", soft_wrap=True)
    if expected is None:
        return 0
    verdict = check(ablations[0], expected, arguments.check)
    for line in [*verdict.lines, f"check: {verdict.summary}"]:
        console().print(line, soft_wrap=True)
    return 0 if verdict.passed else OUT_OF_TOLERANCE


def _check_options(arguments: argparse.Namespace) -> None:
    """ConfigError for options that are invalid, alone or together."""
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
        problems.append(Problem("--paper", f"takes no {words}: the paper's values are from its own runs"))
    if arguments.paper is not None and arguments.ablate is not None:
        problems.append(Problem("--ablate", "the paper has values for the path only"))
    if arguments.as_trained and (arguments.overrides or arguments.init_from):
        problems.append(
            Problem("--as-trained", "takes the overrides from the runs; leave out --set and --init-from")
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
        problems.append(Problem("--against", "is the table for --check TOLERANCE; give both"))
    of_one_folder = {"--check": arguments.check is not None, "--records": arguments.records}
    problems += [
        Problem(name, "takes one folder of RUNS and no --watch")
        for name, is_given in of_one_folder.items()
        if is_given and (len(arguments.runs) > 1 or arguments.watch is not None)
    ]
    if arguments.precision is not None and len(arguments.runs) > 1:
        problems.append(Problem("--precision", "takes one folder of RUNS"))
    if arguments.precision is None and arguments.seeds is not None:
        problems.append(Problem("--seeds", "is the size of the first stage of --precision W; give both"))
    if problems:
        raise ConfigError(problems)


def _costs(text: str | None) -> list[str]:
    """The x-axes of the figures of accuracy against cost."""
    if text is None:
        return ["gmacs"]
    from roadmap.report.figures.accuracy_vs_cost import COSTS  # which needs matplotlib

    return list(dict.fromkeys(["gmacs", *_keys("--x", text, COSTS)]))


def _keys(option: str, text: str, known: Iterable[str]) -> list[str]:
    """The keys of a comma-separated list, without duplicates."""
    keys, known = list(dict.fromkeys(key.strip() for key in text.split(",") if key.strip())), list(known)
    if not keys:
        raise config_error(option, f"names nothing; there are {', '.join(known)}")
    if unknown := [key for key in keys if key not in known]:
        raise ConfigError(
            [Problem(option, f"unknown key '{key}'{one_of_these(key, known)}") for key in unknown]
        )
    return keys


def _paper_names(arguments: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(arguments.paper)) or [arguments.roadmap or "convnext_t"]


def _published(steps_file: Path, name: str) -> Ablation:
    """The publication's ablation; ConfigError for a roadmap without published values."""
    roadmap = load_roadmap(steps_file, name)
    ablation = published(roadmap)
    if not ablation.rows:
        message = f"holds no published values for the steps of {roadmap.name}"
        raise config_error(relative(roadmap.path), message)
    return ablation


def _experiments(arguments: argparse.Namespace) -> list[Experiment]:
    overrides = read_overrides(arguments)
    return [
        read_experiment(
            folder,
            steps_file=arguments.steps_file,
            roadmap=arguments.roadmap,
            profile=arguments.profile,
            overrides=overrides,
            kind=arguments.ablate,
            adjusted=arguments.holm,
            trained=arguments.as_trained,
            precision=read_precision(arguments),
            interactions=arguments.interactions,
        )
        for folder in arguments.runs
    ]


def _collected(experiment: Experiment) -> Ablation:
    """The experiment's ablation; ConfigError where no row of it would have a result."""
    ablation = experiment.ablation
    if not any(row.results for row in ablation.rows):
        there = tally(run.state for run in experiment.all_runs)
        message = f"holds no finished run of these configurations ({there} in all); nothing is written"
        left_out = [note for note in ablation.notes if "left out" in note]
        raise config_error(relative(experiment.folder), " ".join([f"{message}.", *left_out]).rstrip("."))
    return ablation


def _watch(arguments: argparse.Namespace, columns: list[str] | None, costs: list[str]) -> int:
    """Writes the report whenever a run has changed, until all runs are finished or Ctrl-C."""
    experiments: list[Experiment] = []
    before = ""

    def update() -> bool:
        nonlocal experiments, before
        experiments = [found.read() for found in experiments] or _experiments(arguments)
        if (now := fingerprint(experiments)) != before:
            report = AblationReport([found.ablation for found in experiments], columns)
            report.write(arguments.out, costs, tables_only=arguments.tables_only)
            show(_totals(experiments))
            before = now
        return all(found.finished for found in experiments)

    with live_text() as show:
        repeat(update, arguments.watch)
    return 0


def fingerprint(experiments: Sequence[Experiment]) -> str:
    """A digest that changes with the state or result of any run, and with the set of runs."""
    digest = hashlib.sha256()
    for run in (run for experiment in experiments for run in experiment.all_runs):
        result = run.result.model_dump_json() if run.result else None
        digest.update(f"{run.run.path}\0{run.state}\0{run.why}\0{result}\n".encode())
    return digest.hexdigest()


def _totals(experiments: Sequence[Experiment]) -> str:
    """'57 runs: 40 done, 2 running, 15 pending'."""
    states = [run.state for experiment in experiments for run in experiment.all_runs]
    return f"{count(len(states), 'run')}: {tally(states)}"
