"""The learning-rate range test: what a curve speaks for, and that nothing but a picture is written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_train import FROZEN
from test_train import inputs as inputs  # the fixture
from tiny import zsseg

from zsseg import lr_range
from zsseg.errors import ArtifactError
from zsseg.lr_range import find_rate, rate_at, smoothed, summarise

CONFIG = replace(FROZEN, gate=False)
SETTINGS = (
    "--batch", "2", "--workers", "0", "--crop", "64", "--device", "cpu", "--anchors", "none", "--frozen", "--no-gate",
)  # fmt: skip


def test_the_rates_rise_geometrically() -> None:
    """They go from the lowest to the highest, each the same factor above the one before."""
    rates = [rate_at(step) for step in range(lr_range.STEPS)]
    assert (rates[0], rates[-1]) == (lr_range.LOW, pytest.approx(lr_range.HIGH))
    assert np.allclose(np.diff(np.log(rates)), math.log(lr_range.HIGH / lr_range.LOW) / (lr_range.STEPS - 1))


def test_smoothing_is_the_weighted_mean_of_all_before() -> None:
    """Each value is the mean of the losses so far with weights 0.9 ** age, against a plain loop."""
    losses = [3.0, 1.0, 4.0, 1.0, 5.0]
    for end, value in enumerate(smoothed(losses), start=1):
        weights = [lr_range.MEMORY ** (end - 1 - place) for place in range(end)]
        assert value == pytest.approx(np.average(losses[:end], weights=weights))


def test_a_curve_with_a_valley_speaks_for_a_rate_before_it() -> None:
    """Of a loss that falls until 1e-2 and then rises: the least loss is there, the suggestion a tenth of it."""
    rates = [rate_at(step) for step in range(lr_range.STEPS)]
    losses = [1 + abs(math.log10(rate / 1e-2)) ** 2 for rate in rates]
    found = summarise(Path("x.png"), rates, losses, default=3e-3)
    assert 1e-2 < found.lowest < 3e-2  # an exponential mean comes late
    assert found.suggestion == found.lowest / 10
    assert found.steepest < found.lowest
    assert (found.default, found.diverged) == (3e-3, False)


def test_the_command_draws_a_curve_and_writes_no_model(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints a table and the option to use, the same each time, beside an existing model, which stays."""
    monkeypatch.setattr(lr_range, "STEPS", 30)
    (tmp_path / "model.h5").write_text("mine")
    at = [word for kind in ("data", "labels", "split") for word in (f"--{kind}", inputs / f"{kind}.h5")]
    out = ("--workspace", tmp_path, "--json", tmp_path / "found.json")
    table = zsseg("train", "--find-lr", *SETTINGS, *at, *out).stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert f"suggested: --lr {found['suggestion']:.1e}" in table
    assert lr_range.LOW / 10 < found["suggestion"] < found["lowest"]
    assert (tmp_path / "model.h5").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "model-lr.png", "model.h5"]
    again = find_rate(inputs / "data.h5", inputs / "split.h5", inputs / "labels.h5", tmp_path / "b.png", CONFIG)
    assert list(again.losses) == found["losses"]
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "model-lr.png").read_bytes()
    with pytest.raises(ArtifactError, match=r"b\.png: exists already; add --force"):
        find_rate(inputs / "data.h5", inputs / "split.h5", inputs / "labels.h5", tmp_path / "b.png", CONFIG)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--find-lr", "--lr", "0.1"), "--lr: has no meaning with --find-lr"),
        (("--find-lr", "--resume"), "--resume: has no meaning with --find-lr"),
        (("--find-lr", "--seeds", "2"), "--seeds: has no meaning with --find-lr"),
        (("--curve", "x.png"), "--curve x.png: belongs to --find-lr"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    """They are refused before anything is read."""
    assert message in zsseg("train", *words, "--workspace", tmp_path, expect=1).stderr
