"""Whether a device computes what training needs: each check compares it with the CPU, or with itself.

Each runs in a process of its own (`roadmap.doctor.runner`), for a CUDA error outlives its cause.
"""

from __future__ import annotations

import copy
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from blocks.model import build_model
from roadmap import ROOT
from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.data.loader import Loader
from roadmap.deltas import resolve
from roadmap.doctor.findings import Finding, measured
from roadmap.steps import load_roadmap
from roadmap.training.compiled import check_gradients, compile_network, randomized
from roadmap.training.device import set_up
from roadmap.training.engine import Engine

Report = Callable[[Finding], None]
CPU = torch.device("cpu")
FIRST, GELU, LAST, WIDE = "resnet50", "gelu", "separate_downsampling", "multiscale_depthwise"
# The bounds: relative to the reference's norm. Layers of BN amplify the rounding of half precision, so that
# its gradients are only reported.
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOGITS = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 1e-2}
GRADIENTS = {"fp32": 5e-3}
LOSSES = 5e-3
SCALE = 1024.0  # keeps gradients of half precision from underflow
ITERATIONS = 20
# augmentation whose random numbers do not come from the device, so that two devices see the same images
SAME_IMAGES = {
    "model.drop_path": 0.0,
    "recipe.mixup": 0.8,
    "recipe.cutmix": 1.0,
    "recipe.label_smoothing": 0.1,
    "recipe.random_erasing": 0.5,
    "recipe.erase_mode": "const",
    "recipe.randaugment": "rand-m9-mstd0.5-inc1",
    "recipe.crop_scale": [0.5, 1.0],
    "recipe.ema": 0.9,
    "recipe.clip_grad": 1.0,
    "data.copies": 1,
    "system.threads": None,
}
ALL_DRAWS = SAME_IMAGES | {"model.drop_path": 0.2, "recipe.erase_mode": "pixel", "recipe.hflip": 0.5}
SHALLOW = {"model.depths": [1, 1, 1, 1], "model.num_classes": 10}
WAITS = {True: "waits for the device", False: "calls that would wait for a GPU"}


class Machine(NamedTuple):
    """What a check works with: the device, where its findings go, and a folder for its files."""

    device: torch.device
    report: Report
    out: Path

    @property
    def is_fast(self) -> bool:
        """Whether it takes networks and images of the usual size."""
        return self.device.type == "cuda"


def forward(machine: Machine) -> None:
    """Logits, loss and gradients of every step on the device, in float32, bf16 and fp16, against float32 on
    the CPU.

    GELU stands in for ReLU: where rounding moves a value across zero, the gradients of a deep ReLU network
    change by percents, which would hide a fault.
    """
    device, roadmap = machine.device, load_roadmap()
    size = 128 if machine.is_fast else 64
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 7, 3, 9])
    for step in roadmap.steps:
        deep = machine.is_fast and step in (FIRST, LAST, WIDE)
        given = {"model.num_classes": 10} if deep else SHALLOW
        config = resolve(roadmap, step, overrides=given | {"model.drop_path": 0.0})
        set_up(config, device)
        torch.manual_seed(0)
        network = build_model(config.ours)
        smooth(network)
        with randomized(network):
            found = copied(network, device)
            _compare_weights(machine.report, step, network, found)
            # contiguous, where training has channels_last: the CPU's kernels differ, too
            expected = _outcome(network, images, labels, torch.float32)
            found.to(memory_format=torch.channels_last)
            on_device = images.to(device).contiguous(memory_format=torch.channels_last)
            for precision, dtype in PRECISIONS.items():
                outcome = _outcome(found, on_device, labels.to(device), dtype)
                _compare_outcome(machine.report, step, precision, outcome, expected)


class Outcome(NamedTuple):
    """What a network computes: logits in evaluation, the loss in training, and its gradients, by name."""

    logits: Tensor
    loss: float
    gradients: dict[str, Tensor]


def smooth(network: nn.Module) -> None:
    """Replaces each ReLU by GELU."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.GELU())


def copied(network: nn.Module, device: torch.device) -> nn.Module:
    """A copy of the network on the device."""
    return copy.deepcopy(network).to(device)


def _outcome(network: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> Outcome:
    """In `dtype` by autocast where that is less than the images' type."""
    precision = torch.autocast(
        images.device.type, dtype=dtype, enabled=dtype in (torch.bfloat16, torch.float16)
    )
    network.eval()
    with torch.no_grad(), precision:
        logits = network(images).double().cpu()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train()
    network.zero_grad(set_to_none=True)
    with precision:
        loss = functional.cross_entropy(network(images), labels)
    torch.autograd.backward(loss * SCALE)
    gradients = {
        name: parameter.grad.detach().double().cpu() / SCALE
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    network.zero_grad(set_to_none=True)
    for name, buffer in network.named_buffers():  # running statistics
        buffer.copy_(buffers[name])
    return Outcome(logits, float(loss.detach()), gradients)


def _compare_weights(report: Report, step: str, network: nn.Module, found: nn.Module) -> None:
    theirs = found.state_dict()
    wrong = [
        name for name, tensor in network.state_dict().items() if not torch.equal(tensor, theirs[name].cpu())
    ]
    report(
        measured(
            "forward",
            step,
            "tensors that differ after the copy to the device",
            len(wrong),
            at_most=0,
            fix=f"the memory or the driver of this device is faulty: {', '.join(wrong[:3])}",
        )
    )


def _compare_outcome(report: Report, step: str, precision: str, found: Outcome, expected: Outcome) -> None:
    fix = "do not train on this device with this PyTorch"
    error = relative_error(found.logits, expected.logits)
    report(measured("forward", step, f"logits, {precision}", error, at_most=LOGITS[precision], fix=fix))
    error = abs(found.loss - expected.loss) / abs(expected.loss)
    report(measured("forward", step, f"loss, {precision}", error, at_most=LOGITS[precision], fix=fix))
    names = list(expected.gradients)
    both = (torch.cat([side.gradients[name].flatten() for name in names]) for side in (found, expected))
    worst = max(names, key=lambda name: relative_error(found.gradients[name], expected.gradients[name]))
    report(
        measured(
            "forward",
            step,
            f"gradients, {precision}",
            relative_error(*both),
            at_most=GRADIENTS.get(precision),
            fix=f"{fix}; the tensor that is most off is {worst}",
        )
    )


def compiled_gradients(machine: Machine) -> None:
    """Each gradient of a compiled network against the eager one's on the same device, tensor by tensor.

    Losses do not show a compiler's faults: Inductor of torch 2.11 gave zero gradients to all that precedes
    the head of ConvNeXt-T on CPUs.
    """
    device, roadmap = machine.device, load_roadmap()
    size, count = (96, 16) if machine.is_fast else (64, 8)
    chosen = ((LAST, "fp32"), (LAST, "bf16"), (WIDE, "bf16"), (FIRST, "bf16"))
    for step, precision in chosen if machine.is_fast else chosen[:1]:
        config = resolve(roadmap, step, overrides=SHALLOW | {"model.drop_path": 0.0})
        set_up(config, device)
        images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = (torch.arange(count) % 10).to(device)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.manual_seed(0)
        network = build_model(config.ours).to(device).to(memory_format=torch.channels_last)
        began = time.perf_counter()
        compiled = compile_network(network, "default")
        check = check_gradients(network, network, compiled, images, labels, PRECISIONS[precision])
        seconds = time.perf_counter() - began
        breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
        machine.report(
            measured(
                "compile",
                step,
                f"gradients that are wrong, {precision}",
                check.wrong,
                f"of {check.tensors}",
                at_most=0,
                fix=f"train with system.compile=off on this PyTorch: {check}",
            )
        )
        machine.report(
            measured(
                "compile",
                step,
                f"graph breaks, {precision}",
                breaks,
                at_most=0,
                fix="the compiled network is slower than it could be; report it with log.txt",
            )
        )
        machine.report(measured("compile", step, f"time to check, {precision}", seconds, "s"))


def synchronizations(machine: Machine) -> None:
    """No iteration waits for the device: on CUDA, PyTorch raises where one does.

    On a CPU, calls that would wait are counted in what the project itself computes.
    """
    device, roadmap = machine.device, load_roadmap()
    for step, precision, pipeline in (
        (LAST, "bf16", "tensor"),
        (LAST, "fp16", "pillow"),
        (FIRST, "bf16", "pillow"),
        (FIRST, "fp16", "tensor"),
    ):
        precision = precision if machine.is_fast else "fp32"
        given = ALL_DRAWS | {"recipe.precision": precision, "recipe.pipeline": pipeline}
        config = resolve(roadmap, step, profile="digits", overrides=given)
        with training(config, device) as (engine, batches):
            for _ in range(2):  # the first fills the optimizer's state
                engine.train_step([next(batches)])
            waits = _places_that_wait(device, engine, [next(batches) for _ in range(3)])
        machine.report(
            measured(
                "sync",
                step,
                f"{WAITS[machine.is_fast]} in 3 iterations, {precision}, {pipeline}",
                len(waits),
                at_most=0,
                fix=f"an iteration waits in {'; '.join(dict.fromkeys(waits))}",
            )
        )


def _places_that_wait(device: torch.device, engine: Engine, batches: Sequence[Batch]) -> list[str]:
    """The lines of code at which an iteration on one of the batches waits for the device."""

    def run() -> None:
        for batch in batches:
            engine.train_step([batch])

    if device.type != "cuda":
        with WaitCounter() as counter:
            run()
        places: list[str] = counter.places
        return places
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
        return []
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        traceback.print_exc()
        return [_place(traceback.extract_tb(error.__traceback__))]
    finally:
        torch.cuda.set_sync_debug_mode("default")


class WaitCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that would wait for a GPU, on any device, except in PyTorch's own optimizers,
    whose counters are on the CPU there, too.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in self.WAITING:
            stack = traceback.extract_stack()
            inner = [frame.filename for frame in stack]
            if not any(
                f"{os.sep}torch{os.sep}{part}{os.sep}" in path for path in inner for part in ("optim", "amp")
            ):
                self.places.append(_place(stack))
        return function(*args, **(kwargs or {}))


def _place(stack: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of the project in a stack, other than the doctor's own."""
    own = [
        frame
        for frame in stack
        if frame.filename.startswith(str(ROOT)) and "site-packages" not in frame.filename
    ]
    outside = [frame for frame in own if frame.filename != __file__] or own or list(stack)
    frame = outside[-1]
    return f"{os.path.relpath(frame.filename, ROOT)}:{frame.lineno}"


@contextmanager
def training(config: RunConfig, device: torch.device) -> Iterator[tuple[Engine, Iterator[Batch]]]:
    """An engine that has started, and endless batches of its loader."""
    set_up(config, device)
    loader = Loader(config, "train", device)
    try:
        engine = Engine(config, device, len(loader))
        engine.start()
        yield engine, (batch for epoch in range(10**6) for batch in loader.epoch(epoch))
    finally:
        loader.close()


def training_losses(machine: Machine) -> None:
    """Iterations with loader, RandAugment, mixup, erasing, EMA and clipping: the losses of the CPU."""
    roadmap = load_roadmap()
    steps = (FIRST, GELU, LAST, WIDE) if machine.is_fast else (FIRST, LAST)
    for step in steps:
        for pipeline in ("pillow", "tensor"):
            config = resolve(
                roadmap, step, profile="digits", overrides=SAME_IMAGES | {"recipe.pipeline": pipeline}
            )
            losses = []
            for device in (CPU, machine.device):
                with training(config, device) as (engine, batches):
                    losses.append([float(engine.train_step([next(batches)])) for _ in range(ITERATIONS)])
            error = max(abs(one - other) / one for one, other in zip(*losses, strict=True))
            machine.report(
                measured(
                    "training",
                    step,
                    f"losses of {ITERATIONS} iterations, {pipeline}",
                    error,
                    at_most=LOSSES,
                    fix="the device trains otherwise than the CPU does: compare a run on each before a study",
                )
            )


def deterministic(machine: Machine) -> None:
    """With system.deterministic, every step has kernels in float32 and bf16, and the same bits twice."""
    device, roadmap = machine.device, load_roadmap()
    for step in roadmap.steps:
        for precision in ("fp32", "bf16"):
            given = SHALLOW | {
                "recipe.global_batch": 8,
                "recipe.local_batch": 8,
                "recipe.precision": precision,
                "data.image_size": 96 if machine.is_fast else 64,
                "system.deterministic": True,
            }
            config = resolve(roadmap, step, overrides=given)
            set_up(config, device)
            twice = [_trained_weights(config, device) for _ in range(2)]
            differing = [name for name, tensor in twice[0].items() if not torch.equal(tensor, twice[1][name])]
            machine.report(
                measured(
                    "deterministic",
                    step,
                    f"tensors that differ between two trainings, {precision}",
                    len(differing),
                    at_most=0,
                    fix=f"a run that resumes may give other values: {', '.join(differing[:3])}",
                )
            )


def _trained_weights(config: RunConfig, device: torch.device) -> dict[str, Tensor]:
    size, count = config.data.image_size, config.recipe.global_batch
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(count, device=device) % 10
    engine = Engine(config, device, 10)
    engine.iteration = 1  # the first has a learning rate of 0
    for _ in range(2):
        engine.train_step([Batch(images.clone(memory_format=torch.channels_last), labels)])
    return {name: tensor.detach().cpu() for name, tensor in engine.model.state_dict().items()}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|; NaN if something is."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


CHECKS: dict[str, Callable[[Machine], None]] = {
    "forward": forward,
    "compile": compiled_gradients,
    "sync": synchronizations,
    "training": training_losses,
    "deterministic": deterministic,
}
