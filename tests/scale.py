"""Run zsseg as jobs of several processes, and compare with one process; `make scale` runs the whole campaign.

    python tests/scale.py equal --ranks 2,4    training, eval and predict: figures of how far a job is from one process
    python tests/scale.py kill --ranks 2       a rank of a training job is killed: the job must end in a line, and
                                               --resume with other numbers of ranks must end near the same weights

The data is `tiny`'s, six generated photos: a batch of three is shared unevenly, and that of one leaves ranks without a
photo. Ranks are forks of one process that has loaded everything, and meet as torchrun would have them meet.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kill import Ended, WrongError, digest, fork, leftovers, make_workspace, preload, whole
from numpy.typing import NDArray
from torch.distributed import TCPStore

from zsseg.artifacts import beside, open_artifact

QUICK = (
    "--epochs", "4", "--batch", "3", "--crop", "64", "--workers", "0", "--device", "cpu", "--anchors", "none",
    "--precision", "float32",
)  # fmt: skip
# Training runs that between them have every loss, every weighting, the gate, the probe and self-training.
RUNS = {
    "mse, image, gate": ("--weighting", "image"),
    "infonce, probe, self-training": (
        "--loss", "infonce", "--val-classes", "dog", "--calibration", "stacking", "--self-train", "void",
    ),
    "joem, fine-tuned": ("--loss", "joem", "--fine-tune", "--no-gate"),
    "hinge, frequency": ("--loss", "hinge", "--weighting", "frequency", "--no-gate"),
    "cosine, effective-number": ("--loss", "cosine", "--weighting", "effective-number", "--no-gate"),
    "softmax-embed": ("--loss", "softmax-embed", "--no-gate"),
    "softmax, hourglass from random": (
        "--loss", "softmax", "--model", "hourglass", "--stacks", "1", "--weights", "none", "--backbone", "none",
    ),
}  # fmt: skip
NEAR = 0.001  # of the way that training went: how far a job may end from one process


@dataclass
class Kill:
    """SIGKILL for a rank, once a model was written so many times."""

    rank: int
    model: Path
    times: int = 1


@contextmanager
def meeting_place() -> Iterator[None]:
    """Keep the store through which ranks meet, in a process that outlives them, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = os.fork()
    if not process:
        _store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        signal.pause()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    try:
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def job(words: tuple[str, ...], ranks: int, *, kill: Kill | None = None) -> list[Ended]:
    """Run a command in so many processes, and return how each ended."""
    with meeting_place(), ExitStack() as opened:
        files = [opened.enter_context(tempfile.TemporaryFile("w+")) for _ in range(ranks)]
        os.environ.update(WORLD_SIZE=str(ranks))
        started = time.monotonic()
        processes = []
        for rank, file in enumerate(files):
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            processes.append(fork(words, file.fileno()))
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            del os.environ[name]
        if kill is not None:
            _wait_for(kill)
            os.kill(processes[kill.rank], signal.SIGKILL)
        ended = []
        for process, file in zip(processes, files, strict=True):
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            file.seek(0)
            ended.append(Ended(code, time.monotonic() - started, file.read()))
        return ended


def _wait_for(kill: Kill) -> None:
    """Wait until the model has been written so many times."""
    seen: set[int] = set()
    end = time.monotonic() + 600
    while len(seen) < kill.times:
        for path in (kill.model, beside(kill.model, "unfinished")):
            if path.exists():
                seen.add(path.stat().st_mtime_ns)
        if time.monotonic() > end:
            raise WrongError("the job to be killed wrote no model")
        time.sleep(0.002)


def good(words: tuple[str, ...], ranks: int) -> None:
    """Run a command in so many processes to its end, which must be a good one."""
    if ranks == 1:
        whole(words)
        return
    for rank, ended in enumerate(job(words, ranks)):
        if ended.code or (rank and ended.stderr):
            raise WrongError(f"zsseg {' '.join(words)}: rank {rank} of {ranks}: {ended.code}: {ended.stderr}")


# --- equal to one process ---------------------------------------------------------------------------------------------


def check_equal(space: Path, ranks: tuple[int, ...], names: tuple[str, ...]) -> dict[str, object]:
    """Compare jobs of several processes with one process, over training, eval and predict."""
    figures: dict[str, object] = {}
    for name in names:
        for count in ranks:
            figures[f"{name}; {count} ranks"] = _training_gap(space, name, count)
            log(f"{name}; {count} ranks: {figures[f'{name}; {count} ranks']}")
    whole(("train", *QUICK, "--workspace", str(space), "--force", "-q"))
    for count in ranks:
        figures[f"eval and predict; {count} ranks"] = _same_outputs(space, count)
        figures[f"refusals; {count} ranks"] = _refusals(space, count)
    return figures


def _training_gap(space: Path, name: str, ranks: int) -> dict[str, float]:
    """Return how far a job is from one process, as a share of the way that training went, and in its losses."""
    outs = {each: space / f"{each}.h5" for each in ("start", "one", "several")}
    words = ("train", *QUICK, *RUNS[name], "--workspace", str(space), "--force", "-q", "--out")
    if ranks == 2 or not outs["one"].exists():
        good((*words, str(outs["start"]), "--lr", "0"), 1)
        good((*words, str(outs["one"])), 1)
    good((*words, str(outs["several"])), ranks)
    gap = distance(outs["several"], outs["one"]) / distance(outs["one"], outs["start"])
    losses = losses_of(outs["several"]), losses_of(outs["one"])
    loss_gap = float(np.abs(losses[0] - losses[1]).max() / losses[1].max())
    if not gap < NEAR or not loss_gap < NEAR:
        raise WrongError(f"{name}: {ranks} ranks end {gap:.2g} of the way and {loss_gap:.2g} of the loss from one")
    return {"weights": _rounded(gap), "loss": _rounded(loss_gap)}


def distance(one: Path, other: Path) -> float:
    """Return the Euclidean distance of two models' parameters."""
    with open_artifact(one, "model") as first, open_artifact(other, "model") as second:
        ours, theirs = first.arrays("weights"), second.arrays("weights")
    return math.sqrt(sum(float(np.square(ours[key].astype(float) - theirs[key]).sum()) for key in ours))


def losses_of(model: Path) -> NDArray[np.float64]:
    """Return the loss of every step."""
    with open_artifact(model, "model") as artifact:
        return artifact.array("loss").astype(float)


def _same_outputs(space: Path, ranks: int) -> str:
    """Check that eval and predict write the bytes of one process."""
    found = []
    for count in (1, ranks):
        folder = space / f"outputs-{count}"
        common = ("--workspace", str(space), "--force", "-q")
        good(("eval", "--partition", "all", *common, "--out", str(folder / "scores.h5")), count)
        words = (str(space / "set" / "images"), str(space / "data.h5"), "--pictures", str(folder / "pictures"))
        good(("predict", *words, *common, "--out", str(folder / "predictions.h5")), count)
        found.append({str(path.relative_to(folder)): digest(path) for path in folder.rglob("*") if path.is_file()})
        if leftovers(folder) or leftovers(folder / "pictures"):
            raise WrongError(f"{ranks} ranks leave {leftovers(folder)}")
    if found[0] != found[1] or len(found[0]) < 10:
        different = sorted(name for name in found[0] if found[0][name] != found[1].get(name))
        raise WrongError(f"{ranks} ranks write others than one process: {', '.join(different)}")
    return f"{len(found[0])} files, the same bytes"


def _refusals(space: Path, ranks: int) -> str:
    """Check that what a command refuses, on one rank or on all, comes out as one line in all."""
    broken = space / "broken"
    if not broken.exists():
        shutil.copytree(space / "set" / "images", broken)
        (broken / "two.png").write_bytes(b"no image")
    tail = ("--workspace", str(space), "--force", "-q")
    refused = {
        "no such file": ("train", *QUICK, *tail, "--data", str(space / "gone.h5")),
        "no such class": ("train", *QUICK, *tail, "--unseen", "cwo"),
        "statistics of whole batches": ("train", *QUICK, *tail, "--weights", "none", "--fine-tune"),
        "two.png": ("predict", str(broken), *tail),
        "without torchrun": ("predict", str(broken), "--vocabulary", "100", *tail),
    }
    for says, words in refused.items():
        ended = job(words, ranks)
        lines = [line for each in ended for line in each.stderr.splitlines()]
        if {each.code for each in ended} != {1} or len(lines) != 1 or says not in lines[0]:
            raise WrongError(f"zsseg {' '.join(words)}: {[each.code for each in ended]}: {lines}")
    return f"{len(refused)}, one line each"


# --- a rank that dies -------------------------------------------------------------------------------------------------


def check_kills(space: Path, ranks: int, rng: np.random.Generator, kills: int) -> dict[str, object]:
    """Kill a rank of a training job in its midst, and resume with one, as many, and twice as many."""
    words = ("train", *QUICK, "--epochs", "8", "--checkpoint-steps", "1", "--workspace", str(space), "-q", "--out")
    start, one, same, out = (space / f"{name}-{ranks}.h5" for name in ("start", "one", "same", "killed"))
    good((*words, str(start), "--lr", "0"), 1)
    good((*words, str(one)), 1)
    good((*words, str(same)), ranks)
    way = distance(one, start)
    gaps, identical = [], 0
    for number in range(kills):
        kill = Kill(int(rng.integers(ranks)), out, int(rng.integers(2, 12)))
        _check_ending(job((*words, str(out)), ranks, kill=kill), kill)
        resumed = (ranks, 1, 2 * ranks)[number % 3]
        good((*words, str(out), "--resume"), resumed)
        gaps.append(distance(out, one) / way)
        identical += resumed == ranks and digest(out) == digest(same)
        if not gaps[-1] < NEAR or (resumed == ranks and digest(out) != digest(same)) or leftovers(space):
            raise WrongError(f"{kill}, resumed by {resumed}: {gaps[-1]:.2g} of the way off, left {leftovers(space)}")
        out.unlink()
        log(f"{kill.rank} of {ranks} killed, resumed by {resumed}: {gaps[-1]:.2g}")
    return {"kills": kills, "weights, at most": _rounded(max(gaps)), "same ranks, same bytes": identical}


def _check_ending(ended: list[Ended], kill: Kill) -> None:
    """Check that those who survive end by themselves, and that one of them says why."""
    lines = [line for each in ended for line in each.stderr.splitlines()]
    codes = [each.code for rank, each in enumerate(ended) if rank != kill.rank]
    says = [line for line in lines if "another process of this job" in line and "--resume" in line]
    strange = [line for line in lines if line not in says]
    if ended[kill.rank].code != -signal.SIGKILL or set(codes) != {1} or not says or strange:
        raise WrongError(f"{kill}: {[each.code for each in ended]}: {lines}")


# ----------------------------------------------------------------------------------------------------------------------


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def log(line: str) -> None:
    """Tell on stderr how far it is."""
    sys.stderr.write(f"{line}\n")


def main() -> None:
    """Run one of the two checks and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=("equal", "kill"))
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=RUNS, action="append", help="equal: these runs alone")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # as torchrun does
    preload()
    started = time.monotonic()
    ranks = tuple(map(int, options.ranks.split(",")))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZSSEG_FEATURES"] = str(Path(folder, "features"))
        space = make_workspace(Path(folder))
        if options.check == "equal":
            figures = check_equal(space, ranks, tuple(options.only or RUNS))
        else:
            rng = np.random.default_rng(options.seed)
            figures = {f"{each} ranks": check_kills(space, each, rng, options.kills) for each in ranks}
    figures["seconds"] = round(time.monotonic() - started)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except WrongError as wrong:
        sys.exit(f"promise broken: {wrong}")
