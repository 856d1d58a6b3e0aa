"""Existing models: preview and conversion, back to torch, full rules into factors and back."""

import nplex.convert.loading  # noqa: F401 - torch says what to do where a state is of the other kind
from nplex.convert.checking import CheckReport, CheckRow, check
from nplex.convert.factorize import factorize_, unfactorize_
from nplex.convert.fold import fold_
from nplex.convert.report import FactorReport, FactorRow, FoldReport, FoldRow, Report, Row
from nplex.convert.spec import Conversion, Rules, parse_rule
from nplex.convert.swap import convert_, preview
from nplex.convert.where import Layers, Where, all_but, all_of, only, sensible

__all__ = [
    "preview", "convert_", "check", "fold_", "factorize_", "unfactorize_", "only", "all_but", "all_of", "sensible",
    "parse_rule", "Conversion", "Rules", "Where", "Layers", "Report", "Row", "FoldReport", "FoldRow", "FactorReport",
    "FactorRow", "CheckReport", "CheckRow",
]  # fmt: skip
