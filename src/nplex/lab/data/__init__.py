"""The data sets that come with the package; each folder holds its licence and how it was made."""

from importlib.resources import files
from pathlib import Path


def builtin(name: str) -> Path:
    """The folder of a built-in set.

    Raises:
        FileNotFoundError: there is none of this name.
    """
    folder = Path(str(files("nplex.lab.data"))) / name
    if not folder.is_dir():
        there = sorted(path.name for path in folder.parent.iterdir() if path.is_dir() and path.name != "__pycache__")
        raise FileNotFoundError(f"no built-in data set is called {name!r}; there is {', '.join(there)}")
    return folder
