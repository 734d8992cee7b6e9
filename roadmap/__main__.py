"""All commands under one name: `convnext-roadmap`, which pip installs, or `python -m roadmap`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from roadmap.bench.options import add_bench_options
from roadmap.cli import collect as cli_collect
from roadmap.cli import run as cli_run
from roadmap.cli.options import Parser, add_config_options, add_kind_options, add_roadmap_options, main_of
from roadmap.data.options import add_prepare_options
from roadmap.doctor.options import add_doctor_options
from slurm import cancel, logs, status, submit

SCRIPTS: dict[str, tuple[Any, str]] = {  # in a checkout, each is also a script
    "run": (cli_run, "train or evaluate one step"),
    "submit": (submit, "train every step with several seeds, on Slurm or on this machine"),
    "status": (status, "the states of the runs"),
    "logs": (logs, "the log of a run's job"),
    "cancel": (cancel, "stop runs"),
    "collect": (cli_collect, "tables, figures and a page from finished runs"),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    name = Path(sys.argv[0]).name
    options = Parser(
        prog="python -m roadmap" if name == "__main__.py" else name,
        description="The ConvNeXt modernization roadmap.",
    )
    commands = options.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for script, (module, help_text) in SCRIPTS.items():
        its = module.parser()
        how = {"help": help_text, "description": its.description, "conflict_handler": "resolve"}
        commands.add_parser(script, parents=[its], add_help=False, **how)
    steps = commands.add_parser(
        "steps", help="the tree of steps, what each changes, and its block as a sentence"
    )
    add_roadmap_options(steps)
    check = commands.add_parser(
        "verify", help="parameters and GMACs of every step and the paper's; exit code 1 if one is wrong"
    )
    add_roadmap_options(check)
    check.add_argument("--all", action="store_true", help="all roadmaps of the file")
    check.add_argument(
        "--references", action="store_true", help="instead, the reference steps, counted in timm's networks"
    )
    explain = commands.add_parser(
        "explain",
        help="the resolved configuration of a step, and what set each value; or what each key means",
        description=(
            "With STEP, its resolved configuration: each key's value, what set it, and where. With --keys,"
            " what each key means, its value in the base, and what it accepts, as in docs/config.md."
        ),
    )
    what = explain.add_mutually_exclusive_group(required=True)
    what.add_argument("step", metavar="STEP", nargs="?")
    what.add_argument(
        "--keys",
        metavar="PREFIX",
        nargs="?",
        const="",
        help="describe the keys of a section such as recipe or model.block, or one key (default: all)",
    )
    add_config_options(explain)
    diff = commands.add_parser("diff", help="the values in which two steps differ")
    diff.add_argument("one", metavar="A")
    diff.add_argument("other", metavar="B")
    add_config_options(diff)
    schema = commands.add_parser("schema", help="the JSON Schema of steps files, for completion in an editor")
    schema.add_argument(
        "--markdown",
        action="store_true",
        help="instead, a table of all keys in Markdown, as in docs/config.md",
    )
    schema.add_argument("--out", type=Path, metavar="FILE", help="write it there (default: print it)")
    weights = commands.add_parser(
        "weights", help="whether a file of weights fits a step's network; exit code 1 if not"
    )
    weights.add_argument("step", metavar="STEP")
    weights.add_argument(
        "source", metavar="FILE", help="a path or URL: ours, timm's or the original repository's names"
    )
    add_config_options(weights)
    export = commands.add_parser("export", help="write a run's weights as a file that timm loads")
    export.add_argument("run_dir", type=Path, metavar="RUN", help="the run's directory")
    export.add_argument("out", type=Path, metavar="FILE", help="the file, .safetensors or .pth")
    add_kind_options(export)
    export.add_argument(
        "--names", choices=["timm", "ours"], default="timm", help="whose parameter names (default: timm's)"
    )
    add_bench_options(
        commands.add_parser("bench", help="throughput, memory and %% of peak FLOP/s of every step")
    )
    add_doctor_options(
        commands.add_parser("doctor", help="whether this machine is ready to train, and computes right")
    )
    add_prepare_options(
        commands.add_parser("prepare", help="write an image folder as tar shards of smaller images")
    )
    return options


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    if arguments.command in SCRIPTS:
        code: int = SCRIPTS[arguments.command][0].run(arguments)
        return code
    if arguments.command == "bench":
        from roadmap.bench.bench import bench

        return bench(arguments)
    if arguments.command == "doctor":
        from roadmap.doctor.doctor import doctor

        return doctor(arguments)
    if arguments.command == "prepare":
        from roadmap.data.prepare import prepare_folder

        return prepare_folder(arguments)
    from roadmap.cli.inspect import COMMANDS

    return COMMANDS[arguments.command](arguments)


def main() -> int:
    """The console command; returns the exit code."""
    return main_of(parser(), run)


if __name__ == "__main__":
    sys.exit(main())
