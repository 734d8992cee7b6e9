"""How PyTorch is set up on a device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from roadmap import ROOT
from roadmap.config import RunConfig
from roadmap.errors import ConfigError
from roadmap.steps import load_roadmap, resolve
from roadmap.training.compiled import compiling
from roadmap.training.device import (
    OutOfMemory,
    allow_tf32,
    float32_precision,
    oom_hint,
    select_device,
    set_up,
    tf32,
)
from tests.helpers import commands

CPU = torch.device("cpu")
BY_DEFAULT = {"matmul": "ieee", "conv": "tf32"}  # of PyTorch

FAULTS = """
import resource, statistics, torch
from roadmap.training.device import keep_memory

def counted():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)  # 64 MiB, 16,384 pages: more than glibc learns to keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def faults():
    return int(statistics.median(counted() for _ in range(21)))\
  # the kernel may take pages away for reasons of its own

given_back = faults()
keep_memory()
torch.ones(16 << 20)
print(given_back, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is not glibc")
def test_memory_that_is_freed_is_kept() -> None:
    done = commands.run([sys.executable, "-c", FAULTS], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    given_back, kept = map(int, done.stdout.split())
    assert kept < 100
    assert given_back > 10 * kept


def config_of(**overrides: Any) -> RunConfig:
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return resolve(load_roadmap(), "gelu", profile="digits", overrides=given)


@pytest.fixture
def switches() -> Iterator[None]:
    """PyTorch's own at the start of a test; afterwards those that an earlier test's training left."""
    with tf32(False):
        torch.backends.cudnn.allow_tf32 = True
        yield


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize(
    ("precision", "computed"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee"), ("fp16", "ieee")]
)
def test_a_precision_sets_what_float32_is_multiplied_and_convolved_in(precision: str, computed: str) -> None:
    set_up(config_of(recipe__precision=precision), CPU)
    assert float32_precision() == {"matmul": computed, "conv": computed}


@pytest.mark.usefixtures("switches")
def test_tf32_inside_a_block_ends_with_it() -> None:
    with tf32(True):
        assert set(float32_precision().values()) == {"tf32"}
        with tf32(False):
            assert set(float32_precision().values()) == {"ieee"}
    assert float32_precision() == BY_DEFAULT


@pytest.mark.usefixtures("switches")
def test_inductor_reads_the_switches_that_are_set() -> None:
    """An error in PyTorch where its older and newer switches are mixed."""
    for allowed in (True, False):
        allow_tf32(allowed)
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        assert torch.backends.cuda.matmul.allow_tf32 is allowed


def test_training_in_tf32_needs_a_device_that_has_it() -> None:
    config = config_of(recipe__precision="tf32", system__device="cpu")
    with pytest.raises(ConfigError, match=r"recipe\.precision 'tf32' needs a GPU.*recipe\.precision=fp32"):
        select_device(config)
    assert select_device(config, training=False) == CPU


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        RuntimeError("FIND was unable to find an engine to execute this computation after trying 9 plans"),
        getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=str,
)
def test_every_lack_of_memory_gets_the_same_advice(error: RuntimeError) -> None:
    def advised() -> str:
        with pytest.raises(OutOfMemory) as raised, oom_hint("8 images", []), oom_hint("4 images", ["less"]):
            raise error
        return str(raised.value)

    assert advised() == "out of memory with 4 images at a time; try less"
    with pytest.raises(type(error)), compiling():
        raise error


@pytest.mark.parametrize("message", ["CUDA error: device-side assert triggered", "cuDNN error: BAD_PARAM"])
def test_other_errors_of_a_device_are_no_lack_of_memory(message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{message}$"), oom_hint("4 images", ["less"]):
        raise RuntimeError(message)
