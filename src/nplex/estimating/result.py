"""What was estimated: values that print themselves, as text, in a notebook, as a figure."""

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nplex.convert.report import text_table
from nplex.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAIN = 0.95  # of the dense model's time; what is nearer to it is noise


@dataclass(frozen=True)
class LayerEstimate:
    """One layer under one rule, all its calls together.

    Attributes:
        name: its full name.
        was: what it is.
        now: what it would be.
        method: how it would be computed in training.
        parameters: of the new layer, its own rule included.
        flops: of its products in a forward, today and then.
        inference: seconds, measured today and predicted.
        step: seconds forward and backward, the same.
        kept: bytes more that are kept for backward.
    """

    name: str
    was: str
    now: str
    method: str
    parameters: int
    flops: tuple[int, int]
    inference: tuple[float, float]
    step: tuple[float, float]
    kept: int


@dataclass(frozen=True)
class RuleEstimate:
    """A model under one rule, or as it is ("dense", whose times are measured).

    Attributes:
        rule: as the command line writes it.
        parameters: of the whole model.
        bytes: of its parameters and buffers.
        flops: of a forward, multiply-adds as 2.
        memory: bytes at the peak of a training step with Adam.
        inference: seconds of a forward.
        step: seconds of a training step.
        layers: those that change.
        measured: seconds of inference and of a step, and bytes, of a converted copy; None where none was run.
    """

    rule: str
    parameters: int
    bytes: int
    flops: int
    memory: int
    inference: float
    step: float
    layers: tuple[LayerEstimate, ...] = ()
    measured: tuple[float, float, int] | None = None


@dataclass(frozen=True)
class Estimate:
    """What rules would give a model. Prints itself, shows itself in notebooks; `full` has all layers.

    Attributes:
        rows: one for each rule, dense first.
        threads: of torch.
        device: where it was run.
    """

    rows: tuple[RuleEstimate, ...]
    threads: int
    device: str

    @property
    def recommendation(self) -> str:
        """The rule to try, and why; what it costs in quality is not known here."""
        dense, *others = self.rows
        others = [row for row in others if row.layers]
        if not others:
            return "stay dense: no layer can be converted"
        quick = min(others, key=lambda row: row.step)
        small = min(others, key=lambda row: row.parameters)
        if quick.step < GAIN * dense.step:
            return (
                f"{quick.rule} for speed: {quick.step / dense.step:.2f} of the time of a step with "
                f"{quick.parameters / dense.parameters:.2f} of the parameters"
            )
        most = max(others, key=lambda row: row.parameters)
        share = sum(each.step[0] for each in quick.layers) / dense.step
        whole = [each for each in quick.layers if each.method == "dense"]
        if share < 0.3:
            why = f"the layers that change take {100 * share:.0f} % of a step"
        elif whole:
            why = f"{len(whole)} of {len(quick.layers)} layers are computed by their dense weight, as {whole[0].was}"
        else:
            why = f"layers as {quick.layers[0].was} are too small to gain"
        sizes = f"{most.rule} for size ({most.parameters / dense.parameters:.2f} of the parameters"
        return (
            f"stay dense for speed, as no rule is faster here: {why}. Or take {sizes}, {most.step / dense.step:.2f} "
            f"of the time; {small.rule}: {small.parameters / dense.parameters:.2f})"
        )

    def table(self) -> list[list[str]]:
        """The rows as text, titles first."""
        dense, has_measured = self.rows[0], any(row.measured for row in self.rows)
        titles = ["rule", "parameters", "MB", "GFLOP", "training MB", "step ms", "inference ms"]
        table = [titles + ["measured step", "inference"] * has_measured]
        for row in self.rows:
            cells = [
                row.rule, f"{row.parameters:,}", f"{row.bytes / 1e6:.1f}", f"{row.flops / 1e9:.3g}",
                f"{row.memory / 1e6:.0f}", f"{_ms(row.step)} ({row.step / dense.step:.2f})",
                f"{_ms(row.inference)} ({row.inference / dense.inference:.2f})",
            ]  # fmt: skip
            measured = row.measured or (row.inference, row.step, 0)
            table.append(cells + [_ms(measured[1]), _ms(measured[0])] * has_measured)
        return table

    @property
    def notes(self) -> list[str]:
        """What to know of the table, and the recommendation."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)} of the {self.device}"
        return [
            f"dense is measured on this machine ({threads}), the others are predicted",
            "in brackets: of dense; a step is forward, backward and AdamW, inference is inside nplex.nn.cached",
            "what a rule costs in quality is not in here: nplex tune measures that",
            f"take {self.recommendation}" if self.recommendation[:4] != "stay" else self.recommendation,
        ]

    def __str__(self) -> str:
        table = self.table()
        return "\n".join([*text_table(table, "<" + ">" * (len(table[0]) - 1)), *self.notes])

    @property
    def full(self) -> str:
        """The text with a table of layers for each rule."""
        parts = [str(self)]
        for row in self.rows[1:]:
            cells = [
                (e.name, e.was, e.now, e.method, f"{e.parameters:,}", *(
                    f"{show(before)} -> {show(after)}"
                    for show, (before, after) in ((_mega, e.flops), (_ms, e.step), (_ms, e.inference))
                ))
                for e in row.layers
            ]  # fmt: skip
            titles = ("layer", "was", "now", "method", "parameters", "MFLOP", "step ms", "inference ms")
            parts += [f"\n{row.rule}", *text_table([titles, *cells], "<<<<>>>>")]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        titles, *rows = ([html.escape(cell) for cell in line] for line in self.table())
        head = "".join(f"<th>{cell}</th>" for cell in titles)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><tr>{head}</tr>{body}</table><p>{'<br>'.join(map(html.escape, self.notes))}</p>"

    def figure(self) -> "Figure":
        """Size against the time of a training step; filled are the rules that no other beats in both.

        Raises:
            ImportError: matplotlib is not installed; names the command.
        """
        figure = new_figure()
        axes = figure.add_subplot()
        points = [(row.parameters / 1e6, 1e3 * row.step) for row in self.rows]
        for row, (x, y) in zip(self.rows, points, strict=True):
            is_best = not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
            axes.plot(x, y, "s" if row.rule == "dense" else "o", color="C0", fillstyle="full" if is_best else "none")
            axes.annotate(f" {row.rule}", (x, y), textcoords="offset points", xytext=(4, 4))
        right, top = (1.15 * max(column) for column in zip(*points, strict=True))
        axes.set(xlim=(0, right), ylim=(0, top), xlabel="parameters in millions", ylabel="ms a training step")
        axes.set_title("Size and predicted time of each rule; dense is measured")
        return figure


def _mega(count: int | float) -> str:
    return f"{count / 1e6:.3g}"


def _ms(seconds: float) -> str:
    """Milliseconds with three digits."""
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"
