"""A compiled network trains only where its gradients are those of the eager one, on the machine at hand."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.errors import ConfigError
from roadmap.records import prepare
from roadmap.signals import Stopped
from roadmap.steps import load_roadmap, resolve
from roadmap.train import train
from roadmap.training import compiled, engine
from roadmap.training.compiled import (
    GRAPHS,
    check_gradients,
    check_logits,
    compare,
    compile_network,
    randomized,
)
from roadmap.training.device import float32_precision, tf32
from roadmap.training.engine import Engine

CPU = torch.device("cpu")
SMALL = {
    "model.width_mult": 0.125,
    "model.depths": [1, 1, 1, 1],
    "recipe.global_batch": 16,
    "recipe.local_batch": 16,
    "recipe.epochs": 1,
}
FEW: dict[str, Any] = {"recipe__global_batch": 256, "recipe__local_batch": 256}  # iterations


def config_of(step: str = "separate_downsampling", **overrides: Any) -> RunConfig:
    given = SMALL | {name.replace("__", "."): value for name, value in overrides.items()}
    return resolve(load_roadmap(), step, profile="digits", overrides=given)


class Faulty(nn.Module):
    """What a compiler makes of a network if it loses the gradients of all before the head,
    or of one stage.
    """

    def __init__(self, network: Any, place: str) -> None:
        super().__init__()
        self.network, self.place = network, place

    def forward(self, x: Tensor) -> Tensor:
        lost = self.network.get_submodule(self.place).register_forward_hook(
            lambda *call: call[-1].detach().requires_grad_()
        )
        try:
            logits: Tensor = self.network(x)
        finally:
            lost.remove()
        return logits


class Broken(nn.Module):
    """What a compiler makes of a network if it cannot."""

    def forward(self, x: Tensor) -> Tensor:
        raise UnboundLocalError("cannot access local variable 'buf7'")


FAULTS: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "all before the head": (
        lambda network: Faulty(network, "stages"),
        r"wrong: 'st.*' is off by 100 %.* tensors are wrong",
    ),
    "one stage": (lambda network: Faulty(network, "stages.0"), r"wrong: 'st.*' is off by 100 %"),
    "no code": (
        lambda network: Broken(),
        "PyTorch cannot compile the network: UnboundLocalError: cannot access local variable 'buf7'",
    ),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("step", ["resnet50", "patchify_stem", "separate_downsampling"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_compiler_that_is_wrong_is_found_by_name(
    step: str, precision: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, message = FAULTS[fault]
    monkeypatch.setattr(engine, "compile_network", lambda network, mode: build(network))
    found = Engine(config_of(step, system__compile=True, recipe__precision=precision), CPU, 10)
    with pytest.raises(
        ConfigError,
        match=rf"system.compile: .*{message}.*PyTorch {re.escape(torch.__version__)}.*system.compile=off",
    ):
        found.check_compiled()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("step", ["resnet50", "patchify_stem", "gelu", "multiscale_depthwise"])
def test_a_right_compiler_passes_and_the_network_stays_as_it_was(
    step: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "compile_network", lambda network, mode: network)
    found = Engine(
        config_of(step, system__compile=True, recipe__precision=precision, model__drop_path=0.5), CPU, 10
    )
    before = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
    report = found.check_compiled()
    assert report is not None
    assert (report["trained"], report["wrong"], report["tensors"]) == (
        "compiled",
        0,
        1 + len(list(found.model.parameters())),
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.model.state_dict().items())
    assert all(parameter.grad is None for parameter in found.model.parameters())


@pytest.mark.parametrize("allowed", [True, False])
def test_a_network_in_tf32_is_compared_with_ieee_arithmetic(allowed: bool) -> None:
    network, called = Engine(config_of(), CPU, 10).model, []

    def forward(images: Tensor) -> Tensor:
        called.append(float32_precision()["matmul"])
        logits: Tensor = network(images)
        return logits

    images, labels = torch.randn(2, 1, 32, 32), torch.tensor([0, 1])
    with tf32(allowed):
        check_gradients(network, forward, forward, images, labels, torch.float32)
        check_logits(forward, forward, images, torch.float32)
    gradients, logits = ["ieee", "tf32", "tf32"], ["tf32", "ieee", "tf32"]
    assert called == (gradients + logits if allowed else ["ieee"] * 4)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[dict[str, Any], Any]]]:
    """What PyTorch has Inductor compile: its options, and the shape of the images.

    Inductor's part is left out, which takes seconds.
    """
    import torch._dynamo
    import torch._inductor.compile_fx

    found = []

    def compile_fx(graph: Any, inputs: Any, config_patches: dict[str, Any], **_: Any) -> Any:
        images = next(
            node for node in graph.graph.nodes if node.target == "L_x_" or node.name.endswith("_x_")
        )
        found.append((config_patches, tuple(images.meta["example_value"].shape)))
        return graph.forward

    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", compile_fx)
    monkeypatch.setattr(compiled, "_networks", itertools.count(1))
    limits = torch._dynamo.config
    before = limits.recompile_limit, limits.accumulated_recompile_limit, limits.fail_on_recompile_limit_hit
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()
    limits.recompile_limit, limits.accumulated_recompile_limit, limits.fail_on_recompile_limit_hit = before


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("default", {}),
        ("try", {}),
        ("reduce-overhead", {"triton.cudagraphs": True}),
        (
            "max-autotune",
            {"triton.cudagraphs": True, "max_autotune": True, "coordinate_descent_tuning": True},
        ),
    ],
)
def test_a_mode_is_pytorchs_with_the_eager_networks_random_numbers(
    mode: str, options: dict[str, bool], graphs: list[Any]
) -> None:
    assert torch.equal(compile_network(Tiny(), mode)(torch.ones(2, 3)), torch.ones(2, 3))
    ((given, _),) = graphs
    assert {name.replace("-", "_"): value for name, value in given.items()} == options | {
        "fallback_random": True
    }


def test_each_batch_size_has_a_graph_of_its_own_and_too_many_are_an_error(graphs: list[Any]) -> None:
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 10**6  # as importing timm sets it
    first = compile_network(Tiny(), "default")
    for images in range(1, GRAPHS + 1):
        first(torch.ones(images, 3))
    assert [shape for _, shape in graphs] == [(images, 3) for images in range(1, GRAPHS + 1)]
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        first(torch.ones(GRAPHS + 1, 3))
    compile_network(Tiny(), "default")(torch.ones(GRAPHS + 1, 3))  # another network has graphs of its own


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        (False, "off"),
        (True, "default"),
        ("off", "off"),
        ("try", "try"),
        ("reduce-overhead", "reduce-overhead"),
    ],
)
def test_a_mode_may_be_a_truth_value(given: Any, mode: str) -> None:
    config = config_of(system__compile=given)
    assert config.system.compile == mode
    assert config.hash == config_of().hash


class Replayed(nn.Module):
    """A network as CUDA graphs replay it: a call overwrites the gradients that the one before returned."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.returned: list[Tensor] = []
        self.fresh: set[int] = set()
        for parameter in network.parameters():
            parameter.register_post_accumulate_grad_hook(self._returned)  # type: ignore[no-untyped-call]

    def _returned(self, parameter: Tensor) -> None:
        if id(parameter) in self.fresh and parameter.grad is not None:
            self.returned.append(
                parameter.grad.view(-1) if parameter.grad.is_contiguous() else parameter.grad
            )

    def forward(self, x: Tensor) -> Tensor:
        for gradient in self.returned:
            gradient.fill_(torch.nan)
        self.returned = []
        self.fresh = {id(parameter) for parameter in self.network.parameters() if parameter.grad is None}
        logits: Tensor = self.network(x)
        return logits


def test_gradients_accumulate_where_a_call_overwrites_those_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "compile_network", lambda network, mode: Replayed(network))
    parts: dict[str, Any] = {"recipe__local_batch": 4, "system__micro_batch": 4}
    images, labels = torch.randn(16, 1, 32, 32), torch.randint(10, (16,))
    batches = [Batch(*part) for part in zip(images.chunk(4), labels.chunk(4), strict=True)]
    moved = []
    for mode in ("off", "reduce-overhead"):
        found = Engine(config_of(system__compile=mode, **parts), CPU, 10)
        for _ in range(2):
            found.train_step([batch._replace(images=batch.images.clone()) for batch in batches])
        moved.append(found.state()["model"])
    for name, tensor in moved[0].items():
        assert torch.equal(moved[1][name], tensor), name


def test_a_signal_while_a_compiler_works_is_no_fault_of_its(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            try:
                raise Stopped("SIGTERM")
            except Stopped as error:
                raise RuntimeError("a compiler's own words") from error

    monkeypatch.setattr(engine, "compile_network", lambda network, mode: Stopping())
    for how in (True, "try"):
        with pytest.raises(Stopped, match="SIGTERM"):
            Engine(config_of(system__compile=how), CPU, 10).check_compiled()


def test_nothing_is_checked_where_nothing_is_compiled() -> None:
    assert Engine(config_of(), CPU, 10).check_compiled() is None


def test_try_trains_the_eager_network_and_records_it_in_the_provenance(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, eager = config_of(system__compile="try", **FEW), config_of(**FEW)
    plain = train(eager, prepare(tmp_path / "plain", eager).path)
    monkeypatch.setattr(engine, "compile_network", lambda network, mode: Faulty(network, "stages"))
    run = prepare(tmp_path / "tried", config)
    with caplog.at_level(logging.WARNING):
        result = train(config, run.path)
    assert "compiled gradients are wrong" in caplog.text
    assert "the eager network is trained" in caplog.text
    assert (result.top1, result.train_loss) == (plain.top1, plain.train_loss)
    provenance = run.provenance.read_text(encoding="utf-8")
    assert '"matmul": "ieee"' in provenance
    assert '"conv": "ieee"' in provenance
    assert '"trained": "eager"' in provenance
    assert "is off by 100 %" in provenance


def test_a_wrong_compiler_leaves_no_result(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(system__compile=True)
    monkeypatch.setattr(engine, "compile_network", lambda network, mode: Faulty(network, "stages"))
    run = prepare(tmp_path, config)
    with pytest.raises(ConfigError, match="compiled gradients are wrong"):
        train(config, run.path)
    assert not run.result.exists()
    assert not run.checkpoints.exists()


def tensors(**changes: Tensor) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return (
        {name: torch.randn(8, 8, generator=draws) for name in ("a", "b", "c")}
        | {"zero": 1e-4 * torch.randn(8, generator=draws)}
        | changes
    )


@pytest.mark.parametrize(
    ("found", "rounded", "worst"),
    [
        (tensors(), tensors(), None),
        (tensors(b=1.005 * tensors()["b"]), tensors(), None),
        (tensors(b=1.05 * tensors()["b"]), tensors(), "b"),
        (tensors(b=0 * tensors()["b"]), tensors(), "b"),
        (tensors(b=tensors()["b"] / 0), tensors(), "b"),
        (tensors(zero=-tensors()["zero"]), tensors(), None),  # rounding is all there is
        (tensors(b=1.3 * tensors()["b"]), tensors(b=1.1 * tensors()["b"]), None),  # rounding explains it
        # rounding explains any gradient but none
        (tensors(b=0 * tensors()["b"]), tensors(b=-tensors()["b"]), "b"),
        # the eager network overflows, too
        (tensors(b=tensors()["b"] / 0), tensors(b=tensors()["b"] / 0), None),
    ],
)
def test_what_rounding_explains_is_right(
    found: dict[str, Tensor], rounded: dict[str, Tensor], worst: str | None
) -> None:
    check = compare(found, rounded, tensors())
    assert (check.wrong, check.worst if check.wrong else None) == (int(worst is not None), worst)


def test_random_values_are_put_back_after_an_error() -> None:
    network = Engine(config_of(), CPU, 10).model
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RuntimeError, match="channels"), randomized(network):
        network(torch.zeros(1, 5, 8, 8))  # of so many channels it knows nothing
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
