"""Whether Slurm answers, and accepts the jobs of a cluster's entry."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from roadmap import ROOT
from roadmap.doctor.findings import Finding
from slurm.client import CommandMissing, SlurmUnavailable, ask, max_array_size
from slurm.cluster import Cluster
from slurm.executor import NO_LIMIT, Executor, parameters


def check_slurm(name: str | None, cluster: Cluster | None) -> Iterator[Finding]:
    """Slurm's version, accounting and arrays, and whether it accepts the jobs of the `cluster` of that name,
    if one is given.
    """
    if cluster is not None and cluster.scheduler == "local":
        yield Finding("Slurm", f"cluster '{name}'", "trains on this machine, without Slurm")
        return
    try:
        yield Finding(
            "Slurm", "version", ask("sbatch", "--version").strip().removeprefix("slurm "), status="ok"
        )
    except SlurmUnavailable as error:
        missing = isinstance(error, CommandMissing)
        if missing and name is None:
            yield Finding("Slurm", "sbatch", "not installed: runs are trained on this machine")
            return
        fix = "run this on a login node" if missing else "set SLURM_CONF, or ask the administrator"
        # a machine may have Slurm's commands without a cluster
        yield Finding("Slurm", "sbatch", str(error), status="warning" if name is None else "error", fix=fix)
        return
    try:
        yield Finding("Slurm", "MaxArraySize", max_array_size(), status="ok")
    except SlurmUnavailable as error:
        fix = "start slurmctld, or ask the administrator"
        yield Finding("Slurm", "controller", str(error), status="error", fix=fix)
        return
    try:
        ask("sacct", "--noheader", "--allocations", "--starttime", "now-1minutes")
        yield Finding("Slurm", "accounting", "answers", status="ok")
    except SlurmUnavailable as error:
        fix = "jobs are trained all the same; why one ended is then in its log alone"
        yield Finding("Slurm", "accounting", str(error), status="warning", fix=fix)
    if cluster is not None:
        yield from check_entry(f"cluster '{name}'", cluster)


def check_entry(subject: str, cluster: Cluster) -> Iterator[Finding]:
    """Whether sbatch would accept a run, the steps that have resources of their own, and the collection."""
    jobs = {"a run": cluster}
    jobs |= {f"a run of {step}": cluster.of(step) for step in cluster.steps}
    jobs |= {"the job that collects": cluster.collecting()}
    for job, resources in jobs.items():
        try:
            _test(resources)
            yield Finding("Slurm", subject, f"sbatch accepts {job}", status="ok")
        except SlurmUnavailable as error:
            what = f"sbatch refuses {job}: {error}"
            yield Finding("Slurm", subject, what, status="error", fix="edit the entry in the cluster file")


def _test(cluster: Cluster) -> None:
    """SlurmUnavailable unless sbatch would accept a job with these resources; none is submitted."""
    with tempfile.TemporaryDirectory() as folder:
        executor = Executor(folder=folder, max_num_timeout=NO_LIMIT)
        executor.update_parameters(**parameters(cluster, "doctor", "doctor", ROOT))
        script = Path(folder, "doctor.sh")
        script.write_text(executor.script(), encoding="utf-8")
        ask("sbatch", "--test-only", str(script))
