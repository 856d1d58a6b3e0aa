"""Pretrained models made smaller: sizes chosen by measured errors, and healing."""

from nplex.pretrained.compression import compress_

__all__ = ["compress_"]
