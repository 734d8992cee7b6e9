"""How PyTorch is set up on a device."""

from __future__ import annotations

import sys

import pytest

from roadmap import ROOT
from tests.helpers import commands

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
