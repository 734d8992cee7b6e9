"""The folders of a data set's splits: where they are, and what to set where they are not."""

from __future__ import annotations

from pathlib import Path

SYNONYMS = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))  # timm takes one for the other


def find_split(root: Path, name: str) -> Path | None:
    """A split's folder in `root`, by its name or a synonym, as timm finds it; None if there is none."""
    names = (name, *next((group for group in SYNONYMS if name in group), ()))
    return next((root / each for each in names if (root / each).is_dir()), None)
