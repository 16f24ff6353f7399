"""Calibrations against naive loops over their formulas, how the parameter is chosen, and what the artifact keeps."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from test_train import FROZEN, QUICK, run, weights, workspace
from tiny import zsseg

from zsseg import calibration, metrics, probe, train
from zsseg.artifacts import open_artifact
from zsseg.calibration import Evidence
from zsseg.config import Anchors, CalibrationName
from zsseg.curve import Curve, count_gaps
from zsseg.dataset import read_image
from zsseg.errors import SettingError, TrainingError
from zsseg.images import decode_label_map
from zsseg.inference import label_map, load_model, score_image
from zsseg.progress import SILENT

SEEN, OBJECTS, CLASSES = (0, 1, 3), (1, 3), 5
METHODS = [name for name in get_args(CalibrationName) if name != "none"]
BANK = np.random.default_rng(0).normal(0, 2, (300, CLASSES)).astype(np.float32)
PIXELS = np.array([900, 60, 0, 40, 0])
EVIDENCE = Evidence(SEEN, OBJECTS, BANK, PIXELS)
QUARTERS = {  # every seen class in several training photos
    "one": (0, 1, 2, 0), "two": (1, 0, 0, 2), "three": (0, 3, 1, 2), "four": (4, 0, 2, 1),
    "five": (0, 1, 3, 2), "six": (4, 3, 0, 1),
}  # fmt: skip


# --- formulas ---------------------------------------------------------------------------------------------------------


def test_stacking() -> None:
    """Seen classes lose γ, unseen ones nothing."""
    assert calibration.stacking(CLASSES, SEEN, 0.25).bias.tolist() == [-0.25, -0.25, 0, -0.25, 0]
    assert (calibration.stacking(CLASSES, SEEN, 0.25).scale == 1).all()


@pytest.mark.parametrize("nearest", [0.02, 0.5, 1.0, 1e-9])
def test_csls(nearest: float) -> None:
    """A class loses half of its mean score with the pixels nearest to it, and γ where it is seen."""
    found = calibration.csls(BANK, SEEN, 0.3, nearest=nearest).bias
    for index in range(CLASSES):
        best = sorted(BANK[:, index].tolist(), reverse=True)[: max(1, round(nearest * 300))]
        assert found[index] == pytest.approx(-sum(best) / len(best) / 2 - 0.3 * (index in SEEN), rel=1e-5)


@pytest.mark.parametrize("beta", [0.1, 2.0, 300.0])
def test_inverted_softmax(beta: float) -> None:
    """A class loses log Σ exp(β s) / β over the bank; a score of 1000 overflows nothing."""
    found = calibration.inverted_softmax(BANK, beta).bias
    for index in range(CLASSES):
        scaled = sorted(beta * value for value in BANK[:, index].astype(float).tolist())
        total = math.log(math.fsum(math.exp(value - scaled[-1]) for value in scaled)) + scaled[-1]
        assert found[index] == pytest.approx(-total / beta, rel=1e-5)
    assert np.isfinite(calibration.inverted_softmax(BANK + 1000, beta).bias).all()


def test_inverted_softmax_is_softmax_over_pixels() -> None:
    """For a pixel of the bank the best class is that of the largest share exp(β s_c(x)) / Σ_x' exp(β s_c(x'))."""
    shares = np.exp(BANK.astype(float)) / np.exp(BANK.astype(float)).sum(axis=0)
    found = BANK + calibration.inverted_softmax(BANK, 1.0).bias
    np.testing.assert_array_equal(found.argmax(axis=1), shares.argmax(axis=1))


def test_logit_adjustment() -> None:
    """A class loses τ log π; an unseen one counts like the rarest seen object, whatever its own count says."""
    found = calibration.logit_adjustment(PIXELS, SEEN, OBJECTS, 0.5).bias
    shares = [0.9, 0.06, 0.04, 0.04, 0.04]
    np.testing.assert_allclose(found, [-0.5 * math.log(share) for share in shares], rtol=1e-6)
    peeked = np.array([900, 60, 7, 40, 100_000])
    np.testing.assert_array_equal(calibration.logit_adjustment(peeked, SEEN, OBJECTS, 0.5).bias, found)
    rare = calibration.logit_adjustment(np.array([900, 0, 0, 100, 0]), SEEN, OBJECTS, 1.0).bias
    assert rare[1] == rare[3] == pytest.approx(-math.log(0.1))  # a seen class without a pixel has no log 0


def test_apollonius() -> None:
    """Distances of unseen classes count σ times, behind the gate."""
    found = calibration.apollonius(CLASSES, SEEN, 0.7)
    np.testing.assert_allclose(found.scale, [1, 1, 0.7, 1, 0.7])
    assert (found.top2, found.on_distances, found.bias.any()) == (True, True, False)


@pytest.mark.parametrize("method", METHODS)
def test_build_and_candidates(method: CalibrationName) -> None:
    """Every method is built from its parameter alone, and what is tried are calibrations of that method."""
    built = calibration.build(method, 0.5, EVIDENCE)
    assert (built.method, built.parameter) == (method, 0.5)
    assert built.scale.shape == built.bias.shape == (CLASSES,)
    assert built.scale.dtype == built.bias.dtype == np.float32
    tried = calibration.candidates(method, EVIDENCE)
    assert {each.method for each in tried} == {method}
    assert len(tried) == len(calibration.GRIDS.get(method, (0,)))
    if method in ("stacking", "apollonius"):
        assert tried[0].is_identity


# --- choosing the parameter -------------------------------------------------------------------------------------------


def curve(seen: list[float], unseen: list[float]) -> Curve:
    """Return a curve at γ = −1, 0, 1, ..."""
    a, b = np.array(seen), np.array(unseen)
    return Curve(np.arange(len(a)) - 1.0, a, b, 2 * a * b / (a + b))


def test_choice_is_the_best_harmonic_within_the_loss() -> None:
    """Without a bound the best harmonic mean wins, with one the best among those that keep to it."""
    found = curve([0.52, 0.50, 0.49, 0.45, 0.3], [0.0001, 0.01, 0.1, 0.3, 0.35])
    free = calibration.choose("stacking", [(0.0, found)], seen_miou_before=0.5, max_seen_loss=1.0)
    assert (free.parameter, free.seen_miou, free.hidden_miou) == (2.0, 0.45, 0.3)
    bound = calibration.choose("stacking", [(0.0, found)], seen_miou_before=0.5, max_seen_loss=0.02)
    assert (bound.parameter, bound.harmonic_miou) == (1.0, pytest.approx(2 * 0.49 * 0.1 / 0.59))
    sigma = calibration.choose("apollonius", [(1.0, found)], seen_miou_before=0.5, max_seen_loss=0.02)
    assert sigma.parameter == pytest.approx(math.exp(-1))


def test_choice_where_all_cost_too_much_and_where_all_are_alike() -> None:
    """If nothing keeps to the bound the cheapest is taken; of equals the one that changes least."""
    found = curve([0.4, 0.3, 0.2], [0.1, 0.2, 0.3])
    assert calibration.choose("csls", [(0.0, found)], seen_miou_before=0.9, max_seen_loss=0.02).parameter == -1.0
    flat = curve([0.4, 0.4, 0.4], [0.1, 0.1, 0.1])
    assert calibration.choose("csls", [(0.0, flat)], seen_miou_before=0.4, max_seen_loss=0.02).parameter == 0.0


def test_choice_among_tried_values() -> None:
    """A method with tried values is compared as it stands, without a further bias."""
    tried = [(0.1, curve([0.5, 0.5, 0.5], [0.9, 0.1, 0.9])), (0.2, curve([0.5, 0.5, 0.5], [0.0, 0.2, 0.0]))]
    found = calibration.choose("inverted-softmax", tried, seen_miou_before=0.5, max_seen_loss=0.02)
    assert (found.parameter, found.hidden_miou) == (0.2, 0.2)


def test_spending_a_seen_loss() -> None:
    """The greatest strength before the first that costs too much; never less than none, however little that costs."""
    found = curve([0.52, 0.50, 0.49, 0.47, 0.49], [0.0, 0.1, 0.2, 0.3, 0.4])
    found = replace(found, gamma=np.array([-1.0, 0.0, 0.1, 0.2, 0.3]))
    false = np.array([0.0, 0.01, 0.03, 0.1, 0.4])

    def spent(loss: float, share: float = 1.0, method: CalibrationName = "stacking") -> calibration.Choice:
        return calibration.spend(method, found, false, max_seen_loss=loss, max_false_share=share)

    chosen = spent(0.02)
    assert (chosen.parameter, chosen.seen_miou, chosen.seen_miou_before, chosen.false_share) == (0.1, 0.49, 0.50, 0.03)
    assert spent(0.0).parameter == 0.0
    assert spent(0.5).parameter == 0.0  # no strength costs so much
    assert spent(0.02, method="apollonius").parameter == pytest.approx(math.exp(-0.1))
    assert spent(0.5, 0.2).parameter == 0.2
    assert spent(0.02, 0.2).parameter == 0.1  # whichever bound comes first
    assert spent(0.02, 0.02).parameter == 0.0
    assert spent(0.02, 0.0).parameter == 0.0  # also where nothing at all keeps to it


@pytest.mark.parametrize("shown", [(0, 1, 2), (0, 1), (0,), ()], ids=str)
def test_false_shares_are_those_of_a_loop(shown: tuple[int, ...]) -> None:
    """Seen pixels that an unseen class wins at each bias, of the mean class that is shown, background apart."""
    rng, edges = np.random.default_rng(0), np.array([-0.5, 0.0, 0.5])
    truth = rng.choice([*shown, 255], 500).astype(np.uint8)
    seen, unseen = rng.integers(0, 3, 500).astype(np.uint8), rng.integers(3, 5, 500).astype(np.uint8)
    gaps = rng.normal(size=500)
    bins = np.searchsorted(edges, gaps).astype(np.int32)
    counts = count_gaps(truth, seen, unseen, bins, classes=5, size=4)
    pixels = np.bincount(truth[truth != 255], minlength=5)
    sizes = [pixels[each] for each in shown if each != 0] or [pixels[each] for each in shown] or [math.inf]
    expected = [
        sum(1 for gap, true in zip(gaps, truth, strict=True) if true != 255 and gap <= edge) / 2 / np.mean(sizes)
        for edge in edges
    ]
    found = probe.false_shares(counts, pixels, unseen=(3, 4), background=(0,))
    np.testing.assert_allclose(found, expected)
    assert not shown or found[-1] > found[0] > 0


@pytest.mark.parametrize("photos", [1, 4, 5])
def test_a_class_in_few_photos_stops_no_calibration(photos: int) -> None:
    """What an unseen class takes from a seen one counts from five photos with that class on, not in one."""
    truth, best_seen = np.repeat(np.arange(4, dtype=np.uint8), 100), np.repeat(np.arange(4, dtype=np.uint8), 100)
    gaps = np.where(truth == 3, 0.1, np.linspace(0.5, 1.0, 400))  # class 3 is lost at once, the others much later
    edges = np.linspace(-1, 1, 41)
    bins = np.searchsorted(edges, gaps).astype(np.int32)
    counts = count_gaps(truth, best_seen, np.full(400, 4, np.uint8), bins, classes=5, size=42)
    pixels = np.array([100, 100, 100, 100, 0])
    tally = probe.Tally([counts], [edges], pixels, np.array([9, 9, 9, photos, 0]))
    (found,) = tally.curves((0, 1, 2, 3), (4,))
    choice = calibration.spend("stacking", found, np.zeros(41), max_seen_loss=0.02, max_false_share=None)
    assert choice.parameter == pytest.approx(0.05 if photos == 5 else 0.45, abs=0.06)


def test_rare_classes_count_where_nothing_else_is_left() -> None:
    """With few photos every class is rare; then all count."""
    assert probe.rare_classes(np.array([9, 9, 4, 0, 9]), (0, 1, 2, 3)) == [2, 3]
    assert probe.rare_classes(np.array([9, 3, 4, 0, 9]), (0, 1, 2, 3)) == []
    assert probe.rare_classes(np.array([2, 3, 4, 1, 9]), (0, 1, 2, 3)) == []


def test_photos_of_a_class_are_counted_once_each(inputs: Path, tmp_path: Path) -> None:
    """However many pixels show it."""
    run(inputs, tmp_path / "a.h5", replace(FROZEN, epochs=1, calibration="none"))
    model = load_model(tmp_path / "a.h5", device="cpu")
    plain = calibration.none(len(model.names))
    with open_artifact(inputs / "data.h5", "data") as data, open_artifact(inputs / "split.h5", "split") as split:
        photos = split.array("train").tolist()
        truths = [decode_label_map(data.bytes_at("label_maps", index), "truth") for index in photos]
        void = model.unseen
        tally = probe.count_scores(model, data, photos, [plain], rivals=void, void=void, progress=SILENT)
    for index in range(len(model.names)):
        shown = sum(index in truth for truth in truths)
        assert tally.photos[index] == (0 if index in model.unseen else shown)


def test_choice_without_a_pixel_of_a_hidden_class() -> None:
    """Where no hidden class was scored there is nothing to choose by."""
    nothing = replace(curve([0.5, 0.5], [0.1, 0.1]), unseen=np.full(2, np.nan), harmonic=np.full(2, np.nan))
    with pytest.raises(SettingError, match="--val-classes"):
        calibration.choose("stacking", [(0.0, nothing)], seen_miou_before=0.5, max_seen_loss=0.02)


# --- choosing the classes ---------------------------------------------------------------------------------------------

NAMES = ("background", "lion", "tiger", "car", "bus", "apple", "cow")


def vectors_of(*angles: float) -> Any:
    """Return unit vectors in the plane at angles in degrees."""
    turned = np.deg2rad(np.array(angles))
    return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)


def test_hidden_classes_are_as_near_as_the_unseen() -> None:
    """Hidden is the class whose nearest other seen class is as near as the unseen one's nearest seen class."""
    vectors = vectors_of(180, 0, 10, 90, 130, 270, 50)  # cow (unseen) is 40° from tiger; car and bus 40° apart
    shares = np.full(7, 0.5)
    (hidden,) = probe.choose_hidden(NAMES, vectors, (6,), shares)
    assert NAMES[hidden] in ("car", "bus")
    (hidden,) = probe.choose_hidden(NAMES, vectors_of(180, 0, 10, 90, 130, 270, 20), (6,), shares)
    assert NAMES[hidden] in ("lion", "tiger")


def test_hidden_classes_are_common_objects() -> None:
    """Neither background nor a rare class is hidden, and never more than a third of those that qualify."""
    vectors = vectors_of(40, 0, 10, 80, 130, 270, 50)
    shares = np.array([1.0, 0.5, 0.5, 0.001, 0.001, 0.5, 0.5])
    for unseen in ((6,), (4, 6), (3, 4, 6)):
        hidden = probe.choose_hidden(NAMES, vectors, unseen, shares)
        assert len(hidden) == 1
        assert NAMES[hidden[0]] in ("lion", "tiger", "apple")
    with pytest.raises(TrainingError, match="--calibration none"):
        probe.choose_hidden(NAMES, vectors, (6,), np.array([1.0, 0, 0, 0, 0, 0, 0.5]))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the inputs that the tests share, and only read."""
    return workspace(tmp_path_factory.mktemp("calibration"), quarters=QUARTERS)


@pytest.mark.parametrize("method", METHODS)
def test_training_with_each_method(inputs: Path, tmp_path: Path, method: CalibrationName) -> None:
    """The model's weights are those without calibration; the calibration is in the artifact, twice the same bytes."""
    config = replace(FROZEN, calibration=method, calibrate_on="val-classes")
    # of the methods only apollonius leaves the gate out by itself, and the gate is part of the weights
    run(inputs, tmp_path / "plain.h5", replace(FROZEN, gate=method != "apollonius"))
    run(inputs, tmp_path / "a.h5", config)
    run(inputs, tmp_path / "b.h5", config)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    plain, calibrated = weights(tmp_path / "plain.h5"), weights(tmp_path / "a.h5")
    assert all(np.array_equal(plain[name], calibrated[name]) for name in plain)
    loaded = load_model(tmp_path / "a.h5", device="cpu").calibration
    assert loaded is not None
    choice = loaded_params(tmp_path / "a.h5")["calibration_choice"]
    assert (loaded.method, loaded.parameter, loaded.top2) == (method, choice["parameter"], method == "apollonius")
    assert list(loaded.chosen_on) == choice["validation_classes"]
    assert set(choice["validation_classes"]) < {"cat", "dog"}
    assert load_model(tmp_path / "plain.h5", device="cpu").calibration is None


def loaded_params(path: Path) -> dict[str, Any]:
    with open_artifact(path, "model") as model:
        return model.params


CHOSEN = {
    "frozen": replace(FROZEN, calibration="logit-adjustment", val_classes=("dog",)),
    "fine-tuned": replace(QUICK, calibration="logit-adjustment", val_classes=("dog",)),
    "by seen classes": replace(FROZEN, calibration="csls", calibrate_on="seen"),
}


@pytest.mark.parametrize("config", CHOSEN.values(), ids=CHOSEN)
def test_no_unseen_label_reaches_the_calibration(inputs: Path, tmp_path: Path, config: Any) -> None:
    """Unseen classes redrawn as each other in the label maps change nothing of the calibration."""
    swapped = {name: tuple({3: 4, 4: 3}.get(one, one) for one in ids) for name, ids in QUARTERS.items()}
    other = workspace(tmp_path / "other", quarters=QUARTERS)
    redraw(other, swapped)
    found = []
    for place, where in enumerate((inputs, other)):
        run(where, tmp_path / f"{place}.h5", config)
        with open_artifact(tmp_path / f"{place}.h5", "model") as model:
            found.append((model.array("calibration_bias").tolist(), model.params["calibration_choice"]))
    assert found[0] == found[1]


def redraw(folder: Path, quarters: dict[str, Any]) -> None:
    """Change label maps, not photos, and make data and split again."""
    from PIL import Image
    from tiny import label_map

    from zsseg.config import FetchConfig, SplitConfig
    from zsseg.fetch import fetch_data
    from zsseg.split import make_split

    for name, ids in quarters.items():
        Image.fromarray(label_map(ids)).save(folder / "set" / "masks" / f"{name}.png")
    fetch_data(folder / "data.h5", FetchConfig("folder"), root=folder / "set", force=True)
    make_split(folder / "data.h5", folder / "split.h5", SplitConfig(unseen=("cow", "sheep")), force=True)


def test_the_probe_is_shown_no_hidden_class(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No label that reaches a step of the probe is a hidden class, and no photo it is scored on is trained on."""
    steps: list[tuple[bool, set[int]]] = []
    step, make = train._step, probe.make_plan
    plans = []

    def spy(task: Any, state: Any, batch: Any, labels: Any, **rest: Any) -> None:
        steps.append((len(task.seen) == 2, set(labels.unique().tolist())))
        step(task, state, batch, labels, **rest)

    def note(*words: Any, **rest: Any) -> Any:
        plans.append(make(*words, **rest))
        return plans[-1]

    monkeypatch.setattr(train, "_step", spy)
    monkeypatch.setattr(probe, "make_plan", note)
    for config in (FROZEN, QUICK):
        steps.clear()
        run(inputs, tmp_path / "a.h5", replace(config, calibration="stacking", val_classes=("dog",)), force=True)
        of_probe = set().union(*(labels for is_probe, labels in steps if is_probe))
        of_model = set().union(*(labels for is_probe, labels in steps if not is_probe))
        assert of_probe == {0, 1, 255}
        assert of_model == {0, 1, 2, 255}
    assert all(set(plan.photos).isdisjoint(plan.rest) and plan.hidden == (2,) for plan in plans)


def test_an_interrupted_run_resumes_to_the_same_bytes(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after the probe, a run goes on without a second probe and ends in the same bytes."""
    config = replace(FROZEN, calibration="csls", calibrate_on="val-classes", checkpoint_every=0.0)
    run(inputs, tmp_path / "whole.h5", config)
    step = train._step

    def stop(task: Any, state: Any, *words: Any, **rest: Any) -> None:
        if len(task.seen) == 3 and state.step == 1:
            raise KeyboardInterrupt
        step(task, state, *words, **rest)

    monkeypatch.setattr(train, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "cut.h5", config)
    monkeypatch.setattr(train, "_step", step)
    monkeypatch.setattr(train, "_choose_calibration", lambda *_: pytest.fail("a second probe"))
    with open_artifact(tmp_path / "cut.h5", "model") as model:
        assert "calibration_bias" not in model
        assert "calibration_choice" in model.params
    run(inputs, tmp_path / "cut.h5", config, resume=True)
    assert (tmp_path / "cut.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_an_interrupted_probe_goes_on(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the probe is trained ends the command without a model; a resume ends in the bytes of a whole run."""
    config = replace(FROZEN, epochs=5, calibration="stacking", calibrate_on="val-classes")
    step, steps = train._step, []

    def interrupt(task: Any, *words: Any, **rest: Any) -> None:
        step(task, *words, **rest)
        steps.append(len(task.seen))
        if len(steps) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "a.h5", config)
    assert steps == [2]
    assert [path.name for path in tmp_path.iterdir()] == [".a.h5.unfinished"]
    run(inputs, tmp_path / "a.h5", config, resume=True)
    resumed = steps.copy()
    run(inputs, tmp_path / "b.h5", config)
    assert steps == [*resumed, *resumed]
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.h5", "b.h5"}


def test_wrong_validation_classes(inputs: Path, tmp_path: Path) -> None:
    """Unknown, unseen and too many validation classes are named, and so are those without a calibration."""
    for wrong in ("zebra", "cow"):
        with pytest.raises(SettingError, match=f"--val-classes {wrong}: is no seen class"):
            run(inputs, tmp_path / "a.h5", replace(FROZEN, calibration="csls", val_classes=(wrong,)))
    with pytest.raises(SettingError, match="leaves 1 of 3 seen classes"):
        run(inputs, tmp_path / "a.h5", replace(FROZEN, calibration="csls", val_classes=("cat", "dog")))
    with pytest.raises(SettingError, match="--calibration"):
        run(inputs, tmp_path / "a.h5", replace(FROZEN, val_classes=("cat",)))


def test_calibrating_on_seen_classes_refuses_what_it_cannot_do(inputs: Path, tmp_path: Path) -> None:
    """Validation classes, and methods that take nothing off seen scores, go with the probe."""
    on_seen = replace(FROZEN, calibrate_on="seen")
    with pytest.raises(SettingError, match="leave out one of the two"):
        run(inputs, tmp_path / "a.h5", replace(on_seen, calibration="csls", val_classes=("dog",)))
    with pytest.raises(SettingError, match="inverted-softmax takes off nothing; use --calibrate-on val-classes"):
        run(inputs, tmp_path / "a.h5", replace(on_seen, calibration="inverted-softmax"))


def test_a_bound_that_nothing_asks_for_is_refused_or_left_out(inputs: Path, tmp_path: Path) -> None:
    """--max-false-share bounds a calibration that is chosen on seen classes; no other run records one."""
    bounded = replace(FROZEN, max_false_share=0.3)
    with pytest.raises(SettingError, match="leave out one of the two"):
        run(inputs, tmp_path / "a.h5", replace(bounded, calibration="stacking", calibrate_on="val-classes"))
    for wanted in ("auto", "none"):  # too few photos for a calibration by itself
        run(inputs, tmp_path / "a.h5", replace(bounded, calibration=wanted), force=True)
        assert loaded_params(tmp_path / "a.h5")["max_false_share"] is None


@pytest.mark.parametrize("method", ["stacking", "csls", "apollonius"])
def test_what_seen_classes_lose_is_what_was_allowed(inputs: Path, tmp_path: Path, method: CalibrationName) -> None:
    """Counted anew from label maps, training photos lose at most the bound to unseen classes."""
    config = replace(FROZEN, epochs=8, calibration=method, calibrate_on="seen", max_seen_loss=0.1, max_false_share=9.0)
    run(inputs, tmp_path / "a.h5", config)
    run(inputs, tmp_path / "b.h5", config)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    choice = loaded_params(tmp_path / "a.h5")["calibration_choice"]
    model = load_model(tmp_path / "a.h5", device="cpu")
    assert model.calibration is not None
    assert choice["validation_classes"] == []
    before = replace(model.calibration, bias=model.calibration.bias * 0, scale=model.calibration.scale * 0 + 1)
    if method == "csls":  # its neutral form has the bias of the bank
        seen = np.isin(np.arange(len(model.names)), model.seen)
        before = replace(model.calibration, bias=model.calibration.bias + np.float32(choice["parameter"]) * seen)
    matrices = [confusion(inputs, replace(model, calibration=each)) for each in (before, model.calibration)]
    found = [metrics.score(each, seen=list(model.seen), unseen=list(model.unseen)).seen_miou for each in matrices]
    assert found == pytest.approx([choice["seen_miou_before"], choice["seen_miou"]], abs=1e-3)
    assert 0 <= found[0] - found[1] <= 0.1
    assert found[0] > 0.2  # the model knows something to lose
    assert choice["false_share"] == pytest.approx(false_share(matrices[1], model), abs=1e-3)


def test_unseen_classes_win_no_more_than_was_allowed(inputs: Path, tmp_path: Path) -> None:
    """Counted anew, an unseen class wins no more seen pixels than that share of a seen class, but as many as it may."""
    shares = {}
    for bound in (0.05, 0.3):
        config = replace(FROZEN, epochs=8, calibration="stacking", max_seen_loss=1.0, max_false_share=bound)
        run(inputs, tmp_path / "a.h5", replace(config, calibrate_on="seen", presence=True), force=True)
        model = load_model(tmp_path / "a.h5", device="cpu")
        shares[bound] = false_share(confusion(inputs, model), model)
        assert shares[bound] <= bound
    assert shares[0.3] > shares[0.05]


@pytest.mark.parametrize(
    ("presence", "anchors", "bound"), [(True, "imagenet", 0.5), (False, "imagenet", 0.5), (True, "none", None)]
)
def test_anchors_bound_the_pixels_that_unseen_classes_win(
    inputs: Path, tmp_path: Path, presence: bool, anchors: Anchors, bound: float | None
) -> None:
    """Without them the loss of seen mIoU alone decides; the model records which it was."""
    config = replace(FROZEN, epochs=8, calibration="stacking", calibrate_on="seen", max_seen_loss=0.4)
    run(inputs, tmp_path / "a.h5", replace(config, presence=presence, gate=True, anchors=anchors))
    params = loaded_params(tmp_path / "a.h5")
    assert params["max_false_share"] == bound
    assert (params["calibration_choice"]["false_share"] <= 0.5) == (bound is not None)


def false_share(matrix: np.ndarray, model: Any) -> float:
    """Return the seen pixels that an unseen class wins in the mean, of those of a mean seen class but background."""
    pixels = matrix.sum(axis=1)
    sizes = [pixels[index] for index in model.seen if model.names[index] != "background" and pixels[index]]
    return float(matrix[:, list(model.unseen)].sum() / len(model.unseen) / np.mean(sizes))


def confusion(inputs: Path, model: Any) -> np.ndarray:
    """Return the confusion matrix on the training photos, unseen pixels void."""
    matrix = np.zeros((len(model.names),) * 2, dtype=np.int64)
    with open_artifact(inputs / "data.h5", "data") as data, open_artifact(inputs / "split.h5", "split") as split:
        for index in split.array("train").tolist():
            truth = decode_label_map(data.bytes_at("label_maps", index), "truth")
            truth = np.where(np.isin(truth, model.unseen), np.uint8(255), truth)
            grid = score_image(model, read_image(data, index), max_side=1024)
            predicted = label_map(grid, model.calibration)
            matrix += metrics.confusion(truth, predicted, len(model.names))
    return matrix


def test_where_nothing_can_be_calibrated(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A softmax model, and a split without unseen classes, are trained without a calibration, with a note."""
    caplog.set_level("INFO", logger="zsseg")
    run(inputs, tmp_path / "a.h5", replace(FROZEN, loss="softmax", calibration="csls"))
    assert "softmax" in caplog.text
    plain = workspace(tmp_path / "plain", unseen=())
    run(plain, tmp_path / "b.h5", replace(FROZEN, calibration="csls"))
    assert "no class is unseen" in caplog.text
    assert [loaded_params(tmp_path / name)["calibration"] for name in ("a.h5", "b.h5")] == ["none", "none"]


# --- through the command line -----------------------------------------------------------------------------------------


def test_eval_and_predict_use_the_model_s_calibration(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model carries is used and recorded, left out on demand, and replaced by a seen bias."""
    monkeypatch.setenv("ZSSEG_WORKSPACE", str(tmp_path))
    at = ("--data", inputs / "data.h5", "--labels", inputs / "labels.h5", "--split", inputs / "split.h5")
    quick = ("--frozen", "--epochs", "2", "--batch", "2", "--crop", "64", "--workers", "0", "--device", "cpu")
    trained = zsseg("train", *at, *quick, "--calibration", "stacking", "--val-classes", "dog").stdout
    assert "never saw dog" in trained
    recorded = {}
    for name, options in {
        "model": (), "none": ("--calibration", "none"), "bias": ("--seen-bias", "0.3"), "zero": ("--seen-bias", "0"),
    }.items():  # fmt: skip
        scores = json.loads(zsseg("eval", "--data", inputs / "data.h5", "--json", "-", "--force", *options).stdout)
        recorded[name] = scores["calibrated_by"]["method"], scores["calibrated_by"]["parameter"]
        zsseg("predict", inputs / "data.h5", "--force", *options)
        with (
            open_artifact(tmp_path / "scores.h5", "scores") as kept,
            open_artifact(tmp_path / "predictions.h5", "predictions") as predictions,
        ):
            assert kept.array("confusion").sum() == kept.array("gap_counts")[1].sum()
            predicted = kept.array("confusion").sum(axis=0)
            assert (predictions.array("areas").sum(axis=0) >= predicted).all()
            assert predictions.params["calibrated_by"] == kept.params["calibrated_by"]
    parameter = loaded_params(tmp_path / "model.h5")["calibration_choice"]["parameter"]
    assert recorded == {
        "model": ("stacking", parameter), "none": ("none", 0.0), "bias": ("stacking", 0.3), "zero": ("stacking", 0.0),
    }  # fmt: skip


def test_few_photos_are_not_calibrated_by_themselves(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a handful of photos, learned by heart, the default is no calibration, with a note."""
    caplog.set_level("INFO", logger="zsseg")
    run(inputs, tmp_path / "a.h5", replace(FROZEN, calibration="auto"))
    assert loaded_params(tmp_path / "a.h5")["calibration"] == "none"
    assert "training photos are fewer than 200" in caplog.text
