"""The measurements: one row per subject, in one CSV file per device."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from roadmap.errors import ConfigError, config_error, format_validation_error, relative
from roadmap.files import locked, write_atomic, write_errors

Mode = Literal["train", "inference", "loop"]
MODES = ("train", "inference", "loop")
OURS, TIMM, TIMM_DEFAULTS, LOOP, BARE = "ours", "timm", "timm_defaults", "loop", "bare"
SUBJECTS = (OURS, TIMM, TIMM_DEFAULTS, LOOP, BARE)
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Measurement(BaseModel):
    """One subject's throughput: `ms` is the median time of an iteration over `n` rounds.

    `low` and `high` are the ends of the interquartile range. `subject` is one of `SUBJECTS`. `overrides` are
    the keys of `--set` without a column, as 'key=value;key=value'. `ratio` is the throughput over that of the
    row that `ratio_to` names with its precision, such as 'ours bf16', round by round. `memory_mb` is in MiB:
    the peak of tensors on a GPU, the growth of the process on a CPU. `gmacs` are 10**9 multiply-adds per
    image in this mode. The peaks are in the step's precision; `share_of_peak` refers to the larger one.
    `threads` are PyTorch's, None on a GPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    roadmap: str
    step: str
    profile: str | None = None
    mode: Mode
    subject: str
    precision: str
    memory_format: str
    batch: Annotated[int, Field(ge=1)]
    image_size: Annotated[int, Field(ge=1)]
    overrides: str | None = None
    n: Annotated[int, Field(ge=1)]
    ms: Above0
    ms_low: Above0
    ms_high: Above0
    images_per_s: Above0
    ratio_to: str | None = None
    ratio: Above0 | None = None
    ratio_low: Above0 | None = None
    ratio_high: Above0 | None = None
    memory_mb: Above0 | None = None
    gmacs: Above0
    tflops: Above0
    peak_matmul_tflops: Above0 | None = None
    peak_conv_tflops: Above0 | None = None
    share_of_peak: Above0 | None = None
    hardware: str
    threads: int | None = None
    torch: str
    timm: str
    commit: str | None = None
    date: str

    @property
    def key(self) -> tuple[Any, ...]:
        """The row's identity in its file."""
        return tuple(getattr(self, name) for name in KEY)

    @property
    def against(self) -> str:
        """The precision of the step that it is compared with."""
        return self.ratio_to.split()[1] if self.ratio_to and self.mode != "loop" else self.precision

    @property
    def throughput(self) -> tuple[float, float]:
        """The interquartile range in images per second."""
        return 1e3 * self.batch / self.ms_high, 1e3 * self.batch / self.ms_low


KEY = (
    "roadmap",
    "step",
    "profile",
    "mode",
    "subject",
    "precision",
    "memory_format",
    "batch",
    "image_size",
    "overrides",
    "ratio_to",
)
LATER = {"overrides"}  # columns that old files lack


def read_rows(path: Path) -> list[Measurement]:
    """The rows of a file, none if it does not exist; ConfigError if it has another format."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or "it is not UTF-8 text") from error
    if not text.endswith("\n"):
        raise _unreadable(path, "its last line is cut off")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        head = next(lines, [])
        if head not in (
            list(Measurement.model_fields),
            [name for name in Measurement.model_fields if name not in LATER],
        ):
            raise _unreadable(path, f"its columns are not {', '.join(Measurement.model_fields)}")
        return [_row(path, lines.line_num, dict(zip(head, cells, strict=True))) for cells in lines]
    except (csv.Error, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _unreadable(path, f"line {lines.line_num} does not have {len(head)} columns") from error


def _row(path: Path, line: int, cells: dict[str, str]) -> Measurement:
    try:
        return Measurement.model_validate({name: cell or None for name, cell in cells.items()})
    except ValidationError as error:
        first: Any = error.errors()[0]
        raise _unreadable(
            path, f"line {line}, {'.'.join(map(str, first['loc']))}: {format_validation_error(first)}"
        ) from error


def _unreadable(path: Path, why: str) -> ConfigError:
    message = f"is not a table of this command: {why}; move it, or choose another folder with --out"
    return config_error(relative(path), message)


def merged(
    old: Sequence[Measurement], new: Sequence[Measurement], roadmap: str, steps: Sequence[str]
) -> list[Measurement]:
    """Old rows and new ones, which replace those of the same key; the roadmap's in the order of `steps`."""
    rows = list({row.key: row for row in (*old, *new)}.values())
    places = {step: place for place, step in enumerate(steps)}

    def place(row: Measurement) -> tuple[Any, ...]:
        group = (row.roadmap, row.profile or "", row.overrides or "")
        if row.roadmap != roadmap:
            return (*group, 0)
        subject = SUBJECTS.index(row.subject) if row.subject in SUBJECTS else len(SUBJECTS)
        return (
            *group, places.get(row.step, len(places)), row.step, MODES.index(row.mode), row.against,
            row.image_size, row.batch, subject,
        )  # fmt: skip

    return sorted(rows, key=place)


def to_csv(rows: Sequence[Measurement]) -> str:
    """The file's text, in full precision."""
    records = [row.model_dump() for row in rows]
    # objects, for pandas would write integers beside missing ones as floats
    return pd.DataFrame(records, columns=list(Measurement.model_fields), dtype=object).to_csv(index=False)


def add_rows(path: Path, new: Sequence[Measurement], roadmap: str, steps: Sequence[str]) -> list[Measurement]:
    """Merges rows into a file, safely beside other processes, and returns all rows.

    ConfigError if the file has another format, or cannot be written.
    """
    with write_errors(path), ExitStack() as stack:
        with suppress(OSError):  # of a file system without locks
            stack.enter_context(locked(path.with_name(f".{path.name}.lock")))
        rows = merged(read_rows(path), new, roadmap, steps)
        write_atomic(path, to_csv(rows))
    return rows


def slug(hardware: str, threads: int | None) -> str:
    """A device's name as a file's: 'Intel(R) Xeon(R), 2 cores' with 2 threads is intel-xeon-2-threads."""
    name = re.sub(r"\((R|TM|C)\)|, \d+ cores?$", "", hardware, flags=re.IGNORECASE)
    words = name if threads is None else f"{name} {threads} thread{'' if threads == 1 else 's'}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
