"""Rules as figures: the table, W as blocks, the factors of an algorithm."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex.algebra import Algebra, BilinearAlgorithm, as_table
from nplex.algebra.table import element
from nplex.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["show", "table", "weight", "factors", "new_figure", "write_figure"]

COLOURS = "RdBu_r"
MOST_TEXT = 9  # letters that a cell has room for
MOST_LABELS = 16
PANELS = 4  # in a row


def show(rule: Any, what: str | None = None) -> "Figure":
    """A figure of a rule: its multiplication table, W as blocks, or the factors of its algorithm.

    Without `what`, a layer is drawn as its W, an algorithm as its factors, any other rule as its table. A notebook
    shows the figure; `nplex.figures.write_figure` writes it.

    Args:
        rule: an Algebra, a table, factors, or a rule or layer of nplex.nn.
        what: "table", "weight" or "factors"; see the functions of these names in nplex.figures.

    Raises:
        ImportError: matplotlib is not installed; names the command.
        TypeError: it is not a rule, or has no such figure.
        ValueError: `what` is none of the three.

    Examples:
        >>> from nplex.algebra import quaternion
        >>> show(quaternion).axes[0].get_xlabel()
        'right factor'
    """
    is_layer = isinstance(rule, nn.Module) and hasattr(rule, "components")
    if what is None:
        what = "weight" if is_layer else "factors" if isinstance(rule, BilinearAlgorithm) else "table"
    draws = {"table": table, "weight": weight, "factors": factors}
    if what not in draws:
        raise ValueError(f"what must be {', '.join(draws)}, got {what!r}")
    return draws[what](getattr(rule, "rule", rule) if is_layer and what != "weight" else rule)


def new_figure(width: float = 6.4, height: float = 4.0) -> "Figure":
    """An empty figure, in inches.

    Raises:
        ImportError: matplotlib is not installed; names the command.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("figures need matplotlib, which is not installed: pip install 'nplex[lab]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: "Figure", path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    replace_file(path, lambda part: figure.savefig(part, dpi=150, format="png"))


def table(rule: Any) -> "Figure":
    """The multiplication table: the products of units as a grid, or where they are mixtures a heat map of each face.

    In the grid row k and column j hold `e_k * e_j`, each unit in its own colour. Of a mixture, panel k is
    `rule[k, i, j]`, with i downwards and j to the right, all panels in one scale.

    Args:
        rule: an Algebra, a table, factors, or a module of nplex.nn that yields one of these.

    Raises:
        ImportError: matplotlib is not installed; names the command.
        TypeError: it is not a rule.
    """
    numbers, units = _numbers(rule)
    if _is_monomial(numbers):
        return _grid(numbers.mT, units, units, units, "left factor", "right factor")
    return _faces(numbers)


def weight(rule: Any) -> "Figure":
    """W as blocks: block (i, j) of `W = sum_k kron(rule[k], components[k])` is `sum_k rule[k, i, j] components[k]`.

    Of a layer W itself, with lines between its blocks; of a rule the mixture of components A0, A1, ... in each
    block, each component in its own colour.

    Args:
        rule: a layer of nplex.nn with a weight of two axes, or what `table` takes.

    Raises:
        ImportError: matplotlib is not installed; names the command.
        TypeError: it is neither layer nor rule; or the layer's weight is not a matrix.
    """
    if isinstance(rule, nn.Module) and hasattr(rule, "components"):
        return _blocks(rule)
    numbers, _ = _numbers(rule)
    names = tuple(f"A{k}" for k in range(len(numbers)))
    return _grid(numbers.permute(1, 2, 0), names, ("",) * len(numbers), ("",) * len(numbers), "", "")


def factors(algorithm: Any) -> "Figure":
    """The three n x R matrices of a bilinear algorithm, a column for each term.

    `rule[k, i, j] = sum_r encode_component[k, r] decode[i, r] encode_input[j, r]`.

    Args:
        algorithm: a BilinearAlgorithm, or a rule of nplex.nn that is held as one.

    Raises:
        ImportError: matplotlib is not installed; names the command.
        TypeError: it is held as a full table; says how to find an algorithm.
    """
    found = algorithm() if isinstance(algorithm, nn.Module) else algorithm
    if not isinstance(found, BilinearAlgorithm):
        raise TypeError(
            "expected the factors of an algorithm, got none; nplex.algebra.find(table).algorithm has some"
        )
    figure = new_figure(2.6 + 0.28 * found.rank, 2.2 + 0.6 * found.n)
    largest = max(float(factor.detach().abs().max()) for factor in found)
    panels = list(figure.subplots(3, 1))
    for axes, (name, factor) in zip(panels, found._asdict().items(), strict=True):
        _heat(axes, factor.detach().double().cpu(), largest)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_ylabel("unit", fontsize=8)
    panels[-1].set_xlabel(f"{found.rank} terms", fontsize=8)
    figure.colorbar(panels[0].images[0], ax=panels, shrink=0.6)
    return figure


def _numbers(rule: Any) -> tuple[Float[Tensor, "n n n"], tuple[str, ...]]:
    found = rule() if isinstance(rule, nn.Module) else rule
    if isinstance(found, Algebra):
        return found.table, found.units
    is_cube = isinstance(found, Tensor) and found.ndim == 3 and len(set(found.shape)) == 1
    if is_cube or isinstance(found, BilinearAlgorithm):
        numbers = as_table(found).detach().double().cpu()
        return numbers, tuple(f"e{k}" for k in range(len(numbers)))
    raise TypeError(f"expected a rule: an Algebra, n x n x n numbers, factors or a Rule; got {rule!r}")


def _is_monomial(numbers: Float[Tensor, "n n n"]) -> bool:
    """Whether each product of two units is one unit, times a number, or zero."""
    return bool(((numbers != 0).sum(1) <= 1).all())


def _faces(numbers: Float[Tensor, "n n n"]) -> "Figure":
    n = len(numbers)
    columns = min(n, PANELS)
    rows = -(-n // columns)
    figure = new_figure(1.9 * columns + 0.9, 1.9 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for k, axes in enumerate(panels[:n]):
        _heat(axes, numbers[k], float(numbers.abs().max()))
        axes.set_title(f"rule[{k}]", fontsize=9)
    for axes in panels[n:]:
        axes.set_axis_off()
    figure.colorbar(panels[0].images[0], ax=list(panels), shrink=0.7)
    return figure


def _heat(axes: "Axes", matrix: Float[Tensor, "rows columns"], largest: float) -> Any:
    """A matrix in colours: blue is negative, red positive."""
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(
        matrix.numpy(), cmap=COLOURS, vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest"
    )


def _grid(
    cells: Float[Tensor, "rows columns n"], names: Sequence[str], left: Sequence[str], top: Sequence[str],
    down: str, across: str,
) -> "Figure":  # fmt: skip
    """Each cell a sum of named things: one thing as its colour and name, several as bars up and down."""
    n = len(cells)
    side = min(6.5, 1.4 + 0.5 * n)
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    single = (cells != 0).sum(-1, keepdim=True) <= 1
    axes.imshow(_grounds(cells * single), interpolation="nearest")
    for row, column in ((i, j) for i in range(n) for j in range(n)):
        text = element(cells[row, column].tolist(), names)
        if bool(single[row, column]) and n <= MOST_LABELS and len(text) <= MOST_TEXT:
            axes.text(column, row, text, ha="center", va="center", fontsize=9 if n <= 8 else 7, color="black")
        elif not bool(single[row, column]):
            _bars(axes, row, column, cells[row, column] / cells.abs().max())
    if not bool(single.all()):
        figure.legend(list(axes.containers[0]), names, loc="outside lower center", ncols=min(n, 8), fontsize=8)
    axes.set_xticks(range(n), top, fontsize=8)
    axes.set_yticks(range(n), left, fontsize=8)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.set_xticks([position + 0.5 for position in range(n - 1)], minor=True)
    axes.set_yticks([position + 0.5 for position in range(n - 1)], minor=True)
    axes.grid(which="minor", color="white" if bool(single.all()) else "0.8", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    return figure


def _bars(axes: "Axes", row: int, column: int, shares: Float[Tensor, "n"]) -> None:
    """A bar for each share from -1 to 1, in a cell."""
    n = len(shares)
    places = [column - 0.45 + (k + 0.5) * 0.9 / n for k in range(n)]
    axes.bar(places, (-0.45 * shares).tolist(), width=0.8 / n, bottom=row, color=_hues(n).tolist())


def _hues(n: int) -> Float[Tensor, "n 3"]:
    """A colour for each of n things."""
    import colorsys

    return torch.tensor([colorsys.hls_to_rgb(k / n, 0.62, 0.75) for k in range(n)], dtype=torch.float64)


def _grounds(cells: Float[Tensor, "rows columns n"]) -> Any:
    """The hue of each cell's only number, the nearer to white the smaller it is."""
    share = cells.abs() / cells.abs().max().clamp_min(1e-30)
    return (1 - share @ (1 - _hues(cells.shape[-1]))).numpy()


def _blocks(layer: nn.Module) -> "Figure":
    """W of a layer with lines between its blocks."""
    matrix = getattr(layer, "weight", None)
    if not isinstance(matrix, Tensor) or matrix.ndim != 2:
        raise TypeError(f"expected a layer whose weight is a matrix, got {type(layer).__name__}")
    n = int(layer.get_submodule("rule").n)  # pyright: ignore - every rule has it
    rows, columns = matrix.shape
    figure = new_figure(5.2, 1.0 + 4.2 * min(1.6, max(0.4, rows / columns)))
    axes = figure.add_subplot()
    numbers = matrix.detach().double().cpu()
    image = _heat(
        axes, numbers, float(numbers.abs().quantile(0.995)) if numbers.numel() < 1e7 else float(numbers.abs().max())
    )
    for block in range(1, n):
        axes.axhline(block * -(-rows // n) - 0.5, color="black", linewidth=0.8)
        axes.axvline(block * -(-columns // n) - 0.5, color="black", linewidth=0.8)
    axes.set_title(f"W, {rows} x {columns}, in {n} x {n} blocks", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.7)
    return figure
