"""Steps files of users: what they take over from the file that they extend,
and what is said about bad ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks import complexity
from roadmap import STEPS_YAML
from roadmap.errors import ConfigError
from roadmap.steps import flat_text, load_roadmap, load_roadmaps, resolve

SHIPPED = load_roadmaps()
STEP = (
    "{name: hard_swish, title: hard swish, parent: separate_downsampling, set: {model.block.act.kind:"
    " hard_swish}}"
)
MORE_STEPS = f"extends: steps.yaml\nroadmaps:\n  convnext_t:\n    steps:\n      - {STEP}\n"


def write(folder: Path, text: str, name: str = "my.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def error_lines(path: Path, name: str = "convnext_t") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_roadmap(path, name)
    return [
        line.replace(str(path), path.name)
        .replace(str(STEPS_YAML), "shipped")
        .replace(" steps.yaml:", " shipped:")
        for line in str(caught.value).splitlines()
    ]


def test_a_step_is_added_to_a_roadmap_of_the_project(tmp_path: Path) -> None:
    mine = load_roadmap(write(tmp_path, MORE_STEPS))
    assert mine.steps == (*SHIPPED["convnext_t"].steps, "hard_swish")
    assert mine.tree["hard_swish"].parent == "separate_downsampling"
    assert resolve(mine, "hard_swish").ours.block.act.kind == "hard_swish"
    for step in SHIPPED["convnext_t"].steps:
        assert resolve(mine, step) == resolve(SHIPPED["convnext_t"], step)


def test_the_first_new_step_follows_the_last_one_there(tmp_path: Path) -> None:
    mine = load_roadmap(write(tmp_path, MORE_STEPS.replace("parent: separate_downsampling, ", "")))
    assert mine.tree["hard_swish"].parent == "multiscale_depthwise"


def test_the_text_of_a_file_reads_the_same_in_another_folder(tmp_path: Path) -> None:
    mine = MORE_STEPS.replace("title: hard swish", "title: '1e-6 für ☃ 😀'").replace(
        "steps.yaml", "../base.yaml"
    )
    write(
        tmp_path,
        "extends: steps.yaml\nprofiles:\n  mine: {title: t, parent: digits, set: {recipe.lr: 1e-6}}\n",
        "base.yaml",
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path / "mine", mine)
    kept = write(tmp_path / "elsewhere", flat_text(path))
    for before, after in zip(load_roadmaps(path).values(), load_roadmaps(kept).values(), strict=True):
        assert (after.name, after.title, after.steps, after.trunk, after.reference, after.source) == (
            before.name, before.title, before.steps, before.trunk, before.reference, before.source,
        )  # fmt: skip
        for step in before.steps:
            assert after.tree[step].title == before.tree[step].title
            assert after.tree[step].paper == before.tree[step].paper
            assert resolve(after, step, profile="mine") == resolve(before, step, profile="mine")


def test_profiles_and_roadmaps_are_added(tmp_path: Path) -> None:
    text = """
extends: steps.yaml
profiles:
  flowers:
    title: flowers in folders
    parent: imagenet
    set: {model.num_classes: 102, recipe: {epochs: 50, warmup_epochs: 5.0}}
roadmaps:
  narrow:
    title: a narrow regime
    like: convnext_t
    steps:
      - {name: root, title: ResNet-26, set: {model.depths: [2, 2, 2, 2]}}
      - {name: stage_ratio, set: {model.depths: [1, 1, 5, 1]}}
      - {name: kernel_7}
      - {name: kernel_9}
      - {name: gelu, title: GELU now}
  after:
    title: from a step
    base: narrow/gelu
    steps:
      - {name: start, title: start}
      - {name: wide, title: wide, set: {model.width: 128}}
"""
    path = write(tmp_path, text)
    mine = load_roadmaps(path)
    assert list(mine) == [*SHIPPED, "narrow", "after"]
    narrow = mine["narrow"]
    assert [(step.name, step.title, step.parent) for step in narrow.tree.values()] == [
        ("root", "ResNet-26", None),
        ("stage_ratio", "stage ratio", "root"),
        ("kernel_7", "kernel size 7", "stage_ratio"),
        ("kernel_9", "kernel size 9", "stage_ratio"),
        ("gelu", "GELU now", "kernel_7"),
    ]
    assert narrow.tree["stage_ratio"].paper is None
    assert resolve(narrow, "stage_ratio").ours.depths == (1, 1, 5, 1)
    assert resolve(narrow, "gelu", profile="flowers").recipe.epochs == 50
    assert resolve(mine["after"], "start").model == resolve(narrow, "gelu").model
    assert (
        complexity(resolve(mine["after"], "wide").model).params
        > complexity(resolve(narrow, "gelu").model).params
    )


def test_branches_of_a_shared_roadmap_stay_branches_behind_a_root_of_its_own(tmp_path: Path) -> None:
    steps = (
        "[{name: own, title: own, set: {model.depths: [2, 2, 2, 2]}}, {name: kernel_5}, {name: kernel_7},"
        " {name: kernel_9}, {name: gelu}]"
    )
    mine = load_roadmap(
        write(
            tmp_path, f"extends: steps.yaml\nroadmaps: {{n: {{title: n, like: convnext_t, steps: {steps}}}}}"
        ),
        "n",
    )
    assert [step.parent for step in mine.tree.values()] == [None, "own", "own", "own", "kernel_7"]


def test_a_file_beside_it_comes_before_the_projects(tmp_path: Path) -> None:
    write(tmp_path, MORE_STEPS, "lab.yaml")
    text = (
        "extends: lab.yaml\nroadmaps: {convnext_t: {steps: [{name: silu, title: silu, set:"
        " {model.block.act.kind: silu}}]}}"
    )
    mine = load_roadmap(write(tmp_path, text))
    assert mine.steps[-2:] == ("hard_swish", "silu")
    assert mine.tree["silu"].parent == "hard_swish"


def test_a_file_of_the_same_name_can_extend_the_projects(tmp_path: Path) -> None:
    assert load_roadmap(write(tmp_path, MORE_STEPS, "steps.yaml")).steps[-1] == "hard_swish"


def adding(step: str, parent: str, file: str) -> str:
    entry = f"{{name: {step}, title: own, parent: {parent}, set: {{model.block.act.kind: {step}}}}}"
    return f"extends: {file}\nroadmaps: {{convnext_t: {{steps: [{entry}]}}}}"


@pytest.mark.parametrize(
    ("parent", "moves"),
    [
        ("multiscale_depthwise", True),
        ("separate_downsampling", True),
        ("layer_norm", False),
        ("kernel_9", False),
        ("resnet50", False),
    ],
)
def test_the_path_ends_in_an_added_step_only_if_that_is_no_earlier(
    parent: str, moves: bool, tmp_path: Path
) -> None:
    write(tmp_path, adding("silu", parent, "steps.yaml"), "lab.yaml")
    lab, whole = load_roadmap(tmp_path / "lab.yaml"), SHIPPED["convnext_t"]
    assert load_roadmap(write(tmp_path, flat_text(tmp_path / "lab.yaml"), "flat.yaml")).trunk == lab.trunk
    assert lab.trunk == ((*whole.trunk[: whole.trunk.index(parent) + 1], "silu") if moves else whole.trunk)
    more = load_roadmap(write(tmp_path, adding("hard_swish", "silu", "lab.yaml")))
    assert more.trunk == (
        (*whole.trunk[: whole.trunk.index(parent) + 1], "silu", "hard_swish")
        if moves or parent == "layer_norm"
        else whole.trunk
    )


def test_the_path_of_a_file_ends_in_its_last_step_whatever_its_branches() -> None:
    family = SHIPPED["family"]
    assert family.trunk[-1] == family.steps[-1]
    assert len(family.lineage("convnext_xl_384")) > len(family.trunk)


def test_a_path_may_end_in_a_step_that_is_named(tmp_path: Path) -> None:
    steps = "[{name: resnet50}, {name: kernel_7}, {name: gelu}]"
    text = (
        f"extends: steps.yaml\nroadmaps: {{n: {{title: n, like: convnext_t, end: kernel_7, steps: {steps}}}}}"
    )
    mine = load_roadmap(write(tmp_path, text), "n")
    assert (mine.trunk, mine.steps) == (("resnet50", "kernel_7"), ("resnet50", "kernel_7", "gelu"))
    with pytest.raises(
        ConfigError,
        match=r"my\.yaml:2:\d+: roadmap 'n': end: unknown step 'kernel_77'; did you mean 'kernel_7'\?",
    ):
        load_roadmap(write(tmp_path, text.replace("end: kernel_7", "end: kernel_77")), "n")


def test_a_shared_change_is_placed_where_it_is_written() -> None:
    setting = SHIPPED["convnext_b"].tree["gelu"].settings["model.block.act.kind"]
    assert setting == SHIPPED["convnext_t"].tree["gelu"].settings["model.block.act.kind"]
    own = SHIPPED["convnext_b"].tree["increase_width"].settings["model.width"]
    assert (own.value, SHIPPED["convnext_t"].tree["increase_width"].settings["model.width"].value) == (
        128,
        96,
    )


def test_the_regimes_share_every_change_but_their_own_depths_and_widths() -> None:
    small, large = SHIPPED["convnext_t"], SHIPPED["convnext_b"]
    own = {"no_downsampling_norms", "multiscale_depthwise"}
    assert large.steps == ("resnet200", *(step for step in small.steps[1:] if step not in own))
    for step in large.steps[1:]:
        one, other = (
            resolve(roadmap, step).model_dump(include={"model", "recipe", "data"})
            for roadmap in (small, large)
        )
        del one["model"]["depths"], other["model"]["depths"], one["model"]["width"], other["model"]["width"]
        assert one == other


BAD = {
    "unknown key": (
        MORE_STEPS.replace("act.kind", "act.knd"),
        [
            "my.yaml:5:84: step 'hard_swish': unknown key 'model.block.act.knd';"
            " did you mean 'model.block.act.kind'?"
        ],
    ),
    "no percentage": (
        MORE_STEPS.replace("title: hard swish", "title: hard swish, paper: {top1: 810, n: 3}"),
        [
            "my.yaml:5:55: roadmaps.convnext_t.steps.hard_swish.paper.top1: input should be less than or"
            " equal to 100, not 810"
        ],
    ),
    "unknown kind": (
        MORE_STEPS.replace("kind: hard_swish", "kind: hard_swich"),
        [
            "my.yaml:5:84: step 'hard_swish': model.block.act.kind: unknown act kind 'hard_swich', "
            "not one of relu, relu6, gelu, silu, hard_swish; did you mean 'hard_swish'?"
        ],
    ),
    "unknown parent": (
        MORE_STEPS.replace("parent: sep", "parent: seb"),
        [
            "my.yaml:5:55: step 'hard_swish': unknown parent 'sebarate_downsampling'; did you mean"
            " 'separate_downsampling'?"
        ],
    ),
    "changes nothing": (
        MORE_STEPS.replace("kind: hard_swish", "kind: gelu"),
        ["my.yaml:5:84: step 'hard_swish': 'model.block.act.kind' changes nothing: it already is gelu"],
    ),
    "an empty section": (
        MORE_STEPS.replace("{model.block.act.kind: hard_swish}", "{model.block: {}}"),
        ["my.yaml:5:16: step 'hard_swish': changes nothing: `set` is empty"],
    ),
    "an empty profile": (
        f"{MORE_STEPS}profiles: {{mine: {{title: mine, set: {{}}}}}}",
        ["my.yaml:6:12: profile 'mine': changes nothing: `set` is empty"],
    ),
    "a step that is there": (
        MORE_STEPS.replace("name: hard_swish", "name: gelu"),
        ["my.yaml:5:16: step 'gelu' is defined twice, first at shipped:@"],
    ),
    "a base": (
        f"base: {{model.width: 32}}\n{MORE_STEPS}",
        [
            "my.yaml:1:1: base: belongs to the file that is extended; put other values into a profile or a"
            " step"
        ],
    ),
    "a title of what is there": (
        MORE_STEPS.replace("    steps:", "    title: mine\n    steps:"),
        [
            "my.yaml:4:5: roadmap 'convnext_t': is defined at shipped:@ already; only its `steps` can be"
            " added to"
        ],
    ),
    "a profile that is there": (
        f"{MORE_STEPS}profiles: {{digits: {{title: mine, set: {{data.noise: 0.1}}}}}}",
        ["my.yaml:6:12: profile 'digits': is defined at shipped:@ already; choose another name"],
    ),
    "no such file": (
        MORE_STEPS.replace("steps.yaml", "stebs.yaml"),
        ["my.yaml:1:10: extends: there is no 'stebs.yaml' in @, nor in the project"],
    ),
    "no name": (
        MORE_STEPS.replace("steps.yaml", "[steps.yaml]"),
        ["my.yaml:1:10: extends: name the steps file that this one adds to@"],
    ),
    "unknown key of the file": (
        MORE_STEPS.replace("roadmaps:", "roadmap:"),
        ["my.yaml:2:1: unknown key 'roadmap'; did you mean 'roadmaps'?"],
    ),
    "a misspelled roadmap": (
        MORE_STEPS.replace("convnext_t:", "convnext_x:"),
        [
            "my.yaml:3:3: roadmap 'convnext_x': is not in the extended file, and a new one needs a title; did"
            " you mean 'convnext_t'?"
        ],
    ),
    "unknown roadmap to share": (
        "extends: steps.yaml\nroadmaps: {new: {title: new, like: convnext_x, steps: [{name: gelu}]}}",
        ["my.yaml:2:36: roadmap 'new': like: 'convnext_x' is unknown; did you mean 'convnext_t'?"],
    ),
    "unknown step to start from": (
        (
            "extends: steps.yaml\nroadmaps: {new: {title: new, base: convnext_t/gleu, steps: [{name: a,"
            " title: a}]}}"
        ),
        ["my.yaml:2:36: roadmap 'new': base: convnext_t has no step 'gleu'; did you mean 'gelu'?"],
    ),
    "a roadmap that starts from itself": (
        "extends: steps.yaml\nroadmaps: {new: {title: new, base: new/a, steps: [{name: a, title: a}]}}",
        ["my.yaml:2:36: roadmap 'new': base: 'new' is not above it"],
    ),
    "a place that is none": (
        "extends: steps.yaml\nroadmaps: {new: {title: new, base: gelu, steps: [{name: a, title: a}]}}",
        ["my.yaml:2:30: roadmaps.new.base: string should match pattern@"],
    ),
    "a shared step that is not there": (
        (
            "extends: steps.yaml\nroadmaps: {new: {title: new, like: convnext_t, steps: [{name: resnet50},"
            " {name: gleu}]}}"
        ),
        [
            "my.yaml:2:74: step 'gleu': 'title' is missing, and convnext_t has no step of this name; did you"
            " mean 'gelu'?"
        ],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_reported_in_one_line_with_its_position(case: str, tmp_path: Path) -> None:
    text, messages = BAD[case]
    lines = error_lines(write(tmp_path, text))
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        parts = message.split("@")
        assert line.startswith(parts[0]), line
        assert line.endswith(parts[-1]), line


def test_files_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "extends: my.yaml\n", "other.yaml")
    path = write(tmp_path, "extends: other.yaml\n")
    (line,) = error_lines(path)
    assert line.endswith("other.yaml:1:10: extends: 'my.yaml' comes back to this file")


@pytest.mark.parametrize(
    "text",
    [
        "extends: steps.yaml\nroadmaps: 3",
        "extends: steps.yaml\nprofiles: []",
        "extends: steps.yaml\nroadmaps: {convnext_t: 3}",
    ],
)
def test_a_file_of_another_form_is_reported_with_its_position(text: str, tmp_path: Path) -> None:
    assert all(line.startswith("my.yaml:2:") for line in error_lines(write(tmp_path, text)))
