"""Means, intervals and rank correlations are SciPy's, and nothing claims an interval that n does not give."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping
from itertools import chain, combinations, permutations
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from roadmap import ROOT
from roadmap.report.stats import (
    MOST_SEEDS,
    Difference,
    Summary,
    difference,
    holm,
    rank_correlation,
    same_sign,
    sampling_margin,
    sign_agreement,
    summarize,
    welch,
    z_score,
)

patient = settings(deadline=None)
ACCURACY = st.integers(0, 10_000).map(lambda hundredths: hundredths / 100)
ACCURACIES = st.lists(ACCURACY, min_size=2, max_size=8)
PAIRS = st.lists(st.tuples(ACCURACY, ACCURACY), min_size=2, max_size=8)
# the t distribution's 97.5 % points at 2 and 4 degrees of freedom
T_2, T_4 = 4.302652729749464, 2.7764451051977987


def seeded(values: list[float] | tuple[float, ...], first: int = 0) -> dict[int, float]:
    return dict(enumerate(values, first))


def interval(found: Difference | None) -> tuple[float, float]:
    assert found is not None
    assert found.margin is not None
    return found.value - found.margin, found.value + found.margin


@patient
@given(ACCURACIES)
def test_a_summary_is_the_mean_and_the_sample_standard_deviation(values: list[float]) -> None:
    found = summarize(values)
    assert found is not None
    assert found.n == len(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-11)
    assert found.std == pytest.approx(statistics.stdev(values), abs=1e-11)


@patient
@given(ACCURACY)
def test_a_single_run_has_no_spread(value: float) -> None:
    assert summarize([value]) == Summary(value, None, 1)


def test_no_runs_have_no_summary() -> None:
    assert summarize([]) is None


@patient
@given(PAIRS)
def test_the_same_seeds_give_the_paired_t_interval(pairs: list[tuple[float, float]]) -> None:
    child, parent = zip(*pairs, strict=True)
    assume(len({round(one - other, 6) for one, other in pairs}) > 1)
    low, high = stats.ttest_rel(child, parent).confidence_interval(0.95)
    assert interval(difference(seeded(child), seeded(parent))) == pytest.approx(
        (low, high), rel=1e-9, abs=1e-9
    )


@patient
@given(ACCURACIES, ACCURACIES)
def test_other_seeds_give_the_welch_interval(child: list[float], parent: list[float]) -> None:
    assume(len(set(child)) > 1 and len(set(parent)) > 1)
    low, high = stats.ttest_ind(child, parent, equal_var=False).confidence_interval(0.95)
    assert interval(difference(seeded(child), seeded(parent, first=1))) == pytest.approx(
        (low, high), rel=1e-9, abs=1e-9
    )


@patient
@given(PAIRS, st.integers(1, 3))
def test_pairs_are_used_only_where_both_have_exactly_the_same_seeds(
    pairs: list[tuple[float, float]], extra: int
) -> None:
    child, parent = (seeded(values) for values in zip(*pairs, strict=True))
    more = child | seeded(tuple(range(extra)), first=len(child))
    one, other = summarize(list(more.values())), summarize(list(parent.values()))
    assert one is not None
    assert other is not None
    assert difference(more, parent) == welch(one, other)


@patient
@given(PAIRS, st.randoms())
def test_the_order_in_which_runs_are_read_does_not_matter(
    pairs: list[tuple[float, float]], random: Random
) -> None:
    child, parent = (seeded(values) for values in zip(*pairs, strict=True))
    order = random.sample(sorted(child), len(child))
    assert difference({seed: child[seed] for seed in order}, parent) == difference(child, parent)


@patient
@given(ACCURACIES, ACCURACIES, st.integers(0, 1))
def test_a_reversed_difference_changes_only_its_sign(
    one: list[float], other: list[float], first: int
) -> None:
    there, back = difference(seeded(one), seeded(other, first)), difference(seeded(other, first), seeded(one))
    assert there is not None
    assert back is not None
    assert back.value == pytest.approx(-there.value, abs=1e-11)
    assert (back.margin is None) is (there.margin is None)
    assert back.margin is None or back.margin == pytest.approx(there.margin, rel=1e-9, abs=1e-11)


@patient
@given(PAIRS, st.booleans())
def test_resolved_means_that_scipys_interval_excludes_zero(
    pairs: list[tuple[float, float]], same_seeds: bool
) -> None:
    child, parent = zip(*pairs, strict=True)
    assume(
        len(set(child)) > 1
        and len(set(parent)) > 1
        and len({round(one - other, 6) for one, other in pairs}) > 1
    )
    test = stats.ttest_rel(child, parent) if same_seeds else stats.ttest_ind(child, parent, equal_var=False)
    low, high = test.confidence_interval(0.95)
    assume(min(abs(low), abs(high)) > 1e-6)
    found = difference(seeded(child), seeded(parent, first=0 if same_seeds else 1))
    assert found is not None
    assert found.resolved is bool(low > 0 or high < 0)


@patient
@given(ACCURACY, st.integers(2, 9), st.integers(2, 9))
def test_runs_that_all_agree_have_no_estimate_of_their_spread(value: float, n: int, others: int) -> None:
    found = difference(seeded([value] * n), seeded([value] * others))
    assert found is not None
    assert (found.margin, found.resolved) == (None, None)


IMAGES = st.integers(0, 2396)


@patient
@given(st.lists(IMAGES, min_size=2, max_size=8, unique=True), st.integers(1, 300))
def test_a_difference_equal_for_every_seed_gives_no_estimate_of_the_spread(
    right: list[int], more: int
) -> None:
    child, parent = (seeded([100 * (images + extra) / 2696 for images in right]) for extra in (more, 0))
    found = difference(child, parent)
    assert found is not None
    assert found.value == pytest.approx(100 * more / 2696)
    assert (found.margin, found.p, found.needed, found.resolved) == (None, None, None, None)


def test_differences_that_miss_each_other_by_the_last_bit_are_one_difference() -> None:
    child, parent = (
        [100 * images / 2396 for images in counts] for counts in ((2100, 2110, 2123), (2093, 2103, 2116))
    )
    assert len({one - other for one, other in zip(child, parent, strict=True)}) > 1
    found = difference(seeded(child), seeded(parent))
    assert found is not None
    assert found == Difference(found.value, None)


def test_one_image_of_a_million_is_a_spread() -> None:
    found = difference(seeded([80.0001, 81.0, 82.0]), seeded([80.0, 81.0, 82.0]))
    assert found is not None
    assert found.margin == pytest.approx(T_2 * 1e-4 / 3)


def test_runs_that_differ_by_rounding_have_no_spread_whatever_their_order() -> None:
    values = [84.1, math.nextafter(84.1, 85), math.nextafter(84.1, 84)]
    assert summarize(values) == summarize(values[::-1]) == Summary(min(values), 0.0, 3)
    close, other = Summary(84.1, 1e-14, 3), Summary(80.0, 0.0, 3)
    assert welch(close, other) == Difference(84.1 - 80.0, None)
    assert z_score(close, other) is None


@patient
@given(ACCURACY, st.integers(2, 9), st.integers(2, 9))
def test_no_difference_has_no_minus_sign(value: float, n: int, others: int) -> None:
    assert str(difference(seeded([value] * n), seeded([value] * others))) == "+0.00"


@pytest.mark.parametrize(
    ("child", "parent", "value", "margin", "resolved"),
    [
        pytest.param(
            {0: 81, 1: 83, 2: 85}, {0: 80, 1: 81, 2: 82}, 2.0, T_2 / math.sqrt(3), False, id="pairs, 1 2 3"
        ),
        pytest.param(
            {0: 81.5, 1: 83, 2: 84.5},
            {0: 80, 1: 81, 2: 82},
            2.0,
            T_2 * 0.5 / math.sqrt(3),
            True,
            id="pairs, 1.5 2 2.5",
        ),
        pytest.param(
            {3: 83, 4: 84, 5: 85},
            {0: 80, 1: 81, 2: 82},
            3.0,
            T_4 * math.sqrt(2 / 3),
            True,
            id="other seeds, std 1 and 1",
        ),
        pytest.param(
            {0: 82, 1: 83, 2: 84},
            {0: 80, 1: 81, 3: 82},
            2.0,
            T_4 * math.sqrt(2 / 3),
            False,
            id="one seed differs",
        ),
    ],
)
def test_known_differences(
    child: Mapping[int, float], parent: Mapping[int, float], value: float, margin: float, resolved: bool
) -> None:
    found = difference(child, parent)
    assert found is not None
    assert found.value == pytest.approx(value)
    assert found.margin == pytest.approx(margin)
    assert found.resolved is resolved


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        ({0: 82.0}, {0: 80.0}),
        ({0: 82.0}, {0: 79.0, 1: 81.0}),
        ({0: 81.0, 1: 83.0}, {0: 80.0}),
        ({1: 82.0}, {0: 80.0}),
    ],
)
def test_one_run_on_either_side_gives_no_interval(
    child: Mapping[int, float], parent: Mapping[int, float]
) -> None:
    found = difference(child, parent)
    assert found == Difference(2.0, None)
    assert found.resolved is None
    assert str(found) == "+2.00"


@pytest.mark.parametrize(("child", "parent"), [({}, {0: 80.0}), ({0: 80.0}, {}), ({}, {})])
def test_a_side_without_runs_gives_no_difference(
    child: Mapping[int, float], parent: Mapping[int, float]
) -> None:
    assert difference(child, parent) is None


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Summary(80.5678, None, 1), "80.57"),
        (Summary(80.5678, 0.0949, 3), "80.57 ± 0.09"),
        (Difference(0.125, 0.0), "+0.12 ± 0.00"),
        (Difference(-1.234, 0.3781), "-1.23 ± 0.38"),
        (Difference(2.686, None), "+2.69"),
    ],
)
def test_values_read_as_in_a_table(found: Summary | Difference, text: str) -> None:
    assert str(found) == text


@patient
@given(st.lists(st.tuples(ACCURACY, ACCURACY), min_size=3, max_size=18))
def test_the_rank_correlation_is_spearmans(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    assume(len(set(ours)) > 1 and len(set(theirs)) > 1)
    found = rank_correlation(ours, theirs)
    assert found is not None
    assert found.value == pytest.approx(stats.spearmanr(ours, theirs).statistic)
    assert found.low is None or -1 <= found.low <= found.value <= (found.high or 0.0) <= 1


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, 2.0, 3.0], [10.0, 30.0, 70.0], 1.0),
        ([1.0, 2.0, 3.0], [70.0, 30.0, 10.0], -1.0),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], 0.8),  # 1 - 6 * 2 / (4 * 15)
        ([1.0, 2.0], [1.0, 2.0], None),
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0], None),
        ([5.0, 5.0, 5.0], [1.0, 2.0, 3.0], None),
        ([], [], None),
    ],
)
def test_known_rank_correlations(ours: list[float], theirs: list[float], expected: float | None) -> None:
    found = rank_correlation(ours, theirs)
    assert (found and found.value) == (None if expected is None else pytest.approx(expected))


def test_values_that_differ_by_rounding_have_the_same_rank() -> None:
    ours, ties = [1.0, 2.0, 3.0, 4.0], [5.0, 7.0, 7.0, 9.0]
    close = [5.0, math.nextafter(7.0, 8), 7.0, 9.0]
    assert rank_correlation(ours, close) == rank_correlation(ours, ties)
    assert rank_correlation(ours, [5.0, math.nextafter(5.0, 6), 5.0, 5.0]) is None


def test_the_interval_of_a_rank_correlation_has_its_nominal_coverage() -> None:
    """Normal pairs with a correlation of .8 have a rank correlation of 6 / pi * asin(.4)."""
    truth, random, hits, trials = 6 / math.pi * math.asin(0.4), np.random.default_rng(0), 0, 1000
    for _ in range(trials):
        ours, theirs = random.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], size=17).T
        found = rank_correlation(list(ours), list(theirs))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert 0.92 < hits / trials < 0.99


@patient
@given(PAIRS, st.booleans())
def test_p_values_are_scipys(pairs: list[tuple[float, float]], same_seeds: bool) -> None:
    child, parent = zip(*pairs, strict=True)
    assume(
        len(set(child)) > 1
        and len(set(parent)) > 1
        and len({round(one - other, 6) for one, other in pairs}) > 1
    )
    test = stats.ttest_rel(child, parent) if same_seeds else stats.ttest_ind(child, parent, equal_var=False)
    found = difference(seeded(child), seeded(parent, first=0 if same_seeds else 1))
    assert found is not None
    assert found.p == pytest.approx(test.pvalue, rel=1e-7, abs=1e-12)


@patient
@given(ACCURACIES, ACCURACIES)
def test_a_z_score_counts_standard_errors(ours: list[float], theirs: list[float]) -> None:
    assume(len(set(ours)) > 1 and len(set(theirs)) > 1)
    one, other = summarize(ours), summarize(theirs)
    assert one is not None
    assert other is not None
    assert z_score(one, other) == pytest.approx(stats.ttest_ind(ours, theirs, equal_var=False).statistic)
    assert z_score(one, Summary(80.0, None, 1)) is None


@patient
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holms_p_values_reject_what_his_procedure_rejects(ps: list[float]) -> None:
    """From the smallest on, each is held against the level over the number of those that are left, until one
    is not below.
    """
    adjusted, rejected = holm(ps), set[int]()
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    for rank, place in enumerate(order):
        if ps[place] * (len(ps) - rank) >= 0.05:
            break
        rejected.add(place)
    assert {place for place, p in enumerate(adjusted) if p < 0.05} == rejected
    assert all(p <= more <= 1 for p, more in zip(ps, adjusted, strict=True))


@patient
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holms_p_values_are_those_of_closed_testing(ps: list[float]) -> None:
    """A p-value is adjusted to the largest one, after Bonferroni, of all sets of tests that it is in."""
    places = range(len(ps))
    sets = list(chain.from_iterable(combinations(places, size) for size in range(1, len(ps) + 1)))
    closed = [
        max(min(1.0, len(each) * min(ps[other] for other in each)) for each in sets if place in each)
        for place in places
    ]
    assert holm(ps) == pytest.approx(closed)


@pytest.mark.parametrize("n", [3, 4, 5, 10])
def test_the_paired_interval_always_covers_and_is_narrower_where_rows_correlate(n: int) -> None:
    """The page has the widths; SciPy's intervals, which ours are, of many pairs of rows at once."""
    page, random = (ROOT / "docs/statistics.md").read_text(encoding="utf-8"), np.random.default_rng(0)
    line, _ = re.findall(rf"^\| {n} \| (\d\.\d\d) \| (\d\.\d\d) \| (\d\.\d\d) \|$", page, re.MULTILINE)
    for rho, ratio, width in ((0.0, 1, line[0]), (0.3, 1, line[1]), (0.6, 1, line[2]), (-0.5, 4, None)):
        one, other = random.normal(size=(2, 20_000, n))
        other = ratio * (rho * one + math.sqrt(1 - rho**2) * other)
        paired = stats.ttest_rel(one, other, axis=1).confidence_interval()
        apart = stats.ttest_ind(one, other, axis=1, equal_var=False).confidence_interval()
        covered = [float(np.mean((found.low <= 0) & (found.high >= 0))) for found in (paired, apart)]
        assert covered[0] == pytest.approx(0.95, abs=0.006)
        assert covered[1] > 0.95 if width else covered[1] < 0.94
        if width:
            found = np.mean(paired.high - paired.low) / np.mean(apart.high - apart.low)
            assert found == pytest.approx(float(width), abs=0.015)


def test_a_test_that_only_flips_signs_cannot_resolve_with_five_seeds() -> None:
    for n, p in ((3, 0.25), (5, 0.0625), (6, 0.03125)):
        found = stats.permutation_test((np.arange(1.0, n + 1),), np.mean, permutation_type="samples")
        assert found.pvalue == pytest.approx(p) == 2 / 2**n


def test_the_page_on_statistics_has_the_values_of_scipy() -> None:
    page = (ROOT / "docs/statistics.md").read_text(encoding="utf-8")
    for n in (2, 3, 4, 5, 8, 10):
        t = stats.t.isf(0.025, n - 1)

        def power(effect: float, n: int = n, t: float = t) -> float:
            return float(stats.nct.sf(t, n - 1, effect * math.sqrt(n))) - 0.8

        detected = optimize.brentq(power, 0.1, 50)
        assert f"| {n} | {t:.2f} | {t / math.sqrt(n):.2f} | {detected:.2f} |" in page
    for m, n, text in ((18, 3, "18.9"), (18, 5, "6.6")):
        assert f"{stats.t.isf(0.025 / m, n - 1):.1f}" == text
        assert text in page
    for n in (3, 5, 10):
        low, high = (math.sqrt((n - 1) / stats.chi2.ppf(level, n - 1)) for level in (0.975, 0.025))
        assert f"{low:.2f}" in page
        assert f"{high:.1f}" in page
    for top1, images, text in ((80, 50_000, "± 0.35 points for 80 %"), (90, 10_000, "± 0.59 for 90 %")):
        assert f"± {sampling_margin(top1, images):.2f}" in text
        assert text in page


@patient
@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_sampling_error_of_test_images_is_half_of_wilsons_interval(counts: tuple[int, int]) -> None:
    right, images = counts
    low, high = stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert sampling_margin(100 * right / images, images) == pytest.approx(100 * (high - low) / 2)


@pytest.mark.parametrize("together", [0.0, 0.5, 0.9])
def test_the_sampling_error_of_a_difference_is_at_most_that_of_independent_errors(together: float) -> None:
    """Samples of images that two networks get right or wrong, alike with this probability or else alone."""
    random, images, top1 = np.random.default_rng(0), 2000, (0.85, 0.8)
    both = together * min(top1) + (1 - together) * top1[0] * top1[1]
    b, c = top1[0] - both, top1[1] - both
    counts = random.multinomial(images, [both, b, c, 1 - both - b - c], size=4000)
    spread = float((100 * (counts[:, 1] - counts[:, 2]) / images).std())
    mcnemar = 100 * math.sqrt((b + c - (b - c) ** 2) / images)
    assert spread == pytest.approx(mcnemar, rel=0.05)
    bound = math.hypot(*(sampling_margin(100 * p, images) for p in top1)) / stats.norm.ppf(0.975)
    assert mcnemar == pytest.approx(bound, rel=0.01) if together == 0 else mcnemar < 0.8 * bound


@patient
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=6))
def test_signs_agree_by_chance_as_often_as_in_a_random_order(pairs: list[tuple[int, int]]) -> None:
    ours, theirs = ([float(value) for value in side] for side in zip(*pairs, strict=True))
    found = sign_agreement(ours, theirs)
    assert found is not None
    assert (found.same, found.n) == (sum(one * other > 0 for one, other in pairs), len(pairs))
    orders = [sum(map(same_sign, ours, order)) for order in permutations(theirs)]
    assert found.expected == pytest.approx(statistics.fmean(orders))
    assert sign_agreement([], []) is None


@pytest.mark.parametrize(
    ("drift", "sums", "least", "most"), [(0, 0, 0.02, 0.06), (0, 1, 0.2, 0.4), (0.5, 1, 0.6, 1)]
)
def test_sums_of_unrelated_effects_seem_to_correlate_and_the_effects_do_not(
    drift: float, sums: int, least: float, most: float
) -> None:
    """How often the interval excludes zero: accuracies along a path are sums, and get none."""
    random, trials, found = np.random.default_rng(0), 500, 0
    for _ in range(trials):
        ours, theirs = drift + random.normal(size=(2, 14))
        pair = (ours.cumsum(), theirs.cumsum()) if sums else (ours, theirs)
        correlation = rank_correlation(*(side.tolist() for side in pair))
        assert correlation is not None
        assert correlation.low is not None
        assert correlation.high is not None
        found += not correlation.low <= 0 <= correlation.high
    assert least < found / trials < most


@pytest.mark.parametrize(("effect", "n"), [(3.0, 3), (1.0, 3), (1.0, 8), (0.4, 5)])
@pytest.mark.parametrize("paired", [True, False])
def test_the_seeds_that_are_needed_resolve_in_four_of_five_cases(effect: float, n: int, paired: bool) -> None:
    """Normal differences of the size and spread that were seen, drawn again with so many seeds."""
    if paired:
        seen = np.arange(n) - (n - 1) / 2
        child = effect * seen.std(ddof=1) + seen
        found = difference(seeded(list(child)), seeded([0.0] * n))
    else:
        found = welch(Summary(80 + effect, 1.0, n), Summary(80.0, 0.5, n))
    assert found is not None
    assert found.needed is not None
    random, trials = np.random.default_rng(0), 4000

    def power(seeds: int) -> float:
        ours = random.normal(effect, 1.0, (trials, seeds))
        if paired:
            return float((stats.ttest_1samp(ours, 0, axis=1).pvalue < 0.05).mean())
        return float(
            (
                stats.ttest_ind(ours, random.normal(0, 0.5, (trials, seeds)), axis=1, equal_var=False).pvalue
                < 0.05
            ).mean()
        )

    assert power(found.needed) > 0.77
    assert found.needed == 2 or power(found.needed - 1) < 0.83


@pytest.mark.parametrize(("effect", "tests"), [(2.0, 18), (1.0, 5)])
def test_the_seeds_that_are_needed_resolve_a_difference_among_others_that_change_nothing(
    effect: float, tests: int
) -> None:
    """In pairs: one difference of the size that was seen, and all others zero, adjusted together."""
    seen = np.array([-1.0, 0.0, 1.0]) + effect
    alone, found = (difference(seeded(list(seen)), seeded([0.0] * 3), number) for number in (1, tests))
    assert alone is not None
    assert alone.needed is not None
    assert found is not None
    assert found.needed is not None
    assert found.needed > alone.needed
    assert (found.value, found.margin, found.p) == (alone.value, alone.margin, alone.p)
    random, trials = np.random.default_rng(0), 1000

    def power(seeds: int) -> float:
        draws = random.normal(0, 1.0, (trials, tests, seeds))
        draws[:, 0] += effect
        ps = stats.ttest_1samp(draws, 0, axis=2).pvalue
        return sum(holm(list(each))[0] < 0.05 for each in ps) / trials

    assert power(found.needed) > 0.77
    assert power(found.needed - 1) < 0.83
    assert power(alone.needed) < 0.6


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (2.0, 1e-4, True),
        (-2.0, -1e-4, True),
        (2.0, -1e-4, False),
        (0.0, -1.0, False),
        (0.0, 0.0, False),
        (1e-14, 1.0, False),
        (-1e-14, -1.0, False),
    ],
)
def test_rounding_has_no_sign(one: float, other: float, same: bool) -> None:
    assert same_sign(one, other) is same_sign(other, one) is same


def test_no_number_of_seeds_resolves_nothing() -> None:
    assert welch(Summary(80.0, 1.0, 3), Summary(80.0, 1.0, 3)).needed == MOST_SEEDS + 1
