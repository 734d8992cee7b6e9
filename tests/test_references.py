"""Reference steps: models of timm, in place of one of our networks, from the steps file to the table."""

from __future__ import annotations

import json
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from blocks.cost import complexity
from blocks.model import build_model
from roadmap import ROOT, STEPS_YAML
from roadmap.ablations import ablate
from roadmap.bench.results import read_rows
from roadmap.cli.inspect import print_verify
from roadmap.config import RunConfig, TimmSpec
from roadmap.deltas import Roadmap, known_cost, known_training_macs
from roadmap.errors import ConfigError
from roadmap.export import export, to_timm
from roadmap.networks import build_network, check_all, cost_of, costs_of
from roadmap.records import Result, RunDir, prepare, read_result, run_dir_of
from roadmap.references import check_references
from roadmap.report.figures.accuracy_vs_cost import accuracy_vs
from roadmap.report.figures.measured_vs_paper import measured_vs_paper
from roadmap.report.figures.roadmap_bars import MEASURED_REFERENCE, roadmap_bars
from roadmap.report.runs import read_experiment
from roadmap.report.tables import ablation_table, to_frame, to_json
from roadmap.steps import flat_text, load_roadmap, load_roadmaps, resolve
from roadmap.train import train
from roadmap.training.optim import decayed_groups, layer_groups
from roadmap.verify import verify_references
from tests.helpers import commands
from tests.helpers.processes import finish, start, train_together
from tests.helpers.trained import trained

ROADMAP = load_roadmap()
PAIRS = [("resnet50_timm", "resnet50"), ("convnext_t_timm", "separate_downsampling")]
SHIPPED = [(name, step) for name, roadmap in load_roadmaps().items() for step in roadmap.references]
MINE = """
extends: steps.yaml
roadmaps:
  convnext_t:
    steps:
      - name: tiny_swin
        title: tiny Swin
        model:
          timm: swin_tiny_patch4_window7_224
          batch_norm: false
          args: {depths: [1, 1]}
          profiles:
            digits: {embed_dim: 8, num_heads: [1, 2], patch_size: 2, window_size: 5}
        set: {model.drop_path: 0.2, recipe.clip_grad: 0.5}
"""
# all that draws random numbers in a network or a batch, and an EMA
BUSY: dict[str, Any] = {
    "data.copies": 1,
    "model.drop_path": 0.2,
    "recipe.epochs": 2,
    "recipe.mixup": 0.8,
    "recipe.ema": 0.9,
    "system.log_every": 2,
}


@pytest.fixture(scope="module")
def steps_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("steps") / "mine.yaml"
    path.write_text(MINE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def mine(steps_file: Path) -> Roadmap:
    return load_roadmap(steps_file)


@pytest.fixture(scope="module")
def config(mine: Roadmap) -> RunConfig:
    return resolve(mine, "tiny_swin", profile="digits", overrides=BUSY)


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run."""
    run = prepare(tmp_path_factory.mktemp("runs"), config)
    assert train(config, run.path).status == "done"
    return run


def result_of(run: RunDir) -> Result:
    result = read_result(run)
    assert result is not None
    return result


def weights_of(run: RunDir) -> dict[str, Any]:
    """The newest checkpoint's `model` and `ema`."""
    found: dict[str, Any] = torch.load(max(run.checkpoints.glob("*.pt")), weights_only=True)["engine"]
    return found


def timm_spec(config: RunConfig) -> TimmSpec:
    assert isinstance(config.model, TimmSpec)
    return config.model


def changed(config: RunConfig, **values: Any) -> RunConfig:
    """The configuration with other values of its model."""
    return config.model_copy(update={"model": config.model.model_copy(update=values)})


def test_references_are_outside_the_tree(mine: Roadmap, steps_file: Path, tmp_path: Path) -> None:
    assert len(ROADMAP.steps) == 19
    assert mine.steps == ROADMAP.steps
    assert mine.trunk == ROADMAP.trunk
    assert list(mine.references) == [*ROADMAP.references, "tiny_swin"]
    for kind in ("leave-one-out", "one-at-a-time", "order:1"):
        ablated = ablate(mine, kind)
        assert not ablated.references
        assert not set(mine.references) & set(ablated.steps)
    flat = tmp_path / "flat.yaml"
    flat.write_text(flat_text(steps_file), encoding="utf-8")
    assert resolve(load_roadmap(flat), "tiny_swin") == resolve(mine, "tiny_swin")
    assert mine.knows("swin_t")
    for combination in ("swin_t+gelu", "gelu+swin_t"):
        with pytest.raises(ConfigError, match="'swin_t': a reference is a model of timm"):
            mine.lineage(combination)


@pytest.mark.parametrize("profile", [None, "digits", "cifar10_small"])
def test_the_recipe_is_that_of_the_paths_last_step(profile: str | None, mine: Roadmap) -> None:
    end = resolve(mine, mine.trunk[-1], profile=profile)
    plain = resolve(mine, "deit_s", profile=profile)
    assert (plain.recipe, plain.data) == (end.recipe, end.data)
    assert plain.model.drop_path == end.model.drop_path
    assert plain.model.num_classes == end.model.num_classes
    own = resolve(mine, "tiny_swin", profile=profile)
    clip = 1.0 if profile == "digits" else 0.5  # the profile comes after the step
    assert own.recipe == end.recipe.model_copy(update={"clip_grad": clip})


def test_keywords_of_a_profile_are_added_to_the_steps(mine: Roadmap) -> None:
    def args(step: str, profile: str | None) -> dict[str, Any]:
        return timm_spec(resolve(mine, step, profile=profile)).args

    assert args("tiny_swin", None) == args("tiny_swin", "digits_noisy") == {"depths": (1, 1)}
    assert args("tiny_swin", "digits") == {
        "depths": (1, 1), "embed_dim": 8, "num_heads": (1, 2), "patch_size": 2, "window_size": 5,
    }  # fmt: skip
    assert args("swin_t", "digits") == args("swin_t", "digits_noisy")
    small, wide = args("swin_t", "cifar10_small"), args("swin_t", "cifar10")
    assert small == wide | {"embed_dim": 12, "num_heads": (1, 2, 4, 8)}


def test_a_configuration_is_the_same_when_it_is_read(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert RunConfig.read(path) == config
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    others = [changed(config, args={}), changed(config, drop_path=0.0), changed(config, timm="vit")]
    assert len({other.hash for other in [config, *others]}) == 4


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title: tiny Swin", "title: tiny Swin\n        parent: gelu", "so no parent"),
        ("model.drop_path: 0.2", "model.width: 8", "'model.width' is a key of our networks"),
        ("model.drop_path: 0.2", "model.drop_path: 1.2", "model.drop_path: input should be less than 1"),
        ("model.drop_path: 0.2", "model.drop_path: 0.1", "changes nothing"),
        ("digits: {", "digit: {", "unknown profile 'digit'; did you mean 'digits'?"),
        ("batch_norm: false", "batchnorm: false", "did you mean 'batch_norm'?"),
        ("          timm: swin_tiny_patch4_window7_224\n", "", "'timm' is missing"),
        ("depths: [1, 1]", "drop_path_rate: 0.1", "set model.drop_path"),
        ("depths: [1, 1]", "img_size: 20", "set data.image_size"),
        ("depths: [1, 1]", "pretrained: true", "--init-from"),
        ("        title: tiny Swin\n", "", "'title' is missing"),
        ("name: tiny_swin", "name: gelu", "defined twice"),
        (
            "  convnext_t:\n    steps:",
            "  other:\n    title: other\n    steps:",
            "a roadmap needs a step without `model`",
        ),
    ],
)
def test_a_wrong_reference_is_an_error_with_its_place(
    old: str, new: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    assert MINE.count(old) == 1
    path.write_text(MINE.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine.yaml:\d+:\d+") as raised:
        load_roadmaps(path)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("step", "size", "values", "expected"),
    [
        ("resnet50_timm", 224, {"timm": "resnet51"}, "'resnet51', which timm .* does not have; did you mean"),
        ("swin_t", 224, {"args": {"dephts": (1, 1)}}, "swin_t: model.args do not fit .* argument 'dephts'"),
        ("deit_s", 72, {"args": {"depth": 1}}, "image_size is 72, .* border of 8 px.* fit: 32, 64, 96"),
        ("resnet50_timm", 64, {"batch_norm": False}, "resnet50_timm: model.batch_norm is false"),
        ("resnet50_timm", 64, {"timm": "vgg11", "drop_path": 0.1}, "drop_path must be 0: .*vgg11 has no"),
        ("regnety_4g", 64, {"args": {"w0": 9}}, "do not fit timm's regnety_040, .* width_initial % quant"),
    ],
)
def test_a_model_that_timm_cannot_build_is_one_error(
    step: str, size: int, values: dict[str, Any], expected: str
) -> None:
    config = changed(resolve(ROADMAP, step, overrides={"data.image_size": size}), **values)
    with pytest.raises(ConfigError, match=expected) as raised:
        build_network(config)
    assert len(raised.value.problems) == 1
    assert check_all([config.model_dump_json()]) == [str(raised.value)]


def test_models_are_checked_before_a_submission() -> None:
    """In another process, which has PyTorch."""
    good = resolve(ROADMAP, "deit_s", profile="digits_noisy")
    wrong = [changed(good, timm="deit_small_patch16_22"), changed(good, args={"deep": 4})]
    with pytest.raises(ConfigError, match=r"deit_s: model\.timm is .* did you mean 'deit_small_p") as raised:
        check_references([good, *wrong, resolve(ROADMAP, "gelu")])
    assert len(raised.value.problems) == 2
    check_references([resolve(ROADMAP, "gelu")])  # without a process


@pytest.mark.parametrize("profile", ["digits_noisy", "cifar10", "cifar10_small"])
@pytest.mark.parametrize(("roadmap", "step"), SHIPPED)
def test_every_reference_is_narrow_in_a_small_profile(roadmap: str, step: str, profile: str) -> None:
    found = resolve(load_roadmap(name=roadmap), step, profile=profile)
    network = build_network(found)
    cost = cost_of(found, network)
    own = load_roadmap(name=roadmap).references[step].counted
    assert own is not None
    assert cost.params < own.params * 1e6 * (0.3 if profile == "cifar10" else 0.03)
    images = torch.randn(2, found.model.in_chans, found.data.image_size, found.data.image_size)
    network.train()(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("step", "ours"), PAIRS)
def test_the_counter_agrees_with_the_arithmetic_of_our_networks(step: str, ours: str) -> None:
    assert cost_of(resolve(ROADMAP, step)) == complexity(resolve(ROADMAP, ours).ours)


def test_the_products_of_attention_are_counted() -> None:
    config = resolve(ROADMAP, "deit_s", profile="digits_noisy", overrides={"data.image_size": 32})
    network: Any = build_network(config)
    assert network.blocks[0].attn.fused_attn, "the fused kernel is what has to be counted"
    width, tokens, depth = 48, (32 // 4) ** 2 + 1, 12
    layers = tokens * 12 * width**2  # queries, keys, values, projection, and an MLP of four times the width
    attention = 2 * tokens**2 * width
    patches = 64 * width * 4**2
    cost, training = costs_of(config)
    assert cost.macs == depth * (layers + attention) + patches + width * 10
    assert training == 3 * cost.macs


def test_the_cost_is_known_without_pytorch_where_the_network_is_that_of_the_steps_file() -> None:
    for roadmap in load_roadmaps().values():
        for row in verify_references(roadmap):
            assert row.counts, row.verdict
            assert not row.is_wrong, row.verdict
            cost = known_cost(roadmap, resolve(roadmap, row.step, profile="imagenet"))
            assert cost is not None
            assert cost.macs == pytest.approx(row.cost.macs, rel=1e-4)
    swin = resolve(ROADMAP, "swin_t", overrides={"model.drop_path": 0.0})
    assert known_training_macs(ROADMAP, swin) == 3 * 4_490_600_000
    for profile in ("digits_noisy", "imagenet100", "imagenette"):
        assert known_cost(ROADMAP, resolve(ROADMAP, "swin_t", profile=profile)) is None


def test_a_wrong_count_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from roadmap.__main__ import parser

    path = tmp_path / "mine.yaml"
    text = STEPS_YAML.read_text(encoding="utf-8")
    path.write_text(text.replace("params: 87.768", "params: 87.8"), encoding="utf-8")
    words = ["verify", "--references", "--roadmap", "convnext_b", "--steps-file"]
    assert print_verify(parser().parse_args([*words, str(path)])) == 1
    assert "DOES NOT MATCH" in capsys.readouterr().out
    assert print_verify(parser().parse_args([*words, str(STEPS_YAML)])) == 0
    with pytest.raises(ConfigError, match="no reference steps"):
        print_verify(parser().parse_args(["verify", "--references", "--roadmap", "family"]))


@pytest.mark.parametrize(("step", "ours"), PAIRS)
def test_timms_network_is_ours_with_the_same_weights(step: str, ours: str) -> None:
    spec = resolve(ROADMAP, ours).ours
    network, theirs = build_model(spec).eval(), build_network(resolve(ROADMAP, step)).eval()
    theirs.load_state_dict(to_timm(spec, network.state_dict()))
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("step", "ours"),
    [("resnet50_as_timm", "enhanced_recipe"), ("convnext_t_as_timm", "separate_downsampling")],
)
def test_the_example_compares_the_same_networks(step: str, ours: str) -> None:
    roadmap = load_roadmap(ROOT / "examples/as_timm.yaml")
    config, other = (resolve(roadmap, name, profile="digits_as_timm") for name in (ours, step))
    network, theirs = build_model(config.ours).eval(), build_network(other).eval()
    theirs.load_state_dict(to_timm(config.ours, network.state_dict()))
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), network(images), rtol=1e-4, atol=1e-5)
    assert (config.recipe, config.data) == (other.recipe, other.data)


def moments(tensor: torch.Tensor) -> tuple[float, float, int]:
    """Mean, standard deviation, and number of values, without outliers: of ten million draws, PyTorch's
    truncated normal of std .02 has about one at -2.
    """
    inside = tensor[(tensor - tensor.median()).abs() < 1]
    return inside.mean().item(), inside.std(correction=0).item(), inside.numel()


def differs(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of random values are from different distributions, by six standard errors."""
    (one_mean, one_std, count), (mean, std, _) = moments(tensor.detach()), moments(other.detach())
    error = 6 * std / count**0.5 + 1e-7
    return bool(abs(one_mean - mean) > 2**0.5 * error or abs(one_std - std) > error)


def test_initial_weights_are_drawn_as_ours() -> None:
    torch.manual_seed(0)
    for step, ours in PAIRS:
        spec = resolve(ROADMAP, ours).ours
        expected = to_timm(spec, dict(build_model(spec).named_parameters()))
        found = build_network(resolve(ROADMAP, step)).named_parameters()
        assert not [name for name, tensor in found if differs(tensor, expected[name])]


def test_training_killed_and_resumed_ends_the_same(run: RunDir, config: RunConfig, tmp_path: Path) -> None:
    """The process dies of SIGKILL after 7 iterations, and again 13 iterations after it went on."""
    more = config.model_copy(update={"system": config.system.model_copy(update={"checkpoint_minutes": 1e-4})})
    other = run_dir_of(tmp_path, more)
    for iterations in (7, 13):
        codes = finish(start(1, train_together, more, tmp_path, (signal.SIGKILL, iterations)))
        assert codes == [-signal.SIGKILL]
        assert not other.result.exists()
    assert finish(start(1, train_together, more, tmp_path)) == [0]
    one, two = result_of(run), result_of(other)
    assert two.attempts == 3
    for key in ("top1", "val_loss", "train_loss", "ema_top1", "iterations", "hash", "params", "macs"):
        assert getattr(one, key) == getattr(two, key), key
    first, second = weights_of(run), weights_of(other)
    for part in ("model", "ema"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])


def test_a_result_records_the_counted_cost(run: RunDir, config: RunConfig) -> None:
    result, cost = result_of(run), cost_of(config)
    assert (result.params, result.macs) == (cost.params, cost.macs)


def test_timm_loads_what_is_exported(
    run: RunDir, config: RunConfig, steps_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tiny.safetensors"
    printed = export(run.path, out)
    call = re.search(r"timm\.create_model\(.*\.safetensors'\)", printed)
    assert call
    network = eval(call[0], {"timm": timm}).eval()
    expected = build_network(config).eval()
    expected.load_state_dict(weights_of(run)["model"])
    images = torch.randn(3, 1, 20, 20)
    with torch.no_grad():
        assert torch.equal(network(images), expected(images))
    with pytest.raises(ConfigError, match="tiny_swin has timm's names"):
        export(run.path, out, names="ours")
    words = ["--profile", "digits", "--steps-file", str(steps_file)]
    words += [word for key, value in BUSY.items() for word in ("--set", f"{key}={value}")]
    runs = ["--runs", str(run.path.parents[3])]
    step = [sys.executable, str(ROOT / "run_step.py"), "tiny_swin", "--eval", "--raw"]
    done = commands.run([*step, *words, *runs])
    assert done.returncode == 0, done.stderr
    assert f"top-1 {result_of(run).top1:.2f} %" in done.stdout
    fits = commands.run([sys.executable, "-m", "roadmap", "weights", "tiny_swin", str(out), *words], cwd=ROOT)
    assert fits.returncode == 0, fits.stdout + fits.stderr


def test_training_starts_from_weights_with_layer_decay(run: RunDir, mine: Roadmap, tmp_path: Path) -> None:
    from roadmap.training.initial_weights import initialize_from, with_init_digest

    out = tmp_path / "tiny.safetensors"
    export(run.path, out)
    values = BUSY | {"system.init_from": str(out), "recipe.layer_decay": 0.5, "recipe.head_init_scale": 0.5}
    config = with_init_digest(resolve(mine, "tiny_swin", profile="digits", overrides=values))
    network = build_network(config)
    initialize_from(network, config)
    there = build_network(config)
    there.load_state_dict(weights_of(run)["model"])
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, there.state_dict()[name])
    other = resolve(mine, "tiny_swin", profile="digits", overrides=values | {"model.num_classes": 7})
    fresh: Any = build_network(other)
    initialize_from(fresh, with_init_digest(other))
    assert fresh.get_classifier().weight.shape == (7, 16)
    assert torch.equal(fresh.patch_embed.proj.weight, there.get_parameter("patch_embed.proj.weight"))
    groups = layer_groups(network, "layer")
    assert groups["patch_embed.proj.weight"] == 0 < groups["layers.0.blocks.0.mlp.fc1.weight"]
    assert groups["layers.0.blocks.0.mlp.fc1.weight"] < groups["layers.1.blocks.0.mlp.fc1.weight"]
    assert groups["layers.1.blocks.0.mlp.fc1.weight"] < groups["head.fc.weight"] == max(groups.values())
    decayed = {
        id(parameter): bool(group["weight_decay"])
        for group in decayed_groups(config.recipe, network)
        for parameter in group["params"]
    }
    table = network.get_parameter("layers.0.blocks.0.attn.relative_position_bias_table")
    assert not decayed[id(table)], "timm's no_weight_decay"
    assert decayed[id(network.get_parameter("head.fc.weight"))]


def test_a_reference_is_benchmarked(steps_file: Path, config: RunConfig, tmp_path: Path) -> None:
    words = ["tiny_swin", "--steps-file", str(steps_file), "--profile", "digits"]
    words += ["--seconds", "0.05", "--out", str(tmp_path), "--batch", "8"]
    words += ["--set", "system.grad_checkpointing=true", "--set", "model.drop_path=0.2"]
    done = commands.run([sys.executable, "-m", "roadmap", "bench", *words], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.csv")
    rows = {row.mode: row for row in read_rows(path)}
    cost, training = costs_of(config)
    assert rows["inference"].gmacs == pytest.approx(cost.macs / 1e9)
    assert rows["train"].gmacs == pytest.approx(training / 1e9)
    assert {row.subject for row in read_rows(path)} == {"ours"}


def test_a_submission_has_references_only_on_request(tmp_path: Path) -> None:
    def plan(*words: str) -> Any:
        command = [sys.executable, str(ROOT / "slurm/submit.py"), "--dry-run", "--cluster", "local"]
        command += ["--profile", "digits_noisy", "--runs", str(tmp_path), "--seeds", "1"]
        return commands.run([*command, *words])

    assert "19 runs" in plan().stdout
    assert "25 runs" in plan("--references").stdout
    assert "2 runs" in plan("--steps", "swin_t", "deit_s").stdout
    refused = plan("--references", "--ablate", "leave-one-out")
    assert refused.returncode == 2
    assert "--references cannot be used with --ablate" in refused.stderr
    refused = plan("--steps", "swin_t", "--set", "model.width=32")
    assert "--set model.width is a key of our networks" in refused.stderr
    assert "20 runs" in plan("--steps", *ROADMAP.steps, "swin_t", "--set", "model.width=32").stdout


def test_a_table_has_the_references_that_have_runs(run: RunDir, config: RunConfig, steps_file: Path) -> None:
    found = read_experiment(run.path.parents[3], steps_file=steps_file, overrides=BUSY).ablation
    assert [row.step for row in found.rows] == [*ROADMAP.steps, "tiny_swin"]
    row = found.row("tiny_swin")
    assert row.is_reference
    assert not row.is_side_branch
    assert (row.parent, row.delta, row.planned) == (None, None, 1)
    assert row.cost == cost_of(config), "the run's own"
    table = ablation_table(found, ["change", "delta"])
    assert table.rows[-1] == ["a reference: timm's swin_tiny_patch4_window7_224", "–"]
    assert any(note.startswith("Reference steps (tiny_swin)") for note in found.notes)
    assert json.loads(to_json(found))["rows"][-1]["reference"] is True
    assert to_frame(found)["reference"].tolist()[-1]


def test_references_change_nothing_about_the_steps(tmp_path: Path) -> None:
    """Not Holm's family, planned runs, or rank correlations."""
    alone = trained(tmp_path / "alone")
    with_them = trained(tmp_path / "with", steps=(*ROADMAP.steps, "swin_t", "resnet50_timm"))
    assert with_them.agreement == alone.agreement
    assert with_them.rows[: len(alone.rows)] == tuple(
        replace(row, runs=other.runs) for row, other in zip(alone.rows, with_them.rows, strict=False)
    )
    assert "reference" not in to_frame(alone)
    bars = roadmap_bars([with_them]).axes[0]
    hatches = [patch.get_hatch() for patch in bars.patches]
    assert hatches.count(MEASURED_REFERENCE["hatch"]) == 2
    figure = accuracy_vs([with_them])
    assert figure is not None
    assert "Diamond: a reference, a model of timm." in figure_text(figure)
    compared = measured_vs_paper([with_them])
    assert compared is not None
    assert "Swin-T" not in figure_text(compared)


def figure_text(figure: Any) -> str:
    from matplotlib.text import Text

    return " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))
