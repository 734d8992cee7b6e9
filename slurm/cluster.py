"""Clusters by name, from cluster.yaml: the resources of a run on each, checked before submission."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from blocks.layers import did_you_mean
from blocks.spec import Count, Spec
from roadmap.config import NonNegative, Positive
from roadmap.errors import ConfigError, Problem, config_error, format_validation_error, one_of_these, relative
from roadmap.strict_yaml import Node, read_yaml, show
from slurm import CLUSTER_YAML


def minutes_of(time: str) -> int:
    """A time limit in Slurm's notation, '2-00:00:00', '12:30:00' or '90', in minutes; else ValueError."""
    days, _, clock = time.rpartition("-")
    parts = clock.split(":")
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", time):
        raise ValueError("write a time limit as days-hours:minutes:seconds, hours:minutes:seconds or minutes")
    numbers = [int(part) for part in parts]
    if days or len(numbers) == 3:
        hours, minutes = (*numbers, 0)[:2]
    else:
        hours, minutes = 0, numbers[0]
    total = 24 * 60 * int(days or 0) + 60 * hours + minutes
    if not total:
        raise ValueError("a time limit is at least a minute")
    return total


def _time(value: str) -> str:
    minutes_of(value)
    return value


class _Fault(ValueError):
    """An error about a key that pydantic does not name; `path` leads to it from where the error is raised."""

    def __init__(self, message: str, *path: str) -> None:
        super().__init__(message)
        self.path = path


# sbatch's options that a key of an entry sets, with their short forms; sbatch accepts abbreviations of the
# long ones as well.
KEYS = {
    "account": "account A",
    "constraint": "constraint C",
    "cpus_per_task": "cpus-per-task c cpus-per-gpu",
    "environment": "export export-file",
    "exclude": "exclude x",
    "gpus_per_node": "gpus-per-node gpus G gpus-per-task gpus-per-socket ntasks-per-gpu tres-per-task",
    "memory_gb": "mem",
    "memory_per_cpu_gb": "mem-per-cpu",
    "memory_per_gpu_gb": "mem-per-gpu",
    "nodes": "nodes N",
    "parallel": "array a",
    "partition": "partition p",
    "qos": "qos q",
    "reservation": "reservation",
    "retries": "requeue no-requeue",
    "signal_seconds": "signal",
    "tasks_per_node": "ntasks-per-node tasks-per-node ntasks n",
    "time": "time t",
}
RESERVED = (
    "clusters cluster M comment dependency d error e job-name J open-mode output o parsable quiet Q test-only"
    " wait W wrap"
)
OWN = {
    **{option: f"is set by the key {key}" for key, options in KEYS.items() for option in options.split()},
    **dict.fromkeys(RESERVED.split(), "cannot be set: jobs are submitted, found and logged by it"),
}
# Options about accounting, mail, and the start of any job; the job that collects gets no others.
GENERAL = frozenset(
    {"chdir", "get-user-env", "licenses", "mail-type", "mail-user", "mcs-label", "nice", "propagate", "wckey"}
)
MEMORY = frozenset({"memory_gb", "memory_per_cpu_gb", "memory_per_gpu_gb"})
NO_CHANGE = frozenset({"scheduler", "parallel", "steps", "collect"})


def _options(given: Any) -> dict[str, Any]:
    """Options of sbatch by their long names, with dashes; ValueError for one that cannot be set."""
    if not isinstance(given, dict):
        raise ValueError(f"write options as `name: value`, such as `mail-type: END`, not {show(given)}")
    options: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("_", "-")
        if fault := _fault_of(name, value):
            raise _Fault(fault, key)
        if name in options:
            raise _Fault("is given twice", key)
        options[name] = value
    return options


def _fault_of(name: str, value: Any) -> str | None:
    """What is wrong with an option of sbatch, or None."""
    own = [option for option in OWN if option == name or (len(name) > 1 and option.startswith(name))]
    if own:
        return OWN[name if name in own else own[0]]
    if not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)+|[A-Za-z0-9]{2,}", name):
        return "is not a long option of sbatch; write it without leading dashes, such as mail-type"
    if not isinstance(value, str | int | float | None):
        return (
            f"write a text, a number, true or false, and a list as Slurm does, with commas, not {show(value)}"
        )
    if re.search(r"[\\\n\r]", str(value)):
        return f"holds a backslash or a line break, which sbatch does not read, not {value!r}"
    if name == "gres" and re.search(r"(^|,)\s*(gres[:/])?gpu([:=,]|$)", str(value)):
        return (
            "ask for GPUs by gpus_per_node and gpu_type; gpu_request: gres makes --gres of them and of"
            " what is given here"
        )
    return None


def _gpu_type(value: Any) -> Any:
    name = str(value) if type(value) is int else value  # such as 3090
    if isinstance(name, str) and not re.fullmatch(r"[\w.+-]+", name):
        raise ValueError(
            f"write the type alone, such as a100, and their number as gpus_per_node, not {name!r}"
        )
    return name


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    """Keys that replace the entry's own for some jobs; their values are checked as part of it."""
    known = Cluster.model_fields.keys() - NO_CHANGE
    for key in given:
        if key in NO_CHANGE:
            raise _Fault("cannot be set here, only for the cluster as a whole", key)
        if key not in known:
            raise _Fault(f"unknown key{did_you_mean(key, sorted(known))}", key)
    if "sbatch" not in given:
        return given
    try:
        return given | {"sbatch": _options(given["sbatch"])}
    except ValueError as error:
        raise _Fault(str(error), "sbatch", *(error.path if isinstance(error, _Fault) else ())) from error


@contextmanager
def _blaming(*path: str) -> Iterator[None]:
    """Reports the first problem of what is validated inside as one of the keys at `path`."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        raise _Fault(format_validation_error(first), *path, *_path(first)) from error


Changes = Annotated[dict[str, Any], AfterValidator(_changes)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]


class Cluster(Spec):
    """The resources of a run on a cluster and of the job that collects, and how many run at a time."""

    scheduler: Literal["local", "slurm"] = Field(
        description="slurm submits jobs; local starts workers on this machine, and needs no other key"
    )
    partition: str | None = Field(None, description="the partition, or several with commas")
    account: str | None = Field(None, description="the account that pays")
    qos: str | None = Field(None, description="the quality of service")
    nodes: Count = Field(1, description="nodes of a run")
    gpus_per_node: int = Field(0, ge=0, description="GPUs of each node")
    gpu_type: Annotated[str, BeforeValidator(_gpu_type)] | None = Field(
        None, description="the GPUs' type as the site names it, such as a100; null is any"
    )
    gpu_request: Literal["gpus_per_node", "gres"] = Field(
        "gpus_per_node",
        description=(
            "the option that asks for them: --gpus-per-node=TYPE:N, or for sites without it --gres=gpu:TYPE:N"
        ),
    )
    tasks_per_node: Count | None = Field(
        None, description="processes on each node; null is one per GPU, or one without GPUs"
    )
    cpus_per_task: Count = Field(1, description="CPUs of a process")
    runs_per_gpu: Count = Field(
        1,
        description=(
            "runs that are trained on a GPU at a time, for networks too small to fill it; a job trains as"
            " many, each in a process with cpus_per_task CPUs"
        ),
    )
    memory_gb: NonNegative | None = Field(
        None, description="memory of each node, 0 for all that it has; one of the three kinds may be given"
    )
    memory_per_cpu_gb: Positive | None = Field(None, description="memory for each CPU")
    memory_per_gpu_gb: Positive | None = Field(None, description="memory for each GPU")
    time: Annotated[str, AfterValidator(_time)] = Field(
        "1-00:00:00", description="a job's time limit, as Slurm writes it"
    )
    signal_seconds: int = Field(
        120, ge=1, le=3600, description="seconds before the time limit at which a run saves; it is requeued"
    )
    constraint: str | None = Field(None, description="features that the nodes must have")
    reservation: str | None = Field(None, description="the reservation that nodes are taken from")
    exclude: str | None = Field(None, description="nodes that are not used")
    parallel: Count | None = Field(
        None, description="runs of a submission that are trained at a time; null is no limit"
    )
    retries: int = Field(
        3,
        ge=0,
        description="how often in a row a run is retried that crashed without saving anything new",
    )
    tflops: Positive | None = Field(
        None, description="TFLOP/s that a GPU sustains in training, for estimates"
    )
    setup: tuple[str, ...] = Field((), description="lines of the job's shell, before the run")
    srun: tuple[str, ...] = Field((), description="words for srun, such as a container's")
    environment: dict[Variable, str] = Field(default_factory=dict, description="variables of the job")
    sbatch: Annotated[dict[str, Any], BeforeValidator(_options)] = Field(
        default_factory=dict,
        description=(
            "any other option of sbatch by its long name, with - or _: a text or a number is its value, true"
            " gives it without one, and false or null leaves it out"
        ),
    )
    steps: dict[str, Changes] = Field(
        default_factory=dict,
        description=(
            "by step, keys in place of the above; sbatch is merged by option, and one memory replaces another"
        ),
    )
    collect: Changes = Field(
        default_factory=dict,
        description="the same for the job that collects, which may need another partition",
    )

    @property
    def tasks(self) -> int:
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def world(self) -> int:
        return self.nodes * self.tasks

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def options(self) -> dict[str, Any]:
        """The options of sbatch that submitit has no parameter for; True is an option without a value."""
        options = {
            name: value for name, value in self.sbatch.items() if value is not None and value is not False
        }
        if self.reservation:
            options["reservation"] = self.reservation
        if self.gpus_per_node:
            gpus = f"{self.gpu_type}:{self.gpus_per_node}" if self.gpu_type else str(self.gpus_per_node)
            if self.gpu_request == "gres":
                options["gres"] = ",".join(
                    ["gpu:" + gpus, *([str(options["gres"])] if "gres" in options else [])]
                )
            else:
                options["gpus-per-node"] = gpus
        return options

    def of(self, step: str) -> Cluster:
        """The resources of a run of `step`."""
        return self._with(self.steps.get(step, {}))

    def shared_by(self, runs_per_gpu: int) -> Cluster:
        """The same cluster with so many runs on a GPU at a time; ConfigError if they cannot share it."""
        try:
            return Cluster.model_validate(self.model_dump() | {"runs_per_gpu": runs_per_gpu})
        except ValidationError as error:
            first = error.errors()[0]
            steps = _path(first)[:-1]  # where a step has resources of its own
            message = ": ".join([*filter(None, [".".join(steps)]), format_validation_error(first)])
            raise config_error("--runs-per-gpu", message) from error

    def collecting(self) -> Cluster:
        """The resources of the job that collects: one process, no GPU, an hour, and only the options in
        `GENERAL`.
        """
        small: dict[str, Any] = {
            "nodes": 1,
            "tasks_per_node": 1,
            "gpus_per_node": 0,
            "gpu_type": None,
            "runs_per_gpu": 1,
            "parallel": None,
            "srun": (),
        }
        small |= {
            "time": "01:00:00",
            "signal_seconds": 60,
            "sbatch": dict.fromkeys(self.sbatch.keys() - GENERAL),
        }
        if self.memory_per_gpu_gb or self.memory_gb == 0:
            # one GPU's memory, or the site's default instead of all of a node's
            small["memory_gb"] = self.memory_per_gpu_gb
        return self._with(small)._with(self.collect)

    def _with(self, changes: dict[str, Any]) -> Cluster:
        kept = self.model_dump(exclude=set(MEMORY) if changes.keys() & MEMORY else None)
        options = self.sbatch | changes.get("sbatch", {})
        return Cluster.model_validate(kept | changes | {"sbatch": options, "steps": {}, "collect": {}})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if 60 * minutes_of(self.time) <= self.signal_seconds:
            raise ValueError(f"signal_seconds {self.signal_seconds} leaves nothing of a time of {self.time}")
        if self.gpus_per_node and self.tasks_per_node and self.gpus_per_node != self.tasks_per_node:
            raise ValueError(
                f"tasks_per_node {self.tasks_per_node} must be gpus_per_node {self.gpus_per_node}: a process"
                " drives one GPU"
            )
        memory = [key for key in sorted(MEMORY) if getattr(self, key) is not None]
        if len(memory) > 1:
            raise _Fault(
                f"conflicts with {memory[0]}; memory is each node's, each CPU's or each GPU's", memory[1]
            )
        for key in ("gpu_type", "memory_per_gpu_gb"):
            if getattr(self, key) is not None and not self.gpus_per_node:
                raise _Fault("needs gpus_per_node, the number of GPUs; null where there are none", key)
        if self.scheduler == "slurm" and self.runs_per_gpu > 1:
            if (self.nodes, self.gpus_per_node) != (1, 1):
                raise _Fault(
                    f"needs nodes and gpus_per_node to be 1, not {self.nodes} and {self.gpus_per_node}, since"
                    " only runs of one process can share a GPU",
                    "runs_per_gpu",
                )
            if self.parallel is not None and self.parallel < self.runs_per_gpu:
                raise _Fault(f"exceeds parallel, {self.parallel} runs at a time", "runs_per_gpu")
        for step in self.steps:
            with _blaming("steps", step):
                self.of(step)
        if self.collect:
            with _blaming("collect"):
                self.collecting()
        return self


def default_cluster(path: Path = CLUSTER_YAML) -> str:
    """The cluster without --cluster: the only entry of a user's file, else Slurm if available, else local.

    ConfigError if the user's file has several entries.
    """
    if path != CLUSTER_YAML:
        names = list(_entries(path))
        if len(names) != 1:
            raise config_error(
                relative(path), f"has the clusters {', '.join(names)}; choose one with --cluster"
            )
        return names[0]
    return "slurm" if shutil.which("sbatch") else "local"


def _entries(path: Path) -> dict[str, Node]:
    """The entries of a cluster file by name; ConfigError if it holds none."""
    document = read_yaml(path)
    clusters = document.value.get("clusters") if isinstance(document.value, dict) else None
    if clusters is None or not isinstance(clusters.value, dict):
        raise config_error(document.mark, "must hold `clusters`, by name")
    return clusters.value


def check_steps(name: str, path: Path, known: Collection[str]) -> None:
    """ConfigError if the `steps` of the cluster `name` hold one that is not in `known`."""
    steps: dict[str, Node] = _entries(path)[name].value["steps"].value
    for step, node in steps.items():
        if step not in known:
            message = f"cluster '{name}': steps: there is no step '{step}'{did_you_mean(step, sorted(known))}"
            raise config_error(node.key, message)


def load_cluster(name: str, path: Path = CLUSTER_YAML) -> Cluster:
    """The cluster `name` of a file; `slurm` and `local` need no entry.

    ConfigError names file, line and column of what is wrong with the entry.
    """
    clusters = _entries(path)
    if name not in clusters:
        if name == "slurm":
            return Cluster(scheduler="slurm")
        if name == "local":
            return Cluster(scheduler="local")
        raise config_error(relative(path), f"unknown cluster '{name}'{one_of_these(name, clusters)}")
    entry = clusters[name]
    try:
        return Cluster.model_validate(entry.plain())
    except ValidationError as error:
        raise ConfigError([_locate(name, entry, item) for item in error.errors()]) from error


def _locate(name: str, entry: Node, error: Any) -> Problem:
    """The problem, at the mark of the innermost existing key that it concerns."""
    node, where, keys = entry, entry.key, _path(error)
    for key in keys:
        if not isinstance(node.value, dict) or key not in node.value:
            break
        node = node.value[key]
        where = node.key
    path = ".".join(keys)
    if error["type"] == "extra_forbidden":
        return Problem(
            where, f"cluster '{name}': unknown key '{path}'{did_you_mean(path, sorted(Cluster.model_fields))}"
        )
    return Problem(where, f"cluster '{name}': {f'{path}: ' if path else ''}{format_validation_error(error)}")


def _path(error: Any) -> list[str]:
    """The keys that lead to an error's value."""
    fault = error.get("ctx", {}).get("error")
    return [*map(str, error["loc"]), *(fault.path if isinstance(fault, _Fault) else ())]
