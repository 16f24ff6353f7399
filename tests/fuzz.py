"""Feed mutated files to every reader; `make fuzz` runs the whole campaign.

    python tests/fuzz.py --inputs 50000                 spread over all readers, see `SHARES`
    python tests/fuzz.py --only tar --number 17         one input again, with its traceback

Good files are those of `fuzz_files`. An input is one of them with up to three mutations (`mutations`), drawn by (seed,
reader, number).

A reader must come to its end or raise a ZssegError, within 5 seconds of CPU time, with less than 1 GiB in memory all
told, and without a canary. Workers are forked, so that a crash of a library is seen, too. What fails is kept with its
traceback in --keep.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from fuzz_files import CANARY, Space, make_space
from mutations import mutated

from zsseg import archives, checkpoint, evaluate, voc
from zsseg.artifacts import open_artifact
from zsseg.config import EvalConfig
from zsseg.dataset import Position, TrainingSet
from zsseg.errors import ZssegError
from zsseg.features import StoredFeatures
from zsseg.folders import folder_source
from zsseg.images import decode_image, decode_label_map
from zsseg.inference import load_model
from zsseg.info import info
from zsseg.models import build
from zsseg.recipe import of_labels, read_recipe
from zsseg.schema import SCHEMA, Kind
from zsseg.sources import lines
from zsseg.task import read_task
from zsseg.vectors import read_file

SECONDS, MEMORY = 5.0, 1 << 30
# How many of a hundred inputs each reader gets: the slow ones fewer.
SHARES = {
    "data": 12, "labels": 8, "split": 11, "scores": 9, "predictions": 8, "features": 4, "model": 2, "journal": 1,
    "image": 13, "label map": 6, "tar": 8, "zip": 2, "mat": 3, "vectors": 8, "weights": 4, "lists": 1,
}  # fmt: skip

Ended = tuple[str, int, str, str, float]  # reader, number, how it ended, traceback, CPU seconds


# --- readers ----------------------------------------------------------------------------------------------------------


def read(reader: str, path: Path, space: Space) -> None:
    """Read a file as the commands do that take such a file."""
    if reader in SCHEMA:
        _read_artifact(path, reader)  # type: ignore[arg-type]
    match reader:
        case "data":
            with open_artifact(path, "data") as data:
                photos = len(data.strings("ids"))
            photo_set = TrainingSet(path, unseen=(3, 4), crop=32, seed=0)
            for index in range(photos):
                photo_set[Position(0, index)]
        case "labels":
            read_task(space.file("data.h5"), space.file("split.h5"), path, space.task.config)
            with open_artifact(path, "labels") as labels:
                of_labels(labels).project(labels.array("raw"))
        case "split":
            read_task(space.file("data.h5"), path, space.file("labels.h5"), space.task.config)
        case "model":
            load_model(path, device="cpu", precision="float32").predict(np.zeros((32, 32, 3), np.uint8))
            read_recipe(path)
        case "journal":
            out = path.with_name("out.h5")
            checkpoint.recorded_config(out)
            checkpoint.open_journal(space.task, out, resume=True)
        case "scores":
            evaluate.as_json(evaluate.summarise(path, min_images=0, config=EvalConfig(), images=1))
        case "features":
            stored = StoredFeatures(open_artifact(path, "features"))
            for index in stored.images:
                stored.maps(index)
        case "image":
            decode_image(path.read_bytes(), path.name)
            decode_image(path, path.name)
        case "label map":
            decode_label_map(path.read_bytes(), path.name)
        case "tar":
            _read_tar(path)
        case "zip":
            archives.unpack(path, "a.txt", path.with_name("unpacked"))
        case "mat":
            voc._mat_label_map(path.read_bytes(), path.name)
        case "vectors":
            found = read_file(path, wanted=("word30",), frequent=10)
            found.frequent(10)
        case "weights":
            _read_weights(path)
        case "lists":
            _read_lists(path, space)


def _read_artifact(path: Path, kind: Kind) -> None:
    if kind != "features":
        info(path)
    with open_artifact(path, kind) as artifact:
        for name, field in SCHEMA[kind].items():
            if name not in artifact:
                continue
            if field.dtype == "arrays":
                artifact.arrays(name)
            elif field.dtype == "str":
                artifact.strings(name)
            elif field.dtype == "bytes":
                for row in range(artifact.shape(name)[1][0]):
                    artifact.bytes_at(name, row)
            else:
                artifact.array(name)


def _read_tar(path: Path) -> None:
    if voc.identify(path) is None:
        return
    with contextlib.ExitStack() as stack:
        if path.name.startswith("voc"):
            source = stack.enter_context(voc.voc_source(path))
        else:
            source = stack.enter_context(voc.sbd_source(path, path.parent / "scratch", evaluate.SILENT))
        source.prepare([*source.train, *source.val])
        for photo_id in (*source.train, *source.val):
            with contextlib.suppress(ZssegError):  # counted as a bad file, and the next one is read
                source.read(photo_id)


def _read_weights(path: Path) -> None:
    from zsseg.models.weights import _fill_fcn, _from_file

    tensors, source = _from_file(path)
    with torch.device("meta"):
        net = build("fcn32s", 2)
    _fill_fcn(net, tensors, source)  # type: ignore[arg-type]


def _read_lists(path: Path, space: Space) -> None:
    root = path.parent / "set"
    if not root.exists():
        shutil.copytree(space.file("set"), root)
    for name in ("train.txt", "val.txt", "classes.txt"):
        shutil.copyfile(space.file("set") / name, root / name)
    shutil.copyfile(path, root / path.name)
    source = folder_source(root, val_fraction=0.3, seed=0)
    for photo_id in (*source.train[:9], *source.val[:9]):
        with contextlib.suppress(ZssegError):
            source.read(photo_id)
    lines(path.read_bytes().decode("utf-8", "replace"))


# --- the campaign -----------------------------------------------------------------------------------------------------


def make_input(space: Space, reader: str, number: int, seed: int, scratch: Path) -> Path:
    """Write an input, and return its path; the same arguments give the same bytes."""
    rng = random.Random(f"{seed}:{reader}:{number}")
    name, content = rng.choice(space.seeds[reader])
    content = content if number < 3 else mutated(reader, name, content, rng, scratch)
    path = scratch / name
    path.write_bytes(content)
    return path


def check(space: Space, reader: str, number: int, seed: int, scratch: Path) -> tuple[str, str]:
    """Read an input; return how it ended, and the traceback of a failure."""
    path = make_input(space, reader, number, seed, scratch)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process, also in the midst of a library
    ended, trace = "read", ""
    try:
        read(reader, path, space)
    except ZssegError as error:
        ended = f"refused: {type(error).__name__}"
    except Exception as error:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if "/zsseg/" in each.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        ended, trace = f"FAILED: {type(error).__name__} at {where}", traceback.format_exc()
    signal.setitimer(signal.ITIMER_PROF, 0)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY:
        ended = "FAILED: more than 1 GiB"
    if (space.folder / CANARY).exists():
        ended = "FAILED: executed"
    path.unlink(missing_ok=True)
    return ended, trace


def plan(inputs: int, only: str | None) -> list[tuple[str, int]]:
    """Return which inputs are made: of all readers by their share, or of one."""
    if only:
        return [(only, number) for number in range(inputs)]
    counts = {reader: max(1, inputs * share // sum(SHARES.values())) for reader, share in SHARES.items()}
    counts["data"] += inputs - sum(counts.values())
    return [(reader, number) for reader, count in counts.items() for number in range(count)]


def work(space: Space, items: list[tuple[str, int]], seed: int, place: mmap.mmap, out: Path) -> None:
    """Check inputs one after the other, telling in `place` which one it is at, and write down how each ended."""
    limit = 5 * MEMORY + _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # or a bomb would take the machine with it
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with tempfile.TemporaryDirectory() as folder, out.open("a") as log:
        while (at := struct.unpack("q", place[:8])[0]) < len(items):
            before = time.process_time()
            ended, trace = check(space, *items[at], seed, Path(folder))
            log.write(json.dumps([*items[at], ended, trace, time.process_time() - before]) + "\n")
            log.flush()
            place[:8] = struct.pack("q", at + 1)
            if ended.startswith("FAILED: more than 1 GiB") or ended.endswith("executed"):
                (space.folder / CANARY).unlink(missing_ok=True)
                return  # the next worker starts with a clean memory


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def run(space: Space, items: list[tuple[str, int]], seed: int, workers: int) -> list[Ended]:
    """Spread inputs over forked workers; one that dies is noted with the input that it died of, and replaced."""
    outs = [space.folder / f"log-{number}.jsonl" for number in range(workers)]
    parts = [items[number::workers] for number in range(workers)]
    places = [mmap.mmap(-1, 8) for _ in range(workers)]
    alive: dict[int, int] = {}

    def start(number: int) -> None:
        process = os.fork()
        if not process:
            code = 1
            try:
                work(space, parts[number], seed, places[number], outs[number])
                code = 0
            finally:
                os._exit(code)
        alive[process] = number

    for number in range(workers):
        start(number)
    while alive:
        process, status = os.wait()
        number = alive.pop(process)
        at = struct.unpack("q", places[number][:8])[0]
        if status and at < len(parts[number]):
            code = os.waitstatus_to_exitcode(status)
            hung = code == -signal.SIGPROF
            ended = f"FAILED: more than {SECONDS:.0f} s" if hung else f"FAILED: ended by {code}"
            with outs[number].open("a") as log:
                log.write(json.dumps([*parts[number][at], ended, "", SECONDS * hung]) + "\n")
            places[number][:8] = struct.pack("q", at + 1)
        if struct.unpack("q", places[number][:8])[0] < len(parts[number]):
            start(number)
    return [tuple(json.loads(line)) for out in outs if out.exists() for line in out.read_text().splitlines()]


def main() -> None:
    """Run the campaign, or one input again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=SHARES, help="one reader")
    parser.add_argument("--number", type=int, help="one input of --only, with its traceback")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where failures are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZSSEG_FEATURES"] = str(Path(folder, "features"))
        space = make_space(Path(folder))
        if options.number is not None:
            path = make_input(space, options.only, options.number, options.seed, Path(folder, "set"))
            read(options.only, path, space)
            return
        started, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        found = run(space, plan(options.inputs, options.only), options.seed, options.workers)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        failures = [each for each in found if each[2].startswith("FAILED")]
        for reader, number, ended, trace, _ in failures[:200]:
            options.keep.mkdir(exist_ok=True)
            path = make_input(space, reader, number, options.seed, Path(folder, "set"))
            shutil.move(path, options.keep / f"{reader}-{number}-{path.name.strip('.')}")
            (options.keep / f"{reader}-{number}.txt").write_text(f"{ended}\n{trace}")
        figures = {
            "inputs": len(found),
            "by reader": collections.Counter(each[0] for each in found),
            "ended": collections.Counter(each[2].partition(" at ")[0] for each in found),
            "failures": {f"{key[0]}: {key[1]}": sorted(value)[:5] for key, value in _grouped(failures).items()},
            "CPU seconds by reader": {
                reader: round(sum(each[4] for each in found if each[0] == reader), 1) for reader in SHARES
            },
            "longest (CPU seconds)": round(max(each[4] for each in found), 2),
            "largest worker (MiB)": used.ru_maxrss // 1024,
            "CPU seconds": round(used.ru_utime + used.ru_stime),
            "seconds": round(time.monotonic() - started),
        }
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    if failures:
        sys.exit(f"{len(failures)} failures, kept in {options.keep}")


def _grouped(failures: list[Ended]) -> dict[tuple[str, str], list[int]]:
    groups: dict[tuple[str, str], list[int]] = {}
    for reader, number, ended, *_ in failures:
        groups.setdefault((reader, ended), []).append(number)
    return groups


if __name__ == "__main__":
    main()
