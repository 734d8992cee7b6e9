"""Ablations: other combinations of a roadmap's deltas than the path, each of them a roadmap itself.

leave-one-out[:STEP]   the last step of the path, or STEP, without each of its deltas
one-at-a-time[:STEP]   the first step with each of those deltas alone
order:SEED             the path's deltas, added in a random order
factorial:N[:SEED]     N combinations of the path's deltas for the average effects (`roadmap.screening`)

A combination that is a step of the roadmap already has that step's id, and so its runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from roadmap.deltas import Delta, Roadmap, Settings, changes, resolve, trace
from roadmap.errors import ConfigError, config_error, one_of_these

LEAVE_ONE_OUT, ONE_AT_A_TIME, ORDER, FACTORIAL = "leave-one-out", "one-at-a-time", "order", "factorial"
DESIGN = re.compile(rf"{FACTORIAL}:([1-9]\d{{0,2}})(?::(0|[1-9]\d{{0,8}}))?", re.ASCII)
Combination = tuple[str, str, str | None]  # id, title, the parent's id


def ablate(
    roadmap: Roadmap, ablation: str, *, profile: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Roadmap:
    """The roadmap of an ablation; its `notes` name the combinations that are impossible or the same network.

    Which ones are can depend on the profile and the overrides that they are run with. ConfigError for an
    unknown ablation, and a design that cannot estimate the effects.
    """
    choices = {"profile": profile, "overrides": overrides}
    if design := DESIGN.fullmatch(ablation):
        return _screen(roadmap, ablation, int(design[1]), int(design[2] or 0), choices)
    kind, _, argument = ablation.partition(":")
    if kind == ORDER and re.fullmatch(r"0|[1-9]\d{0,8}", argument, re.ASCII):
        variants = _shuffle(roadmap, int(argument))
        title = f"{roadmap.title}, the changes in random order {int(argument)}"
    elif end := end_of(roadmap, ablation):
        root, *deltas = roadmap.lineage(end)
        if kind == LEAVE_ONE_OUT:
            variants = _leave_out(roadmap.tree[end], deltas)
            title = f"{roadmap.tree[end].title} without each change"
        else:
            variants = _add_alone(root, deltas)
            title = f"{root.title} with each change alone"
    else:
        known = (
            f"{LEAVE_ONE_OUT}, {ONE_AT_A_TIME} (either with :STEP), {ORDER}:SEED, such as {ORDER}:0, and"
            f" {FACTORIAL}:N or {FACTORIAL}:N:SEED with N up to 999, such as {FACTORIAL}:32"
        )
        raise config_error("--ablate", f"unknown ablation '{ablation}'; there are {known}")
    return _grow(roadmap, list(variants), ablation, title, choices)


def end_of(roadmap: Roadmap, ablation: str) -> str | None:
    """The step whose changes an ablation leaves out or adds one at a time; None for others.

    ConfigError if there is no such step.
    """
    kind, colon, argument = ablation.partition(":")
    if kind not in (LEAVE_ONE_OUT, ONE_AT_A_TIME) or (colon and not argument):
        return None
    end = argument or roadmap.trunk[-1]
    if end not in roadmap.tree:
        raise config_error("--ablate", f"unknown step '{end}'{one_of_these(end, roadmap.tree)}")
    return end


def _leave_out(end: Delta, deltas: list[Delta]) -> Iterator[Combination]:
    yield end.name, end.title, None
    for delta in deltas:
        yield f"{end.name}-{delta.name}", f"without {delta.title}", end.name


def _add_alone(root: Delta, deltas: list[Delta]) -> Iterator[Combination]:
    yield root.name, root.title, None
    for delta in deltas:
        yield f"{root.name}+{delta.name}", f"{delta.title} alone", root.name


def _shuffle(roadmap: Roadmap, seed: int) -> Iterator[Combination]:
    root, *deltas = roadmap.shuffled(seed)
    yield root.name, root.title, None
    before = root.name
    for delta in deltas:
        name = f"{delta.name}@{ORDER}{seed}" if delta is not deltas[0] else f"{root.name}+{delta.name}"
        yield name, delta.title, before
        before = name


def _screen(roadmap: Roadmap, ablation: str, size: int, seed: int, choices: dict[str, Any]) -> Roadmap:
    """The roadmap of a screening design, with what is on in each of its steps."""
    from roadmap.screening import screening_design  # which needs numpy

    found = screening_design(roadmap, size, seed, **choices)
    known = _steps_by_values(roadmap, choices)
    root = roadmap.trunk[0]
    variants: list[Combination] = []
    contexts = {}
    for number, (name, changes_on) in enumerate(found.contexts.items(), 1):
        step = known.get(_values(trace(roadmap, name, **choices)), name)
        own = f"network {number}: {len(changes_on)} of {len(found.changes)} changes"
        title = roadmap.tree[step].title if step in roadmap.tree else own
        variants.append((step, title, root if variants else None))
        contexts[step] = changes_on
    title = f"{roadmap.title}, screening design of {size} networks"
    grown = _grow(roadmap, variants, ablation, title, choices)
    return replace(grown, notes=(*found.notes, *grown.notes), contexts=contexts)


def _steps_by_values(roadmap: Roadmap, choices: dict[str, Any]) -> dict[Any, str]:
    """The steps by the values of their configurations; of several with the same values the first."""
    return {_values(trace(roadmap, step, **choices)): step for step in reversed(roadmap.steps)}


def _grow(
    roadmap: Roadmap, variants: list[Combination], ablation: str, title: str, choices: dict[str, Any]
) -> Roadmap:
    """The tree of the variants that are different networks, each as a change of its parent."""
    known = _steps_by_values(roadmap, choices)
    tree: dict[str, Delta] = {}
    step_of: dict[str, str] = {}  # from a variant's id to that of the step with its network
    notes = []
    for name, title_of_step, before in variants:
        try:
            resolve(roadmap, name, **choices)
        except ConfigError as error:
            reasons = "; ".join(problem.message for problem in error.problems)
            notes.append(f"{name} is not possible: {reasons}.")
            step_of[name] = step_of.get(before or "", "")
            continue
        parent = step_of.get(before or "")
        step = step_of[name] = known.setdefault(_values(trace(roadmap, name, **choices)), name)
        if step in tree:
            notes.append(
                f"{name} is the same network and recipe as {step}: other changes set the same values."
            )
            continue
        settings = trace(roadmap, step)
        if parent is not None:
            settings = {key: settings[key] for key in changes(trace(roadmap, parent), settings)}
        there = roadmap.tree.get(step)
        paper, counted = (there.paper, there.counted) if there else (None, None)
        tree[step] = Delta(step, title_of_step, parent, settings, paper, counted)
    end = roadmap.trunk[-1]
    if ablation.startswith(ORDER) and step_of[variants[-1][0]] != end:
        notes.append(
            f"The last network is not {end}: some changes set the same values, and the later one wins."
        )
    return replace(
        roadmap, title=title, tree=tree, references={}, ablation=ablation, notes=tuple(notes), whole=roadmap
    )


def _values(settings: Settings) -> frozenset[tuple[str, bool, Any]]:
    """The values by key, for comparing configurations: 1 and 1.0 are the same, 1 and true are not."""
    return frozenset(
        (path, isinstance(setting.value, bool), setting.value) for path, setting in settings.items()
    )
