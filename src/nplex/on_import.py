"""transformers learns to read and write our models as soon as it is imported, before nplex or after."""

import importlib
import sys
import warnings
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AWAITED = "transformers.modeling_utils"  # whatever loads or saves a model imports it
OURS = "nplex.huggingface"


def register() -> None:
    """Imports nplex.huggingface, which registers; a version of transformers that cannot is a warning."""
    try:
        importlib.import_module(OURS)
    except (ImportError, AttributeError) as error:
        warnings.warn(f"transformers cannot load nplex models, it must be 4.57 or newer: {error}", stacklevel=2)


class Finder(MetaPathFinder):
    """Finds nothing itself: it lets the others find the awaited module, and registers when that has run."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The awaited module as others find it, with a loader that calls register in the end."""
        if fullname != AWAITED:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                register()

            spec.loader.exec_module = run_and_register
        return spec


if AWAITED in sys.modules:
    register()
else:
    sys.meta_path.insert(0, Finder())
