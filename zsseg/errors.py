"""The errors that reach a user.

    ZssegError
    ├── ArtifactError   an HDF5 artifact is missing, damaged, of another kind, or does not fit its neighbours
    ├── DataError       an image, label map, archive, weight or vector file cannot be used
    ├── SettingError    an option, class name or word that cannot be met
    ├── TrainingError   training cannot go on
    └── JobError        the processes of a job of several cannot work together any more

A message is one line: what, got, expected, and what to do next. Only `cli.py` turns them into exit codes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZssegError(Exception):
    """Something that a user can mend; shown as one line, exit code 1."""


class ArtifactError(ZssegError):
    """An artifact that cannot be read, written or combined."""


class DataError(ZssegError):
    """A foreign file that cannot be used."""


class SettingError(ZssegError):
    """A setting that cannot be met."""


class TrainingError(ZssegError):
    """Training that cannot go on."""


class JobError(ZssegError):
    """A job of several processes that cannot go on, mostly because one of them died."""


def suggestion(word: str, known: Iterable[str], *, count: int = 3) -> str:
    """Return "; did you mean cow, crow?" for the closest spellings, or "" when none is close.

    Args:
        word: What the user typed.
        known: The words that would have been accepted.
        count: How many to name at most.
    """
    close = difflib.get_close_matches(word.lower(), list(known), n=count, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""
