"""Draw with matplotlib, the same way for the same numbers: through its objects, never pyplot, with its own defaults."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from zsseg.images import encode_png

DPI = 120


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Draw with matplotlib's defaults, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "zsseg"  # ids in an SVG are drawn at random otherwise
        # a class name in a script that the font lacks is drawn as boxes, which says enough
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        yield


def figure(width: float, height: float) -> Any:
    """Make a figure of so many inches that belongs to no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(made)
    return made


def png(drawn: Any) -> bytes:
    """Return a figure as a PNG file, the same bytes every time."""
    drawn.canvas.draw()
    return encode_png(np.array(drawn.canvas.buffer_rgba())[..., :3])
