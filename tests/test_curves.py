"""Curves are what the runs logged, whatever else their folders hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from roadmap.report.ablation import measured, published
from roadmap.report.curves import MOST_RUNS, curves_of
from tests.helpers.trained import FEW, ROADMAP, messy, record, trained


def test_curves_come_by_row_and_seed_finished_or_not(tmp_path: Path) -> None:
    ablation = messy(tmp_path)
    curves = curves_of(ablation)
    assert [(curve.step, curve.seed) for curve in curves] == [
        (row.step, seed) for row in ablation.rows for seed in range(5) if row.runs
    ]
    ends = {curve.step: curve.top1[-1] for curve in curves if curve.seed == 0}
    assert ends["resnet50"] == ablation.row("resnet50").seeds[0]
    assert {len(curve.epoch) for curve in curves if curve.step == "layer_norm"} == {3, 4, 5, 6, 7}
    assert all(
        len(curve.epoch)
        == len(curve.top1)
        == len(curve.train_loss)
        == len(curve.val_loss)
        == len(curve.ema_top1)
        for curve in curves
    )


def test_a_publication_has_no_curves() -> None:
    assert curves_of(published(ROADMAP)) == []


@pytest.mark.parametrize(("seeds", "found"), [(3, 15), (4, 0)])
def test_more_runs_than_the_most_are_not_read(tmp_path: Path, seeds: int, found: int) -> None:
    assert len(curves_of(trained(tmp_path, FEW, seeds), most=15)) == found
    assert MOST_RUNS == 200


GOOD = record(1, 10.0, ema_top1=5) + record(2, 20.0)
TRAIN = '{"kind": "train", "epoch": 3, "iteration": 5, "lr": 0.1, "train_loss": 1.0}\n'


@pytest.mark.parametrize(
    ("log", "epochs", "top1"),
    [
        (GOOD, (1, 2), (10.0, 20.0)),
        (GOOD + TRAIN, (1, 2), (10.0, 20.0)),
        (GOOD + record(3, 30.0)[:-9], (1, 2), (10.0, 20.0)),
        (record(1, 1.0)[:20] + "\n" + GOOD, (1, 2), (10.0, 20.0)),
        (GOOD + record(1, 11.0), (1, 2), (11.0, 20.0)),
        (record(2, 20.0) + record(1, 10.0), (1, 2), (10.0, 20.0)),
        (GOOD + record(4, None), (1, 2, 4), (10.0, 20.0, None)),
        (GOOD + record(3, float("nan")) + record(4, float("inf")), (1, 2, 3, 4), (10.0, 20.0, None, None)),
        (GOOD + '{"kind": "epoch", "epoch": 3}\n', (1, 2, 3), (10.0, 20.0, None)),
        (GOOD + f'{{"kind": "epoch", "epoch": 3, "top1": 1{"0" * 400}}}\n', (1, 2, 3), (10.0, 20.0, None)),
        (GOOD + '{"kind": "epoch", "epoch": 3, "top1": true}\n', (1, 2, 3), (10.0, 20.0, None)),
        (
            GOOD
            + '{"kind": "epoch", "epoch": "3"}\n'
            '{"kind": "epoch", "epoch": 0}\n'
            '{"kind": "epoch", "epoch": true}\n',
            (1, 2),
            (10.0, 20.0),
        ),
        (GOOD + '[1, 2]\n"epoch"\n{"epoch": 7}\n\x00\xff\n', (1, 2), (10.0, 20.0)),
    ],
    ids=[
        "whole", "training", "torn at the end", "torn at the start", "twice", "out of order", "no accuracy",
        "not finite", "no figures", "beyond floats", "no number", "no epoch", "something else",
    ],
)  # fmt: skip
def test_what_is_no_record_of_an_epoch_is_left_out(
    tmp_path: Path, log: str, epochs: tuple[int, ...], top1: tuple[float | None, ...]
) -> None:
    ablation = trained(tmp_path, ["gelu"], seeds=1)
    ablation.row("gelu").runs[0].run.metrics.write_bytes(log.encode("latin-1"))
    (curve,) = curves_of(ablation)
    assert (curve.epoch, curve.top1, curve.step, curve.seed) == (epochs, top1, "gelu", 0)
    assert curve.ema_top1[0] in (5.0, None)


def test_runs_without_a_log_have_no_curve(tmp_path: Path) -> None:
    ablation = trained(tmp_path, ["gelu", "kernel_7"], seeds=2)
    first, second = (
        run.run.metrics for run in sorted(ablation.row("gelu").runs, key=lambda run: run.run.seed)
    )
    first.unlink()
    second.write_text("{", "utf-8")
    third, fourth = (
        run.run.metrics for run in sorted(ablation.row("kernel_7").runs, key=lambda run: run.run.seed)
    )
    third.unlink()
    third.mkdir()
    assert [curve.seed for curve in curves_of(ablation)] == [1]
    assert fourth.exists()


def test_a_row_has_the_curves_of_another_step_that_trains_the_same(tmp_path: Path) -> None:
    """As where `model.depths` is set for all steps."""
    overrides = {"model.depths": [1, 1, 1, 1]}
    runs = [
        run for row in trained(tmp_path, ["enhanced_recipe"], overrides=overrides).rows for run in row.runs
    ]
    curves = curves_of(measured(ROADMAP, "digits_noisy", overrides, runs[:3]))
    assert [(curve.step, curve.seed) for curve in curves] == [
        (step, seed) for step in ("enhanced_recipe", "stage_ratio") for seed in range(3)
    ]
