"""Pretrained models: healing after a conversion."""

from nplex.pretrained.healing import heal
from nplex.pretrained.healing_report import Healing, HealingReport, HealingRow

__all__ = ["heal", "Healing", "HealingReport", "HealingRow"]
