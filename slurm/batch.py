"""From a cluster's entry to Slurm's jobs: the parameters that submitit turns into a script, and its submission."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from roadmap.lease import now
from roadmap.records import RunDir
from roadmap.strict_yaml import ConfigError, Problem
from slurm.cluster import Cluster, minutes_of
from slurm.job import train_runs
from slurm.squeue import Submission

NEVER = 10**6  # submitit counts time limits, and we do not


class Executor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's, which can also write a script where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        """Always able: whether sbatch is there shows when it is called."""
        return 2


@dataclass(frozen=True)
class Array:
    """Jobs of one kind: each of `groups` is trained in one job, on what `cluster` gives a run."""

    cluster: Cluster
    groups: tuple[tuple[RunDir, ...], ...]

    @property
    def hours(self) -> float:
        """The hours of its jobs at their time limits."""
        return len(self.groups) * minutes_of(self.cluster.time) / 60


def arrays_of(cluster: Cluster, runs: Sequence[RunDir], pack: int, longest: int) -> list[Array]:
    """Runs that get the same in one array each, `pack` runs a job, cut where an array would be longer than `longest`."""
    kinds: dict[str, tuple[Cluster, list[RunDir]]] = {}
    for run in runs:
        resources = cluster.of(run.step)
        kinds.setdefault(resources.model_dump_json(), (resources, []))[1].append(run)
    arrays = []
    for resources, members in kinds.values():
        groups = [tuple(members[first : first + pack]) for first in range(0, len(members), pack)]
        arrays += [Array(resources, tuple(groups[first : first + longest])) for first in range(0, len(groups), longest)]
    return arrays


def parameters(cluster: Cluster, name: str, submission: str, snapshot: Path, after: Sequence[str] = ()) -> dict[str, Any]:
    """submitit's parameters for jobs of `cluster`; they wait for the jobs in `after` to end, however they do."""
    exports = cluster.environment | {
        "PYTHONSAFEPATH": "1",  # or the folder that the job was submitted from would come first
        "SRUN_CPUS_PER_TASK": str(cluster.cpus_per_task),  # srun of Slurm 22.05 to 23.02 does not inherit it
        "SLURM_KILL_BAD_EXIT": "1",
    }
    # first, but what the setup or the environment has on the path is the site's own
    path = f"export PYTHONPATH={shlex.quote(str(snapshot))}${{PYTHONPATH:+:$PYTHONPATH}}"
    wanted: dict[str, Any] = {
        "job_name": name,
        "comment": submission,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks,
        "gpus_per_node": cluster.gpus_per_node or None,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{round(1024 * cluster.memory_gb)}MB" if cluster.memory_gb else None,
        "time": minutes_of(cluster.time),
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "signal_delay_s": cluster.signal_seconds,
        "array_parallelism": cluster.parallel or 10**4,
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "setup": [*cluster.setup, *(f"export {key}={shlex.quote(value)}" for key, value in exports.items()), path],
        "srun_args": list(cluster.srun) or None,
        "additional_parameters": {"requeue": True} | ({"reservation": cluster.reservation} if cluster.reservation else {}),
    }
    return {key: value for key, value in wanted.items() if value is not None}


def executor(array: Array, folder: Path, submission: str, snapshot: Path, after: Sequence[str] = ()) -> Executor:
    """The executor for an array, whose jobs have Slurm queue them again where `slurm.job` says so."""
    made = Executor(folder=folder, max_num_timeout=NEVER)
    roadmap = array.groups[0][0].experiment[0]
    made.update_parameters(**parameters(array.cluster, roadmap, submission, snapshot, after), teardown=teardown(array, folder))
    return made


def teardown(array: Array, folder: Path) -> list[str]:
    """The last lines of a job's script: what is to become of it."""
    again = f"{shlex.quote(sys.executable)} -m slurm.job"
    lists = shlex.quote(str(folder / "runs.txt"))
    pick = f"""$(sed -n "$((${{SLURM_ARRAY_TASK_ID:-0}} + 1))p" {lists})"""
    # eval reads all words once more, so what is quoted must be quoted twice, or between double quotes
    return ["code=$?", f'eval {shlex.quote(again)} "$code {array.cluster.retries} {pick}"', "exit $?"]


def submit(array: Array, jobs: Path, cluster: str, snapshot: Path, after: Sequence[str] = ()) -> str:
    """Submits an array and returns its job's id; ConfigError with Slurm's own words, and nothing left, if it is refused."""
    name = f"{re.sub(r'[^0-9]', '', now())[:14]}-{uuid4().hex[:8]}"
    folder = jobs / name
    folder.mkdir(parents=True)
    lines = [" ".join(shlex.quote(str(run.path.absolute())) for run in group) for group in array.groups]
    (folder / "runs.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = Submission(name, cluster, now(), tuple(tuple(run.name for run in group) for group in array.groups))
    record.write(jobs)
    try:
        groups = [[str(run.path.absolute()) for run in group] for group in array.groups]
        with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats there what the error says
            same = [[value] * len(groups) for value in (str(snapshot), array.cluster.retries)]
            started = executor(array, folder, name, snapshot, after).map_array(train_runs, groups, *same)
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError) as error:
        (jobs / f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        raise ConfigError([Problem(f"cluster '{cluster}':", f"sbatch refuses: {_words(error)}")]) from error
    job: str = started[0].job_id
    return job.partition("_")[0]


def collect_when_done(cluster: Cluster, jobs: Path, name: str, snapshot: Path, after: Sequence[str], command: Sequence[str]) -> str:
    """Submits a job that runs `command` once the jobs in `after` have ended, however they did; returns its id."""
    small = cluster.model_copy(
        update={"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "time": "01:00:00", "parallel": None, "srun": ()}
    )
    folder = jobs / "collect"
    made = Executor(folder=folder, max_num_timeout=NEVER)
    made.update_parameters(**parameters(small, "collect", "collect", snapshot, after))
    try:
        job: str = made.submit(submitit.helpers.CommandFunction(list(command), cwd=str(snapshot))).job_id
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError) as error:
        raise ConfigError([Problem(f"cluster '{name}':", f"sbatch refuses the job that collects: {_words(error)}")]) from error
    return job


def _words(error: Exception) -> str:
    """What sbatch said."""
    lines = [line for line in str(error).splitlines() if "sbatch: error" in line] or str(error).splitlines()
    return "; ".join(line.replace("sbatch: error: ", "").strip() for line in lines[-2:])


def script(array: Array, jobs: Path, snapshot: Path) -> str:
    """The script that would be submitted for an array."""
    made = executor(array, jobs / "SUBMISSION", "SUBMISSION", snapshot)
    if len(array.groups) > 1:
        made.parameters["map_count"] = len(array.groups)
    text: str = made._make_submission_file_text(made._submitit_command_str, "script")
    return text
