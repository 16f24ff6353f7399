"""Which device and which precision this machine offers."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from zsseg.config import Device, Precision
from zsseg.errors import SettingError


def choose_device(device: Device) -> torch.device:
    """Resolve "auto" to CUDA where there is a GPU, else to the CPU.

    Raises:
        SettingError: CUDA is asked for and not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device cuda: torch sees no GPU here; use --device cpu, or install torch for your CUDA")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def choose_precision(precision: Precision, device: torch.device) -> Precision:
    """Resolve "auto" to bfloat16 where the hardware multiplies matrices in it, else to float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if _cpu_has_bfloat16() else "float32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which the network runs; parameters and losses stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def _cpu_has_bfloat16() -> bool:
    """AMX or AVX512-BF16; without one of them bfloat16 is emulated, slower than float32."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
