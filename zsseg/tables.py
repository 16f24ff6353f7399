"""Summaries of the commands as rich tables and lines; `cli.py` prints them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # the summaries only; their modules load torch
    import numpy as np
    from numpy.typing import NDArray

    from zsseg.audit import Audit
    from zsseg.curve import Curve
    from zsseg.difficulty import Prospect
    from zsseg.embed import EmbedSummary
    from zsseg.evaluate import EvalSummary
    from zsseg.fetch import FetchSummary
    from zsseg.info import InfoSummary
    from zsseg.lr_range import RangeSummary
    from zsseg.metrics import Scores
    from zsseg.predict import PredictSummary
    from zsseg.report import ReportSummary
    from zsseg.seeds import SeedsSummary, Spread
    from zsseg.split import SplitSummary
    from zsseg.sweep import SweepSummary
    from zsseg.train import TrainSummary
    from zsseg.visualize import Previews

SHOWN_SKIPPED = 10
SHOWN_PREDICTIONS = 20
SHOWN_IMAGENET = 2
SHOWN_TRIALS = 30
RANGE_ROWS = 13  # of a learning-rate range test
SHOWN_CHARACTERS = 160  # of a setting
LETTERS = ".abcdefghijklmnopqrstuvwxyz0123456789"  # of a preview without colours, the largest class first


def fetched(summary: FetchSummary) -> RenderableType:
    """Return what fetch-data wrote."""
    lines: list[RenderableType] = [
        Text(
            f"{summary.path}: {summary.train} training and {summary.val} validation images, "
            f"{len(summary.names)} classes"
        )
    ]
    return Group(*lines, *_skipped(summary.skipped))


def embedded(summary: EmbedSummary) -> RenderableType:
    """Return each class's words and nearest classes."""
    table = _table("class", "words", "nearest classes (cosine)")
    for name, words, nearest in zip(summary.names, summary.words, summary.nearest, strict=True):
        table.add_row(
            escape(name), escape(words), escape(", ".join(f"{other} {cosine:.2f}" for other, cosine in nearest))
        )
    line = (
        f"{summary.path}: {len(summary.names)} class vectors of {summary.dim} dims from {summary.source}; "
        f"PCA of {summary.population} keeps {summary.explained:.0%} of their variance"
    )
    return Group(table, *([] if summary.report is None else _audited(summary.report)), Text(line))


def _audited(report: Audit) -> list[RenderableType]:
    """Return hubs and rank agreement."""
    hubs = _table("class", right=tuple(f"N_{k}" for k in report.occurrence))
    for index, name in enumerate(report.names):
        hubs.add_row(escape(name), *(str(counts[index]) for counts in report.occurrence.values()))
    hubs.add_row("skewness", *(_score(value) for value in report.skewness.values()), style="bold")
    agreement = _table("source", "source", right=("rank agreement",))
    for one, other, rho in report.agreement:
        agreement.add_row(escape(one), escape(other), _score(rho))
    title = "hubs: how many classes have this one as their nearest, and among their 3 nearest"
    return [Text(title), hubs, Text("Spearman's correlation of likenesses over all pairs of classes"), agreement]


def split(summary: SplitSummary) -> RenderableType:
    """Return what remains of each class."""
    table = _table("class", "", right=("train images", "train pixels", "hidden pixels"))
    for name, images, pixels, hidden in zip(summary.names, summary.images, summary.pixels, summary.hidden, strict=True):
        mark = "unseen" if name in summary.unseen else ""
        table.add_row(escape(name), mark, f"{images:,}", f"{pixels:,}", f"{hidden:,}", style="yellow" if mark else None)
    line = (
        f"{summary.path}: {len(summary.seen)} seen and {len(summary.unseen)} unseen classes; policy {summary.policy} "
        f"keeps {summary.train_after:,} of {summary.train_before:,} training images; {summary.val:,} validation images"
    )
    lines = [Text(line)]
    if summary.train_empty:
        lines.append(Text(f"{summary.train_empty:,} training images show no seen class"))
    return Group(table, *([_prospects(summary.audit)] if summary.audit else []), *lines)


def _prospects(audit: Sequence[Prospect]) -> Table:
    """Return how hard each unseen class will be."""
    columns = ("unseen class", "verdict", "nearest seen (cosine; its images)", "in WordNet", "ImageNet-1k has")
    table = _table(*columns, right=("hidden images", "hidden pixels"))
    for each in audit:
        table.add_row(
            escape(each.name),
            each.verdict,
            escape(f"{each.nearest} {each.cosine:.2f}; {each.nearest_images:,}") if each.nearest else "–",
            escape(f"{each.relative} {each.wu_palmer:.2f}") if each.relative else "–",
            escape(_few(each.imagenet)),
            f"{each.hidden_images:,}",
            f"{each.hidden_pixels:,}",
        )
    return table


def _few(names: Sequence[str] | None) -> str:
    """Return the first few names and how many more there are; of None that it is not known."""
    if names is None:
        return "not known"
    more = f" and {len(names) - SHOWN_IMAGENET} more" if len(names) > SHOWN_IMAGENET else ""
    return ", ".join(names[:SHOWN_IMAGENET]) + more or "–"


def trained(summary: TrainSummary) -> RenderableType:
    """Return how the loss fell."""
    settings = summary.settings
    kind = f"{settings['model']} with {settings['loss']} loss" + (", frozen backbone" if settings["frozen"] else "")
    line = (
        f"{summary.path}: {kind}, {summary.steps:,} of {summary.total_steps:,} steps; "
        f"loss {summary.first_loss:.3f} → {summary.last_loss:.3f}"
    )
    if not math.isnan(summary.val_seen_miou):
        line += f"; mIoU of seen classes on a few validation images {summary.val_seen_miou:.3f}"
    backbone = Text(f"backbone weights: {summary.pretrained}", style="dim")
    return Group(Text(line), *_calibrated(settings), *_pseudo_labelled(settings), backbone, *_overlap(settings))


def _overlap(settings: dict[str, Any]) -> list[Text]:
    """Return what the backbone's ImageNet weights have seen of the unseen classes."""
    overlap = settings.get("imagenet_overlap")
    if not overlap:
        return []
    seen = [f"{name} as {_first_few(found)}" for name, found in overlap.items() if found]
    rest = [name for name, found in overlap.items() if found == []]
    unknown = [name for name, found in overlap.items() if found is None]
    said = [f"have seen {'; '.join(seen)}"] if seen else []
    said += [f"have not seen {', '.join(rest)}"] if rest else []
    said += [f"may have seen {', '.join(unknown)} (not in the built-in table, no WordNet at hand)"] if unknown else []
    return [Text(f"of the unseen classes the backbone's ImageNet labels {', and '.join(said)}", style="dim")]


def _calibrated(settings: dict[str, Any]) -> list[Text]:
    """Return how the calibration was chosen."""
    choice = settings.get("calibration_choice")
    if choice is None:
        return []
    seen = f"{choice['seen_miou_before']:.3f} → {choice['seen_miou']:.3f}"
    if choice["validation_classes"]:
        names = ", ".join(choice["validation_classes"])
        hidden = f"mIoU of these {choice['hidden_miou']:.3f}"
        how = f"in a probe that never saw {names}, {hidden}, of its seen classes {seen}"
    else:
        how = f"mIoU of seen classes on {choice['photos']} training photos {seen}"
    return [Text(f"calibration {settings['calibration']}, parameter {choice['parameter']:.3g}: {how}")]


def _pseudo_labelled(settings: dict[str, Any]) -> list[Text]:
    """Return how a self-trained model came about."""
    record = settings.get("self_training")
    if record is None:
        return []
    counts = ", ".join(f"{count:,} of {name}" for name, count in record["pixels"].items())
    kept = settings["calibration"] == "none" or settings["self_train"] == "anywhere"
    after = "" if kept else "; the calibration is of the first model alone"
    return [
        Text(
            f"{_self_trained(settings)}, rounds: {settings['rounds']}; pixels with pseudo-labels in "
            f"{record['photos_labelled']:,} of {record['photos']:,} photos: {counts}{after}"
        )
    ]


def _self_trained(settings: dict[str, Any]) -> str:
    """Return the words that every record of a self-trained model carries; empty for another model."""
    match settings.get("self_train", "none"):
        case "void":
            return "self-trained on void pixels (transductive)"
        case "anywhere":
            return "self-trained anywhere, blind (transductive)"
    return ""


def rate_found(summary: RangeSummary) -> RenderableType:
    """Return the curve of a range test at some rates, and what it speaks for."""
    table = _table(right=("learning rate", "smoothed loss"))
    count = len(summary.rates)
    for place in sorted({round(row * (count - 1) / (RANGE_ROWS - 1)) for row in range(RANGE_ROWS)}):
        table.add_row(f"{summary.rates[place]:.1e}", f"{summary.losses[place]:.3f}")
    end = "the loss rose" if summary.diverged else "the loss never rose much"
    line = (
        f"{summary.picture}: {count} steps until {end}; least loss at {summary.lowest:.1e}, steepest at "
        f"{summary.steepest:.1e}"
    )
    return Group(
        table, Text(line), Text(f"suggested: --lr {summary.suggestion:.1e} (the default is {summary.default:.1e})")
    )


def swept(summary: SweepSummary) -> RenderableType:
    """Return the trials, best first, and the model of the best one."""
    names = list(dict.fromkeys(name for trial in summary.trials for name in trial.values))
    table = _table("trial", *names, right=("objective",))
    table.add_column("")
    order = sorted(summary.trials, key=lambda each: (math.isnan(each.objective), -each.objective, each.number))
    for trial in order[:SHOWN_TRIALS]:
        cells = [_setting(trial.values[name]) if name in trial.values else "" for name in names]
        note = "" if trial.state == "finished" else ": ".join(filter(None, (trial.state, trial.why)))
        style = "bold" if trial.number == summary.best else None
        table.add_row(str(trial.number), *map(escape, cells), _score(trial.objective), escape(note), style=style)
    lines = [Text(f"… and {len(order) - SHOWN_TRIALS} more")] if len(order) > SHOWN_TRIALS else []
    what = f"harmonic mIoU with {', '.join(summary.hidden)} hidden" if summary.hidden else "mIoU of seen classes"
    lines.append(Text(f"objective: {what}, on {summary.photos} training photos kept aside; {summary.picture}"))
    if summary.running:
        lines.append(Text(f"{summary.running} trials run in other processes; the one that ends last trains the model"))
    elif summary.best is not None:
        beside = f"; its class vectors are in {summary.labels}" if summary.labels else ""
        there = "" if summary.model else " (was there already)"
        lines.append(Text(f"{summary.path}: the model of trial {summary.best}{there}{beside}"))
    return Group(table, *lines, *([trained(summary.model)] if summary.model else []))


def _setting(value: Any) -> str:
    """Return a setting's value as a table shows it."""
    if isinstance(value, tuple):
        return " + ".join(value)
    return f"{value:.2e}" if isinstance(value, float) else str(value)


def evaluated(summary: EvalSummary) -> RenderableType:
    """Return the per-class table and the means."""
    parts: list[RenderableType] = [_per_class(summary), _means(summary), *_left_out(summary)]
    if summary.curve is not None and not math.isnan(summary.curve.area):
        parts.append(_curve(summary.curve))
    parts.append(_scored(summary))
    return Group(*parts, *_overlap(summary.model))


def _first_few(words: Sequence[str], count: int = 3) -> str:
    return ", ".join(words[:count]) + (" …" if len(words) > count else "")


def _scored(summary: EvalSummary) -> Text:
    """Return what was scored, and how."""
    said = [f"{summary.images} photos {_protocol(summary)}", _calibrated_by(summary), _self_trained(summary.model)]
    return Text(f"{summary.path}: {'; '.join(filter(None, said))}")


def evaluated_seeds(summary: SeedsSummary) -> RenderableType:
    """Return the per-class table and the means of several runs, each as mean ± standard deviation."""
    first, runs = summary.runs[0], len(summary.runs)
    classes = _table("class", "", right=("IoU", "accuracy", "photos", "IoU, vanilla"))
    for index, name in enumerate(first.names):
        spreads = (summary.generalized.iou[index], summary.generalized.accuracy[index], summary.vanilla.iou[index])
        if spreads[0].count == 0:
            continue
        mark = "unseen" if index in first.unseen else ""
        iou, accuracy, vanilla = (_spread(each, runs) for each in spreads)
        photos = f"{first.images_per_class[index]:,}"
        classes.add_row(escape(name), mark, iou, accuracy, photos, vanilla, style="yellow" if mark else None)
    means = _table("", right=("generalized", "vanilla"))
    for label, key in _mean_scores(first):
        means.add_row(label, *(_spread(each.means[key], runs) for each in (summary.generalized, summary.vanilla)))
    parts: list[RenderableType] = [classes, means, *_left_out(first)]
    if summary.curve_area is not None:
        parts.append(Text(f"seen–unseen curve: area {_spread(summary.curve_area, runs)}"))
    listed = ", ".join(map(str, summary.seeds))
    parts.append(Text(f"mean ± sample standard deviation of {runs} runs, seeds {listed}"))
    parts += map(_scored, summary.runs)
    return Group(*parts)


def _spread(spread: Spread, runs: int) -> str:
    """Return "0.512 ± 0.013", and of how many runs where not of all."""
    text = _score(spread.mean) + ("" if math.isnan(spread.std) else f" ± {spread.std:.3f}")
    return text + (f" ({spread.count} of {runs})" if 0 < spread.count < runs else "")


def _curve(curve: Curve) -> Text:
    """Return the area under the seen–unseen curve and its best point, marked for what it is."""
    best = curve.oracle
    return Text(
        f"seen–unseen curve: area {_score(curve.area)}; oracle (chosen on the test photos): a further seen bias of "
        f"{curve.gamma[best]:.3g} gives seen {_score(float(curve.seen[best]))}, unseen "
        f"{_score(float(curve.unseen[best]))}, harmonic {_score(float(curve.harmonic[best]))}"
    )


def _protocol(summary: EvalSummary) -> str:
    match summary.config.protocol:
        case "native":
            return "at native resolution"
        case "zs3":
            return "under protocol zs3: short side 312, absent classes count 0 in the means"
        case "spnet":
            return "under protocol spnet: warped to 513 × 513, background void and no class"


def _calibrated_by(summary: EvalSummary) -> str:
    if summary.config.seen_bias is not None:
        return f"seen bias {summary.config.seen_bias:g}"
    if summary.calibrated_by["method"] == "none":
        return "uncalibrated"
    return f"calibration {summary.calibrated_by['method']}, parameter {summary.calibrated_by['parameter']:.3g}"


def predicted(summary: PredictSummary) -> RenderableType:
    """Return the classes found in each photo."""
    if summary.readings:
        return _read_out(summary)
    table = _table("photo", "classes (share of pixels)")
    for name, shares in list(zip(summary.ids, summary.shares, strict=True))[:SHOWN_PREDICTIONS]:
        found = ", ".join(f"{_starred(summary.names, summary.unseen, index)} {share:.1%}" for index, share in shares)
        table.add_row(escape(name), escape(found))
    lines = [Text(f"{summary.path}: {_photos(len(summary.ids))}; pictures in {summary.pictures}")]
    if len(summary.ids) > SHOWN_PREDICTIONS:
        lines.insert(0, Text(f"… and {len(summary.ids) - SHOWN_PREDICTIONS} more"))
    if any(index in summary.unseen for shares in summary.shares for index, _ in shares):
        lines.append(Text("* unseen in training", style="dim"))
    return Group(table, *lines, *_skipped(summary.skipped))


def described(summary: InfoSummary) -> RenderableType:
    """Return what an artifact is."""
    facts = _table("", "")
    facts.show_header = False
    facts.add_row("kind", f"{summary.kind}: {', '.join(summary.about)}")
    facts.add_row("written by", f"zsseg {summary.version}")
    facts.add_row("digest", f"{summary.digest} (holds)")
    for kind, digest, file in summary.inputs:
        facts.add_row(f"from {kind}", escape(f"{digest[:12]}…  {file or 'not in this folder'}"))
    settings = _table("setting", "value")
    for key, value in summary.params.items():
        settings.add_row(escape(key), escape(_clipped(json.dumps(value, ensure_ascii=False))))
    fields = _table("field", "dtype", "shape")
    for name, dtype, shape in summary.fields:
        lengths = [f"{length:,}" for length in shape]
        fields.add_row(name, dtype, "{} of {} numbers".format(*lengths) if dtype == "arrays" else " × ".join(lengths))
    return Group(Text(str(summary.path)), facts, settings, fields)


def _clipped(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"


def _read_out(summary: PredictSummary) -> RenderableType:
    """Return the regions of each photo and their nearest words."""
    table = _table("photo", "nearest words (cosine)", right=("share",))
    rows = list(zip(summary.ids, summary.readings, strict=True))
    for photo, regions in rows[:SHOWN_PREDICTIONS]:
        for index, region in enumerate(regions):
            words = ", ".join(f"{word} {cosine:.2f}" for word, cosine in region.words)
            table.add_row(escape(photo) if index == 0 else "", escape(words), f"{region.share:.1%}")
    lines = [Text(f"{summary.path}: {_photos(len(summary.ids))}; pictures in {summary.pictures}")]
    if len(rows) > SHOWN_PREDICTIONS:
        lines.insert(0, Text(f"… and {len(rows) - SHOWN_PREDICTIONS} more"))
    return Group(table, *lines, *_skipped(summary.skipped))


def reported(summary: ReportSummary) -> RenderableType:
    """Return what went into a report."""
    photos = f", {_photos(summary.photos)}" if summary.photos else ""
    return Text(f"{summary.path}: {', '.join(summary.kinds)}{photos}, {summary.size / 1e6:.1f} MB")


def previewed(previews: Previews, *, colours: bool) -> RenderableType:
    """Return predictions drawn with characters: half blocks where there are colours, else a letter for each class."""
    lines = []
    for shown in previews.shown:
        letters = {index: LETTERS[place % len(LETTERS)] for place, (index, _) in enumerate(shown.shares)}
        rows = _half_blocks(shown.picture) if colours else _lettered(shown.label_map, letters)
        key = _preview_legend(previews, shown.shares, letters, colours)
        lines += [Text(shown.name, style="bold"), *rows, key, Text()]
    return Group(*lines)


def _half_blocks(picture: NDArray[np.uint8]) -> list[Text]:
    """Return a picture, (2 h, w, 3), as h lines: a character shows two pixels, one above the other."""
    lines = []
    for top, bottom in zip(picture[::2].tolist(), picture[1::2].tolist(), strict=True):
        line = Text(no_wrap=True)
        for above, below in zip(top, bottom, strict=True):
            line.append("▀", style=f"rgb({','.join(map(str, above))}) on rgb({','.join(map(str, below))})")
        lines.append(line)
    return lines


def _lettered(label_map: NDArray[np.uint8], letters: dict[int, str]) -> list[Text]:
    return [Text("".join(letters.get(index, "?") for index in row), no_wrap=True) for row in label_map.tolist()]


def _preview_legend(
    previews: Previews, shares: Sequence[tuple[int, float]], letters: dict[int, str], colours: bool
) -> Text:
    line = Text()
    for index, share in shares:
        known = index < len(previews.names)
        red, green, blue = previews.colours[index].tolist()
        line.append("██" if colours else letters[index], style=f"rgb({red},{green},{blue})" if colours else "")
        name = " ".join(previews.names[index].split()) if known else f"class {index}"
        line.append(f" {name}{' (unseen)' if index in previews.unseen else ''} {share:.1%}   ")
    line.rstrip()
    return line


def _per_class(summary: EvalSummary) -> Table:
    table = _table("class", "", right=("IoU", "accuracy", "photos", "IoU, vanilla"))
    rows = zip(
        summary.names,
        summary.generalized.iou,
        summary.generalized.accuracy,
        summary.images_per_class,
        summary.vanilla.iou,
        strict=True,
    )
    for index, (name, iou, accuracy, photos, vanilla) in enumerate(rows):
        if math.isnan(iou):
            continue
        mark = "unseen" if index in summary.unseen else ""
        cells = (_score(iou), _score(accuracy), f"{photos:,}", _score(vanilla))
        table.add_row(escape(name), mark, *cells, style="yellow" if mark else None)
    return table


def _means(summary: EvalSummary) -> Table:
    table = _table("", right=("generalized", "vanilla"))
    for label, key in _mean_scores(summary):
        table.add_row(label, _value(summary.generalized, key), _value(summary.vanilla, key))
    return table


def _mean_scores(summary: EvalSummary) -> list[tuple[str, str]]:
    """Return how each mean score is called in a table and in `metrics.Scores`."""
    rows = [
        ("pixel accuracy", "pixel_accuracy"),
        ("mean accuracy", "mean_accuracy"),
        ("mIoU", "miou"),
        ("frequency-weighted IoU", "frequency_weighted_iou"),
    ]
    if summary.unseen:
        rows += [
            ("mIoU, seen classes", "seen_miou"),
            ("mIoU, unseen classes", "unseen_miou"),
            ("harmonic mIoU", "harmonic_miou"),
        ]
    return rows


def _left_out(summary: EvalSummary) -> list[Text]:
    """Return which classes are left out of the means."""
    names = [summary.names[index] for index in summary.generalized.left_out]
    if not names:
        return []
    return [Text(f"left out of the means, in fewer than {summary.config.min_images} photos: {', '.join(names)}")]


def _value(scores: Scores, key: str) -> str:
    return _score(getattr(scores, key))


def _score(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _starred(names: Sequence[str], unseen: Iterable[int], index: int) -> str:
    return names[index] + ("*" if index in unseen else "")


def _skipped(skipped: Sequence[tuple[str, str]]) -> list[Text]:
    if not skipped:
        return []
    lines = [Text(f"{len(skipped)} left out:", style="yellow")]
    lines += [Text(f"  {name}: {reason}") for name, reason in skipped[:SHOWN_SKIPPED]]
    if len(skipped) > SHOWN_SKIPPED:
        lines.append(Text(f"  … and {len(skipped) - SHOWN_SKIPPED} more"))
    return lines


def _photos(count: int) -> str:
    return f"{count:,} photo{'' if count == 1 else 's'}"


def _table(*left: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table
