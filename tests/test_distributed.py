"""Several processes: how work is parted, masks of a part of a batch, and whole jobs (`tests/scale.py`, `torchrun`)."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scale
import torch
from tiny import write_folder, zsseg
from torch import nn

from zsseg import distributed
from zsseg.distributed import Part
from zsseg.errors import SettingError
from zsseg.models.fcn import ChannelDropout
from zsseg.models.gate import HalfDropout

SCRIPT = Path(scale.__file__)


@contextlib.contextmanager
def as_rank(rank: int, world: int) -> Iterator[None]:
    """Let this process believe that it is one of several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: rank)
        patch.setattr(distributed, "world", lambda: world)
        yield


@pytest.mark.parametrize("whole", [1, 3, 8])
@pytest.mark.parametrize("world", [1, 2, 4, 5])
def test_parts_make_up_the_batch(whole: int, world: int) -> None:
    """Every photo of a batch is one rank's, and every rank has one to compute on."""
    own = []
    for rank in range(world):
        with as_rank(rank, world):
            part = distributed.part(whole)
        rows = list(range(whole))[part.rows]
        assert rows
        own += [] if part.is_empty else rows
    assert own == list(range(whole))


def test_shares_make_up_the_whole() -> None:
    """Every item is one rank's."""
    own: list[int] = []
    for rank in range(3):
        with as_rank(rank, 3):
            own += distributed.share(range(10))
    assert sorted(own) == list(range(10))


@pytest.mark.parametrize("layer", [HalfDropout(), ChannelDropout(0.5)])
@pytest.mark.parametrize("shape", [(5, 3, 7, 9), (4, 2, 3, 1)])
def test_dropout_of_a_part(layer: Any, shape: tuple[int, ...]) -> None:
    """The masks that ranks draw for their parts of a batch are those that one process draws for all of it."""
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def dropped(part: Part | None, cells: torch.Tensor) -> torch.Tensor:
        layer.part = part
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = layer(cells)
            return torch.stack([first, layer(cells)])  # the second draw goes on from the same place

    whole = dropped(None, batch)
    assert 0 < (whole == 0).float().mean() < 1
    assert not torch.equal(whole[0], whole[1])
    for first, last in ((0, 1), (1, 3), (3, shape[0]), (shape[0], shape[0])):
        part = Part(first, last, shape[0])
        assert torch.equal(dropped(part, batch[part.rows]), whole[:, part.rows])


def test_a_part_changes_nothing_in_evaluation() -> None:
    """Dropout of a part is no dropout after training."""
    for layer in (HalfDropout(), ChannelDropout(0.5)):
        assert isinstance(layer, nn.Module)
        layer.eval().part = Part(1, 2, 4)
        assert torch.equal(layer(torch.ones(1, 2, 3, 3)), torch.ones(1, 2, 3, 3))


def test_results_travel_as_they_are() -> None:
    """What ranks send one another comes out as it went in, also nothing, NaN and numbers of full precision."""
    sent = [({"scores": [0.1, 1 / 3, math.inf]}, b"\x00\xff" * 5), ([], b""), (None, b"x")]
    assert list(distributed._unpacked(distributed._packed(sent))) == sent
    assert list(distributed._unpacked(distributed._packed([]))) == []
    ((undefined, _),) = distributed._unpacked(distributed._packed([(math.nan, b"")]))
    assert math.isnan(undefined)


def test_one_process_exchanges_nothing() -> None:
    """Without torchrun every function gives back what it was given."""
    tensor = torch.ones(3, requires_grad=True)
    assert distributed.summed(tensor)[0] is tensor
    assert distributed.from_main(value := object()) is value
    assert list(distributed.in_order([1, 2], lambda item: (item, b""))) == [(1, b""), (2, b"")]
    assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)


@pytest.mark.parametrize("given", ["0", "soon", "-1", "nan"])
def test_a_timeout_that_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """A timeout that cannot be met is refused before anybody waits."""
    monkeypatch.setenv("ZSSEG_RANK_TIMEOUT", given)
    with pytest.raises(SettingError, match=r"ZSSEG_RANK_TIMEOUT=.* expected a number of minutes above 0"):
        distributed.join()


def test_two_ranks_equal_one_process() -> None:
    """Training ends where one process ends, eval and predict write its bytes, and refusals are one line."""
    words = ["equal", "--ranks", "2", "--only", "mse, image, gate"]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["mse, image, gate; 2 ranks"]["weights"] < scale.NEAR
    assert "the same bytes" in figures["eval and predict; 2 ranks"]


def test_torchrun_and_a_rank_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of torchrun, one rank of which is killed, ends in one clear line, and one process goes on with it."""
    write_folder(tmp_path / "set")
    for words in (("fetch-data", "folder", "--root", tmp_path / "set"), ("embed-labels", "--dim", 6)):
        zsseg(*words, "--workspace", tmp_path)
    zsseg("make-split", "--unseen", "cow,sheep", "--workspace", tmp_path)
    train = ("train", *scale.QUICK, "--epochs", 12, "--no-gate", "--checkpoint-steps", 1, "--workspace", tmp_path)
    monkeypatch.setenv("ZSSEG_FEATURES", "none")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "zsseg", *map(str, train)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        _wait_for(tmp_path / "model.h5", job)
        os.kill(_process_of_rank(1, job.pid), signal.SIGKILL)
        _, errors = job.communicate(timeout=300)
    said = [line for line in errors.splitlines() if line.startswith("zsseg: error:")]
    assert job.returncode == 1
    assert len(said) == 1, errors
    assert "another process of this job of 2 died" in said[0]
    assert not list(tmp_path.glob(".features*"))
    zsseg(*train, "--resume", "-q")
    assert scale.leftovers(tmp_path) == []


def _wait_for(path: Path, job: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not path.exists():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def _process_of_rank(rank: int, parent: int) -> int:
    children = [int(each) for each in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    wanted = f"RANK={rank}".encode()
    return next(each for each in children if wanted in Path(f"/proc/{each}/environ").read_bytes().split(b"\0"))
