"""The experiment: configuration, data, optimisation, training, records, statistics, tables and plots."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS_YAML = ROOT / "steps.yaml"
