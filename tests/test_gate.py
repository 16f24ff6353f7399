"""Gate and anchors: head and gate decide together, the classifier is the backbone's, kin are told from names alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from zsseg import kinship
from zsseg.classes import VOC_NAMES
from zsseg.errors import DataError
from zsseg.kinship import Kinship, shares
from zsseg.models import build, fill_anchors, load_pretrained
from zsseg.models.anchors import EPS, WEIGHT
from zsseg.models.gate import gated_scores

COW, SHEEP, HORSE, CAT = (VOC_NAMES.index(name) for name in ("cow", "sheep", "horse", "cat"))


@pytest.fixture(scope="module")
def by_wordnet() -> Kinship:
    """Return VOC's kin by WordNet alone: the sentence encoder is no dependency of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinship.sentences, "read_encoder", _no_encoder)
        patch.setenv("ZSSEG_FEATURES", "none")
        return kinship.imagenet_kinship(VOC_NAMES)


def _no_encoder(*_: object) -> None:
    raise kinship.SettingError("not installed")


def test_kinship_is_kept_for_the_same_names_and_found_out_again_where_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run reads what the first one found out, other names have a file of their own, a damaged one is made."""
    asked: list[tuple[str, ...]] = []

    def found_out(names: tuple[str, ...]) -> Kinship:
        asked.append(names)
        rng = np.random.default_rng(len(names))
        below, named = rng.random((2, 4, len(names))) < 0.5
        return Kinship(rng.random((4, len(names))), below, named, ("WordNet 3.0", "MiniLM"))

    monkeypatch.setattr(kinship, "_found_out", found_out)
    monkeypatch.setenv("ZSSEG_FEATURES", str(tmp_path / "kept"))
    first, again = (kinship.imagenet_kinship(("cow", "sheep")) for _ in range(2))
    assert asked == [("cow", "sheep")]
    for name in ("likeness", "below", "named", "sources"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    before = set((tmp_path / "kept").glob("kinship-*"))
    kinship.imagenet_kinship(("cow", "sheep", "cat"))
    assert len(asked) == 2
    (path,) = set((tmp_path / "kept").glob("kinship-*")) - before
    whole = path.read_bytes()
    damaged = [whole[:-40], b"", *(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :] for at in range(0, 400, 7))]
    for count, content in enumerate(damaged, start=3):
        path.write_bytes(content)
        kinship.imagenet_kinship(("cow", "sheep", "cat"))
        assert len(asked) == count


def test_head_ranks_the_seen_classes_and_the_gate_decides_between_seen_and_unseen() -> None:
    """At every cell the head's best seen class wins, or the gate's best unseen one where the gate prefers it."""
    generator = torch.Generator().manual_seed(0)
    head, gate = torch.randn(2, 5, 7, 9, generator=generator)
    seen, unseen = [0, 2, 3], [1, 4]
    won = gated_scores(head, gate, seen).argmax(dim=0)
    for row in range(7):
        for column in range(9):
            best = {kind: max(kind, key=lambda c: float(gate[c, row, column])) for kind in map(tuple, (seen, unseen))}
            if gate[best[tuple(unseen)], row, column] > gate[best[tuple(seen)], row, column]:
                expected = best[tuple(unseen)]
            else:
                expected = max(seen, key=lambda c: float(head[c, row, column]))
            assert won[row, column] == expected
    kinds = {int(each) in unseen for each in won.unique()}
    assert kinds == {True, False}, "the input must let both win"


def test_the_gap_between_seen_and_unseen_is_the_gates() -> None:
    """A seen bias acts on the gate's own scores, so that calibration means the same for every pixel."""
    head, gate = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    joint = gated_scores(head, gate, [0, 1])
    gap = joint[:2].amax(dim=0) - joint[2:].amax(dim=0)
    assert torch.allclose(gap, gate[:2].amax(dim=0) - gate[2:].amax(dim=0), atol=1e-6)


def test_anchors_run_the_backbones_own_classifier() -> None:
    """With one ImageNet class for each of ours, the prior is what timm's whole network says of that class."""
    import timm

    net = build("lite0", 4, anchors=2).eval()
    load_pretrained(net, None)
    share = np.zeros((1000, 2), dtype=np.float32)
    share[207, 0] = share[281, 1] = 1.0  # golden retriever, tabby
    fill_anchors(net, None, share)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    from zsseg.models.weights import _packaged_lite0, _timm_names

    whole.load_state_dict(_timm_names(_packaged_lite0()))
    with torch.inference_mode():
        coarse = net.features(torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(2)))[1]
        cell = coarse[:, -320:, :1, :1]  # alone, so that the mean over a window is itself
        prior = net.anchors(cell) / WEIGHT
        wanted = whole.classifier(whole.bn2(whole.conv_head(cell)).flatten(1)).softmax(dim=1)[0, [207, 281]]
    assert torch.allclose(prior[0, :, 0, 0].exp() - EPS, wanted, atol=1e-5)


def test_classes_without_kin_take_the_mean_of_the_others() -> None:
    """Background has no kin: its prior neither helps nor hurts it."""
    net = build("lite0", 4, anchors=3).eval()
    load_pretrained(net, None)
    share = np.random.default_rng(0).random((1000, 3)).astype(np.float32) / 3
    share[:, 0] = 0
    fill_anchors(net, None, share)
    with torch.inference_mode():
        prior = net.prior(net.features(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))))
    assert prior is not None
    assert torch.allclose(prior[:, 0], prior[:, 1:].mean(dim=1), atol=1e-6)


def test_classes_that_are_taken_out_have_no_say() -> None:
    """The probabilities of the others are those of a classifier that never had the class."""
    share = np.full((1000, 1), 1.0, dtype=np.float32)
    share[500:] = np.nan
    net = build("lite0", 4, anchors=1).eval()
    load_pretrained(net, None)
    fill_anchors(net, None, share)
    with torch.inference_mode():
        prior = net.prior(net.features(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))))
    assert prior is not None
    assert torch.allclose((prior / WEIGHT).exp(), torch.tensor(1.0 + EPS), atol=1e-4), "the kept half shares all of it"


def test_weights_without_a_classifier_are_refused(tmp_path) -> None:
    """A backbone's own state dict, without conv_head and classifier, gives a clear error."""
    net = build("lite0", 4, anchors=1)
    torch.save({"conv_head.weight": torch.zeros(1280, 320, 1, 1)}, tmp_path / "bare.pth")
    with pytest.raises(DataError, match=r"holds no ImageNet-1k classifier .* use --anchors none"):
        fill_anchors(net, str(tmp_path / "bare.pth"), np.zeros((1000, 1), dtype=np.float32))


def test_an_unseen_class_takes_its_own_imagenet_classes_out(by_wordnet: Kinship) -> None:
    """Ox is a cow; ram is a sheep by WordNet, bighorn (bighorn sheep) by its name."""
    from zsseg.wordnet import imagenet_kin

    first = [words[0] for words in imagenet_kin(VOC_NAMES).words]
    out = np.isnan(shares(by_wordnet, [COW, SHEEP])).all(axis=1)
    assert {"ox", "ram", "bighorn"} <= {first[index] for index in np.flatnonzero(out)}
    assert np.isnan(shares(by_wordnet, [CAT])).all(axis=1).sum() > 5, "tabby, lynx, ..."
    assert not np.isnan(shares(by_wordnet, [])).any()


def test_a_seen_class_owns_what_wordnet_puts_under_it(by_wordnet: Kinship) -> None:
    """Sorrel is a horse and nothing else while horse is seen, and has no say where horse is unseen."""
    below = by_wordnet.below[:, HORSE]
    assert below.sum() == 1
    seen = shares(by_wordnet, [COW])
    assert seen[below].tolist() == [np.eye(21)[HORSE].tolist()]
    assert np.isnan(shares(by_wordnet, [HORSE])[below]).all()


@pytest.mark.parametrize("unseen", [(), (COW, SHEEP), (HORSE,), tuple(range(1, 15))])
def test_shares_are_shares(by_wordnet: Kinship, unseen: tuple[int, ...]) -> None:
    """Every row sums to at most 1, background has no kin, and nothing of an unseen class is left to speak of it."""
    share = shares(by_wordnet, unseen)
    kept = ~np.isnan(share).all(axis=1)
    assert share[kept].sum(axis=1).max() <= 1 + 1e-5
    assert share[kept].min() >= 0
    assert not share[kept][:, 0].any()
    assert not by_wordnet.below[kept][:, list(unseen)].any()
