"""The page's charts as Vega-Lite specifications, and their data, which the page fills in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from roadmap.report.ablation import Ablation, AblationRow
from roadmap.report.columns import COLUMNS, NONE

if TYPE_CHECKING:
    from roadmap.report.curves import Curve

VegaSpec = dict[str, Any]
COSTS = ("gmacs", "params", "images_per_s", "device_hours", "peak_memory_mb")
MEASURES = {
    "top1": ("accuracy", "validation top-1 (%)"),
    "ema_top1": ("accuracy", "validation top-1 of the EMA (%)"),
    "train_loss": ("loss", "training loss"),
    "val_loss": ("loss", "validation loss"),
}
ON_WAY = "indexof(way, datum.id) >= 0"
CHOSEN = "datum.id === chosen"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def axes(ablation: Ablation) -> list[dict[str, str]]:
    """The costs that the chart's horizontal axis can show, as `key` and `title`."""
    drawn = [row for row in ablation.rows if row.top1]
    return [
        {"key": key, "title": COLUMNS[key].title}
        for key in COSTS
        if any(_finite(COLUMNS[key].value(row)) is not None for row in drawn)
    ]


def points(ablation: Ablation) -> list[dict[str, Any]]:
    """A record for every row: its number and its parent's, its accuracy, costs and tooltip."""
    numbers = {row.step: number for number, row in enumerate(ablation.rows)}
    return [_point(number, row, numbers.get(row.parent or "")) for number, row in enumerate(ablation.rows)]


def _point(number: int, row: AblationRow, parent: int | None) -> dict[str, Any]:
    top1 = _finite(row.top1.mean if row.top1 else None)
    spread = _finite(row.top1.std if row.top1 else None) or 0.0
    return {
        "id": number,
        "step": row.step,
        "title": row.title,
        "parent": parent,
        "side": row.is_beside_path,
        "top1": top1,
        "low": None if top1 is None else top1 - spread,
        "high": None if top1 is None else top1 + spread,
        "cost": {key: _finite(COLUMNS[key].value(row)) for key in COSTS},
        "tip": tip(row),
    }


def _finite(value: str | float | None) -> float | None:
    """The value if it is a finite number."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def tip(row: AblationRow) -> list[tuple[str, str]]:
    """A step's tooltip, as names and values."""
    lines = [("changed", row.change), ("top-1 (%)", accuracy(row))]
    if row.parent is not None:
        lines.append((f"Δ to {row.parent}", delta(row)))
    if row.seeds:
        lines.append(("seeds", ", ".join(f"{seed}: {value:.2f}" for seed, value in row.seeds.items())))
    return [*lines, ("GMACs", COLUMNS["gmacs"].text(row)), ("hash", row.hash)]


def accuracy(row: AblationRow) -> str:
    """Top-1 with its spread and n, or the reason why there is none."""
    if row.top1 is None:
        return (
            COLUMNS["top1"].text(row)
            if row.diverged
            else "no run has finished"
            if row.planned or row.runs
            else NONE
        )
    return f"{row.top1} (n = {row.top1.n}{f' of {row.planned}' if row.top1.n < row.planned else ''})"


def delta(row: AblationRow) -> str:
    """The difference to the parent with its 95 % interval, and whether it is resolved."""
    if row.delta is None:
        return NONE
    return (
        f"{row.delta}"
        + {True: ", resolved", False: ", not resolved", None: ", without an interval"}[row.resolved]
    )


def bands(curves: Iterable[Curve], numbers: dict[str, int]) -> list[dict[str, Any]]:
    """For each step with curves its epochs, and by measure [mean, lowest, highest] of the seeds per epoch."""
    of_step: dict[int, list[Curve]] = {}
    for curve in curves:
        if curve.step in numbers:
            of_step.setdefault(numbers[curve.step], []).append(curve)
    return [_band(number, of_step[number]) for number in sorted(of_step)]


def _band(number: int, curves: Sequence[Curve]) -> dict[str, Any]:
    epochs = sorted({epoch for curve in curves for epoch in curve.epoch})
    found: dict[str, Any] = {"id": number, "seeds": len(curves), "epoch": epochs}
    for measure in MEASURES:
        at: dict[int, list[float]] = {}
        for curve in curves:
            for epoch, value in zip(curve.epoch, getattr(curve, measure), strict=True):
                if value is not None and math.isfinite(value):
                    at.setdefault(epoch, []).append(value)
        if at:
            found[measure] = [_spread(at[epoch]) if epoch in at else None for epoch in epochs]
    return found


def _spread(values: Sequence[float]) -> list[float]:
    """Mean, lowest and highest, with digits enough for a screen."""
    return [float(f"{value:.5g}") for value in (math.fsum(values) / len(values), min(values), max(values))]


def accuracy_chart() -> VegaSpec:
    """Accuracy against a cost; the page sets the data, the `chosen` point, and the `way` to it."""
    edge = {"x": _x(), "y": _y(), "x2": {"field": "x2"}, "y2": {"field": "top1_2"}}
    faded = {"condition": {"test": f"length(way) == 0 || {ON_WAY}", "value": 1}, "value": 0.35}
    line = {"condition": {"test": ON_WAY, "value": "var(--pick)"}, "value": "var(--edge)"}
    error = {"type": "rule", "strokeWidth": 1.25, "color": "var(--muted)", "aria": False}
    label = {"x": _x(), "y": _y(), "text": {"field": "text"}, "opacity": _shown()}
    layers = [
        *_reference(),
        {
            "data": {"name": "edges"},
            "mark": {"type": "rule", "aria": False},
            "encoding": {**edge, "color": line, **_width(ON_WAY, 2.5, 1.25)},
        },
        {
            "data": {"name": "edges"},
            "mark": _arrow(),
            "encoding": {"x": _x("xm"), "y": _y("ym"), "color": line},
        },
        {
            "data": {"name": "points"},
            "mark": error,
            "encoding": {"x": _x(), "y": _y("low"), "y2": {"field": "high"}, "opacity": faded},
        },
        {
            "data": {"name": "labels"},
            "mark": _text(stroke="var(--paper)", strokeWidth=3, strokeJoin="round"),
            "encoding": label,
        },
        {"data": {"name": "labels"}, "mark": _text(color="var(--ink)"), "encoding": label},
        {
            "data": {"name": "points"},
            "mark": {"type": "point", "size": 110, "strokeWidth": 2, "cursor": "pointer"},
            "encoding": _dots(faded),
        },
    ]
    names: dict[str, list[Any]] = {"points": [], "edges": [], "labels": [], "reference": []}
    return _chart(430, names, layers, [{"name": "chosen", "value": -1}, {"name": "way", "value": []}])


def curve_chart() -> VegaSpec:
    """A measure by epoch, a line per step with the band of its seeds; the page sets `lines` and colors."""
    x = {
        "field": "epoch",
        "type": "quantitative",
        "title": "epoch",
        "scale": {"nice": False},
        "axis": {"tickMinStep": 1},
    }
    y = {"type": "quantitative", "scale": {"zero": False}}
    series = {
        "color": {"field": "color", "type": "nominal", "scale": None},
        "detail": {"field": "order", "type": "ordinal"},
    }
    wide = {"strokeWidth": {"field": "width", "type": "quantitative", "scale": None}}
    band = {"x": x, "y": {**y, "field": "low", "title": ""}, "y2": {"field": "high"}, **series}
    mean: VegaSpec = {"x": x, "y": {**y, "field": "mean", "title": ""}, **series}
    colored = [{"filter": "datum.width > 1"}]
    layers: list[VegaSpec] = [
        {"transform": colored, "mark": {"type": "area", "opacity": 0.18, "aria": False}, "encoding": band},
        {"mark": {"type": "line", "interpolate": "linear", "aria": False}, "encoding": mean | wide},
        {
            "transform": colored,
            "mark": {
                "type": "point",
                "filled": True,
                "size": 70,
                "opacity": 0,
                "cursor": "pointer",
                "aria": False,
            },
            "encoding": mean | {"tooltip": {"field": "step", "type": "nominal"}},
        },
    ]
    return _chart(280, {"lines": []}, [{"data": {"name": "lines"}, **layer} for layer in layers], [])


def _chart(
    height: int, names: dict[str, list[Any]], layers: list[VegaSpec], params: list[VegaSpec]
) -> VegaSpec:
    axis = {
        "labelColor": "var(--muted)",
        "titleColor": "var(--ink)",
        "titleFontWeight": 500,
        "gridColor": "var(--rule)",
    }
    axis |= {
        "domainColor": "var(--edge)",
        "tickColor": "var(--edge)",
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titlePadding": 10,
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "background": None,
        "datasets": names,
        "params": params,
        "layer": layers,
        "config": {"font": FONT, "view": {"stroke": None}, "axis": axis},
    }


def _x(field: str = "x") -> VegaSpec:
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"zero": False, "padding": 24},
        "axis": {"tickCount": 8},
    }


def _y(field: str = "top1") -> VegaSpec:
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"zero": False, "padding": 16},
        "title": "top-1 (%)",
    }


def _if(test: str, yes: Any, no: Any) -> VegaSpec:
    return {"condition": {"test": test, "value": yes}, "value": no}


def _shown() -> VegaSpec:
    """The chosen step's name, and others where there is room, pale if they are not on the way to it."""
    off = {"test": f"!datum.show && !({CHOSEN})", "value": 0}
    return {"condition": [off, {"test": f"length(way) > 0 && !({ON_WAY})", "value": 0.45}], "value": 1}


def _width(test: str, yes: float, no: float) -> VegaSpec:
    return {"strokeWidth": _if(test, yes, no)}


def _dots(faded: VegaSpec) -> VegaSpec:
    """Filled on the path, hollow beside it, in another color for the chosen step and the way to it."""
    picked = {"test": f"{CHOSEN} || {ON_WAY}", "value": "var(--pick)"}
    hue: VegaSpec = {"condition": picked, "value": "var(--accent)"}
    fill = {"condition": [{"test": "datum.side", "value": "var(--paper)"}, picked], "value": "var(--accent)"}
    size: VegaSpec = {"size": _if(CHOSEN, 230, 110)}
    named: VegaSpec = {
        "description": {"field": "name", "type": "nominal"},
        "tooltip": {"field": "step", "type": "nominal"},
    }
    return {"x": _x(), "y": _y(), "fill": fill, "stroke": hue, "opacity": faded, **size, **named}


def _text(**more: Any) -> VegaSpec:
    place = {name: {"expr": f"datum.{name}"} for name in ("dx", "dy", "align")}
    return {"type": "text", "fontSize": 11.5, "baseline": "middle", "aria": False, **place, **more}


def _arrow() -> VegaSpec:
    """The arrow's head half-way to the child, rotated to point at it; none where the two are too near."""
    across, down = (
        "(scale('x', datum.x2) - scale('x', datum.x))",
        "(scale('y', datum.top1_2) - scale('y', datum.top1))",
    )
    return {
        "type": "point",
        "filled": True,
        "shape": "triangle",
        "size": 60,
        "aria": False,
        "angle": {"expr": f"atan2({across}, -{down}) * 180 / PI"},
        "opacity": {"expr": f"{across} * {across} + {down} * {down} > 900 ? 1 : 0"},
    }


def _reference() -> list[VegaSpec]:
    """A dashed line at the reference's accuracy, which the legend under the chart names."""
    rule = {"type": "rule", "strokeDash": [6, 4], "strokeWidth": 1.5, "color": "var(--orange)", "aria": False}
    return [{"data": {"name": "reference"}, "mark": rule, "encoding": {"y": _y()}}]
