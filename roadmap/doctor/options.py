"""The command line of `python -m roadmap doctor`, which imports nothing but argparse."""

from __future__ import annotations

import argparse
from pathlib import Path

from roadmap.cli.options import add_config_options

# name: what it checks, seconds it may take on a GPU
CORRECTNESS = {
    "forward": (
        "logits, loss and gradients of every step, against float32 on the CPU: in float32, bf16, fp16",
        120,
    ),
    "compile": ("every gradient of a compiled network against the eager one's, and no graph breaks", 120),
    "sync": ("no iteration waits for the device", 60),
    "training": ("20 iterations with augmentation have the losses of the CPU", 90),
    "resume": ("a run that is killed twice ends with the same bits as one that is not", 120),
    "deterministic": ("every step has deterministic kernels, which give the same bits twice", 90),
    "distributed": ("two processes train as one does, on GPUs with synchronized BN, too", 90),
}
SPEED = {
    "peak": ("copy bandwidth, matrix products and convolutions", 25),
    "throughput": ("ResNet-50 and ConvNeXt-T, ours and timm's, by `bench`", 120),
    "compiled_throughput": ("the same, compiled", 150),
    "kernels": ("depthwise 7x7 by dtype and memory format, layer norms, and a profile of the iteration", 60),
    "loading": ("the loader alone and in the training loop: Pillow, tensors, shards", 60),
}
SECONDS = 600.0


def add_doctor_options(options: argparse.ArgumentParser) -> None:
    """Adds the options of `doctor`."""
    options.description = (
        "Check whether this machine is ready to train: Python and packages, memory, disks, Slurm, data, and"
        " the device. --check computes what training computes, and compares it with the CPU; --bench"
        " measures speed. Exit code 1 if something is wrong."
    )
    options.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda", "mps"],
        help="what trains (default: system.device, which is auto unless it is set)",
    )
    options.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs would go (default: runs)"
    )
    options.add_argument(
        "--cluster", metavar="NAME", help="an entry of the cluster file, which sbatch is to accept"
    )
    options.add_argument(
        "--cluster-file", type=Path, metavar="FILE", help="cluster file (default: slurm/cluster.yaml)"
    )
    options.add_argument(
        "--check", action="store_true", help="check what the device computes (minutes on a CPU)"
    )
    options.add_argument("--bench", action="store_true", help="measure its speed")
    options.add_argument(
        "--only",
        nargs="+",
        choices=[*CORRECTNESS, *SPEED],
        metavar="CHECK",
        help=f"these checks of --check and --bench only: {', '.join([*CORRECTNESS, *SPEED])}",
    )
    options.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help=(
            f"end after that time; what is left is reported as not finished, or as not"
            f" run (default: {SECONDS:g}, for --check"
            " and --bench together)"
        ),
    )
    options.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="results of --check and --bench: checks.csv, log.txt, profiles (default: doctor)",
    )
    options.add_argument("--json", action="store_true", help="print all findings as JSON")
    add_config_options(options)
