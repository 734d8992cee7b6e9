"""Clusters are checked before anything is submitted, and a dry run shows what would be, without Slurm and
without a trace.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from roadmap import ROOT
from roadmap.errors import ConfigError
from roadmap.records import RunDir, prepare, status
from roadmap.steps import load_roadmap, resolve
from roadmap.strict_yaml import read_yaml
from slurm import CLUSTER_YAML
from slurm.cluster import GENERAL, KEYS, OWN, Cluster, load_cluster, minutes_of
from slurm.executor import Array, arrays_of, parameters, script, teardown
from slurm.jobs import take_snapshot, tree_hash, verify_snapshot
from slurm.submission import estimate
from slurm.worker import FAILED, STOPPED, crashes, must_requeue
from tests.helpers.reports import finished


def cluster(**values: Any) -> Cluster:
    return Cluster.model_validate({"scheduler": "slurm", **values})


def runs(folder: Path, steps: list[str], seeds: int = 1) -> list[RunDir]:
    roadmap = load_roadmap()
    return [
        prepare(folder, resolve(roadmap, step, profile="digits", seed=seed))
        for seed in range(seeds)
        for step in steps
    ]


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("90", 90),
        ("10:30", 10),
        ("1:30:00", 90),
        ("2-00:00:00", 2880),
        ("2-12", 3600),
        ("0-00:05:00", 5),
        ("1-10:30", 2070),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(time: str, minutes: int) -> None:
    assert minutes_of(time) == minutes


@pytest.mark.parametrize("time", ["", "0", "1:2:3:4", "a day", "UNLIMITED", "00:00:59", "-5"])
def test_no_time_limit_is_guessed(time: str) -> None:
    with pytest.raises(ValueError, match="time limit"):
        minutes_of(time)


def test_the_shipped_clusters_are_valid() -> None:
    assert load_cluster("local").scheduler == "local"
    example = load_cluster("example")
    assert (example.world, example.gpus, example.tasks) == (32, 32, 8)
    assert (example.of("resnet50").world, example.of("gelu").world) == (8, 32)
    assert load_cluster("slurm") == cluster()


BAD = {
    "unknown key": (
        "{scheduler: slurm, partitoin: gpu}",
        "c.yaml:3:28: cluster 'mine': unknown key 'partitoin'; did you mean 'partition'?",
    ),
    "no scheduler": ("{nodes: 2}", "c.yaml:3:3: cluster 'mine': scheduler: 'scheduler' is missing"),
    "bad time": (
        "{scheduler: slurm, time: soon}",
        "c.yaml:3:28: cluster 'mine': time: write a time limit as days-hours:minutes:seconds",
    ),
    "no time left": (
        "{scheduler: slurm, time: 00:01:00, signal_seconds: 60}",
        "signal_seconds 60 leaves nothing of a time of 00:01:00",
    ),
    "two numbers of processes": (
        "{scheduler: slurm, gpus_per_node: 8, tasks_per_node: 4}",
        "a process drives one GPU",
    ),
    "runs of several processes that share a GPU": (
        "{scheduler: slurm, gpus_per_node: 8, runs_per_gpu: 4}",
        "c.yaml:3:46: cluster 'mine': runs_per_gpu: needs nodes and gpus_per_node to be 1, not 1 and 8, since"
        " only runs of one process can share a GPU",
    ),
    "such runs of a step": (
        "{scheduler: slurm, gpus_per_node: 1, runs_per_gpu: 4, steps: {gelu: {nodes: 2}}}",
        "cluster 'mine': steps.gelu.runs_per_gpu: needs nodes and gpus_per_node to be 1, not 2 and 1",
    ),
    "more runs on a GPU than at a time": (
        "{scheduler: slurm, gpus_per_node: 1, runs_per_gpu: 4, parallel: 3}",
        "runs_per_gpu: exceeds parallel, 3 runs at a time",
    ),
    "bad step": (
        "{scheduler: slurm, steps: {gelu: {nods: 2}}}",
        "c.yaml:3:43: cluster 'mine': steps.gelu.nods: unknown key; did you mean 'nodes'?",
    ),
    "bad step's value": (
        "{scheduler: slurm, steps: {gelu: {nodes: 0}}}",
        "c.yaml:3:43: cluster 'mine': steps.gelu.nodes: input should be greater than or equal to 1, not 0",
    ),
    "steps of steps": (
        "{scheduler: slurm, steps: {gelu: {steps: {}}}}",
        "steps.gelu.steps: cannot be set here",
    ),
    "bad key to collect": (
        "{scheduler: slurm, collect: {nods: 1}}",
        "c.yaml:3:38: cluster 'mine': collect.nods: unknown key",
    ),
    "bad value to collect": (
        "{scheduler: slurm, collect: {nodes: 0}}",
        "c.yaml:3:38: cluster 'mine': collect.nodes: input should be greater",
    ),
    "a key of the cluster's in a step": (
        "{scheduler: slurm, steps: {gelu: {parallel: 4}}}",
        "c.yaml:3:43: cluster 'mine': steps.gelu.parallel: cannot be set here, only for the cluster",
    ),
    "a number for a text": (
        "{scheduler: slurm, time: 90}",
        "c.yaml:3:28: cluster 'mine': time: input should be a valid string, not 90; write it in quotes, '90'",
    ),
    "a variable that no shell takes": (
        "{scheduler: slurm, environment: {B-C: '2'}}",
        "c.yaml:3:42: cluster 'mine': environment.B-C",
    ),
    "two kinds of memory": (
        "{scheduler: slurm, memory_gb: 9, memory_per_cpu_gb: 2}",
        (
            "c.yaml:3:42: cluster 'mine': memory_per_cpu_gb: conflicts with memory_gb; memory is each node's,"
            " each CPU's or each GPU's"
        ),
    ),
    "memory of GPUs that are not there": (
        "{scheduler: slurm, memory_per_gpu_gb: 2}",
        (
            "c.yaml:3:28: cluster 'mine': memory_per_gpu_gb: needs gpus_per_node, the number of GPUs; null"
            " where there are none"
        ),
    ),
    "a type of no GPUs": (
        "{scheduler: slurm, gpu_type: a100}",
        "c.yaml:3:28: cluster 'mine': gpu_type: needs gpus_per_node",
    ),
    "a step without GPUs": (
        "{scheduler: slurm, gpus_per_node: 1, gpu_type: a100, steps: {gelu: {gpus_per_node: 0}}}",
        (
            "cluster 'mine': steps.gelu.gpu_type: needs gpus_per_node, the number of GPUs; null where there"
            " are none"
        ),
    ),
    "a type with a number": (
        "{scheduler: slurm, gpus_per_node: 4, gpu_type: 'a100:4'}",
        (
            "c.yaml:3:46: cluster 'mine': gpu_type: write the type alone, such as a100, and their number as"
            " gpus_per_node, not 'a100:4'"
        ),
    ),
    "no options": (
        "{scheduler: slurm, sbatch: [exclusive]}",
        "c.yaml:3:28: cluster 'mine': sbatch: write options as `name: value`",
    ),
    "an option that a key sets": (
        "{scheduler: slurm, sbatch: {exclusive: true, mem_per_gpu: 4G}}",
        "c.yaml:3:54: cluster 'mine': sbatch.mem_per_gpu: is set by the key memory_per_gpu_gb",
    ),
    "one in a step": (
        "{scheduler: slurm, steps: {gelu: {sbatch: {time: 90}}}}",
        "c.yaml:3:52: cluster 'mine': steps.gelu.sbatch.time: is set by the key time",
    ),
    "GPUs as resources": (
        "{scheduler: slurm, sbatch: {gres: 'lscratch:100,gpu:a100:4'}}",
        (
            "c.yaml:3:37: cluster 'mine': sbatch.gres: ask for GPUs by gpus_per_node and gpu_type;"
            " gpu_request: gres makes --gres of them"
        ),
    ),
    "an option with its dashes": (
        "{scheduler: slurm, sbatch: {--mail-type: END}}",
        "sbatch.--mail-type: is not a long option of sbatch",
    ),
    "an option of one letter": (
        "{scheduler: slurm, sbatch: {w: node1}}",
        "c.yaml:3:37: cluster 'mine': sbatch.w: is not a long option of sbatch",
    ),
    "an option twice": (
        "{scheduler: slurm, sbatch: {mail-type: END, mail_type: FAIL}}",
        "c.yaml:3:53: cluster 'mine': sbatch.mail_type: is given twice",
    ),
    "a list of values": (
        "{scheduler: slurm, sbatch: {mail-type: [END, FAIL]}}",
        (
            "sbatch.mail-type: write a text, a number, true or false, and a list as Slurm does, with commas,"
            " not [END, FAIL]"
        ),
    ),
    "a value of two lines": (
        '{scheduler: slurm, sbatch: {mail-user: "a\\nb"}}',
        "sbatch.mail-user: holds a backslash or a line break",
    ),
}


@pytest.mark.parametrize(("entry", "message"), BAD.values(), ids=BAD)
def test_a_bad_entry_is_refused_at_its_place(
    entry: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        f"clusters:\n  local: {{scheduler: local}}\n  mine: {entry}\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError) as refused:
        load_cluster("mine", Path("c.yaml"))
    assert message in str(refused.value)
    assert load_cluster("local", Path("c.yaml")).scheduler == "local"


def test_runs_with_the_same_resources_share_an_array_cut_to_length(tmp_path: Path) -> None:
    planned = runs(tmp_path, ["resnet50", "gelu", "layer_norm"], seeds=3)
    arrays = arrays_of(cluster(steps={"gelu": {"nodes": 2}}), planned, pack=1, longest=4)
    assert [(array.cluster.nodes, len(array.groups)) for array in arrays] == [(1, 4), (1, 2), (2, 3)]
    assert sorted(run.path for array in arrays for group in array.groups for run in group) == sorted(
        run.path for run in planned
    )
    packed = arrays_of(cluster(), planned, pack=4, longest=100)
    assert [[len(group) for group in array.groups] for array in packed] == [[4, 4, 1]]


def test_runs_that_share_a_gpu_are_tasks_of_a_job(tmp_path: Path) -> None:
    given = cluster(
        gpus_per_node=1, runs_per_gpu=4, cpus_per_task=3, parallel=9, steps={"gelu": {"runs_per_gpu": 1}}
    )
    shared, alone = arrays_of(given, runs(tmp_path, ["resnet50", "gelu"], seeds=6), pack=1, longest=9)
    assert [len(group) for group in shared.groups] == [4, 2]
    assert [len(group) for group in alone.groups] == [1] * 6
    made = script(shared, tmp_path, tmp_path)
    for line in ("#SBATCH --ntasks-per-node=4", "#SBATCH --cpus-per-task=3", "#SBATCH --array=0-1%2"):
        assert f"{line}\n" in made
    for line in ("SLURM_KILL_BAD_EXIT=0", "SLURM_WAIT=0", "OMP_NUM_THREADS=3"):
        assert f"export {line}\n" in made
    assert "RUNS_PER_GPU" not in script(alone, tmp_path, tmp_path)
    assert [len(one.groups[0]) for one in arrays_of(given, runs(tmp_path, ["resnet50"], 6), 5, 9)] == [5]
    (single,) = arrays_of(given, runs(tmp_path, ["resnet50"], seeds=1), pack=1, longest=9)
    assert "#SBATCH --ntasks-per-node=1\n" in script(single, tmp_path, tmp_path)
    assert "RUNS_PER_GPU" not in script(single, tmp_path, tmp_path)
    small = given.collecting()
    assert parameters(small, "n", "s", tmp_path)["ntasks_per_node"] == 1
    theirs = cluster(gpus_per_node=1, runs_per_gpu=2, environment={"OMP_NUM_THREADS": "1"})
    assert "export OMP_NUM_THREADS=1" in parameters(theirs, "n", "s", tmp_path)["setup"]


def test_only_what_is_given_is_asked_of_slurm(tmp_path: Path) -> None:
    plain = parameters(cluster(), "name", "submission", tmp_path)
    asked = {
        "partition",
        "account",
        "qos",
        "mem",
        "mem_per_cpu",
        "mem_per_gpu",
        "constraint",
        "exclude",
        "dependency",
    }
    assert asked & plain.keys() == set()
    assert (plain["wckey"], plain["additional_parameters"]) == (None, {"requeue": True})
    full = parameters(
        cluster(partition="p", gpus_per_node=2, memory_gb=1.5, reservation="r"),
        "name",
        "submission",
        tmp_path,
        ["7", "8"],
    )
    assert (full["partition"], full["ntasks_per_node"], full["mem"]) == ("p", 2, "1536MB")
    assert full["dependency"] == "afterany:7:8"
    assert full["additional_parameters"] == {"requeue": True, "reservation": "r", "gpus-per-node": "2"}


def options(given: Cluster, folder: Path) -> set[str]:
    """What is asked of sbatch, but for what all jobs ask."""
    text = script(Array(given, (tuple(runs(folder, ["gelu"])),)), folder / "jobs", folder / "source")
    lines = [
        shlex.split(line)[1].removeprefix("--") for line in text.splitlines() if line.startswith("#SBATCH ")
    ]
    common = "comment cpus-per-task error job-name nodes ntasks-per-node open-mode output requeue signal time"
    return {line for line in lines if line.partition("=")[0] not in common.split()}


SITES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "GPUs of any type": ({"gpus_per_node": 4}, {"gpus-per-node=4"}),
    "GPUs of a type": ({"gpus_per_node": 4, "gpu_type": "h100"}, {"gpus-per-node=h100:4"}),
    "of a type that is a number": ({"gpus_per_node": 4, "gpu_type": 3090}, {"gpus-per-node=3090:4"}),
    "GPUs as resources": ({"gpus_per_node": 4, "gpu_request": "gres"}, {"gres=gpu:4"}),
    "of a type, and others": (
        {"gpus_per_node": 4, "gpu_type": "a100", "gpu_request": "gres", "sbatch": {"gres": "lscratch:9"}},
        {"gres=gpu:a100:4,lscratch:9"},
    ),
    "other resources beside GPUs": (
        {"gpus_per_node": 1, "sbatch": {"gres": "gpu_ram:9"}},
        {"gpus-per-node=1", "gres=gpu_ram:9"},
    ),
    "memory of a CPU": ({"memory_per_cpu_gb": 3.5}, {"mem-per-cpu=3584MB"}),
    "memory of a GPU": (
        {"gpus_per_node": 1, "memory_per_gpu_gb": 60},
        {"gpus-per-node=1", "mem-per-gpu=61440MB"},
    ),
    "all memory": ({"memory_gb": 0}, {"mem=0MB"}),
    "other options": (
        {
            "sbatch": {
                "mail_type": "END,FAIL",
                "nice": 100,
                "exclusive": True,
                "contiguous": False,
                "hint": None,
                "wckey": "a b",
            }
        },
        {"mail-type=END,FAIL", "nice=100", "exclusive", "wckey=a b"},
    ),
}


@pytest.mark.parametrize(("values", "asked"), SITES.values(), ids=SITES)
def test_a_site_is_asked_in_its_own_way(values: dict[str, Any], asked: set[str], tmp_path: Path) -> None:
    given = cluster(**values)
    assert options(given, tmp_path) == asked
    assert options(given.of("gelu"), tmp_path) == asked
    assert given.tasks == max(1, values.get("gpus_per_node", 0))


@pytest.mark.parametrize("option", sorted(OWN))
def test_no_option_has_two_homes(option: str) -> None:
    """Nor by a name that sbatch would take for it."""
    for name in {option, option.replace("-", "_"), option[:-1] if len(option) > 3 else option}:
        with pytest.raises(ValidationError, match=r"is set by the key|cannot be set"):
            cluster(sbatch={name: "1"})


def test_options_are_refused_for_keys_that_there_are() -> None:
    assert set(KEYS) <= Cluster.model_fields.keys()
    assert all(
        cluster(sbatch={name: "1"}).options == {name: "1"}
        for name in ("mem-bind", "time-min", "wait-all-nodes", "gpu-freq", *GENERAL)
    )


def test_a_step_adds_options_and_replaces_memory(tmp_path: Path) -> None:
    own = {"memory_per_gpu_gb": 9, "gpu_type": "h100", "sbatch": {"mail_type": None, "exclusive": True}}
    given = cluster(
        gpus_per_node=2,
        gpu_type="a100",
        memory_gb=99,
        sbatch={"mail-type": "END", "nice": 5},
        steps={"gelu": own},
    )
    assert options(given.of("resnet50"), tmp_path) == {
        "gpus-per-node=a100:2",
        "mem=101376MB",
        "mail-type=END",
        "nice=5",
    }
    assert options(given.of("gelu"), tmp_path) == {
        "gpus-per-node=h100:2",
        "mem-per-gpu=9216MB",
        "exclusive",
        "nice=5",
    }


def test_the_job_that_collects_is_small(tmp_path: Path) -> None:
    hardware = {"exclusive": True, "gpu-bind": "closest", "gres": "lscratch:9", "nodelist": "n[1-4]"}
    given = cluster(
        partition="gpu",
        account="a",
        nodes=4,
        gpus_per_node=8,
        gpu_type="a100",
        memory_per_gpu_gb=60,
        time="00:30:00",
        signal_seconds=900,
        sbatch=hardware | {"mail_type": "END", "wckey": "w"},
    )
    small = given.collecting()
    assert options(small, tmp_path) == {
        "partition=gpu",
        "account=a",
        "mem=61440MB",
        "mail-type=END",
        "wckey=w",
    }
    assert (small.nodes, small.tasks, small.gpus, minutes_of(small.time)) == (1, 1, 0, 60)
    changed = given.model_copy(
        update={
            "collect": {
                "partition": "cpu",
                "memory_per_cpu_gb": 2,
                "sbatch": {"wckey": None, "exclusive": True},
            }
        }
    )
    assert options(changed.collecting(), tmp_path) == {
        "partition=cpu",
        "account=a",
        "mem-per-cpu=2048MB",
        "mail-type=END",
        "exclusive",
    }
    assert options(cluster(memory_gb=0).collecting(), tmp_path) == set()
    assert options(cluster(memory_per_cpu_gb=2).collecting(), tmp_path) == {"mem-per-cpu=2048MB"}


def test_the_example_names_every_key() -> None:
    example = read_yaml(CLUSTER_YAML).value["clusters"].value["example"]
    assert set(example.value) == set(Cluster.model_fields)


ODD = 'it\'s  [a] "ü" $HOME *'


def test_a_script_quotes_the_folder_of_runs_whatever_its_letters(tmp_path: Path) -> None:
    planned = runs(tmp_path / ODD, ["gelu"])
    text = script(Array(cluster(), (tuple(planned),)), tmp_path / ODD / "jobs", tmp_path / ODD / "source")
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=True).stderr == ""
    options = dict(
        word.split("=", 1)
        for line in text.splitlines()
        if line.startswith("#SBATCH")
        for word in shlex.split(line)[1:]
        if "=" in word
    )
    assert options["--output"] == str(tmp_path / ODD / "jobs/SUBMISSION/%j_0_log.out")
    assert options["--error"] == str(tmp_path / ODD / "jobs/SUBMISSION/%j_0_log.err")


@pytest.mark.parametrize("task", [None, 0, 1])
def test_a_job_that_ends_names_its_own_runs_whatever_their_letters(
    task: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last lines of its script, which read them from a list."""
    python = tmp_path / ODD / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\nexit 7\n', encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    groups = [[tmp_path / ODD / "one", tmp_path / "two"], [tmp_path / "three", tmp_path / ODD / "*"]]
    (tmp_path / ODD / "runs.txt").write_text(
        "".join(shlex.join(map(str, group)) + "\n" for group in groups), encoding="utf-8"
    )
    lines = teardown(Array(cluster(retries=3), ((),)), tmp_path / ODD)
    environment = {"PATH": os.environ["PATH"]} | ({} if task is None else {"SLURM_ARRAY_TASK_ID": str(task)})
    shell = ["bash", "-c", "\n".join(["(exit 75)", *lines])]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.splitlines() == ["-m", "slurm.worker", "75", "3", *map(str, groups[task or 0])]


@pytest.mark.parametrize(
    ("scheduler", "folder", "tag"),
    [("local", "a%jb", "%j"), ("local", "%A", "%A"), ("slurm", "100%", "%"), ("slurm", "a\nb", "\n")],
)
def test_a_folder_that_would_be_read_as_a_pattern_is_refused_before_anything_is_written(
    scheduler: str, folder: str, tag: str, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(f"clusters: {{mine: {{scheduler: {scheduler}}}}}\n", encoding="utf-8")
    words = [
        "--profile",
        "digits",
        "--steps",
        "gelu",
        "--cluster",
        "mine",
        "--cluster-file",
        "c.yaml",
        "--runs",
        folder,
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "slurm/submit.py"), *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path / folder}: holds {tag!r}, which " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    ("before", "values", "after"),
    [
        (None, {}, ""),
        ("/mine", {}, ":/mine"),
        (None, {"setup": ("export PYTHONPATH=/site:/more",)}, ":/site:/more"),
        ("/mine", {"environment": {"PYTHONPATH": "/from file"}}, ":/from file"),
    ],
)
def test_the_snapshot_comes_before_what_is_on_the_path(
    before: str | None, values: dict[str, Any], after: str, tmp_path: Path
) -> None:
    lines = parameters(cluster(**values), "name", "submission", tmp_path / "a snapshot")["setup"]
    environment = {"PATH": os.environ["PATH"]} | ({} if before is None else {"PYTHONPATH": before})
    shell = ["bash", "-euc", "\n".join([*lines, 'printf %s "$PYTHONPATH"'])]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/a snapshot{after}"


def test_a_snapshot_is_complete_and_detects_a_change(tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path)
    assert (snapshot.name, take_snapshot(tmp_path)) == (f"source-{tree_hash()}", snapshot)
    assert [path.name for path in tmp_path.iterdir()] == [snapshot.name]
    check = (
        "import sys; from pathlib import Path; from slurm.jobs import verify_snapshot;"
        " verify_snapshot(Path(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONPATH": str(snapshot), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-B", "-c", check, str(snapshot)]
    assert subprocess.run(command, env=environment, capture_output=True, cwd=tmp_path).returncode == 0
    with pytest.raises(ConfigError, match="is the code that was imported"):
        verify_snapshot(snapshot)
    (snapshot / "steps.yaml").write_text("base: {}\n", encoding="utf-8")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert "was changed after it was taken" in done.stderr


def attempt(run: RunDir, number: int, outcome: str | None, saved: int | None = None) -> None:
    (run.path / "attempts").mkdir(exist_ok=True)
    record = {"number": number, "saved": saved} | ({"ended": "now", "outcome": outcome} if outcome else {})
    (run.path / "attempts" / f"{number:04d}.json").write_text(json.dumps(record), encoding="utf-8")


def test_a_stopped_run_is_requeued_and_one_that_crashes_a_few_times(tmp_path: Path) -> None:
    run = runs(tmp_path, ["gelu"])[0]
    assert must_requeue([run], FAILED, retries=2, restarts=1), "no attempt was made: the node failed"
    assert not must_requeue([run], FAILED, retries=2, restarts=2)
    attempt(run, 1, "stopped")
    assert must_requeue([run], STOPPED, retries=0)
    for number, outcome in ((2, "failed"), (3, None)):  # None was killed
        attempt(run, number, outcome)
    assert crashes(run, None) == 2
    assert must_requeue([run], 137, retries=2)
    assert not must_requeue([run], 137, retries=1)
    assert not must_requeue([run], 128 + 15, retries=9), "whoever cancels a job means it"
    attempt(run, 4, "stopped")
    assert crashes(run, None) == 0
    assert status(run).state == "stale"


def test_a_job_is_requeued_while_one_of_its_runs_may_be_retried(tmp_path: Path) -> None:
    bad, good = runs(tmp_path, ["resnet50", "gelu"])
    for number in (1, 2):
        attempt(bad, number, "failed")
    assert not must_requeue([bad], FAILED, retries=1, restarts=1)
    assert must_requeue([bad, good], FAILED, retries=1, restarts=1), "the good one was not tried"
    assert not must_requeue([bad, good], FAILED, retries=1, restarts=5), (
        "it has not begun one for three times"
    )


def test_only_crashes_that_have_saved_nothing_new_count(tmp_path: Path) -> None:
    """A long run on nodes that fail often gets on all the same; one that always fails at the same place does
    not.
    """
    run = runs(tmp_path, ["gelu"])[0]
    counted = []
    for number, saved in enumerate([None, 40, 80, None, 80, 90, None], 1):
        attempt(run, number, "failed" if number % 2 else None, saved)
        counted.append(crashes(run, None))
    assert counted == [1, 0, 0, 1, 2, 0, 1]


def dry_run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "slurm/submit.py"), "--dry-run", *words]
    environment = os.environ | {"PATH": str(folder / "nothing")}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


def test_a_dry_run_needs_no_slurm_and_leaves_nothing(tmp_path: Path) -> None:
    done = dry_run(tmp_path, "--cluster", "example", "--profile", "imagenet", "--seeds", "3")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "57 runs: 57 pending" in done.stdout
    assert re.findall(r"#SBATCH --array=(\S+)", done.stdout) == ["0-2%3", "0-53%4"]
    assert re.findall(r"#SBATCH --nodes=(\d+)", done.stdout) == ["1", "4", "1"]
    assert re.findall(r"#SBATCH --job-name=(\w+)", done.stdout) == ["convnext_t", "convnext_t", "collect"]
    assert done.stdout.count("#SBATCH --partition=cpu\n") == 1
    assert (
        done.stdout.count("#SBATCH --gpus-per-node=a100:8")
        == done.stdout.count("#SBATCH --ntasks-per-node=8")
        == 2
    )
    assert (
        done.stdout.count("#SBATCH --exclusive\n"),
        done.stdout.count("#SBATCH --mail-type=FAIL,TIME_LIMIT\n"),
    ) == (2, 3)
    assert re.search(r"estimate: [\d,]+\.\d GPU-hours for 57 runs", done.stdout)


@pytest.mark.parametrize("name", ["slurm", "local"])
def test_a_dry_run_warns_where_the_submission_would_miss_its_data(name: str, tmp_path: Path) -> None:
    words = ("--cluster", name, "--profile", "imagenet", "--steps", "gelu", "kernel_7")
    missing = dry_run(tmp_path, *words, "--set", f"system.data_dir={tmp_path}/nowhere")
    assert (missing.returncode, missing.stderr) == (0, "")
    why = f"{tmp_path}/nowhere does not exist; system.data_dir is the folder that holds the data"
    assert missing.stdout.endswith(f"\nwarning: without --dry-run, this fails here:\n{why}\n")
    assert (
        "warning" not in dry_run(tmp_path, "--cluster", name, "--profile", "digits", "--steps", "gelu").stdout
    )
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_there_is_not_is_refused_at_its_place(tmp_path: Path) -> None:
    entries = "  one: {scheduler: slurm, steps: {gelu: {nodes: 2}, resnt50: {nodes: 1}}}\n"
    (tmp_path / "c.yaml").write_text(f"clusters:\n{entries}", encoding="utf-8")
    done = dry_run(tmp_path, "--cluster-file", "c.yaml", "--profile", "digits")
    problem = "c.yaml:2:53: cluster 'one': steps: there is no step 'resnt50'; did you mean 'resnet50'?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", problem)


def test_a_cluster_file_sets_where_runs_are_trained(tmp_path: Path) -> None:
    """Its only entry needs no name; one of several does."""
    (tmp_path / "c.yaml").write_text(
        "clusters:\n  one: {scheduler: slurm, partition: moon}\n", encoding="utf-8"
    )
    words = ("--cluster-file", "c.yaml", "--profile", "digits", "--steps", "gelu", "--seeds", "1")
    assert "#SBATCH --partition=moon\n" in dry_run(tmp_path, *words).stdout
    with (tmp_path / "c.yaml").open("a", encoding="utf-8") as file:
        file.write("  two: {scheduler: local}\n")
    refused = dry_run(tmp_path, *words)
    problem = "c.yaml has the clusters one, two; choose one with --cluster\n"
    assert (refused.returncode, refused.stderr) == (2, problem)


def test_the_page_on_clusters_shows_what_a_dry_run_prints(tmp_path: Path) -> None:
    """Its command, on its first entry; tests/slurm has all of them taken by a Slurm."""
    page = (ROOT / "docs/slurm.md").read_text(encoding="utf-8")
    commands, entries = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("bash", "yaml"))
    (command,) = [block for block in commands if "--cluster-file" in block]
    (tmp_path / "sites.yaml").write_text(entries[0], encoding="utf-8")
    words = shlex.split(command)
    assert (words[:2], words[-1]) == (["python", "slurm/submit.py"], "--dry-run")
    done = dry_run(tmp_path, *words[2:-1], "--steps", "gelu")
    assert (done.returncode, done.stderr) == (0, "")
    asked = re.search(r"`gpu_type` and `gpus_per_node` make `(.*?)`", page)
    assert asked
    for option in (asked[1], "--mem-per-gpu=92160MB", "--gpu-bind=single:1"):
        assert f"#SBATCH {option}\n" in done.stdout
    assert (
        set(re.findall(r"`([a-z-]+)`", page.partition("not about the hardware")[2].partition("`collect`")[0]))
        == GENERAL
    )


def test_the_estimate_has_an_array_wait_for_the_one_before(tmp_path: Path) -> None:
    """Four at a time: three small jobs, then four large ones."""
    given = cluster(gpus_per_node=1, tflops=17, parallel=4, steps={"resnet50": {"memory_gb": 1}})
    roadmap = load_roadmap()
    plan = [
        resolve(roadmap, step, seed=seed)
        for step, seeds in (("resnet50", 3), ("gelu", 4))
        for seed in range(seeds)
    ]
    lines = "\n".join(estimate(load_roadmap(), given, plan, tmp_path, given.parallel))
    found = re.search(r"([\d.]+) hours with up to 4 runs at a time; a run takes ([\d.]+) to ([\d.]+)", lines)
    assert found
    end, shortest, longest = map(float, found.groups())
    assert end == pytest.approx(shortest + longest, abs=0.1)


def test_the_estimate_counts_the_hours_of_a_gpu_that_runs_share_once(tmp_path: Path) -> None:
    plan = [resolve(load_roadmap(), "gelu", seed=seed) for seed in range(8)]

    def numbers(share: int) -> list[float]:
        given = cluster(gpus_per_node=1, tflops=17, runs_per_gpu=share)
        lines = "\n".join(estimate(load_roadmap(), given, plan, tmp_path, 8))
        found = re.search(r"([\d,.]+) GPU-hours.*?([\d,.]+) hours.*takes ([\d,.]+) to", lines, re.DOTALL)
        assert found
        return [float(number.replace(",", "")) for number in found.groups()]

    total, end, each = numbers(1)
    assert numbers(4) == pytest.approx([total, 4 * end, 4 * each], rel=0.01), "four on two GPUs each"


def test_the_estimate_is_from_runs_that_shared_a_gpu_alike(tmp_path: Path) -> None:
    (run,) = runs(tmp_path, ["gelu"])
    config = resolve(load_roadmap(), "gelu", profile="digits")
    result = finished("gelu", 0, run.hash, 90.0, runs_per_gpu=4).result
    assert result
    run.result.write_text(result.model_dump_json(), encoding="utf-8")
    known, unknown = (
        list(estimate(load_roadmap(), cluster(gpus_per_node=1, runs_per_gpu=share), [config], tmp_path, None))
        for share in (4, 2)
    )
    assert "GPU-hours for 1 run" in known[0]
    assert unknown[0].endswith("has finished on as many processes, 2 to a GPU")


def test_a_dry_run_shows_the_runs_that_share_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "clusters: {one: {scheduler: slurm, gpus_per_node: 1, cpus_per_task: 6, steps: {gelu: {nodes: 2}}}}",
        encoding="utf-8",
    )
    words = ["--cluster", "one", "--cluster-file", "c.yaml", "--profile", "digits", "--seeds", "3"]
    done = dry_run(tmp_path, *words, "--runs-per-gpu", "2", "--steps", "kernel_7")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "--runs-per-gpu steps.gelu: needs nodes and gpus_per_node to be 1, not 2 and 1, since only runs of"
        " one process can share a GPU\n"
    )
    (tmp_path / "c.yaml").write_text(
        "clusters: {one: {scheduler: slurm, gpus_per_node: 1, cpus_per_task: 6}}", encoding="utf-8"
    )
    done = dry_run(tmp_path, *words, "--runs-per-gpu", "2", "--steps", "kernel_7")
    assert (done.returncode, done.stderr) == (0, "")
    shared = "# up to 2 runs share the GPU of a job, 6 CPUs each"
    assert f"# array 1: 2 jobs on 1 node with 2 processes each\n{shared}\n" in done.stdout


def test_a_batch_that_the_cluster_cannot_share_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "clusters: {odd: {scheduler: slurm, nodes: 3, gpus_per_node: 8}}", encoding="utf-8"
    )
    done = dry_run(tmp_path, "--cluster", "odd", "--cluster-file", "c.yaml", "--profile", "imagenet")
    assert done.returncode == 2
    assert done.stderr.startswith("recipe.global_batch 256 on 24 processes: does not divide evenly")


def test_an_array_of_one_job_is_one_job(tmp_path: Path) -> None:
    array = arrays_of(cluster(), runs(tmp_path, ["gelu"]), pack=1, longest=10)
    assert array == [Array(cluster(), ((runs(tmp_path, ["gelu"])[0],),))]


def test_an_unknown_scheduler_is_refused() -> None:
    with pytest.raises(ValidationError, match="scheduler"):
        cluster(scheduler="pbs")


def test_runs_of_a_changed_configuration_are_reported(tmp_path: Path) -> None:
    changed = resolve(load_roadmap(), "gelu", profile="digits", seed=1, overrides={"recipe.epochs": 7})
    old = prepare(tmp_path / "runs", changed)
    done = dry_run(tmp_path, "--cluster", "local", "--profile", "digits", "--seeds", "2", "--steps", "gelu")
    assert (
        f"of another configuration, and left alone: 1 run (gelu/{old.path.name})\n2 runs: 2 pending"
        in done.stdout
    )
