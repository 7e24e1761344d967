"""A figure of reconstructions beside the truth, with their error maps."""

import io
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from invreg._files import write_whole


def draw_comparison(
    path: Path,
    title: str,
    truth: Tensor,
    images: Sequence[tuple[str, Tensor]],
    window: tuple[float, float],
    error_range: float,
    unit: str,
) -> None:
    """Draw images in one grey window and the absolute errors below them in one colour scale; write a PNG whole.

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

    columns = len(images) + 1
    figure = Figure(figsize=(2.6 * columns, 6.1), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(2, columns)
    for axis in axes.flat:
        axis.set_axis_off()
    shown = [("truth", truth), *images]
    errors = []
    for column, (caption, image) in enumerate(shown):
        axes[0, column].imshow(image.numpy(), cmap="gray", vmin=window[0], vmax=window[1])
        axes[0, column].set_title(caption, fontsize=9)
        if column:
            drawn = axes[1, column].imshow((image - truth).abs().numpy(), cmap="inferno", vmin=0, vmax=error_range)
            errors.append(drawn)
    axes[1, 0].text(0.5, 0.5, "absolute error", ha="center", va="center", transform=axes[1, 0].transAxes, fontsize=10)
    bar = figure.colorbar(errors[-1], ax=axes[1, 1:], location="bottom", shrink=0.5, aspect=40)
    bar.set_label(unit, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_whole(path, buffer.getvalue())
