"""How fast zsseg is beside what people run today: the table of docs/performance.md.

    python benchmarks/speed.py [--json FILE] [--only NAME[,NAME...]] [--repeats 5]

Needs `pip install zsseg[bench]`, and `pip install --no-deps torchfcn`, whose models do not need its dependencies.

Both sides of a row are processes of their own, which take turns, so that a shared machine disturbs both alike and the
peak memory of each is its own (ru_maxrss, with the libraries). Seconds are medians; a ratio is peer / ours. What both
computed is compared in the same run, within the row's tolerance. Names:

    fcn32s-step-50, fcn8s-forward-100, ...   beside pytorch-fcn as it is (float32, padding of 100, D × D deconvolution)
    nne                                      512 × 512 label map of 21 classes beside upsampling, then cdist
    nne-400k                                 five nearest of 400,000 words on a 64 × 64 grid, beside cdist, then topk
    confusion                                scoring beside torchmetrics
    data                                     data.h5 beside loose files through PIL
    folder                                   `predict` of 64 photos of 500 × 375 with lite0, label maps and overlays as
                                             PNG, beside a loop: read, network in float32, upsample, cdist, save
    eval, eval-222                           `eval` of 64 and of 222 drawn photos in 4 classes beside their forward
                                             passes alone, one after the other, the model in memory
    eval-photos                              the same for the 222 validation photos of voc-animals in 21 classes; only
                                             where $ZSSEG_TEST_DATA (default: ../shared/data) has them
    growth                                   seconds against pixels, classes, dims and images, memory against images,
                                             and the slope on logarithmic axes (1: linear); no peer
    waiting                                  share of fine-tuning's time that a step waits for its batch; no peer
    layers                                   milliseconds of FCN's 3 × 3 convolutions at 512 × 384, as PyTorch does them
                                             and with Winograd's scheme for the precision; outputs, then the gradients
                                             of input and kernels together; no peer, only on a processor
    gpu                                      training of fcn8s and lite0 at batch 1 to 64, nearest of 21 to 400,000
                                             classes; only where there is a GPU; no peer
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from zsseg import bilinear, losses
from zsseg.artifacts import create, open_artifact
from zsseg.dataset import LABEL_STRIDE, normalise, read_image, sample_labels
from zsseg.hardware import autocast, choose_device, choose_precision, keep_freed_memory
from zsseg.images import decode_label_map, encode_label_map
from zsseg.inference import label_map, nearest_classes, nne_scores
from zsseg.metrics import confusion
from zsseg.models import build, winograd
from zsseg.models.rounding import to_bfloat16
from zsseg.optimizer import AdamW
from zsseg.state import set_mode
from zsseg.winners import ScoreGrid

HEIGHT, WIDTH, CLASSES = 375, 500, 21
PHOTOS = 64
DEVICE = choose_device("auto")
Side = tuple[Callable[[], Any], str]  # one run of the work, whose result is compared
FCN = [(model, work) for model in ("fcn32s", "fcn8s") for work in ("step", "forward")]
ROWS = [f"{model}-{work}-{dim}" for model, work in FCN for dim in (20, 50, 100)]
ROWS += ["nne", "nne-400k", "confusion", "data", "folder", "eval", "eval-222", "eval-photos"]
ALONE = ["growth", "waiting", "layers", "gpu"]  # without a peer
ANIMALS = Path(os.environ.get("ZSSEG_TEST_DATA", "../shared/data")) / "voc-animals/VOC2012"
TOLERANCE = {
    "step": "first loss within 1 %", "forward": "shape of the output", "nne": "99.99 % of the pixels",
    "nne-400k": "99.9 % of the words", "confusion": "equal", "data": "equal",
    "folder": "97 % of the pixels (bfloat16 beside float32)", "eval": "number of photos",
    "eval-222": "number of photos", "eval-photos": "number of photos",
}  # fmt: skip


def main() -> None:
    """Run the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help="the row of this name, else those whose name begins so; several, by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", nargs=2, metavar=("ROW", "WHO"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        serve(*given.side)
        return
    wanted = chosen(given.only.split(",")) if given.only else [*ROWS, *ALONE]
    if not wanted:
        parser.error(f"--only {given.only}: no such row; there are {', '.join([*ROWS, *ALONE])}")
    if "eval-photos" in wanted and not ANIMALS.is_dir():
        print(f"eval-photos: left out, no photos at {ANIMALS}; set ZSSEG_TEST_DATA", file=sys.stderr)
        wanted.remove("eval-photos")
    about = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(about)
    print("| row | ours, s | peer, s | ratio | ours, MB | peer, MB | same | tolerance |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for name in ROWS:
        if name in wanted:
            rows.append(row(name, given.repeats))
            print(as_line(rows[-1]), flush=True)
    growth = growth_curves() if "growth" in wanted else {}
    waiting = data_wait() if "waiting" in wanted else None
    layers = layer_rows(given.repeats) if DEVICE.type == "cpu" and "layers" in wanted else []
    gpu = gpu_rows() if DEVICE.type == "cuda" and "gpu" in wanted else []
    if given.json:
        given.json.write_text(
            json.dumps(
                {"machine": about, "rows": rows, "growth": growth, "waiting": waiting, "layers": layers, "gpu": gpu},
                indent=1,
            )
        )
    for name, curve in growth.items():
        (first, low), (last, high) = curve[0], curve[-1]
        slope = np.log(high / low) / np.log(last / first)
        print(f"{name}: " + ", ".join(f"{size:,}: {value:.4g}" for size, value in curve) + f"; slope {slope:.2f}")
    if waiting is not None:
        print(f"waiting for data: {100 * waiting:.1f} % of a step")
    for each in [*layers, *gpu]:
        print(each)


def as_line(found: dict[str, Any]) -> str:
    """Return a row as the table shows it."""
    seconds = f"{found['ours']:.4g} | {found['peer']:.4g}"
    sizes = f"{found['ratio']:.3g} | {found['ours_mb']:.0f} | {found['peer_mb']:.0f}"
    return f"| {found['name']} | {seconds} | {sizes} | {found['same']} | {found['tolerance']} |"


def chosen(names: list[str]) -> list[str]:
    """Return the rows of these names; a name that is none stands for all that begin so."""
    known = [*ROWS, *ALONE]
    return [each for name in names for each in ([name] if name in known else [k for k in known if k.startswith(name)])]


def row(name: str, repeats: int) -> dict[str, Any]:
    """Let both sides of a row take turns."""
    sides = {who: Process(name, who) for who in ("ours", "peer")}
    for _ in range(repeats + 1):
        for side in sides.values():
            side.once()
    ours, peer = (statistics.median(side.seconds[1:]) for side in sides.values())
    results = [side.finish() for side in sides.values()]
    work = name if name in TOLERANCE else name.split("-")[1]
    return {
        "name": name, "ours": ours, "peer": peer, "ratio": peer / ours, "ours_mb": results[0]["mb"],
        "peer_mb": results[1]["mb"], "same": agree(work, results[0]["result"], results[1]["result"]),
        "tolerance": TOLERANCE[work],
    }  # fmt: skip


class Process:
    """One side of a row in a process of its own."""

    def __init__(self, name: str, who: str) -> None:
        command = [sys.executable, __file__, "--side", name, who]
        self.seconds: list[float] = []
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def once(self) -> None:
        """Let it work once."""
        self.seconds.append(self._ask("go"))

    def finish(self) -> dict[str, Any]:
        """Return its peak memory and its result."""
        answer: dict[str, Any] = self._ask("end")
        self._process.wait()
        return answer

    def _ask(self, word: str) -> Any:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def serve(name: str, who: str) -> None:
    """Be one side of a row: work once for each line that comes."""
    if who == "ours" or name.startswith("eval"):  # whose peer is the network as zsseg runs it
        keep_freed_memory()
    torch.manual_seed(0)
    work = make(name, who)
    print("0", flush=True)
    result: Any = None
    for line in sys.stdin:
        if line.strip() == "end":
            break
        start = time.perf_counter()
        found = work()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)
        result = found if result is None else result  # of the first run: later training steps differ
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if DEVICE.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({"mb": memory, "result": np.asarray(result).tolist()}), flush=True)


def make(name: str, who: str) -> Callable[[], Any]:
    """Return the work of one side."""
    if name.startswith("fcn"):
        model, work, dim = name.split("-")
        return (our_fcn if who == "ours" else peer_fcn)(model, work, int(dim))
    return {
        "nne": nne,
        "nne-400k": nearest_words,
        "confusion": scoring,
        "data": data_path,
        "folder": folder,
        "eval": functools.partial(scored, functools.partial(workspace, photos=PHOTOS + 8)),
        "eval-222": functools.partial(scored, functools.partial(workspace, photos=222 + 8)),
        "eval-photos": functools.partial(scored, animals),
    }[name](who == "ours")


def agree(work: str, ours: Any, peer: Any) -> bool:
    """Compare the results of both sides."""
    one, two = np.asarray(ours), np.asarray(peer)
    match work:
        case "step":
            return bool(abs(one - two) <= 0.01 * abs(two))
        case "nne" | "nne-400k" | "folder":
            return bool((one == two).mean() >= {"nne": 0.9999, "nne-400k": 0.999, "folder": 0.97}[work])
        case _:
            return bool(np.array_equal(one, two))


# --- FCN --------------------------------------------------------------------------------------------------------------


def photo() -> tuple[Tensor, Tensor, Tensor]:
    """Return a photo, uint8 (1, H, W, 3), its labels in blocks, (1, H, W), and a maker of class vectors' noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (HEIGHT // 25, WIDTH // 25)).repeat(25, 0).repeat(25, 1)
    pixels = rng.integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return (
        torch.from_numpy(pixels).to(DEVICE),
        torch.from_numpy(labels)[None].to(DEVICE),
        torch.arange(CLASSES).to(DEVICE),
    )


def unit_vectors(dim: int) -> Tensor:
    """Return class vectors of length 1."""
    drawn = torch.randn(CLASSES, dim, generator=torch.Generator().manual_seed(1))
    return F.normalize(drawn, dim=1).to(DEVICE)


def our_fcn(model: str, work: str, dim: int) -> Callable[[], Any]:
    """Return a training step or forward pass as `zsseg train` does it."""
    net = build(model, dim).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[arg-type]
    set_mode(net, training=work == "step")
    precision = choose_precision("auto", DEVICE)
    if work == "forward":  # as `load_model` does
        to_bfloat16(net) if precision == "bfloat16" else net.fold()
    pixels, labels, seen = photo()
    vectors = unit_vectors(dim)
    sampled = torch.from_numpy(sample_labels(labels[0].cpu().numpy().astype(np.uint8)))[None].to(DEVICE)
    optimizer = AdamW(net, [{"params": list(net.parameters())}], lr=1e-4)

    def outputs() -> Tensor:
        with autocast(precision, DEVICE):
            return net(normalise(pixels, net.mean, net.std)).float()

    def step() -> float:
        grid = outputs()
        height, width = (length * net.stride // LABEL_STRIDE for length in grid.shape[2:])
        padded = F.pad(sampled, (0, width - sampled.shape[2], 0, height - sampled.shape[1]), value=255)
        loss = losses.mse(grid, padded, vectors, seen)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    def forward() -> list[int]:
        with torch.inference_mode():
            grid = outputs()
            size = [length * net.stride for length in grid.shape[2:]]
            return [*bilinear.upsample(grid, torch.Size(size))[:, :, :HEIGHT, :WIDTH].shape]

    return step if work == "step" else forward


def peer_fcn(model: str, work: str, dim: int) -> Callable[[], Any]:
    """Return the same of pytorch-fcn, with the same loss on its full-size output."""
    sys.modules.setdefault("fcn", types.ModuleType("fcn"))  # downloads weights, and needs chainer
    package = types.ModuleType("torchfcn")
    import importlib.util

    spec = importlib.util.find_spec("torchfcn")
    assert spec is not None
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["torchfcn"] = package  # its __init__ asks for scikit-image and more, its models do not
    from torchfcn.models import FCN8s, FCN32s  # type: ignore[import-not-found]

    net = {"fcn32s": FCN32s, "fcn8s": FCN8s}[model](n_class=dim).to(DEVICE).train(work == "step")
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels != dim:
            torch.nn.init.kaiming_normal_(module.weight)
    pixels, labels, _ = photo()
    vectors = unit_vectors(dim)
    images = (pixels.permute(0, 3, 1, 2).float() - 128).contiguous()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-10, momentum=0.99, weight_decay=5e-4)  # its own example's

    def step() -> float:
        targets = vectors[labels].permute(0, 3, 1, 2)
        loss = (net(images) - targets).square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def forward() -> list[int]:
        with torch.no_grad():
            return [*net(images).shape]

    return step if work == "step" else forward


# --- prediction, scoring, data ----------------------------------------------------------------------------------------


def nne(ours: bool) -> Callable[[], Any]:
    """Return the label map of 512 × 512 pixels from 50-dim embeddings on a 64 × 64 grid."""
    maps, vectors = torch.randn(1, 50, 64, 64).to(DEVICE), torch.randn(CLASSES, 50).to(DEVICE)

    def by_grid() -> Any:
        return label_map(ScoreGrid(nne_scores(maps[0], vectors), 8, (512, 512), (512, 512)))

    def by_pixel() -> Any:
        fine = F.interpolate(maps, size=(512, 512), mode="bilinear", align_corners=False)
        return torch.cdist(fine[0].flatten(1).T, vectors).argmin(dim=1).reshape(512, 512).cpu().numpy()

    return torch.inference_mode()(by_grid if ours else by_pixel)


def nearest_words(ours: bool) -> Callable[[], Any]:
    """Return the five nearest of 400,000 words for each of 64 × 64 cells."""
    cells, words = torch.randn(64 * 64, 50).to(DEVICE), F.normalize(torch.randn(400_000, 50), dim=1).to(DEVICE)

    def by_distance() -> Any:
        found = [torch.cdist(part, words).topk(5, largest=False).indices for part in cells.split(256)]
        return torch.cat(found).cpu().numpy()

    return torch.inference_mode()((lambda: nearest_classes(cells, words, 5)[1].cpu().numpy()) if ours else by_distance)


def scoring(ours: bool) -> Callable[[], Any]:
    """Return the confusion matrix of sixteen label maps."""
    rng = np.random.default_rng(0)
    truth, found = (rng.integers(0, CLASSES, (16, HEIGHT, WIDTH), dtype=np.uint8) for _ in range(2))
    truth[:, :20] = 255

    def by_torchmetrics() -> Any:
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        pairs = zip(torch.from_numpy(found).long(), torch.from_numpy(truth).long(), strict=True)
        return sum(multiclass_confusion_matrix(a, b, CLASSES, ignore_index=255) for a, b in pairs).numpy()

    return (
        (lambda: sum(confusion(a, b, CLASSES) for a, b in zip(truth, found, strict=True))) if ours else by_torchmetrics
    )


def data_path(ours: bool) -> Callable[[], Any]:
    """Return the sum of all pixels and labels of `PHOTOS` photos read from the disk."""
    folder = tempfile.TemporaryDirectory()
    root, rng = Path(folder.name), np.random.default_rng(0)
    photos, maps = [], []
    for _ in range(PHOTOS):
        buffer = io.BytesIO()
        smooth_photo(rng).save(buffer, format="JPEG", quality=90)
        photos.append(buffer.getvalue())
        maps.append(encode_label_map(rng.integers(0, CLASSES, (15, 20), dtype=np.uint8).repeat(25, 0).repeat(25, 1)))
    for index in range(PHOTOS):
        (root / f"{index}.jpg").write_bytes(photos[index])
        (root / f"{index}.png").write_bytes(maps[index])
    with create(root / "data.h5", "data", params={}, inputs={}) as writer:
        writer.put("names", [str(index) for index in range(CLASSES)])
        writer.put("ids", [str(index) for index in range(PHOTOS)])
        writer.put("images", photos)
        writer.put("label_maps", maps)
        writer.put("sizes", np.tile([HEIGHT, WIDTH], (PHOTOS, 1)))
        writer.put("train", np.arange(PHOTOS))
        writer.put("val", [])
    data = open_artifact(root / "data.h5", "data", verify=False)

    def from_artifact() -> list[int]:
        pairs = [(read_image(data, i), decode_label_map(data.bytes_at("label_maps", i), "")) for i in range(PHOTOS)]
        return [sum(int(array.sum()) for array in each) for each in zip(*pairs, strict=True)]

    def from_files() -> list[int]:
        pairs = [
            (np.array(Image.open(root / f"{i}.jpg").convert("RGB")), np.array(Image.open(root / f"{i}.png")))
            for i in range(PHOTOS)
        ]
        return [sum(int(array.sum()) for array in each) for each in zip(*pairs, strict=True)]

    def work() -> list[int]:
        assert folder  # lives as long as this does
        return from_artifact() if ours else from_files()

    return work


def smooth_photo(rng: np.random.Generator) -> Image.Image:
    """Return coloured clouds of a photo's size."""
    return Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))


def workspace(root: Path, photos: int) -> Path:
    """Train lite0 without a gate on drawn photos in four classes, half of them for validation; return the model."""
    rng = np.random.default_rng(0)
    names = [f"{index:04}" for index in range(photos)]
    for part in ("images", "masks"):
        (root / "set" / part).mkdir(parents=True)
    for name in names:
        smooth_photo(rng).save(root / "set/images" / f"{name}.jpg", quality=90)
        blocks = rng.integers(0, 4, (3, 4), dtype=np.uint8).repeat(125, 0).repeat(125, 1)
        Image.fromarray(blocks).save(root / "set/masks" / f"{name}.png")
    (root / "set/classes.txt").write_text("background\ncow\nsheep\nhorse\n")
    (root / "set/train.txt").write_text("\n".join(names[:8]) + "\n")
    (root / "set/val.txt").write_text("\n".join(names[8:]) + "\n")
    return trained(root, "--dim", "10", "--unseen", "sheep", "--epochs", "1")


def trained(root: Path, *options: str) -> Path:
    """Import the photos of `root`/set and train plain lite0 on them; return the model."""
    train = ["train", "--no-gate", "--calibration", "none", *options]
    for words in (["fetch-data", "folder", "--root", str(root / "set")], train):
        command = [sys.executable, "-m", "zsseg", *words, "--quiet", "--workspace", str(root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return root / "model.h5"


def folder(ours: bool) -> Callable[[], Any]:
    """Return every fourth pixel of the label maps of a folder of photos."""
    from zsseg.config import PredictConfig
    from zsseg.inference import load_model
    from zsseg.predict import predict

    place = tempfile.TemporaryDirectory()
    root = Path(place.name)
    model = workspace(root, PHOTOS)
    loaded = load_model(model, device=DEVICE.type, precision="float32")
    out = root / "pictures"
    out.mkdir(exist_ok=True)

    def by_loop() -> None:
        assert loaded.vectors is not None
        for path in sorted((root / "set/images").iterdir()):
            pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))[None].to(DEVICE)
            grid = loaded.net(normalise(pixels, loaded.net.mean, loaded.net.std))
            fine = F.interpolate(grid, scale_factor=loaded.net.stride, mode="bilinear")[0, :, :HEIGHT, :WIDTH]
            labels = torch.cdist(fine.flatten(1).T, loaded.vectors).argmin(dim=1).reshape(HEIGHT, WIDTH)
            Image.fromarray(labels.cpu().numpy().astype(np.uint8)).save(out / f"{path.stem}.png")

    def work() -> list[Any]:
        assert place  # lives as long as this does
        if ours:
            predict([root / "set/images"], model, root / "found.h5", out, PredictConfig(), force=True)
        else:
            torch.inference_mode()(by_loop)()
        return [np.array(Image.open(out / f"{index:04}.png"))[::4, ::4].tolist() for index in range(PHOTOS)]

    return work


def animals(root: Path) -> Path:
    """Train lite0 without a gate on every eighth training photo of voc-animals; return the model."""
    lists = ANIMALS / "ImageSets/Segmentation"
    copied = root / "set/ImageSets/Segmentation"
    copied.mkdir(parents=True)
    for name in ("JPEGImages", "SegmentationClass", "classes.txt"):
        (root / "set" / name).symlink_to((ANIMALS / name).resolve())
    few = (lists / "train.txt").read_text().split()[::8]
    (copied / "train.txt").write_text("\n".join(few) + "\n")
    (copied / "val.txt").write_text((lists / "val.txt").read_text())
    return trained(root, "--dim", "50", "--unseen", "cow,sheep", "--epochs", "3")


def scored(make: Callable[[Path], Path], ours: bool) -> Callable[[], Any]:
    """Return how many validation photos were scored, by the command or by the network alone, of the model made."""
    from zsseg.config import EvalConfig
    from zsseg.evaluate import evaluate
    from zsseg.inference import load_model, score_image

    place = tempfile.TemporaryDirectory()
    root = Path(place.name)
    model = make(root)
    loaded = load_model(model, device=DEVICE.type)
    with open_artifact(root / "data.h5", "data") as data:
        photos = [read_image(data, index) for index in data.array("val").tolist()]

    def work() -> list[int]:
        assert place
        if ours:
            return [evaluate(model, root / "data.h5", root / "scores.h5", EvalConfig(), force=True).images]
        return [len([score_image(loaded, photo, max_side=1024) for photo in photos])]

    return work


def data_wait() -> float:
    """Return the share of the time of fine-tuning lite0 at batch 8 that a step waits for its batch."""
    from zsseg.batches import batch_positions, image_batches
    from zsseg.config import TrainConfig

    with tempfile.TemporaryDirectory() as place:
        workspace(Path(place), PHOTOS)
        with open_artifact(Path(place) / "data.h5", "data") as data:
            chosen = data.array("val")
        positions = batch_positions(chosen, batch=8, epochs=2, seed=0)
        workers = TrainConfig().workers
        batches = image_batches(Path(place) / "data.h5", positions, unseen=[2], crop=320, seed=0, workers=workers)
        step = training_step("lite0", 50)
        start, waited = 0.0, 0.0
        for number in range(len(positions)):
            before = time.perf_counter()
            images, labels = next(batches)
            if number == 2:  # the worker has started by now
                start = before
            if start:
                waited += time.perf_counter() - before
            step(images.to(DEVICE), labels.to(DEVICE))
        return waited / (time.perf_counter() - start)


def training_step(model: str, dim: int) -> Callable[[Tensor, Tensor], None]:
    """Return a training step of a whole network on uint8 images and their labels at every fourth pixel."""
    net = build(model, dim).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[arg-type]
    set_mode(net, training=True)
    precision = choose_precision("auto", DEVICE)
    vectors, seen = unit_vectors(dim), torch.arange(CLASSES).to(DEVICE)
    optimizer = AdamW(net, [{"params": list(net.parameters())}], lr=1e-4)

    def step(images: Tensor, labels: Tensor) -> None:
        with autocast(precision, DEVICE):
            grid = net(normalise(images, net.mean, net.std))
        height, width = (length * net.stride // LABEL_STRIDE for length in grid.shape[2:])
        padded = F.pad(labels, (0, width - labels.shape[2], 0, height - labels.shape[1]), value=255)
        loss = losses.mse(grid.float(), padded, vectors, seen)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def layer_rows(repeats: int) -> list[dict[str, Any]]:
    """Return milliseconds of FCN's layers, plainly and by Winograd's scheme in turns, whether or not that is in use."""
    keep_freed_memory()
    narrow = choose_precision("auto", DEVICE) == "bfloat16"
    dtype, scheme = (torch.bfloat16, winograd.F2) if narrow else (torch.float32, winograd.F4)
    return [
        layer_row(*layer, dtype, scheme, repeats)
        for layer in [
            (64, 64, 384, 512),
            (128, 128, 192, 256),
            (256, 256, 96, 128),
            (512, 512, 48, 64),
            (512, 512, 24, 32),
        ]
    ]


def layer_row(
    inputs: int, outputs: int, height: int, width: int, dtype: torch.dtype, scheme: winograd.Scheme, repeats: int
) -> dict[str, Any]:
    """Return the medians of one layer, and how far its outputs by the scheme are from a plain convolution's."""
    conv = torch.nn.Conv2d(inputs, outputs, 3, padding=1).to(memory_format=torch.channels_last)
    maps = torch.randn(1, inputs, height, width).relu().to(dtype, memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(1, outputs, height, width).to(dtype, memory_format=torch.channels_last)

    def by_scheme() -> Tensor:
        return winograd._Convolution.apply(maps, conv.weight, conv.bias, scheme, True)

    def plainly() -> Tensor:
        with autocast("bfloat16" if dtype == torch.bfloat16 else "float32", DEVICE):
            return conv(maps)

    times: dict[str, list[float]] = {}
    found = {}
    for _ in range(repeats + 1):
        for name, work in (("plain", plainly), ("scheme", by_scheme)):
            start = time.perf_counter()
            found[name] = work()
            middle = time.perf_counter()
            torch.autograd.grad(found[name], [maps, conv.weight], gradient)
            times.setdefault(f"{name}, outputs", []).append(1000 * (middle - start))
            times.setdefault(f"{name}, gradients", []).append(1000 * (time.perf_counter() - middle))
    off = (found["scheme"] - found["plain"]).float().norm() / found["plain"].float().norm()
    medians = {name: round(statistics.median(each[1:]), 1) for name, each in times.items()}
    return {
        "layer": f"{inputs} to {outputs}, {width} × {height}",
        "dtype": str(dtype),
        **medians,
        "off": float(f"{off:.2g}"),
    }


def gpu_rows() -> list[dict[str, Any]]:
    """Return images per second, share of the bfloat16 peak and memory of training; microseconds of label maps."""
    from torch.utils.flop_counter import FlopCounterMode  # 70 MB, which the rows of the peers shall not count

    square = torch.randn(8192, 8192, dtype=torch.bfloat16, device=DEVICE)
    peak = (
        2 * 8192**3 / median_seconds(functools.partial(torch.mm, square, square), times=10)
    )  # what a product of matrices reaches here
    rows: list[dict[str, Any]] = [{"name": "matrix product of 8192", "flops": peak}]
    for model, batch in [(model, 2**power) for model in ("fcn8s", "lite0") for power in range(7)]:
        torch.cuda.reset_peak_memory_stats()
        step = training_step(model, 50)
        images = torch.randint(0, 256, (batch, HEIGHT, WIDTH, 3), dtype=torch.uint8, device=DEVICE)
        labels = torch.randint(
            0, CLASSES, (batch, -(-HEIGHT // LABEL_STRIDE), -(-WIDTH // LABEL_STRIDE)), device=DEVICE
        )
        with FlopCounterMode(display=False) as counter:
            step(images, labels)
        seconds = median_seconds(functools.partial(step, images, labels), times=10)
        share = counter.get_total_flops() / seconds / peak
        memory = torch.cuda.max_memory_allocated() / 2**20
        rows.append({"name": f"{model} batch {batch}", "images/s": batch / seconds, "of peak": share, "MB": memory})
        del step
    cells = torch.randn(64 * 64, 50, device=DEVICE)
    for classes in (21, 171, 1000, 10_000, 400_000):
        words = F.normalize(torch.randn(classes, 50, device=DEVICE), dim=1)
        torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode():
            seconds = median_seconds(functools.partial(nearest_classes, cells, words, 5), times=10)
        memory = torch.cuda.max_memory_allocated() / 2**20
        rows.append({"name": f"five nearest of {classes:,} on 64 × 64", "seconds": seconds, "MB": memory})
    return rows


def median_seconds(work: Callable[[], Any], times: int) -> float:
    """Return the median seconds of some work, after two rounds that do not count."""
    taken = []
    for _ in range(times + 2):
        start = time.perf_counter()
        work()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def growth_curves() -> dict[str, list[tuple[int, float]]]:
    """Return seconds of label maps against pixels, classes, dims, words; of `predict` and its MB against images."""

    def of_map(side: int, classes: int, dim: int) -> float:
        maps, vectors = torch.randn(dim, side // 8, side // 8).to(DEVICE), torch.randn(classes, dim).to(DEVICE)
        return median_seconds(
            lambda: label_map(ScoreGrid(nne_scores(maps, vectors), 8, (side, side), (side, side))), times=5
        )

    def of_words(count: int) -> float:
        cells, words = torch.randn(64 * 64, 50).to(DEVICE), F.normalize(torch.randn(count, 50), dim=1).to(DEVICE)
        return median_seconds(lambda: nearest_classes(cells, words, 5), times=3)

    with torch.inference_mode():
        return many_images() | {
            "pixels": [(side**2, of_map(side, CLASSES, 50)) for side in (256, 512, 1024, 2048)],
            "classes": [(classes, of_map(512, classes, 50)) for classes in (21, 60, 120, 240)],
            "dims": [(dim, of_map(512, CLASSES, dim)) for dim in (20, 50, 100, 300)],
            "words": [(count, of_words(count)) for count in (1000, 10_000, 100_000, 400_000)],
        }


def many_images() -> dict[str, list[tuple[int, float]]]:
    """Return seconds of `predict` and its peak memory so far, in MB, against the number of photos, ascending."""
    from zsseg.config import PredictConfig
    from zsseg.predict import predict

    curves: dict[str, list[tuple[int, float]]] = {"images": [], "MB of images": []}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        model = workspace(root, PHOTOS)
        photos = sorted((root / "set/images").iterdir())
        for count in (8, 8, 16, 32, 64):  # the first one warms up
            start = time.perf_counter()
            predict(photos[:count], model, root / "found.h5", root / "pictures", PredictConfig(), force=True)
            curves["images"].append((count, time.perf_counter() - start))
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            curves["MB of images"].append((count, memory))
    return {name: curve[1:] for name, curve in curves.items()}


def processor() -> str:
    """Return the processor's name."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    known = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in known.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
