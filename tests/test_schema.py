"""`docs/artifacts.md` and the code say the same about every field, attribute and recorded setting."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from zsseg.artifacts import ATTRIBUTES, MADE_BY
from zsseg.config import EmbedConfig, EvalConfig, FetchConfig, PredictConfig, SplitConfig, TrainConfig
from zsseg.schema import SCHEMA, SCHEMA_VERSION, Kind

PAGE = (Path(__file__).parents[1] / "docs" / "artifacts.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
CONFIGS: dict[Kind, tuple[Any, set[str]]] = {  # the settings class of each kind, and which settings are not recorded
    "data": (FetchConfig, set()),
    "labels": (EmbedConfig, set()),
    "split": (SplitConfig, set()),
    "model": (TrainConfig, {"workers", "checkpoint_every", "checkpoint_steps", "device"}),
    "scores": (EvalConfig, {"device"}),
    "predictions": (PredictConfig, {"device", "skip_bad"}),
}


def rows(section: str, columns: int) -> list[list[str]]:
    """Return the rows of a section's table with so many columns whose first cell is `code`."""
    cells = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in row] for row in cells if len(row) == columns]


def test_every_field_is_documented() -> None:
    """Kinds, fields, dtypes and shapes of the page are exactly those of the schema, in the order of the digest."""
    documented = [
        (kind, name, dtype, shape)
        for kind in SCHEMA
        for name, dtype, shape, meaning in rows(SECTIONS[kind], 4)
        if meaning
    ]
    declared = [
        (kind, name, field.dtype, f"({', '.join(map(str, field.shape))})")
        for kind, of_kind in SCHEMA.items()
        for name, field in of_kind.items()
    ]
    assert documented == declared


def test_optional_fields_are_marked() -> None:
    """The page says which fields may be absent."""
    marked = {(kind, row[0]) for kind in SCHEMA for row in rows(SECTIONS[kind], 4) if row[3].endswith("optional")}
    assert marked == {(kind, name) for kind in SCHEMA for name, field in SCHEMA[kind].items() if field.optional}


def test_attributes_are_documented() -> None:
    """The page lists the root attributes in the order of the digest, and the schema number."""
    attributes = re.search(r"## Root attributes\n(.*?)\*\*Digest", PAGE, flags=re.DOTALL)
    assert attributes is not None
    assert [row[0] for row in rows(attributes[1], 3)] == list(ATTRIBUTES)
    assert f"number of this schema: {SCHEMA_VERSION}" in attributes[1]


@pytest.mark.parametrize("kind", CONFIGS)
def test_settings_are_documented(kind: Kind) -> None:
    """The page lists every setting that an artifact records, and none that it leaves out."""
    config, left_out = CONFIGS[kind]
    documented = [row[0] for row in rows(SECTIONS[kind], 2)]
    assert len(set(documented)) == len(documented)
    assert {field.name for field in fields(config)} - left_out <= set(documented)
    assert not left_out & set(documented)


def test_commands_are_documented() -> None:
    """The page names the command that makes each kind."""
    for kind, command in MADE_BY.items():
        assert f"| `{kind}` | `zsseg {command}` |" in PAGE


def test_schema_is_sound() -> None:
    """Every dtype is known, every meaning is a line, and every kind holds the class names first."""
    for of_kind in SCHEMA.values():
        assert next(iter(of_kind)) == "names"
        for field in of_kind.values():
            assert field.dtype in ("str", "bytes", "arrays") or np.dtype(field.dtype).name == field.dtype
            assert field.meaning
            assert "|" not in field.meaning
            assert "\n" not in field.meaning


def test_documented_digest(tmp_path: Path) -> None:
    """The digest can be recomputed from the page's words alone."""
    from hashlib import sha256

    from zsseg.artifacts import create

    path = tmp_path / "model.h5"
    values: dict[str, Any] = {
        "names": ["cow", "Kuh ü"],
        "weights": {"b": np.ones((2, 1), np.float32), "a": np.array(3)},
    }
    with create(path, "model", params={"x": 1}, inputs={"data": "00"}) as writer:
        for name, field in SCHEMA["model"].items():
            if not field.optional:
                writer.put(name, values.get(name, [1, 2]))
    with h5py.File(path, "r") as file:
        stream = b"".join(f"{name}={file.attrs[name]}\n".encode() for name in ATTRIBUTES[:-1])
        stream += b"names str 2\n" + (3).to_bytes(8, "little") + b"cow" + (6).to_bytes(8, "little") + "Kuh ü".encode()
        for name in ("seen", "unseen", "loss", "lr", "val_seen_miou"):
            dtype = np.dtype(SCHEMA["model"][name].dtype)
            stream += f"{name} {dtype.str} (2,)\n".encode() + np.array([1, 2], dtype).tobytes()
        stream += b"weights/a <i8 ()\n" + np.array(3).tobytes()
        stream += b"weights/b <f4 (2, 1)\n" + np.ones(2, np.float32).tobytes()
        assert file.attrs["digest"] == sha256(stream).hexdigest()
