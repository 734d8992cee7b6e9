"""The entries of docs/slurm.md on a real Slurm: sbatch takes them, and what they ask for reaches the
processes of a run.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roadmap import ROOT
from slurm.cluster import Cluster, load_cluster
from slurm.executor import Executor, parameters
from slurm.testbed.bed import Testbed
from slurm.testbed.config import Settings
from slurm.testbed.packages import hindrance
from tests.slurm.plans import outcomes, submit, wait, write_clusters

BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/slurm.md").read_text(encoding="utf-8"), re.DOTALL)
PROBE = """bash -c 'echo "$CUDA_VISIBLE_DEVICES" > {folder}/gpus.$SLURM_PROCID
if test $SLURM_PROCID = 0; then scontrol show step $SLURM_JOB_ID.$SLURM_STEP_ID > {folder}/step; fi'"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """Four large nodes, two of them reserved, with the partitions that the entries name."""
    if reason := hindrance():
        pytest.skip(reason)
    with Testbed(tmp_path_factory.mktemp("site"), Settings(nodes=4, cpus=64, memory_mb=512_000)) as bed:
        for partition in ("gpu", "cpu"):
            bed.run("scontrol", "create", f"PartitionName={partition}", "Nodes=ALL")
        bed.run("sacctmgr", "-i", "add", "account", "my-project")
        bed.run("sacctmgr", "-i", "add", "user", "root", "account=my-project")
        bed.run("scontrol", "update", "NodeName=n[1-2]", "AvailableFeatures=infiniband")
        bed.run(
            "scontrol",
            "create",
            "reservation=workshop",
            "StartTime=now",
            "Duration=UNLIMITED",
            "Users=root",
            "Nodes=n[1-2]",
        )
        yield bed


def entry(name: str, folder: Path) -> Cluster:
    """An entry of the page, read as a file."""
    (folder / "sites.yaml").write_text(
        next(block for block in BLOCKS if f"  {name}:\n" in block), encoding="utf-8"
    )
    return load_cluster(name, folder / "sites.yaml")


def shown(text: str) -> dict[str, str]:
    """What scontrol shows of a job or a step."""
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def run(bed: Testbed, cluster: Cluster, folder: Path) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """A job as a run's, but for what it runs: what Slurm says of it and of its step, and the GPUs that each
    process sees.
    """
    folder.mkdir()
    made = Executor(folder=folder)
    made.update_parameters(**parameters(cluster, "probe", "probe", folder))
    script = folder / "script.sh"
    script.write_text(
        made._make_submission_file_text(PROBE.format(folder=folder), "script"), encoding="utf-8"
    )
    job = bed.run("sbatch", "--parsable", str(script)).stdout.strip()
    bed.wait_for(
        lambda: bed.state_of_job(job) not in ("PENDING", "RUNNING", "COMPLETING"), f"job {job} to end"
    )
    assert bed.state_of_job(job) == "COMPLETED", [
        path.read_text(encoding="utf-8") for path in folder.glob("*.err")
    ]
    gpus = [path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("gpus.*"))]
    return (
        shown(bed.run("scontrol", "show", "job", job).stdout),
        shown((folder / "step").read_text(encoding="utf-8")),
        gpus,
    )


def test_gpus_with_a_type_and_memory_for_each(site: Testbed, tmp_path: Path) -> None:
    cluster = entry("typed_gpus", tmp_path)
    job, step, gpus = run(site, cluster, tmp_path / "run")
    assert (job["TresPerNode"], job["MemPerTres"], step["TRES"]) == (
        "gres:gpu:h100:4",
        f"gres:gpu:{90 * 1024}",
        "cpu=48,gres/gpu=4,mem=360G,node=1",
    )
    assert sorted(gpus) == ["4", "5", "6", "7"], "each process its own, of the second type"
    by_gres = run(site, cluster.model_copy(update={"gpu_request": "gres"}), tmp_path / "gres")
    assert (by_gres[0]["TresPerNode"], by_gres[1]["TRES"], sorted(by_gres[2])) == (
        job["TresPerNode"],
        step["TRES"],
        sorted(gpus),
    )
    job, step, gpus = run(site, cluster.collecting(), tmp_path / "collect")
    assert (step["TRES"], gpus) == ("cpu=12,mem=90G,node=1", [""])
    assert not {"TresPerNode", "TresBind"} & job.keys()


def test_memory_for_each_cpu_and_an_account(site: Testbed, tmp_path: Path) -> None:
    cluster = entry("memory_per_cpu", tmp_path)
    job, step, gpus = run(site, cluster, tmp_path / "run")
    assert (job["MinMemoryCPU"], job["Account"], job["QOS"]) == ("4G", "my-project", "normal")
    assert (step["TRES"], gpus) == ("cpu=16,gres/gpu=2,mem=64G,node=1", ["0,1"] * 2)
    job, step, gpus = run(site, cluster.collecting(), tmp_path / "collect")
    assert (job["Partition"], job["Account"], step["TRES"], gpus) == (
        "cpu",
        "my-project",
        "cpu=8,mem=32G,node=1",
        [""],
    )


def test_exclusive_nodes_of_a_reservation_with_mail_and_other_options(site: Testbed, tmp_path: Path) -> None:
    cluster = entry("whole_nodes", tmp_path)
    job, step, gpus = run(site, cluster, tmp_path / "run")
    assert (job["OverSubscribe"], job["NodeList"], job["Reservation"], job["Features"]) == (
        "NO",
        "n[1-2]",
        "workshop",
        "infiniband",
    )
    assert (job["MailUser"], job["MailType"], job["TresBind"]) == (
        "me@example.org",
        "END,FAIL",
        "gpu:closest",
    )
    assert "mem=1000G,node=2" in step["TRES"]
    assert len(gpus) == 8
    job, _, gpus = run(site, cluster.of("resnet50"), tmp_path / "step")
    assert (job["OverSubscribe"], job["NumNodes"], len(gpus), "MailType" in job) == ("NO", "1", 4, False)
    job, step, gpus = run(site, cluster.collecting(), tmp_path / "collect")
    assert (job["OverSubscribe"], job["Reservation"], job["MailType"]) == ("OK", "workshop", "END,FAIL")
    assert (step["TRES"], gpus) == ("cpu=16,mem=125G,node=1", [""])


def test_a_value_reaches_slurm_whatever_its_letters(site: Testbed, tmp_path: Path) -> None:
    odd = 'it\'s  [a] "ü" # $HOME *'
    cluster = Cluster(
        scheduler="slurm", memory_gb=1, sbatch={"mail-user": odd, "mail_type": "END", "begin": "now+1hour"}
    )
    made = Executor(folder=tmp_path)
    made.update_parameters(**parameters(cluster, "probe", "probe", tmp_path))
    (tmp_path / "script.sh").write_text(made._make_submission_file_text("true", "script"), encoding="utf-8")
    job = site.run("sbatch", "--parsable", str(tmp_path / "script.sh")).stdout.strip()
    assert f"MailUser={odd} MailType=END\n" in site.run("scontrol", "show", "job", job).stdout
    site.run("scancel", job)


def test_a_plan_is_submitted_and_trained_where_gpus_have_types(site: Testbed, tmp_path: Path) -> None:
    write_clusters(
        tmp_path,
        gpus_per_node=1,
        gpu_type="h100",
        memory_gb=None,
        memory_per_gpu_gb=3,
        sbatch={"mail_type": "FAIL", "gpu-bind": "single:1", "hint": "nomultithread"},
        collect={"partition": "cpu"},
    )
    done = submit(site, tmp_path, "--steps", "gelu", "--seeds", "1", epochs=1)
    assert "1 job (gelu) on 1 node, 1 h100 GPU each" in done.stdout
    job, collecting = (
        shown(site.run("scontrol", "show", "job", number).stdout)
        for number in re.findall(r"job (\d+):", done.stdout)
    )
    assert (job["TresPerNode"], job["TresBind"], job["MailType"]) == (
        "gres:gpu:h100:1",
        "gpu:single:1",
        "FAIL",
    )
    assert (collecting["Partition"], collecting["MinMemoryNode"], collecting["MailType"]) == (
        "cpu",
        "3G",
        "FAIL",
    )
    assert not {"TresPerNode", "TresBind"} & collecting.keys()
    site.run("scancel", collecting["JobId"])
    assert [outcomes(run) for run in wait(site, tmp_path, 1)] == [["done"]]


def test_an_option_that_sbatch_does_not_know_is_refused_in_its_words(site: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path, sbatch={"mial-type": "END"})
    refused = submit(site, tmp_path, "--steps", "gelu", "--seeds", "1", check=False)
    assert refused.returncode == 2
    assert "unrecognized option '--mial-type=END'" in refused.stderr


def test_doctor_asks_sbatch_about_an_entry(testbed: Testbed, tmp_path: Path) -> None:
    def doctor(**values: Any) -> subprocess.CompletedProcess[str]:
        clusters = write_clusters(tmp_path, **values)
        words = ["doctor", "--device", "cpu", "--cluster", "bed", "--cluster-file", str(clusters)]
        command = [sys.executable, "-m", "roadmap", *words, "--runs", str(tmp_path / "runs")]
        return testbed.run(*command, check=False, timeout_s=120, cwd=ROOT)

    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "MaxArraySize",
        "accounting: answers",
        "sbatch accepts a run",
        "accepts the job that collects",
    ):
        assert line in done.stdout
    refused = doctor(collect={"partition": "moon"})
    assert refused.returncode == 1
    assert "sbatch accepts a run" in refused.stdout
    assert "sbatch refuses the job that collects: " in refused.stdout
    assert "nvalid partition" in refused.stdout
    assert not testbed.run("squeue", "-h").stdout.strip()
