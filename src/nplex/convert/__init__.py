"""Existing models: preview and conversion."""

from nplex.convert.report import Report, Row
from nplex.convert.spec import Conversion, Where, all_but, only, parse_rule
from nplex.convert.swap import convert_, preview

__all__ = ["preview", "convert_", "only", "all_but", "parse_rule", "Conversion", "Where", "Report", "Row"]
