"""The average effects of a screening design: least squares over its networks, with intervals and aliasing.

The effect of a change is the mean top-1 of the networks with it minus that of those without it, adjusted for
the other changes. An interaction A:B is the effect of A with B minus the effect of A without B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

import numpy as np

from roadmap.deltas import Roadmap
from roadmap.errors import config_error, one_of_these
from roadmap.records import Result, accuracies
from roadmap.report.stats import CONFIDENCE, ROUNDING, Difference, Summary, summarize
from roadmap.screening import Matrix, model_matrix, not_estimable, relative_variances
from roadmap.terminal import count

Contexts = Mapping[str, Sequence[str]]  # by network, the changes that are on
Pair = tuple[str, str]
MAX_LISTED = 5
# with 1 and -1 for on and off: an effect is two coefficients, an interaction is two differences of two
EFFECT, INTERACTION = 2.0, 4.0


@dataclass(frozen=True)
class AverageEffects:
    """Effects, and interactions as `A:B`, in percentage points of top-1, from the `n` networks with results.

    They are empty where n is too small. `variances` are relative to an orthogonal design of n networks.
    `notes` are sentences about the estimate.
    """

    of: Mapping[str, Difference]
    variances: Mapping[str, float]
    n: int
    notes: Sequence[str] = field(default_factory=list)


def average_effects(
    contexts: Contexts,
    changes: Sequence[str],
    results: Mapping[str, Sequence[Result]],
    interactions: Sequence[Pair] = (),
) -> AverageEffects:
    """The effects of `changes` from the results by network, of which some may be missing or diverged.

    Each network counts once, with its mean over seeds: its runs share what the model leaves out of its
    interactions, so that they are not independent observations of it.
    """
    seen = {
        network: found
        for network in contexts
        if (found := summarize(list(accuracies(results.get(network, ())).values())))
    }
    notes = _missing(contexts, seen, results)
    matrix = model_matrix([contexts[network] for network in seen], changes, interactions)
    terms = [*changes, *map(":".join, interactions)]
    lost = not_estimable(matrix) if seen else range(1, len(terms) + 1)
    if lost:
        names = _list([terms[column - 1] for column in lost])
        if len(lost) == len(terms):
            names = "any effect" + (" or interaction" if interactions else "")
        notes.insert(0, f"No averages: {len(seen)} of {len(contexts)} networks cannot estimate {names}.")
        return AverageEffects({}, {}, len(seen), notes)
    scales = np.array([EFFECT] * len(changes) + [INTERACTION] * len(interactions))
    means = np.array([summary.mean for summary in seen.values()])
    effects, spread = least_squares(matrix, means, scales)
    variances = dict(zip(terms, relative_variances(matrix)[1:].tolist(), strict=True))
    notes = [
        *notes,
        *_residual(seen, spread, len(matrix) - matrix.shape[1]),
        _variance_note(variances, len(seen)),
        *_aliasing(matrix, [contexts[network] for network in seen], changes, interactions),
    ]
    return AverageEffects(dict(zip(terms, effects, strict=True)), variances, len(seen), notes)


def least_squares(matrix: Matrix, values: Matrix, scales: Matrix) -> tuple[list[Difference], float | None]:
    """Each coefficient but the first times its scale, with its t interval; the residual standard deviation.

    `matrix` is (n, 1 + coefficients) and of full rank, `values` is (n,). The intervals are unknown, None,
    where there is no residual degree of freedom or all residuals are rounding.
    """
    from scipy import stats

    coefficients = np.linalg.lstsq(matrix, values, rcond=None)[0]
    effects = (coefficients[1:] * scales).tolist()
    freedom = len(matrix) - matrix.shape[1]
    if not freedom:
        return [Difference(effect, None) for effect in effects], None
    spread = math.sqrt(float(((values - matrix @ coefficients) ** 2).sum()) / freedom)
    if spread < ROUNDING:
        return [Difference(effect, None) for effect in effects], 0.0
    inverse = np.linalg.inv(matrix.T @ matrix)
    errors = spread * scales * np.sqrt(np.diag(inverse)[1:])
    margins = (stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * errors).tolist()
    ps = (2 * stats.t.sf(np.abs(effects) / errors, freedom)).tolist()
    return list(map(Difference, effects, margins, ps)), spread


def alias_matrix(matrix: Matrix, left_out: Matrix) -> Matrix:
    """(columns of `matrix`, columns of `left_out`): by how much of each coefficient that the model leaves out
    each of the model's is biased (Box & Wilson 1951).
    """
    shares: Matrix = np.linalg.solve(matrix.T @ matrix, matrix.T @ left_out)
    return shares


def changes_of(roadmap: Roadmap) -> list[str]:
    """The changes of a screening design, in the path's order."""
    there = {change for changes in roadmap.contexts.values() for change in changes}
    path = roadmap.whole.lineage(roadmap.whole.trunk[-1]) if roadmap.whole else ()
    return [delta.name for delta in path if delta.name in there]


def parse_interactions(text: str, roadmap: Roadmap) -> list[Pair]:
    """The pairs in `A:B,C:D`; ConfigError for those that the design `roadmap` cannot estimate."""
    contexts, changes = roadmap.contexts, changes_of(roadmap)
    if not contexts:
        raise config_error("--interactions", "needs a screening design, such as --ablate factorial:32")
    pairs = list(dict.fromkeys(_pair(word.strip(), changes) for word in text.split(",")))
    for one, other in pairs:
        if missing := _empty_cell(one, other, list(contexts.values())):
            message = f"{one}:{other} cannot be estimated: no network of the design has {missing}"
            raise config_error("--interactions", message)
    fewest = len(changes) + len(pairs) + 2
    if len(contexts) < fewest:
        message = (
            f"asks for {count(len(pairs), 'interaction')} beside {len(changes)} changes, which takes"
            f" --ablate factorial:{fewest} or more"
        )
        raise config_error("--interactions", message)
    if lost := not_estimable(model_matrix(list(contexts.values()), changes, pairs)):
        terms = [*changes, *map(":".join, pairs)]
        message = (
            f"{_list([terms[column - 1] for column in lost])} cannot be estimated apart from each other;"
            " use a larger design or ask for fewer"
        )
        raise config_error("--interactions", message)
    return pairs


def _pair(word: str, changes: Sequence[str]) -> Pair:
    """The two changes of `A:B` in the path's order."""
    names = word.split(":")
    if len(names) != 2 or names[0] == names[1]:
        message = f"'{word}' is not a pair of changes; write A:B, such as {':'.join(changes[:2])}"
        raise config_error("--interactions", message)
    for name in names:
        if name not in changes:
            message = f"unknown change '{name}'{one_of_these(name, changes)}"
            raise config_error("--interactions", message)
    one, other = sorted(names, key=changes.index)
    return one, other


def _empty_cell(one: str, other: str, contexts: Sequence[Sequence[str]]) -> str:
    """Which combination of two changes no network has, such as 'a without b'; '' where it has all four."""
    there = {(one in on, other in on) for on in contexts}
    words: dict[tuple[bool, ...], str] = {
        (True, False): f"{one} without {other}",
        (False, True): f"{other} without {one}",
        (True, True): f"{one} with {other}",
        (False, False): f"neither {one} nor {other}",
    }
    return next((words[cell] for cell in product((True, False), repeat=2) if cell not in there), "")


def _missing(
    contexts: Contexts, seen: Mapping[str, Summary], results: Mapping[str, Sequence[Result]]
) -> list[str]:
    """Sentences about the networks that are left out."""
    diverged = [network for network in contexts if network not in seen and results.get(network)]
    unfinished = [network for network in contexts if network not in seen and network not in diverged]
    notes = [f"Not trained yet, and in no average: {_list(unfinished)}."] if unfinished else []
    if diverged:
        notes.append(
            f"Diverged, and in no average, which is over the networks that can be trained: {_list(diverged)}."
        )
    return notes


def _residual(seen: Mapping[str, Summary], spread: float | None, freedom: int) -> list[str]:
    """The residual standard deviation, and what of it the spread over seeds explains."""
    if not spread:
        return []
    note = (
        f"Residual standard deviation of a network's mean: {spread:.2f} points ({freedom} degrees of freedom)"
    )
    errors = [found.std**2 / found.n for found in seen.values() if found.std is not None]
    if errors:
        seeds = math.sqrt(math.fsum(errors) / len(errors))
        note += (
            f"; the spread over seeds alone would give {seeds:.2f}, interactions that are left out add to it"
        )
    return [f"{note}."]


def _variance_note(variances: Mapping[str, float], n: int) -> str:
    worst = max(variances, key=lambda term: round(variances[term], 6))
    return (
        f"The variance of an average is {min(variances.values()):.2f} to {variances[worst]:.2f} ({worst})"
        f" times that in an orthogonal design of {n} networks."
    )


def _aliasing(
    matrix: Matrix, contexts: Sequence[Sequence[str]], changes: Sequence[str], interactions: Sequence[Pair]
) -> list[str]:
    """Which interactions that the model leaves out bias which effects most."""
    pairs = [
        pair
        for pair in combinations(changes, 2)
        if pair not in interactions and not _empty_cell(*pair, contexts)
    ]
    if not pairs:
        return []
    products = model_matrix(contexts, changes, pairs)[:, 1 + len(changes) :]
    shares = alias_matrix(matrix, products)[1 : 1 + len(changes)] * EFFECT / INTERACTION
    ranked = sorted(
        ((change, pair) for change in range(len(changes)) for pair in range(len(pairs))),
        key=lambda place: (-round(abs(float(shares[place])), 6), place),
    )
    largest = [
        f"{changes[change]} by {shares[change, pair]:+.2f} {':'.join(pairs[pair])}"
        for change, pair in ranked[:MAX_LISTED]
    ]
    return [
        "Aliasing: an interaction A:B (the effect of A with B minus that without B) that is left out biases"
        f" an average by a share of it, by half where they are the same; the largest: {_list(largest)}."
    ]


def _list(names: Sequence[str]) -> str:
    """The names, or the first of many."""
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f", and {more} more" if more > 0 else "")
