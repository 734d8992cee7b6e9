"""What an optimizer step takes fused, as in training, and in PyTorch's loop: `python -m
tests.benchmark_optimizer`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from blocks import build_model
from roadmap.bench.interleave import interleave, ratio_of, spread_of
from roadmap.config import RunConfig
from roadmap.provenance import cpu
from roadmap.steps import load_roadmap, resolve
from roadmap.training.device import keep_memory
from roadmap.training.optim import build_optimizer


def stepping(config: RunConfig, fused: bool) -> Callable[[], float]:
    """A measurement of the recipe's optimizer on the step's parameters, in seconds a step."""
    model = build_model(config.ours)
    optimizer = build_optimizer(config.recipe, model)
    for group in optimizer.param_groups:
        group |= {"fused": fused, "foreach": False}
    for parameter in model.parameters():
        parameter.grad = nn.init.normal_(torch.empty_like(parameter), std=1e-3)

    def measure() -> float:
        began = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - began

    measure()
    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{cpu()}, {options.threads} threads; medians, and of the rounds' ratios with their IQR")
    measure("as PyTorch is by default", options.seconds)
    keep_memory()  # which helps the loop, for it makes tensors at every step
    measure("with memory kept, as in runs", options.seconds)


def measure(memory: str, seconds: float) -> None:
    """Prints what the step takes in a ResNet-50 and a ConvNeXt-T, each for so many seconds."""
    for step in ("resnet50", "separate_downsampling"):
        config = resolve(load_roadmap(), step)
        times = interleave({kind: stepping(config, kind == "fused") for kind in ("loop", "fused")}, seconds)
        ratio = ratio_of(times["loop"], times["fused"])
        took = ", ".join(f"{kind} {1e3 * spread_of(times[kind]).median:.1f} ms" for kind in times)
        print(
            f"{memory}: {step}, {config.recipe.optimizer}: {took}; "
            f"{ratio.median:.2f} x ({ratio.low:.2f} to {ratio.high:.2f}, n = {ratio.n})",
            flush=True,
        )


if __name__ == "__main__":
    main()
