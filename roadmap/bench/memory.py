"""The peak memory of an iteration; `python -m roadmap.bench.memory` measures one subject in a new process."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from blocks.spec import ModelSpec
from roadmap import ROOT
from roadmap.bench.workloads import build, free
from roadmap.config import RunConfig
from roadmap.training.device import set_up, synchronize

logger = logging.getLogger(__name__)
ITERATIONS = 2  # the optimizer's moments exist from the second on
FIRST = 2  # images of a first iteration, in which libraries load what they need


def memory_mb(subject: str, mode: str, config: RunConfig, device: torch.device) -> float | None:
    """The peak memory of a network and its iterations in MiB; None where it cannot be measured.

    On a GPU it is that of tensors; on a CPU it is the growth of a new process that has loaded its libraries.
    """
    if device.type == "cuda":
        return _on_gpu(subject, mode, config, device)
    return _in_process(subject, mode, config) if device.type == "cpu" and sys.platform == "linux" else None


def _on_gpu(subject: str, mode: str, config: RunConfig, device: torch.device) -> float:
    free(device)
    before = torch.cuda.memory_allocated(device)
    run = build(subject, mode, config, device)
    # building may check the compiled network, which needs more memory
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(ITERATIONS):
        run()
    synchronize(device)
    found: float = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    del run
    free(device)
    return found


def _in_process(subject: str, mode: str, config: RunConfig) -> float | None:
    """The output of this module in a new process; None if that failed or was killed."""
    asked = json.dumps(
        {
            "subject": subject,
            "mode": mode,
            "config": config.model_dump_json(),
            "threads": torch.get_num_threads(),
        }
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "roadmap.bench.memory"]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        command,
        input=asked,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env=environment,
    )
    answer = re.search(r"^([\d.]+) MiB$", done.stdout, re.MULTILINE)
    if done.returncode or answer is None:
        why = (
            f"killed by signal {-done.returncode}"
            if done.returncode < 0
            else done.stderr.strip().rpartition("\n")[2]
        )
        logger.warning("the memory of %s, %s, is unknown: %s", config.step, mode, why)
        return None
    return float(answer[1])


def peak_resident_mb() -> float:
    """The largest resident memory of this process since `forget_peak`, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def forget_peak() -> None:
    """Frees unused memory and resets the kernel's peak; OSError where that is not allowed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def small(config: RunConfig) -> RunConfig:
    """The configuration with few images, and one block per stage of a network of ours."""
    model, recipe = config.model, config.recipe
    if isinstance(model, ModelSpec):
        model = model.model_copy(update={"depths": tuple(1 for _ in model.depths)})
    few = recipe.model_copy(update={"global_batch": FIRST, "local_batch": FIRST})
    return config.model_copy(update={"model": model, "recipe": few})


def grown_mb(subject: str, mode: str, config: RunConfig, device: torch.device) -> float:
    """The growth of the process by a subject's network and iterations, in MiB."""
    build(subject, mode, small(config), device)()
    free(device)
    forget_peak()
    before = peak_resident_mb()
    run = build(subject, mode, config, device)
    forget_peak()
    for _ in range(ITERATIONS):
        run()
    return peak_resident_mb() - before


def main() -> None:
    """Prints one line."""
    asked = json.load(sys.stdin)
    config, device = RunConfig.model_validate_json(asked["config"]), torch.device("cpu")
    set_up(config, device)
    torch.set_num_threads(asked["threads"])
    print(f"{grown_mb(asked['subject'], asked['mode'], config, device):.1f} MiB")


if __name__ == "__main__":
    main()
