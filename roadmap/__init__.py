"""The experiment: configuration, data, optimization, training, records, statistics, tables and plots."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_AT_THE_TOP = ROOT / "steps.yaml"  # of a checkout; a wheel has it in this package
STEPS_YAML = _AT_THE_TOP if _AT_THE_TOP.exists() else ROOT / "roadmap" / "steps.yaml"
