"""What each command of `python -m roadmap` does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from rich.padding import Padding

from roadmap.ablations import ablate
from roadmap.cli.arguments import load_config, read_overrides, select, with_references
from roadmap.config import TimmSpec
from roadmap.deltas import ReferenceStep, Roadmap, Settings, change_of, changes, resolve
from roadmap.errors import config_error
from roadmap.files import write_atomic, write_errors
from roadmap.schema import config_markdown, keys_below, steps_schema
from roadmap.steps import load_roadmap, load_roadmaps
from roadmap.strict_yaml import show
from roadmap.terminal import console, count, table
from roadmap.verify import VerifiedStep, summary, verify, verify_references


def print_steps(arguments: argparse.Namespace) -> int:
    """The tree; side branches are indented."""
    roadmap = select(arguments).roadmap
    rows = []
    for name in roadmap.steps:
        branch = "" if name in roadmap.trunk else "└ "
        rows.append((f"{branch}{name}", change_of(roadmap, name), resolve(roadmap, name).architecture))
    title = f"{roadmap.name}: {roadmap.title}, {count(len(rows), 'step')}"
    if branches := len(rows) - len(roadmap.trunk):
        title += f", {branches} on side branches"
    if roadmap.references:
        title += f"; {count(len(roadmap.references), 'reference')}"
        rows += [
            (name, f"a reference{_counted(step)}", resolve(roadmap, name).architecture)
            for name, step in roadmap.references.items()
        ]
    console().print(table(["step", "changes", "block (w = stage width)"], rows, title))
    for note in roadmap.notes:
        console().print(f"- {note}", soft_wrap=True)
    return 0


def _counted(step: ReferenceStep) -> str:
    if step.counted is None:
        return ""
    return f": {step.counted.params:.3f} M parameters, {step.counted.gmacs:.2f} GMACs"


def print_verify(arguments: argparse.Namespace) -> int:
    """Every row with its verdict; exit code 1 if one that should match does not."""
    roadmaps = (
        list(load_roadmaps(arguments.steps_file).values()) if arguments.all else [select(arguments).roadmap]
    )
    if arguments.references and arguments.ablate is not None:
        raise config_error("--references", "cannot be used with --ablate, which has no references")
    if arguments.references:
        roadmaps = with_references(roadmaps)
    if arguments.all and arguments.ablate is not None:
        roadmaps = [ablate(roadmap, arguments.ablate) for roadmap in roadmaps]
    wrong = False
    for roadmap in roadmaps:
        rows = verify_references(roadmap) if arguments.references else verify(roadmap)
        cells = [
            (row.step, f"{row.cost.params / 1e6:.3f}", f"{row.cost.gmacs:.4f}", _printed(row), row.verdict)
            for row in rows
        ]
        console().print(
            table(
                ["step", ">params (M)", ">GMACs", ">paper's", "verdict"],
                cells,
                f"{roadmap.name}: {roadmap.title}",
            )
        )
        print(summary(rows))
        wrong |= any(row.is_wrong for row in rows)
    return int(wrong)


def _printed(row: VerifiedStep) -> str:
    return f"{row.paper.gmacs:.2f}" if row.paper is not None and row.paper.gmacs is not None else "–"


def print_explain(arguments: argparse.Namespace) -> int:
    """Each key with its value and its origin, or with its description."""
    if arguments.keys is not None:
        return _print_keys(arguments)
    selection = select(arguments)
    config, settings = selection.resolve(arguments.step), selection.trace(arguments.step)
    keys = _ordered(selection.roadmap, settings)
    rows = [(key, show(settings[key].value), *_origin(settings, key)) for key in keys]
    console().print(
        table(
            ["key", "value", "set by", "at"],
            rows,
            f"{arguments.step}: {config.architecture}, {config.hash}",
        )
    )
    return 0


def _print_keys(arguments: argparse.Namespace) -> int:
    """Each key with its value in the base, the values that it accepts, and below them its description."""
    if arguments.profile is not None or read_overrides(arguments):
        raise config_error(
            "--keys", "cannot be used with --profile, --set or --init-from; they are for a STEP"
        )
    base = select(arguments).roadmap.base
    for key in keys_below(base, arguments.keys):
        console().print(f"{key.name}: {show(base[key.name].value)} ({key.values})", soft_wrap=True)
        console().print(Padding.indent(key.description, 4))
    return 0


def print_diff(arguments: argparse.Namespace) -> int:
    """The keys that differ, with both values and their origins; of a step and a reference, those of both."""
    selection, steps = select(arguments), (arguments.one, arguments.other)
    traces = [selection.trace(step) for step in steps]
    configs = [selection.resolve(step) for step in steps]
    shared = traces[0].keys() & traces[1].keys()
    for step, config, settings in zip(steps, configs, traces, strict=True):
        if isinstance(config.model, TimmSpec) and not settings.keys() <= shared:
            keys = ", ".join(key for key in settings if key in shared and key.startswith("model."))
            console().print(
                f"{step} is a reference ({config.architecture}), which has no keys of our networks; compared"
                f" are {keys}, recipe, data, and system.",
                soft_wrap=True,
            )
    both = [{key: settings[key] for key in settings if key in shared} for settings in traces]
    differences = changes(*both)
    if not differences:
        print(f"'{arguments.one}' and '{arguments.other}' have the same values")
        return 0
    rows = [
        (key, *map(show, differences[key]), *(_origin(settings, key)[0] for settings in both))
        for key in _ordered(selection.roadmap, both[0])
        if key in differences
    ]
    columns = [
        "key",
        arguments.one,
        arguments.other,
        f"set in {arguments.one} by",
        f"set in {arguments.other} by",
    ]
    console().print(
        table(columns, rows, f"{count(len(rows), 'value')} differ{'s' if len(rows) == 1 else ''}")
    )
    return 0


def print_schema(arguments: argparse.Namespace) -> int:
    """The schema, or the keys as Markdown, at the terminal or in a file."""
    base = load_roadmap().base
    text = config_markdown(base) if arguments.markdown else f"{json.dumps(steps_schema(base), indent=2)}\n"
    if arguments.out is None:
        print(text, end="")
        return 0
    with write_errors(arguments.out):
        write_atomic(arguments.out, text)
    return 0


def print_weights(arguments: argparse.Namespace) -> int:
    """Which of the file's weights fit; nothing is changed."""
    config = load_config(arguments)
    from roadmap.networks import build_network
    from roadmap.weights import TAKEN, Kind, copy_weights, read_state_dicts, select

    states = read_state_dicts(arguments.source)
    kind: Kind = arguments.kind or "raw"
    report = copy_weights(
        build_network(config), select(states, kind, arguments.source), arguments.source, strict=False
    )
    print(report)
    if len(states) > 1:
        print(f"  inspected: {TAKEN[kind]}")
    return int(not report.fits)


def print_export(arguments: argparse.Namespace) -> int:
    """Writes the file, and prints how to load it."""
    from roadmap.export import export

    print(export(arguments.run_dir, arguments.out, ema=arguments.kind == "ema", names=arguments.names))
    return 0


def _ordered(roadmap: Roadmap, settings: Settings) -> list[str]:
    """The keys in the base's order, and then those of a model of timm."""
    return [key for key in {**roadmap.base, **settings} if key in settings]


def _origin(settings: Settings, key: str) -> tuple[str, str]:
    setting = settings[key]
    return setting.source or "--set", str(setting.where) if setting.source else ""


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "steps": print_steps,
    "verify": print_verify,
    "explain": print_explain,
    "diff": print_diff,
    "schema": print_schema,
    "weights": print_weights,
    "export": print_export,
}
