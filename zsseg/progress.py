"""How long work tells where it stands, without printing: the caller hands in a `Progress`.

Only `cli.py` draws bars. Library code iterates through `progress.track(...)`, and `SILENT` is the default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Receives the state of long work."""

    def track(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:
        """Yield the items, counting them towards `total`."""
        ...

    def status(self, text: str) -> None:
        """Show a short text beside the running bar, e.g. the loss."""
        ...


class Silent:
    """A progress that shows nothing."""

    def track(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:  # noqa: ARG002
        """Yield the items."""
        yield from items

    def status(self, text: str) -> None:
        """Do nothing."""


SILENT: Progress = Silent()
