"""What holds for any settings and for any network that a spec allows, not only for the roadmap's."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise, permutations
from typing import get_args

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from blocks import BlockSpec, ModelSpec, Op, build_model, complexity, describe, plan_block, plan_model
from blocks.layers import kinds
from blocks.plan import BODY, SHORTCUT, SUM
from blocks.spec import ActSpec, NormSpec, SpatialSpec, StemSpec
from roadmap.ablations import ablate
from roadmap.deltas import Setting, Settings, merge, trace, validate
from roadmap.steps import load_roadmaps, resolve

ROADMAPS = load_roadmaps()
ROADMAP = ROADMAPS["convnext_t"]
PLACES = ("pw1", "spatial", "pw2")

networks = settings(max_examples=40, deadline=None, derandomize=True)
plain = settings(max_examples=100, deadline=None, derandomize=True)


@st.composite
def deltas(draw: st.DrawFn, paths: str = "abcdef") -> Settings:
    values = draw(st.dictionaries(st.sampled_from(paths), st.integers(0, 3)))
    source = draw(st.sampled_from(["base", "step", "profile"]))
    return {path: Setting(value, source, "") for path, value in values.items()}


@plain
@given(st.lists(deltas(), max_size=4))
def test_the_last_delta_that_sets_a_leaf_wins(layers: list[Settings]) -> None:
    merged = merge(*layers)
    assert merged.keys() == {path for layer in layers for path in layer}
    for path, setting in merged.items():
        assert setting is [layer[path] for layer in layers if path in layer][-1]


@plain
@given(deltas(), deltas())
def test_the_leaves_set_last_come_last(base: Settings, delta: Settings) -> None:
    untouched = [path for path in base if path not in delta]
    assert list(merge(base, delta)) == [*untouched, *delta]


@plain
@given(deltas(), deltas("abc"), deltas("def"))
def test_the_order_of_disjoint_deltas_does_not_matter(base: Settings, one: Settings, other: Settings) -> None:
    assert merge(base, one, other) == merge(base, other, one)


@plain
@given(deltas(), deltas())
def test_merging_a_delta_again_changes_nothing(base: Settings, delta: Settings) -> None:
    assert merge(base, delta, delta) == merge(merge(base, delta), delta) == merge(base, delta)


@plain
@given(deltas(), deltas(), deltas())
def test_deltas_can_be_merged_in_groups(one: Settings, two: Settings, three: Settings) -> None:
    assert merge(merge(one, two), three) == merge(one, merge(two, three)) == merge(one, two, three)


@plain
@given(deltas(), deltas())
def test_merging_leaves_its_inputs_alone(base: Settings, delta: Settings) -> None:
    before = list(base.items()), list(delta.items())
    merge(base, delta)
    assert (list(base.items()), list(delta.items())) == before


def subsets(places: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(places), unique=True).map(tuple)


orders = st.sampled_from([order for order in permutations(PLACES) if order.index("pw1") < order.index("pw2")])
kernels = st.integers(0, 5).map(lambda half: 2 * half + 1)
block_specs = st.builds(
    BlockSpec,
    order=orders,
    hidden=st.integers(1, 4),
    out=st.integers(1, 4),
    spatial=st.builds(SpatialSpec, kind=st.sampled_from(kinds("spatial")), kernel=kernels),
    norm=st.builds(NormSpec, kind=st.sampled_from(kinds("norm")), after=subsets(PLACES)),
    act=st.builds(ActSpec, kind=st.sampled_from(kinds("act")), after=subsets((*PLACES, "sum"))),
    gate=st.booleans(),
    grn=st.booleans(),
    squeeze_excite=st.sampled_from([None, 0.0625, 0.25, 1.0]),
    layer_scale=st.sampled_from([None, 1e-6, 1.0]),
)
stem_specs = st.one_of(
    st.builds(StemSpec, kind=st.just("resnet"), stride=st.sampled_from([2, 4]), norm=st.booleans()),
    st.builds(StemSpec, kind=st.just("patchify"), stride=st.integers(2, 5), norm=st.booleans()),
    st.builds(StemSpec, kind=st.just("overlapping"), stride=st.sampled_from([2, 4, 8]), norm=st.booleans()),
)
model_specs = st.builds(
    lambda between, **axes: ModelSpec(downsample=between[0], downsample_norm=between[1], **axes),
    between=st.sampled_from([("block", True), ("separate", True), ("separate", False)]),
    in_chans=st.integers(1, 3),
    num_classes=st.integers(1, 5),
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=3).map(tuple),
    width=st.integers(4, 9),
    width_mult=st.sampled_from([1.0, 1.25]),
    drop_path=st.sampled_from([0.0, 0.2]),
    init=st.sampled_from(get_args(ModelSpec.model_fields["init"].annotation)),
    stem=stem_specs,
    block=block_specs,
    head_norm=st.booleans(),
)


def path(plan: tuple[Op, ...], name: str) -> list[Op]:
    return [op for op in plan if op.name.split(".")[0] == name]


def chain(ops: list[Op] | tuple[Op, ...], channels: int) -> int:
    """The channels that come out of `ops` in a row; fails where one does not take what the one before it
    gives.
    """
    for op in ops:
        assert op.c_in == channels, op
        channels = op.c_out
    return channels


def stride_of(ops: list[Op] | tuple[Op, ...]) -> int:
    total = 1
    for op in ops:
        total *= op.stride
    return total


def check_block(plan: tuple[Op, ...], channels: int, stride: int) -> int:
    """The channels that come out of a block on `channels`;
    both of its paths agree on them and on the stride.
    """
    body, shortcut, after = (path(plan, name) for name in (BODY, SHORTCUT, SUM))
    assert (*body, *shortcut, *after) == plan
    c_out = chain(body, channels)
    assert chain(shortcut, channels) == c_out
    assert stride_of(body) == stride_of(shortcut) == stride
    return chain(after, c_out)


@plain
@given(block_specs, st.integers(4, 40), st.integers(4, 10), st.sampled_from([1, 2]))
def test_both_paths_of_a_block_end_in_the_same_shape(
    spec: BlockSpec, c_in: int, width: int, stride: int
) -> None:
    plan = plan_block(spec, c_in, width, stride)
    assert check_block(plan, c_in, stride) == spec.out * width
    assert bool(path(plan, SHORTCUT)) == (stride > 1 or c_in != spec.out * width)
    convs = [op.name.removeprefix(f"{BODY}.") for op in plan if op.name.removeprefix(f"{BODY}.") in PLACES]
    assert tuple(convs) == spec.order


@plain
@given(model_specs)
def test_channels_chain_from_the_image_to_the_classes(spec: ModelSpec) -> None:
    plan = plan_model(spec)
    channels = chain(plan.stem, spec.in_chans)
    assert stride_of(plan.stem) == spec.stem.stride
    assert tuple(map(len, plan.stages)) == spec.depths
    for stage, (downsample, blocks) in enumerate(zip(plan.downsamples, plan.stages, strict=True)):
        channels = chain(downsample, channels)
        assert stride_of(downsample) == (2 if stage and spec.downsample == "separate" else 1)
        strides = [
            2 if stage and block == 0 and spec.downsample == "block" else 1 for block in range(len(blocks))
        ]
        for block, stride in zip(blocks, strides, strict=True):
            channels = check_block(block, channels, stride)
        assert channels == spec.block.out * spec.stage_width(stage)
    assert chain((*plan.head_norm, plan.classifier), channels) == spec.num_classes


@plain
@given(model_specs)
def test_each_stage_is_twice_as_wide_as_the_one_before(spec: ModelSpec) -> None:
    widths = [spec.stage_width(stage) for stage in range(len(spec.depths))]
    assert all(wide == 2 * narrow for narrow, wide in pairwise(widths))


@plain
@given(block_specs)
def test_the_sentence_names_every_layer_in_order(spec: BlockSpec) -> None:
    body, _, after = describe(spec).partition("+")
    hidden = Fraction(4 * spec.hidden, 3) if spec.gate else spec.hidden
    convs = {"pw1": f"pw({hidden}w)", "pw2": f"pw({spec.out}w)", "spatial": spatial_word(spec.spatial)}
    excite = {None: [], 0.0625: ["se(1/16)"], 0.25: ["se(1/4)"], 1.0: ["se(1)"]}[spec.squeeze_excite]
    expected = []
    for place in spec.order:
        expected += [convs[place]]
        expected += [spec.norm.kind] if place in spec.norm.after else []
        act = spec.act.kind if place in spec.act.after else ""
        if place == "pw1" and spec.gate:
            act = f"gate({act})" if act else "gate"
        expected += [act] if act else []
        expected += {"pw1": ["grn"] if spec.grn else [], "spatial": excite, "pw2": []}[place]
    assert body.split() == expected
    assert after.split() == ([spec.act.kind] if "sum" in spec.act.after else [])


def spatial_word(spec: SpatialSpec) -> str:
    words = {
        "conv": "conv{0}",
        "depthwise": "dw{0}",
        "multiscale": "ms(3,{0},{0}d3)",
        "inception": "inc(3,1x{0},{0}x1)",
        "decomposed": "dec({1}x{0},{0}x{1})",
        "pooling": "pool{0}",
        "identity": "identity",
        "window_attention": "attn{0}",
    }
    return words[spec.kind].format(spec.kernel, min(spec.kernel, 5))


def check_cost(spec: ModelSpec, image_size: int) -> None:
    """Arithmetic and the modules agree on parameters, multiply-adds and the output's shape, or both refuse
    the image.
    """
    with torch.device("meta"):
        network = build_model(spec).eval()
        images = torch.empty(2, spec.in_chans, image_size, image_size)
    try:
        cost = complexity(spec, image_size)
    except ValueError:
        event("the image is too small")
        with pytest.raises(RuntimeError):
            network(images)
        return
    with FlopCounterMode(display=False) as flops:
        logits = network(images)
    assert logits.shape == (2, spec.num_classes)
    assert cost.params == sum(parameter.numel() for parameter in network.parameters())
    assert 2 * cost.macs == flops.get_total_flops() // len(images)


@networks
@given(model_specs, st.integers(1, 40))
def test_arithmetic_counts_the_modules_of_any_network(spec: ModelSpec, image_size: int) -> None:
    check_cost(spec, image_size)


def shrunk(spec: ModelSpec, positions: int) -> tuple[ModelSpec, int]:
    """A network of the same kind, 4 to 12 channels wide and up to two blocks a stage, with images that leave
    the last stage `positions`.
    """
    depths = tuple(min(depth, 2) for depth in spec.depths)
    width = max(round(2 * math.log2(spec.width)) - 8, 4)  # 64 to 1,024 channels become 4 to 12
    small = spec.model_dump() | {"width": width, "depths": depths, "num_classes": 10}
    return ModelSpec.model_validate(small), positions * spec.stem.stride << (len(depths) - 1)


def check_training(spec: ModelSpec, image_size: int) -> None:
    """Arithmetic and the modules agree on the cost of a forward pass, and every parameter gets a finite
    gradient from it.
    """
    torch.manual_seed(0)
    network = build_model(spec).train()
    images = torch.randn(2, spec.in_chans, image_size, image_size)
    with FlopCounterMode(display=False) as flops:
        logits = network(images)
    cost = complexity(spec, image_size)
    assert cost.params == sum(parameter.numel() for parameter in network.parameters())
    assert 2 * cost.macs * len(images) == flops.get_total_flops()
    functional.cross_entropy(logits, torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [
        name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()
    ] == []


# it takes away what another change brings, and is refused without that one
CONDITIONAL = "no_downsampling_norms"
DELTAS = [
    (name, step)
    for name, roadmap in ROADMAPS.items()
    for step in roadmap.steps
    if roadmap.tree[step].settings and step != CONDITIONAL
]
RECIPE = {path: setting for path, setting in ROADMAP.base.items() if path.startswith("recipe.")}


def some(size: int) -> st.SearchStrategy[list[tuple[str, str]]]:
    """As many deltas, in any order."""
    return st.permutations(DELTAS).map(lambda order: order[:size])


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    st.sampled_from(["resnet50", "resnet200"]),
    st.integers(0, len(DELTAS)).flatmap(some),
    st.integers(1, 2),
    st.integers(0, 4),
)
def test_any_deltas_of_all_roadmaps_in_any_order_are_a_network(
    root: str, chosen: list[tuple[str, str]], positions: int, lot: int
) -> None:
    """In both regimes; one in five networks is also trained by an iteration."""
    start = ROADMAPS["convnext_t" if root == "resnet50" else "convnext_b"].tree[root].settings
    # with the base's recipe: 50 epochs of warm-up from one step do not go with 30 epochs from another
    merged = merge(
        ROADMAP.base, start, *(ROADMAPS[name].tree[step].settings for name, step in chosen), RECIPE
    )
    config = validate(merged, roadmap="any", step="any", profile=None, seed=0)
    event(f"{len(chosen) // 10 * 10} deltas or more")
    spec, image_size = shrunk(config.ours, positions)
    if lot == 0:
        check_training(spec, image_size)
    else:
        parameters = build_model(spec).parameters()
        assert complexity(spec, image_size).params == sum(parameter.numel() for parameter in parameters)


@plain
@given(
    st.lists(st.sampled_from([step for step in ROADMAP.steps[1:] if step != CONDITIONAL]), unique=True),
    st.data(),
)
def test_a_combination_is_its_deltas_in_the_order_of_its_name(names: list[str], data: st.DataObject) -> None:
    dropped = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    combination = "".join(["resnet50", *(f"+{name}" for name in names), *(f"-{name}" for name in dropped)])
    kept = [ROADMAP.tree[name].settings for name in names if name not in dropped]
    merged = merge(ROADMAP.base, *kept)
    assert trace(ROADMAP, combination) == merged
    assert (
        resolve(ROADMAP, combination).model
        == validate(merged, roadmap="any", step="any", profile=None, seed=0).model
    )


@networks
@given(st.integers(0, 10**9 - 1))
def test_a_random_order_ends_with_all_changes_of_the_path(seed: int) -> None:
    ordered = ablate(ROADMAP, f"order:{seed}")
    assert ordered.steps[0] == "resnet50"
    deltas = ROADMAP.shuffled(seed)
    assert {delta.name for delta in deltas} == set(ROADMAP.trunk)
    values = {
        path: setting.value
        for path, setting in merge(ROADMAP.base, *(delta.settings for delta in deltas)).items()
    }
    assert {path: setting.value for path, setting in trace(ordered, ordered.steps[-1]).items()} == values
