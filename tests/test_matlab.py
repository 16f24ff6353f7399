"""Arrays out of MATLAB 5 files: scipy's reader and writer are the oracle."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from zsseg.matlab import read_field


def saved(variables: dict[str, Any], *, packed: bool = True) -> bytes:
    """Return a MATLAB 5 file."""
    buffer = io.BytesIO()
    savemat(buffer, variables, do_compression=packed)
    return buffer.getvalue()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", "i8"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 2), (37, 50), (2, 3, 4), (0, 3)])
def test_as_scipy_reads_it(shape: tuple[int, ...], dtype: str, packed: bool) -> None:
    """Every dtype and shape, packed or not, among other fields and variables, comes out as scipy's reader has it."""
    values = np.random.default_rng(0).integers(0, 21, shape).astype(dtype)
    cells = np.empty((2, 1), dtype=object)
    cells[:] = [[np.eye(3)], ["text"]]
    structure = {"Boundaries": cells, "Segmentation": values, "CategoriesPresent": np.array([1, 2])}
    content = saved({"other": np.arange(5), "GTcls": structure, "last": "x"}, packed=packed)
    found = read_field(content, "GTcls", "Segmentation")
    expected = loadmat(io.BytesIO(content))["GTcls"]["Segmentation"][0, 0]
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_what_is_not_there() -> None:
    """A missing variable or field, one that holds no numbers, and files of another form are refused."""
    content = saved({"GTcls": {"Segmentation": np.eye(3), "text": "x", "cell": np.array([{}], dtype=object)}})
    for variable, field, match in (
        ("GTinst", "Segmentation", "no structure GTinst"),
        ("GTcls", "segmentation", "no field segmentation"),
        ("GTcls", "text", "holds no numbers"),
        ("GTcls", "cell", "holds no numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            read_field(content, variable, field)
    for other in (b"", b"MATLAB 5.0", content[:126] + b"MI" + content[128:], b"x" * 500):
        with pytest.raises(ValueError, match=r"not of MATLAB's version 5"):
            read_field(other, "GTcls", "Segmentation")


def test_lies_and_bombs() -> None:
    """A shape of billions of cells, a file that is cut anywhere, and one that unpacks a thousandfold are refused."""
    plain = saved({"GTcls": {"Segmentation": np.full((7, 9), 3, np.uint8)}}, packed=False)
    assert read_field(plain, "GTcls", "Segmentation").tolist() == [[3] * 9] * 7
    shape = struct.pack("<ii", 7, 9)
    for lie in ((60_000, 60_000), (-7, -9), (2**31 - 1, 1), (7, 8)):
        with pytest.raises(ValueError, match="63 numbers in an array of shape"):
            read_field(plain.replace(shape, struct.pack("<ii", *lie)), "GTcls", "Segmentation")
    for end in range(128, len(plain) - 8):
        with pytest.raises(ValueError, match=r"."):
            read_field(plain[:end], "GTcls", "Segmentation")
    packed = zlib.compress(bytes(1 << 26))
    bomb = plain[:128] + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(ValueError, match="unpacks to more than"):
        read_field(bomb, "GTcls", "Segmentation")
