"""Artifacts: round trip, identical bytes, refusal of all that is no whole artifact, writes that never half happen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from zsseg import artifacts
from zsseg.artifacts import Writer, check_output, claim, create, kind_of, open_artifact, same_names
from zsseg.errors import ArtifactError, DataError
from zsseg.schema import SCHEMA, SCHEMA_VERSION, Field, Kind

KINDS: list[Kind] = list(SCHEMA)
LENGTHS = {
    "P": 2,
    "Q": 3,
    "T": 5,
    "V": 7,
    "B": 9,
}  # no more indices than names (C) or photos (N); bins beside edges (G)
PARAMS = {"dim": 50, "names": ["cow", "Kühe"], "none": None, "share": 0.1}
INPUTS = {"data": "0" * 64}


def field_values(field: Field, rng: np.random.Generator) -> Any:
    """Make up the values of a field; each symbol has a length of its own, 2 to 27."""
    if field.dtype == "arrays":
        weight = rng.normal(size=(3, 2, 1, 1)).astype(np.float32)
        return {"a.weight": weight, "a.bias": np.zeros(0, np.float32), "count": np.array(7), "flag": np.array([True])}
    shape = tuple(
        LENGTHS.get(axis, ord(axis) - ord("A") + 2) if isinstance(axis, str) else axis for axis in field.shape
    )
    if field.dtype == "str":
        return [f"Wort {number} ü" for number in range(shape[0])]
    if field.dtype == "bytes":
        return [rng.bytes(int(size)) for size in rng.integers(0, 300, shape[0])]
    if np.dtype(field.dtype).kind == "f":
        return rng.normal(size=shape).astype(field.dtype)
    if len(shape) > 1:
        return rng.integers(1, 1000, shape).astype(field.dtype)
    return np.arange(shape[0], dtype=field.dtype)  # indices are ascending


def all_values(kind: Kind) -> dict[str, Any]:
    """Make up every field of an artifact, optional ones too."""
    rng = np.random.default_rng(5)
    return {name: field_values(field, rng) for name, field in SCHEMA[kind].items()}


def write(path: Path, kind: Kind, *, without: tuple[str, ...] = (), force: bool = False, **other: Any) -> Path:
    """Write a whole made-up artifact, some fields left out or with other values."""
    with create(path, kind, params=PARAMS, inputs=INPUTS, force=force) as writer:
        for name, values in (all_values(kind) | other).items():
            if name not in without:
                writer.put(name, values)
    return path


def refused(path: Path, kind: Kind, match: str, *, verify: bool = True) -> str:
    """Check that opening fails with one clear line, and return it."""
    with pytest.raises(ArtifactError, match=match) as caught:
        open_artifact(path, kind, verify=verify)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(str(path))
    assert len(message) < 700
    return message


def resign(path: Path, kind: Kind) -> None:
    """Give a tampered file a digest that fits, as an attacker would."""
    with h5py.File(path, "r+") as file:
        file.attrs["digest"] = artifacts._digest(file.attrs, file, kind)


def spoil(path: Path, change: Callable[[h5py.File], None]) -> None:
    """Change an artifact behind zsseg's back."""
    with h5py.File(path, "r+") as file:
        change(file)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: Kind, tmp_path: Path) -> None:
    """Every field of every kind comes back as it was written, with settings and inputs."""
    path = write(tmp_path / "a.h5", kind)
    assert kind_of(path) == kind
    with open_artifact(path, kind) as artifact:
        assert (artifact.params, artifact.inputs, artifact.kind, artifact.path) == (PARAMS, INPUTS, kind, path)
        assert len(artifact.digest) == 64
        for name, expected in all_values(kind).items():
            field = SCHEMA[kind][name]
            assert name in artifact
            if field.dtype == "str":
                assert artifact.strings(name) == expected
            elif field.dtype == "bytes":
                assert [artifact.bytes_at(name, index) for index in range(len(expected))] == expected
            elif field.dtype == "arrays":
                found = artifact.arrays(name)
                assert found.keys() == expected.keys()
                for key, array in found.items():
                    assert array.dtype == expected[key].dtype
                    np.testing.assert_array_equal(array, expected[key])
            else:
                assert artifact.array(name).dtype == field.dtype
                np.testing.assert_array_equal(artifact.array(name), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_optional_fields(kind: Kind, tmp_path: Path) -> None:
    """An artifact without its optional fields opens, and says that they are not there."""
    optional = tuple(name for name, field in SCHEMA[kind].items() if field.optional)
    with open_artifact(write(tmp_path / "a.h5", kind, without=optional), kind) as artifact:
        assert not any(name in artifact for name in optional)


def test_identical_bytes(tmp_path: Path) -> None:
    """The same content gives the same bytes under another name, in another second."""
    first = {kind: write(tmp_path / f"{kind}.h5", kind).read_bytes() for kind in KINDS}
    time.sleep(1.05)
    for kind in KINDS:
        assert write(tmp_path / f"other-{kind}.h5", kind).read_bytes() == first[kind]


def test_appended_equals_put(tmp_path: Path) -> None:
    """Rows that are appended one by one have the digest of the field that is put whole."""
    values = all_values("predictions")
    optional = tuple(name for name, field in SCHEMA["predictions"].items() if field.optional)
    with create(tmp_path / "b.h5", "predictions", params=PARAMS, inputs=INPUTS) as writer:
        writer.put("names", values["names"])
        for name in ("ids", "sources", "label_maps", "areas", "mean_scores"):
            for row in values[name]:
                writer.append(name, row)
    write(tmp_path / "a.h5", "predictions", without=optional)
    with (
        open_artifact(tmp_path / "a.h5", "predictions") as whole,
        open_artifact(tmp_path / "b.h5", "predictions") as rows,
    ):
        assert whole.digest == rows.digest
        np.testing.assert_array_equal(rows.array("mean_scores"), values["mean_scores"])


def write_maps(path: Path, numbers: np.ndarray, lots: list[int] | None) -> Path:
    """Write a features artifact of one photo, its maps whole or in lots."""
    with create(path, "features", params={}, inputs={}) as writer:
        writer.put("names", ["a"])
        writer.put("images", [0])
        writer.put("shapes", [[[1, 1, len(numbers)]]])
        if lots is None:
            writer.put("maps", numbers)
        else:
            for lot in np.split(numbers, np.cumsum(lots)):
                writer.extend("maps", lot)
    return path


def test_extended_equals_put(tmp_path: Path) -> None:
    """Numbers that are added in lots have the digest of those put whole, and any run of them is what was written."""
    together = artifacts.MAX_CHUNK // 2
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=3 * together + 5).astype(np.float16)
    digests = set()
    for name, lots in (("put", None), ("extended", [1, together, 0, 700])):
        with open_artifact(write_maps(tmp_path / f"{name}.h5", numbers, lots), "features") as artifact:
            digests.add(artifact.digest)
            run = artifact.runs("maps")
            ends = [*rng.integers(0, len(numbers), (40, 2)).tolist(), (0, len(numbers)), (together, 2 * together)]
            for start, end in (sorted(each) for each in ends):
                assert np.array_equal(run(start, end), numbers[start:end])
            for start, end in ((-1, 3), (3, len(numbers) + 1), (3, 2)):
                with pytest.raises(ArtifactError, match="ends before"):
                    run(start, end)
    assert len(digests) == 1
    with pytest.raises(ArtifactError, match="closed"):
        run(0, 1)


def test_numbers_that_the_file_lacks_are_missed(tmp_path: Path) -> None:
    """A field that was never written, and a file that was cut while it was open, are errors, not zeros."""
    path = write_maps(tmp_path / "a.h5", np.ones(9, np.float16), [4])
    with h5py.File(path, "r+") as file:
        del file["maps"]
        file.create_dataset("maps", shape=(9,), maxshape=(None,), chunks=(9,), dtype=np.float16)
    with open_artifact(path, "features", verify=False) as artifact, pytest.raises(ArtifactError, match="not whole"):
        artifact.runs("maps")(0, 9)
    path = write_maps(tmp_path / "b.h5", np.ones(9, np.float16), None)
    with open_artifact(path, "features") as artifact:
        os.truncate(path, 100)
        with pytest.raises(ArtifactError, match="not whole"):
            artifact.runs("maps")(0, 9)


@pytest.mark.parametrize("changed", ["params", "inputs", "field"])
def test_digest_covers(changed: str, tmp_path: Path) -> None:
    """The digest depends on the settings, on the inputs and on every value."""
    digests = set()
    for number in (0, 1):
        path = tmp_path / f"{number}.h5"
        params = {"seed": number if changed == "params" else 0}
        inputs = {"data": str(number if changed == "inputs" else 0)}
        with create(path, "split", params=params, inputs=inputs) as writer:
            for name, values in all_values("split").items():
                writer.put(name, values + number if changed == "field" and name == "val" else values)
        with open_artifact(path, "split") as artifact:
            digests.add(artifact.digest)
    assert len(digests) == 2


def test_existing_output(tmp_path: Path) -> None:
    """An existing file is refused and left alone without force, and replaced with it."""
    path = tmp_path / "model.h5"
    path.write_bytes(b"precious")
    with pytest.raises(ArtifactError, match=r"model\.h5: exists already; add --force"):
        write(path, "model")
    assert path.read_bytes() == b"precious"
    write(path, "model", force=True)
    assert kind_of(path) == "model"


def test_output_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as output, a file as folder, and a folder that cannot be written are refused; nothing is made yet."""
    with pytest.raises(ArtifactError, match="is a folder, expected a file name"):
        check_output(tmp_path, force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"file/below: cannot make this folder \(.*file is a file\)"):
        check_output(tmp_path / "file" / "below" / "a.h5", force=False)
    check_output(tmp_path / "new" / "deep" / "a.h5", force=False)
    assert not (tmp_path / "new").exists()
    write(tmp_path / "new" / "deep" / "a.h5", "split")
    assert [path.name for path in (tmp_path / "new" / "deep").iterdir()] == ["a.h5"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ArtifactError, match=r"cannot write in this folder; choose another with --workspace or --out"):
        write(tmp_path / "a.h5", "split")
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    """A folder without write permission is refused in a line."""
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="cannot write in this folder"):
        write(tmp_path / "a.h5", "split")
    tmp_path.chmod(0o700)


def test_missing_file(tmp_path: Path) -> None:
    """A missing artifact names the command that makes it."""
    message = refused(tmp_path / "model.h5", "model", "no such file")
    assert "`zsseg train`" in message
    assert "--model" in message
    with pytest.raises(ArtifactError, match="no such file"):
        kind_of(tmp_path / "model.h5")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated(share: float, tmp_path: Path) -> None:
    """A file that was cut short anywhere is refused."""
    path = write(tmp_path / "data.h5", "data")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "fetch-data --force" in refused(path, "data", "not a readable HDF5 file|damaged")


def test_not_hdf5(tmp_path: Path) -> None:
    """Text, and HDF5 that zsseg did not write, are refused."""
    path = tmp_path / "data.h5"
    path.write_text("not an artifact\n" * 100)
    refused(path, "data", "not a readable HDF5 file")
    with pytest.raises(ArtifactError, match="not a readable HDF5 file"):
        kind_of(path)
    with h5py.File(path, "w") as file:
        file["something"] = [1, 2, 3]
    refused(path, "data", "no finished zsseg artifact")
    with pytest.raises(ArtifactError, match="no zsseg artifact"):
        kind_of(path)


def test_wrong_kind(tmp_path: Path) -> None:
    """Swapped artifacts are recognised, and the message names the option."""
    path = write(tmp_path / "labels.h5", "labels")
    assert refused(path, "data", "holds 'labels', expected 'data'").endswith("with --data")


def test_other_schema(tmp_path: Path) -> None:
    """Another schema number is refused with both numbers and the version that wrote it."""
    path = write(tmp_path / "a.h5", "split")
    spoil(path, lambda file: file.attrs.modify("schema", SCHEMA_VERSION + 1))
    assert "or use zsseg" in refused(
        path, "split", f"schema {SCHEMA_VERSION + 1}, this zsseg .* reads {SCHEMA_VERSION}"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_missing_field(kind: Kind, tmp_path: Path) -> None:
    """An artifact that lacks a needed field can neither be written nor opened."""
    for name in [name for name, field in SCHEMA[kind].items() if not field.optional]:
        path = tmp_path / f"{name}.h5"
        with pytest.raises(ArtifactError, match=f"lacks the field '{name}'"):
            write(path, kind, without=(name,))
        assert not path.exists()
    write(path, kind)
    spoil(path, lambda file: file.__delitem__("names"))
    refused(path, kind, "lacks the field 'names'")


def replaced(file: h5py.File, name: str, **dataset: Any) -> None:
    """Put another dataset in the place of a field."""
    del file[name]
    file.create_dataset(name, **dataset)


@pytest.mark.parametrize(
    ("name", "dataset", "match"),
    [
        ("seen", {"data": np.arange(3, dtype=np.int32)}, "'seen' is int32, expected int64"),
        ("seen", {"data": np.arange(4).reshape(2, 2)}, r"'seen' has shape \(2, 2\), expected \(P\)"),
        ("seen", {"data": np.int64(3)}, r"'seen' has shape \(\), expected \(P\)"),
        ("seen", {"data": h5py.Empty("i8")}, "'seen' has shape None"),
        ("seen", {"data": "text"}, "'seen' is object, expected int64"),
        ("names", {"data": np.arange(3)}, "'names' is int64, expected str"),
        ("images_per_class", {"data": np.arange(2)}, r"has shape \(2,\), expected C = 4"),
        ("confusion", {"data": np.zeros((4, 5), np.int64)}, r"has shape \(4, 5\), expected C = 4"),
    ],
)
def test_wrong_field(name: str, dataset: dict[str, Any], match: str, tmp_path: Path) -> None:
    """A field of another dtype, shape or length than its symbol has elsewhere is refused."""
    path = write(tmp_path / "a.h5", "scores")
    spoil(path, lambda file: replaced(file, name, **dataset))
    refused(path, "scores", match)


def test_inconsistent_lengths_are_not_written(tmp_path: Path) -> None:
    """Two lengths for one symbol stop the write."""
    with pytest.raises(ArtifactError, match=r"'confusion' has shape \(4, 4\), expected C = 2"):
        write(tmp_path / "a.h5", "scores", names=["a", "b"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_byte(kind: Kind, tmp_path: Path) -> None:
    """One flipped bit in a value is found through the seal, and without one through the digest."""
    path = write(tmp_path / "a.h5", kind)
    content = bytearray(path.read_bytes())
    needle = "Wort 1 ü".encode()
    content[content.index(needle)] ^= 1
    path.write_bytes(content)
    refused(path, kind, "do not match its seal")
    path.write_bytes(content[: content.rindex(artifacts.SEAL)])
    refused(path, kind, "do not match its digest")
    open_artifact(path, kind, verify=False).close()


@pytest.mark.parametrize("target", ["seen", "weights", "weights/a.bias"])
def test_links(target: str, tmp_path: Path) -> None:
    """Soft and external links are not followed."""
    other = write(tmp_path / "other.h5", "model")
    for link in (h5py.SoftLink(f"/{target}"), h5py.SoftLink("/names"), h5py.ExternalLink(str(other), f"/{target}")):
        path = write(tmp_path / "a.h5", "model", force=True)

        def change(file: h5py.File, link: Any = link) -> None:
            file.move(target, "kept")
            file[target] = link

        spoil(path, change)
        refused(path, "model", "link|lacks the field|no array of numbers", verify=False)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda group: group.create_group("nested"), "holds 'nested', which is no array of numbers"),
        (lambda group: group.__setitem__("self", group), "holds 'self', which is no array of numbers"),
        (lambda group: group.create_dataset("text", data="words"), "holds 'text'"),
        (lambda group: group.create_dataset("null", data=h5py.Empty("f4")), "holds 'null'"),
        (lambda group: group.create_dataset("rows", (2,), dtype=h5py.vlen_dtype(np.uint8)), "holds 'rows'"),
        (lambda group: group.create_dataset("table", data=np.zeros(2, "i4,f4")), "holds 'table'"),
        (lambda group: group.__setitem__("type", np.dtype("f4")), "holds 'type'"),
    ],
)
def test_strange_arrays(make: Callable[[h5py.Group], Any], match: str, tmp_path: Path) -> None:
    """A group of arrays holds nothing but plain arrays of numbers."""
    path = write(tmp_path / "a.h5", "model")
    spoil(path, lambda file: make(file["weights"]) and None)
    refused(path, "model", match)


def test_field_of_another_sort(tmp_path: Path) -> None:
    """A group in the place of an array, and an array in the place of a group, are refused."""
    path = write(tmp_path / "a.h5", "model")
    spoil(path, lambda file: replaced(file, "weights", data=np.arange(3)))
    refused(path, "model", "'weights' is no group of arrays")
    spoil(path, lambda file: (file.__delitem__("weights"), file.create_group("weights"), file.__delitem__("loss")))
    spoil(path, lambda file: file.create_group("loss") and None)
    refused(path, "model", "'loss' is a group, expected float32")


def virtual(file: h5py.File) -> None:
    """Let a field be a window on another file."""
    del file["train"]
    layout = h5py.VirtualLayout((21,), "i8")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "train", (21,))
    file.create_virtual_dataset("train", layout)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda file: replaced(file, "train", shape=(2**45,), dtype="i8", chunks=(1024,)), "larger than the file"),
        (lambda file: replaced(file, "train", shape=(2**45,), dtype="i8"), "larger than the file"),
        (lambda file: replaced(file, "train", shape=(2**60,), dtype="i8", chunks=(8,)), "larger than the file"),
        (
            lambda file: replaced(file, "train", data=np.zeros(10**6, "i8"), compression="gzip", chunks=(10**6,)),
            "in a way that zsseg does not write",
        ),
        (
            lambda file: replaced(file, "train", shape=(4,), dtype="i8", external=[("elsewhere.raw", 0, 32)]),
            "in a way that zsseg does not write",
        ),
        (virtual, "in a way that zsseg does not write"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_absurd_storage(change: Callable[[h5py.File], None], match: str, verify: bool, tmp_path: Path) -> None:
    """A small file that claims terabytes, or data from elsewhere, is refused before anything is allocated."""
    path = write(tmp_path / "a.h5", "split")
    spoil(path, change)
    refused(path, "split", match, verify=verify)


def test_absurd_arrays(tmp_path: Path) -> None:
    """The same holds for arrays in a group, and for one array under very many names."""
    path = write(tmp_path / "a.h5", "model")
    spoil(path, lambda file: file["weights"].create_dataset("b", (2**45,), "f4", chunks=(8,)) and None)
    refused(path, "model", "larger than the file", verify=False)
    path = write(tmp_path / "a.h5", "model", force=True)

    def repeat(file: h5py.File) -> None:
        file["weights/big"] = np.zeros(100_000, np.float32)
        for number in range(20):
            file[f"weights/big{number}"] = file["weights/big"]

    spoil(path, repeat)
    refused(path, "model", "larger than the file", verify=False)


HOSTILE: list[Any] = [
    "not JSON {", "", "null", "[1, 2]", "7", '{"a": [' * 100_000, "9" * 5000, '{"a": ' + "9" * 5000 + "}",
    7, 1.5, True, b"bytes", b"\xff\xfe", np.arange(3), np.array(["a", "b"], dtype=h5py.string_dtype()),
    h5py.Empty("f4"), "line\nline\x1b[31m\x00"[:-1], "x" * 60_000, "ü" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("name", artifacts.ATTRIBUTES)
def test_hostile_attributes(name: str, tmp_path: Path) -> None:
    """Whatever a root attribute holds, the answer is one line, even where the digest was made to fit."""
    path = write(tmp_path / "a.h5", "split")
    whole = path.read_bytes()
    for value in HOSTILE:
        path.write_bytes(whole)
        with h5py.File(path, "r+", libver="latest") as file:
            file.attrs.create(name, value)
            if name != "digest":
                with contextlib.suppress(UnicodeError):  # text that is not UTF-8 has no digest
                    file.attrs["digest"] = artifacts._digest(file.attrs, file, "split")
            text = isinstance(file.attrs[name], str)
        if name == "zsseg" and text and value != b"\xff\xfe":
            open_artifact(path, "split").close()  # any version text will do
        else:
            refused(path, "split", r"damaged|holds|schema|lacks")
        if name == "kind":
            with pytest.raises(ArtifactError, match="no zsseg artifact") as caught:
                kind_of(path)
            assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", artifacts.ATTRIBUTES)
def test_missing_attribute(name: str, tmp_path: Path) -> None:
    """A file that lacks one of the root attributes was never finished."""
    path = write(tmp_path / "a.h5", "split")
    spoil(path, lambda file: file.attrs.__delitem__(name))
    refused(path, "split", f"no finished zsseg artifact .lacks {name}")


@pytest.mark.parametrize("inputs", ['{"data": 7}', '{"data": null}', '{"data": {}}'])
def test_hostile_inputs(inputs: str, tmp_path: Path) -> None:
    """Inputs must be digests by kind."""
    path = write(tmp_path / "a.h5", "split")
    spoil(path, lambda file: file.attrs.modify("inputs", inputs))
    resign(path, "split")
    refused(path, "split", "no table of settings")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Names that are not UTF-8 give a line, though the digest fits."""
    path = write(tmp_path / "a.h5", "split")

    def change(file: h5py.File) -> None:
        file["names"][1] = b"\xff\xfe cow"

    spoil(path, change)
    resign(path, "split")
    refused(path, "split", r"damaged \(.*utf-8")


def test_row_that_is_not_there(tmp_path: Path) -> None:
    """An index beyond the last image, as a crafted split may hold, gives a line."""
    with (
        open_artifact(write(tmp_path / "a.h5", "data"), "data") as artifact,
        pytest.raises(ArtifactError, match="damaged"),
    ):
        artifact.bytes_at("images", 1000)


def fail_in_the_middle(path: Path, error: BaseException) -> None:
    """Write half an artifact."""
    with create(path, "split", params={}, inputs={}, force=True) as writer:
        writer.put("names", ["a"])
        raise error


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), DataError("a.jpg: bad")])
def test_exception_inside(error: BaseException, tmp_path: Path) -> None:
    """An exception in the middle passes through, leaves the old file whole and no temporary one."""
    path = write(tmp_path / "a.h5", "split")
    before = path.read_bytes()
    with pytest.raises(type(error)):
        fail_in_the_middle(path, error)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_disk_error_inside(tmp_path: Path) -> None:
    """An OSError in the middle becomes a line that says what to do."""
    path = write(tmp_path / "a.h5", "split")
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match=r"a\.h5: could not be written \(.*No space left.*free some space"):
        fail_in_the_middle(path, OSError(28, "No space left on device"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from zsseg.artifacts import create
from zsseg.errors import ArtifactError

for limit in (0, 50, 700, 3000, 8000, 14000, 20_000, 200_000, 801_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with create(Path(sys.argv[1]), "split", params={}, inputs={}, force=True) as writer:
            writer.put("names", ["a"] * 100)
            for name in ("seen", "unseen", "val"):
                writer.put(name, [1])
            for index in range(100):
                writer.append("train", np.int64(index))
            del writer._file["train"]
            writer.put("train", np.arange(100_000))
        print("written")
    except ArtifactError as error:
        print("refused" if "could not be written ([Errno 27] File too large)" in str(error) else error)
"""


def test_full_disk(tmp_path: Path) -> None:
    """Where the system refuses to write more, at whatever byte, comes one error; HDF5 alone crashes."""
    path = write(tmp_path / "a.h5", "split")
    before = path.read_bytes()
    script = tmp_path / "script.py"
    script.write_text(FULL_DISK)
    done = subprocess.run([sys.executable, script, path], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == ["refused"] * 9 + [""]
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path, script]


def test_leftovers(tmp_path: Path) -> None:
    """What a killed process left behind goes with the next write of that output; anything else stays."""
    dead = [tmp_path / ".a[1].h5.tmp", tmp_path / ".a[1].h5.lock"]
    kept = [tmp_path / ".other.h5.tmp", tmp_path / ".a[1].h5.x.tmp", tmp_path / ".a1.h5.tmp"]
    for path in (*dead, *kept):
        path.write_text("half")
    path = write(tmp_path / "a[1].h5", "split")
    assert sorted(tmp_path.iterdir()) == sorted([path, *kept])


def test_two_writers(tmp_path: Path) -> None:
    """While a process writes an output, a second one is refused in a line, and can write when the first is gone."""
    path = write(tmp_path / "a.h5", "split")
    with subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        before = set(tmp_path.iterdir())
        for attempt in (lambda: write(path, "split", force=True), lambda: artifacts.write_file(path, b"")):
            with pytest.raises(ArtifactError, match=r"a\.h5: another zsseg command is writing it; wait") as caught:
                attempt()
            assert "\n" not in str(caught.value)
        assert set(tmp_path.iterdir()) == before
        writer.kill()
    write(path, "split", force=True)
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_appears_meanwhile(tmp_path: Path) -> None:
    """What another command has written since this one began is not replaced without force."""
    path = tmp_path / "a.h5"
    check_output(path, force=False)
    write(path, "split")
    with pytest.raises(ArtifactError, match="exists already"), claim(path, force=False):
        pytest.fail("claimed")


DRAFTS = """
import sys
from pathlib import Path
from zsseg.artifacts import drafts

with drafts(Path(sys.argv[1]), "x") as folder:
    (folder / "half.png").write_text("half")
    print(folder.name, flush=True)
    sys.stdin.readline()
"""


def test_drafts(tmp_path: Path) -> None:
    """A folder of drafts goes at its end; a killed process's goes with the next, a living one's stays."""
    command = [sys.executable, "-c", DRAFTS, tmp_path]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:
        assert first.stdout is not None
        assert second.stdout is not None
        names = {first.stdout.readline().decode().strip(), second.stdout.readline().decode().strip()}
        assert names == {".x.0.drafts", ".x.1.drafts"}
        first.kill()
        first.wait()
        with artifacts.drafts(tmp_path, "x") as folder:
            assert list(folder.iterdir()) == []
            living = [path for path in tmp_path.glob(".x.*.drafts") if list(path.iterdir())]
            assert len(living) == 1
        assert list(tmp_path.glob(".x.*.drafts")) == living
        second.communicate(b"\n")
    assert list(tmp_path.iterdir()) == []


def test_a_replaced_input(tmp_path: Path) -> None:
    """A file that was read before and is another one now is refused by its digest."""
    path = write(tmp_path / "a.h5", "split")
    with open_artifact(path, "split") as first:
        digest = first.digest
    open_artifact(path, "split", verify=False, digest=digest).close()
    write(path, "split", force=True, train=[5])
    with pytest.raises(ArtifactError, match=r"a\.h5: was replaced while it was in use; run the command again"):
        open_artifact(path, "split", verify=False, digest=digest)


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from zsseg.artifacts import create

with create(Path(sys.argv[1]), "split", params={}, inputs={}, force=True) as writer:
    writer.put("train", np.arange(1_000_000))
    print("writing", flush=True)
    time.sleep(60)
"""


def test_kill_in_mid_write(tmp_path: Path) -> None:
    """A process that is killed while it writes leaves the old file whole; the next write sweeps up."""
    path = write(tmp_path / "a.h5", "split")
    before = path.read_bytes()
    with subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"a.h5", ".a.h5.tmp", ".a.h5.lock"}
    leftover = tmp_path / ".a.h5.tmp"
    leftover.rename(tmp_path / "half.h5")
    refused(tmp_path / "half.h5", "split", "not a readable HDF5 file|no finished")
    (tmp_path / "half.h5").rename(leftover)
    write(path, "split", force=True)
    assert list(tmp_path.iterdir()) == [path]


def test_unfinished(tmp_path: Path) -> None:
    """A file with every field but no attributes was interrupted before its end."""
    path = tmp_path / "a.h5"
    with artifacts._Disk(path, "w+") as disk, h5py.File(disk, "w") as file:
        writer = Writer(file, "split", disk)
        for name, values in all_values("split").items():
            writer.put(name, values)
    assert "make it with `zsseg make-split`" in refused(path, "split", "no finished zsseg artifact")


def test_nothing_of_the_machine_inside(tmp_path: Path) -> None:
    """The file holds no path, process or name of its folder."""
    content = write(tmp_path / "a.h5", "data").read_bytes()
    assert str(tmp_path).encode() not in content
    assert tmp_path.name.encode() not in content


def test_attributes_are_plain(tmp_path: Path) -> None:
    """Any HDF5 tool can read the six root attributes: five texts and a number."""
    with h5py.File(write(tmp_path / "a.h5", "data"), "r") as file:
        assert sorted(file.attrs) == sorted(artifacts.ATTRIBUTES)
        assert json.loads(file.attrs["params"]) == PARAMS
        assert file.attrs["schema"] == SCHEMA_VERSION
        assert set(file) == set(SCHEMA["data"])


def test_same_names() -> None:
    """Artifacts of other classes, or another order of them, do not fit."""
    same_names(["a", "b"], ("a", "b"), "x and y")
    with pytest.raises(ArtifactError, match="x and y have 1 and 2 classes"):
        same_names(["a"], ["a", "b"], "x and y")
    with pytest.raises(ArtifactError, match="class 1 is 'b' and 'c'"):
        same_names(["a", "b"], ["a", "c"], "x and y")
