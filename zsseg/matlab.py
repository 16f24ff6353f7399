"""Read one array out of a MATLAB 5 file that came from elsewhere: `variable.field`, such as SBD's GTcls.Segmentation.

scipy's reader believes what such a file says of sizes, and crashes on some damaged ones. This one reads little-endian
files, packed or not, and follows no more than it is asked for.

Reference: MathWorks, "MAT-File Format", level 5: elements of a type, a size and padded data; an array is an element of
elements (flags, shape, name, then its content); a structure's content is its fields' names and an array for each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg.archives import inflated

MAX_UNPACKED = 8 << 20  # bytes of a variable; SBD's have some 200,000
_HEADER = 128
_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_INT8, _INT32, _UINT32, _ARRAY, _PACKED = 1, 5, 6, 14, 15
_STRUCTURE, _NUMERIC = 2, range(6, 16)  # classes of arrays


@dataclass(frozen=True)
class _Array:
    """An array as it stands in a file: its class, shape and name, and the elements of its content."""

    kind: int
    shape: tuple[int, ...]
    name: str
    content: Iterator[tuple[int, bytes]]


def read_field(content: bytes, variable: str, field: str) -> NDArray[Any]:
    """Return a numeric field of a structure; of an array of structures, the first one's.

    Raises:
        ValueError: There is none, or the file is damaged or of another form.
        zlib.error: A packed element is damaged.
    """
    if not content.startswith(b"MATLAB 5.0") or content[126:_HEADER] != b"IM":
        raise ValueError("not of MATLAB's version 5, little-endian")
    for kind, element in _elements(content[_HEADER:]):
        if kind == _PACKED:
            kind, element = next(_elements(inflated(element, MAX_UNPACKED)), (0, b""))
        if kind == _ARRAY and (array := _array(element)).name == variable and array.kind == _STRUCTURE:
            return _numbers(_array(_field(array, field)))
    raise ValueError(f"no structure {variable}")


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and data of each element.

    Raises:
        ValueError: The last one is cut short.
    """
    place = 0
    while place + 8 <= len(content):
        kind, size = np.frombuffer(content, "<u4", 2, place).tolist()
        start = place + 8
        if kind >> 16:  # up to four bytes stand in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        if start + size > len(content) or (start == place + 4 and size > 4):
            raise ValueError("an element is cut short")
        yield kind, content[start : start + size]
        padding = 0 if kind == _PACKED else -size % 8
        place = place + 8 if start == place + 4 else start + size + padding


def _array(element: bytes) -> _Array:
    content = _elements(element)
    head = list(itertools.islice(content, 3))
    if [kind for kind, _ in head] != [_UINT32, _INT32, _INT8] or len(head[0][1]) < 4 or len(head[1][1]) % 4:
        raise ValueError("an array lacks its class, shape or name")
    shape = np.frombuffer(head[1][1], "<i4").tolist()
    return _Array(head[0][1][0], tuple(shape), head[2][1].decode("latin-1"), content)


def _field(array: _Array, field: str) -> bytes:
    """Return the element of a structure's field."""
    (_, length), (_, names) = next(array.content, (0, b"")), next(array.content, (0, b""))
    width = int.from_bytes(length, "little")
    if not 0 < width <= len(names):
        raise ValueError("a structure lacks its fields' names")
    known = [names[at : at + width].partition(b"\0")[0].decode("latin-1") for at in range(0, len(names), width)]
    if field not in known:
        raise ValueError(f"no field {field}")
    return next(itertools.islice(array.content, known.index(field), None), (0, b""))[1]


def _numbers(array: _Array) -> NDArray[Any]:
    kind, raw = next(array.content, (0, b""))
    if array.kind not in _NUMERIC or kind not in _NUMBERS:
        raise ValueError("an array holds no numbers")
    numbers = np.frombuffer(raw, _NUMBERS[kind], len(raw) // np.dtype(_NUMBERS[kind]).itemsize)
    if min(array.shape, default=0) < 0 or math.prod(array.shape) != len(numbers):
        raise ValueError(f"{len(numbers)} numbers in an array of shape {array.shape}")
    return numbers.reshape(array.shape, order="F")
