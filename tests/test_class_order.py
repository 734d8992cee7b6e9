"""The order of classes travels with weights: through export and back, to timm, to other folders, and to
fine-tuning.
"""

from __future__ import annotations

import colorsys
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import safetensors
import timm
import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.class_map import load_class_map
from torch import Tensor, nn

from blocks import build_model
from roadmap.cli.options import main_of
from roadmap.cli.run import parser
from roadmap.cli.run import run as run_step
from roadmap.config import RunConfig
from roadmap.data.datasets import make_source
from roadmap.data.loader import Loader
from roadmap.export import export
from roadmap.records import RunDir, prepare
from roadmap.train import train
from roadmap.training.checkpoint import Checkpoints
from roadmap.training.evaluate import evaluate_found, find_file, find_run
from roadmap.training.initial_weights import initialize_from, with_init_digest
from roadmap.weight_files import class_map_beside, is_ambiguous, read_class_map, to_class_map
from roadmap.weights import copy_weights, read_weights
from tests.helpers.images import Pictures, plain, write_tar

NUMBERS = [str(number) for number in range(1, 13)]  # as people count, and timm
PLAIN = sorted(NUMBERS)  # 1, 10, 11, 12, 2, ..., as here and in torchvision
SIZE = 32
LEARNS: dict[str, Any] = {
    "model__num_classes": 12, "model__drop_path": 0.0, "model__block__layer_scale": 0.5,
    "recipe__epochs": 12, "recipe__lr": 1e-2, "recipe__lr_batch": 12, "recipe__lr_scale": 1.0,
    "recipe__global_batch": 12, "recipe__ema": None, "recipe__label_smoothing": 0.0,
    "recipe__random_erasing": 0.0, "recipe__weight_decay": 0.0, "system__eval_batch": 24,
}  # fmt: skip
WORDS = [
    "separate_downsampling", *(f"--set={key}={value}" for key, value in {
        "model.num_classes": 12, "model.drop_path": 0, "model.block.layer_scale": 0.5,
        "model.width_mult": 0.125, "model.depths": "[1,1,1,1]", "data.image_size": SIZE,
        "recipe.eval_crop_pct": 1.0, "system.device": "cpu", "system.workers": 0,
    }.items()),
]  # fmt: skip


def picture(name: str, brightness: float) -> Image.Image:
    """The color of a class."""
    color = [round(255 * value) for value in colorsys.hsv_to_rgb(int(name) / 12, 1, brightness)]
    return Image.fromarray(np.full((SIZE, SIZE, 3), color, np.uint8))


def write(folder: Path, names: list[str], images: int) -> None:
    """A folder per class; images that another split has, too, are of another brightness."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(images):
            picture(name, 0.6 + 0.08 * number + 0.02 * images).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("numbered")
    write(root / "train", NUMBERS, 4)
    write(root / "val", NUMBERS, 2)
    write(root / "hard", ["10", "2", "7"], 3)
    return root


def config_of(root: Path | None, **more: Any) -> RunConfig:
    return plain(root, **LEARNS | more)


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    config = config_of(root)
    run = prepare(tmp_path_factory.mktemp("runs"), config)
    assert train(config, run.path).top1 == 100
    return run


@pytest.fixture(scope="module", params=["safetensors", "pth"])
def exported(
    run: RunDir, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("exported") / f"twelve.{request.param}"
    return out, export(run.path, out)


@dataclass
class Done:
    """How an evaluation ended, and what it printed and logged."""

    code: int
    out: str
    err: str

    @property
    def top1(self) -> float:
        found = re.search(r"^weights: top-1 (\S+) %", self.out, re.MULTILINE)
        assert found, self.err
        return float(found[1])


class Evaluate(Protocol):
    """The command line `run_step.py --eval` in this process."""

    def __call__(self, *words: str | Path, root: Path) -> Done: ...


@pytest.fixture
def evaluate(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Evaluate:
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path, root: Path) -> Done:
        caplog.clear()
        monkeypatch.setattr(
            sys, "argv", ["run_step.py", *WORDS, f"--set=system.data_dir={root}", "--eval", *map(str, words)]
        )
        code, done = main_of(parser(), run_step), capsys.readouterr()
        return Done(code, done.out, done.err + "".join(f"{message}\n" for message in caplog.messages))

    return call


def test_timm_alone_sorts_numbered_folders_as_people_do(root: Path) -> None:
    reader = create_dataset("folder", str(root), split="val").reader
    assert sorted(reader.class_to_idx, key=reader.class_to_idx.get) == NUMBERS
    assert pytest.importorskip("torchvision.datasets").ImageFolder(root / "val").classes == PLAIN
    assert make_source(config_of(root), "val").class_names == PLAIN
    assert is_ambiguous(PLAIN)
    assert is_ambiguous(["B", "a"])  # timm sorts without regard to case
    assert not is_ambiguous(NUMBERS)  # which nobody sorted
    assert not is_ambiguous(["n01440764", "n01443537", "n02113799"])


def test_a_checkpoint_names_the_classes(run: RunDir) -> None:
    state = Checkpoints(run.checkpoints).newest()
    assert state is not None
    assert state["data"]["classes"] == PLAIN
    assert read_weights(run.path).classes == PLAIN


def test_a_loader_names_the_classes_only_if_it_knows_them_all(root: Path, tmp_path: Path) -> None:
    for config, names in (
        (config_of(root), PLAIN),
        (shards_of(tmp_path / "a", PLAIN), PLAIN),
        (shards_of(tmp_path / "b", PLAIN[:10]), None),
    ):
        assert Loader(config, "val", torch.device("cpu")).class_names == names


def test_export_writes_a_class_map_that_timm_reads(exported: tuple[Path, str]) -> None:
    out, sentence = exported
    path = out.with_name("twelve.classes.txt")
    assert sentence.endswith(
        f"; {path} names its 12 classes in the order of its outputs, for timm's --class-map and for"
        " --init-from"
    )
    assert load_class_map(str(path)) == {name: output for output, name in enumerate(PLAIN)}
    assert read_class_map(path) == PLAIN


def timms_accuracy(network: nn.Module, root: Path, **how: Any) -> float:
    dataset = create_dataset("folder", str(root), split="val", **how)
    mean, std = (torch.tensor(getattr(config_of(root).data, name))[:, None, None] for name in ("mean", "std"))
    hits = 0
    for image, label in dataset:
        x: Tensor = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            hits += int(network.eval()(x[None]).argmax()) == label
    return 100 * hits / len(dataset)


def test_what_is_exported_has_its_accuracy_here_and_in_timm(
    exported: tuple[Path, str], root: Path, evaluate: Evaluate
) -> None:
    out, sentence = exported
    done = evaluate("--init-from", out, "--per-class", "out.csv", root=root)
    assert (done.code, done.err, done.top1) == (0, "", 100)
    call = re.search(r"timm\.create_model\(.*?\)(?= loads)", sentence)
    assert call
    network: nn.Module = eval(call[0], {"timm": timm})
    assert timms_accuracy(network, root, class_map=str(class_map_beside(out))) == 100
    assert timms_accuracy(network, root) < 20  # in timm's own order


@pytest.mark.parametrize("order", [NUMBERS, list(reversed(PLAIN))])
def test_weights_of_another_order_are_evaluated_by_name(
    order: list[str], run: RunDir, root: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    """As timm would have trained them: the outputs stand in its order."""
    state = read_weights(run.path).states["raw"]
    places = [PLAIN.index(name) for name in order]
    other = {
        name: value[places] if name.startswith("head.classifier") else value for name, value in state.items()
    }
    torch.save(other, tmp_path / "other.pth")
    without = evaluate("--init-from", "other.pth", root=root)
    assert without.top1 < 20
    assert (
        "other.pth does not name its classes, and the order of the data's ('1', '10', '11', '12', '2' and 7"
        " more) is" in without.err
    )
    (tmp_path / "map.txt").write_text("\n".join(order), encoding="utf-8")
    shutil.copy(tmp_path / "map.txt", tmp_path / "other.classes.txt")
    for words in (["--class-map", "map.txt"], []):
        done = evaluate("--init-from", "other.pth", *words, "--per-class", "out.csv", root=root)
        assert (done.code, done.top1) == (0, 100)
        assert "other.pth has its classes in another order" in done.err
        with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
            assert [
                (row["class"], row["name"], row["images"], row["top1"]) for row in csv.DictReader(file)
            ] == [(str(output), name, "2", "100.0000") for output, name in enumerate(order)]


# Some of the classes, as ImageNet-A has them.


def by_hand(network: nn.Module, config: RunConfig) -> dict[str, float]:
    """The accuracy of each class of the split `hard`, among the outputs of its classes alone."""
    source, found = (
        make_source(
            config.model_copy(update={"data": config.data.model_copy(update={"train_split": "hard"})}), "val"
        ),
        {},
    )
    mean, std = (torch.tensor(getattr(config.data, name))[:, None, None] for name in ("mean", "std"))
    names = source.class_names
    assert names
    for label, name in enumerate(names):
        images = [np.array(source[number][0]) for number in range(len(source)) if source[number][1] == label]
        x = torch.stack([(torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std for image in images])
        with torch.no_grad():
            logits = network.eval()(x)[:, [PLAIN.index(other) for other in names]]
        found[name] = 100 * float((logits.argmax(1) == label).double().mean())
    return found


@pytest.mark.parametrize("train", ["with", "without"])
@pytest.mark.parametrize("source", ["run", "file", "map", "ls"])
def test_some_of_the_classes_are_evaluated_among_their_outputs(
    source: str, train: str, run: RunDir, root: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    if train == "without":
        shutil.copytree(root / "hard", tmp_path / "data" / "hard")
    data = root if train == "with" else tmp_path / "data"
    network = build_model(config_of(root).ours)
    copy_weights(network, read_weights(run.path).states["raw"], "")
    classifier: Any = network.get_classifier()
    ten, two, other = (PLAIN.index(name) for name in ("10", "2", "1"))
    for parameter in classifier.parameters():
        parameter.data[[ten, two]] = parameter.data[[two, ten]]  # of the three classes, only 7 is still right
    classifier.bias.data[other] = 100  # and none is among all outputs
    torch.save(network.state_dict(), tmp_path / "x.pth")
    words: list[str | Path] = ["--init-from", tmp_path / "x.pth"]
    if source == "run":
        copy = Path(shutil.copytree(run.path, tmp_path / "run"))
        checkpoints = Checkpoints(copy / "checkpoint")
        state = checkpoints.newest()
        assert state is not None
        state["engine"]["model"] = network.state_dict()
        checkpoints.save(10**6, state)
        words = ["--init-from", copy]
    elif source == "file":
        (tmp_path / "x.classes.txt").write_text(to_class_map(PLAIN) or "", encoding="utf-8")
    else:
        refused = evaluate(*words, "--set=data.val_split=hard", root=data)
        assert refused.code == 2
        assert len(refused.err.splitlines()) == 1
        advice = "so does `LC_ALL=C ls FOLDER > FILE`"
        assert advice in refused.err
        line = (
            f"LC_ALL=C ls {root / 'train'} > names.txt"
            if source == "ls"
            else f"echo {' '.join(PLAIN)} | tr ' ' '\\n' > names.txt"
        )
        subprocess.run(line, shell=True, check=True, cwd=tmp_path)
        words += ["--class-map", "names.txt"]
    done = evaluate(*words, "--set=data.val_split=hard", "--per-class", "out.csv", root=data)
    assert done.code == 0, done.err
    expected = by_hand(network, config_of(data, data__val_split="hard"))
    assert ": 9 images of 32 px, crop 1 center, 3 of 12 classes\n" in done.out
    assert "hard has 3 of the 12 classes of " in done.err
    assert done.top1 == pytest.approx(sum(expected.values()) / 3, abs=6e-3)
    assert expected == {"10": 0, "2": 0, "7": 100}
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            (row["class"], row["name"], row["images"], float(row["top1"])) for row in csv.DictReader(file)
        ]
    assert rows == [(str(PLAIN.index(name)), name, "3", expected[name]) for name in ("10", "2", "7")]


def shards_of(folder: Path, classes: list[str], images: int = 2) -> RunConfig:
    """A run on a shard in which the labels of the images are the places of their classes."""
    members: dict[str, bytes] = {}
    for label, name in enumerate(classes):
        for number in range(images):
            file = io.BytesIO()
            picture(name, 0.7).save(file, "PNG")
            members |= {f"{name}/{number}.png": file.getvalue(), f"{name}/{number}.cls": str(label).encode()}
    write_tar(folder / "val.tar", members)
    return config_of(folder, data__dataset="shards", data__val_split="val.tar")


def test_shards_without_images_of_the_last_classes_are_evaluated_on_all_outputs(
    run: RunDir, tmp_path: Path
) -> None:
    config = shards_of(tmp_path, PLAIN[:10])
    torch.save(read_weights(run.path).states["raw"], tmp_path / "x.pth")
    for source, names in ((run.path, PLAIN), (tmp_path / "x.pth", None)):
        found = evaluate_found(find_file(str(source)), config)["raw"]
        assert (found.metrics.top1, found.metrics.images, found.labels.names, found.labels.outputs) == (
            100,
            20,
            names,
            None,
        )
        assert len(found.classes) == 12


def test_shards_of_some_of_the_classes_are_matched_by_name(run: RunDir, tmp_path: Path) -> None:
    found = evaluate_found(find_file(str(run.path)), shards_of(tmp_path, ["10", "2", "7"]))["raw"]
    assert (found.metrics.top1, found.labels.names, found.labels.outputs) == (
        100,
        ["10", "2", "7"],
        [1, 4, 9],
    )


# What cannot be matched.


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            [*PLAIN[:-1], "13"],
            (
                r"x\.pth has no class '9' of the data, but '1', '10', '11', '12', '2' and 7 more; --class-map"
                r" FILE renames"
            ),
        ),
        (
            [f"n{name}" for name in PLAIN],
            r"x\.pth has no classes '1', '10', '11', '12', '2' and 7 more of the data, but 'n1'",
        ),
        (PLAIN[1:], "names 11 classes, the model has 12 outputs"),
        ([*PLAIN, "1"], r"x\.classes\.txt names '1' in line 1 and again in line 13$"),
        (["", *PLAIN], r"x\.classes\.txt has no class name in line 1$"),
        ([""], r"x\.classes\.txt is empty$"),
    ],
)
def test_names_that_do_not_match_are_refused(
    names: list[str], said: str, run: RunDir, root: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    torch.save(read_weights(run.path).states["raw"], tmp_path / "x.pth")
    (tmp_path / "x.classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    done = evaluate("--init-from", "x.pth", root=root)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert re.search(said, done.err), done.err
    (tmp_path / "x.classes.txt").rename(tmp_path / "map.txt")
    done = evaluate("--init-from", "x.pth", "--class-map", "map.txt", root=root)
    assert (done.code, "x.pth" in done.err, "--class-map FILE" in done.err) == (2, False, False), done.err


def test_a_class_map_that_contradicts_the_file_beside_it_is_refused(
    run: RunDir, root: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    export(run.path, tmp_path / "x.safetensors")
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["classes"]) == PLAIN
    (tmp_path / "x.classes.txt").rename(tmp_path / "right.txt")
    # in the Hub's cache there is no file beside it
    assert read_weights(tmp_path / "x.safetensors").classes == PLAIN
    (tmp_path / "x.classes.txt").write_text(to_class_map(NUMBERS) or "", encoding="utf-8")
    done = evaluate("--init-from", "x.safetensors", root=root)
    assert (done.code, done.err) == (
        2,
        (
            "x.classes.txt differs from the classes of x.safetensors; move it away, or choose one with"
            " --class-map\n"
        ),
    )
    chosen = evaluate("--init-from", "x.safetensors", "--class-map", "right.txt", root=root)
    assert (chosen.code, chosen.top1) == (0, 100)


@pytest.mark.parametrize("metadata", [{}, {"classes": "twelve"}, {"classes": "{}"}, {"classes": "[1, 2]"}])
def test_metadata_of_others_names_no_classes(metadata: dict[str, str], tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "x.safetensors", metadata)
    assert read_weights(tmp_path / "x.safetensors").classes is None


@pytest.mark.parametrize("names", [[" ant", "bee"], ["ant", "b\nee"], ["ant", ""], ["a\x85t", "bee"]])
def test_names_that_are_no_lines_make_no_class_map(names: list[str], run: RunDir, tmp_path: Path) -> None:
    assert to_class_map(names) is None
    copy = RunDir(Path(shutil.copytree(run.path, tmp_path / "run")))
    state = Checkpoints(copy.checkpoints).newest()
    assert state is not None
    Checkpoints(copy.checkpoints).save(10**6, state | {"data": {"classes": names}})
    assert export(copy.path, tmp_path / "x.pth").endswith(
        "; it has no class map, because a name of its classes is not one line of text"
    )
    assert not class_map_beside(tmp_path / "x.pth").exists()
    del state["data"]  # as checkpoints of before had none
    Checkpoints(copy.checkpoints).save(10**6 + 1, state)
    assert export(copy.path, tmp_path / "x.pth").endswith(
        "; it has no class map, because the checkpoint does not name the classes"
    )


def test_data_without_names_keeps_its_labels_and_has_the_names_of_the_weights(
    run: RunDir, root: Path
) -> None:
    source = make_source(config_of(root), "val")
    items = Pictures([(source[number][0], source[number][1]) for number in range(len(source))])
    config, found = config_of(None, data__dataset="custom/numbers"), find_run(config_of(root), run)
    nameless = evaluate_found(found, config, data=items)["raw"]  # type: ignore[arg-type]
    assert (nameless.metrics.top1, nameless.labels.names, nameless.labels.outputs) == (100, PLAIN, None)
    items = Pictures([(picture, NUMBERS.index(PLAIN[label])) for picture, label in items.items], NUMBERS)
    with_init_digest = evaluate_found(found, config, data=items)["raw"]  # type: ignore[arg-type]
    assert (with_init_digest.metrics.top1, with_init_digest.labels.names) == (100, NUMBERS)


# Fine-tuning.


def test_fine_tuning_matches_the_classifier_by_name(
    run: RunDir, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights whose outputs are in timm's order start as accurate as they are."""
    places = [PLAIN.index(name) for name in NUMBERS]
    state = read_weights(run.path).states["raw"]
    torch.save(
        {name: value[places] if "classifier" in name else value for name, value in state.items()},
        tmp_path / "x.pth",
    )
    config = with_init_digest(
        config_of(root, system__init_from=str(tmp_path / "x.pth"), recipe__epochs=1, recipe__lr=1e-12)
    )
    wrong = train(config, prepare(tmp_path / "wrong", config).path)
    assert wrong.top1 is not None
    assert wrong.top1 < 20
    assert caplog.messages == [
        f"{tmp_path / 'x.pth'} does not name its classes, and the order of the data's ('1', '10', '11', '12',"
        " '2' and 7 more) is that of torchvision and of this project, not timm's: if it was trained"
        " elsewhere, its outputs may be other classes; --class-map names them"
    ]
    caplog.clear()
    (tmp_path / "x.classes.txt").write_text(to_class_map(NUMBERS) or "", encoding="utf-8")
    assert train(config, prepare(tmp_path / "right", config).path).top1 == 100
    assert caplog.messages == [
        f"{tmp_path / 'x.pth'} has its classes in another order ('1', '2', '3', '4', '5' and 7 more) than the"
        " data ('1', '10', '11', '12', '2' and 7 more); they are matched by name"
    ]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (None, None),
        (PLAIN, None),
        (
            [f"n{name}" for name in PLAIN],
            (
                "the classifier starts from that of other classes: {} has '1', .* and 7 more, the data 'n1',"
                " 'n10'"
            ),
        ),
    ],
)
def test_a_classifier_of_other_classes_of_the_same_number_is_kept(
    classes: list[str] | None, said: str | None, run: RunDir, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_init_digest(config_of(root, system__init_from=str(run.path)))
    network = build_model(config.ours)
    initialize_from(network, config, classes)
    state = read_weights(run.path).states["raw"]
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert len(caplog.messages) == (said is not None)
    assert said is None or re.match(said.format(run.path), caplog.messages[0])
