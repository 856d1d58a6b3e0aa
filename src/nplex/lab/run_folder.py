"""The folder that a run, a comparison, a search or a learned product writes into, and what may be there already."""

import json
import re
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

SETTINGS, RESULT, MODEL, VOCABULARY = "settings.json", "result.json", "model.safetensors", "vocabulary.json"
CHECKPOINT, BEST, EPOCH = "checkpoint.safetensors", "best.safetensors", "epoch-{}.safetensors"
LOG, TENSORBOARD, RULES = "log.jsonl", "tensorboard", "rules.safetensors"
REPORT = "report.html"
COMPARISON = ("compare.json", "compare.md", "compare.png")
TUNING = ("tune.json", "tune.md", "tune.png")
TUNING_DATABASE = "tune.db"
LEARNED_PAGE, LEARNED_TABLES, LEARNED_CURVE = "result.md", "rule.safetensors", "curve.png"
FORMAT = 1
PART = re.compile(r"(\.[0-9a-f]{8})?\.part$")  # ends the name of a file that was being written

RUN_FILES = {SETTINGS, RESULT, MODEL, VOCABULARY, CHECKPOINT, BEST, EPOCH.format("[0-9]*"), LOG, RULES, REPORT}
# Of each kind of folder: its files, and its settings with their types; older folders are known by these keys.
FILES: dict[str, set[str]] = {
    "run": RUN_FILES,
    "comparison": {SETTINGS, *COMPARISON, REPORT},
    "tuning": {SETTINGS, *TUNING, TUNING_DATABASE, f"{TUNING_DATABASE}-journal", "failed-*.txt"},
    "product": {
        SETTINGS,
        RESULT,
        LEARNED_PAGE,
        LEARNED_TABLES,
        LEARNED_CURVE,
        "tables.gif",
    },  # the last by older versions
}
KEYS: dict[str, dict[str, type]] = {
    "run": {"task": str, "recipe": dict, "seed": int, "data": dict},
    "comparison": {"task": str, "rules": list, "seeds": list},
    "tuning": {"tuned": object, "objective": object, "space": object, "goals": object, "lower": object},
    "product": {"learned": object, "settings": object, "seeds": object},
}


@dataclass(frozen=True)
class RunFolder:
    """A folder for results, and what to do when it is there already."""

    folder: Path
    resume: bool = False
    force: bool = False
    resumable: bool = True

    def open(self) -> None:
        """Makes the folder ready, or says why not.

        Raises:
            FileExistsError: it exists and neither resume nor force was asked for, or somebody else's files are in it.
            ValueError: its settings.json is damaged.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{self.folder} is a file, expected a folder; take another --out")
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return
        if settings_of(self.folder) is None:
            raise FileExistsError(
                f"{self.folder} is not a folder of nplex runs (nplex wrote no {SETTINGS}); take another --out"
            )
        if self.force:
            stranger = _stranger(self.folder)
            if stranger is not None:
                raise FileExistsError(f"refusing to delete {stranger}: nplex did not create it; move it away")
            shutil.rmtree(self.folder)
        elif not self.resume:
            resume = "--resume goes on with it, " if self.resumable else ""
            raise FileExistsError(
                f"{self.folder} exists: {resume}--force deletes it and starts anew, --out takes another"
            )


@dataclass(frozen=True)
class Settings:
    """What settings.json holds: the kind of folder, and its settings."""

    kind: str
    values: dict

    def json(self) -> dict:
        """The content of settings.json."""
        return {"kind": self.kind, "format": FORMAT} | self.values


def settings_of(folder: Path) -> Settings | None:
    """The settings of a folder of nplex; None where nplex wrote none. Folders of older versions name no kind.

    Raises:
        ValueError: settings.json is damaged, or was written by a newer nplex; names it.
    """
    path = folder / SETTINGS
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or was not written by nplex ({error}); take another folder") from None
    if not isinstance(values, dict):
        return None
    found = next((kind for kind, keys in KEYS.items() if keys.keys() == values.keys()), None)
    kind, version = values.pop("kind", found), values.pop("format", FORMAT)
    if kind not in KEYS:
        return None
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r}, this nplex reads {FORMAT}; install the newer one")
    wrong = [key for key, wanted in KEYS[kind].items() if not isinstance(values.get(key), wanted)]
    if wrong:
        raise ValueError(f"{path} is damaged: {wrong[0]} is missing or of a wrong type; take another folder")
    return Settings(kind, values)


def settings_for(folder: Path, kind: str) -> dict | None:
    """The settings of a folder that must be of a kind, if it has settings.

    Raises:
        ValueError: it is of another kind, or its settings.json is damaged; names it.
    """
    found = settings_of(folder)
    if found is not None and found.kind != kind:
        raise ValueError(f"{folder} holds a {found.kind}, not a {kind}; take another --out")
    return None if found is None else found.values


def _stranger(folder: Path) -> Path | None:
    """The first file or folder that nplex did not write."""
    settings = settings_of(folder)
    if settings is None:
        return folder
    for path in sorted(folder.iterdir()):
        if path.is_dir() and settings.kind in ("comparison", "tuning") and settings_of(path) is not None:
            inner = _stranger(path)
            if inner is not None:
                return inner
        elif path.is_dir() and path.name == TENSORBOARD:
            strange = [p for p in sorted(path.iterdir()) if p.is_dir() or ".tfevents." not in p.name]
            if strange:
                return strange[0]
        elif path.is_dir() or not any(fnmatchcase(PART.sub("", path.name), name) for name in FILES[settings.kind]):
            return path
    return None
