"""Presence: unseen classes are raised by what the photo's best places say, photo by photo."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from zsseg.config import TrainConfig
from zsseg.inference import load_model, score_image
from zsseg.presence import SHARPNESS, with_presence


@pytest.mark.parametrize("unit", [0.5, 1.0, 3.0])
def test_presence_is_a_soft_maximum_over_the_photo(unit: float) -> None:
    """The formula, cell by cell, in plain Python; seen scores stay as they are."""
    scores = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)) * 0.2
    seen, unseen = [0, 2], [1, 3]
    raised = with_presence(scores, seen, unseen, unit=unit)
    assert torch.equal(raised[seen], scores[seen])
    sharpness = SHARPNESS / unit
    for index in unseen:
        cells = [(row, column) for row in range(3) for column in range(5)]
        gaps = [float(scores[index][cell]) - max(float(scores[other][cell]) for other in seen) for cell in cells]
        presence = math.log(sum(math.exp(sharpness * gap) for gap in gaps) / len(gaps)) / sharpness
        torch.testing.assert_close(raised[index], scores[index] + presence)
        assert min(gaps) < presence < max(gaps)


def test_a_photo_with_one_sure_place_is_raised_above_one_without() -> None:
    """The same weak place wins beside a sure one and loses alone, under one and the same seen bias."""
    weak, sure, seen_bias = -0.2, 0.3, 0.4
    scores = torch.zeros(2, 4, 4)
    scores[1] = -0.6
    scores[1, 0, 0] = weak
    beside = scores.clone()
    beside[1, 2:, 2:] = sure
    alone, helped = (with_presence(each, [0], [1], unit=1.0) for each in (scores, beside))
    assert alone[1, 0, 0] < alone[0, 0, 0] - seen_bias
    assert helped[1, 0, 0] > helped[0, 0, 0] - seen_bias


def test_huge_gaps_do_not_overflow() -> None:
    """Scores far apart give finite numbers, and a single cell is its own maximum."""
    scores = torch.tensor([0.0, 5000.0, -5000.0])[:, None, None]
    assert with_presence(scores, [0], [1, 2], unit=1.0).flatten().tolist() == [0.0, 10000.0, -10000.0]


def test_a_model_applies_what_its_record_says(trained) -> None:
    """The record of a default model names it; without the entry, as in older files, scores are those of the gate."""
    model = load_model(trained / "model.h5", device="cpu")
    assert model.params["presence"] is True
    photo = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    older = replace(model, params={key: value for key, value in model.params.items() if key != "presence"})
    plain, raised = (score_image(each, photo, max_side=1024).scores for each in (older, model))
    unit = float(model.vectors.square().sum(dim=1).mean())
    torch.testing.assert_close(raised, with_presence(plain, model.seen, model.unseen, unit=unit))
    assert TrainConfig().presence is None


def test_a_model_is_as_sharp_as_when_it_was_calibrated(trained) -> None:
    """The record names the sharpness; a file from before it was recorded has that of its day, 20."""
    model = load_model(trained / "model.h5", device="cpu")
    assert model.params["presence_sharpness"] == SHARPNESS
    photo = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    without = {key: value for key, value in model.params.items() if key != "presence_sharpness"}
    plain, older, twenty = (
        score_image(replace(model, params=params), photo, max_side=1024).scores
        for params in ({}, without, {**without, "presence_sharpness": 20.0})
    )
    assert torch.equal(older, twenty)
    assert not torch.equal(older, score_image(model, photo, max_side=1024).scores)
    assert not torch.equal(older, plain)
