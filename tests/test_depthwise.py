"""The fast depthwise convolution is conv2d with its gradients to rounding, and takes part in everything that
conv2d does.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from blocks import depthwise
from blocks.depthwise import SMALL_WORK, Depthwise, DepthwiseConv2d, conv2d_reference, depthwise_conv2d
from blocks.layers import LAYERS, Op
from blocks.modules import GELU

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
ERRORS = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
# height, width, kernel, stride, dilation
GEOMETRIES = [
    *((5, 5, kernel, 1, 1) for kernel in (3, 5, 7, 9, 11)),
    (6, 4, 5, 1, 1),
    (1, 1, 7, 1, 1),
    (2, 3, 11, 1, 1),
    (2, 2, 3, 1, 1),
    (5, 6, 3, 2, 1),
    (7, 4, 7, 2, 1),
    (2, 2, 7, 2, 1),
    (4, 5, 3, 3, 1),
    (7, 8, 3, 1, 3),
    (8, 7, 5, 1, 3),
    (4, 4, 7, 1, 3),
    (7, 5, 5, 2, 3),
    (4, 6, 5, 2, 2),
]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The shapes here are too small for the fast way to pay, and for two threads."""
    monkeypatch.setattr(depthwise, "SMALL_WORK", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tensors(
    shape: tuple[int, ...], geometry: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous"
) -> tuple[Tensor, ...]:
    """A map of (batch, channels) = `shape`, a weight and a bias, which ask for gradients."""
    height, width, kernel = geometry[:3]
    torch.manual_seed(0)
    x = torch.randn(*shape, height, width, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
    weight, bias = (
        torch.randn(shape[1], 1, kernel, kernel, dtype=dtype) / kernel,
        torch.randn(shape[1], dtype=dtype),
    )
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.fixture(params=["batch", "images"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All that depends on the size of a map, as for small ones, and as for large ones."""
    monkeypatch.setattr(depthwise, "LARGE_MAP", 1 if request.param == "images" else 10**9)
    monkeypatch.setattr(depthwise, "SMALL_MAP", 1 if request.param == "images" else 10**9)
    return str(request.param)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.usefixtures("path")
def test_gradients_are_those_of_numerical_differences(geometry: tuple[int, ...], layout: str) -> None:
    x, weight, bias = tensors((2, 2), geometry, torch.float64, layout)
    *_, stride, dilation = geometry
    assert torch.autograd.gradcheck(
        lambda *inputs: Depthwise.apply(*inputs, stride, dilation), (x, weight, bias), fast_mode=True
    )
    assert torch.autograd.gradcheck(
        lambda *inputs: Depthwise.apply(*inputs, None, stride, dilation), (x, weight), fast_mode=True
    )


@pytest.mark.parametrize(
    "geometry", [(4, 4, 5, 1, 1), (4, 5, 3, 2, 1), (7, 7, 3, 1, 3), (5, 5, 5, 2, 3)], ids=str
)
@pytest.mark.usefixtures("path")
def test_second_derivatives_are_those_of_numerical_differences(geometry: tuple[int, ...]) -> None:
    x, weight, bias = tensors((2, 2), geometry, torch.float64)
    *_, stride, dilation = geometry
    assert torch.autograd.gradgradcheck(
        lambda *inputs: Depthwise.apply(*inputs, stride, dilation), (x, weight, bias), fast_mode=True
    )


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("batch", [1, 5])
# of the last of these, oneDNN 3.13 computes weight gradients in bf16 that are not even near
@pytest.mark.parametrize(
    "geometry",
    [*GEOMETRIES, (16, 16, 7, 1, 1), (14, 13, 7, 1, 3), (28, 28, 7, 2, 1), (32, 32, 7, 1, 3)],
    ids=str,
)
@pytest.mark.usefixtures("path")
def test_results_are_those_of_conv2d_to_rounding(
    geometry: tuple[int, ...], batch: int, dtype: torch.dtype
) -> None:
    *_, stride, dilation = geometry
    inputs = tensors((batch, 6), geometry, dtype, "channels_last")
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    ours, ideal = (
        Depthwise.apply(*inputs, stride, dilation),
        conv2d_reference(exact[0], exact[1], exact[2], stride, dilation),
    )
    grad = torch.randn_like(ours)
    pairs = [(ours, ideal)]
    pairs += zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(ideal, exact, grad.double()), strict=True
    )
    for result, wanted in pairs:
        assert result.dtype == dtype
        assert result.shape == wanted.shape
        assert (result - wanted).norm() <= ERRORS[dtype] * wanted.norm()


def module(kernel: int = 7, stride: int = 1, dilation: int = 1, channels: int = 8) -> DepthwiseConv2d:
    torch.manual_seed(1)
    return DepthwiseConv2d(channels, channels, kernel, stride, kernel // 2 * dilation, dilation, channels)


def images(channels: int = 8, size: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(3, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the fast convolution."""
    made: list[Any] = []
    apply = Depthwise.apply

    def counting(*inputs: Any) -> Any:
        made.append(inputs)
        return apply(*inputs)

    monkeypatch.setattr(Depthwise, "apply", counting)
    return made


@pytest.mark.parametrize(
    ("dtype", "shape", "geometry", "paid"),
    [
        (torch.float32, (16, 96, 56, 56), (3, 1, 1), False),
        (torch.float32, (16, 96, 56, 56), (7, 1, 1), True),
        (torch.float32, (64, 48, 4, 4), (7, 1, 1), True),
        (torch.float32, (64, 96, 2, 2), (7, 1, 1), True),
        (torch.float32, (32, 96, 2, 2), (5, 1, 1), False),
        (torch.float32, (16, 384, 14, 14), (7, 2, 1), True),
        (torch.float32, (64, 48, 4, 4), (7, 2, 1), True),
        (torch.float32, (64, 48, 4, 4), (5, 2, 1), False),
        (torch.float32, (64, 24, 2, 2), (7, 1, 3), True),
        (torch.bfloat16, (16, 96, 56, 56), (3, 1, 1), False),
        (torch.bfloat16, (64, 96, 2, 2), (3, 1, 1), True),
        (torch.bfloat16, (64, 48, 4, 4), (3, 2, 1), True),
        (torch.bfloat16, (64, 96, 2, 2), (7, 1, 1), True),
        (torch.float16, (16, 96, 56, 56), (7, 1, 1), False),
        (torch.float64, (16, 96, 56, 56), (7, 1, 1), False),
    ],
)
def test_the_rule_chooses_by_shape_and_type(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    geometry: tuple[int, int, int],
    paid: bool,
) -> None:
    monkeypatch.setattr(depthwise, "SMALL_WORK", SMALL_WORK)
    assert depthwise.custom_backward_is_faster(dtype, torch.Size(shape), *geometry) == paid


@pytest.mark.parametrize(
    ("dtype", "shape", "geometry", "paid"),
    [
        (torch.float32, (16, 24, 56, 56), (7, 1, 3), True),
        (torch.bfloat16, (16, 24, 56, 56), (7, 1, 3), True),
        (torch.bfloat16, (64, 6, 8, 8), (7, 1, 3), True),  # 2 of the 7 rows of weights see only padding
        (torch.bfloat16, (64, 3, 16, 16), (7, 1, 3), False),
        (torch.bfloat16, (16, 24, 56, 56), (7, 1, 1), False),
        (torch.bfloat16, (16, 24, 56, 56), (7, 2, 3), False),
        (torch.float64, (16, 24, 56, 56), (7, 1, 3), False),
    ],
)
def test_a_rule_chooses_how_an_output_without_gradients_is_computed(
    dtype: torch.dtype, shape: tuple[int, ...], geometry: tuple[int, int, int], paid: bool
) -> None:
    assert depthwise.dilated_is_faster(dtype, torch.Size(shape), *geometry) == paid


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "geometry", [*(each for each in GEOMETRIES if each[-1] > 1), (14, 13, 7, 1, 3), (2, 3, 7, 1, 3)], ids=str
)
@pytest.mark.usefixtures("path")
def test_an_output_without_gradients_is_that_of_conv2d_to_rounding(
    geometry: tuple[int, ...], layout: str, dtype: torch.dtype, train: bool
) -> None:
    *_, stride, dilation = geometry
    x, weight, bias = (tensor.detach() for tensor in tensors((3, 6), geometry, dtype, layout))
    ours = depthwise_conv2d(x, weight, bias, stride, dilation, train)
    ideal = conv2d_reference(x.double(), weight.double(), bias.double(), stride, dilation)
    assert (ours.dtype, ours.shape) == (dtype, ideal.shape)
    assert (ours - ideal).norm() <= ERRORS[dtype] * ideal.norm()
    assert torch.equal(depthwise_conv2d(x, weight, bias, stride, dilation, train), ours)


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the fast dilated convolution without gradients, on maps of any size."""
    made: list[Any] = []
    compute = depthwise.dilated

    def counting(*inputs: Any) -> Any:
        made.append(inputs)
        return compute(*inputs)

    monkeypatch.setattr(depthwise, "dilated", counting)
    monkeypatch.setattr(depthwise, "SMALL_MAP", 1)
    return made


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_a_dilated_convolution_without_gradients_is_the_fast_one(
    outputs: list[Any], train: bool, inference: bool
) -> None:
    conv = module(dilation=3).train(train)
    with torch.inference_mode() if inference else torch.no_grad():
        conv(images())
    assert len(outputs) == 1
    conv.requires_grad_(False)(images())
    assert len(outputs) == 2


@pytest.mark.parametrize("learning", ["x", "weight", "bias"])
def test_a_network_in_eval_has_gradients_of_whatever_learns(outputs: list[Any], learning: str) -> None:
    conv, x = module(dilation=3).eval().requires_grad_(False), images()
    learns = x if learning == "x" else getattr(conv, learning)
    learns.requires_grad_()
    (ours,) = torch.autograd.grad(conv(x).square().sum(), learns)
    (theirs,) = torch.autograd.grad(conv2d_reference(x, conv.weight, conv.bias, 1, 3).square().sum(), learns)
    assert torch.equal(ours, theirs)
    assert outputs == []


def in_eval_compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    torch.compiler.reset()
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, backend="aot_eager", fullgraph=True)
    return compiled


def in_eval_exported(model: nn.Module) -> Callable[[Tensor], Tensor]:
    exported = torch.export.export(model, (images(3),))
    assert "convnext_roadmap" not in str(exported.graph)
    return exported.module()


def in_eval_scripted(model: nn.Module) -> Callable[[Tensor], Tensor]:
    scripted: Callable[[Tensor], Tensor] = torch.jit.script(model)
    return scripted


def in_eval_traced(model: nn.Module) -> Callable[[Tensor], Tensor]:
    traced: Any = torch.jit.trace(model, images(3))  # type: ignore[no-untyped-call]
    assert "convnext_roadmap" not in str(traced.inlined_graph)
    return traced  # type: ignore[no-any-return]


def in_eval_traced_by_fx(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.fx.symbolic_trace(model)


def in_eval_vectorized(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.func.vmap(lambda image: model(image.unsqueeze(0)).squeeze(0))(x)


def in_eval_as_tangent(model: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """The derivative along x of what is linear but for the biases, which the value at zero is."""
    linear = nn.Sequential(*(part for part in model if isinstance(part, nn.Conv2d)))
    zero = linear(torch.zeros_like(images(3)))
    return lambda x: torch.func.jvp(linear, (x,), (x,))[1] + zero


@pytest.mark.parametrize(
    "wrap",
    [
        in_eval_compiled,
        in_eval_exported,
        in_eval_scripted,
        in_eval_traced,
        in_eval_traced_by_fx,
        in_eval_vectorized,
        in_eval_as_tangent,
    ],
)
@pytest.mark.usefixtures("outputs")
@torch.no_grad()
def test_a_dilated_convolution_in_eval_takes_part_in_everything(
    wrap: Callable[[nn.Sequential], Callable[[Tensor], Tensor]],
) -> None:
    model = network(5, 1, 3).eval()
    model[2] = nn.Identity()
    torch.testing.assert_close(wrap(model)(images(3)), model(images(3)), rtol=1e-4, atol=1e-5)


def frozen(conv: nn.Conv2d) -> None:
    conv.requires_grad_(False)(images())


def without_gradients(conv: nn.Conv2d) -> None:
    with torch.no_grad():
        conv(images())


def in_eval(conv: nn.Conv2d) -> None:
    conv.eval()(images())


def elsewhere(conv: nn.Conv2d) -> None:
    conv.to("meta")(images().to("meta"))


@pytest.mark.parametrize("use", [frozen, without_gradients, in_eval, elsewhere])
def test_conv2d_is_left_alone_where_nothing_is_to_be_gained(
    calls: list[Any], use: Callable[[nn.Conv2d], None]
) -> None:
    use(module())
    assert calls == []
    module()(images())
    assert len(calls) == 1


def test_parameters_are_those_of_conv2d() -> None:
    built = []
    for kind in (DepthwiseConv2d, nn.Conv2d):
        torch.manual_seed(3)
        built.append(kind(6, 6, 5, padding=2, groups=6).state_dict())
    assert list(built[0]) == ["weight", "bias"]
    assert all(torch.equal(built[0][name], built[1][name]) for name in built[1])


@pytest.mark.parametrize("kind", ["depthwise", "multiscale"])
def test_layers_are_built_of_it(kind: str) -> None:
    layer = LAYERS[kind].build(Op("spatial", kind, 8, 8, kernel=5, padding=2, bias=True))
    convs = [part for part in layer.modules() if isinstance(part, nn.Conv2d)]
    assert len(convs) == (3 if kind == "multiscale" else 1)
    assert all(isinstance(conv, DepthwiseConv2d) for conv in convs)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_autocast_does_to_it_what_it_does_to_conv2d(given: torch.dtype, autocast: torch.dtype) -> None:
    gradients, types = [], []
    for forward in (depthwise_conv2d, conv2d_reference):
        _, weight, bias = tensors((3, 8), (8, 8, 7), torch.float32)
        x = images(dtype=given).requires_grad_()
        with torch.autocast("cpu", dtype=autocast):
            y = forward(x, weight, bias, 1, 1)
        gradients.append(torch.autograd.grad(y.float().square().sum(), [x, weight, bias]))
        types.append((y.dtype, *(gradient.dtype for gradient in gradients[-1])))
    assert types[0] == types[1] == (autocast, given, torch.float32, torch.float32)
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()


def test_autocast_leaves_double_precision_alone() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module().double()(images(dtype=torch.float64)).dtype == torch.float64


SMALL = [(7, 1, 1), (5, 1, 3)]


def network(kernel: int, stride: int, dilation: int) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), module(kernel, stride, dilation), GELU(), nn.Conv2d(8, 2, 1)
    ).train()


def gradients(forward: Callable[[Tensor], Tensor], model: nn.Module) -> list[Tensor]:
    return [
        gradient.clone()
        for gradient in torch.autograd.grad(forward(images(3)).square().sum(), list(model.parameters()))
    ]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=SMALL, ids=str)
def model(request: pytest.FixtureRequest) -> nn.Sequential:
    return network(*request.param)


def test_two_runs_agree_bit_by_bit(model: nn.Sequential) -> None:
    assert all(
        torch.equal(one, other)
        for one, other in zip(gradients(model, model), gradients(model, model), strict=True)
    )


def test_gradients_lie_in_memory_as_their_parameters(model: nn.Sequential) -> None:
    model.to(memory_format=torch.channels_last)
    model(images(3)).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()


def test_it_is_checkpointed(model: nn.Sequential) -> None:
    recomputed = gradients(lambda x: checkpoint(model, x, use_reentrant=False), model)
    assert all(
        torch.equal(one, other) for one, other in zip(recomputed, gradients(model, model), strict=True)
    )


def test_it_keeps_no_more_than_conv2d() -> None:
    kept: dict[type, list[int]] = {}
    for kind in (DepthwiseConv2d, nn.Conv2d):
        sizes = kept[kind] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kind(8, 8, 7, padding=3, groups=8)(images().requires_grad_())
    assert kept[DepthwiseConv2d] == kept[nn.Conv2d]


def test_it_is_called_with_other_parameters(model: nn.Sequential) -> None:
    others = {
        name: 2 * parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()
    }
    scaled = copy.deepcopy(model)
    scaled.load_state_dict(others)
    assert torch.equal(functional_call(model, others, (images(3),)), scaled(images(3)))


def test_functional_gradients_are_the_same(model: nn.Sequential) -> None:
    parameters: dict[str, Tensor] = dict(model.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        result: Tensor = functional_call(model, values, (images(3),)).square().sum()
        return result

    assert_close(list(torch.func.grad(loss)(parameters).values()), gradients(model, model))


def test_gradients_of_single_samples_sum_up(model: nn.Sequential) -> None:
    def loss(values: dict[str, Tensor], image: Tensor) -> Tensor:
        result: Tensor = functional_call(model, values, (image.unsqueeze(0),)).square().sum()
        return result

    samples = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(
        dict(model.named_parameters()), images(3)
    )
    assert_close([gradient.sum(0) for gradient in samples.values()], gradients(model, model))


@pytest.mark.parametrize("geometry", [*SMALL, (7, 2, 1), (5, 2, 3)])
def test_forward_mode_derivatives_are_those_of_conv2d(
    geometry: tuple[int, int, int], calls: list[Any]
) -> None:
    """Along a tangent of everything, and of the gradient along it: a product with the Hessian."""
    kernel, stride, dilation = geometry
    ours, tangent = network(*geometry), images(3)
    conv = nn.Conv2d(8, 8, kernel, stride, kernel // 2 * dilation, dilation, groups=8)
    theirs = nn.Sequential(ours[0], conv, *ours[2:])
    conv.load_state_dict(ours[1].state_dict())
    parameters = {name: value.detach() for name, value in ours.named_parameters()}
    found = []
    for model in (ours, theirs):

        def loss(values: dict[str, Tensor], x: Tensor, model: nn.Module = model) -> Tensor:
            result: Tensor = functional_call(model, values, (x,)).pow(3).sum()
            return result

        along = {name: torch.full_like(value, 0.1) for name, value in parameters.items()}
        slope = torch.func.jvp(loss, (parameters, tangent), (along, tangent))[1]
        curved = torch.func.jvp(torch.func.grad(loss), (parameters, tangent), (along, tangent))[1]
        found.append([slope, *curved.values()])
    assert_close(*found)
    assert not calls
    ours(tangent)
    assert calls


def test_a_batch_of_no_images_is_one_of_none() -> None:
    for conv in (module(7), module(5, dilation=3)):
        x = torch.zeros(0, 8, 8, 8, dtype=torch.bfloat16, requires_grad=True)
        output = conv.bfloat16()(x)
        output.sum().backward()
        assert output.shape == x.shape
        assert conv.weight.grad is not None
        assert conv.weight.grad.count_nonzero() == 0


def test_it_is_copied_and_pickled(model: nn.Sequential) -> None:
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(copied[1], DepthwiseConv2d)
        assert torch.equal(copied(images(3)), model(images(3)))


@pytest.mark.parametrize("dynamic", [False, True])
def test_it_is_compiled(model: nn.Sequential, dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    assert_close(gradients(compiled, model), gradients(model, model))


def test_it_is_traced_by_fx(model: nn.Sequential) -> None:
    traced = torch.fx.symbolic_trace(model)
    assert_close(gradients(traced, model), gradients(model, model))
    assert torch.equal(torch.jit.script(traced)(images(3)), model.eval()(images(3)))


@pytest.mark.parametrize("train", [False, True])
def test_it_is_scripted_and_traced_by_torchscript(model: nn.Sequential, train: bool, tmp_path: Path) -> None:
    model.train(train)
    for made in (torch.jit.script(model), torch.jit.trace(model, images(3))):  # type: ignore[no-untyped-call]
        assert_close([made(images(3))], [model(images(3))])
        made.save(str(tmp_path / "model.pt"))
        loaded = torch.jit.load(str(tmp_path / "model.pt"))  # type: ignore[no-untyped-call]
        assert_close([loaded(images(3))], [model(images(3))])


@pytest.mark.parametrize("train", [False, True])
def test_it_is_exported_as_conv2d(model: nn.Sequential, train: bool) -> None:
    exported = torch.export.export(model.train(train), (images(3),))
    assert [node.target for node in exported.graph.nodes if "conv" in str(node.target)] == [
        torch.ops.aten.conv2d.default
    ] * 3
    assert_close([exported.module()(images(3))], [model(images(3))])


@pytest.mark.parametrize("size", [4, 16])
def test_operations_are_counted_as_written_down(size: int, path: str) -> None:
    for geometry in SMALL:
        with FlopCounterMode(display=False) as flops:
            module(*geometry)(images(size=size))
        assert flops.get_total_flops() == 2 * 3 * 8 * size**2 * geometry[0] ** 2, path


def test_split_maps_are_merged_again() -> None:
    x = images(size=7)
    parts = depthwise.space_to_batch(x, 3)
    assert parts.shape == (27, 8, 3, 3)
    assert torch.equal(parts[3:6][..., :2], x[:, :, ::3, 1::3])
    assert torch.equal(depthwise.batch_to_space(parts, 3, x.shape), x)
