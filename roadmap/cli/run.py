"""The command line that trains or evaluates one step of the roadmap."""

from __future__ import annotations

import argparse
from pathlib import Path

from roadmap.cli.options import Parser, add_config_options, add_eval_options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = Parser(
        description="Train or evaluate one step. A run that was stopped or killed resumes where it was."
    )
    options.add_argument("step", metavar="STEP", help="the step's id; `python -m roadmap steps` lists them")
    add_config_options(options)
    options.add_argument(
        "--seed", type=int, default=0, help="seed of initialization, order and augmentation (default: 0)"
    )
    options.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (default: runs)"
    )
    mode = options.add_mutually_exclusive_group()
    mode.add_argument(
        "--plan", action="store_true", help="print the network, its cost and the budget; train nothing"
    )
    mode.add_argument("--eval", action="store_true", help="evaluate the run's last checkpoint; train nothing")
    mode.add_argument(
        "--profile-steps",
        type=int,
        metavar="N",
        help="profile N iterations of the training; see profile/ in the run's folder",
    )
    add_eval_options(options)
    return options


def run(arguments: argparse.Namespace) -> int:
    """Plans, evaluates or trains; returns the exit code."""
    from roadmap.cli.arguments import eval_options, load_config

    config = load_config(arguments)
    options = eval_options(arguments, config)
    if arguments.eval:
        from roadmap.training.evaluate import evaluate_run

        return evaluate_run(config, arguments.runs, **options)
    from roadmap.run import print_plan, train_run

    return (
        print_plan(config, arguments.runs)
        if arguments.plan
        else train_run(config, arguments.runs, arguments.profile_steps)
    )
