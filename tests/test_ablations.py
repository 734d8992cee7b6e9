"""Readings of the roadmap other than the path: which combinations they hold, what their ids mean, and what is
refused.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from roadmap import ROOT
from roadmap.ablations import ablate
from roadmap.cli.arguments import select
from roadmap.deltas import Roadmap, change_of, changes, trace
from roadmap.errors import ConfigError
from roadmap.records import run_dir_of
from roadmap.steps import load_roadmap, load_roadmaps, resolve
from slurm.cluster import Cluster
from slurm.submission import plan, with_seeds
from slurm.submit import parser
from tests.helpers import commands

ROADMAPS = load_roadmaps()
ROADMAP = ROADMAPS["convnext_t"]
CHANGES = ROADMAP.trunk[1:]
EVERY = ["leave-one-out", "one-at-a-time", "order:0", "order:12"]


def values_by_key(roadmap: Roadmap, step: str) -> dict[str, object]:
    return {path: setting.value for path, setting in trace(roadmap, step).items()}


def test_leave_one_out_is_the_last_step_without_each_change() -> None:
    ablated = load_roadmap(ablation="leave-one-out")
    last = ROADMAP.steps[-1]
    stand_in = {f"{last}-{last}": "separate_downsampling"}  # what the last step is without its own change
    names = [f"{last}-{change}" for change in CHANGES if change != "depthwise_conv"]
    assert ablated.steps == (last, *(stand_in.get(name, name) for name in names))
    for step in ablated.steps[1:]:
        assert ablated.tree[step].parent == last
        assert changes(trace(ablated, last), trace(ablated, step))
    assert len(ablated.notes) == 1
    assert ablated.notes[0].startswith(f"{last}-depthwise_conv is the same network and recipe as {last}")


def test_leaving_out_a_change_gives_its_leaves_back_to_those_before_it() -> None:
    ablated = load_roadmap(ablation="leave-one-out:separate_downsampling")
    assert ablated.notes == ()
    for change in CHANGES[:-1]:
        step = f"separate_downsampling-{change}" if change != "separate_downsampling" else "layer_norm"
        assert values_by_key(ablated, step) == values_by_key(ROADMAP, step)
        without = [
            delta.settings for delta in ROADMAP.lineage("separate_downsampling") if delta.name != change
        ]
        expected = {path: setting.value for path, setting in ROADMAP.base.items()}
        for settings in without:
            expected |= {path: setting.value for path, setting in settings.items()}
        assert values_by_key(ablated, step) == expected
    assert values_by_key(ablated, "separate_downsampling-layer_norm")["model.block.norm.kind"] == "bn"
    assert values_by_key(ablated, "separate_downsampling-patchify_stem")["model.stem.norm"] is True


def test_one_at_a_time_is_the_first_step_with_each_change() -> None:
    ablated = load_roadmap(ablation="one-at-a-time")
    assert ablated.steps == ("resnet50", "enhanced_recipe", *(f"resnet50+{change}" for change in CHANGES[1:]))
    for step, change in zip(ablated.steps[1:], CHANGES, strict=True):
        assert ablated.tree[step].parent == "resnet50"
        root = values_by_key(ROADMAP, "resnet50")
        expected = {
            path: setting.value
            for path, setting in ROADMAP.tree[change].settings.items()
            if setting.value != root[path]
        }
        assert {
            path: new for path, (_, new) in changes(trace(ablated, "resnet50"), trace(ablated, step)).items()
        } == expected


def test_an_order_adds_every_change_once_and_is_the_same_each_time() -> None:
    ablated, again = (load_roadmap(ablation="order:3") for _ in range(2))
    assert ablated.steps == again.steps
    assert ablated.steps != load_roadmap(ablation="order:4").steps
    assert sorted(step.title for step in ablated.tree.values()) == sorted(
        ROADMAP.tree[step].title for step in ROADMAP.trunk
    )
    for parent, step in zip(ablated.steps, ablated.steps[1:], strict=False):
        assert ablated.tree[step].parent == parent


def test_a_new_step_does_not_change_the_order_of_the_others(tmp_path: Path) -> None:
    mine = tmp_path / "my.yaml"
    new = "{name: silu, title: silu, set: {model.block.act.kind: silu}}"
    mine.write_text(f"extends: steps.yaml\nroadmaps: {{convnext_t: {{steps: [{new}]}}}}", encoding="utf-8")
    before, after = (
        [delta.name for delta in roadmap.shuffled(5)] for roadmap in (ROADMAP, load_roadmap(mine))
    )
    assert [name for name in after if name != "silu"] == before
    assert "silu" in after


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("name", ["convnext_t", "convnext_b"])
def test_every_combination_resolves_in_every_profile_with_or_without_the_option(name: str, how: str) -> None:
    whole = ROADMAPS[name]
    ablated = ablate(whole, how)
    for profile in (None, *whole.profiles):
        for step in ablated.steps:
            inside, outside = resolve(ablated, step, profile=profile), resolve(whole, step, profile=profile)
            assert inside == outside
            assert inside.step == step


@pytest.mark.parametrize("profile", [None, "digits_noisy"])
@pytest.mark.parametrize("how", [*EVERY, "order:2", "order:6"])
def test_a_combination_that_is_a_step_keeps_its_id_and_published_values(
    how: str, profile: str | None
) -> None:
    ablated = load_roadmap(ablation=how, profile=profile)
    hashes = [resolve(ablated, step, profile=profile).hash for step in ablated.steps]
    assert len(set(hashes)) == len(hashes)
    known = {resolve(ROADMAP, step, profile=profile).hash: step for step in reversed(ROADMAP.steps)}
    for step in ablated.steps:
        there = known.get(resolve(ablated, step, profile=profile).hash, step)
        assert there == step
        assert ablated.tree[step].paper == (ROADMAP.tree[step].paper if step in ROADMAP.tree else None)


REFUSED = {
    "gelu-resnet50": "resnet50 is a root, not a change that could be added or left out",
    "gelu+resnet50": "resnet50 is a root, not a change that could be added or left out",
    "gelu-layer_norm": "layer_norm is not on the way to gelu, so it cannot be left out",
    "layer_norm+gelu": "gelu is in it already",
    "resnet50+gelu+gelu": "gelu is in it already",
    "resnet50+gelu-gelu-gelu": "gelu is not on the way to resnet50, so it cannot be left out",
    "gleu+layer_norm": "unknown step 'gleu'; did you mean 'gelu'?",
    "resnet50+gleu": "unknown step 'gleu'; did you mean 'gelu'?",
    "gelu@order": "'order' is not an order; write gelu@order7",
    "gelu@order07": "'order07' is not an order; write gelu@order7",
    "gelu@order1234567890": "'order1234567890' is not an order; write gelu@order7",
    "kernel_9@order3": "kernel_9 is not a change on the path; did you mean 'kernel_7'?",
    "resnet50@order3": "resnet50 is not a change on the path; there are ",
}


@pytest.mark.parametrize("combination", REFUSED)
def test_a_combination_without_meaning_is_refused_with_the_reason(combination: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(REFUSED[combination])):
        resolve(ROADMAP, combination)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("leave-two-out", "--ablate: unknown ablation 'leave-two-out'; there are leave-one-out"),
        ("leave-one-out:", "--ablate: unknown ablation 'leave-one-out:'"),
        ("leave-one-out:gleu", "--ablate: unknown step 'gleu'; did you mean 'gelu'?"),
        ("order", "--ablate: unknown ablation 'order'"),
        ("order:x", "--ablate: unknown ablation 'order:x'"),
        ("order:-1", "--ablate: unknown ablation 'order:-1'"),
    ],
)
def test_an_unknown_ablation_is_refused(how: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_roadmap(ablation=how)


def test_a_combination_that_a_spec_refuses_is_named_and_left_out(tmp_path: Path) -> None:
    mine = tmp_path / "my.yaml"
    bare = "{name: bare, title: no norms, parent: separate_downsampling, set: {model.downsample_norm: false}}"
    mine.write_text(f"extends: steps.yaml\nroadmaps: {{convnext_t: {{steps: [{bare}]}}}}", encoding="utf-8")
    ablated = load_roadmap(mine, ablation="one-at-a-time")
    assert "resnet50+bare" not in ablated.tree
    assert ablated.steps[-1] == "resnet50+separate_downsampling"
    (note,) = ablated.notes
    assert note.startswith("resnet50+bare is not possible: ")
    assert "downsample_norm false needs downsample separate" in note
    with pytest.raises(ConfigError, match="downsample_norm false needs downsample separate"):
        resolve(load_roadmap(mine), "resnet50+bare")


def test_an_ablation_resolves_every_id_of_the_roadmap() -> None:
    ablated = load_roadmap(ablation="leave-one-out")
    for step in ("gelu", "resnet50+gelu", "separate_downsampling-gelu", "gelu@order7"):
        assert resolve(ablated, step) == resolve(ROADMAP, step)
    with pytest.raises(ConfigError, match="separate_downsampling is in it already"):
        resolve(ablated, "multiscale_depthwise+separate_downsampling")


def test_a_combination_that_an_override_makes_impossible_is_named_and_left_out() -> None:
    overrides = {"model.downsample_norm": False}
    ablated = load_roadmap(ablation="leave-one-out:separate_downsampling", overrides=overrides)
    assert "layer_norm" not in ablated.tree
    assert "separate_downsampling-gelu" in ablated.tree
    assert ablated.notes[0].startswith("separate_downsampling-separate_downsampling is not possible: ")


def test_an_id_longer_than_a_folders_name_is_refused() -> None:
    config = resolve(ROADMAP, "resnet50" + "+gelu-gelu" * 30)
    with pytest.raises(ConfigError, match="is longer than a folder's name can be, 250 letters"):
        run_dir_of(Path("runs"), config)


def test_the_family_has_ablations_too() -> None:
    ablated = ablate(ROADMAPS["family"], "leave-one-out:convnext_l")
    assert ablated.steps == ("convnext_l", "convnext_l-convnext_s", "convnext_l-convnext_b", "convnext_b")


def test_a_roadmap_of_one_step_has_an_ablation_of_one_step(tmp_path: Path) -> None:
    mine = tmp_path / "my.yaml"
    mine.write_text(
        "extends: steps.yaml\nroadmaps: {one: {title: one, base: convnext_t/gelu, steps: [{name: only, title:"
        " only}]}}",
        encoding="utf-8",
    )
    for how in EVERY:
        assert load_roadmap(mine, "one", ablation=how).steps == ("only",)


def test_the_command_lines_take_the_option(tmp_path: Path) -> None:
    """Every command line that takes a roadmap takes an ablation; real processes, nothing is trained."""
    runs = ["--runs", str(tmp_path / "runs")]
    for words, said in [
        (["-m", "roadmap", "steps", "--ablate", "order:3"], "gelu@order3"),
        (["-m", "roadmap", "explain", "resnet50+gelu"], "step 'gelu'"),
        (
            [
                "run_step.py",
                "multiscale_depthwise-gelu",
                "--ablate",
                "leave-one-out",
                "--profile",
                "digits",
                "--plan",
                *runs,
            ],
            "relu",
        ),
        (
            ["run_step.py", "resnet50+gelu-gelu+layer_norm", "--profile", "digits", "--plan", *runs],
            "ln relu conv3 ln relu",
        ),
    ]:
        done = commands.run([sys.executable, *words], cwd=ROOT, check=True)
        assert said in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_submission_plans_the_combinations_and_shares_the_paths_runs(tmp_path: Path) -> None:
    def planned(*words: str) -> set[str]:
        options = ["--runs", str(tmp_path / "runs"), "--profile", "digits", "--seeds", "2", *words]
        arguments = parser().parse_args(options)
        steps = plan(select(arguments), arguments, Cluster(scheduler="local"))
        configs = with_seeds(steps, dict.fromkeys((config.step for config in steps), arguments.seeds))
        return {run_dir_of(tmp_path, config).name for config in configs}

    path, ablation = planned(), planned("--ablate", "leave-one-out")
    assert len(path) == 2 * 19
    assert len(ablation) == 2 * 14
    assert {name.split("/")[2] for name in path & ablation} == {
        "multiscale_depthwise",
        "separate_downsampling",
    }
    assert {name.split("/")[:2] == ["convnext_t", "digits"] for name in ablation} == {True}
    design = load_roadmap(ablation="leave-one-out")
    assert change_of(design, design.steps[0]) == "all changes"
    assert planned("--steps", "resnet50+gelu") == planned(
        "--steps", "resnet50+gelu", "--ablate", "one-at-a-time"
    )
