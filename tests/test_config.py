"""Steps files and command lines: what they resolve to, and what is said about bad ones, word for word."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roadmap import STEPS_YAML
from roadmap.config import RunConfig
from roadmap.errors import ConfigError
from roadmap.steps import load_roadmap, load_roadmaps, parse_overrides, resolve

ROADMAPS = load_roadmaps()
ROADMAP = ROADMAPS["convnext_t"]
KERNEL_7 = "set: {model.block.spatial.kernel: 7}"
GELU = "set: {model.block.act.kind: gelu}"
WIDTH = "set: {model.width: 96}"
RATIO = "set: {model.depths: [3, 3, 9, 3]}"
Edit = tuple[str, str]
# without the roadmaps that build on the last step of the first, where a wrong step is an error more than once
TEXT = STEPS_YAML.read_text(encoding="utf-8").partition("\n  beyond:\n")[0] + "\n"


def edited(text: str, edits: list[Edit]) -> str:
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} must stand once in the steps file"
        text = text.replace(old, new)
    return text


def place(text: str, marked: str) -> tuple[int, int]:
    """Line and column of the `^` in `marked`, the rest of which stands in `text` once."""
    assert text.count(marked.replace("^", "")) == 1, f"{marked!r} must stand once in the edited file"
    before = text[: text.index(marked.replace("^", "")) + marked.index("^")]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def expected(text: str, message: str) -> str:
    """`message` with the place for each `@<words ^ words>`,
    and the line alone for each `#<words ^ words>`.
    """
    message = re.sub(r"^(@<.+?>) ", r"\1: ", message, flags=re.DOTALL)
    message = re.sub(
        r"@<(.+?)>", lambda match: "steps.yaml:{}:{}".format(*place(text, match[1])), message, flags=re.DOTALL
    )
    return re.sub(r"#<(.+?)>", lambda match: str(place(text, match[1])[0]), message, flags=re.DOTALL)


def errors(attempt: Callable[[], Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        attempt()
    return str(caught.value).splitlines()


BAD_FILES: dict[str, tuple[list[Edit], list[str]]] = {
    "unknown key": (
        [(KERNEL_7, "set: {model.block.spatial.kernal: 7}")],
        [
            "@<set: {^model.block.spatial.kernal> step 'kernel_7': unknown key 'model.block.spatial.kernal';"
            " did you mean 'model.block.spatial.kernel'?"
        ],
    ),
    "unknown key of a profile": (
        [("      data.noise: 0.0\n", "      data.niose: 0.0\n")],
        ["@<^data.niose> profile 'digits': unknown key 'data.niose'; did you mean 'data.noise'?"],
    ),
    "section": (
        [(KERNEL_7, "set: {model.block.spatial: 7}")],
        [
            "@<set: {^model.block.spatial: 7}> step 'kernel_7': 'model.block.spatial' is a section, not a"
            " value; set model.block.spatial.kind, model.block.spatial.kernel"
        ],
    ),
    "text for a number": (
        [(KERNEL_7, 'set: {model.block.spatial.kernel: "7"}')],
        [
            "@<set: {^model.block.spatial.kernel: \"7\"> step 'kernel_7': model.block.spatial.kernel: "
            "input should be a valid integer, not '7'"
        ],
    ),
    "fraction for an integer": (
        [(WIDTH, "set: {model.width: 96.5}")],
        [
            "@<set: {^model.width: 96.5> step 'increase_width': model.width: input should be a valid integer,"
            " not 96.5"
        ],
    ),
    "even kernel": (
        [(KERNEL_7, "set: {model: {block.spatial.kernel: 8}}")],
        [
            "@<{model: {^block.spatial.kernel: 8> step 'kernel_7': model.block.spatial.kernel: "
            "a kernel must be odd to keep its output centered, not 8"
        ],
    ),
    "duplicate key": (
        [
            (
                KERNEL_7,
                "set:\n          model.block.spatial.kernel: 7\n          model.block.spatial.kernel: 9",
            )
        ],
        [
            "@<^model.block.spatial.kernel: 9\n> duplicate key 'model.block.spatial.kernel', first given in"
            " line #<^kernel: 7\n>"
        ],
    ),
    "the same leaf dotted and nested": (
        [(KERNEL_7, "set: {model.block.spatial.kernel: 7, model: {block: {spatial: {kernel: 9}}}}")],
        [
            "@<spatial: {^kernel: 9}> step 'kernel_7': duplicate key 'model.block.spatial.kernel', "
            "first given at @<set: {^model.block.spatial.kernel: 7>"
        ],
    ),
    "a delta that changes nothing": (
        [(KERNEL_7, "set: {model.block.spatial.kernel: 3}")],
        [
            "@<set: {^model.block.spatial.kernel: 3> step 'kernel_7': 'model.block.spatial.kernel' changes"
            " nothing: it already is 3"
        ],
    ),
    "a leaf that changes nothing": (
        [(RATIO, "set: {model.depths: [3, 3, 9, 3], recipe.betas: [0.9, 0.999]}")],
        ["@<, ^recipe.betas> step 'stage_ratio': 'recipe.betas' changes nothing: it already is [0.9, 0.999]"],
    ),
    "a profile that changes nothing": (
        [("data.noise: 0.0", "data.noise: 0.3")],
        ["@<^data.noise: 0.3> profile 'digits': 'data.noise' changes nothing: it already is 0.3"],
    ),
    "an empty delta": (
        [(f"        {RATIO}\n", "")],
        [
            "@<name: ^stage_ratio\n        title: stage ratio\n> step 'stage_ratio': changes nothing: `set`"
            " is empty"
        ],
    ),
    "unknown parent": (
        [("parent: kernel_7", "parent: kernel_77")],
        ["@<parent: ^kernel_77> step 'gelu': unknown parent 'kernel_77'; did you mean 'kernel_7'?"],
    ),
    "unknown parent of a profile": (
        [("parent: digits_noisy", "parent: digits_nosy")],
        [
            "@<parent: ^digits_nosy> profile 'digits': unknown parent 'digits_nosy'; did you mean"
            " 'digits_noisy'?"
        ],
    ),
    "cycle": (
        [("title: move up depthwise conv", "title: move up depthwise conv\n        parent: gelu")],
        [
            (
                "@<parent: ^gelu> step 'move_up_depthwise': is its own ancestor: move_up_depthwise -> gelu ->"
                " kernel_7 -> move_up_depthwise"
            ),
            (
                "@<parent: ^move_up_depthwise\n        set: {model.block.spatial.kernel: 7}> step 'kernel_7':"
                " is its own ancestor: kernel_7 -> move_up_depthwise -> gelu -> kernel_7"
            ),
            (
                "@<parent: ^kernel_7> step 'gelu': is its own ancestor: gelu -> kernel_7 -> move_up_depthwise"
                " -> gelu"
            ),
        ],
    ),
    "a step is its own parent": (
        [("parent: kernel_7", "parent: gelu")],
        ["@<parent: ^gelu> step 'gelu': is its own ancestor: gelu -> gelu"],
    ),
    "duplicate step": (
        [("- name: multiscale_s", "- name: convnext_s")],
        [
            "@<name: ^convnext_s\n        title: multi> step 'convnext_s' is defined twice, "
            "first in line #<^convnext_s\n        title: ConvNeXt-S\n>"
        ],
    ),
    "a step that the other roadmap shares is renamed": (
        [("- name: kernel_9\n        title", "- name: kernel_13\n        title")],
        [
            "@<- ^name: kernel_9\n        paper> step 'kernel_9': 'title' is missing, and convnext_t has no"
            " step of this name; did you mean 'kernel_7'?"
        ],
    ),
    "unknown kind": (
        [("spatial.kind: depthwise", "spatial.kind: dephtwise")],
        [
            "@<set: {^model.block.spatial.kind: dephtwise> step 'depthwise_conv': model.block.spatial.kind:"
            " unknown spatial kind 'dephtwise', not one of conv, depthwise, multiscale, inception,"
            " decomposed, pooling, identity, window_attention; did you mean 'depthwise'?"
        ],
    ),
    "unknown place": (
        [("act.after: [pw1]", "act.after: [pw3]")],
        [
            "@<set: {^model.block.act.after: [pw3]> step 'fewer_activations': model.block.act.after: "
            "input should be 'pw1', 'spatial', 'pw2' or 'sum', not 'pw3'"
        ],
    ),
    "a rule over several leaves": (
        [("mean: [0.435]", "mean: [0.435, 0.4]")],
        ["@<^mean: [0.435, 0.4]> profile 'digits_noisy': data.mean holds 2 values for model.in_chans = 1"],
    ),
    "several at once": (
        [
            (KERNEL_7, "set: {model.block.spatial.kernal: 7}"),
            (GELU, "set: {model.block.act.knd: gelu}"),
            ("parent: kernel_7", "parent: kernel_77"),
            ("      data.noise: 0.0\n", "      data.niose: 0.0\n"),
            (WIDTH, "set: {}"),
        ],
        [
            "@<^data.niose> profile 'digits': unknown key 'data.niose'; did you mean 'data.noise'?",
            "@<name: ^increase_width\n        title> step 'increase_width': changes nothing: `set` is empty",
            (
                "@<^model.block.spatial.kernal> step 'kernel_7': unknown key 'model.block.spatial.kernal';"
                " did you mean 'model.block.spatial.kernel'?"
            ),
            "@<parent: ^kernel_77> step 'gelu': unknown parent 'kernel_77'; did you mean 'kernel_7'?",
            (
                "@<^model.block.act.knd> step 'gelu': unknown key 'model.block.act.knd';"
                " did you mean 'model.block.act.kind'?"
            ),
        ],
    ),
    "several values at once": (
        [
            (WIDTH, "set: {model.width: 64}"),
            (GELU, "set: {model.block.act.kind: gleu}"),
            (RATIO, "set: {model.depths: [3, 3, 9, 0]}"),
        ],
        [
            (
                "@<^model.depths: [3, 3, 9, 0]> step 'stage_ratio': model.depths: input should be greater"
                " than or equal to 1, not 0"
            ),
            "@<^model.width: 64> step 'increase_width': 'model.width' changes nothing: it already is 64",
            (
                "@<^model.block.act.kind: gleu> step 'gelu': model.block.act.kind: "
                "unknown act kind 'gleu', not one of relu, relu6, gelu, silu, hard_swish; did you mean"
                " 'gelu'?"
            ),
        ],
    ),
    "an unknown key and a wrong value at once": (
        [(KERNEL_7, "set: {model.block.spatial.kernal: 7}"), (WIDTH, 'set: {model.width: "96"}')],
        [
            (
                "@<^model.width: \"96\"> step 'increase_width': model.width: input should be a valid integer,"
                " not '96'"
            ),
            (
                "@<^model.block.spatial.kernal> step 'kernel_7': unknown key 'model.block.spatial.kernal';"
                " did you mean 'model.block.spatial.kernel'?"
            ),
        ],
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_steps_file(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edits, messages = BAD_FILES[case]
    text = edited(TEXT, edits)
    monkeypatch.chdir(tmp_path)
    Path("steps.yaml").write_text(text, encoding="utf-8")
    assert errors(lambda: load_roadmap("steps.yaml")) == [expected(text, message) for message in messages]


BASE_ONLY = (
    "base: {model: 3}\nprofiles: {}\nroadmaps:\n  convnext_t:\n    title: a\n    steps: [{name: a, title:"
    " b}]\n"
)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["steps.yaml is empty"]),
        ("# later\n", ["steps.yaml is empty"]),
        ("3\n", ["steps.yaml:1:1: the file: input should be a valid dictionary, not 3"]),
        (
            "base: {}\nprofiles: {}\nroadmaps: {convnext_t: 4}\n",
            ["steps.yaml:3:12: roadmaps.convnext_t: input should be a valid dictionary, not 4"],
        ),
        (
            "base: 3\nprofiles: {}\nroadmaps: {}\n",
            ["steps.yaml:1:1: base: input should be a valid dictionary, not 3"],
        ),
        (
            "base: {}\nroadmaps: {}\nprofile: {}\n",
            [
                "steps.yaml:1:1: the file: 'profiles' is missing",
                "steps.yaml:3:1: unknown key 'profile'; did you mean 'profiles'?",
            ],
        ),
        (
            BASE_ONLY.replace("{name: a", "{nam: a"),
            [
                "steps.yaml:6:13: roadmaps.convnext_t.steps.0: 'name' is missing",
                "steps.yaml:6:14: unknown key 'roadmaps.convnext_t.steps.0.nam'; did you mean 'name'?",
            ],
        ),
    ],
)
def test_steps_file_of_another_form(
    text: str, messages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("steps.yaml").write_text(text, encoding="utf-8")
    assert errors(lambda: load_roadmap("steps.yaml")) == messages


def test_each_problem_of_a_broken_base_has_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("steps.yaml").write_text(BASE_ONLY, encoding="utf-8")
    assert [
        message
        for message in errors(lambda: load_roadmap("steps.yaml"))
        if not message.startswith("steps.yaml:1:")
    ] == []


def test_a_roadmap_without_steps_is_an_error_at_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = TEXT
    Path("steps.yaml").write_text(text[: text.index("    steps:\n")] + "    steps: []\n", encoding="utf-8")
    (message,) = errors(lambda: load_roadmap("steps.yaml"))
    assert "roadmaps.convnext_t.steps" in message


def command_line(*words: str) -> RunConfig:
    return resolve(ROADMAP, "kernel_7", overrides=parse_overrides(words))


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["recipe.epoch=3"], ["--set: unknown key 'recipe.epoch'; did you mean 'recipe.epochs'?"]),
        (["recipe.epochs"], ["--set recipe.epochs: write it as key=value, such as --set recipe.epochs=10"]),
        (["=3"], ["--set =3: write it as key=value, such as --set recipe.epochs=10"]),
        (["recipe.epochs=1", "recipe.epochs=2"], ["--set recipe.epochs=2: 'recipe.epochs' is set twice"]),
        (
            ["model.stem=patchify"],
            [
                "--set 'model.stem' is a section, not a value; set model.stem.kind, model.stem.stride,"
                " model.stem.norm"
            ],
        ),
        (["recipe.epochs=x"], ["--set recipe.epochs: input should be a valid integer, not 'x'"]),
        (["recipe.epochs="], ["--set recipe.epochs: input should be a valid integer, not null"]),
        (["recipe.epochs=true"], ["--set recipe.epochs: input should be a valid integer, not true"]),
        (["recipe.lr=.nan"], ["--set recipe.lr: input should be a finite number, not .nan"]),
        (
            ["data.val_split=a\udcff"],
            [
                "--set data.val_split character 2 is not UTF-8, or not in this locale; PYTHONUTF8=1 reads"
                " UTF-8 in any"
            ],
        ),
        (["model.depths=[1"], ["--set model.depths:2:1: is not YAML: did not find expected ',' or ']'"]),
        (
            ["recipe.crop_scale=null", "recipe.crop_padding=224"],
            [
                "--set recipe.crop_padding 224 must be less than data.image_size 224, or a crop may show"
                " nothing of the image"
            ],
        ),
        (
            ["data.fresh_noise=true"],
            [
                "--set data: fresh_noise true is for digits, and dataset 'folder' has no such noise; set"
                " data.fresh_noise to false"
            ],
        ),
        (["recipe.warmup_epochs=300"], ["--set recipe: warmup_epochs 300 must be less than epochs 300"]),
        (["model.width=2"], ["--set model: width 2 x 1.0 is 2 channels; at least 4 are needed"]),
        (
            ["recipe.epoch=3", "model.wdth=3"],
            [
                "--set: unknown key 'recipe.epoch'; did you mean 'recipe.epochs'?",
                "--set: unknown key 'model.wdth'; did you mean 'model.width'?",
            ],
        ),
        (
            ["recipe.epochs", "recipe.lr=1", "recipe.lr=2"],
            [
                "--set recipe.epochs: write it as key=value, such as --set recipe.epochs=10",
                "--set recipe.lr=2: 'recipe.lr' is set twice",
            ],
        ),
    ],
)
def test_bad_set_option(words: list[str], messages: list[str]) -> None:
    assert errors(lambda: command_line(*words)) == messages


@pytest.mark.parametrize(
    "word", ["model.width_mult=1e308", pytest.param(f"recipe.epochs={'1' * 5000}", id="5000 digits")]
)
def test_an_absurd_value_is_a_message_not_a_crash(word: str) -> None:
    assert [message[:6] for message in errors(lambda: command_line(word))] == ["--set "]


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: resolve(ROADMAP, "kernel7"), ": unknown step 'kernel7'; did you mean 'kernel_7'?"),
        (
            lambda: resolve(ROADMAP, "kernel_7", profile="digit"),
            ": unknown profile 'digit'; did you mean 'digits'?",
        ),
        (
            lambda: load_roadmap(name="convnext_tt"),
            ": unknown roadmap 'convnext_tt'; did you mean 'convnext_t'?",
        ),
        (
            lambda: resolve(ROADMAP, "kernel_7-gelu"),
            " 'kernel_7-gelu': gelu is not on the way to kernel_7, so it cannot be left out",
        ),
    ],
)
def test_unknown_name(attempt: Callable[[], Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STEPS_YAML.parent)
    assert errors(attempt) == [f"steps.yaml{message}"]


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (-1, "seed: input should be greater than or equal to 0, not -1"),
        (2**32, "seed: input should be less than 4294967296, not 4294967296"),
    ],
)
def test_seed_out_of_range(seed: int, message: str) -> None:
    assert errors(lambda: resolve(ROADMAP, "kernel_7", seed=seed)) == [message]


# arXiv 2201.03545, appendix A, and torchvision's reference for the first row.
ORIGINAL = {
    "epochs": 90,
    "global_batch": 256,
    "local_batch": 32,
    "precision": "fp32",
    "optimizer": "sgd",
    "lr": 0.1,
    "lr_batch": 256,
    "lr_scale": 1.0,
    "layer_decay": 1.0,
    "layer_decay_by": "layer",
    "init_digest": None,
    "init_weights": "raw",
    "head_init_scale": 1.0,
    "momentum": 0.9,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 1e-4,
    "decay_norm_and_bias": True,
    "clip_grad": None,
    "schedule": "step",
    "warmup_epochs": 0.0,
    "min_lr": 0.0,
    "step_epochs": 30.0,
    "gamma": 0.1,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "mixup_prob": 1.0,
    "mixup_switch_prob": 0.5,
    "ema": None,
    "pipeline": "pillow",
    "crop_scale": (0.08, 1.0),
    "crop_padding": None,
    "hflip": 0.5,
    "randaugment": None,
    "random_erasing": 0.0,
    "erase_mode": "pixel",
    "train_interpolation": "bilinear",
    "eval_interpolation": "bilinear",
    "eval_crop_pct": 0.875,
    "eval_crop_mode": "center",
}
ENHANCED = ORIGINAL | {
    "epochs": 300,
    "global_batch": 4096,
    "local_batch": 128,
    "optimizer": "adamw",
    "lr": 4e-3,
    "lr_batch": 4096,
    "min_lr": 1e-6,
    "schedule": "cosine",
    "warmup_epochs": 20.0,
    "weight_decay": 0.05,
    "decay_norm_and_bias": False,
    "randaugment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "random_erasing": 0.25,
    "label_smoothing": 0.1,
    "train_interpolation": "bicubic",
    "eval_interpolation": "bicubic",
}


@pytest.mark.parametrize("step", ROADMAP.steps)
def test_recipe_is_the_papers(step: str) -> None:
    config = resolve(ROADMAP, step)
    first = step == "resnet50"
    assert config.recipe.model_dump() == (ORIGINAL if first else ENHANCED)
    assert config.model.drop_path == (0.0 if first else 0.1)
    assert config.data.image_size == 224


def test_a_delta_that_is_left_out_changes_nothing() -> None:
    gelu, without = resolve(ROADMAP, "gelu"), resolve(ROADMAP, "gelu-kernel_7")
    assert (gelu.ours.block.spatial.kernel, without.ours.block.spatial.kernel) == (7, 3)
    block = gelu.ours.block.model_copy(update={"spatial": without.ours.block.spatial})
    model = gelu.model.model_copy(update={"block": block})
    assert without == gelu.model_copy(update={"step": "gelu-kernel_7", "model": model})


def test_a_step_inherits_from_its_parent_not_from_the_step_before() -> None:
    assert [step.name for step in ROADMAP.lineage("kernel_9")][-2:] == ["move_up_depthwise", "kernel_9"]
    assert "kernel_7" in ROADMAP.trunk
    assert not {"kernel_5", "kernel_9", "kernel_11"} & set(ROADMAP.trunk)


def test_overrides_win_over_the_profile_and_the_profile_over_the_step() -> None:
    overrides = parse_overrides(["recipe.epochs=7", "model.block.spatial.kernel=5"])
    step, profiled, overridden = (
        resolve(ROADMAP, "kernel_7"),
        resolve(ROADMAP, "kernel_7", profile="digits_noisy"),
        resolve(ROADMAP, "kernel_7", profile="digits_noisy", overrides=overrides),
    )
    assert (step.recipe.epochs, step.ours.num_classes, step.ours.block.spatial.kernel) == (300, 1000, 7)
    assert profiled.recipe.epochs < 300
    assert (profiled.ours.num_classes, profiled.ours.block.spatial.kernel) == (10, 7)
    assert (
        overridden.recipe.epochs,
        overridden.model.num_classes,
        overridden.ours.block.spatial.kernel,
    ) == (7, 10, 5)


def test_a_profile_wins_over_its_parent() -> None:
    noisy, clean = (resolve(ROADMAP, "kernel_7", profile=name) for name in ("digits_noisy", "digits"))
    assert noisy.data.noise > 0
    assert clean.data.noise == 0
    assert clean.data.dataset == noisy.data.dataset == "digits"


@pytest.mark.parametrize(
    "word",
    [
        "model.width=64",
        "model.drop_path=0.2",
        "model.block.layer_scale=1e-6",
        "model.block.act.after=[pw1]",
        "recipe.epochs=299",
        "recipe.lr=4.1e-3",
        "recipe.ema=0.9999",
        "recipe.precision=bf16",
        "data.image_size=192",
        "data.noise=0.1",
    ],
)
def test_hash_changes_with_what_can_change_a_result(word: str) -> None:
    assert command_line(word).hash != command_line().hash


def test_hash_ignores_where_a_run_executes() -> None:
    words = {
        "device": "cpu",
        "threads": "3",
        "workers": "1",
        "cache": "device",
        "micro_batch": "4",
        "sync_bn": "true",
        "compile": "true",
        "deterministic": "true",
        "grad_checkpointing": "true",
        "data_dir": "elsewhere",
        "stage_dir": "near",
        "download": "true",
        "corrupt_images": "7",
        "init_from": "weights.pth",
        "trackers": "[wandb]",
        "eval_batch": "8",
        "log_every": "1",
        "checkpoint_minutes": "1.5",
    }
    moved = command_line(*(f"system.{key}={value}" for key, value in words.items()))
    unmoved = set(moved.system.model_dump().items()) & set(command_line().system.model_dump().items())
    assert unmoved == set()
    assert moved.hash == command_line().hash


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"step": "other"}, {"roadmap": "other"}, {"profile": "other"}]
)
def test_hash_ignores_names_and_the_seed(other: dict[str, Any]) -> None:
    config = command_line()
    assert config.model_copy(update=other).hash == config.hash


def test_hash_is_of_the_values_not_of_how_they_came_about() -> None:
    reached = resolve(
        ROADMAP, "move_up_depthwise", overrides=parse_overrides(["model.block.spatial.kernel=7"])
    )
    assert reached.hash == resolve(ROADMAP, "kernel_7").hash
    assert command_line("recipe.lr=1").hash == command_line("recipe.lr=1.0").hash


def test_runs_made_before_a_leaf_was_added_are_still_the_same(tmp_path: Path) -> None:
    first = {  # the profile of the first reports
        "recipe.epochs": 3,
        "recipe.lr_scale": 0.75,
        "recipe.warmup_epochs": 0.5,
        "recipe.step_epochs": 1.0,
        "recipe.clip_grad": None,
        "data.image_size": 32,
        "data.copies": 4,
        "data.fresh_noise": False,
    }
    config = resolve(ROADMAP, "gelu", profile="digits_noisy", overrides=first)
    assert config.hash == "e0e42005"  # as in those reports
    added = (
        ("recipe.pipeline", "pillow", "tensor"),
        ("recipe.init_weights", "raw", "ema"),
        ("recipe.crop_padding", "null", 4),
        ("data.fresh_noise", "false", True),
        ("model.block.gate", "false", True),
        ("model.block.grn", "false", True),
        ("model.block.squeeze_excite", "null", 0.25),
    )
    text = config.to_yaml()
    for key, before, other in added:
        changed = resolve(ROADMAP, "gelu", profile="digits_noisy", overrides=first | {key: other})
        assert changed.hash != config.hash
        line = f"{'  ' * key.count('.')}{key.rpartition('.')[2]}: {before}\n"
        assert text.count(line) == 1
        text = text.replace(line, "")
    written = tmp_path / "config.yaml"
    written.write_text(text, encoding="utf-8")
    assert RunConfig.read(written) == config


def test_hashes_of_all_steps_stay_what_they_were() -> None:
    """A new key must not rename the folders of finished runs; ADDED keeps its default out of the hash."""
    with (Path(__file__).parent / "golden" / "hashes.csv").open(encoding="utf-8", newline="") as file:
        golden = list(csv.DictReader(file))
    assert len(golden) == 52
    for row in golden:
        roadmap = ROADMAPS[row["roadmap"]]
        for profile in ("paper", "digits_noisy"):
            found = resolve(roadmap, row["step"], profile=profile).hash
            assert found == row[profile], f"{row['roadmap']}/{row['step']} in {profile}"


def test_hash_is_eight_hex_digits() -> None:
    assert re.fullmatch("[0-9a-f]{8}", command_line().hash)


@pytest.mark.parametrize("profile", [None, *ROADMAP.profiles])
@pytest.mark.parametrize("step", ROADMAP.steps)
def test_config_survives_its_file(step: str, profile: str | None, tmp_path: Path) -> None:
    config = resolve(ROADMAP, step, profile=profile, seed=3)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    read = RunConfig.read(path)
    assert read == config
    assert read.hash == config.hash


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("width: 96", 'width: "96"'), "config.yaml model.width: input should be a valid integer, not '96'"),
        (("seed: 0\n", ""), "config.yaml seed: 'seed' is missing"),
        (("seed: 0\n", "seed: 0\nseed: 0\n"), "config.yaml:5:1: duplicate key 'seed', first given in line 4"),
    ],
)
def test_bad_config_file(edit: Edit, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(edited(command_line().to_yaml(), [edit]), encoding="utf-8")
    assert errors(lambda: RunConfig.read(Path("config.yaml"))) == [message]


def problems_of(text: str, tmp_path: Path) -> list[str]:
    path = tmp_path / "steps.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_roadmap(path)
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


def test_a_cycle_behind_a_step_that_is_defined_twice_is_found(tmp_path: Path) -> None:
    text = TEXT
    one, other = "set: {model.head_norm: true}", "set: {model.init: default}"
    more = "".join(
        f"      - {{name: {name}, title: {name}, {more}}}\n"
        for name, more in [("a", f"parent: b, {one}"), ("b", f"parent: a, {other}"), ("a", one)]
    )
    text = edited(text, [("\n  convnext_b:\n", f"\n{more}\n  convnext_b:\n")])
    said = problems_of(text, tmp_path)
    assert any("step 'a' is defined twice" in line for line in said)
    assert any("step 'a': is its own ancestor: a -> b -> a" in line for line in said)


def test_a_wrong_value_and_a_wrong_key_are_reported_together(tmp_path: Path) -> None:
    text = edited(
        TEXT,
        [("top1: 80.62", "top1: high"), (KERNEL_7, "set: {model.block.spatial.kernal: 7}")],
    )
    said = problems_of(text, tmp_path)
    assert len(said) == 2
    assert "paper.top1: input should be a valid number, not 'high'" in "".join(said)
    assert "did you mean 'model.block.spatial.kernel'?" in "".join(said)


def test_the_name_for_running_without_a_profile_is_taken(tmp_path: Path) -> None:
    text = edited(TEXT, [("  imagenet:\n", "  paper:\n")])
    assert problems_of(text, tmp_path)[0].endswith(
        "profile 'paper': the name stands for running without a profile; choose another"
    )
    assert resolve(load_roadmap(), "gelu", profile="paper").hash == resolve(load_roadmap(), "gelu").hash


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.blok.act.kind", "model.block.act.kind"),
        ("model.block.spacial.kind", "model.block.spatial.kind"),
        ("kind", "model.stem.kind"),
        ("data.crop_padding", "recipe.crop_padding"),
    ],
)
def test_of_keys_with_the_same_name_the_nearest_is_suggested(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key '{key}'; did you mean '{meant}'\?"):
        resolve(load_roadmap(), "gelu", overrides={key: 1})
