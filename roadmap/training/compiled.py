"""Networks that PyTorch compiles, and the check that a compiled one has the gradients of the eager one on the
machine at hand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from roadmap.rng import CHECK, reseed
from roadmap.signals import Stopped
from roadmap.training.device import is_out_of_memory, tf32

# A compiled tensor may be off by TOLERANCE of its norm, by ROUNDING times what the precision alone does to
# the eager one, and by FLOOR of a typical value, because some gradients are zero except for rounding, as that
# of a bias before a BatchNorm is. Rounding to 16 bits may change the gradients of a fresh ReLU network beyond
# recognition; their norms stay within a factor of RATIO.
TOLERANCE, ROUNDING, FLOOR, RATIO = 1e-2, 4.0, 5e-3, 4.0
SCALES = (0.1, 0.5)  # of norms and layer scales: larger ones amplify rounding from block to block
GRAPHS = 8  # that PyTorch may compile of a network: its modes of training and evaluation, and their batches
REPLAYED = {"max-autotune", "reduce-overhead"}  # modes that replay CUDA graphs
FP16_SCALE = 64.0  # keeps the gradients of half precision from underflow, as GradScaler does in training

_networks = itertools.count(1)  # that this process has compiled


@dataclass(frozen=True)
class GradientCheck:
    """How `wrong` of `tensors` compiled tensors differ from eager ones; `worst` is off by `error`, `allowed`
    of it by rounding.

    Both are relative to the tensor's norm.
    """

    tensors: int
    wrong: int
    worst: str
    error: float
    allowed: float

    def __str__(self) -> str:
        off = (
            f"'{self.worst}' is off by {100 * self.error:.3g} %, of which rounding explains"
            f" {100 * self.allowed:.2g} %"
        )
        return f"{off}; {self.wrong} of {self.tensors} tensors are wrong"

    def report(self) -> dict[str, Any]:
        """For provenance.json."""
        return asdict(self)


class CompilerFailed(RuntimeError):
    """PyTorch cannot compile the network, or cannot run the compiled one; the message quotes its error."""


def compile_network(network: nn.Module, mode: str) -> Any:
    """`network`, or its DistributedDataParallel, compiled by Inductor in a mode of `system.compile`: a graph
    for each shape of its input, up to GRAPHS, and an error beyond.

    It draws the eager network's random numbers: otherwise stochastic depth would make both incomparable.
    Where CUDA graphs are replayed, a call overwrites the logits and gradients that the one before returned.
    """
    import torch._dynamo
    import torch._inductor

    # A process may train many networks, and all count, as their code is the same. Without a limit of our own
    # it would be PyTorch's, or the one that importing timm sets, and beyond it a network is silently eager.
    limits = torch._dynamo.config
    limits.recompile_limit = limits.accumulated_recompile_limit = GRAPHS * next(_networks)
    limits.fail_on_recompile_limit_hit = True
    options = torch._inductor.list_mode_options("default" if mode == "try" else mode)
    compiled: Any = torch.compile(network, dynamic=False, options=options | {"fallback_random": True})
    if mode not in REPLAYED:
        return compiled

    def replayed(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        logits: Tensor = compiled(images)
        return logits

    return replayed


def calls_of(mode: str) -> int:
    """The call of a network compiled in that mode that does what all later ones do: where CUDA graphs are
    replayed, the first only runs, and the second is recorded.
    """
    return 3 if mode in REPLAYED else 1


def check_gradients(
    network: nn.Module,
    eager: Any,
    compiled: Any,
    images: Tensor,
    labels: Tensor,
    precision: torch.dtype,
    *,
    calls: int = 1,
) -> GradientCheck:
    """Compares logits and gradients of `compiled` with those of `eager`, tensor by tensor.

    Both call `network`, which does not change. `images` are (N, C, H, W) and `labels` (N,), as training has
    them: the graph that is checked is the graph that trains. Losses do not show the faults of a compiler,
    gradients do. Of several `calls`, the last is compared. CompilerFailed if nothing could be compiled.
    """
    with randomized(network):
        with recomputing(network):  # single precision takes more memory than what is trained
            with tf32(False):
                exact = _tensors(network, eager, images, labels, torch.float32)
            rounded = exact if is_exact(precision) else _tensors(network, eager, images, labels, precision)
        with compiling():
            for _ in range(calls):
                found = _tensors(network, compiled, images, labels, precision)
    return compare(found, rounded, exact)


def check_logits(
    eager: Any, compiled: Any, images: Tensor, precision: torch.dtype, *, calls: int = 1
) -> GradientCheck:
    """Compares the logits of networks in evaluation; of several `calls`, the last."""

    def logits(forward: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        with (
            torch.inference_mode(),
            torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32),
        ):
            return {"logits": forward(images).to(torch.float32, copy=True)}

    with compiling():
        for _ in range(calls):
            found = logits(compiled, precision)
    with tf32(False):
        exact = logits(eager, torch.float32)
    return compare(found, exact if is_exact(precision) else logits(eager, precision), exact)


def is_exact(precision: torch.dtype) -> bool:
    """Whether an operation of this type has IEEE's single precision, as PyTorch is set up."""
    return precision == torch.float32 and not torch.backends.cuda.matmul.allow_tf32


@contextmanager
def compiling() -> Iterator[None]:
    """CompilerFailed for any error of a compiled network, which is called after the eager one,
    except out of memory.
    """
    try:
        yield
    except Exception as error:  # a compiler fails in many ways
        if is_out_of_memory(error):
            raise
        if (stopped := _stop_behind(error)) is not None:  # from a signal while it compiled
            raise stopped from None
        raise CompilerFailed(
            f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        ) from error


def _stop_behind(error: BaseException | None) -> Stopped | None:
    """The Stopped that a compiler may have wrapped in errors of its own."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error


def compare(
    found: Mapping[str, Tensor], rounded: Mapping[str, Tensor], exact: Mapping[str, Tensor]
) -> GradientCheck:
    """`found` against `rounded`, the same at its precision, and `exact`, the same in single precision."""
    typical = median(_norm(tensor) / math.sqrt(tensor.numel()) for tensor in exact.values())
    # the error relative to the one allowed, and both relative to the norm
    errors: dict[str, tuple[float, float, float]] = {}
    for name, tensor in exact.items():
        floor = FLOOR * typical * math.sqrt(tensor.numel())
        norm, eager = max(_norm(tensor), floor), max(_norm(rounded[name]), floor)
        allowed = TOLERANCE * norm + ROUNDING * _norm(rounded[name] - tensor) + floor
        error, ratio = _norm(found[name] - tensor), max(_norm(found[name]), floor) / eager
        if not math.isfinite(allowed):
            # half precision overflows in the eager network, too, and GradScaler skips such an iteration
            continue
        excess = (
            max(error / allowed, ratio / RATIO, 1 / (RATIO * ratio)) if math.isfinite(error) else math.inf
        )
        errors[name] = excess, error / norm, allowed / norm
    worst = max(errors, key=lambda name: errors[name][0])
    return GradientCheck(
        len(errors), sum(excess > 1 for excess, _, _ in errors.values()), worst, *errors[worst][1:]
    )


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float32))


def _tensors(
    network: nn.Module, forward: Any, images: Tensor, labels: Tensor, precision: torch.dtype
) -> dict[str, Tensor]:
    """The logits and the gradient of each parameter, in single precision."""
    reseed(CHECK)
    network.train()
    network.zero_grad(set_to_none=True)
    scale = FP16_SCALE if precision == torch.float16 else 1.0
    with torch.autocast(images.device.type, dtype=precision, enabled=precision != torch.float32):
        logits = forward(images)
        loss = functional.cross_entropy(logits, labels)
    torch.autograd.backward(scale * loss)
    tensors = {"logits": logits.detach().to(torch.float32, copy=True)}
    for name, parameter in network.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        tensors[name] = gradient.detach().float() / scale
    network.zero_grad(set_to_none=True)
    return tensors


@contextmanager
def recomputing(network: Any) -> Iterator[None]:
    """Has the network checkpoint its activations."""
    before = any(getattr(module, "grad_checkpointing", False) for module in network.modules())
    network.set_grad_checkpointing(True)
    try:
        yield
    finally:
        network.set_grad_checkpointing(before)


@contextmanager
def randomized(network: nn.Module) -> Iterator[None]:
    """Gives norms, biases and layer scales random values; at the end, parameters and buffers are restored.

    A layer scale of 1e-6, as training begins with, would hide the blocks' gradients behind the others.
    """
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    reseed(CHECK)
    try:
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.1)
                elif parameter.ndim == 1:
                    parameter.uniform_(*SCALES)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                tensor.copy_(state[name])
