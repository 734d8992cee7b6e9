"""What was measured as Markdown: training, inference, and the training loop, for each roadmap, profile,
precision and `--set`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from roadmap.bench.groups import Comparison, MeasurementGroup, groups_of
from roadmap.bench.results import Measurement
from roadmap.deltas import Roadmap
from roadmap.report.columns import NONE, gmacs
from roadmap.report.render import markdown
from roadmap.steps_file import ReferenceSpeed, Throughput

TITLES = {"train": "training", "inference": "inference", "loop": "the training loop"}
MEANS = {
    "train": (
        "Training is forward, loss, backward, optimizer and moving average on one batch, without the recipe's"
        " mixup and erasing."
    ),
    "inference": "Inference is a forward pass of one batch.",
    "loop": (
        "The loop trains as runs do, from the data set on; the bare step is the same on a batch that is on"
        " the device already."
    ),
}
RIVALS = {
    "train": (
        "timm is its network in our format, precision and optimizer, with the same loss and moving average;"
        " its defaults are {}, contiguous tensors, and an optimizer that is not fused."
    ),
    "inference": (
        "timm is its network in our format and precision; its defaults are {} and contiguous tensors."
    ),
}
GROWN = "MiB is by how much a fresh process grew at most for the network and its iterations."
FIXED = {"px": "{} px", "batch": "batch {}", "n": "n = {}"}
Cell = Callable[[Comparison], str]


@dataclass(frozen=True)
class Table:
    """A table as text; heads that start with '>' are aligned to the right, notes belong below."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    notes: list[str]


def to_markdown(rows: Sequence[Measurement], roadmaps: Mapping[str, Roadmap]) -> str:
    """All tables of a device's file."""
    hardware = ", ".join(dict.fromkeys(f"{row.hardware}{_threads(row)}" for row in rows))
    tables = [markdown(sheet.title, sheet.heads, sheet.rows, sheet.notes) for sheet in sheets(rows, roadmaps)]
    return "\n".join([f"# Throughput on {hardware}\n", *(f"#{table}" for table in tables)])


def sheets(rows: Sequence[Measurement], roadmaps: Mapping[str, Roadmap]) -> Iterator[Table]:
    """A table for each mode of each group; `roadmaps` have the steps' titles and what was published."""
    for group in groups_of(rows, roadmaps):
        roadmap = roadmaps.get(group.roadmap)
        for mode, entries in group.entries.items():
            # what was published is of the steps as they are
            yield _sheet(
                group, mode, entries, roadmap.throughput if roadmap and not group.overrides else None
            )


def _threads(row: Measurement) -> str:
    return "" if row.threads is None else f", {row.threads} thread{'' if row.threads == 1 else 's'}"


def _sheet(
    group: MeasurementGroup, mode: str, entries: Sequence[Comparison], printed: Throughput | None
) -> Table:
    printed = (
        printed
        if mode == "inference" and printed and any(entry.ours.step in printed.steps for entry in entries)
        else None
    )
    columns = _columns(mode, printed)
    cells = {head: [cell(entry) for entry in entries] for head, cell in columns.items()}
    fixed = {
        head: FIXED[head].format(texts[0])
        for head, texts in cells.items()
        if head in FIXED and not printed and len(set(texts)) == 1
    }
    heads = [head for head, texts in cells.items() if head not in fixed and set(texts) != {NONE}]
    rows = [list(row) for row in zip(*(cells[head] for head in heads), strict=True)]
    rows += [_reference(reference, heads) for reference in printed.references] if printed else []
    title = f"{group.heading}: {TITLES[mode]} in {group.precision}"
    return Table(
        title,
        [head if head == "step" else f">{head}" for head in heads],
        rows,
        _notes(mode, entries, fixed, printed),
    )


def _columns(mode: str, printed: Throughput | None) -> dict[str, Cell]:
    """What a table can say of an entry, by its heads."""
    columns: dict[str, Cell] = {
        "step": lambda entry: entry.title,
        "px": lambda entry: str(entry.ours.image_size),
        "batch": lambda entry: str(entry.ours.batch),
        "GMACs": lambda entry: gmacs(entry.ours.gmacs),
        "images/s": lambda entry: speed(entry.ours.images_per_s),
        "middle half": lambda entry: middle(*entry.ours.throughput, speed),
        "n": lambda entry: str(entry.ours.n),
    }
    if printed:
        columns["published"] = lambda entry: _printed(printed.steps.get(entry.ours.step))
    if mode == "loop":
        columns |= {
            "bare step": lambda entry: _speed(entry.beside),
            "loop / bare": lambda entry: _ratio(entry.ours),
        }
        return columns
    return columns | {
        "TFLOP/s": lambda entry: f"{entry.ours.tflops:.3g}",
        "of peak": lambda entry: share(entry.ours),
        "MiB": lambda entry: NONE if entry.ours.memory_mb is None else f"{entry.ours.memory_mb:,.0f}",
        "timm": lambda entry: _speed(entry.beside),
        "ours / timm": lambda entry: _inverse(entry.beside),
        "timm's MiB": lambda entry: (
            NONE if not entry.beside or entry.beside.memory_mb is None else f"{entry.beside.memory_mb:,.0f}"
        ),
        "timm's defaults": lambda entry: _speed(entry.defaults),
        "ours / defaults": lambda entry: _inverse(entry.defaults),
    }


def speed(value: float | None) -> str:
    """Images per second, to three digits or to the whole."""
    return NONE if value is None else f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def _printed(value: float | None) -> str:
    """As a publication prints it."""
    return NONE if value is None else f"{value:,.1f}"


def middle(low: float, high: float, text: Callable[[float], str]) -> str:
    """Between what the middle half of the turns lies."""
    return f"{text(low)} to {text(high)}"


def share(row: Measurement) -> str:
    """The share of the device's peak."""
    return NONE if row.share_of_peak is None else f"{100 * row.share_of_peak:.0f} %"


def _speed(row: Measurement | None) -> str:
    return speed(row.images_per_s if row else None)


def _ratio(row: Measurement | None) -> str:
    if row is None or row.ratio is None or row.ratio_low is None or row.ratio_high is None:
        return NONE
    return f"{row.ratio:.2f} ({middle(row.ratio_low, row.ratio_high, '{:.2f}'.format)})"


def _inverse(row: Measurement | None) -> str:
    """Our throughput over timm's, from timm's over ours."""
    if row is None or row.ratio is None or row.ratio_low is None or row.ratio_high is None:
        return NONE
    inverse = {"ratio": 1 / row.ratio, "ratio_low": 1 / row.ratio_high, "ratio_high": 1 / row.ratio_low}
    return _ratio(row.model_copy(update=inverse))


def _reference(reference: ReferenceSpeed, heads: Sequence[str]) -> list[str]:
    """The row of a model that is published only."""
    cells = {
        "step": reference.title,
        "px": str(reference.image_size),
        "published": _printed(reference.images_per_s),
    }
    return [cells.get(head, NONE) for head in heads]


def _notes(
    mode: str, entries: Sequence[Comparison], fixed: Mapping[str, str], printed: Throughput | None
) -> list[str]:
    """What belongs below a table."""
    ours = [entry.ours for entry in entries]
    notes = [f"The same in all rows: {', '.join(fixed.values())}."] if fixed else []
    notes.append(
        f"{MEANS[mode]} Medians over n turns, between which the others were measured; ratios are medians of"
        " each turn's."
    )
    if any(row.share_of_peak is not None for row in ours):
        matmul, convolution = (
            _range([getattr(row, name) for row in ours])
            for name in ("peak_matmul_tflops", "peak_conv_tflops")
        )
        peak = (
            f"The peak is the larger of a matrix product, {matmul} TFLOP/s, and a dense 3x3 convolution,"
            f" {convolution} TFLOP/s"
        )
        notes.append(
            f"{peak}, in the same turns; GMACs and TFLOP/s are those of {TITLES[mode]}, a multiply-add two"
            " operations."
        )
    if any(row.memory_mb is not None for row in ours):
        notes.append(
            "MiB is the most memory that an iteration's tensors took." if ours[0].threads is None else GROWN
        )
    if any(entry.defaults for entry in entries):
        precision = next(entry.defaults.precision for entry in entries if entry.defaults)
        notes.append(RIVALS[mode].format(precision))
    if printed:
        notes.append(f"Published: images/s in inference on {printed.on} ({printed.source}).")
    versions = [f"torch {row.torch}, timm {row.timm}, commit {_commit(row)}, {row.date[:10]}" for row in ours]
    return [*notes, f"{'; '.join(dict.fromkeys(versions))}."]


def _commit(row: Measurement) -> str:
    sha, plus, changes = (row.commit or "unknown").partition("+")
    return f"{sha[:7]}{plus}{changes}"


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    low, high = f"{min(known):.3g}", f"{max(known):.3g}"
    return low if low == high else f"{low} to {high}"
