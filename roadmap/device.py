"""The device that a run computes on, and how PyTorch is to use it."""

from __future__ import annotations

import os

import torch

from roadmap.provenance import cpu
from roadmap.recipe import RunConfig
from roadmap.strict_yaml import ConfigError, Problem


def select_device(config: RunConfig, local_rank: int = 0) -> torch.device:
    """The device that the configuration names, the `local_rank`-th of its kind; `auto` is CUDA where there is one."""
    name = config.system.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if (name == "cuda" and not torch.cuda.is_available()) or (name == "mps" and not torch.backends.mps.is_available()):
        raise ConfigError([Problem("system.device", f"'{name}' is not to be had on this machine; 'auto' takes what there is")])
    if config.system.sync_bn and name != "cuda":
        raise ConfigError(
            [Problem("system.sync_bn", f"needs CUDA, for PyTorch's synchronised BN has no other home; this run is on {name}")]
        )
    return torch.device(name, local_rank % torch.cuda.device_count()) if name == "cuda" else torch.device(name)


def set_up(config: RunConfig, device: torch.device) -> None:
    """PyTorch's threads, and whether it may choose its algorithms by their speed."""
    system = config.system
    if system.threads is not None:
        torch.set_num_threads(system.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.reset_peak_memory_stats(device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    torch.use_deterministic_algorithms(system.deterministic)
    torch.backends.cudnn.benchmark = not system.deterministic


def hardware(device: torch.device, count: int = 1) -> str:
    """What a result was computed on: the GPU or processor, and how many processes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu()
    return name if count == 1 else f"{count} x {name}" if device.type == "cuda" else f"{name}, {count} processes"


class OutOfMemory(RuntimeError):
    """The device cannot hold a micro-batch; the message says what to try."""


def out_of_memory(error: RuntimeError, config: RunConfig, micro: int) -> str | None:
    """What to try where `error` says that `micro` images at a time are too many; None if it says something else."""
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        return None
    recipe, half = config.recipe, micro // 2
    ways = [] if config.system.grad_checkpointing else ["--set system.grad_checkpointing=true"]
    if micro % (4 if recipe.mixes else 2) == 0:
        # BN would see fewer images at once, which makes it another recipe
        value = f"recipe.local_batch={half}" if config.model.block.norm.kind == "bn" else f"system.micro_batch={half}"
        ways.append(f"--set {value}, {recipe.global_batch // half} turns for a batch of {recipe.global_batch} on one device")
    what = f"out of memory with {micro} images of {config.data.image_size} px at a time"
    return f"{what}; try {', or '.join(ways)}" if ways else f"{what}: the network needs a larger device"


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory that tensors have taken on a GPU so far, in MiB; None where nobody counts."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
