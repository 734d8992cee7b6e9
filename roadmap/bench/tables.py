"""The tables of a device's measurements: training, inference and the training loop."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from roadmap.bench.results import BARE, LOOP, OURS, TIMM, TIMM_DEFAULTS, Measurement
from roadmap.deltas import Roadmap
from roadmap.report.columns import NONE, gmacs
from roadmap.report.render import Heading, Table, to_markdown
from roadmap.steps_file import ReferenceSpeed, Throughput

TITLES = {"train": "training", "inference": "inference", "loop": "the training loop"}
MEANS = {
    "train": (
        "Training is forward, loss, backward, optimizer and EMA on one batch, without the recipe's"
        " mixup and erasing."
    ),
    "inference": "Inference is a forward pass of one batch.",
    "loop": (
        "The loop trains as a run does, with its data loader; the bare step is the same on a batch that is on"
        " the device already."
    ),
}
RIVALS = {
    "train": (
        "timm is its network in our format, precision and optimizer, with the same loss and EMA;"
        " its defaults are {}, contiguous tensors, and an optimizer that is not fused."
    ),
    "inference": (
        "timm is its network in our format and precision; its defaults are {} and contiguous tensors."
    ),
}
GROWN = "MiB is the peak growth of a new process with the network and its iterations."
FIXED = {"px": "{} px", "batch": "batch {}", "n": "n = {}"}
SAME = {"train": TIMM, "inference": TIMM, "loop": BARE}
LONGEST = 80  # letters of overrides in a file's name


@dataclass(frozen=True)
class StepMeasurements:
    """A step's rows in a mode: `ours` is our network or the training loop.

    `beside` is timm's network in the same format, or the bare step; `defaults` is timm's at its defaults.
    """

    title: str
    ours: Measurement
    beside: Measurement | None
    defaults: Measurement | None


EntryText = Callable[[StepMeasurements], str]


@dataclass(frozen=True)
class MeasurementGroup:
    """Measurements with one roadmap, profile, precision and `overrides`; entries by mode, in path order."""

    roadmap: str
    title: str
    profile: str | None
    precision: str
    overrides: str | None
    entries: Mapping[str, Sequence[StepMeasurements]]

    @property
    def rows(self) -> list[Measurement]:
        """All rows, with those of timm's networks."""
        found = [
            row
            for entries in self.entries.values()
            for entry in entries
            for row in (entry.ours, entry.beside, entry.defaults)
        ]
        return [row for row in found if row is not None]

    @property
    def name(self) -> str:
        """The name of its figure's file."""
        return "-".join(
            filter(None, [self.roadmap, self.profile, _file_name(self.overrides or ""), self.precision])
        )

    @property
    def heading(self) -> str:
        """The start of its titles, without the precision."""
        return ", ".join(filter(None, [self.title, self.profile, *(self.overrides or "").split(";")]))


def groups_of(rows: Sequence[Measurement], roadmaps: Mapping[str, Roadmap]) -> list[MeasurementGroup]:
    """All groups of a file; the title of an unknown step is its name."""
    found: dict[tuple[str, str | None, str, str | None], list[Measurement]] = {}
    for row in rows:
        found.setdefault((row.roadmap, row.profile, row.against, row.overrides), []).append(row)
    return [_group(*key, same, roadmaps.get(key[0])) for key, same in found.items()]


def _group(
    name: str,
    profile: str | None,
    precision: str,
    overrides: str | None,
    rows: Sequence[Measurement],
    roadmap: Roadmap | None,
) -> MeasurementGroup:
    modes: dict[str, list[StepMeasurements]] = {}
    of = {(row.step, row.mode, row.batch, row.image_size, row.subject): row for row in rows}
    for row in rows:
        if row.subject in (OURS, LOOP):
            place = (row.step, row.mode, row.batch, row.image_size)
            is_known = roadmap is not None and row.step in roadmap.with_references
            title = roadmap.delta(row.step).title if roadmap and is_known else row.step
            entry = StepMeasurements(
                title, row, of.get((*place, SAME[row.mode])), of.get((*place, TIMM_DEFAULTS))
            )
            modes.setdefault(row.mode, []).append(entry)
    return MeasurementGroup(name, roadmap.title if roadmap else name, profile, precision, overrides, modes)


def _file_name(overrides: str) -> str:
    """Overrides as a short part of a file's name, with a digest to keep it unique."""
    if not overrides:
        return ""
    words = re.sub(r"[^a-z0-9]+", "-", overrides.lower()).strip("-")
    return f"{words[:LONGEST]}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


def usual(rows: Sequence[Measurement], get: Callable[[Measurement], int]) -> int:
    """The most frequent value."""
    return Counter(map(get, rows)).most_common(1)[0][0]


def device_markdown(rows: Sequence[Measurement], roadmaps: Mapping[str, Roadmap]) -> str:
    """All tables of a device's file."""
    hardware = ", ".join(dict.fromkeys(f"{row.hardware}{_threads(row)}" for row in rows))
    tables = [f"#{to_markdown(table)}" for table in tables_of(rows, roadmaps)]
    return "\n".join([f"# Throughput on {hardware}\n", *tables])


def tables_of(rows: Sequence[Measurement], roadmaps: Mapping[str, Roadmap]) -> Iterator[Table]:
    """A table for each mode of each group; `roadmaps` have the steps' titles and published values."""
    for group in groups_of(rows, roadmaps):
        roadmap = roadmaps.get(group.roadmap)
        for mode, entries in group.entries.items():
            # published values are of the steps without overrides
            printed = roadmap.throughput if roadmap and not group.overrides else None
            yield _table(group, mode, entries, printed)


def _threads(row: Measurement) -> str:
    return "" if row.threads is None else f", {row.threads} thread{'' if row.threads == 1 else 's'}"


def _table(
    group: MeasurementGroup, mode: str, entries: Sequence[StepMeasurements], printed: Throughput | None
) -> Table:
    printed = (
        printed
        if mode == "inference" and printed and any(entry.ours.step in printed.steps for entry in entries)
        else None
    )
    texts_of = _columns(mode, printed)
    cells = {head: [text(entry) for entry in entries] for head, text in texts_of.items()}
    fixed = {
        head: FIXED[head].format(texts[0])
        for head, texts in cells.items()
        if head in FIXED and not printed and len(set(texts)) == 1
    }
    heads = [head for head, texts in cells.items() if head not in fixed and set(texts) != {NONE}]
    rows = [list(row) for row in zip(*(cells[head] for head in heads), strict=True)]
    rows += [_reference(reference, heads) for reference in printed.references] if printed else []
    title = f"{group.heading}: {TITLES[mode]} in {group.precision}"
    columns = [Heading(head, head, is_number=head != "step") for head in heads]
    return Table(title, columns, rows, _notes(mode, entries, fixed, printed))


def _columns(mode: str, printed: Throughput | None) -> dict[str, EntryText]:
    """The columns that a table can have, by their heads."""
    columns: dict[str, EntryText] = {
        "step": lambda entry: entry.title,
        "px": lambda entry: str(entry.ours.image_size),
        "batch": lambda entry: str(entry.ours.batch),
        "GMACs": lambda entry: gmacs(entry.ours.gmacs),
        "images/s": lambda entry: speed(entry.ours.images_per_s),
        "IQR": lambda entry: interval(*entry.ours.throughput, speed),
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
        "% of peak": lambda entry: peak_percentage(entry.ours),
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
    """Images per second with three digits, or as an integer."""
    return NONE if value is None else f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def _printed(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f}"


def interval(low: float, high: float, text: Callable[[float], str]) -> str:
    """An interquartile range."""
    return f"{text(low)} to {text(high)}"


def peak_percentage(row: Measurement) -> str:
    """The % of the device's peak FLOP/s."""
    return NONE if row.share_of_peak is None else f"{100 * row.share_of_peak:.0f} %"


def _speed(row: Measurement | None) -> str:
    return speed(row.images_per_s if row else None)


def _ratio(row: Measurement | None) -> str:
    if row is None or row.ratio is None or row.ratio_low is None or row.ratio_high is None:
        return NONE
    return f"{row.ratio:.2f} ({interval(row.ratio_low, row.ratio_high, '{:.2f}'.format)})"


def _inverse(row: Measurement | None) -> str:
    """Our throughput over timm's."""
    if row is None or row.ratio is None or row.ratio_low is None or row.ratio_high is None:
        return NONE
    inverse = {"ratio": 1 / row.ratio, "ratio_low": 1 / row.ratio_high, "ratio_high": 1 / row.ratio_low}
    return _ratio(row.model_copy(update=inverse))


def _reference(reference: ReferenceSpeed, heads: Sequence[str]) -> list[str]:
    """The row of a model with published values only."""
    cells = {
        "step": reference.title,
        "px": str(reference.image_size),
        "published": _printed(reference.images_per_s),
    }
    return [cells.get(head, NONE) for head in heads]


def _notes(
    mode: str, entries: Sequence[StepMeasurements], fixed: Mapping[str, str], printed: Throughput | None
) -> list[str]:
    ours = [entry.ours for entry in entries]
    notes = [f"The same in all rows: {', '.join(fixed.values())}."] if fixed else []
    notes.append(
        f"{MEANS[mode]} Medians over n interleaved rounds with interquartile range (IQR); ratios are medians"
        " of each round's."
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
            f"{peak}, in the same rounds; GMACs and TFLOP/s are those of {TITLES[mode]}, a multiply-add two"
            " operations."
        )
    if any(row.memory_mb is not None for row in ours):
        notes.append(
            "MiB is the peak memory of an iteration's tensors." if ours[0].threads is None else GROWN
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
