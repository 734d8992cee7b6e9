"""Launching the roadmap: submission, the workers that carry it out, and their status."""

from pathlib import Path

CLUSTER_YAML = Path(__file__).resolve().parent / "cluster.yaml"
