"""From a cluster's entry to Slurm's jobs: submitit's parameters, its script, and the call of sbatch."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission

from roadmap.disk import disk_error
from roadmap.errors import config_error, relative
from roadmap.files import write_errors
from roadmap.lease import now
from roadmap.provenance import RUNS_PER_GPU
from roadmap.records import RunDir
from roadmap.terminal import count
from slurm.client import SbatchRefused, SlurmUnavailable, Task, new_submission, submit_once
from slurm.cluster import Cluster, minutes_of
from slurm.jobs import Submission
from slurm.worker import train_runs

NO_LIMIT = 10**6  # of requeues at the time limit, which submitit would count


class Executor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's executor, which can also write a script where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        """Always available: whether sbatch exists shows when it is called."""
        return 2

    def script(self, calls: int = 1) -> str:
        """The script that would be submitted for `calls` tasks, an array if there are several."""
        if calls > 1:
            self.parameters["map_count"] = calls
        return self._make_submission_file_text(self._submitit_command_str, "script")

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        """The script, in which a task first links its pickled call to the name that submitit reads."""
        task = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
        call = f"{self.parameters['comment']}_${{SLURM_ARRAY_TASK_ID:-0}}.pkl"
        link = f"ln -sf {call} {shlex.quote(str(self.folder))}/{task}_submitted.pkl"
        text: str = super()._make_submission_file_text(command, uid)
        return text.replace("\n# setup\n", f"\n# setup\n{link}\n", 1)

    def _internal_process_submissions(
        self, delayed_submissions: list[DelayedSubmission]
    ) -> list[submitit.SlurmJob[Any]]:
        """Submits one job, or an array, exactly once.

        submitit would name each task's pickled call by the job's id once that is known. Here a task can do so
        itself, so that a job whose id Slurm never returned runs as well.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        name, calls = self.parameters["comment"], delayed_submissions
        for index, call in enumerate(calls):
            call.set_timeout(self.parameters["time"], self.max_num_timeout)
            call.dump(self.folder / f"{name}_{index}.pkl")
        script = self.folder / f"{name}.sh"
        script.write_text(self.script(len(calls)), encoding="utf-8")
        job = submit_once(script, name)
        tasks = [f"{job}_{index}" for index in range(len(calls))] if len(calls) > 1 else [job]
        for index, task in enumerate(tasks):
            # it has started already, or the disk is full; it is queued in any case
            with contextlib.suppress(OSError):
                (self.folder / f"{task}_submitted.pkl").symlink_to(f"{name}_{index}.pkl")
        with contextlib.suppress(OSError):
            script.rename(self.folder / f"{job}_submission.sh")  # submitit's name for it
        return [
            self.job_class(folder=self.folder, job_id=task, tasks=list(range(self._num_tasks())))
            for task in tasks
        ]


@dataclass(frozen=True)
class Array:
    """Jobs with the same resources, those of `cluster`: each of `groups` is trained in one job."""

    cluster: Cluster
    groups: tuple[tuple[RunDir, ...], ...]


def arrays_of(cluster: Cluster, runs: Sequence[RunDir], pack: int, longest: int) -> list[Array]:
    """An array for the runs with the same resources, `pack` runs per job, or as many as share its GPU if
    these are more; several if it exceeds `longest`. Jobs ask for no more shares than there are runs.
    """
    steps = {step: cluster.of(step) for step in dict.fromkeys(run.step for run in runs)}
    keys = {step: resources.model_dump_json() for step, resources in steps.items()}
    kinds: dict[str, tuple[Cluster, list[RunDir]]] = {}
    for run in runs:
        kinds.setdefault(keys[run.step], (steps[run.step], []))[1].append(run)
    arrays = []
    for resources, members in kinds.values():
        size, share = max(pack, resources.runs_per_gpu), min(resources.runs_per_gpu, len(members))
        groups = [tuple(members[first : first + size]) for first in range(0, len(members), size)]
        arrays += [
            Array(
                resources.model_copy(update={"runs_per_gpu": share}), tuple(groups[first : first + longest])
            )
            for first in range(0, len(groups), longest)
        ]
    return arrays


def parameters(
    cluster: Cluster, name: str, submission: str, snapshot: Path, after: Sequence[str] = ()
) -> dict[str, Any]:
    """submitit's parameters for jobs of `cluster`, which wait for those in `after` to end in any way.

    Runs that share a GPU are trained by the tasks of a job, independently of each other.
    """
    share = cluster.runs_per_gpu
    exports = cluster.environment | {
        "PYTHONSAFEPATH": "1",  # otherwise the folder that the job was submitted from would come first
        "SRUN_CPUS_PER_TASK": str(cluster.cpus_per_task),  # srun of Slurm 22.05 to 23.02 does not inherit it
        "SLURM_KILL_BAD_EXIT": "1" if share == 1 else "0",
    }
    if share > 1:
        # the site may limit how long tasks outlive the first that ends, and bind none to its CPUs
        exports |= {RUNS_PER_GPU: str(share), "SLURM_WAIT": "0"}
        exports.setdefault("OMP_NUM_THREADS", str(cluster.cpus_per_task))
    # before the paths that the setup or the environment adds
    path = f"export PYTHONPATH={shlex.quote(str(snapshot))}${{PYTHONPATH:+:$PYTHONPATH}}"
    wanted: dict[str, Any] = {
        "job_name": name,
        "comment": submission,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks * share,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": _megabytes(cluster.memory_gb),
        "mem_per_cpu": _megabytes(cluster.memory_per_cpu_gb),
        "mem_per_gpu": _megabytes(cluster.memory_per_gpu_gb),
        "time": minutes_of(cluster.time),
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "signal_delay_s": cluster.signal_seconds,
        "array_parallelism": (cluster.parallel or 10**4) // share or 1,
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "setup": [
            *cluster.setup,
            *(f"export {key}={shlex.quote(value)}" for key, value in exports.items()),
            path,
        ],
        "srun_args": list(cluster.srun) or None,
        "additional_parameters": {"requeue": True} | cluster.options,
    }
    # without a wckey, submitit would invent one, which some sites refuse
    return {key: value for key, value in wanted.items() if value is not None} | {"wckey": None}


def _megabytes(gb: float | None) -> str | None:
    return None if gb is None else f"{round(1024 * gb)}MB"


def executor(
    array: Array, folder: Path, submission: str, snapshot: Path, after: Sequence[str] = ()
) -> Executor:
    """The executor for an array, whose jobs call `slurm.worker` at their end, which may requeue them."""
    made = Executor(folder=folder, max_num_timeout=NO_LIMIT)
    roadmap = array.groups[0][0].experiment[0]
    made.update_parameters(
        **parameters(array.cluster, roadmap, submission, snapshot, after), teardown=teardown(array, folder)
    )
    return made


def teardown(array: Array, folder: Path) -> list[str]:
    """The last lines of a job's script, which may requeue the job."""
    again = f"{shlex.quote(sys.executable)} -m slurm.worker"
    lists = shlex.quote(str(folder / "runs.txt"))
    pick = f"""$(sed -n "$((${{SLURM_ARRAY_TASK_ID:-0}} + 1))p" {lists})"""
    # eval parses all words again, so what is quoted must be quoted twice, or between double quotes
    return ["code=$?", f'eval {shlex.quote(again)} "$code {array.cluster.retries} {pick}"', "exit $?"]


def submit(array: Array, jobs: Path, cluster: str, snapshot: Path, after: Sequence[str] = ()) -> str:
    """Submits an array and returns its job's id.

    ConfigError with Slurm's message if it is refused, and nothing is left; if it is unknown whether it is
    queued, its record stays.
    """
    name = new_submission()
    folder = jobs / name
    lines = [" ".join(shlex.quote(str(run.path.absolute())) for run in group) for group in array.groups]
    record = Submission(
        name, cluster, now(), tuple(tuple(run.name for run in group) for group in array.groups)
    )
    with write_errors(folder):
        folder.mkdir(parents=True)
        (folder / "runs.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        record.write(jobs)
    try:
        groups = [[str(run.path.absolute()) for run in group] for group in array.groups]
        same = [[value] * len(groups) for value in (str(snapshot), array.cluster.retries)]
        started = executor(array, folder, name, snapshot, after).map_array(train_runs, groups, *same)
    except (SbatchRefused, OSError) as error:
        (jobs / f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        if (full := disk_error(error, folder)) is not None:  # on writing the script and the calls
            raise config_error("", str(full)) from error
        raise config_error(f"cluster '{cluster}':", f"sbatch refuses: {error}") from error
    except SlurmUnavailable as error:
        message = (
            f"it is unknown whether {count(len(groups), 'job')} of {relative(jobs / name)}.json are queued,"
            f" since Slurm did not answer ({error}); submit again when it does: what is queued is not queued"
            " twice"
        )
        raise config_error(f"cluster '{cluster}':", message) from error
    job: str = started[0].job_id
    return job.partition("_")[0]


def collect_when_done(
    cluster: Cluster, jobs: Path, name: str, snapshot: Path, after: Sequence[str], command: Sequence[str]
) -> str:
    """Submits a job that runs `command` once the jobs in `after` have ended in any way; returns its id."""
    made = _collector(cluster, jobs, new_submission(), snapshot, after)
    try:
        job: str = made.submit(submitit.helpers.CommandFunction(list(command), cwd=str(snapshot))).job_id
    except (SbatchRefused, SlurmUnavailable, OSError) as error:
        message = (
            f"the runs are queued, but not the job that collects: {error}; when they have ended, run"
            f" {shlex.join(command)}"
        )
        raise config_error(f"cluster '{name}':", message) from error
    return job


def is_collected(jobs: Path, tasks: Iterable[Task]) -> bool:
    """Whether the tasks in the queue include a job that collects, submitted from the folder `jobs`."""
    return any((jobs / "collect" / f"{task.submission}_0.pkl").exists() for task in tasks)


def _collector(
    cluster: Cluster, jobs: Path, submission: str, snapshot: Path, after: Sequence[str] = ()
) -> Executor:
    made = Executor(folder=jobs / "collect", max_num_timeout=NO_LIMIT)
    made.update_parameters(**parameters(cluster.collecting(), "collect", submission, snapshot, after))
    return made


def script(array: Array, jobs: Path, snapshot: Path) -> str:
    """The script that would be submitted for an array."""
    return executor(array, jobs / "SUBMISSION", "SUBMISSION", snapshot).script(len(array.groups))


def collecting_script(cluster: Cluster, jobs: Path, snapshot: Path) -> str:
    """The script that would be submitted for the job that collects, without the jobs that it waits for."""
    return _collector(cluster, jobs, "SUBMISSION", snapshot).script()
