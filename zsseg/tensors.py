"""Read tensors from files that came from elsewhere: safetensors, or torch's own format without executing anything.

torch's restricted unpickler (`weights_only=True`) runs no code, but it believes sizes: a file of a hundred bytes can
ask for all memory. So a pickle is read through beforehand, and may name nothing but what a dictionary of tensors
needs; what is packed is refused, for torch packs nothing; and so is a tensor that claims more numbers than there are.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = 5  # at the start of a file of torch before 1.6: magic number, protocol, machine, content, names of storages
_NAMED = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils (_rebuild_tensor_v2|_rebuild_tensor|_rebuild_parameter)"
    r"|torch \w+Storage|torch\.storage (UntypedStorage|TypedStorage)"
    r"|torch Size|torch (float|int|uint|bfloat)\d+"
)
_REFUSED = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors by name; those under "state_dict" where a file has that.

    Args:
        path: A .safetensors file, or what torch.save wrote, whatever its suffix.

    Raises:
        Exception: It is no such file; the readers raise many kinds.
        TypeError: It loads, but holds something else than tensors by name.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    import torch

    _check_file(path)
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # beside it other tools keep the optimizer and the epoch
    by_name = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not by_name or not all(map(_is_plain, state.values())):
        raise TypeError("no plain state dict of tensors")
    return {name: each.detach() for name, each in state.items()}


def _check_file(path: Path) -> None:
    """Refuse what a file of tensors does not hold, before torch believes it.

    Raises:
        ValueError: It holds such a thing, or is damaged.
        zipfile.BadZipFile: It is damaged.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            for _ in range(PICKLES):
                _check_pickle(file)
            return
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            held = sum(member.file_size for member in members)
            if held > path.stat().st_size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("its parts are packed")
            for member in members:
                if member.filename.endswith(".pkl"):
                    with archive.open(member) as part:
                        _check_pickle(part)


def _check_pickle(file: IO[bytes]) -> None:
    for code, value, _ in pickletools.genops(file):
        if code.name in _REFUSED or (code.name == "GLOBAL" and not _NAMED.fullmatch(str(value))):
            raise ValueError(f"names {value}, which no tensor needs")


def _is_plain(value: Any) -> bool:
    """Return whether it is a tensor of real numbers in memory, all of them its own."""
    import torch

    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
