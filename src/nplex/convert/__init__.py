"""Existing models: preview and conversion, full rules into factors and back."""

from nplex.convert.factor_report import FactorReport, FactorRow
from nplex.convert.factorize import factorize_, unfactorize_
from nplex.convert.report import Report, Row
from nplex.convert.spec import Conversion, Where, all_but, only, parse_rule
from nplex.convert.swap import convert_, preview

__all__ = [
    "preview", "convert_", "factorize_", "unfactorize_", "only", "all_but", "parse_rule", "Conversion", "Where",
    "Report", "Row", "FactorReport", "FactorRow",
]  # fmt: skip
