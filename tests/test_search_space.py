"""The TOML file of a sweep: what it means, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import zsseg

from zsseg.config import EmbedConfig, TrainConfig
from zsseg.errors import DataError, SettingError
from zsseg.search_space import Choices, Range, Space, read_space


def space_of(folder: Path, text: str) -> Space:
    """Read a file with this text."""
    path = folder / "try.toml"
    path.write_text(text)
    return read_space(path)


def test_a_file_names_ranges_choices_and_shared_settings(tmp_path: Path) -> None:
    """Ranges keep their kind, choices their values, and a trial's settings are theirs over the shared ones."""
    space = space_of(
        tmp_path,
        '[sweep]\nhidden = ["cat"]\n[search]\nlr = { low = 1e-4, high = 1, log = true }\n'
        "remove-top = { low = 0, high = 3 }\n"
        'dim = [20, 50]\nloss = ["mse", "cosine"]\ngate = [true, false]\nvectors = [["a", "b"], ["c"]]\n'
        '[fixed]\nepochs = 2\nnormalize = "none"\nweights = "none"\nbackbone-lr = 0\n',
    )
    assert (space.name, space.objective, space.hidden) == ("try", "auto", ("cat",))
    assert space.search["lr"] == Range(1e-4, 1.0, log=True)
    assert space.search["remove_top"] == Range(0, 3, whole=True)
    assert space.search["vectors"] == Choices({"a + b": ("a", "b"), "c": ("c",)})
    assert space.losses() == ("mse", "cosine")
    values = space.values({"lr": 0.01, "dim": 50, "vectors": "a + b", "gate": False})
    assert values == {"lr": 0.01, "dim": 50, "vectors": ("a", "b"), "gate": False}
    of_vectors, config = space.configs(values, seed=3)
    assert of_vectors == EmbedConfig(vectors=("a", "b"), dim=50, normalize="none")
    assert config == TrainConfig(lr=0.01, gate=False, epochs=2, weights="none", backbone_lr=0.0, seed=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[search]\nlrr = [1]", r"try\.toml: search\.lrr: no such setting; did you mean lr\?"),
        ("[search]\nseed = [1, 2]", r"search\.seed: all trials share the seed of --seed"),
        ("[search]\ndevice = ['cpu']", r"search\.device: all trials share this setting; .* in \[fixed\]"),
        ("[search]\nself_train = ['void']", r"search\.self_train: a sweep does not set this"),
        ("[search]\nlr = 1e-3", r"search\.lr: 0\.001 is one value; expected choices \[\.\.\.\] or a range"),
        ("[search]\nlr = []", r"search\.lr: \[\] holds no choice"),
        ("[search]\ndim = [20, 20]", r"search\.dim: 20 stands there twice"),
        ("[search]\ndim = [20, 2.5]", r"search\.dim: 2\.5, expected a whole number"),
        ("[search]\ndim = [0]", r"search\.dim: 0, expected at least 1"),
        ("[search]\nlr = ['high']", r"search\.lr: 'high', expected a number"),
        ("[search]\nlr = [0.0]", r"search\.lr: 0, expected above 0"),
        ("[search]\nlr = [nan]", r"search\.lr: nan, expected a number"),
        ("[search]\nloss = ['mze']", r"search\.loss: 'mze', expected one of .*mse"),
        ("[search]\ngate = ['yes']", r"search\.gate: 'yes', expected true or false"),
        ("[search]\ndim = [true]", r"search\.dim: True, expected a whole number"),
        ("[search]\nvectors = ['a']", r"search\.vectors: 'a', expected a list of texts"),
        ("[search]\nlr = { low = 1, high = 1e-3 }", r"lr: low 1 is not below high 0\.001, so the range is empty"),
        ("[search]\nlr = { low = 1 }", r"search\.lr: 'high' is missing"),
        ("[search]\nlr = { low = 1, high = 2, step = 1 }", r"search\.lr: 'step' is no part of a range"),
        ("[search]\nlr = { low = 1, high = 2, log = 1 }", r"search\.lr\.log: 1, expected true or false"),
        ("[search]\nremove_top = { low = 0, high = 2, log = true }", r"low 0 has no logarithm"),
        ("[search]\nloss = { low = 1, high = 2 }", r"search\.loss: is no number, so it has no range"),
        ("[search]\nlr = [1]\n[fixed]\nlr = 1", r"lr: is in \[search\] and in \[fixed\]"),
        ("[search]\nlr = [1]\n[fixed]\nepochs = 'two'", r"fixed\.epochs: 'two', expected a whole number"),
        ("[search]\nlr = [1]\n[fixed]\nrounds = 2", r"fixed\.rounds: a sweep does not set this"),
        ("[search]\nlr = [1]\n[sweep]\nobjective = 'unseen'", r"sweep\.objective: 'unseen', expected one of auto"),
        ("[search]\nlr = [1]\n[sweep]\ntrials = 3", r"sweep\.trials: no such setting"),
        ("[search]\nlr = [1]\n[sweep]\nhidden = 'cat'", r"sweep\.hidden: 'cat', expected a list"),
        ("[search]\nlr = [1]\n[sweep]\nhidden = ['cat']\nobjective = 'seen'", r"sweep\.hidden: no class is hidden"),
        ("[fixed]\nlr = 1", r"\[search\] names no setting"),
        ("lr = [1]", r"lr: expected the tables \[sweep\], \[search\] and \[fixed\] alone"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    """Each says where, what and what is expected."""
    with pytest.raises(SettingError, match=message) as found:
        space_of(tmp_path, text)
    assert "\n" not in str(found.value)


def test_what_is_no_toml_and_what_is_not_there(tmp_path: Path) -> None:
    """The command says so in one line and ends with 1."""
    with pytest.raises(DataError, match=r"try\.toml: is no TOML: .*line 1"):
        space_of(tmp_path, "[search\n")
    stderr = zsseg("sweep", tmp_path / "none.toml", expect=1).stderr
    assert stderr.startswith("zsseg: error: ")
    assert "none.toml: No such file or directory; expected a TOML file" in stderr
