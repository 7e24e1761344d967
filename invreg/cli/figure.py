"""A figure of reconstructions beside the truth, with their error maps."""

import io
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from invreg._files import write_whole

COLUMNS = 6
"""At most, side by side."""


def draw_comparison(
    path: Path,
    title: str,
    truth: Tensor,
    images: Sequence[tuple[str, Tensor]],
    window: tuple[float, float],
    error_range: float,
    unit: str,
) -> None:
    """Draw images in one grey window, the absolute errors below them in one colour scale; write a PNG whole.

    Args:
        path: of the PNG file.
        title: above all.
        truth: (y, x), real.
        images: captions and images, (y, x), real.
        window: grey values of black and white.
        error_range: brightest error.
        unit: of errors, for the colour bar.
    """
    from matplotlib.figure import Figure

    shown = [("truth", truth), *images]
    columns = -(-len(shown) // -(-len(shown) // COLUMNS))
    blocks = -(-len(shown) // columns)
    figure = Figure(figsize=(2.6 * columns, 0.6 + 5.5 * blocks), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(2 * blocks, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (caption, image) in enumerate(shown):
        above, below = (axes[2 * (place // columns) + k, place % columns] for k in (0, 1))
        above.imshow(image.numpy(), cmap="gray", vmin=window[0], vmax=window[1])
        above.set_title(caption, fontsize=9)
        if place:
            drawn = below.imshow((image - truth).abs().numpy(), cmap="inferno", vmin=0, vmax=error_range)
        else:
            below.text(0.5, 0.5, "absolute error", ha="center", va="center", transform=below.transAxes, fontsize=10)
    bar = figure.colorbar(drawn, ax=axes[-1], location="bottom", shrink=0.5, aspect=40)
    bar.set_label(unit, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_whole(path, buffer.getvalue())
