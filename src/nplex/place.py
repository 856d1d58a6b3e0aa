"""Where a run writes, and what may be there already."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Place:
    """A folder for results, and what to do when it is there already."""

    folder: Path
    resume: bool = False
    force: bool = False

    def open(self) -> None:
        """Makes the folder ready, or says why not.

        Raises:
            FileExistsError: it exists and neither resume nor force was asked for, or it is no run folder.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{self.folder} is a file, expected a folder; take another --out")
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return
        if not _ours(self.folder / SETTINGS):
            raise FileExistsError(
                f"{self.folder} is no folder of nplex runs (none wrote its {SETTINGS}); take another --out"
            )
        if self.force:
            shutil.rmtree(self.folder)
        elif not self.resume:
            raise FileExistsError(
                f"{self.folder} exists: --resume goes on with it, --force deletes it and starts anew, "
                f"--out takes another"
            )


def _ours(settings: Path) -> bool:
    """Whether the file is one that a run writes; a damaged one may be another program's."""
    try:
        value = json.loads(settings.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "task" in value
