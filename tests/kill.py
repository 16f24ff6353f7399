"""Kill zsseg commands at random moments, and check that nothing is lost; `make kill` runs the whole campaign.

    python tests/kill.py resume --kills 20    killed training runs, each resumed to its end: the model's bytes must be
                                              those of a run that was never killed
    python tests/kill.py commands --kills 100 kills of all commands: each output must be, byte for byte, the old file
                                              or the new one (an unfinished model must open), and the next run sweeps up

The data is `tiny`'s, six generated photos. Commands run in forked processes of one that has loaded everything, so that
a kill lands in the work and not in the seconds of importing torch; every fifth starts an interpreter of its own.
Signals are SIGKILL, and for `commands` SIGINT and SIGTERM besides, after which a command must end by itself, in a line.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tiny import write_folder

from zsseg.artifacts import open_artifact
from zsseg.cli import main as command_line
from zsseg.errors import ZssegError

QUICK = ("--batch", "2", "--crop", "64", "--workers", "0", "--device", "cpu", "--anchors", "none", "--checkpoint-steps")
# Training runs: everything that a resume must restore, in few steps.
RUNS = {
    "frozen, gate": ("--epochs", "6", *QUICK, "3"),
    "probe, self-training": (
        "--epochs", "3", "--val-classes", "dog", "--calibration", "stacking", "--self-train", "anywhere",
        "--loss", "infonce", "--weighting", "image", *QUICK, "2",
    ),
    "fine-tuned": ("--epochs", "3", "--fine-tune", "--calibration", "none", *QUICK, "1"),
}  # fmt: skip


FINISHED = "after the end"


class WrongError(Exception):
    """A promise was broken."""


@dataclass
class Ended:
    """How a command ended: its exit code or minus the signal that killed it, how long it ran, and its stderr."""

    code: int
    seconds: float
    stderr: str


@dataclass
class Stop:
    """A signal that a process gets after so many seconds; with `written`, since it first wrote that model."""

    signal: int
    seconds: float
    written: Path | None = None


def run(words: tuple[str, ...], *, stop: Stop | None = None, fresh: bool = False) -> Ended:
    """Run a command in a process of its own."""
    with tempfile.TemporaryFile("w+") as stderr:
        started = time.monotonic()
        if fresh:
            process = subprocess.Popen(
                [sys.executable, "-m", "zsseg", *words], stdout=subprocess.DEVNULL, stderr=stderr
            ).pid
        else:
            process = fork(words, stderr.fileno())
        code = _wait(process, stop)
        stderr.seek(0)
        return Ended(code, time.monotonic() - started, stderr.read())


def fork(words: tuple[str, ...], stderr: int) -> int:
    """Start a command in a forked process, and return its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(stderr, 2)
        sys.argv = ["zsseg", *words]
        command_line()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # what the interpreter would do
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


def _wait(process: int, stop: Stop | None) -> int:
    """Wait for the end of a process, or stop it in time; return its exit code, or minus the signal that ended it."""
    if stop is None:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    before = _written(stop.written)
    end = None if stop.written else time.monotonic() + stop.seconds
    while end is None or time.monotonic() < end:
        pid, status = os.waitpid(process, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if end is None and _written(stop.written) != before:
            end = time.monotonic() + stop.seconds
        time.sleep(0.002)
    os.kill(process, stop.signal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _written(out: Path | None) -> list[int]:
    """Return when a model was last written, under its final name or the hidden one."""
    times = []
    for path in () if out is None else (out, out.with_name(f".{out.name}.unfinished")):
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime_ns)
    return times


def whole(words: tuple[str, ...]) -> Ended:
    """Run a command to its end, which must be a good one."""
    ended = run(words)
    if ended.code:
        raise WrongError(f"zsseg {' '.join(words)}: exit code {ended.code}: {ended.stderr}")
    return ended


def make_workspace(folder: Path) -> Path:
    """Make data, labels and split of the tiny data set."""
    write_folder(folder / "set")
    space = ("--workspace", str(folder), "-q")
    whole(("fetch-data", "folder", "--root", str(folder / "set"), *space))
    whole(("embed-labels", "--dim", "6", *space))
    whole(("make-split", "--unseen", "cow,sheep", *space))
    return folder


# --- resume -----------------------------------------------------------------------------------------------------------


def check_resumes(
    space: Path, kills: int, rng: random.Random, names: tuple[str, ...], *, at_most: int
) -> dict[str, object]:
    """Kill each training run up to `at_most` times and resume it to its end: it must be the run never killed.

    Three of four kills come after the first checkpoint that the process writes.
    """
    expected, length = {}, {}
    for name in names:
        out = space / "whole.h5"
        length[name] = whole(("train", *RUNS[name], "--workspace", str(space), "--out", str(out), "--force")).seconds
        expected[name] = digest(out)
    runs: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    out = space / "killed.h5"
    while stages.total() < kills:
        name = names[runs.total() % len(names)]
        words = ("train", *RUNS[name], "--workspace", str(space), "--out", str(out), "-q")
        resume, before = "--force", stages.total()
        for _ in range(min(rng.randint(1, at_most), kills - stages.total())):
            written = out if rng.random() < 0.75 else None
            stop = Stop(signal.SIGKILL, rng.uniform(0.01, 0.7 * length[name]), written)
            ended = run((*words, resume), stop=stop, fresh=stages.total() % 5 == 4)
            if ended.code == 0:
                break
            if ended.code != -signal.SIGKILL:
                raise WrongError(f"{name}: exit code {ended.code}: {ended.stderr}")
            stages[_stage(out)] += 1
            resume = "--resume"
            if digest(out) == expected[name] and _stage(out) == FINISHED:
                break
        if stages.total() > before:
            left: list[str] = []
            if _stage(out) != FINISHED:
                whole((*words, resume))
                left = leftovers(space)
            if digest(out) != expected[name] or left:
                raise WrongError(f"{name}: same model: {digest(out) == expected[name]}, left over: {left}")
            runs[name] += 1
            log(f"{name}: the same model after {stages.total() - before} kills; {stages.total()} of {kills}")
        out.unlink()
    return {"kills": stages.total(), "bit-identical runs": runs, "killed in": stages}


def _stage(out: Path) -> str:
    """Return what a killed run left: the stage that a resume goes on with."""
    path = out.with_name(f".{out.name}.unfinished")
    if not path.exists():
        path = out
    if not path.exists():
        return "before the first checkpoint"
    with open_artifact(path, "model") as artifact:
        if "optimizer" not in artifact:
            return FINISHED
        return f"{artifact.params.get('stage', 'model')}, step {artifact.params['step']}"


# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass
class Target:
    """A command with two variants of its words, and what each writes."""

    name: str
    folder: Path
    outputs: tuple[str, ...]
    variants: tuple[tuple[str, ...], tuple[str, ...]]
    good: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


def targets(space: Path) -> Iterator[Target]:
    """Yield every command that writes, with words for two different results."""
    model = str(space / "model.h5")
    common = ("--workspace", str(space), "--force", "-q")

    def target(name: str, output: str, first: tuple[str, ...], second: tuple[str, ...]) -> Target:
        folder = space / f"out-{name}"
        folder.mkdir()
        out = folder if output.endswith(".png") else folder / output
        verb = name.partition("+")[0]
        words = [(verb, *each, "--out", str(out), *common) for each in (first, second)]
        return Target(name, folder, (output,), (words[0], words[1]))

    photos = ("folder", "--root", str(space / "set"))
    yield target("fetch-data", "data.h5", photos, (*photos, "--limit", "4"))
    yield target("embed-labels", "labels.h5", ("--dim", "6"), ("--dim", "9"))
    yield target("make-split", "split.h5", ("--unseen", "cow"), ("--unseen", "dog,sheep"))
    for number, words in enumerate(RUNS.values()):
        yield target(f"train+{number}", "model.h5", words, (*words, "--seed", "1"))
    yield target("eval", "scores.h5", ("--model", model), ("--model", model, "--seen-bias", "0.3"))
    predict = target("predict", "predictions.h5", ("--model", model), ("--model", model, "--seen-bias", "5"))
    pictures = ("--pictures", str(predict.folder), str(space / "set" / "images"))
    predict.variants = tuple((*words, *pictures) for words in predict.variants)  # type: ignore[assignment]
    yield predict
    yield target("visualize", "pictures.png", (str(space / "data.h5"),), (str(space / "data.h5"), "--limit", "2"))


def check_commands(space: Path, kills: int, rng: random.Random) -> dict[str, object]:
    """Stop commands at random moments; whatever stands under a final name must be whole."""
    whole(("train", *RUNS["frozen, gate"], "--workspace", str(space), "-q"))
    all_targets = list(targets(space))
    for each in all_targets:
        for words in reversed(each.variants):
            each.seconds = whole(words).seconds
            each.good.append({path.name: digest(path) for path in visible(each.folder)})
    counts: Counter[str] = Counter()
    by_signal: Counter[str] = Counter()
    stopped = number = 0
    while stopped < kills:
        each = all_targets[number % len(all_targets)]
        number += 1
        kind = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
        words = each.variants[number % 2]
        ended = run(words, stop=Stop(kind, rng.uniform(0.01, each.seconds)), fresh=number % 5 == 4)
        check_outputs(each, words)
        # Python ends by SIGINT itself where an interrupt went through an import in C
        if ended.code == -kind or (kind != signal.SIGKILL and ended.code in (130, -signal.SIGINT)):
            stopped += 1
            counts[each.name] += 1
            log(f"{each.name}: {kind.name}; {stopped} of {kills}")
            by_signal[kind.name] += 1
            if kind != signal.SIGKILL and ended.code == 130 and "Traceback" in ended.stderr:
                raise WrongError(f"zsseg {' '.join(words)}: {kind.name}: {ended.stderr}")
        elif ended.code:
            raise WrongError(f"zsseg {' '.join(words)}: exit code {ended.code}: {ended.stderr}")
    for each in all_targets:
        whole(each.variants[0])
        if leftovers(each.folder):
            raise WrongError(f"{each.name}: {leftovers(each.folder)} stay after a whole run")
    return {"stopped": stopped, "by signal": by_signal, "by command": counts}


def check_outputs(target: Target, words: tuple[str, ...]) -> None:
    """Check that every output is one of a whole run; a model may be unfinished, and then must open."""
    found = {path.name: digest(path) for path in visible(target.folder)}
    for name in target.good[0].keys() & target.good[1].keys():
        if found.get(name) in [good[name] for good in target.good]:
            continue
        if name != "model.h5":
            raise WrongError(f"zsseg {' '.join(words)}: {name} is {'damaged' if name in found else 'gone'}")
        try:
            with open_artifact(target.folder / name, "model") as model:
                unfinished = "optimizer" in model
        except ZssegError as error:
            raise WrongError(f"zsseg {' '.join(words)}: {error}") from error
        if not unfinished:
            raise WrongError(f"zsseg {' '.join(words)}: another model than that of an unkilled run")


def visible(folder: Path) -> list[Path]:
    """Return the files of a folder under final names."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def leftovers(folder: Path) -> list[str]:
    """Return the hidden files and folders of a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; of none, that of nothing."""
    return hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()


def log(line: str) -> None:
    """Tell on stderr how far it is."""
    sys.stderr.write(f"{line}\n")


def preload() -> None:
    """Load what commands load, without starting a thread, so that forked processes need not."""
    import timm  # noqa: F401  # a second of each command that opens a model

    from zsseg import embed, evaluate, fetch, predict, seeds, split, tables, train, visualize  # noqa: F401


def main() -> None:
    """Run one of the two checks and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=("resume", "commands"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--each", type=int, default=1, help="resume: kills of one run, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=RUNS, action="append", help="resume: these runs alone")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # sums depend on how they are shared out
    preload()
    rng = random.Random(options.seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZSSEG_FEATURES"] = str(Path(folder, "features"))
        space = make_workspace(Path(folder))
        if options.check == "resume":
            names = tuple(options.only or RUNS)
            figures = check_resumes(space, options.kills, rng, names, at_most=options.each)
        else:
            figures = check_commands(space, options.kills, rng)
    figures["seconds"] = round(time.monotonic() - started)
    sys.stdout.write(json.dumps(figures, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    try:
        main()
    except WrongError as wrong:
        sys.exit(f"promise broken: {wrong}")
