"""python -m roadmap: look at the roadmap without training anything, and without importing torch."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from blocks import build_model, describe
from roadmap.ablations import ablate
from roadmap.command import add_config_options, add_roadmap_options, choices_of, config_of, main_of, roadmap_of
from roadmap.files import write_atomic, written
from roadmap.schema import steps_schema
from roadmap.settings import Settings, changes
from roadmap.steps import load_roadmap, load_roadmaps
from roadmap.strict_yaml import show
from roadmap.terminal import console, count, table
from roadmap.tree import change_of, resolve, trace
from roadmap.verify import Row, summary, verify


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m roadmap", description="Look at the roadmap; nothing is trained.")
    commands = options.add_subparsers(required=True, metavar="COMMAND")
    steps = commands.add_parser("steps", help="the tree of steps, what each changes, and its block as a sentence")
    add_roadmap_options(steps)
    steps.set_defaults(run=print_steps)
    check = commands.add_parser("verify", help="parameters and GMACs of every step against the paper's; exit code 1 if one is wrong")
    add_roadmap_options(check)
    check.add_argument("--all", action="store_true", help="all roadmaps of the file")
    check.set_defaults(run=print_verify)
    explain = commands.add_parser("explain", help="the resolved configuration of a step, and who set each value")
    explain.add_argument("step", metavar="STEP")
    add_config_options(explain)
    explain.set_defaults(run=print_explain)
    diff = commands.add_parser("diff", help="the values in which two steps differ")
    diff.add_argument("one", metavar="A")
    diff.add_argument("other", metavar="B")
    add_config_options(diff)
    diff.set_defaults(run=print_diff)
    schema = commands.add_parser("schema", help="the JSON Schema of steps files, for completion in an editor")
    schema.add_argument("--out", type=Path, metavar="FILE", help="write it there (default: print it)")
    schema.set_defaults(run=print_schema)
    weights = commands.add_parser("weights", help="whether a file of weights fits a step's network; exit code 1 if not")
    weights.add_argument("step", metavar="STEP")
    weights.add_argument("source", metavar="FILE", help="a path or URL: ours, timm's or the original repository's names")
    add_config_options(weights)
    weights.set_defaults(run=print_weights)
    export = commands.add_parser("export", help="write a run's weights as a file that timm loads")
    export.add_argument("run_dir", type=Path, metavar="RUN", help="the run's directory")
    export.add_argument("out", type=Path, metavar="FILE", help="the file, .safetensors or .pth")
    export.add_argument("--ema", action="store_true", help="the moving average's weights")
    export.add_argument("--names", choices=["timm", "ours"], default="timm", help="whose parameter names (default: timm's)")
    export.set_defaults(run=print_export)
    return options


def print_steps(arguments: argparse.Namespace) -> int:
    """The tree; side branches are indented."""
    roadmap = roadmap_of(arguments)
    rows = []
    for name in roadmap.steps:
        branch = "" if name in roadmap.trunk else "└ "
        rows.append((f"{branch}{name}", change_of(roadmap, name), describe(resolve(roadmap, name).model.block)))
    title = f"{roadmap.name}: {roadmap.title}, {count(len(rows), 'step')}"
    if aside := len(rows) - len(roadmap.trunk):
        title += f", {aside} on side branches"
    console().print(table(["step", "changes", "block (w = stage width)"], rows, title))
    for note in roadmap.notes:
        console().print(f"- {note}", soft_wrap=True)
    return 0


def print_verify(arguments: argparse.Namespace) -> int:
    """Every row with its verdict; exit code 1 if one that should match does not."""
    roadmaps = list(load_roadmaps(arguments.steps_file).values()) if arguments.all else [roadmap_of(arguments)]
    if arguments.all and arguments.ablate is not None:
        roadmaps = [ablate(roadmap, arguments.ablate) for roadmap in roadmaps]
    wrong = False
    for roadmap in roadmaps:
        rows = verify(roadmap)
        cells = [(row.step, f"{row.cost.params / 1e6:.3f}", f"{row.cost.gmacs:.4f}", _printed(row), row.verdict) for row in rows]
        console().print(table(["step", ">params (M)", ">GMACs", ">paper's", "verdict"], cells, f"{roadmap.name}: {roadmap.title}"))
        print(summary(rows))
        wrong |= any(row.is_wrong for row in rows)
    return int(wrong)


def _printed(row: Row) -> str:
    return f"{row.paper.gmacs:.2f}" if row.paper is not None and row.paper.gmacs is not None else "–"


def print_explain(arguments: argparse.Namespace) -> int:
    """Each leaf with its value and its origin."""
    roadmap, choices = roadmap_of(arguments), choices_of(arguments)
    config = resolve(roadmap, arguments.step, **choices)
    settings = trace(roadmap, arguments.step, **choices)
    rows = [(path, show(settings[path].value), *_origin(settings, path)) for path in roadmap.base]
    console().print(table(["key", "value", "set by", "at"], rows, f"{arguments.step}: {describe(config.model.block)}, {config.hash}"))
    return 0


def print_diff(arguments: argparse.Namespace) -> int:
    """The leaves that differ, with both values and their origins."""
    roadmap, choices = roadmap_of(arguments), choices_of(arguments)
    one, other = (trace(roadmap, step, **choices) for step in (arguments.one, arguments.other))
    for step in (arguments.one, arguments.other):
        resolve(roadmap, step, **choices)
    differences = changes(one, other)
    rows = [
        (path, show(differences[path][0]), show(differences[path][1]), _origin(one, path)[0], _origin(other, path)[0])
        for path in roadmap.base
        if path in differences
    ]
    columns = ["key", arguments.one, arguments.other, f"set in {arguments.one} by", f"set in {arguments.other} by"]
    console().print(table(columns, rows, f"{count(len(rows), 'value')} differ{'s' if len(rows) == 1 else ''}"))
    return 0


def print_schema(arguments: argparse.Namespace) -> int:
    """The schema, at the terminal or in a file."""
    text = json.dumps(steps_schema(load_roadmap().base), indent=2) + "\n"
    if arguments.out is None:
        print(text, end="")
        return 0
    with written(arguments.out):
        write_atomic(arguments.out, text)
    return 0


def print_weights(arguments: argparse.Namespace) -> int:
    """What of the file fits; nothing is changed."""
    config = config_of(arguments, arguments.step, 0)
    from roadmap.weights import load_weights

    report = load_weights(build_model(config.model), arguments.source, strict=False)
    print(report)
    return int(not report.fits)


def print_export(arguments: argparse.Namespace) -> int:
    """Writes the file, and says how it is loaded."""
    from roadmap.export import export

    print(export(arguments.run_dir, arguments.out, ema=arguments.ema, names=arguments.names))
    return 0


def _origin(settings: Settings, path: str) -> tuple[str, str]:
    setting = settings[path]
    return setting.source or "--set", str(setting.where) if setting.source else ""


def main() -> int:
    """Runs the command that was asked for."""
    return main_of(parser(), lambda arguments: int(arguments.run(arguments)))


if __name__ == "__main__":
    sys.exit(main())
