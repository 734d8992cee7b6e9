"""Labels as people store them: integers in many forms, and one clear error for anything else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadmap.errors import ConfigError, Problem

LARGEST = 2**63  # the first that is no int64
SHOWN = 60  # characters of a value in a message


class BadSample(ConfigError):
    """A sample has no label, an invalid one, or no image; the message names the sample and the value."""

    def __init__(self, message: str) -> None:
        # A DataLoader makes it again from the traceback of its worker, which ends with the message.
        super().__init__([Problem("", message.strip().rpartition(f"{__name__}.BadSample: ")[2])])

    def __reduce__(self) -> Any:
        return type(self), (str(self),)


def label_of(value: Any, where: str | Callable[[], str]) -> int:
    """The label that a value stands for: an integer, or an array or tensor of one; BadSample names
    `where` and the value.

    A float without a fraction counts, as tables have them; True and text do not. `where` may be a function
    where it takes time to find the sample's name.
    """
    label = value
    if hasattr(value, "item"):
        with suppress(ValueError, RuntimeError):  # an array or a tensor of more than one element
            label = value.item()
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, int) and not isinstance(label, bool) and -LARGEST <= label < LARGEST:
        return label
    name = where if isinstance(where, str) else where()
    raise BadSample(
        f"{name} has the label {_shown(value)}; a label must be one whole number, 0 for the first class"
    )


def label_in(text: bytes, where: str) -> int:
    """The label that a text file holds; BadSample if it is no integer."""
    integer = re.fullmatch(rb"\s*[-+]?[0-9]{1,20}\s*", text)
    return label_of(int(text) if integer else text.decode(errors="backslashreplace"), where)


def field_in(text: bytes, field: str, where: str) -> Any:
    """The value of a field in a sample's JSON: by timm's rule a name, or a path with slashes; BadSample
    if it is missing.
    """
    try:
        found = json.loads(text)
        for part in [field] if field in found else field.split("/"):
            found = found[part]
    except (ValueError, LookupError, TypeError) as error:
        what = (
            "is no JSON"
            if isinstance(error, ValueError)
            else f"has no field '{field}', which is to be the label; set data.label_key"
        )
        raise BadSample(f"{where} {what}") from None
    return found


def labels_of(
    values: NDArray[Any], where: Callable[[int], str], value_at: Callable[[int], Any]
) -> NDArray[np.int64]:
    """A table's column as labels (N,); BadSample for the first that is invalid.

    `value_at` returns the value in the table, which NumPy may have converted.
    """
    if values.ndim == 1 and values.dtype.kind in "iu":
        return values.astype(np.int64)
    if values.ndim == 1 and values.dtype.kind == "f":
        whole = np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < LARGEST)
        if whole.all():
            return values.astype(np.int64)
        first = int(np.flatnonzero(~whole)[0])
        label_of(value_at(first), where(first))
    return np.array(
        [label_of(value_at(number), where(number)) for number in range(len(values))], dtype=np.int64
    )


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
