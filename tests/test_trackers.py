"""TensorBoard and W&B show what metrics.jsonl holds, each line once however often the run was killed, and
never stop a training.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roadmap import ROOT
from roadmap.config import RunConfig
from roadmap.errors import ConfigError
from roadmap.records import RunDir, prepare
from roadmap.steps import load_roadmap, parse_overrides, resolve
from roadmap.train import train
from roadmap.training.callbacks import Callback, Callbacks, check_trackers, make_trackers, run_id

TINY = ["data.copies=1", "model.depths=[1, 1, 1, 1]", "recipe.epochs=2", "system.log_every=4"]
# iterations: there is a checkpoint of the first, and a line of metrics between the two
EPOCH, KILLED = 18, 22
LOG_HEADER, PIECE, BLOCK, WHOLE, LAST = 7, struct.Struct("<IHB"), 32768, 1, 4  # of the log that W&B writes
BOTH = "system.trackers=[tensorboard, wandb]"


def config_of(*more: str) -> RunConfig:
    return resolve(load_roadmap(), "gelu", profile="digits", overrides=parse_overrides([*TINY, *more]))


def lines(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]


def figures(run: RunDir) -> list[dict[str, Any]]:
    return [
        {
            name: value
            for name, value in line.items()
            if name not in ("seconds", "data_seconds", "images_per_s")
        }
        for line in lines(run)
    ]


class Killed(BaseException):
    """What no handler of errors is meant to catch."""


class KillAt(Callback):
    def __init__(self, iteration: int) -> None:
        self.left = iteration

    def on_step(self) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    home = str(tmp_path_factory.mktemp("wandb"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
            patch.setenv(f"WANDB_{name}", home)
        for name, value in {"MODE": "offline", "ERROR_REPORTING": "false", "SILENT": "true"}.items():
            patch.setenv(f"WANDB_{name}", value)
        yield


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that nothing disturbed and nobody tracked."""
    config = config_of()
    run = prepare(tmp_path_factory.mktemp("quiet"), config)
    with make_trackers(config, run.path) as trackers:
        train(config, run.path, callback=trackers)
    return run


@pytest.fixture(scope="module")
def tracked(offline: None, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that was killed in its second epoch, after a line of metrics that its checkpoint does not know,
    and then finished.
    """
    config = config_of(BOTH)
    run = prepare(tmp_path_factory.mktemp("tracked"), config)
    with pytest.raises(Killed), make_trackers(config, run.path) as trackers:
        train(config, run.path, callback=Callbacks([trackers, KillAt(KILLED)]))
    assert EPOCH < lines(run)[-1]["iteration"] < KILLED
    with make_trackers(config, run.path) as trackers:
        assert train(config, run.path, callback=trackers).attempts == 2
    return run


def test_a_tracked_run_has_the_metrics_of_one_that_is_not(tracked: RunDir, quiet: RunDir) -> None:
    assert figures(tracked) == figures(quiet)
    assert not {"tensorboard", "wandb"} & {path.name for path in quiet.path.iterdir()}


def test_tensorboard_shows_every_value_of_the_metrics_once(tracked: RunDir) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list((tracked.path / "tensorboard").iterdir())) == 2
    accumulator = EventAccumulator(str(tracked.path / "tensorboard"))
    accumulator.Reload()
    shown = {
        name: [(event.step, event.value) for event in accumulator.Scalars(name)]
        for name in accumulator.Tags()["scalars"]
    }
    expected: dict[str, list[tuple[int, Any]]] = {}
    for line in lines(tracked):
        for name, value in line.items():
            if name not in ("kind", "iteration") and value is not None:
                expected.setdefault(f"{line['kind']}/{name}", []).append(
                    (line["iteration"], pytest.approx(value, rel=1e-6))
                )
    assert {"epoch/top1", "train/train_loss", "train/lr"} <= set(shown)
    assert shown == expected


def test_tensorboard_shows_the_configuration(tracked: RunDir) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(tracked.path / "tensorboard"))
    accumulator.Reload()
    (event,) = accumulator.Tensors("config.yaml/text_summary")
    assert "step: gelu" in event.tensor_proto.string_val[0].decode()


def wandb_records(folder: Path) -> list[Any]:
    """All that W&B has written down in the folder of an offline run."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    return [wandb_internal_pb2.Record.FromString(entry) for entry in entries(file.read_bytes())]


def entries(log: bytes) -> Iterator[bytes]:
    """The entries of a log in LevelDB's format, which its own blocks of 32 KiB may cut into pieces."""
    place, entry = LOG_HEADER, b""
    while place < len(log):
        if BLOCK - place % BLOCK < PIECE.size:
            place += BLOCK - place % BLOCK
        _, length, kind = PIECE.unpack_from(log, place)
        entry += log[place + PIECE.size : place + PIECE.size + length]
        place += PIECE.size + length
        if kind in (WHOLE, LAST):
            yield entry
            entry = b""


def wandb_attempts(run: RunDir) -> list[list[Any]]:
    return sorted(map(wandb_records, (run.path / "wandb").glob("offline-run-*")), key=started)


def started(records: list[Any]) -> float:
    (run,) = [record.run for record in records if record.HasField("run")]
    return float(run.start_time.seconds + run.start_time.nanos / 1e9)


def test_both_attempts_are_one_run_of_wandb(tracked: RunDir) -> None:
    config = config_of(BOTH)
    attempts = wandb_attempts(tracked)
    assert len(attempts) == 2
    for records in attempts:
        (run,) = [record.run for record in records if record.HasField("run")]
        assert (run.project, run.run_group, run.display_name, list(run.tags)) == (
            "convnext_t",
            "gelu",
            "gelu-seed0",
            ["digits"],
        )
        assert run.run_id == run_id(config)
        sent = {
            update.key: json.loads(update.value_json)
            for update in run.config.update
            if update.key != "_wandb"
        }
        assert sent == config.model_dump(mode="json")


def test_wandb_has_every_value_of_the_metrics(tracked: RunDir) -> None:
    shown: dict[tuple[int, str], Any] = {}
    for records in wandb_attempts(tracked):
        for record in records:
            items = {
                item.nested_key[0]: json.loads(item.value_json)
                for item in record.history.item
                if item.nested_key
            }
            shown |= {
                (items["_step"], name): value for name, value in items.items() if not name.startswith("_")
            }
    expected = {
        (line["iteration"], f"{line['kind']}/{name}"): value
        for line in lines(tracked)
        for name, value in line.items()
        if name not in ("kind", "iteration") and value is not None
    }
    assert len(expected) > 40
    assert shown == expected


def test_wandb_is_not_shown_again_what_it_has(offline: None, tmp_path: Path) -> None:
    from roadmap.training.callbacks import WandB

    tracker, shown = WandB(config_of(), tmp_path), []
    tracker._run = SimpleNamespace(starting_step=9, log=lambda figures, step: shown.append(step))
    for iteration in (4, 8, 9, 12):
        tracker.on_log({"kind": "train", "iteration": iteration, "lr": 0.1})
    assert shown == [9, 12]


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"step": "layer_norm"}, {"profile": None}, {"roadmap": "convnext_b"}]
)
def test_another_run_is_another_run_of_wandb(other: dict[str, Any]) -> None:
    config = config_of()
    assert run_id(config.model_copy(update=other)) != run_id(config)
    assert run_id(config_of("recipe.lr=0.5")) != run_id(config)
    assert run_id(config_of(BOTH, "system.workers=1")) == run_id(config)


@pytest.mark.parametrize("gone", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_line_before_anything_is_trained(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(BOTH)
    check_trackers(config)
    monkeypatch.setitem(sys.modules, gone, None)
    for attempt in (lambda: check_trackers(config), lambda: make_trackers(config, tmp_path)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert (
            str(caught.value)
            == f"system.trackers '{gone}' is not installed; pip install 'convnext-roadmap[{gone}]'"
        )
    check_trackers(config_of())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_happens_to_be_called_wandb_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="'wandb' is not installed"):
        check_trackers(config_of("system.trackers=[wandb]"))


def test_checking_the_trackers_imports_none_of_them() -> None:
    probe = (
        "import sys, roadmap.training.callbacks; print([name for name in ('torch', 'tensorboard', 'wandb') if"
        " name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Frail(Callback):
    """Notes what it is told, and fails when it is told `word`."""

    def __init__(self, word: str = "") -> None:
        self.word, self.told = word, list[str]()

    def _hear(self, word: str) -> None:
        self.told.append(word)
        if word == self.word:
            raise ConnectionError("the network is gone")

    def on_setup(self) -> None:
        self._hear("on_setup")

    def on_train_start(self, done: int, total: int) -> None:
        self._hear("on_train_start")

    def on_step(self) -> None:
        self._hear("on_step")

    def on_log(self, record: dict[str, Any]) -> None:
        self._hear("on_log")

    def on_end(self) -> None:
        self._hear("on_end")


@pytest.mark.parametrize("word", ["on_setup", "on_train_start", "on_step", "on_log", "on_end"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(
    word: str, quiet: RunDir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of()
    run = prepare(tmp_path, config)
    frail, sound = Frail(word), Frail()
    with Callbacks([frail, sound]) as watches:
        assert train(config, run.path, callback=watches).status == "done"
    assert [message for message in caplog.messages if "Frail" in message] == [
        "Frail fails and is left out from here on: ConnectionError: the network is gone"
    ]
    assert frail.told.count(word) == (2 if word == "on_end" else 1)
    assert frail.told[-2:] == [word, "on_end"]
    assert sound.told.count("on_step") == 2 * EPOCH
    assert sound.told.count("on_log") == len(lines(run))
    assert (sound.told[:2], sound.told[-1]) == (["on_setup", "on_train_start"], "on_end")
    assert figures(run) == figures(quiet)


@pytest.fixture
def logged_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without an account, to be reached where nobody listens."""
    import wandb

    for name, place in {"HOME": "", "NETRC": "/netrc", "WANDB_CONFIG_DIR": "/wandb"}.items():
        monkeypatch.setenv(name, f"{tmp_path}{place}")
    for name, value in {
        "MODE": "online",
        "BASE_URL": "http://127.0.0.1:9",
        "ERROR_REPORTING": "false",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # it reads its variables once in a process
    yield
    wandb.teardown()


def test_who_is_not_logged_in_at_wandb_trains_all_the_same(
    logged_out: None, quiet: RunDir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of("system.trackers=[wandb]")
    run = prepare(tmp_path, config)
    with make_trackers(config, run.path) as trackers:
        assert train(config, run.path, callback=trackers).status == "done"
    said = [
        message
        for message in caplog.messages
        if message.startswith("WandB fails and is left out from here on: ")
    ]
    assert len(said) == 1
    assert figures(run) == figures(quiet)
