"""How fast a device is at what training needs: each measurement alone on the machine."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from roadmap.bench.interleave import seconds_each, timed
from roadmap.bench.results import OURS, TIMM, Measurement, read_rows
from roadmap.bench.workloads import convolution, free
from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.data.loader import Loader
from roadmap.deltas import resolve
from roadmap.doctor.correctness import FIRST, LAST, Machine
from roadmap.doctor.findings import measured
from roadmap.doctor.photographs import CLASSES, TRAIN, VAL, write_photographs
from roadmap.provenance import usable_cores
from roadmap.steps import load_roadmap
from roadmap.training.device import allow_tf32, set_up, synchronize
from roadmap.training.engine import Engine

WINDOW_S = 0.05  # of a measurement of one operation
PROFILE_ROWS = 40
# a step of the network with the images' augmentation
AUGMENTED = {
    "data.dataset": "synthetic",
    "system.workers": 0,
    "recipe.pipeline": "tensor",
    "recipe.random_erasing": 0.25,
    "recipe.mixup": 0.8,
    "recipe.cutmix": 1.0,
    "recipe.precision": "bf16",
}


def peak(machine: Machine) -> None:
    """What the device can do: bytes moved, matrix products and convolutions, on random numbers."""
    device, fast = machine.device, machine.is_fast
    _copy(machine)
    free(device)
    size = 8192 if fast else 1024
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("fp16", torch.float16, False),
        *([("tf32", torch.float32, True)] if fast else []),
        ("fp32", torch.float32, False),
    ):
        if not fast and dtype == torch.float16:
            continue  # which no CPU trains with
        allow_tf32(tf32)
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        rate = 2e-12 * size**3 / timed(partial(torch.matmul, a, b), device, WINDOW_S)()
        machine.report(measured("peak", f"matrix product {size}", name, rate, "TFLOP/s"))
        probe = convolution(device, dtype)
        rate = 1e-12 * probe.flop / timed(probe.run, device, WINDOW_S)()
        machine.report(measured("peak", "3x3 convolution, 256 channels", name, rate, "TFLOP/s"))


def _copy(machine: Machine) -> None:
    source = torch.randn((1 << 29) if machine.is_fast else (1 << 23), device=machine.device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), machine.device, WINDOW_S)()
    rate = 8e-12 * source.numel() / seconds
    machine.report(measured("peak", "copy", "bytes read and written", rate, "TB/s"))


def throughput(machine: Machine) -> None:
    """`bench` on the two ends of the path, against timm; its CSV goes to the folder of results."""
    _bench(machine, "throughput", [LAST, FIRST], compiled=False, batch=128)
    if machine.is_fast:
        _bench(machine, "throughput", [LAST], compiled=False, batch=512, rival=False)


def compiled_throughput(machine: Machine) -> None:
    """The same with torch.compile."""
    _bench(machine, "compiled_throughput", [LAST, FIRST], compiled=True, batch=128)


def _bench(
    machine: Machine, check: str, steps: Sequence[str], *, compiled: bool, batch: int, rival: bool = True
) -> None:
    from roadmap.__main__ import parser, run

    with tempfile.TemporaryDirectory() as folder:
        words = ["bench", *(steps if machine.is_fast else steps[:1]), "--out", folder, "--seconds", "1.5"]
        words += [
            "--batch",
            str(batch if machine.is_fast else 2),
            "--set",
            f"system.device={machine.device.type}",
        ]
        words += ["--against", "timm"] if rival else []
        words += ["--set", "system.compile=default"] if compiled else []
        words += ["--mode", "train"] if compiled or not rival else []
        code = run(parser().parse_args(words))
        for path in sorted(Path(folder).glob("*.csv")):
            rows = read_rows(path)
            _report_rows(machine, check, rows)
            target = machine.out / f"{check}-{batch}-{path.name}"
            shutil.copy(path, target)
        machine.report(measured(check, "bench", "exit code", code, at_most=0, fix="see log.txt"))


def _report_rows(machine: Machine, check: str, rows: Sequence[Measurement]) -> None:
    for row in rows:
        subject = f"{row.step}, {row.mode}, {row.subject}, batch {row.batch}"
        machine.report(measured(check, subject, f"throughput, n = {row.n}", row.images_per_s, "images/s"))
        if row.memory_mb is not None:
            machine.report(measured(check, subject, "memory", row.memory_mb, "MiB"))
        if row.subject == TIMM and row.ratio:  # ours over timm's in the same memory format
            name = f"{row.step}, {row.mode}, {OURS} over {TIMM}, batch {row.batch}"
            machine.report(measured(check, name, "ratio of throughputs", 1 / row.ratio, "x"))


def kernels(machine: Machine) -> None:
    """Depthwise convolutions and layer norms by type and format, and where the time of an iteration goes."""
    _depthwise(machine)
    free(machine.device)
    _norms(machine)
    free(machine.device)
    _residual(machine)
    free(machine.device)
    for step in (LAST, FIRST) if machine.is_fast else (LAST,):
        _iteration(machine, step)
        free(machine.device)


def _depthwise(machine: Machine) -> None:
    torch.backends.cudnn.benchmark = True
    types = (torch.bfloat16, torch.float16, torch.float32)
    for channels, size in ((96, 56), (192, 28), (384, 14), (768, 7)):
        for dtype in types if machine.is_fast else (torch.bfloat16, torch.float32):
            for layout in (torch.channels_last, torch.contiguous_format):
                what = f"depthwise 7x7, {channels} x {size} px, {str(dtype)[6:]}, {str(layout)[6:]}"
                for name, run in _depthwise_runs(machine, channels, size, dtype, layout).items():
                    seconds = timed(run, machine.device, WINDOW_S / 2)()
                    machine.report(measured("kernels", what, name, 1e6 * seconds, "us"))


def _depthwise_runs(
    machine: Machine, channels: int, size: int, dtype: torch.dtype, layout: torch.memory_format
) -> dict[str, Callable[[], object]]:
    """PyTorch's convolution and its gradients."""
    device, batch = machine.device, 128 if machine.is_fast else 2
    conv: Any = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
    conv = conv.to(device, dtype, memory_format=layout)
    x = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
    x = x.contiguous(memory_format=layout).requires_grad_()
    y = conv(x)
    gradient = torch.randn_like(y)

    def backward() -> object:
        return torch.autograd.grad(y, [x, conv.weight], gradient, retain_graph=True)

    return {"forward": partial(conv, x), "backward": backward}


def _norms(machine: Machine) -> None:
    """Layer norm of the first stage's activations, as autocast has it and in bf16 throughout."""
    device, batch = machine.device, 128 if machine.is_fast else 2
    x = torch.randn(batch * 56 * 56, 96, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = (torch.ones(96, device=device, requires_grad=True) for _ in range(2))
    half = weight.detach().bfloat16().requires_grad_(), bias.detach().bfloat16().requires_grad_()
    forms: dict[str, Callable[[], Tensor]] = {
        "as autocast has it, then bf16": lambda: functional.layer_norm(
            x.float(), (96,), weight, bias
        ).bfloat16(),
        "bf16 in and out": lambda: functional.layer_norm(x, (96,), *half),
    }
    gradient = torch.randn_like(x)
    for name, form in forms.items():
        seconds = timed(form, device, WINDOW_S)()
        machine.report(measured("kernels", "layer norm, 96 x 56 px", f"forward, {name}", 1e6 * seconds, "us"))
        seconds = timed(partial(_forward_and_backward, form, gradient), device, WINDOW_S)()
        what = f"forward and backward, {name}"
        machine.report(measured("kernels", "layer norm, 96 x 56 px", what, 1e6 * seconds, "us"))


def _residual(machine: Machine) -> None:
    """Layer scale, drop path and the sum at the end of a block of the first stage, and the same as one
    operation.
    """
    device, batch = machine.device, 128 if machine.is_fast else 2
    shape = batch, 96, 56, 56
    shortcut, body = (
        torch.randn(shape, device=device, dtype=dtype)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for dtype in (torch.float32, torch.bfloat16)
    )
    scale = torch.full((96, 1, 1), 0.1, device=device, requires_grad=True)
    kept = torch.full((batch, 1, 1, 1), 1.1, device=device)
    forms: dict[str, Callable[[], Tensor]] = {
        "one after another": lambda: shortcut + body * scale * kept,
        "as torch.addcmul": lambda: torch.addcmul(shortcut, body, scale * kept),
    }
    gradient = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    for name, form in forms.items():
        seconds = timed(partial(_forward_and_backward, form, gradient), device, WINDOW_S)()
        what = f"forward and backward, {name}"
        machine.report(measured("kernels", "residual, 96 x 56 px", what, 1e6 * seconds, "us"))


def _forward_and_backward(form: Callable[[], Tensor], gradient: Tensor) -> None:
    torch.autograd.backward(form(), gradient)


def _iteration(machine: Machine, step: str) -> None:
    device, batch = machine.device, 128 if machine.is_fast else 2
    config = resolve(
        load_roadmap(),
        step,
        overrides=AUGMENTED
        | {"recipe.global_batch": batch, "recipe.local_batch": batch, "data.images": [batch, batch]},
    )
    set_up(config, device)
    engine = Engine(config, device, 1000)
    loader = Loader(config, "train", device)
    found = next(loader.epoch())
    loader.close()

    def batch_again() -> Batch:
        return found._replace(images=found.images.clone())

    def iterate() -> object:
        return engine.train_step([batch_again()])

    for _ in range(4 if machine.is_fast else 1):
        iterate()
    count = 10 if machine.is_fast else 1
    machine.report(
        measured(
            "kernels", step, "iteration with augmentation", 1e3 * seconds_each(iterate, device, count), "ms"
        )
    )
    host = {"augmentation": lambda: engine._augment(batch_again(), 0), "iteration": iterate}
    for name, run in host.items():
        times = []
        for _ in range(count):
            synchronize(device)
            began = time.thread_time()
            run()
            times.append(time.thread_time() - began)
        what = f"{name}, CPU time of the training thread"
        machine.report(measured("kernels", step, what, 1e3 * median(times), "ms"))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        for _ in range(3 if machine.is_fast else 1):
            iterate()
        synchronize(device)
    order = f"self_{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
    table = profiled.key_averages().table(sort_by=order, row_limit=PROFILE_ROWS, max_name_column_width=90)
    (machine.out / f"profile-{step}.txt").write_text(table, encoding="utf-8")


def loading(machine: Machine) -> None:
    """What the loader makes of JPEGs of ImageNet's size, alone and in the training loop."""
    images, copies, seconds = (512, 40, 4.0) if machine.is_fast else (64, 4, 2.0)
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as folder:
        write_photographs(Path(folder), images, copies, usable_cores())
        for name, dataset, pipeline in (
            ("pillow", "folder", "pillow"),
            ("tensor", "folder", "tensor"),
            ("tensor, shards of 256 px", "shards", "tensor"),
        ):
            config = _loading_config(
                Path(folder) / dataset, dataset, pipeline, 128 if machine.is_fast else 16
            )
            _loading_rates(machine, name, config, seconds)


def _loading_config(root: Path, dataset: str, pipeline: str, batch: int) -> RunConfig:
    splits = {"data.train_split": TRAIN, "data.val_split": VAL} if dataset == "shards" else {}
    given = {
        "model.num_classes": CLASSES,
        "recipe.global_batch": batch,
        "recipe.local_batch": batch,
        "recipe.precision": "bf16",
        "recipe.pipeline": pipeline,
        "data.dataset": dataset,
        "system.data_dir": str(root),
    }
    return resolve(load_roadmap(), LAST, overrides=given | splits)


def _loading_rates(machine: Machine, name: str, config: RunConfig, seconds: float) -> None:
    device = machine.device
    set_up(config, device)
    loader = Loader(config, "train", device)
    try:
        batches = (batch for epoch in range(10**6) for batch in loader.epoch(epoch))
        rate = _rate(batches, device, seconds, 2 * loader.workers + 2, lambda batch: None)
        machine.report(measured("loading", name, f"loader alone, {loader.workers} workers", rate, "images/s"))
        if machine.is_fast:
            engine = Engine(config, device, 1000)
            rate = _rate(batches, device, seconds, 8, lambda batch: engine.train_step([batch]))
            machine.report(measured("loading", name, "training loop", rate, "images/s"))
    finally:
        loader.close()


def _rate(
    batches: Iterator[Any], device: torch.device, seconds: float, untimed: int, use: Callable[[Any], object]
) -> float:
    """Images per second; `untimed` batches come first, of which the workers had some ready."""
    for _ in range(untimed):
        use(next(batches))
    synchronize(device)
    began, images = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        batch = next(batches)
        images += len(batch[1])
        use(batch)
    synchronize(device)
    return images / (time.perf_counter() - began)


CHECKS: dict[str, Callable[[Machine], None]] = {
    "peak": peak,
    "throughput": throughput,
    "compiled_throughput": compiled_throughput,
    "kernels": kernels,
    "loading": loading,
}
