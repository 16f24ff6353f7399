"""Which device and which precision this machine offers."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager

import torch

from zsseg import distributed
from zsseg.config import Device, Precision
from zsseg.errors import SettingError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGE = 32 * 2**20  # bytes; the most that glibc takes


def choose_device(device: Device) -> torch.device:
    """Resolve "auto" to CUDA where there is a GPU, else to the CPU.

    Raises:
        SettingError: CUDA is asked for and not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device cuda: torch sees no GPU here; use --device cpu, or install torch for your CUDA")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and distributed.world() > 1:
        return _own_gpu(distributed.local_rank())
    return torch.device(device)


def _own_gpu(number: int) -> torch.device:
    """Return the GPU of one of several processes of this machine."""
    if number >= torch.cuda.device_count():
        raise SettingError(
            f"--device cuda: process {number + 1} of this machine finds {torch.cuda.device_count()} GPUs; "
            "start as many processes as there are GPUs, with --nproc-per-node"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


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


def keep_freed_memory() -> None:
    """Let the process keep memory that it frees, for its next tensor, until it ends.

    By default glibc hands every block of some megabytes back to the system, which clears it page by page before the
    next tensor may use it: a tenth of a training step, a quarter of scoring a photo (docs/performance.md).
    Blocks of 32 MB and more still go back: FCN's gradients of 400 MB, kept, would leave gaps that nothing fits in, one
    more each step. Elsewhere nothing is done.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, -1)


def multiplies_tiles() -> bool:
    """Return whether the processor has AMX, and multiplies matrices in bfloat16 several times as quick as others."""
    return _cpu_says("_is_amx_tile_supported")


def has_avx512() -> bool:
    """Return whether the processor has AVX-512."""
    return _cpu_says("_is_avx512_supported")


def _cpu_has_bfloat16() -> bool:
    """AMX or AVX512-BF16; without one of them bfloat16 is emulated, slower than float32."""
    return multiplies_tiles() or _cpu_says("_is_avx512_bf16_supported")


def _cpu_says(probe: str) -> bool:
    return bool(getattr(torch.cpu, probe, lambda: False)())
