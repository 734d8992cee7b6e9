"""Evaluation of runs and of weights from anywhere: figures computed a second way, other resolutions and
crops, and clear refusals.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blocks import build_model
from roadmap import ROOT
from roadmap.cli.arguments import eval_options, load_config
from roadmap.cli.options import main_of
from roadmap.cli.run import parser, run
from roadmap.config import RunConfig
from roadmap.data.loader import Loader
from roadmap.errors import ConfigError
from roadmap.records import RunDir, prepare, read_result
from roadmap.steps import load_roadmap, resolve
from roadmap.train import train
from roadmap.training.distributed import Distributed
from roadmap.training.engine import Engine
from roadmap.training.evaluate import ALONE, evaluate_found, evaluate_run, find_file, find_run
from roadmap.training.metrics import evaluate
from roadmap.weight_files import digest_of
from tests.helpers import commands
from tests.helpers.images import Pictures, custom, jpeg, plain, write_tar
from tests.helpers.images import picture as colored
from tests.test_timm_parity import randomize

STEP = "separate_downsampling"
NAMES = ["ant", "bee", "cat, wild", "dog", "eel", "fox", "gnu"]
SMALL: dict[str, Any] = {
    "model.depths": [1, 1, 1, 1], "model.width": 8, "data.image_size": 64, "model.num_classes": 7,
    "system.workers": 0, "system.eval_batch": 4, "system.threads": 1,
}  # fmt: skip


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Blobs of color, so that resizing is no matter of luck."""
    coarse = torch.randint(
        0, 256, (5, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return Image.fromarray(coarse.numpy()).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class, with as many images in val/ as the class has letters; no image is square."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(NAMES):
        for split, count in (("train", 1), ("val", len(name))):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                size = (90 + 7 * number, 64 + 3 * label)
                picture(100 * label + number, size).save(root / split / name / f"{number}.jpg", quality=95)
    return root


IMAGES = sum(map(len, NAMES))


def config_of(root: Path, **more: Any) -> RunConfig:
    overrides = (
        SMALL
        | {"system.data_dir": str(root)}
        | {key.replace("__", "."): value for key, value in more.items()}
    )
    return resolve(load_roadmap(), STEP, overrides=overrides)


def network_of(config: RunConfig, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = build_model(config.ours)
    randomize(network)
    return network


@pytest.fixture(scope="module")
def weights(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with weights and their average."""
    config, path = config_of(photos), tmp_path_factory.mktemp("weights") / "both.pth"
    raw, average = (network_of(config, seed).state_dict() for seed in (0, 1))
    torch.save({"model": raw, "model_ema": average}, path)
    return path


# A second way to the same figures.


@dataclass
class Figures:
    """Logits in single precision and labels of all images, one image after the other."""

    logits: Tensor
    labels: Tensor

    def hits(self, most: int, label: int | None = None) -> float:
        ranks = (self.logits > self.logits.gather(1, self.labels[:, None])).sum(1)
        here = torch.ones_like(self.labels, dtype=torch.bool) if label is None else self.labels == label
        return 100 * (ranks[here] < most).double().mean().item()

    @property
    def loss(self) -> float:
        chosen = self.logits.double().log_softmax(1).gather(1, self.labels[:, None])
        return -chosen.mean().item()


def by_hand(
    network: nn.Module, config: RunConfig, root: Path, size: int, pct: float, squash: bool
) -> Figures:
    logits, labels = [], []
    resized = math.floor(size / pct)
    for label, name in enumerate(NAMES):
        for path in sorted((root / "val" / name).iterdir(), key=lambda path: int(path.stem)):
            image = Image.open(path).convert("RGB")
            width, height = image.size
            short = min(width, height)
            width, height = (
                (resized, resized)
                if squash
                else (int(resized * width / short), int(resized * height / short))
            )
            left, top = round((width - size) / 2), round((height - size) / 2)
            image = image.resize((width, height), Image.Resampling.BICUBIC).crop(
                (left, top, left + size, top + size)
            )
            x = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
            x = (x - torch.tensor(config.data.mean)[:, None, None]) / torch.tensor(config.data.std)[
                :, None, None
            ]
            with torch.no_grad():
                logits.append(network.eval()(x[None])[0])
            labels.append(label)
    return Figures(torch.stack(logits), torch.tensor(labels))


VIEWS: list[tuple[dict[str, Any], int, float, bool]] = [
    ({}, 64, 0.875, False),
    ({"data__image_size": 96}, 96, 0.875, False),
    ({"recipe__eval_crop_pct": 1.0}, 64, 1.0, False),
    ({"recipe__eval_crop_mode": "squash"}, 64, 0.875, True),
    (
        {"data__image_size": 80, "recipe__eval_crop_pct": 1.0, "recipe__eval_crop_mode": "squash"},
        80,
        1.0,
        True,
    ),
]


@pytest.mark.parametrize(("view", "size", "pct", "squash"), VIEWS)
def test_the_metrics_are_those_of_one_image_at_a_time(
    view: dict[str, Any], size: int, pct: float, squash: bool, photos: Path, weights: Path
) -> None:
    config = config_of(photos, **view)
    found = evaluate_found(find_file(str(weights)), config)
    assert list(found) == ["raw", "ema"]
    for kind, seed in (("raw", 0), ("ema", 1)):
        evaluation = found[kind]  # type: ignore[index]
        expected = by_hand(network_of(config, seed), config, photos, size, pct, squash)
        scores = evaluation.metrics
        assert (scores.images, evaluation.metrics.unreadable) == (IMAGES, 0)
        assert scores.loss == pytest.approx(expected.loss, rel=1e-4)
        assert scores.top1 == pytest.approx(expected.hits(1))
        assert scores.top5 == pytest.approx(expected.hits(5))
        assert [row[0] for row in evaluation.classes] == [len(name) for name in NAMES]
        for label, (count, first, five) in enumerate(evaluation.classes):
            assert (100 * first / count, 100 * five / count) == pytest.approx(
                (expected.hits(1, label), expected.hits(5, label))
            )
    assert 0 < found["raw"].metrics.top1 < found["raw"].metrics.top5 < 100


def test_different_views_have_different_metrics(photos: Path, weights: Path) -> None:
    """Otherwise the test before could not tell them apart."""
    losses = {
        evaluate_found(find_file(str(weights)), config_of(photos, **view), "raw")["raw"].metrics.loss
        for view, *_ in VIEWS
    }
    assert len({round(loss, 3) for loss in losses}) == len(VIEWS)


@pytest.mark.parametrize("batch", [1, 5, 1000])
def test_the_size_of_a_batch_changes_nothing(batch: int, photos: Path, weights: Path) -> None:
    one, other = (
        evaluate_found(find_file(str(weights)), config_of(photos, system__eval_batch=size), "raw")["raw"]
        for size in (batch, 4)
    )
    assert (one.classes, one.metrics.top1, one.metrics.top5) == (
        other.classes,
        other.metrics.top1,
        other.metrics.top5,
    )
    assert one.metrics.loss == pytest.approx(other.metrics.loss, rel=1e-5)


def test_the_first_five_of_fewer_classes_are_all(photos: Path, tmp_path: Path) -> None:
    config = config_of(photos, data__classes=NAMES[:3], model__num_classes=3)
    torch.save(network_of(config).state_dict(), tmp_path / "three.pth")
    (evaluation,) = evaluate_found(find_file(str(tmp_path / "three.pth")), config).values()
    assert evaluation.metrics.top5 == 100
    assert evaluation.metrics.top1 < 100
    assert [row[0] for row in evaluation.classes] == [len(name) for name in NAMES[:3]]


def test_settings_for_many_devices_do_not_keep_one_from_evaluating(photos: Path, weights: Path) -> None:
    plain = evaluate_found(find_file(str(weights)), config_of(photos), "raw")["raw"]
    config = config_of(photos, system__sync_bn=True, system__micro_batch=3, system__device="cpu")
    assert evaluate_found(find_file(str(weights)), config, "raw")["raw"] == plain
    assert ALONE.world == 1


def test_images_that_cannot_be_read_are_left_out_and_counted(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    (root / "val" / "bee" / "1.jpg").write_bytes(b"no image")
    config = config_of(root, system__corrupt_images=1)
    assert evaluate_run(config, tmp_path / "runs", source=str(weights), kind="raw") == 0
    assert (
        f": {IMAGES - 1} images of 64 px, crop 0.875 center, 1 unreadable left out\n"
        in capsys.readouterr().out
    )
    (evaluation,) = evaluate_found(find_file(str(weights)), config, "raw").values()
    assert (evaluation.metrics.images, evaluation.metrics.unreadable) == (IMAGES - 1, 1)
    assert [row[0] for row in evaluation.classes] == [3, 2, 9, 3, 3, 3, 3]
    (root / "val" / "bee" / "1.jpg").unlink()
    (without,) = evaluate_found(find_file(str(weights)), config, "raw").values()
    assert evaluation.classes == without.classes
    assert evaluation.metrics.loss == pytest.approx(without.metrics.loss, rel=1e-5)


def test_too_many_images_that_cannot_be_read_end_it_in_one_line(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    (root / "val" / "bee" / "1.jpg").write_bytes(b"no image")
    assert evaluate_run(config_of(root), tmp_path / "runs", source=str(weights)) == 1
    done = capsys.readouterr()
    assert done.out == ""
    assert "bee/1.jpg" in done.err
    assert "Traceback" not in done.err


class Counted(Pictures):
    """Pictures that count how often one is read."""

    read = 0

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        self.read += 1
        return super().__getitem__(number)


def test_a_network_and_its_ema_are_evaluated_in_one_pass() -> None:
    config, cpu = custom(recipe__ema=0.9), torch.device("cpu")
    engine = Engine(config, cpu, 10)
    assert engine.ema is not None
    with torch.no_grad():
        for parameter in engine.ema.module.parameters():
            parameter.mul_(1.1).add_(0.01 * torch.randn_like(parameter))
    pictures = Counted([(colored(number), number % 3) for number in range(9)])
    loader = Loader(config, "val", cpu, source=pictures)
    pictures.read = 0
    together = engine.evaluate(loader.epoch())
    assert pictures.read == 9
    alone = [
        evaluate([network], loader.epoch(), config, cpu, Distributed())
        for network in (engine.model, engine.ema.module)
    ]
    assert [[found] for found in together] == alone
    assert together[0] != together[1]


# Runs.

DIGITS = {"data.copies": 1, "model.depths": [1, 1, 1, 1], "recipe.epochs": 2, "recipe.ema": 0.9}


def digits(**more: Any) -> RunConfig:
    overrides = DIGITS | {key.replace("__", "."): value for key, value in more.items()}
    return resolve(load_roadmap(), "gelu", profile="digits", overrides=overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = prepare(tmp_path_factory.mktemp("runs"), digits())
    assert train(digits(), run.path).status == "done"
    return run


def runs_of(run: RunDir) -> Path:
    return run.path.parents[3]


def test_evaluating_a_run_yields_the_metrics_of_its_training(
    finished: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    result = read_result(finished)
    assert result is not None
    found = find_run(digits(), finished)
    evaluations = evaluate_found(found, digits())
    scores, average = (evaluation.metrics for evaluation in evaluations.values())
    assert (scores.top1, scores.top5, scores.loss) == (result.top1, result.top5, result.val_loss)
    assert average.top1 == result.ema_top1
    assert average.loss != scores.loss
    assert evaluate_run(digits(), runs_of(finished)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "iteration 36, after epoch 2 of 2: 599 images of 20 px, crop 1 center",
        f"weights: top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %, loss {scores.loss:.4f}",
        f"EMA: top-1 {average.top1:.2f} %, top-5 {average.top5:.2f} %, loss {average.loss:.4f}",
    ]


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_one_kind_of_weights_can_be_asked_for(kind: Any, finished: RunDir) -> None:
    both, one = (evaluate_found(find_run(digits(), finished), digits(), wanted) for wanted in (None, kind))
    assert one == {kind: both[kind]}


def test_weights_that_a_run_does_not_have_are_refused(tmp_path: Path) -> None:
    config = digits(recipe__ema=None, recipe__epochs=1)
    run = prepare(tmp_path, config)
    train(config, run.path)
    assert list(evaluate_found(find_run(config, run), config)) == ["raw"]
    with pytest.raises(ConfigError, match=rf"^{run.path} has no EMA; --raw selects its weights$"):
        evaluate_run(config, tmp_path, kind="ema")


def test_the_newest_intact_checkpoint_is_evaluated(finished: RunDir, tmp_path: Path) -> None:
    run = RunDir(Path(shutil.copytree(finished.path, tmp_path / "run")))
    newest = max(run.checkpoints.glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert find_run(digits(), run).about == "iteration 18, after epoch 1 of 2"


def test_the_checkpoint_of_another_configuration_is_refused(finished: RunDir, tmp_path: Path) -> None:
    run = RunDir(Path(shutil.copytree(finished.path, tmp_path / "run")))
    with pytest.raises(
        ConfigError,
        match=r"config\.yaml belongs to another configuration \(recipe\.ema: 0\.9 there, 0\.8 now\)",
    ):
        find_run(digits(recipe__ema=0.8), run)
    run.config.unlink()
    wider = digits(model__width=192)
    with pytest.raises(ConfigError, match=rf"^{run.path} does not fit: "):
        evaluate_found(find_run(wider, run), wider)


# The command line.


def command(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "run_step.py"), *map(str, words)]
    return commands.run(line, cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)})


def words_of(root: Path, *more: str) -> list[str]:
    """A command line for the photos; what is set in `more` is set once."""
    usual = SMALL | {"system.data_dir": str(root)}
    usual = {
        key: value
        for key, value in usual.items()
        if not any(word.startswith(f"--set={key}=") for word in more)
    }
    return [STEP, *(f"--set={key}={json.dumps(value)}" for key, value in usual.items()), *more]


def test_the_command_line_evaluates_weights_at_another_resolution(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    done = command(
        *words_of(
            photos, "--eval", "--init-from", str(weights), "--image-size", "384", "--per-class", "out.csv"
        ),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"{weights}: {IMAGES} images of 384 px, crop 1 squash"
    config = config_of(photos, data__image_size=384)
    figures = [by_hand(network_of(config, seed), config, photos, 384, 1.0, squash=True) for seed in (0, 1)]
    for line, title, expected in zip(done.stdout.splitlines()[1:3], ("weights", "EMA"), figures, strict=True):
        found = re.fullmatch(rf"{title}: top-1 (\S+) %, top-5 (\S+) %, loss (\S+)", line)
        assert found
        assert [float(figure) for figure in found.groups()] == pytest.approx(
            [expected.hits(1), expected.hits(5), expected.loss], abs=6e-3
        )
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", "name", "images", "top1", "top5", "ema_top1", "ema_top5"]
    for label, (row, name) in enumerate(zip(rows, NAMES, strict=True)):
        assert (row["class"], row["name"], row["images"]) == (str(label), name, str(len(name)))
        wanted = [expected.hits(most, label) for expected in figures for most in (1, 5)]
        assert [float(row[key]) for key in ("top1", "top5", "ema_top1", "ema_top5")] == pytest.approx(
            wanted, abs=1e-4
        )
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_classes_that_shards_have_no_images_of_are_numbered(tmp_path: Path) -> None:
    members = {
        f"{name}/{number}.{key}": value
        for label, name in enumerate(("ant", "bee"))
        for number in range(2)
        for key, value in (("jpg", jpeg(number)), ("cls", str(label).encode()))
    }
    write_tar(tmp_path / "a.tar", members)
    config = plain(tmp_path, data__dataset="shards", data__train_split="a.tar", data__val_split="a.tar")
    torch.save(network_of(config).state_dict(), tmp_path / "weights.pth")
    assert (
        evaluate_run(
            config, tmp_path / "runs", source=str(tmp_path / "weights.pth"), per_class=tmp_path / "out.csv"
        )
        == 0
    )
    rows = [line.split(",") for line in (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()]
    assert [row[:3] for row in rows[1:]] == [["0", "0", "2"], ["1", "1", "2"], ["2", "2", "0"]]


@pytest.mark.parametrize(
    ("words", "crop"),
    [
        (["--image-size", "383"], "383 px, crop 0.875 center"),
        (["--image-size", "384"], "384 px, crop 1 squash"),
        (["--image-size", "384", "--crop-mode", "center"], "384 px, crop 0.875 center"),
        (["--image-size", "384", "--crop-pct", "0.95"], "384 px, crop 0.95 center"),
        (["--crop-pct", "0.95", "--crop-mode", "squash"], "64 px, crop 0.95 squash"),
        (["--set=data.image_size=384"], "384 px, crop 0.875 center"),
        (["--set=data.image_size=384", "--image-size", "384"], "384 px, crop 0.875 center"),
    ],
)
def test_the_full_image_is_evaluated_at_another_large_resolution(
    words: list[str], crop: str, photos: Path
) -> None:
    arguments = parser().parse_args(words_of(photos, "--eval", *words))
    view = eval_options(arguments, load_config(arguments))["view"]
    assert (
        f"{view.data.image_size} px, crop {view.recipe.eval_crop_pct:g} {view.recipe.eval_crop_mode}" == crop
    )


def test_the_command_line_evaluates_a_run_and_names_its_classes(finished: RunDir, tmp_path: Path) -> None:
    like = [
        "gelu",
        "--profile",
        "digits",
        *(f"--set={key}={json.dumps(value)}" for key, value in DIGITS.items()),
    ]
    done = command(
        *like, "--runs", runs_of(finished), "--eval", "--ema", "--per-class", "out.csv", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    result = read_result(finished)
    assert result is not None
    assert re.fullmatch(
        rf"EMA: top-1 {result.ema_top1:.2f} %, top-5 .* %, loss .*", done.stdout.splitlines()[1]
    )
    assert done.stdout.splitlines()[2:] == ["out.csv holds the 10 classes"]
    rows = [line.split(",") for line in (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()]
    assert rows[0] == ["class", "name", "images", "ema_top1", "ema_top5"]
    assert [row[:2] for row in rows[1:]] == [[str(digit)] * 2 for digit in range(10)]
    right = sum(int(row[2]) * float(row[3]) for row in rows[1:])
    assert right / sum(int(row[2]) for row in rows[1:]) == pytest.approx(result.ema_top1, abs=1e-3)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no checkpoint": (
        ["--eval"],
        r"^runs/convnext_t/paper/\S* has no checkpoint to evaluate; train it first, or name weights",
    ),
    "a resolution that is too small": (
        ["--eval", "--image-size", "16"],
        "^--image-size data.image_size: an image of 16 pixels is too small",
    ),
    "no resolution": (
        ["--eval", "--image-size", "0"],
        "^--image-size data.image_size: input should be greater than or equal to 8, not 0$",
    ),
    "a crop of more than all": (
        ["--eval", "--crop-pct", "1.5"],
        r"^--crop-pct recipe.eval_crop_pct: input should be less than or equal to 1, not 1\.5$",
    ),
    "a size without --eval": (["--image-size", "320"], "^--image-size cannot be used without --eval$"),
    "much without --eval": (
        ["--plan", "--crop-pct", "1", "--crop-mode", "squash", "--per-class", "x.csv"],
        "^--crop-pct, --crop-mode, --per-class cannot be used without --eval$",
    ),
    "no such folder": (
        ["--eval", "--init-from", "W", "--per-class", "none/x.csv"],
        r"^none/x\.csv cannot be written: No such file",
    ),
    "a class map without --eval": (["--class-map", "W"], "^--class-map cannot be used without --eval$"),
    "no class map": (["--eval", "--class-map", "none.txt"], r"^none\.txt cannot be read: No such file"),
    "a class map that is none": (
        ["--eval", "--class-map", "W"],
        r"both\.pth is not a class map, a text file of one class name per line",
    ),
    "a folder for a file": (
        ["--eval", "--init-from", "W", "--per-class", "."],
        r"^\. cannot be written: Is a directory$",
    ),
    "another network": (["--eval", "--init-from", "W", "--set=model.depths=[1,1,2,1]"], "does not fit: "),
    "other classes in the weights": (
        ["--eval", "--init-from", "W", "--set=model.num_classes=5"],
        r"head.classifier.weight is \[7, 64\] there, \[5, 64\] here",
    ),
    "other classes in the data": (
        ["--eval", "--init-from", "W", "--set=data.classes=[ant, bee]"],
        "has 2 classes in val, the model 7",
    ),
    "no data": (["--eval", "--init-from", "W", "--set=system.data_dir=null"], "^system.data_dir is not set"),
}


@pytest.mark.parametrize(("words", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_evaluated_is_refused_in_one_message(
    words: list[str],
    said: str,
    photos: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = words_of(photos, *(str(weights) if word == "W" else word for word in words))
    monkeypatch.setattr(sys, "argv", ["run_step.py", *line])
    assert main_of(parser(), run) == 2
    done = capsys.readouterr()
    assert done.out == ""
    assert re.search(said, done.err), done.err
    assert len(done.err.splitlines()) == 1 or "does not fit" in done.err
    assert list(tmp_path.iterdir()) == []


def test_bad_options_are_refused_before_torch_is_imported(photos: Path, tmp_path: Path) -> None:
    for words, code in (
        (["--eval", "--image-size", "16"], 2),
        (["--raw"], 2),
        (["--eval", "--ema", "--raw"], 2),
    ):
        line = ["-X", "importtime", str(ROOT / "run_step.py"), *words_of(photos, *words)]
        done = subprocess.run(
            [sys.executable, *line], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        imported = {
            line.rpartition("|")[2].strip()
            for line in done.stderr.splitlines()
            if line.startswith("import time:")
        }
        assert "roadmap.cli.options" in imported
        assert "torch" not in imported


def test_weights_of_a_run_are_evaluated_without_that_runs_configuration(
    finished: RunDir, tmp_path: Path
) -> None:
    config = digits(recipe__lr=1.0)
    found = find_file(str(finished.path))
    assert digest_of(finished.path) == digest_of(max(finished.checkpoints.glob("*.pt")))
    assert evaluate_found(found, config) == evaluate_found(find_run(digits(), finished), digits())
