"""`zsseg info`: what an artifact is, where it came from, with which settings, and whether its digest holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsseg.artifacts import Artifact, kind_of, open_artifact
from zsseg.errors import ArtifactError
from zsseg.schema import SCHEMA

IS = {
    "data": "photos with label maps",
    "labels": "class vectors",
    "split": "seen and unseen classes",
    "model": "a trained model",
    "scores": "an evaluation",
    "predictions": "label maps of photos",
    "features": "what a frozen backbone says of photos, kept between runs",
}


@dataclass(frozen=True)
class InfoSummary:
    """What an artifact is.

    Attributes:
        path: The file.
        kind: Which artifact.
        version: The zsseg that wrote it.
        digest: That of the file, which was recomputed and holds.
        about: Facts in a few words, such as how many classes.
        inputs: For each artifact that it was made from, its kind, its digest, and the file beside this one that has it,
            or "".
        params: The settings that it records.
        fields: Name, dtype and shape of each field.
    """

    path: Path
    kind: str
    version: str
    digest: str
    about: tuple[str, ...]
    inputs: tuple[tuple[str, str, str], ...]
    params: dict[str, Any]
    fields: tuple[tuple[str, str, tuple[int, ...]], ...]


def info(path: Path) -> InfoSummary:
    """Say what a file is.

    Raises:
        ArtifactError: It is no artifact, or is damaged: its digest does not hold.
    """
    if path.is_dir():
        raise ArtifactError(f"{path}: is a folder, expected an artifact; name files, such as {path / '*.h5'}")
    kind = kind_of(path)
    with open_artifact(path, kind) as artifact:
        names = artifact.strings("names")
        beside = _beside(path)
        return InfoSummary(
            path=path,
            kind=kind,
            version=artifact.version,
            digest=artifact.digest,
            about=(IS[kind], f"{len(names)} classes", *_about(artifact)),
            inputs=tuple((name, digest, beside.get(digest, "")) for name, digest in sorted(artifact.inputs.items())),
            params=artifact.params,
            fields=tuple((name, *artifact.shape(name)) for name in SCHEMA[kind] if name in artifact),
        )


def as_json(summary: InfoSummary) -> dict[str, Any]:
    """Return the summary as JSON values."""
    return {
        "file": str(summary.path),
        "kind": summary.kind,
        "zsseg": summary.version,
        "digest": summary.digest,
        "digest_holds": True,
        "about": list(summary.about),
        "inputs": {kind: {"digest": digest, "file": file or None} for kind, digest, file in summary.inputs},
        "params": summary.params,
        "fields": {name: {"dtype": dtype, "shape": list(shape)} for name, dtype, shape in summary.fields},
    }


def _about(artifact: Artifact) -> list[str]:
    counts = {
        "data": (("train", "training photos"), ("val", "validation photos")),
        "labels": (("explained_variance", "dims"),),
        "split": (("unseen", "of them unseen"), ("train", "training photos")),
        "model": (("unseen", "of them unseen"), ("loss", "steps done")),
        "scores": (("unseen", "of them unseen"),),
        "predictions": (("ids", "photos"),),
        "features": (("images", "photos"),),
    }[artifact.kind]
    facts = [f"{artifact.shape(name)[1][0]:,} {what}" for name, what in counts]
    if artifact.kind == "model":
        params = artifact.params
        unfinished = ", unfinished: go on with --resume" if "optimizer" in artifact else ""
        facts.append(f"{params.get('model')} with {params.get('loss')} loss{unfinished}")
        facts.append("knows any word" if "recipe_mean" in artifact else "knows its own classes alone")
    return facts


def _beside(path: Path) -> dict[str, str]:
    """Return the digest of each artifact in the same folder, and its file name."""
    found: dict[str, str] = {}
    for file in sorted(path.parent.glob("*.h5")):
        try:
            with open_artifact(file, kind_of(file), verify=False) as artifact:
                found.setdefault(artifact.digest, file.name)
        except ArtifactError:
            continue  # whatever lies there, it is not asked about
    return found
