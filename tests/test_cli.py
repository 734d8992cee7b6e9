"""The command lines: what they print, and that bad input is one clear line a problem, exit code 2, and
nothing left behind.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from roadmap import ROOT, STEPS_YAML
from roadmap.steps import load_roadmap, resolve
from tests.helpers import commands

COMMANDS = {
    "roadmap": ["-m", "roadmap"],
    "run_step": [str(ROOT / "run_step.py")],
    "collect": [str(ROOT / "collect.py")],
    "submit": [str(ROOT / "slurm" / "submit.py")],
    "status": [str(ROOT / "slurm" / "status.py")],
    "cancel": [str(ROOT / "slurm" / "cancel.py")],
    "logs": [str(ROOT / "slurm" / "logs.py")],
}
BASE = tuple(load_roadmap().base)
VERIFIED = (
    "15 of 17 published rows match to the printed digit, 18 of 18 have the parameters and GMACs counted"
    " elsewhere, 2 flagged, 0 wrong"
)
WHERE = r"[^:]+\.yaml:\d+:\d+: "


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


class Call(Protocol):
    """Runs a command line in this process, in an empty folder."""

    def __call__(self, command: str, *words: str | Path) -> Outcome: ...


def process(command: str, *words: str | Path, cwd: Path) -> Outcome:
    """The same in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, *COMMANDS[command], *map(str, words)]
    done = commands.run(line, cwd=cwd, env=environment)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)

    def run(command: str, *words: str | Path) -> Outcome:
        script = COMMANDS[command][-1]
        start = runpy.run_module if command == "roadmap" else runpy.run_path
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        with pytest.raises(SystemExit) as done:
            start(script, run_name="__main__")
        return Outcome(int(done.value.code or 0), *capsys.readouterr())

    return run


def rows(out: str) -> dict[str, list[str]]:
    """A printed table by the first cell of its lines; cells lie two blanks or more apart."""
    lines = [re.split(r" {2,}", line.strip()) for line in out.splitlines() if line.strip()]
    return {line[0].removeprefix("└ "): line[1:] for line in lines}


class Edit(Protocol):
    """Writes a copy of the steps file with `old`, which it holds once, replaced; returns its path."""

    def __call__(self, old: str, new: str) -> Path: ...


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Edit:
    folder = tmp_path_factory.mktemp("steps")

    def edit(old: str, new: str) -> Path:
        text = STEPS_YAML.read_text(encoding="utf-8")
        assert text.count(old) == 1
        target = folder / "edited.yaml"
        target.write_text(text.replace(old, new), encoding="utf-8")
        return target

    return edit


# What goes right


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("roadmap", [], ["steps", "verify", "explain", "diff"]),
        ("roadmap", ["steps"], ["--steps-file", "--roadmap"]),
        ("roadmap", ["verify"], ["--steps-file", "--roadmap", "--ablate", "--all"]),
        ("roadmap", ["schema"], ["--markdown", "--out"]),
        ("status", [], ["RUNS", "--watch", "--json", "--roadmap", "--profile"]),
        ("cancel", [], ["RUNS", "--all", "--steps", "--seed", "--not-in-plan", "--dry-run"]),
        ("logs", [], ["STEP", "SEED", "--runs", "--follow", "--all", "--out"]),
        ("roadmap", ["weights"], ["STEP", "FILE", "--profile", "--set"]),
        ("roadmap", ["export"], ["RUN", "FILE", "--ema", "--names"]),
        ("roadmap", ["explain"], ["STEP", "--keys", "--profile", "--set"]),
        ("roadmap", ["diff"], ["A", "B", "--profile", "--set"]),
        ("run_step", [], ["STEP", "--ablate", "--profile", "--set", "--seed", "--runs", "--plan", "--eval"]),
        ("collect", [], ["RUNS", "--paper", "--out", "--ablate", "--profile", "--set"]),
        (
            "submit",
            [],
            [
                "--steps",
                "--ablate",
                "--seeds",
                "--only",
                "--runs",
                "--cluster",
                "--cluster-file",
                "--workers",
                "--pack",
                "--out",
                "--dry-run",
                "--set",
            ],
        ),
        ("status", [], ["RUNS"]),
    ],
)
def test_help_names_every_option(command: str, words: list[str], said: list[str], call: Call) -> None:
    done = call(command, *words, "--help")
    assert (done.code, done.err) == (0, "")
    assert [word for word in said if not re.search(rf"(?<![\w-]){word}\b", done.out)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_from_a_real_process_in_any_folder(command: str, tmp_path: Path) -> None:
    done = process(command, "--help", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("usage: ")
    assert list(tmp_path.iterdir()) == []


def test_verify_counts_the_rows_that_match(tmp_path: Path) -> None:
    done = process("roadmap", "verify", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == VERIFIED
    assert rows(done.out)["kernel_7"] == ["25.863", "4.1456", "4.15", "match"]
    assert rows(done.out)["layer_norm"][:3] == ["25.836", "4.1456", "4.46"]
    assert rows(done.out)["layer_norm"][3].startswith("flagged: ")
    assert list(tmp_path.iterdir()) == []


def test_verify_takes_all_roadmaps(call: Call, edited: Edit) -> None:
    done = call("roadmap", "verify", "--all")
    assert (done.code, done.err) == (0, "")
    assert [line for line in done.out.splitlines() if " flagged, " in line] == [
        VERIFIED,
        (
            "17 of 17 published rows match to the printed digit, 17 of 17 have the parameters and GMACs"
            " counted elsewhere, 0 flagged, 0 wrong"
        ),
        "11 of 11 have the parameters and GMACs counted elsewhere, 0 flagged, 0 wrong",
        "14 of 14 have the parameters and GMACs counted elsewhere, 0 flagged, 0 wrong",
        "9 of 9 have the parameters and GMACs counted elsewhere, 0 flagged, 0 wrong",
    ]
    assert rows(done.out)["convnext_s_384"] == ["50.224", "25.5180", "–", "nothing to compare with"]
    wrong = call("roadmap", "verify", "--all", "--steps-file", edited("gmacs: 16.896}", "gmacs: 16.897}"))
    assert wrong.code == 1
    assert rows(wrong.out)["isotropic_b"][-1] == "DOES NOT MATCH what was counted: 87.084 M, 16.897 GMACs"
    verdict = "10 of 11 have the parameters and GMACs counted elsewhere, 0 flagged, 1 wrong"
    assert verdict in wrong.out.splitlines()


def test_verify_fails_where_a_value_is_wrong(call: Call, edited: Edit) -> None:
    done = call("roadmap", "verify", "--steps-file", edited("gmacs: 5.27}", "gmacs: 5.37}"))
    assert done.code == 1
    assert rows(done.out)["increase_width"][-1] == "DOES NOT MATCH what is printed"
    assert done.out.splitlines()[-1] == VERIFIED.replace("15 of 17", "14 of 17").replace("0 wrong", "1 wrong")


def test_steps_lists_every_step_with_its_change_and_its_block(call: Call) -> None:
    done = call("roadmap", "steps")
    table = rows(done.out)
    assert (done.code, done.err) == (0, "")
    assert [line for line in done.out.splitlines() if line != line.rstrip()] == []
    assert [name for name in table if name in load_roadmap().tree] == list(load_roadmap().steps)
    assert table["kernel_7"] == ["spatial.kernel 3 → 7", "dw7 bn relu pw(4w) bn relu pw(1w) bn + relu"]
    assert re.findall(r"└ (\w+)", done.out) == ["kernel_5", "kernel_9", "kernel_11", "no_downsampling_norms"]


def test_a_side_branch_that_is_not_below_its_parent_names_it(call: Call) -> None:
    table = rows(call("roadmap", "steps").out)
    assert table["kernel_5"][0] == "spatial.kernel 3 → 5"
    assert table["kernel_9"][0] == "from move_up_depthwise: spatial.kernel 3 → 9"
    assert table["no_downsampling_norms"][0].startswith("downsample_norm true → false")
    table = rows(call("roadmap", "steps", "--roadmap", "beyond").out)
    assert table["grn"][0].startswith("grn false → true")  # the path's second step
    branches = [name for name in load_roadmap(name="beyond").steps if name not in ("convnext_t", "grn")]
    assert all(table[name][0].startswith("from convnext_t: ") for name in branches)


@pytest.mark.parametrize(
    ("prefix", "first", "last", "number"),
    [
        ([], "model.in_chans", "system.checkpoint_minutes", len(BASE)),
        (
            ["recipe"],
            "recipe.epochs",
            "recipe.eval_crop_mode",
            sum(key.startswith("recipe.") for key in BASE),
        ),
        (["model.block.act"], "model.block.act.kind", "model.block.act.after", 2),
        (["recipe.lr"], "recipe.lr", "recipe.lr", 1),
    ],
)
def test_explain_describes_the_keys_of_a_section(
    prefix: list[str], first: str, last: str, number: int, call: Call
) -> None:
    done = call("roadmap", "explain", "--keys", *prefix)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    keys = [line.partition(":")[0] for line in lines if not line.startswith(" ")]
    assert (keys[0], keys[-1], len(keys)) == (first, last, number)
    assert all(lines[lines.index(line) + 1].startswith("    ") for line in lines if not line.startswith(" "))


def test_explain_prints_what_a_key_means_and_accepts(call: Call) -> None:
    said = call("roadmap", "explain", "--keys", "recipe.layer_decay").out
    assert said.startswith(
        "recipe.layer_decay: 1.0 (number in (0, 1])\n    Layer-wise decay of the learning rate:"
    )


def line_of(text: str) -> int:
    """The line of the steps file that begins with this text, blanks apart."""
    lines = enumerate(STEPS_YAML.read_text(encoding="utf-8").splitlines(), 1)
    (number,) = [number for number, line in lines if line.strip().startswith(text)]
    return number


def test_explain_names_who_set_each_value_and_where(call: Call) -> None:
    done = call(
        "roadmap",
        "explain",
        "kernel_7",
        "--profile",
        "digits",
        "--set",
        "recipe.epochs=9",
        "--set",
        "recipe.clip_grad=0.5",
    )
    table = rows(done.out)
    assert (done.code, done.err) == (0, "")
    assert {
        "model.block.norm.kind": ["bn", "base"],
        "model.width": ["96", "step 'increase_width'"],
        "model.block.spatial.kernel": ["7", "step 'kernel_7'"],
        "data.copies": ["7", "profile 'digits_noisy'"],
        "data.noise": ["0.0", "profile 'digits'"],
        "recipe.epochs": ["9", "--set"],
        "recipe.clip_grad": ["0.5", "--set"],
    }.items() <= {key: cells[:2] for key, cells in table.items()}.items()
    for key, text in (
        ("model.width", "set: {model.width: 96}"),
        ("data.copies", "copies: 7"),
        ("data.noise", "data.noise: 0.0"),
    ):
        assert table[key][2].split(":")[-2] == str(line_of(text))
    assert set(table) >= set(load_roadmap().base)
    config = resolve(
        load_roadmap(), "kernel_7", profile="digits", overrides={"recipe.epochs": 9, "recipe.clip_grad": 0.5}
    )
    assert config.hash in done.out


def test_a_plan_names_data_that_is_not_there(call: Call) -> None:
    words = ("gelu", "--profile", "imagenet", "--plan", "--set")
    done = call("run_step", *words, "system.data_dir=/nowhere")
    assert done.code == 0
    assert re.search(
        r"^data +/nowhere does not exist; .*: training will not start here$", done.out, re.MULTILINE
    )
    assert not re.search(r"^data ", call("run_step", *words, "system.data_dir=null").out, re.MULTILINE)


def test_diff_shows_only_the_values_that_differ(call: Call) -> None:
    done = call("roadmap", "diff", "kernel_5", "kernel_11")
    assert (done.code, done.err) == (0, "")
    assert [cells for key, cells in rows(done.out).items() if "." in key] == [
        ["5", "11", "step 'kernel_5'", "step 'kernel_11'"]
    ]
    assert done.out.startswith("1 value")
    reference = call("roadmap", "diff", "gelu", "swin_t").out
    assert reference.startswith(
        "swin_t is a reference (timm: swin_tiny_patch4_window7_224), which has no keys of"
    )
    assert (
        "compared are model.in_chans, model.num_classes, model.drop_path, recipe, data, and sys" in reference
    )
    assert "1 value differs" in reference
    assert "–" not in reference
    assert "is a reference" not in call("roadmap", "diff", "swin_t", "resnet50_timm").out
    assert call("roadmap", "diff", "gelu", "gelu").out == "'gelu' and 'gelu' have the same values\n"


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (
            "kernel_7",
            [
                "dw7 bn relu pw(4w) bn relu pw(1w) bn + relu",
                "0.434 M",
                "0.0034 GMACs",
                "2 epochs, batch 64, adamw at lr 0.006",
            ],
        ),
        (
            "multiscale_depthwise",
            ["ms(3,7,7d3) ln pw(4w) gelu pw(1w) +", "0.469 M", "0.0019 GMACs", "2 epochs of 8,386 images"],
        ),
    ],
)
def test_a_plan_is_printed_and_nothing_is_written(
    step: str, said: list[str], call: Call, tmp_path: Path
) -> None:
    done = call("run_step", step, "--plan", "--profile", "digits_noisy")
    assert (done.code, done.err) == (0, "")
    assert [words for words in said if words not in done.out] == []
    assert f"runs/convnext_t/digits_noisy/{step}/seed0-" in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_plan_at_full_size_imports_no_torch(tmp_path: Path) -> None:
    script = "import runpy, sys; sys.argv = ['run_step.py', 'gelu', '--plan']\n"
    script += "sys.exit = lambda code: print(code, 'torch' in sys.modules)\n"
    script += f"runpy.run_path({str(ROOT / 'run_step.py')!r}, run_name='__main__')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "dw7 bn gelu pw(4w) bn gelu pw(1w) bn + gelu" in done.stdout
    assert "25.863 M" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 False"
    assert list(tmp_path.iterdir()) == []


def test_a_plan_forecasts_from_finished_runs(call: Call, tmp_path: Path) -> None:
    config = resolve(load_roadmap(), "gelu", profile="digits_noisy")
    folder = tmp_path / "runs" / "convnext_t" / "digits_noisy" / "gelu" / f"seed1-{config.hash}"
    folder.mkdir(parents=True)
    texts = {"step": "gelu"} | dict.fromkeys(("roadmap", "dataset", "finished"), "")
    counts = dict.fromkeys(
        ("seed", "epochs", "iterations", "global_batch", "image_size", "params", "macs", "attempts"), 1
    )
    unknown = dict.fromkeys(
        ("profile", "top1", "top5", "val_loss", "train_loss", "ema_top1", "peak_memory_mb", "commit")
    )
    known = {"format": 1, "status": "diverged", "hash": config.hash, "versions": {}}
    measured = {"images_per_s": 479.2, "train_seconds": 30.0, "hardware": "one core"}
    (folder / "result.json").write_text(
        json.dumps({**texts, **counts, **unknown, **known, **measured}), encoding="utf-8"
    )
    done = call("run_step", "gelu", "--plan", "--profile", "digits_noisy")
    assert "35 s at 479 images/s (n = 1, one core)" in done.out
    assert "\ndata " not in done.out
    done = call(
        "run_step", "gelu", "--plan", "--profile", "digits_noisy", "--set", "recipe.global_batch=16384"
    )
    words = "8,386 training images, less than a batch of 16,384: training will not start"
    assert (done.code, done.err) == (0, "")
    assert f"\ndata        {words}\n" in done.out


def test_output_to_a_closed_pipe_prints_no_traceback(tmp_path: Path) -> None:
    line = [sys.executable, *COMMANDS["roadmap"], "explain", "gelu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.close()
    said = started.stderr.read()
    assert started.wait(60) == 1
    assert "Traceback" not in said
    assert "Exception" not in said


# What goes wrong

RUN = ["--profile", "digits_noisy"]
GOOD_COLLECT = ["--paper", "--out", "out"]
EPOCHS = r"recipe\.epochs: input should be a valid integer, not 'ten'"


def case(command: str, *words: str, said: Sequence[str]) -> Any:
    return pytest.param(command, words, said, id=" ".join([command, *words]))


def assert_refused(done: Outcome, said: Sequence[str], folder: Path) -> None:
    """One line a problem, exit code 2, and nothing in the folder."""
    assert done.code == 2
    assert "Traceback" not in done.err
    lines = done.err.splitlines()
    assert len(lines) == len(said)
    for line, pattern in zip(lines, said, strict=True):
        assert re.search(pattern, line), f"{pattern!r} is not in {line!r}"
    assert done.out == ""
    assert list(folder.rglob("*")) == []


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        case("run_step", "kernel_8", *RUN,
             said=[r"steps\.yaml: unknown step 'kernel_8'; did you mean 'kernel_\d'\?"]),
        case("run_step", "kernel_8", "--plan", said=["unknown step 'kernel_8'"]),
        case("run_step", "kernel_8", "--eval", said=["unknown step 'kernel_8'"]),
        case("roadmap", "explain", "zzz",
             said=["unknown step 'zzz'; there are resnet50, .*, multiscale_depthwise"]),
        case("roadmap", "diff", "gelu", "gelo", said=["unknown step 'gelo'; did you mean 'gelu'"]),
        case("submit", "--steps", "gelu", "gelo", *RUN, said=["unknown step 'gelo'; did you mean 'gelu'"]),
        case("run_step", "gelu", "--profile", "digit",
             said=["unknown profile 'digit'; did you mean 'digits'"]),
        case("submit", "--profile", "digit", said=["unknown profile 'digit'; did you mean 'digits'"]),
        case("roadmap", "explain", "gelu", "--profile", "digit",
             said=["unknown profile 'digit'; did you mean 'digits'"]),
        case("run_step", "gelu", "--roadmap", "convnext",
             said=["unknown roadmap 'convnext'; did you mean 'convnext_t'"]),
        case("roadmap", "verify", "--roadmap", "convnext",
             said=["unknown roadmap 'convnext'; did you mean 'convnext_t'"]),
        case("collect", *GOOD_COLLECT, "--roadmap", "convnext",
             said=["unknown roadmap 'convnext'; did you mean 'convnext_t'"]),
        case("submit", "--roadmap", "convnext",
             said=["unknown roadmap 'convnext'; did you mean 'convnext_t'"]),
        case("run_step", "gelu", *RUN, "--set", "recipe.epoch=3",
             said=[r"^--set: unknown key 'recipe\.epoch'; did you mean 'recipe.epochs'"]),
        case("run_step", "gelu", *RUN, "--set", "epochs=3",
             said=[r"unknown key 'epochs'; did you mean 'recipe\.epochs'"]),
        case("run_step", "gelu", *RUN, "--set", "recipe=3",
             said=["'recipe' is a section, not a value; set recipe.epochs"]),
        case("run_step", "gelu", *RUN, "--set", "recipe.epochs=ten", said=[f"^--set {EPOCHS}"]),
        case("run_step", "gelu", *RUN, "--set", "model.num_classes=5",
             said=["^dataset 'digits' has 10 classes, the model 5"]),
        case("submit", *RUN, "--set", "recipe.global_batch=128000",
             said=["has 8386 training images, less than a batch of 128000"]),
        case("run_step", "gelu", *RUN, "--set", "system.workers=many", said=[
            r"^--set system\.workers: input should be 'auto' or an integer from 0 on, not 'many'$"]),
        case("run_step", "gelu", *RUN, "--set", "system.workers=-1", said=["from 0 on, not -1$"]),
        case("run_step", "gelu", *RUN, "--set", "system.compile=1",
             said=["'reduce-overhead', 'try', true or false, not 1$"]),
        case("run_step", "gelu", *RUN, "--set", "recipe.randaugment=rnd-m9",
             said=["recipe.randaugment: string should match pattern"]),
        case("submit", *RUN, "--set", "recipe.epochs=ten", said=[EPOCHS]),
        case("roadmap", "explain", "gelu", "--set", "recipe.epochs=ten", said=[EPOCHS]),
        case("roadmap", "explain", "--keys", "lr",
             said=["^--keys: unknown key 'lr'; did you mean 'recipe.lr'"]),
        case("roadmap", "explain", "--keys", "--profile", "digits", said=["^--keys cannot be used with"]),
        case("roadmap", "explain", "--keys", "--set", "recipe.lr=1.0", said=["^--keys cannot be used with"]),
        case("run_step", "gelu", *RUN, "--set", "recipe.epochs",
             said=["^--set recipe.epochs: write it as key=value"]),
        case("run_step", "gelu", *RUN, "--set", "recipe.lr=0.1", "--set", "recipe.lr=0.2",
             said=["'recipe.lr' is set twice"]),
        case("run_step", "gelu", *RUN, "--set", "recipe.betas=[0.9",
             said=[r"^--set recipe\.betas:\d+:\d+: is not YAML"]),
        case("run_step", "gelu", *RUN, "--set", "a=1", "--set", "recipe.b=2",
             said=["unknown key 'a'", "unknown key 'recipe.b'"]),
        case("run_step", "gelu", *RUN, "--set", "recipe.lr=0", "--set", "recipe.epochs=0",
             said=["epochs: .* greater", "lr: .* greater"]),
        case("run_step", "gelu", *RUN, "--set", "model.block.order=[pw2, pw1, spatial]",
             said=["pw1 must come before pw2"]),
        case("run_step", "gelu", *RUN, "--seed", "-1",
             said=["seed: input should be greater than or equal to 0, not -1"]),
        case("run_step", "gelu", *RUN, "--seed", "-1", "--plan",
             said=["seed: input should be greater than or equal to 0, not -1"]),
        case("run_step", "gelu", *RUN, "--seed", "4294967296",
             said=["seed: input should be less than 4294967296"]),
        case("run_step", "gelu", *RUN, "--eval", said=["has no checkpoint to evaluate; train it first"]),
        case("run_step", "gelu", "--steps-file", "none.yaml",
             said=[r"^none\.yaml cannot be read: No such file or directory"]),
        case("run_step", "gelu", "--steps-file", ".", said=[r"^\. cannot be read: Is a directory"]),
        case("roadmap", "steps", "--steps-file", "none.yaml", said=["^none.yaml cannot be read"]),
        case("collect", *GOOD_COLLECT, "--steps-file", "none.yaml", said=["^none.yaml cannot be read"]),
        case("submit", "--steps-file", "none.yaml", said=["^none.yaml cannot be read"]),
        case("submit", *RUN, "--seeds", "0", said=["^--seeds must be at least 1, not 0"]),
        case("submit", *RUN, "--cluster", "moon",
             said=["^.*cluster.yaml: unknown cluster 'moon'; there are local, testbed, example"]),
        case("submit", *RUN, "--pack", "0", said=["^--pack must be at least 1, not 0"]),
        case("submit", *RUN, "--workers", "-2", said=["^--workers must be at least 1, not -2"]),
        case("submit", *RUN, "--cluster", "local", "--pack", "2", "--out", "out",
             said=["^--pack needs a cluster whose scheduler is slurm", "^--out needs a cluster whose"]),
        case("submit", *RUN, "--cluster", "example", "--workers", "2",
             said=["^--workers needs a cluster whose scheduler is local; that of 'example' is slurm"]),
        case("submit", "--steps", "gelu", "--seeds", "1", "--workers", "1", said=[r""]),
        case("status", "none", said=["none cannot be read as a folder of runs"]),
        case("collect", "none", "--out", "out", said=["none cannot be read as a folder of runs"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_a_problem(
    command: str, words: list[str], said: list[str], call: Call, tmp_path: Path
) -> None:
    assert_refused(call(command, *words), said, tmp_path)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run_step", []),
        ("run_step", ["gelu", "--seed", "one"]),
        ("run_step", ["gelu", "--plan", "--eval"]),
        ("run_step", ["gelu", "kernel_7"]),
        ("collect", ["runs"]),
        ("collect", ["--paper"]),
        ("roadmap", []),
        ("roadmap", ["explain"]),
        ("roadmap", ["explain", "gelu", "--keys"]),
        ("roadmap", ["dance"]),
        ("roadmap", ["steps", "--road", "convnext_b"]),
        ("roadmap", ["bench", "--steps", "gelu"]),
        ("run_step", ["gelu", "--plan", "--see", "1"]),
        ("collect", ["runs", "--out", "out", "--steps", "gelu"]),
        ("submit", ["--dry", "--seeds", "1"]),
        ("status", ["--js"]),
    ],
)
def test_words_that_make_no_sense_get_the_usage(
    command: str, words: list[str], call: Call, tmp_path: Path
) -> None:
    done = call(command, *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: ")
    assert "error: " in done.err
    assert list(tmp_path.iterdir()) == []


BROKEN: list[tuple[str, str, str, list[str]]] = [
    (
        "unknown key",
        "model.width: 96}",
        "model.widht: 96}",
        [f"^{WHERE}step 'increase_width': unknown key 'model.widht'; did you mean 'model.width'"],
    ),
    (
        "a step's key",
        "title: ReLU to GELU",
        "titel: ReLU to GELU",
        [f"^{WHERE}.*'title' is missing", f"^{WHERE}unknown key .*titel"],
    ),
    (
        "duplicate key",
        "    width: 64\n",
        "    width: 64\n    width: 64\n",
        [f"^{WHERE}duplicate key 'width', first given in line 16"],
    ),
    (
        "no change",
        "model.width: 96}",
        "model.width: 64}",
        [f"^{WHERE}step 'increase_width': 'model.width' changes nothing: it already is 64"],
    ),
    (
        "wrong type",
        "model.width: 96}",
        "model.width: wide}",
        [f"^{WHERE}step 'increase_width': model.width: .*not 'wide'"],
    ),
    (
        "unknown parent",
        "parent: kernel_7",
        "parent: kernel_8",
        [f"^{WHERE}step 'gelu': unknown parent 'kernel_8'; did you mean 'kernel_"],
    ),
    ("own ancestor", "parent: kernel_7", "parent: gelu", [f"^{WHERE}step 'gelu': is its own ancestor"]),
    (
        "two problems",
        "set: {model.width: 96}",
        "set: {model.widht: 96, model.dephts: [1]}",
        ["'model.widht'", "'model.dephts'"],
    ),
    ("not YAML", "set: {model.width: 96}", "set: {model.width: 96", [f"^{WHERE}is not YAML"]),
    ("a tab", "    width: 64\n", "\twidth: 64\n", [f"^{WHERE}is not YAML"]),
    (
        "a mapping for a number",
        "model.width: 96}",
        "model.width: {a: 96}}",
        [f"^{WHERE}step 'increase_width': .*'model.width.a'"],
    ),
]


@pytest.mark.parametrize(
    ("old", "new", "said"), [broken[1:] for broken in BROKEN], ids=[broken[0] for broken in BROKEN]
)
def test_errors_in_a_steps_file_name_the_line(
    old: str, new: str, said: list[str], call: Call, edited: Edit, tmp_path: Path
) -> None:
    path = edited(old, new)
    line = next(
        number
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if new.splitlines()[0] in line
    )
    done = call("run_step", "gelu", *RUN, "--steps-file", path)
    assert_refused(done, said, tmp_path)
    found = [int(place) for place in re.findall(r"\.yaml:(\d+):\d+: ", done.err)]
    assert min(abs(place - line) for place in found) <= 2


NO_STEPS_FILES = {
    "empty": "",
    "a number": "base: 3\n",
    "a list": "- a\n- b\n",
    "words": "just words\n",
    "no roadmap": "base: {}\nprofiles: {}\nroadmaps: {}\n",
    "no steps": "base: {}\nprofiles: {}\nroadmaps: {convnext_t: {title: a, steps: []}}\n",
    "no base": "base: {}\nprofiles: {}\nroadmaps: {convnext_t: {title: a, steps: [{name: a, title: b}]}}\n",
    "a null byte": "\x00",
    "an alias of itself": "base: &a {b: *a}\n",
}


@pytest.mark.parametrize("text", list(NO_STEPS_FILES.values()), ids=NO_STEPS_FILES)
def test_a_file_that_is_no_steps_file_is_refused(
    text: str, call: Call, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    path = tmp_path_factory.mktemp("steps") / "odd.yaml"
    path.write_text(text, encoding="utf-8")
    for command, words in (
        ("roadmap", ["verify"]),
        ("run_step", ["gelu"]),
        ("collect", GOOD_COLLECT),
        ("submit", ["--steps", "gelu"]),
    ):
        done = call(command, *words, "--steps-file", path)
        assert (done.code, done.out) == (2, "")
        assert done.err.strip()
        assert all(line.startswith(str(path)) for line in done.err.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_a_steps_file_that_is_no_text_is_refused(
    call: Call, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    path = tmp_path_factory.mktemp("steps") / "odd.yaml"
    path.write_bytes(b"base: \xff\xfe")
    assert_refused(call("roadmap", "steps", "--steps-file", path), [rf"{path} is not UTF-8 text"], tmp_path)


@pytest.mark.parametrize("command", ["run_step", "submit"])
def test_a_runs_folder_that_cannot_be_made_is_named(command: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("", encoding="utf-8")
    done = call(command, *(["--cluster", "local", "--steps"] if command == "submit" else []), "gelu", *RUN)
    assert (done.code, done.out) == (2, "")
    if command == "submit":
        assert done.err == f"--runs {tmp_path / 'runs'}: is not a folder; choose another\n"
    else:
        run = r"runs/convnext_t/digits_noisy/gelu/seed0-[0-9a-f]{8}"
        assert re.fullmatch(rf"{run} cannot be created: .*\n", done.err)


def test_an_output_folder_that_cannot_be_made_is_named(call: Call, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("", encoding="utf-8")
    done = call("collect", *GOOD_COLLECT)
    assert (done.code, done.out) == (2, "")
    assert done.err == "--out out is a file; name a folder, which is created if it is missing\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("roadmap", ["explain", "kernel_8"]),
        ("run_step", ["gelu", "--profile", "digit"]),
        ("collect", ["none", "--out", "out"]),
        ("submit", ["--steps", "gelu", *RUN, "--set", "recipe.epochs=ten"]),
    ],
)
def test_bad_input_ends_a_real_process_with_2(command: str, words: list[str], tmp_path: Path) -> None:
    done = process(command, *words, cwd=tmp_path)
    assert done.code == 2
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []
