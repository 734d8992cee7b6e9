"""The page's details of a step: the values it sets, its block, the paper's values, and its runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from roadmap.deltas import changes, resolve, trace
from roadmap.records import Status
from roadmap.report.ablation import Ablation, AblationRow
from roadmap.report.columns import COLUMNS, NONE
from roadmap.report.page.vega import accuracy, delta
from roadmap.strict_yaml import show

VALUES = (
    "p",
    "needed",
    "ema",
    "gmacs",
    "params",
    "images_per_s",
    "device_hours",
    "peak_memory_mb",
    "gap",
    "hash",
)
RUN_HEADS = (
    "run", "seed", "state", "top-1 (%)", "epochs", "images/s", "processes", "attempts", "corrupt images",
    "hash", "commit", "hardware", "versions", "finished", "remark",
)  # fmt: skip


@dataclass(frozen=True)
class ChangedKey:
    """A key that a step sets, with its values; `remark` explains why it has no effect, if it has none."""

    path: str
    before: str
    after: str
    remark: str = ""


@dataclass(frozen=True)
class StepDetails:
    """The details of a row as text, by name where there are several."""

    block: str
    values: tuple[tuple[str, str], ...]
    network: tuple[ChangedKey, ...]
    recipe: tuple[ChangedKey, ...]
    paper: tuple[tuple[str, str], ...]
    seeds: tuple[tuple[str, ...], ...]


def details(ablation: Ablation, row: AblationRow) -> StepDetails:
    """The details of one step, with the profile and the overrides that the ablation has."""
    config = resolve(ablation.roadmap, row.step, profile=ablation.profile, overrides=ablation.overrides)
    found = list(_changes(ablation, row))
    return StepDetails(
        block=config.architecture,
        values=tuple(_values(row)),
        network=tuple(change for change in found if not change.path.startswith("recipe.")),
        recipe=tuple(change for change in found if change.path.startswith("recipe.")),
        paper=tuple(_paper(row)) if ablation.source != "paper" else (),
        seeds=tuple(_seed(run) for run in _ordered(row)),
    )


def _changes(ablation: Ablation, row: AblationRow) -> Iterator[ChangedKey]:
    """The keys that differ from the parent's, in the base's order, and those set without effect."""
    if row.parent is None:
        return
    before, after = (
        trace(ablation.roadmap, step, profile=ablation.profile, overrides=ablation.overrides)
        for step in (row.parent, row.step)
    )
    differences, own = changes(before, after), ablation.roadmap.delta(row.step).settings
    for path in ablation.roadmap.base:
        if path in differences:
            old, new = differences[path]
            yield ChangedKey(path, show(old), show(new))
        elif path in own:
            setter = after[path].source or "an override"
            why = (
                "the parent has the same"
                if setter == own[path].source
                else f"{setter} sets {show(after[path].value)}"
            )
            yield ChangedKey(
                path, show(before[path].value), show(own[path].value), f"without effect here: {why}"
            )


def _values(row: AblationRow) -> Iterator[tuple[str, str]]:
    yield "top-1 (%)", accuracy(row)
    if row.parent is not None:
        yield f"Δ to {row.parent}", delta(row)
    for key in VALUES:
        if (text := COLUMNS[key].text(row)) != NONE:
            yield COLUMNS[key].head, text
    if row.states:
        yield "runs", COLUMNS["status"].text(row)
    if row.mixed:
        yield "not in common", ", ".join(row.mixed)


def _paper(row: AblationRow) -> Iterator[tuple[str, str]]:
    if row.paper:
        yield "top-1 (%)", f"{row.paper} (n = {row.paper.n})"
    if row.paper_delta:
        yield "Δ to the parent", str(row.paper_delta)
    if row.paper_gmacs is not None:
        yield "GMACs", f"{row.paper_gmacs:.2f}" + (f"; {row.gmacs_note}" if row.gmacs_note else "")


def _ordered(row: AblationRow) -> list[Status]:
    return sorted(row.runs, key=lambda run: run.run.seed)


def _seed(run: Status) -> tuple[str, ...]:
    """Seed, state, top-1 and EMA top-1."""
    top1, ema = (run.result.top1, run.result.ema_top1) if run.result else (None, None)
    return (str(run.run.seed), run.state, _number(top1, ".2f"), _number(ema, ".2f"))


def provenance(ablation: Ablation) -> list[tuple[str, ...]]:
    """All runs of the ablation in the order of its rows, as text under `RUN_HEADS`."""
    return [_provenance(run) for row in ablation.rows for run in _ordered(row)]


def _provenance(run: Status) -> tuple[str, ...]:
    result, head = run.result, (run.run.name, str(run.run.seed), run.state)
    if result is None:
        host = run.owner.get("host") if run.owner else None
        remark = run.why or (f"on {host}" if host else "")
        return (*head, *[NONE] * 6, run.run.hash, *[NONE] * 4, remark)
    return (
        *head,
        _number(result.top1, ".2f"),
        str(result.epochs),
        f"{result.images_per_s:.0f}",
        str(result.processes),
        str(result.attempts),
        str(result.corrupt_images),
        run.run.hash,
        result.commit or "no commit",
        result.hardware,
        ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        result.finished,
        run.why or "",
    )


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
