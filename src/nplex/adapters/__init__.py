"""Hypercomplex adapters: a frozen model, and deltas of low rank beside its linear layers."""

from nplex.adapters.adding import add_, remove_, use_
from nplex.adapters.choosing import AdapterReport, AdapterRow
from nplex.adapters.merging import merge_, unmerge_
from nplex.adapters.storing import load, save

__all__ = ["add_", "use_", "remove_", "merge_", "unmerge_", "save", "load", "AdapterReport", "AdapterRow"]
