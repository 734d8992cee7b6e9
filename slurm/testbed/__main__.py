"""A single-machine Slurm for tests: python -m slurm.testbed run -- srun --nodes=2 hostname."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from roadmap.cli.options import Parser
from roadmap.signals import exit_on_sigterm
from slurm.testbed.bed import FOREIGN, Testbed
from slurm.testbed.config import Settings, Unusable
from slurm.testbed.packages import install

DEFAULT = Settings()
EPILOG = """\
A testbed is a real Slurm with accounting on one machine, run by root from Debian's packages, \
in its own folder and on its own ports.
Several may run at a time. Its nodes n1, n2, ... have as many CPUs and GPUs as the options give: \
it schedules them, but
they need not exist. Partitions are main, short (time limit 2 minutes) and low, whose jobs are requeued
when others need the nodes.

  python -m slurm.testbed install
  python -m slurm.testbed start
  eval "$(python -m slurm.testbed env)"; sinfo
  python -m slurm.testbed stop
"""
HELP = {
    "nodes": "number of nodes, each a slurmd",
    "cpus": "CPUs of a node",
    "memory_mb": "memory of a node",
    "gpus": "GPUs of a node, half of type a100 and half of h100, which need not exist",
    "max_array_size": "MaxArraySize: one more than the highest index that an array may have",
    "grace_s": "seconds that a preempted job is given",
    "slurmd_timeout_s": "seconds of silence after which a node is down",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = Parser(
        prog="python -m slurm.testbed",
        description="Start and stop a single-machine Slurm for tests.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = options.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("install", help="install Debian's packages where they are missing; starts no service")
    for name, summary in {
        "start": "start one, and wait until it runs jobs",
        "run": "start one, run a command on it, stop it, and exit as the command did",
        "stop": "kill its daemons and jobs, and delete all but logs and configuration",
        "status": "show its daemons and nodes; exit code 1 if a daemon is missing",
        "env": "print lines that make a shell's Slurm commands use it, for eval",
    }.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        command.add_argument(
            "--folder",
            type=Path,
            metavar="DIR",
            help=f"folder of all its files (default: {default_folder()})",
        )
        if name in {"start", "run"}:
            add_settings(command)
        if name == "run":
            command.add_argument("words", nargs="+", metavar="COMMAND", help="after a --, what to run")
    return options


def add_settings(command: argparse.ArgumentParser) -> None:
    """An option for each setting."""
    for field in dataclasses.fields(Settings):
        if field.name in HELP:
            option, text = (
                f"--{field.name.replace('_', '-')}",
                f"{HELP[field.name]} (default: {field.default})",
            )
            command.add_argument(option, type=int, default=field.default, metavar="N", help=text)
    command.add_argument(
        "--without-accounting",
        dest="accounting",
        action="store_false",
        help="no MariaDB, no slurmdbd, and no sacct",
    )


def default_folder() -> Path:
    """The folder of a testbed without --folder."""
    return Path(tempfile.gettempdir()) / "slurm-testbed"


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that the options give."""
    return Settings(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)})


def run_command(bed: Testbed, words: list[str]) -> int:
    """Runs a command on a testbed that is stopped afterwards; returns the command's exit code."""
    exit_on_sigterm()
    with bed:
        try:
            code = subprocess.run(words, env=bed.environment, check=False).returncode
        except OSError as reason:
            raise Unusable(f"{words[0]}: {reason.strerror}") from None
    return code if code >= 0 else 128 - code


def show_status(bed: Testbed) -> int:
    """Prints daemons and nodes."""
    alive = bed.alive()
    for name, pid in alive.items():
        print(f"{name:12} {'not running' if pid is None else f'pid {pid}'}")
    if alive["slurmctld"]:
        print(bed.run("sinfo", check=False).stdout, end="")
    return 0 if all(alive.values()) else 1


def show_environment(bed: Testbed) -> None:
    """Prints lines for a shell's eval."""
    for name in sorted(name for name in os.environ if name.startswith(FOREIGN) and name != "SLURM_CONF"):
        print(f"unset {name}")
    for name in ("SLURM_CONF", "PATH"):
        print(f"export {name}={shlex.quote(bed.environment[name])}")


def main() -> int:
    """Runs one command; exit code 2 if the testbed cannot be used."""
    arguments = parser().parse_args()
    try:
        if arguments.command == "install":
            install()
            return 0
        bed = Testbed(
            arguments.folder or default_folder(),
            settings_of(arguments) if hasattr(arguments, "nodes") else None,
        )
        if arguments.command == "run":
            return run_command(bed, arguments.words)
        if arguments.command == "start":
            started = time.monotonic()
            bed.start()
            print(f"{bed.plan.folder}: {len(bed.nodes)} nodes after {time.monotonic() - started:.1f} s")
        elif arguments.command == "stop":
            bed.stop()
        elif arguments.command == "env":
            show_environment(bed)
        else:
            return show_status(bed)
    except (Unusable, OSError) as reason:
        print(f"python -m slurm.testbed: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
