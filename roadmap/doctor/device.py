"""The device that would train: what PyTorch knows of it, and what its data-loading workers need."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from roadmap.config import RunConfig
from roadmap.data.workers import expected_rate, shared_bytes, workers_of
from roadmap.doctor.environment import check_shared_memory
from roadmap.doctor.findings import Finding
from roadmap.errors import ConfigError
from roadmap.provenance import cpu
from roadmap.training.device import select_device

# reports/doctor/nvidia-h100-80gb-hbm3: eager, in bf16, with augmentation
TAKES = "an H100 trains ConvNeXt-T on 2,000 images/s, and small networks on more"


def check_device(config: RunConfig) -> tuple[list[Finding], str | None]:
    """The findings, and the device's type, None if the configuration's is not there."""
    try:
        device = select_device(config)
    except ConfigError as error:
        if config.system.device not in ("cuda", "mps"):
            raise  # of other settings, such as recipe.precision
        fix = "install a PyTorch built for this machine's driver: https://pytorch.org/get-started"
        return [
            Finding("device", str(p.where), p.message, status="error", fix=fix) for p in error.problems
        ], None
    findings = [Finding("device", "PyTorch", torch.__version__, status="ok")]
    findings += _cuda(device) if device.type == "cuda" else _other(device)
    findings.append(_compiler(device))
    workers = workers_of(config, device.type, streams=False)
    batch = min(config.recipe.global_batch, config.recipe.local_batch or config.recipe.global_batch)
    image = config.model.in_chans * config.data.image_size**2
    if (rate := expected_rate(config)) is not None:
        findings.append(Finding("device", "data-loading workers", f"{rate}; {TAKES}"))
    findings.append(check_shared_memory(shared_bytes(workers, batch * image), workers))
    return findings, device.type


def check_torchvision(config: RunConfig) -> Iterator[Finding]:
    """Whether torchvision finds its data set, and an image of each split can be decoded."""
    from roadmap.data.datasets import make_source  # which imports timm

    for split in ("train", "val"):
        where = f"{config.system.data_dir}, {split}"
        try:
            source = make_source(config, "train" if split == "train" else "val")
            source[0]
            yield Finding("data", where, f"{len(source):,} images, the first of which decodes", status="ok")
        except (ConfigError, OSError) as error:
            yield Finding("data", where, str(error), status="error")


def _cuda(device: torch.device) -> Iterator[Finding]:
    count = torch.cuda.device_count()
    for index in range(count):
        found = torch.cuda.get_device_properties(index)
        what = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, capability {found.major}.{found.minor}"
        yield Finding("device", f"cuda:{index}", what, status="ok")
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    versions = f"CUDA {torch.version.cuda}, cuDNN {cudnn}"
    yield Finding("device", "libraries", versions, status="ok")
    modern = torch.cuda.get_device_capability(device) >= (8, 0)
    yield Finding(
        "device",
        "bf16 and TF32",
        "supported" if modern else "not supported",
        status="ok" if modern else "warning",
        fix="" if modern else "train with --set recipe.precision=fp16",
    )
    if count > 1:
        there = torch.distributed.is_available() and torch.distributed.is_nccl_available()
        yield Finding(
            "device",
            "NCCL",
            "available" if there else "not available",
            status="ok" if there else "error",
            fix="" if there else "install a PyTorch with NCCL to train a run on several GPUs",
        )
    free, total = torch.cuda.mem_get_info(device)
    idle = free > 0.8 * total
    yield Finding(
        "device",
        "memory",
        round(free / 2**30, 1),
        "free",
        "GiB",
        "at least 80 % of all",
        "ok" if idle else "warning",
        "" if idle else "another process uses this GPU: see nvidia-smi",
    )


def _other(device: torch.device) -> Iterator[Finding]:
    yield Finding("device", device.type, cpu() if device.type == "cpu" else "Apple's GPU", status="ok")
    if device.type == "cpu":
        # a driver without a PyTorch that knows it is a frequent reason of slow runs
        hidden = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
        if hidden:
            what = "there is an NVIDIA GPU, which this PyTorch does not see"
            fix = "install a PyTorch built for this driver: https://pytorch.org/get-started"
            yield Finding("device", "GPU", what, status="error", fix=fix)
        yield Finding("device", "PyTorch's threads", torch.get_num_threads(), status="ok")


def _compiler(device: torch.device) -> Finding:
    """What torch.compile needs, without compiling anything."""
    missing = [] if any(map(shutil.which, ("cc", "gcc", "g++", "clang"))) else ["a C compiler"]
    if device.type == "cuda" and find_spec("triton") is None:
        missing.append("Triton")
    if not missing:
        return Finding("device", "torch.compile", "a compiler is there; --check tries it", status="ok")
    fix = "install it, or leave system.compile off"
    what = f"needs {' and '.join(missing)}, which this machine does not have"
    return Finding("device", "torch.compile", what, status="warning", fix=fix)
