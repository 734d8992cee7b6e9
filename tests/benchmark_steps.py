"""How many images per second steps train or infer with, relative to the first one, all interleaved:
`python -m tests.benchmark_steps separate_downsampling multiscale_depthwise`.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from roadmap.bench.config import BARE_STEP
from roadmap.bench.interleave import interleave, ratio_of, seconds_each, spread_of
from roadmap.bench.options import MODES
from roadmap.bench.results import OURS
from roadmap.bench.workloads import build
from roadmap.config import RunConfig
from roadmap.provenance import cpu
from roadmap.steps import load_roadmap, resolve
from roadmap.training.device import set_up

CPU = torch.device("cpu")


def config_of(step: str, options: argparse.Namespace) -> RunConfig:
    """The step's network and recipe on a CPU, as `python -m roadmap bench` measures it."""
    here = {
        "recipe.precision": options.precision,
        "recipe.global_batch": options.batch,
        "recipe.local_batch": options.batch,
        "data.image_size": options.size,
        "system.device": "cpu",
        "system.threads": options.threads,
    }
    return resolve(load_roadmap(), step, overrides=BARE_STEP | here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="+", metavar="STEP")
    parser.add_argument("--mode", choices=MODES, nargs="+", default=list(MODES))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="the images' height and width in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each mode")
    options = parser.parse_args()
    configs = {step: config_of(step, options) for step in options.steps}
    set_up(configs[options.steps[0]], CPU)
    print(
        f"{cpu()}, {options.threads} threads, {options.precision}, channels_last, {options.batch} images of"
        f" {options.size} px; medians, and of the rounds' ratios with their IQR"
    )
    for mode in options.mode:
        runs = {step: build(OURS, mode, config, CPU) for step, config in configs.items()}
        for run in runs.values():
            run()
        times = interleave(
            {step: partial(seconds_each, run, CPU, 1) for step, run in runs.items()}, options.seconds
        )
        for step in options.steps:
            ratio = ratio_of(times[options.steps[0]], times[step])
            print(
                f"{mode:9}  {step}: {1e3 * spread_of(times[step]).median:.0f} ms, {ratio.median:.3f}"
                f" ({ratio.low:.3f} to {ratio.high:.3f}), n = {ratio.n}",
                flush=True,
            )


if __name__ == "__main__":
    main()
