"""Several seeds of one recipe: mean and standard deviation, their files, and a resume of some of them."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_train import FROZEN, run
from test_train import inputs as inputs  # the fixture
from tiny import NAMES, write_folder, zsseg

from zsseg import artifacts, batches, metrics
from zsseg.artifacts import create
from zsseg.errors import ArtifactError, SettingError
from zsseg.seeds import Spread, check_runs, models_to_score, plan, seed_files, spread
from zsseg.train import Features

TRAIN = ("train", "--frozen", "--epochs", "4", "--batch", "2", "--workers", "0", "--calibration", "none")


def write_model(path: Path, *, finished: bool = True, inputs: dict[str, str] | None = None, **params: Any) -> Path:
    """Write a model artifact that holds nothing but its record."""
    recorded = {"model": "lite0", "epochs": 2, "seed": 0, "calibration": "none", "weights": None, **params}
    with create(path, "model", params=recorded, inputs=inputs or {"data": "d", "split": "s"}) as writer:
        writer.put("names", ["a"])
        writer.put("seen", [0])
        writer.put("unseen", [])
        writer.put("loss", [1.0])
        writer.put("lr", [1.0])
        writer.put("val_seen_miou", [])
        writer.put("weights", {"w": np.zeros(1, np.float32)})
        if not finished:
            writer.put("optimizer", {"step:w": np.zeros(1)})
    return path


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [(0.1, 0.4, 0.35), (0.2, 0.2), (0.0, 1.0, 0.5, 0.25, 0.125)])
def test_the_spread_is_mean_and_sample_standard_deviation(values: tuple[float, ...]) -> None:
    """The numbers are those of the standard library, which divides by N - 1."""
    found = spread(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.std == pytest.approx(statistics.stdev(values))
    assert found.count == len(values)


def test_the_spread_of_one_run_and_of_undefined_scores() -> None:
    """One value has no standard deviation; NaN counts as no value, and only NaN gives NaN."""
    one = spread([0.3])
    assert (one.mean, one.count) == (0.3, 1)
    assert math.isnan(one.std)
    assert spread([0.3, math.nan, 0.5]) == Spread(pytest.approx(0.4), pytest.approx(statistics.stdev([0.3, 0.5])), 2)
    none = spread([math.nan, math.nan])
    assert (math.isnan(none.mean), math.isnan(none.std), none.count) == (True, True, 0)


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_files_of_the_seeds() -> None:
    """The first keeps its name, the others have their seed in it."""
    assert seed_files(Path("a/model.h5"), (0, 1, 2)) == (
        Path("a/model.h5"), Path("a/model-seed1.h5"), Path("a/model-seed2.h5"),
    )  # fmt: skip
    assert seed_files(Path("x.y.h5"), (7, 8)) == (Path("x.y.h5"), Path("x.y-seed8.h5"))


def test_every_output_is_checked_before_any_run(tmp_path: Path) -> None:
    """The last of the outputs exists, and nothing starts without --force."""
    write_model(tmp_path / "model-seed2.h5", seed=2)
    with pytest.raises(ArtifactError, match=r"model-seed2\.h5: exists already; add --force"):
        plan(tmp_path / "model.h5", (0, 1, 2))
    runs = plan(tmp_path / "model.h5", (0, 1, 2), force=True)
    assert [(each.path.name, each.seed, each.resume) for each in runs] == [
        ("model.h5", 0, False), ("model-seed1.h5", 1, False), ("model-seed2.h5", 2, False),
    ]  # fmt: skip


def test_a_resume_leaves_what_is_finished_and_trains_what_is_missing(tmp_path: Path) -> None:
    """Finished models stay, an unfinished one goes on, a missing one starts; with none left it says so."""
    write_model(tmp_path / "model.h5")
    write_model(tmp_path / "model-seed1.h5", finished=False, seed=1)
    runs = plan(tmp_path / "model.h5", (0, 1, 2), resume=True)
    assert [(each.seed, each.resume) for each in runs] == [(1, True), (2, True)]
    (tmp_path / "model-seed1.h5").unlink()
    write_model(tmp_path / "model-seed1.h5", seed=1)
    with pytest.raises(ArtifactError, match=r"model\.h5 and its 1 further seeds: are finished.*--force"):
        plan(tmp_path / "model.h5", (0, 1), resume=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 3}, "was trained with epochs 2, this command says 3"),
        ({"seed": 4}, "was trained with seed 0, this command says 4"),
        ({"weights": "other.pth"}, "was trained with weights None, this command says 'other.pth'"),
    ],
)
def test_a_resume_with_other_settings(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    """A setting that differs from the finished models' would make the new ones another recipe."""
    write_model(tmp_path / "model.h5")
    with pytest.raises(SettingError, match=message):
        plan(tmp_path / "model.h5", (0, 1), resume=True, given=given)
    same = {"epochs": 2, "workers": 3, "precision": "auto"}
    assert len(plan(tmp_path / "model.h5", (0, 1), resume=True, given=same)) == 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1, "epochs": 9}, "was trained with epochs 9, .*with 2; several seeds must be of one recipe"),
        ({"seed": 1, "inputs": {"data": "d", "split": "x"}}, "was trained from another split than"),
        ({"seed": 0}, "has seed 0 as .* does, and would count twice"),
        ({"seed": 1, "finished": False}, "is not trained to the end; repeat .* with --resume"),
    ],
)
def test_a_mean_over_models_that_do_not_belong_together(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    """Models of different recipes, inputs or the same seed, and unfinished ones, are refused by name."""
    models = [write_model(tmp_path / "a.h5"), write_model(tmp_path / "b.h5", **other)]
    with pytest.raises(ArtifactError, match=rf"b\.h5: {message}"):
        check_runs(models)


def test_what_each_run_learned_by_itself_may_differ(tmp_path: Path) -> None:
    """A calibration's parameter, a temperature and the steps are results, no part of the recipe."""
    one = write_model(tmp_path / "a.h5", log_scale=1.0, calibration_choice={"parameter": 1})
    two = write_model(tmp_path / "b.h5", seed=5, log_scale=2.0, calibration_choice={"parameter": 3})
    assert check_runs([one, two]) == (0, 5)


def test_the_models_to_score(tmp_path: Path) -> None:
    """A count finds the further seeds by the first one's recorded seed; what is missing is named with the command."""
    first = write_model(tmp_path / "m.h5", seed=3)
    second = write_model(tmp_path / "m-seed4.h5", seed=4)
    assert models_to_score([first], 2) == (first, second)
    assert models_to_score([first, second], None) == (first, second)
    assert models_to_score([first], 1) == (first,)
    with pytest.raises(ArtifactError, match=r"m-seed5\.h5: no such file; .*`zsseg train --resume --seeds 3`"):
        models_to_score([first], 3)
    with pytest.raises(SettingError, match=r"--seeds 2: .* 2 are named with --model"):
        models_to_score([first, second], 2)


# --- training ---------------------------------------------------------------------------------------------------------


def test_shared_features_change_no_byte_and_are_computed_once(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs on the same photos share the frozen backbone's features; another precision has its own."""
    from dataclasses import replace

    made: list[object] = []
    build = batches.FeatureCache.__init__

    def counting(self: Any, *args: Any, **options: Any) -> None:
        made.append(self)
        build(self, *args, **options)

    monkeypatch.setattr(batches.FeatureCache, "__init__", counting)
    shared = Features()
    for seed in (0, 1):
        config = replace(FROZEN, epochs=1, seed=seed, precision="float32", crop=64 - 32 * seed)
        run(inputs, tmp_path / f"shared{seed}.h5", config, features=shared)
    assert len(made) == 1
    run(inputs, tmp_path / "alone.h5", config)
    assert (tmp_path / "shared1.h5").read_bytes() == (tmp_path / "alone.h5").read_bytes()
    run(inputs, tmp_path / "other.h5", replace(config, precision="bfloat16"), features=shared)
    assert len(made) == 3


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train three seeds on a tiny data set and score them."""
    folder = tmp_path_factory.mktemp("three")
    write_folder(folder / "set")
    at = ("--workspace", folder)
    zsseg("fetch-data", "folder", "--root", folder / "set", *at)
    zsseg("embed-labels", "--dim", "8", *at)
    zsseg("make-split", "--unseen", "cow,sheep", *at)
    trained = zsseg(*TRAIN, "--seeds", "3", "--seed", "4", *at)
    assert "zsseg eval --seeds 3" in trained.stdout
    table = zsseg("eval", "--seeds", "3", "--json", folder / "scores.json", *at).stdout
    (folder / "table.txt").write_text(table)
    return folder


def test_seeds_on_the_command_line(three: Path) -> None:
    """Each seed has its model and its scores, with its own seed recorded."""
    assert sorted(path.name for path in three.glob("*-seed*")) == [
        "model-seed5.h5", "model-seed6.h5", "scores-seed5.h5", "scores-seed6.h5",
    ]  # fmt: skip
    for seed, name in ((4, "scores.h5"), (5, "scores-seed5.h5"), (6, "scores-seed6.h5")):
        with artifacts.open_artifact(three / name, "scores") as scores:
            assert scores.params["model"]["seed"] == seed


def test_the_summary_is_that_of_the_scores_by_themselves(three: Path) -> None:
    """Every mean and deviation follows from the three score files, and the table shows them."""
    found = json.loads((three / "scores.json").read_text())
    assert found["seeds"] == [4, 5, 6]
    assert [each["seed"] for each in found["runs"]] == [4, 5, 6]
    alone = []
    for name in ("scores.h5", "scores-seed5.h5", "scores-seed6.h5"):
        with artifacts.open_artifact(three / name, "scores") as scores:
            seen, unseen = scores.array("seen").tolist(), scores.array("unseen").tolist()
            alone.append(metrics.score(scores.array("confusion"), seen=seen, unseen=unseen))
    of = found["summary"]["generalized"]
    for key in ("pixel_accuracy", "miou", "seen_miou", "unseen_miou", "harmonic_miou"):
        values = [getattr(each, key) for each in alone]
        assert of[key]["mean"] == pytest.approx(statistics.fmean(values))
        assert of[key]["std"] == pytest.approx(statistics.stdev(values))
        assert of[key]["count"] == 3
        assert values == pytest.approx([each["generalized"][key] for each in found["runs"]])
    for index, name in enumerate(NAMES):
        values = [float(each.iou[index]) for each in alone if not math.isnan(each.iou[index])]
        assert of["iou"][name]["mean"] == pytest.approx(statistics.fmean(values))
    shown = f"{of['seen_miou']['mean']:.3f} ± {of['seen_miou']['std']:.3f}"
    assert of["seen_miou"]["std"] > 0
    table = (three / "table.txt").read_text()
    assert shown in table
    assert "seeds 4, 5, 6" in table


def test_models_named_one_by_one_are_summarised_alike(three: Path, tmp_path: Path) -> None:
    """--model several times gives what --seeds gives; one alone has no deviation and the usual report."""
    names = [three / f"model{seed}.h5" for seed in ("", "-seed5", "-seed6")]
    given = [word for name in names for word in ("--model", name)]
    data = ("--data", three / "data.h5")
    found = json.loads(zsseg("eval", *given, *data, "--out", tmp_path / "s.h5", "--json", "-").stdout)
    assert found == json.loads((three / "scores.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s-seed5.h5", "s-seed6.h5", "s.h5"]
    alone = zsseg("eval", "--model", names[0], *data, "--out", tmp_path / "one.h5").stdout
    assert "±" not in alone
    report = json.loads(zsseg("eval", "--seeds", "1", "--workspace", three, "--force", "--json", "-").stdout)
    assert report["generalized"] == found["runs"][0]["generalized"]


def test_existing_outputs_of_any_seed_stop_everything(three: Path) -> None:
    """Neither command starts where the last seed's output is there, and both leave all as it was."""
    before = {path.name: path.read_bytes() for path in three.glob("*.h5")}
    (three / "scores.h5").rename(three / "aside")
    refused = zsseg("eval", "--seeds", "3", "--workspace", three, expect=1)
    assert "scores-seed5.h5: exists already" in refused.stderr
    (three / "aside").rename(three / "scores.h5")
    refused = zsseg(*TRAIN, "--seeds", "2", "--seed", "5", "--out", three / "model-seed5.h5", expect=1)
    assert "model-seed5.h5: exists already" in refused.stderr
    assert {path.name: path.read_bytes() for path in three.glob("*.h5")} == before


def test_a_resume_adds_a_seed(three: Path) -> None:
    """--resume with more seeds trains the missing one only, with the recorded settings and the next seed."""
    before = {path.name: path.read_bytes() for path in three.glob("model*.h5")}
    zsseg("train", "--resume", "--seeds", "4", "--workers", "0", "--workspace", three)
    after = {path.name: path.read_bytes() for path in three.glob("model*.h5")}
    assert set(after) - set(before) == {"model-seed7.h5"}
    assert {name: after[name] for name in before} == before
    zsseg(*TRAIN, "--seed", "7", "--out", three / "alone.h5", "--workspace", three)
    assert (three / "alone.h5").read_bytes() == after["model-seed7.h5"]
