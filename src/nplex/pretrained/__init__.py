"""Pretrained models made smaller: sizes chosen by measured errors, and healing."""

from nplex.pretrained.compression import compress_
from nplex.pretrained.healing import heal
from nplex.pretrained.healing_report import Healing, HealingReport, HealingRow

__all__ = ["compress_", "heal", "Healing", "HealingReport", "HealingRow"]
