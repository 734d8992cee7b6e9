"""Planning at scale: what a plan reads and checks grows with its runs, and what runs share is looked at once.

Counted, not timed.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roadmap import ROOT
from roadmap.config import RunConfig
from roadmap.data.preflight import check_data
from roadmap.records import prepare
from roadmap.steps import load_roadmap, resolve
from slurm.worker import next_open
from tests.benchmark_collect import PROFILE, fill
from tests.helpers import commands
from tests.helpers.images import write_folder

STEPS = len(load_roadmap().steps)
# Runs commands, and prints for each how often it has opened or listed files, by their names.
COUNT = """
import contextlib, io, json, os, sys
from collections import Counter
counts = Counter()
def count(event, arguments):
    if event in ("open", "os.scandir"):
        counts[os.path.basename(os.fsdecode(arguments[0])) \
if isinstance(arguments[0], str | bytes | os.PathLike) else ""] += 1
sys.addaudithook(count)
from roadmap.cli.options import main_of
from slurm.submit import parser, run
import slurm.submission  # so that no file of the project or a library is counted
for words in json.loads(sys.argv[1]):
    counts.clear()
    sys.argv[1:] = words
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main_of(parser(), run)
    print(json.dumps([code, said.getvalue(), counts]))
"""


def counted(*lines: list[str]) -> Iterator[tuple[str, Counter[str]]]:
    """What submit.py prints given each list of words, and which files it opens or lists how often."""
    words = [sys.executable, "-c", COUNT, json.dumps(lines)]
    done = commands.run(words, cwd=ROOT, check=True)
    for line in done.stdout.splitlines():
        code, said, counts = json.loads(line)
        assert code == 0, said
        yield said, Counter(counts)


def test_a_dry_run_reads_each_result_a_fixed_number_of_times(tmp_path: Path) -> None:
    seeds = [2, 8]
    for number in seeds:
        fill(tmp_path / str(number), number * STEPS)
    options = ["--dry-run", "--cluster", "local", "--profile", PROFILE]
    found = counted(*[[*options, "--runs", str(tmp_path / str(n)), "--seeds", str(n + 1)] for n in seeds])
    for number, (said, counts) in zip(seeds, found, strict=True):
        finished = number * STEPS
        assert re.search(rf"{finished + STEPS} runs: {finished} done, {STEPS} pending; .*\nestimate: ", said)
        assert f"for {STEPS} runs; evaluation" in said
        assert counts["result.json"] == (finished + STEPS) + finished  # for the states, and for the estimate
        assert sum(counts.values()) < 3 * finished + 12 * STEPS


def test_a_submission_checks_the_data_of_all_runs_once(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", train=90)
    command = [
        "--only",
        "failed",
        "--cluster",
        "local",
        "--profile",
        "imagenet",
        "--runs",
        str(tmp_path / "runs"),
        "--seeds",
        "4",
    ]
    given = [
        f"system.data_dir={data}",
        "model.num_classes=3",
        "recipe.global_batch=256",
        "recipe.local_batch=256",
        "system.micro_batch=256",
    ]
    ((said, counts),) = counted(command + [word for each in given for word in ("--set", each)])
    assert said == "no run has failed\n"
    assert [counts[name] for name in ("ant", "bee", "cat")] == [2, 2, 2]  # a class folder of both splits


def configs_of(data: Path, *batches: int, **given: Any) -> list[RunConfig]:
    values = {"data.dataset": "folder", "system.data_dir": str(data), "model.num_classes": 3}
    sizes = [{"recipe.global_batch": batch, "recipe.local_batch": batch} for batch in batches]
    return [resolve(load_roadmap(), "gelu", overrides=values | size | given) for size in sizes]


def test_a_shared_check_holds_each_batch_and_each_model_against_the_data(tmp_path: Path) -> None:
    """Images are counted up to the largest batch: fewer must be found too few for that one alone."""
    data = write_folder(tmp_path / "data", train=5)
    check_data(*configs_of(data, 8, 14))
    for batches in ((8, 16, 14), (16, 8)):
        with pytest.raises(Exception, match=r"has 15 training images, less than a batch of 16$"):
            check_data(*configs_of(data, *batches))
    with pytest.raises(Exception, match=r"has 3 classes, the model 4"):
        check_data(*configs_of(data, 8), *configs_of(data, 8, **{"model.num_classes": 4}))


def test_a_worker_reads_the_result_of_a_finished_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 4)
    finished = sorted(str(path.parent) for path in tmp_path.rglob("result.json"))
    pending = prepare(tmp_path, resolve(load_roadmap(), "gelu", profile="digits"))
    left = [*finished, str(pending.path)]
    assert next_open(left, set()) == (pending, False)
    assert left == [str(pending.path)]
    assert next_open(left, {pending.path}) == (None, False)


def test_seeds_of_a_step_have_the_text_and_the_hash_of_their_own(tmp_path: Path) -> None:
    roadmap = load_roadmap()
    for step in ("resnet50", "gelu"):
        config = resolve(roadmap, step, profile="digits")
        for seed in (0, 12, 2**32 - 1):
            copied, resolved = (
                config.model_copy(update={"seed": seed}),
                resolve(roadmap, step, profile="digits", seed=seed),
            )
            assert (copied, copied.hash, copied.to_yaml()) == (resolved, resolved.hash, resolved.to_yaml())
            path = tmp_path / "config.yaml"
            path.write_text(copied.to_yaml(), encoding="utf-8")
            assert RunConfig.read(path) == resolved
    noisy = [
        resolve(roadmap, "gelu", profile="digits", overrides={"data.noise": noise}).to_yaml()
        for noise in (0.0, -0.0)
    ]
    assert noisy[0] != noisy[1], "equal numbers may have different texts"


def test_preparing_a_run_again_parses_its_configuration_only_where_it_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roadmap = load_roadmap()
    config, other = (
        resolve(roadmap, "gelu", profile="digits", overrides={"system.workers": workers})
        for workers in (0, 2)
    )
    run = prepare(tmp_path, config)
    read = RunConfig.read

    def parsed(path: Path) -> RunConfig:
        seen.append(path)
        return read(path)

    seen: list[Path] = []
    monkeypatch.setattr(RunConfig, "read", parsed)
    assert (prepare(tmp_path, config), seen) == (run, [])
    assert (prepare(tmp_path, other), seen) == (run, [run.config])
    assert read(run.config) == other
