"""Pretrained models made smaller: sizes chosen by measured errors, and healing."""

__all__: list[str] = []
