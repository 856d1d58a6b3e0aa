"""Hypercomplex layers with 1/n of the parameters, for any n, with a multiplication rule that is learned."""

from nplex import algebra, nn, ops
from nplex.convert import all_but, convert_, factorize_, only, preview, unfactorize_
from nplex.count import count

__version__ = "0.1.0"

__all__ = ["algebra", "ops", "nn", "preview", "convert_", "factorize_", "unfactorize_", "only", "all_but", "count"]
