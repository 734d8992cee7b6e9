"""Screening designs: combinations of the path's changes that together estimate each change's average effect.

The first combination is the base, without any change. The others make the determinant of X'X large, where X
has a row per combination, a column of ones, and a column per change with 1 where it is on and -1 where it is
off (D-optimality). They are found by exchanging one coordinate at a time (Meyer & Nachtsheim 1995).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blocks.cost import complexity
from roadmap.deltas import Delta, Roadmap, Settings, merge, overriding, resolve, validate
from roadmap.errors import ConfigError, config_error

COST_CAP = 3  # times the multiply-adds of the path's most expensive step; the same networks in all profiles
SWEEPS = 20  # over all rows; after four or five no exchange is an improvement
# added to the diagonal of X'X, so that designs that cannot estimate all effects yet can be compared, too
# (DuMouchel & Jones 1994)
RIDGE = 1e-3
# determinants whose ratio is nearer to 1 are equal: far above rounding, which differs between machines
EQUAL = 1e-9
Matrix = NDArray[np.floating[Any]]
Moves = Callable[[int, int], Iterable[int]]


@dataclass(frozen=True)
class ScreeningDesign:
    """The ids of the combinations, the base first, and the changes that are on in each, in the path's order.

    A change counts as on where a later one sets all that it sets, so that it makes no difference. `changes`
    are those that make one at all, and `notes` are sentences about the design.
    """

    changes: tuple[str, ...]
    contexts: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


def screening_design(
    roadmap: Roadmap,
    size: int,
    seed: int = 0,
    *,
    profile: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ScreeningDesign:
    """A design of `size` different networks that are valid and within the cost cap.

    The same arguments give the same design on any machine. A step that is added at the end of the path
    changes only the combinations that have it, about half of them, unless it raises the cost cap. ConfigError
    where the size is too small or too large, or a change cannot be estimated.
    """
    networks = _Networks(roadmap, profile, overrides or {})
    changes = len(networks.deltas)
    fewest = changes + 2  # the base, an average per change, and one more for the residual
    there = networks.count(max(size, fewest))
    cap = f"within {COST_CAP} times the GMACs of {networks.most_expensive}"
    where, other = f"--ablate factorial:{size}", "use one-at-a-time, or end the path in another step"
    if there < fewest:
        message = f"cannot estimate {changes} changes: there are only {there} networks {cap}; {other}"
        raise config_error(where, message)
    if size > there:
        message = f"is more than the {there} different networks {cap}: write factorial:{there} or less"
        raise config_error(where, message)
    rows = _design(networks, max(size, fewest), seed)
    if lost := networks.not_estimable(rows):
        names = " and ".join(networks.deltas[index].name for index in lost)
        message = f"cannot estimate {names}: no network {cap} has them apart from each other; {other}"
        raise config_error(where, message)
    if size < fewest:
        raise config_error(where, f"is too small for {changes} changes: write factorial:{fewest} or more")
    return networks.described(rows, seed)


class _Networks:
    """The combinations of the path's changes: integers whose bits are the changes, the first one the lowest.

    Only keys that the profile and the overrides leave to the steps make a difference.
    """

    def __init__(self, roadmap: Roadmap, profile: str | None, overrides: Mapping[str, Any]) -> None:
        self.root, *deltas = roadmap.lineage(roadmap.trunk[-1])
        resolve(roadmap, self.root.name, profile=profile, overrides=overrides)  # the base must be valid
        last = merge(*(of.settings for of in roadmap.profile(profile)), overriding(roadmap.base, overrides))
        self._rest = merge(roadmap.base, self.root.settings, last)
        free = {
            delta.name: {key: value for key, value in delta.settings.items() if key not in last}
            for delta in deltas
        }
        start = {key: self._rest[key] for settings in free.values() for key in settings}
        values = {
            key: {settings[key].value for settings in (start, *free.values()) if key in settings}
            for key in start
        }
        several = {key for key in start if len(values[key]) > 1}
        self.deltas: list[Delta] = [delta for delta in deltas if free[delta.name].keys() & several]
        self.overridden = [delta.name for delta in deltas if delta not in self.deltas]
        self.sets: list[Settings] = [free[delta.name] for delta in self.deltas]
        self._start = start
        self._values: dict[int, tuple[Any, ...]] = {}
        self._closed: dict[tuple[int, tuple[Any, ...]], int] = {}
        self._macs: dict[int, int | None] = {}
        path = [self._cost((1 << number) - 1) or 0 for number in range(len(self.deltas) + 1)]
        self._cap = COST_CAP * max(path)
        self.most_expensive = [self.root, *self.deltas][path.index(max(path))].name

    def names(self, row: int) -> tuple[str, ...]:
        """The changes of a combination, in the path's order."""
        return tuple(delta.name for index, delta in enumerate(self.deltas) if row >> index & 1)

    def not_estimable(self, rows: Sequence[int]) -> list[int]:
        """The changes, as indices, that these rows cannot estimate."""
        return [column - 1 for column in not_estimable(_columns(rows, len(self.deltas)))]

    def _settings(self, row: int) -> Settings:
        settings = dict(self._start)
        for index, changed in enumerate(self.sets):
            if row >> index & 1:
                settings.update(changed)
        return settings

    def values(self, row: int) -> tuple[Any, ...]:
        """The values of a combination, the same for the same network and recipe."""
        if row not in self._values:
            self._values[row] = tuple(setting.value for setting in self._settings(row).values())
        return self._values[row]

    def closed(self, row: int, changes: int | None = None) -> int:
        """The combination with all of the first `changes`, or of all, that make no difference to it."""
        changes = len(self.sets) if changes is None else changes
        values = self.values(row)
        if (changes, values) not in self._closed:
            for index in reversed(range(changes)):
                if not row >> index & 1 and self.values(row | 1 << index) == values:
                    row |= 1 << index
            self._closed[changes, values] = row
        return self._closed[changes, values]

    def flipped(self, row: int, index: int, changes: int) -> int:
        """The combination with a change switched on, or switched off with all that override it."""
        if not row >> index & 1:
            return self.closed(row | 1 << index, changes)
        for later in range(index, changes):
            if later == index or self.sets[later].keys() & self.sets[index].keys():
                row &= ~(1 << later)
                if not self.closed(row, changes) >> index & 1:
                    break
        return self.closed(row, changes)

    def allows(self, row: int) -> bool:
        """Whether the network is valid and within the cost cap."""
        cost = self._cost(row)
        return cost is not None and cost <= self._cap

    def _cost(self, row: int) -> int | None:
        """Multiply-adds an image; None where the combination is not valid."""
        if row not in self._macs:
            try:
                settings = self._rest | self._settings(row)
                config = validate(settings, roadmap="", step="", profile=None, seed=0)
                self._macs[row] = complexity(config.ours, config.data.image_size).macs
            except ConfigError:
                self._macs[row] = None
        return self._macs[row]

    def allowed(self, changes: int) -> list[int]:
        """The different networks of the first `changes`, the base first."""
        found = dict.fromkeys(self.closed(row, changes) for row in range(1 << changes))
        return [row for row in found if self.allows(row)]

    def count(self, enough: int) -> int:
        """The number of different networks, counted up to `enough` or a few more."""
        return len(self.allowed(self.first(enough)))

    def first(self, enough: int) -> int:
        """The number of changes, in the path's order, that make `enough` different networks, or of all."""
        total = len(self.sets)
        return next((number for number in range(total) if len(self.allowed(number)) >= enough), total)

    def id_of(self, row: int) -> str:
        """The shortest id of a combination, as a step of the path plus or minus changes.

        Of ids with as many changes, it is one from an end of the path, as other ablations have them.
        """
        needed = row
        for index in range(len(self.sets)):
            if row >> index & 1 and self.values(needed & ~(1 << index)) == self.values(row):
                needed &= ~(1 << index)
        found = []
        for number, step in enumerate([self.root, *self.deltas]):
            way = (1 << number) - 1
            if self.values((row & way) | (needed & ~way)) != self.values(row):
                continue
            without, added = self.names(way & ~row), self.names(needed & ~way)
            words = [step.name, *(f"-{name}" for name in without), *(f"+{name}" for name in added)]
            is_end = number in (0, len(self.deltas))
            found.append((len(words), not is_end, len("".join(words)), "".join(words)))
        return min(found)[-1]

    def described(self, rows: Sequence[int], seed: int) -> ScreeningDesign:
        """The design with its ids and notes."""
        changes = self.names((1 << len(self.deltas)) - 1)
        contexts = {self.id_of(row): self.names(row) for row in rows}
        matrix = model_matrix(list(contexts.values()), changes)
        relative = dict(zip(changes, relative_variances(matrix)[1:].tolist(), strict=True))
        worst = max(relative, key=lambda name: round(relative[name], 6))
        efficiency = np.exp(np.linalg.slogdet(matrix.T @ matrix)[1] / matrix.shape[1]) / len(rows)
        notes = [
            f"Screening design of {len(rows)} networks for {len(changes)} changes, seed {seed}: D-efficiency"
            f" {100 * efficiency:.0f} %; the variance of an average effect is {min(relative.values()):.2f} to"
            f" {relative[worst]:.2f} ({worst}) times that of an orthogonal design.",
            f"Each network has at most {COST_CAP} times the GMACs of {self.most_expensive}, the most"
            " expensive step of the path.",
        ]
        for index, later in combinations(range(len(changes)), 2):
            if self.sets[index].keys() <= self.sets[later].keys():
                one, other = changes[index], changes[later]
                notes.append(f"Where {other} is on, so is {one}: its effect is that of replacing {one}.")
        if self.overridden:
            names_of = ", ".join(self.overridden)
            notes.append(f"Not in the design: {names_of}, which the profile or --set overrides.")
        return ScreeningDesign(changes, contexts, tuple(notes))


def model_matrix(
    contexts: Sequence[Iterable[str]], changes: Sequence[str], interactions: Sequence[tuple[str, str]] = ()
) -> Matrix:
    """(combinations, 1 + changes + interactions): ones, 1 and -1 for on and off, and products of these."""
    sets = [set(on) for on in contexts]
    main = {change: np.array([1.0 if change in on else -1.0 for on in sets]) for change in changes}
    products = [main[one] * main[other] for one, other in interactions]
    return np.stack([np.ones(len(sets)), *main.values(), *products], axis=1)


def relative_variances(matrix: Matrix) -> Matrix:
    """The variance of each coefficient, relative to that in an orthogonal design with as many rows."""
    inverse: Matrix = np.linalg.inv(matrix.T @ matrix)
    return len(matrix) * np.diag(inverse)


def not_estimable(matrix: Matrix) -> list[int]:
    """The columns that are linear combinations of the others, but for the first one."""
    rank = np.linalg.matrix_rank(matrix)
    if rank == matrix.shape[1]:
        return []
    return [
        column
        for column in range(1, matrix.shape[1])
        if np.linalg.matrix_rank(np.delete(matrix, column, axis=1)) == rank
    ]


def _columns(rows: Sequence[int], changes: int) -> Matrix:
    """The model matrix of combinations of the first `changes`."""
    return np.array([[1.0, *(1.0 if row >> index & 1 else -1.0 for index in range(changes))] for row in rows])


def _design(networks: _Networks, size: int, seed: int) -> list[int]:
    """The combinations of the design.

    The first changes, as many as make enough networks, are designed together. Then one change is added at a
    time, in the path's order: half of the rows get it, and only rows that have it are exchanged. The others
    stay as they were, so that a step at the end of the path leaves their networks, and so their runs, alone.
    """
    first = networks.first(size)
    drawn = sorted(networks.allowed(first)[1:], key=lambda row: _draw(seed, *networks.names(row)))
    rows = [networks.closed(0, first), *drawn[: size - 1]]
    rows = _exchange(
        networks,
        rows,
        first,
        lambda _, row: [networks.flipped(row, index, first) for index in range(first)],
    )
    for change in range(first, len(networks.sets)):
        rows = _add_change(networks, [networks.closed(row, change + 1) for row in rows], change, seed)
    return rows


def _add_change(networks: _Networks, before: list[int], change: int, seed: int) -> list[int]:
    """The rows with one more change, on in about half of them."""
    rows, changes = list(before), change + 1
    name = networks.deltas[change].name
    order = sorted(range(1, len(rows)), key=lambda place: _draw(seed, name, str(place)))
    for place in order[: len(rows) // 2]:
        row = networks.closed(rows[place] | 1 << change, changes)
        if row not in rows and networks.allows(row):
            rows[place] = row

    def moves(place: int, row: int) -> Iterator[int]:
        if row == before[place]:
            yield networks.closed(row | 1 << change, changes)
            return
        yield before[place]
        for index in range(change):
            if (other := networks.flipped(row, index, changes)) >> change & 1:
                yield other

    return _exchange(networks, rows, changes, moves)


def _exchange(networks: _Networks, rows: list[int], changes: int, moves: Moves) -> list[int]:
    """The rows with each but the first replaced by the best of its moves, until none increases |X'X|."""
    matrix = _columns(rows, changes)
    for _ in range(SWEEPS):
        before = list(rows)
        for place in range(1, len(rows)):
            found = [row for row in dict.fromkeys(moves(place, rows[place])) if row not in rows]
            if not found:
                continue
            new = _columns(found, changes)
            ratios = _ratios(matrix, place, new)
            while (best := ratios.max()) > 1 + EQUAL:
                choice = int(np.argmax(ratios >= best * (1 - EQUAL)))  # the first of equal ones
                if networks.allows(found[choice]):
                    rows[place], matrix[place] = found[choice], new[choice]
                    break
                ratios[choice] = 0
        if rows == before:
            break
    return rows


def _ratios(matrix: Matrix, place: int, new: Matrix) -> Matrix:
    """By how much each new row in place of one of the matrix multiplies |X'X| (Meyer & Nachtsheim 1995)."""
    inverse = np.linalg.inv(matrix.T @ matrix + RIDGE * np.eye(matrix.shape[1]))
    old = matrix[place]
    added, crossed = (new @ inverse * new).sum(axis=1), new @ inverse @ old
    ratios: Matrix = (1 + added) * (1 - old @ inverse @ old) + crossed**2
    return ratios


def _draw(seed: int, *names: str) -> bytes:
    """A random place in an order that depends on names alone."""
    return hashlib.sha256(":".join([str(seed), *names]).encode()).digest()
