"""The device that a run computes on, and how PyTorch uses it: threads, precision, memory."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from roadmap.config import RunConfig
from roadmap.errors import config_error
from roadmap.provenance import cpu, runs_per_gpu

NO_MEMORY = re.compile(  # in messages of allocators, cuBLAS and cuDNN, whose search ends so without memory
    "out of memory|can't allocate memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED"
    "|Unable to find a valid cuDNN algorithm|was unable to find an engine to execute this computation"
)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
# The type of the operations that autocast covers; TF32 has the type float32, and is set beside autocast.
PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def select_device(config: RunConfig, local_rank: int = 0, *, training: bool = True) -> torch.device:
    """The device that the configuration names, the `local_rank`-th of its kind; `auto` is CUDA
    where there is one.

    ConfigError where it is unavailable, or lacks what `training` needs.
    """
    name = config.system.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if (name == "cuda" and not torch.cuda.is_available()) or (
        name == "mps" and not torch.backends.mps.is_available()
    ):
        raise config_error(
            "system.device", f"'{name}' is unavailable on this machine; 'auto' takes what there is"
        )
    if training and config.system.sync_bn and name != "cuda":
        raise config_error(
            "system.sync_bn",
            f"needs CUDA, the only device of PyTorch's synchronized BN; this run is on {name}",
        )
    device = torch.device(name)
    if name == "cuda":
        if (number := gpu_of(local_rank)) is None:
            raise config_error(
                f"process {local_rank} of this machine",
                f"has no GPU, for it sees {torch.cuda.device_count()}; start as many processes",
            )
        device = torch.device(name, number)
    if training and config.recipe.precision == "tf32" and not has_tf32(device):
        raise config_error(
            "recipe.precision",
            f"'tf32' needs a GPU that has it, such as NVIDIA's since Ampere; on this {name},"
            " --set recipe.precision=fp32 is as fast",
        )
    return device


def gpu_of(local_rank: int) -> int | None:
    """The GPU of the `local_rank`-th process of a machine, None if it has none.

    A launcher such as `srun --gpus-per-task=1` shows each process its own as the only one.
    """
    count = torch.cuda.device_count()
    return local_rank if local_rank < count else 0 if count == 1 else None


def has_tf32(device: torch.device) -> bool:
    """Whether the device can multiply float32 numbers in TF32."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_tf32_supported()


def set_up(config: RunConfig, device: torch.device) -> None:
    """PyTorch's threads and precision, and whether it may choose its algorithms by their speed."""
    system = config.system
    if system.threads is not None:
        torch.set_num_threads(system.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.reset_peak_memory_stats(device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    else:
        keep_memory()
    torch.use_deterministic_algorithms(system.deterministic)
    torch.backends.cudnn.benchmark = not system.deterministic
    with warnings.catch_warnings():
        # PyTorch 2.9 recommends newer switches, once; Inductor reads the older ones, and mixing both fails
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        # also off beside bf16 and fp16: what autocast leaves in float32 needs its precision
        allow_tf32(config.recipe.precision == "tf32")


def allow_tf32(allowed: bool) -> None:
    """Has CUDA multiply float32 matrices and convolve in TF32, which is fast and keeps 10 bits of a factor's
    fraction, or in IEEE's single precision.

    PyTorch's default is one for matrices and the other for convolutions.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def float32_precision() -> dict[str, str]:
    """The precision that PyTorch is set to multiply and convolve float32 tensors in, for provenance.json."""
    switches = {"matmul": torch.backends.cuda.matmul.allow_tf32, "conv": torch.backends.cudnn.allow_tf32}
    return {name: "tf32" if allowed else "ieee" for name, allowed in switches.items()}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """`allow_tf32` inside the block."""
    matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv


def keep_memory() -> None:
    """Has glibc keep freed memory in the process, where returning it would mean a page fault for each page
    when it is needed again.

    At 224 px that took about a seventh of a training step of ConvNeXt-T on a CPU. Peak memory stays the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The type of the recipe's precision."""
    dtype = PRECISIONS[config.recipe.precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def hardware(device: torch.device, count: int = 1) -> str:
    """What a result was computed on: the GPU or processor, and how many processes."""
    if device.type != "cuda":
        return cpu() if count == 1 else f"{cpu()}, {count} processes"
    name = torch.cuda.get_device_name(device)
    shared = f", shared by {runs_per_gpu()} runs" if runs_per_gpu() > 1 else ""
    return (name if count == 1 else f"{count} x {name}") + shared


class OutOfMemory(RuntimeError):
    """The device cannot hold a micro-batch; the message suggests what to try."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no memory for an operation; few of such errors have a class of their own."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, torch.OutOfMemoryError) or NO_MEMORY.search(str(error)) is not None
    )


def is_lost() -> bool:
    """Whether this process cannot use its GPU any more: after some errors, such as an assertion in a kernel,
    an illegal address or a fault of the GPU, every later call in their CUDA context fails, too.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except RuntimeError as error:
        return not is_out_of_memory(error)
    return False


@contextmanager
def oom_hint(what: str, suggestions: list[str]) -> Iterator[None]:
    """OutOfMemory with `suggestions`, where the device has no memory for `what` at a time."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        advice = f"try {', or '.join(suggestions)}" if suggestions else "the network needs a larger device"
        raise OutOfMemory(f"out of memory with {what} at a time; {advice}") from error


def oom_suggestions(config: RunConfig, micro: int) -> list[str]:
    """Settings that take less memory than `micro` images at a time do."""
    recipe, system, half = config.recipe, config.system, micro // 2
    suggestions = [] if system.grad_checkpointing else ["--set system.grad_checkpointing=true"]
    if micro % (4 if recipe.mixes else 2) == 0:
        # BN would see fewer images at once, which makes it another recipe
        bn = config.has_batch_norm
        value = f"recipe.local_batch={recipe.group // 2}" if bn else f"system.micro_batch={half}"
        suggestions.append(f"--set {value}, {half} images at a time")
    return suggestions


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak memory of tensors on a GPU so far, in MiB; None on other devices, where PyTorch does not count."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def synchronize(device: torch.device) -> None:
    """Waits for all work that is queued on the device; nothing is on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
