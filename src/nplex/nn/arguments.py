"""Checks of what layers are made with: whole numbers, widths that n fits into, types to compute in."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_positive(name: str, value: int) -> int:
    """A whole number of 1 or more, as Python's int: numpy's are taken, as torch takes them, bools are not.

    Raises:
        ValueError: it is something else; names the argument.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number


def check_widths(n: int, **widths: int) -> list[int]:
    """The widths as Python's ints; n is at most each of them.

    Raises:
        ValueError: one is not a positive integer, or n is larger; names the width.
    """
    checked = [check_positive(name, width) for name, width in widths.items()]
    for name, width in zip(widths, checked, strict=True):
        if n > width:
            raise ValueError(f"n = {n} is larger than {name} = {width}: take a rule with n of {width} or less")
    return checked


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuses types that the products are not for: complex ones, whole numbers, float8.

    Raises:
        ValueError: says which types there are.
    """
    if dtype is not None and dtype not in TYPES:
        raise ValueError(
            f"a layer with a rule computes in float16, bfloat16, float32 or float64, got {dtype}; complex numbers of "
            f"two real ones are an algebra here: rule=nplex.algebra.complex_"
            if dtype.is_complex
            else f"a layer with a rule computes in float16, bfloat16, float32 or float64, got {dtype}"
        )


def plain(value: Any) -> Any:
    """Numbers of numpy as Python's, in tuples and lists too; everything else as it is."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(plain, value))
    return value.item() if getattr(value, "ndim", None) == 0 else value


def guarded(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What a layer hands to torch's Module._apply, for `.to` and its like.

    Components of four or five dimensions are no images: memory_format must not move their numbers, so they are
    shown as matrices. Types are checked before a parameter takes them.
    """

    def apply(tensor: Tensor) -> Tensor:
        is_image = tensor.ndim in (4, 5)
        with torch.no_grad():
            changed = change(tensor.flatten(1) if is_image else tensor)
        check_dtype(changed.dtype)
        return changed.unflatten(1, tensor.shape[1:]) if is_image else changed

    return apply
