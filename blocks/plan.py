"""From a spec to an ordered list of layers: all channels, strides and biases are decided in plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from blocks.layers import LAYERS, Op
from blocks.spec import BlockSpec, ModelSpec, StemSpec

BODY, SHORTCUT, SUM = "body", "shortcut", "sum"


@dataclass(frozen=True)
class ModelPlan:
    """All layers of a network: `downsamples[i]` comes before stage `i`; `plan_block` plans a block."""

    stem: tuple[Op, ...]
    downsamples: tuple[tuple[Op, ...], ...]
    stages: tuple[tuple[tuple[Op, ...], ...], ...]
    head_norm: tuple[Op, ...]
    classifier: Op


def _conv(
    name: str,
    kind: str,
    c_in: int,
    c_out: int,
    *,
    bias: bool,
    kernel: int = 1,
    stride: int = 1,
    padding: int | None = None,
) -> Op:
    return Op(name, kind, c_in, c_out, kernel, stride, kernel // 2 if padding is None else padding, bias)


def _norm(name: str, kind: str, channels: int) -> Op:
    return Op(name, kind, channels, channels)


def _biased(spec: BlockSpec) -> bool:
    """Whether convolutions have a bias: a BN that follows, or once followed, each of them absorbs it."""
    return spec.norm.kind != "bn"


def plan_block(spec: BlockSpec, c_in: int, width: int, stride: int) -> tuple[Op, ...]:
    """The layers of one block, named `path.place`: first the body's, then the shortcut's, then the sum's.

    `c_in` and `width` are channels; `stride` is that of the spatial convolution (ResNet v1.5). The shortcut
    has layers only where the block changes the shape; an empty path is an identity.
    """
    body = list(_plan_body(spec, c_in, width, stride))
    c_out = body[-1].c_out
    if spec.layer_scale is not None:
        body.append(Op(f"{BODY}.gamma", "layer_scale", c_out, c_out, value=spec.layer_scale))
    shortcut: list[Op] = []
    if stride > 1 or c_in != c_out:
        shortcut = [
            _conv(f"{SHORTCUT}.conv", "pointwise", c_in, c_out, stride=stride, bias=False),
            _norm(f"{SHORTCUT}.norm", spec.norm.kind, c_out),
        ]
    after = [Op(f"{SUM}.act", spec.act.kind, c_out, c_out)] if "sum" in spec.act.after else []
    return (*body, *shortcut, *after)


def _plan_body(spec: BlockSpec, c_in: int, width: int, stride: int) -> Iterator[Op]:
    channels = c_in
    for place in spec.order:
        op = _mixer(spec, place, channels, width, stride)
        gated = spec.gate and place == "pw1"
        channels = op.c_out // 2 if gated else op.c_out
        yield op
        yield from _after(spec, place, op, gated=gated)


def gated_channels(spec: BlockSpec, width: int) -> int:
    """Channels of a gated block after the product: two thirds of the hidden ones, so that the three matrices
    of `pw1` and `pw2` have the parameters of two without a gate; at least 4, as of a stage.
    """
    return max(2 * spec.hidden * width // 3, 4)


def _mixer(spec: BlockSpec, place: str, c_in: int, width: int, stride: int) -> Op:
    """The convolution at a place of the body, or what mixes the positions instead of one."""
    name, bias = f"{BODY}.{place}", _biased(spec)
    if place == "spatial":
        spatial = spec.spatial
        return _conv(name, spatial.kind, c_in, c_in, kernel=spatial.kernel, stride=stride, bias=bias)
    c_out = (spec.hidden if place == "pw1" else spec.out) * width
    if place == "pw1" and spec.gate:
        c_out = 2 * gated_channels(spec, width)
    return _conv(name, "pointwise", c_in, c_out, bias=bias)


def _after(spec: BlockSpec, place: str, mixer: Op, *, gated: bool) -> Iterator[Op]:
    """What follows the layer at a place of the body."""
    name, channels = mixer.name, mixer.c_out
    normed, activated = place in spec.norm.after, place in spec.act.after
    if normed:
        yield _norm(f"{name}_norm", spec.norm.kind, channels)
    # an activation must not overwrite the input of the block, nor half of a tensor
    overwrites = not gated and (normed or not LAYERS[mixer.kind].passes_input)
    kept = channels // 2 if gated else channels
    act = Op(f"{name}_act", spec.act.kind, kept, kept, inplace=overwrites) if activated else None
    if gated:
        yield Op(f"{name}_gate", "gate", channels, kept, within=act)
    elif act is not None:
        yield act
    if place == "pw1" and spec.grn:
        yield Op(f"{name}_grn", "grn", kept, kept)
    if place == "spatial" and spec.squeeze_excite is not None:
        yield Op(f"{name}_se", "squeeze_excite", kept, kept, value=spec.squeeze_excite)


def describe(spec: BlockSpec) -> str:
    """The block as a sentence, w being the stage width: 'pw(1w) bn relu conv3 bn relu pw(4w) bn + relu'."""
    width = 192  # a multiple of 3, for two thirds of the channels
    words: dict[str, list[str]] = {BODY: [], SHORTCUT: [], SUM: []}
    for op in plan_block(spec, c_in=spec.out * width, width=width, stride=1):
        words[op.name.split(".")[0]].append(LAYERS[op.kind].label(op, width))
    return " ".join(word for word in [*words[BODY], "+", *words[SUM]] if word)


def _plan_stem(stem: StemSpec, block: BlockSpec, c_in: int, width: int) -> Iterator[Op]:
    if stem.kind == "patchify":
        yield _conv("conv", "conv", c_in, width, kernel=stem.stride, stride=stem.stride, padding=0, bias=True)
    elif stem.kind == "overlapping":
        for number in range(1, stem.stride.bit_length()):
            name = "conv" if number == 1 else f"conv{number}"
            yield _conv(name, "conv", c_in, width, kernel=3, stride=2, bias=True)
            c_in = width
    else:
        yield _conv(
            "conv",
            "conv",
            c_in,
            width,
            kernel=7,
            stride=stem.stride // 2,
            bias=_biased(block) or not stem.norm,
        )
    if stem.norm:
        yield _norm("norm", block.norm.kind, width)
    if stem.kind == "resnet":
        yield Op("act", block.act.kind, width, width)
        yield Op("pool", "max_pool", width, width, kernel=3, stride=2, padding=1)


def _plan_downsample(spec: ModelSpec, c_in: int, c_out: int) -> Iterator[Op]:
    if spec.downsample_norm:
        yield _norm("norm", spec.block.norm.kind, c_in)
    yield _conv("conv", "conv", c_in, c_out, kernel=2, stride=2, padding=0, bias=True)


def plan_model(spec: ModelSpec) -> ModelPlan:
    """All layers of a network, from the stem to the classifier."""
    channels = spec.stage_width(0)
    stem = tuple(_plan_stem(spec.stem, spec.block, spec.in_chans, channels))
    downsamples, stages = [], []
    for index, depth in enumerate(spec.depths):
        width, stride = spec.stage_width(index), 2 if index else 1
        downsample: tuple[Op, ...] = ()
        if stride == 2 and spec.downsample == "separate":
            downsample = tuple(_plan_downsample(spec, channels, spec.block.out * width))
            channels, stride = downsample[-1].c_out, 1
        blocks = [plan_block(spec.block, channels, width, stride)]
        channels = spec.block.out * width
        blocks += [plan_block(spec.block, channels, width, 1)] * (depth - 1)
        downsamples.append(downsample)
        stages.append(tuple(blocks))
    head_norm = (_norm("norm", spec.block.norm.kind, channels),) if spec.head_norm else ()
    classifier = Op("classifier", "linear", channels, spec.num_classes, bias=True)
    return ModelPlan(stem, tuple(downsamples), tuple(stages), head_norm, classifier)
