"""Clusters by name, from cluster.yaml: what a run gets on each, checked before anything is submitted."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from blocks.spec import Count, Spec
from blocks.spelling import did_you_mean
from roadmap.recipe import Positive, reason
from roadmap.settings import one_of_these
from roadmap.strict_yaml import ConfigError, Node, Problem, read_yaml, relative
from slurm import CLUSTER_YAML


def minutes_of(time: str) -> int:
    """A time limit as Slurm writes it, '2-00:00:00', '12:30:00' or '90', in minutes. ValueError if it is none."""
    days, _, clock = time.rpartition("-")
    parts = clock.split(":")
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", time) or (len(parts) == 2 and days):
        raise ValueError("write a time limit as days-hours:minutes:seconds, hours:minutes:seconds or minutes")
    numbers = [int(part) for part in parts]
    hours, minutes = (numbers[0], numbers[1]) if len(numbers) == 3 else (numbers[0], 0) if days else (0, numbers[0])
    total = 24 * 60 * int(days or 0) + 60 * hours + minutes
    if not total:
        raise ValueError("a time limit is at least a minute")
    return total


def _time(value: str) -> str:
    minutes_of(value)
    return value


class Cluster(Spec):
    """What one run gets: `nodes`, and on each `tasks_per_node` processes, one a GPU unless it is given.

    `memory_gb` is a node's. A run is told to save `signal_seconds` before its `time` is over, and is queued again; one that
    crashes is begun again, up to `retries` times in a row without having saved anything new. At most `parallel` runs of a
    submission are trained at a time. `tflops` is what a GPU sustains in training, for forecasts. `steps` overrides any of the
    rest for the steps that it names.
    """

    scheduler: Literal["local", "slurm"]
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: Count = 1
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    tasks_per_node: Count | None = None
    cpus_per_task: Count = 1
    memory_gb: Positive | None = None
    time: Annotated[str, AfterValidator(_time)] = "1-00:00:00"
    signal_seconds: Annotated[int, Field(ge=1, le=3600)] = 120
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    parallel: Count | None = None
    retries: Annotated[int, Field(ge=0)] = 3
    tflops: Positive | None = None
    setup: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @property
    def tasks(self) -> int:
        """The processes of a run on one node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def world(self) -> int:
        """The processes of a run."""
        return self.nodes * self.tasks

    @property
    def gpus(self) -> int:
        """The GPUs of a run."""
        return self.nodes * self.gpus_per_node

    def of(self, step: str) -> Cluster:
        """What a run of `step` gets."""
        return Cluster.model_validate(self.model_dump() | self.steps.get(step, {}) | {"steps": {}})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if 60 * minutes_of(self.time) <= self.signal_seconds:
            raise ValueError(f"signal_seconds {self.signal_seconds} leaves nothing of a time of {self.time}")
        if self.gpus_per_node and self.tasks_per_node and self.gpus_per_node != self.tasks_per_node:
            raise ValueError(f"tasks_per_node {self.tasks_per_node} must be gpus_per_node {self.gpus_per_node}: a process drives one GPU")
        for step, changes in self.steps.items():
            if unknown := changes.keys() - (Cluster.model_fields.keys() - {"scheduler", "steps", "parallel"}):
                key = min(unknown)
                raise ValueError(f"steps.{step}: unknown key '{key}'{did_you_mean(key, sorted(Cluster.model_fields))}")
            try:
                self.of(step)
            except ValidationError as error:
                first = error.errors()[0]
                raise ValueError(f"steps.{step}: {'.'.join(map(str, first['loc']))}: {reason(first)}") from error
        return self


def default_cluster() -> str:
    """Slurm's cluster is for the user to name; where there is no Slurm, it is this machine."""
    return "slurm" if shutil.which("sbatch") else "local"


def load_cluster(name: str, path: Path = CLUSTER_YAML) -> Cluster:
    """The cluster `name` of a file; `slurm` without an entry is Slurm with the site's defaults.

    ConfigError names file, line and column of what is wrong with the entry.
    """
    document = read_yaml(path)
    clusters = document.value.get("clusters") if isinstance(document.value, dict) else None
    if clusters is None or not isinstance(clusters.value, dict):
        raise ConfigError([Problem(document.mark, "must hold `clusters`, by name")])
    if name not in clusters.value:
        if name == "slurm":
            return Cluster(scheduler="slurm")
        raise ConfigError([Problem(relative(path), f"unknown cluster '{name}'{one_of_these(name, clusters.value)}")])
    entry: Node = clusters.value[name]
    try:
        return Cluster.model_validate(entry.plain())
    except ValidationError as error:
        raise ConfigError([_locate(name, entry, item) for item in error.errors()]) from error


def _locate(name: str, entry: Node, error: Any) -> Problem:
    """A problem at the key that it is about, as far as there is one."""
    node, where = entry, entry.key
    for part in error["loc"]:
        if not isinstance(node.value, dict) or part not in node.value:
            break
        node = node.value[part]
        where = node.key
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return Problem(where, f"cluster '{name}': unknown key '{path}'{did_you_mean(path, sorted(Cluster.model_fields))}")
    return Problem(where, f"cluster '{name}': {f'{path}: ' if path else ''}{reason(error)}")
