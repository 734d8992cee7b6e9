"""Training roadmaps on Slurm or on this machine: submission, workers, status, logs, and cancellation."""

from pathlib import Path

CLUSTER_YAML = Path(__file__).resolve().parent / "cluster.yaml"
