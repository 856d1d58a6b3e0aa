"""Where a run writes, and what may be there already."""

import json
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

SETTINGS, RESULT, MODEL, VOCABULARY = "settings.json", "result.json", "model.safetensors", "vocabulary.json"
CHECKPOINT, BEST, EPOCH = "checkpoint.safetensors", "best.safetensors", "epoch-{}.safetensors"
LOG, TENSORBOARD, RULES = "log.jsonl", "tensorboard", "rules.safetensors"
REPORT = "report.html"
COMPARISON = ("compare.json", "compare.md", "compare.png")

RUN_FILES = {SETTINGS, RESULT, MODEL, VOCABULARY, CHECKPOINT, BEST, EPOCH.format("[0-9]*"), LOG, RULES, REPORT}
RUN_SETTINGS = {"task", "recipe", "seed", "data"}
COMPARISON_SETTINGS = {"task", "rules", "seeds"}
TUNING = ("tune.json", "tune.md", "tune.png")
TUNING_SETTINGS = {"tuned", "objective", "space", "goals", "lower"}
TUNING_DATABASE = "tune.db"
TUNING_FILES = {SETTINGS, *TUNING, TUNING_DATABASE, f"{TUNING_DATABASE}-journal", "failed-*.txt"}
LEARNED_PAGE, LEARNED_TABLES = "result.md", "rule.safetensors"
LEARNED_CURVE, LEARNED_VIDEO = "curve.png", "tables.gif"
LEARNED_SETTINGS = {"learned", "settings", "seeds"}
LEARNED_FILES = {SETTINGS, RESULT, LEARNED_PAGE, LEARNED_TABLES, LEARNED_CURVE, LEARNED_VIDEO}
KNOWN_SETTINGS = (RUN_SETTINGS, COMPARISON_SETTINGS, TUNING_SETTINGS, LEARNED_SETTINGS)


@dataclass(frozen=True)
class Place:
    """A folder for results, and what to do when it is there already."""

    folder: Path
    resume: bool = False
    force: bool = False
    resumable: bool = True

    def open(self) -> None:
        """Makes the folder ready, or says why not.

        Raises:
            FileExistsError: it exists and neither resume nor force was asked for, or somebody else's files are in it.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{self.folder} is a file, expected a folder; take another --out")
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return
        if settings_of(self.folder) is None:
            raise FileExistsError(
                f"{self.folder} is no folder of nplex runs (no run wrote its {SETTINGS}); take another --out"
            )
        if self.force:
            stranger = _stranger(self.folder)
            if stranger is not None:
                raise FileExistsError(
                    f"{stranger} was not written by a run, so --force deletes nothing; move it away"
                )
            shutil.rmtree(self.folder)
        elif not self.resume:
            resume = "--resume goes on with it, " if self.resumable else ""
            raise FileExistsError(
                f"{self.folder} exists: {resume}--force deletes it and starts anew, --out takes another"
            )


def settings_of(folder: Path) -> dict | None:
    """What a run or a comparison noted in its folder; None where there is nothing of ours."""
    try:
        value = json.loads((folder / SETTINGS).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and set(value) in KNOWN_SETTINGS else None


def _expected(settings: dict) -> set[str]:
    """The files that stand in a folder with these settings."""
    if "tuned" in settings:
        return TUNING_FILES
    if "learned" in settings:
        return LEARNED_FILES
    return {SETTINGS, *COMPARISON, REPORT} if "rules" in settings else RUN_FILES


def _stranger(folder: Path) -> Path | None:
    """A file or folder that no run writes."""
    settings = settings_of(folder) or {}
    comparison = "rules" in settings or "tuned" in settings
    expected = _expected(settings)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and comparison and settings_of(path) is not None:
            inner = _stranger(path)
            if inner is not None:
                return inner
        elif path.is_dir() and path.name == TENSORBOARD:
            strange = [p for p in sorted(path.iterdir()) if p.is_dir() or ".tfevents." not in p.name]
            if strange:
                return strange[0]
        elif path.is_dir() or not any(fnmatchcase(path.name.removesuffix(".part"), name) for name in expected):
            return path
    return None
