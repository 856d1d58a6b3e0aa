"""Reports of conversion, folding and factorization: values that print themselves."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from nplex.convert.folded import folded
from nplex.convert.heads import BY_DEFAULT
from nplex.nn import Rule

SIZES = (
    ("in1_features", "in2_features", "out_features"), ("in_features", "out_features"),
    ("in_channels", "out_channels"), ("input_size", "hidden_size"), ("num_embeddings", "embedding_dim"),
    ("embed_dim",), ("nx", "nf"),
)  # fmt: skip
PLAIN = {"groups": 1, "num_layers": 1, "bidirectional": False, "proj_size": 0, "num_heads": None, "low_rank": None}
FROZEN = "frozen: its new numbers are random and stay so"
FEW = "few tokens: "
OPTIMIZER = "an optimizer made before holds the old parameters: make a new one"
PASS_IT = ", or pass it: optimizer=optimizer"
SHORT = {"num_layers": "layers", "num_heads": "heads"}


@dataclass(frozen=True)
class FoldRow:
    """One layer, or a stack of layers.

    Attributes:
        name: its full name.
        also: other names of the same module.
        was: what it was.
        now: what it is; None where it is skipped.
        reason: why it is skipped.
    """

    name: str
    also: tuple[str, ...]
    was: str
    now: str | None
    reason: str = ""

    @property
    def changes(self) -> bool:
        """Whether the layer is replaced."""
        return self.now is not None

    @property
    def names(self) -> str:
        """All names of the module, as a report prints them."""
        return " = ".join((self.name, *self.also))


@dataclass(frozen=True)
class Row(FoldRow):
    """One layer of a conversion.

    Attributes:
        was_parameters: its parameters before.
        now_parameters: its parameters afterwards, its own rule included.
        error: of weights nearest to the old ones, `|| W - W_old || / || W_old ||`; None where they are fresh.
        output_error: of outputs nearest to the old ones on calibration data, `|| y - y_old || / || y_old ||`, about
            the mean where there is a bias; None without calibration.
        low_rank: the rank of two factors of the same size, in a preview with calibration; else 0.
        low_rank_error: their error of outputs.
        note: what to know of its numbers: that they are frozen, zero as before, or calibrated by too little.
    """

    was_parameters: int = 0
    now_parameters: int = 0
    error: float | None = None
    output_error: float | None = None
    low_rank: int = 0
    low_rank_error: float = 0.0
    note: str = ""

    @property
    def remark(self) -> str:
        """The last column of the report."""
        parts = [self.reason or self.note]
        if self.output_error is not None:
            parts.insert(0, f"output error {self.output_error:.3f}")
        elif self.error is not None:
            parts.insert(0, f"error {self.error:.3f}")
        if self.low_rank:
            parts.insert(1, f"low rank {self.low_rank} {self.low_rank_error:.3f}")
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class FactorRow:
    """One rule: its name, the layers that use it, n, its rank before and after (None for a full table).

    Attributes:
        error: `|| new table - old table || / || old table ||`, as stored in the rule's type.
        growth: how far the factors amplify rounding errors; 1 is best.
        seconds: time of the search; 0 where an equal table was searched before.
        reason: why the rule is skipped.
    """

    name: str
    layers: tuple[str, ...]
    n: int
    before: int | None
    after: int | None
    error: float = 0.0
    growth: float = 1.0
    seconds: float = 0.0
    reason: str = ""

    @property
    def changes(self) -> bool:
        """Whether the rule is replaced."""
        return not self.reason

    @property
    def share(self) -> float:
        """`R / n^2` of the dense arithmetic afterwards; 1 for a full table."""
        return 1.0 if self.after is None else self.after / self.n**2


@dataclass(frozen=True)
class Report:
    """What a conversion changes. Prints in 80 columns, with equal layers in one row; `full` has them all.

    Attributes:
        rows: one for each layer of a kind that can be converted.
        total_before: parameters of the whole model, tied ones once.
        shared_rule: parameters of the rules that converted layers share and that are new.
        others: other kinds of modules that hold parameters: name, how many, parameters.
        unmatched: patterns of rules that fit no layer.
        done: whether the model was changed; False for a preview.
        optimizer: what became of an optimizer that was given.
    """

    rows: tuple[Row, ...]
    total_before: int
    shared_rule: int = 0
    others: tuple[tuple[str, int, int], ...] = ()
    unmatched: tuple[str, ...] = ()
    done: bool = False
    optimizer: str = ""

    @property
    def total_after(self) -> int:
        """Parameters of the whole model after the conversion."""
        return self.total_before + sum(r.now_parameters - r.was_parameters for r in self.rows) + self.shared_rule

    @property
    def output_error(self) -> float | None:
        """The root mean square of all errors of outputs, None without calibration."""
        errors = [row.output_error for row in self.rows if row.output_error is not None]
        return (sum(error**2 for error in errors) / len(errors)) ** 0.5 if errors else None

    @property
    def full(self) -> str:
        """The report with a row for each layer, however wide."""
        table = [("layer", "was", "was_parameters", "now", "now_parameters", "")]
        for row in self.rows:
            numbers = (f"{row.was_parameters:,}", row.now or "skipped", f"{row.now_parameters:,}")
            table.append((row.names, row.was, *numbers, row.remark))
        return "\n".join([*text_table(table, "<<><><"), *self._summary()])

    def __str__(self) -> str:
        cells = [(row.names, row.was, row.now or "skipped", row.remark) for row in self.rows]
        rows = folded(cells, [(row.was_parameters, row.now_parameters) for row in self.rows])
        return "\n".join([*rows, *self._summary()])

    def _summary(self) -> list[str]:
        """The lines below the rows."""
        lines = []
        if self.others:
            kinds = ", ".join(f"{count} {kind} ({numbers:,})" for kind, count, numbers in self.others)
            lines.append(
                textwrap.fill(f"other modules with parameters, skipped: {kinds}", 80, subsequent_indent="    ")
            )
        if self.unmatched:
            lines.append(f"patterns that no layer matches: {', '.join(map(repr, self.unmatched))}")
        share = 100 * self.total_after / max(self.total_before, 1)
        lines.append(
            f"{_changed(self.rows)} layers change: {self.total_before:,} -> {self.total_after:,} "
            f"parameters in all ({share:.1f} %)"
        )
        if kept := sum(row.reason.startswith(BY_DEFAULT) for row in self.rows):
            lines.append(f"{kept} of them dense by default; to convert them too: everything=True (--everything)")
        if frozen := sum(row.note == FROZEN for row in self.rows):
            lines.append(f'{frozen} frozen: take weights="nearest", or train them (requires_grad_)')
        if (error := self.output_error) is not None:
            lines += self._calibrated(error)
        last = [self.optimizer or OPTIMIZER + PASS_IT] * (self.done and any(row.changes for row in self.rows))
        return lines + last

    def _calibrated(self, error: float) -> Iterator[str]:
        """What a calibration says of all layers."""
        rows = [row for row in self.rows if row.changes]
        known = [row for row in rows if row.output_error is not None]
        yield f"error of outputs {error:.3f} (root mean square of {len(known)} layers)"
        if other := [row.name for row in rows if row.output_error is None]:
            yield f"not calibrated, with the nearest weights instead: {', '.join(other)}"
        if few := [row.name for row in known if row.note.startswith(FEW)]:
            yield f"too little calibration for {len(few)} layers, {few[0]} first: give more batches"
        if any(row.low_rank for row in known):
            better = sum(row.low_rank_error < (row.output_error or 0) for row in known if row.low_rank)
            yield f'low rank of the same size (rule="low-rank:...") is nearer in {better} of {len(known)} layers'


@dataclass(frozen=True)
class FoldReport:
    """What was folded.

    Attributes:
        rows: one for each layer or stack of layers that was ours.
        removed: names of shared rules that were taken from their base.
        before: parameters of the model before.
        after: parameters of the model now.
        done: whether to say what becomes of an optimizer.
    """

    rows: tuple[FoldRow, ...]
    removed: tuple[str, ...]
    before: int
    after: int
    done: bool = True

    def __str__(self) -> str:
        cells = [(row.names, row.was, row.now or "skipped", row.reason) for row in self.rows]
        lines = text_table([("layer", "was", "now", ""), *cells], "<<<<")
        if self.removed:
            lines.append(f"shared rules without a layer, removed: {', '.join(self.removed)}")
        lines.append(f"{_changed(self.rows)} layers folded: {self.before:,} -> {self.after:,} parameters")
        return "\n".join(lines + [OPTIMIZER] * self.done)


@dataclass(frozen=True)
class FactorReport:
    """One row for each rule, and a sentence on the optimizer (empty where no parameter changed)."""

    rows: tuple[FactorRow, ...]
    optimizer: str = ""

    def __str__(self) -> str:
        table: list[Sequence[str]] = [("rule", "layers", "n", "rank", "of_dense", "error", "growth", "seconds", "")]
        for row in self.rows:
            layers = ", ".join(row.layers[:3]) + f", ... ({len(row.layers)})" * (len(row.layers) > 3)
            rank = f"{row.before or 'full'}" + f" -> {row.after or 'full'}" * row.changes
            numbers = (f"{row.error:.1e}", f"{row.growth:.1f}", f"{row.seconds:.2f}") if row.changes else ("", "", "")
            table.append((row.name, layers, str(row.n), rank, f"{row.share:.2f}", *numbers, row.reason))
        lines = [*text_table(table, "<<><>>>><"), f"{_changed(self.rows)} rules change"]
        return "\n".join(lines + [self.optimizer] * bool(self.optimizer))


def text_table(lines: Iterable[Sequence[str]], sides: str) -> list[str]:
    """Lines of cells as columns of one width; `sides` has "<" or ">" for each column.

    Examples:
        >>> text_table([("layer", "n"), ("a", "12")], "<>")
        ['layer   n', 'a      12']
    """
    table = list(lines)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    cells = [zip(line, sides, widths, strict=True) for line in table]
    return ["  ".join(f"{cell:{side}{width}}" for cell, side, width in line).rstrip() for line in cells]


def label(module: nn.Module, rule: Rule | None = None) -> str:
    """`Conv2d(64, 128, 3x3)`, `LSTM(32, 64, layers=2)`; with a rule `Linear(64, 256, rule=4)`.

    Examples:
        >>> label(nn.LSTM(32, 64, num_layers=2))
        'LSTM(32, 64, layers=2)'
    """
    kind = type(module).__name__.replace("NonDynamicallyQuantizable", "")
    names = next((names for names in SIZES if all(hasattr(module, name) for name in names)), ())
    parts = [str(getattr(module, name)) for name in names]
    kernel = getattr(module, "kernel_size", None)
    if isinstance(kernel, tuple):
        parts.append("x".join(map(str, kernel)))
    for name, plain in PLAIN.items():
        value = getattr(module, name, plain)
        if value != plain:
            parts.append(f"{SHORT.get(name, name)}={value}")
    if rule is not None:
        parts.append(f"rule={rule_label(rule)}")
    return f"{kind}({', '.join(parts)})" if parts else kind


def rule_label(rule: Rule) -> str:
    """`4`, `4:7`, `quaternion`: a rule as the command line writes it."""
    algebra = getattr(rule, "algebra", None)
    if algebra is not None:
        return algebra.name
    return f"{rule.n}" if rule.rank is None else f"{rule.n}:{rule.rank}"


def _changed(rows: Sequence[FoldRow | FactorRow]) -> str:
    return f"{sum(row.changes for row in rows)} of {len(rows)}"
