"""Hypercomplex layers with 1/n of the parameters, for any n, with a multiplication rule that is learned."""

import nplex.on_start as _on_start  # isort: skip # noqa: F401 - first: Ctrl-C while the command line loads torch
import nplex.on_import as _on_import  # noqa: F401 - waits for transformers, and registers
from nplex import adapters, algebra, nn, ops, optim
from nplex.convert import (
    all_but,
    all_of,
    check,
    convert_,
    factorize_,
    fold_,
    only,
    preview,
    sensible,
    unfactorize_,
)
from nplex.convert.apply import convert_like_
from nplex.convert.record import record
from nplex.counting import count
from nplex.estimating import estimate
from nplex.figures import show
from nplex.files import load, save
from nplex.pretrained import compress_, heal
from nplex.rule_names import identify

__version__ = "0.1.0"

__all__ = [
    "adapters", "algebra", "ops", "nn", "optim", "preview", "estimate", "convert_", "compress_", "heal", "check",
    "fold_", "factorize_", "unfactorize_", "record", "convert_like_", "only", "all_but", "all_of", "sensible",
    "count", "show", "identify", "save", "load",
]  # fmt: skip
