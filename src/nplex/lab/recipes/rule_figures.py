"""A learned table over training: its curve, and an animation of heat maps."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.lab.checkpoint import replace_file
from nplex.lab.plot import new_figure, save
from nplex.lab.recipes.rule_fit import Moment
from nplex.lab.recipes.rule_learned import Learned

if TYPE_CHECKING:
    from numpy import ndarray

# An animation has so many frames at most, and shows each so long; the last one stays longer.
FRAMES, MILLISECONDS, LAST_MILLISECONDS = 40, 120, 3000
DPI = 80
LOWEST = 1e-16


def shown(trail: Sequence[Moment]) -> list[Moment]:
    """At most 40 moments, the first and the last among them, evenly spread."""
    last = len(trail) - 1
    places = {round(last * frame / (FRAMES - 1)) for frame in range(FRAMES)}
    return [trail[place] for place in sorted(places)]


def curves(learned: Sequence[Learned], path: Path) -> None:
    """The error of the table over the steps, one line a seed, with the optimum, as a PNG.

    Raises:
        ImportError: matplotlib is not installed; names the command.
    """
    figure = new_figure()
    axes = figure.add_subplot()
    for one in learned:
        norm = float(one.true.norm())
        errors = [max(float((m.table - one.true).norm()) / norm, LOWEST) for m in one.trail]
        axes.plot([m.step for m in one.trail], errors, label=f"seed {one.seed}")
    optimum = learned[0].optimum
    if optimum > 1e-12:
        axes.axhline(optimum, linestyle="--", color="0.5", label="optimum")
    axes.set_yscale("log")
    axes.set_xlabel("steps: Adam, then L-BFGS")
    axes.set_ylabel("relative error of the table")
    axes.set_title(learned[0].product.algebra.name, fontsize=9)
    axes.grid(alpha=0.25)
    if len(learned) <= 10:
        axes.legend(fontsize=8)
    save(figure, path)


def animation(one: Learned, path: Path) -> None:
    """The true faces `table[k]` beside the learned ones, one frame a moment, as a GIF.

    Raises:
        ImportError: matplotlib is not installed; names the command.
    """
    figure = new_figure(7.2, 3.9)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    limit = float(one.true.abs().max())
    pictures = []
    for title, table in (("true", one.true), ("learned", one.table)):
        axes = figure.add_subplot(1, 2, len(pictures) + 1)
        pictures.append(axes.imshow(tiled(table), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"))
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(pictures[-1], ax=figure.axes, shrink=0.8)
    figure.set_dpi(DPI)
    frames, norm = [], float(one.true.norm())
    for moment in shown(one.trail):
        pictures[-1].set_data(tiled(moment.table))
        error = float((moment.table - one.true).norm()) / norm
        figure.suptitle(f"{one.product.algebra.name}, step {moment.step:,}: relative error {error:.1e}", fontsize=10)
        canvas.draw()
        size = canvas.get_width_height()
        picture = Image.frombytes("RGBA", size, bytes(canvas.buffer_rgba())).convert("RGB")
        frames.append(picture.convert("P", palette=Image.Palette.ADAPTIVE))
    times = [MILLISECONDS] * (len(frames) - 1) + [LAST_MILLISECONDS]
    how = {"format": "GIF", "save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
    replace_file(path, lambda part: frames[0].save(part, **how))


def tiled(table: Float[Tensor, "n n n"]) -> "ndarray":
    """The faces `table[k]`, n x n each, beside and below each other with a gap of nothing between."""
    n = table.shape[0]
    across = math.ceil(math.sqrt(n))
    down = math.ceil(n / across)
    canvas = torch.full((down * (n + 1) - 1, across * (n + 1) - 1), math.nan, dtype=table.dtype, device="cpu")
    for k, face in enumerate(table):
        top, left = (k // across) * (n + 1), (k % across) * (n + 1)
        canvas[top : top + n, left : left + n] = face
    return canvas.numpy()
