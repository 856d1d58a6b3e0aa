"""Hypercomplex adapters: a frozen model, and deltas of low rank beside its linear layers."""

from nplex.adapters.adding import add_, remove_, use_
from nplex.adapters.choosing import AdapterReport, AdapterRow

__all__ = ["add_", "use_", "remove_", "AdapterReport", "AdapterRow"]
