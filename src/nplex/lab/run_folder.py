"""The folder that a run, a comparison, a search or a learned product writes into, and what may be there already."""

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
LOCK = "run.lock"
FORMAT = 1
PART = re.compile(r"(\.[0-9a-f]{8})?\.part$")  # ends the name of a file that was being written

RUN_FILES = {SETTINGS, RESULT, MODEL, VOCABULARY, CHECKPOINT, BEST, EPOCH.format("[0-9]*"), LOG, RULES, REPORT}
# Of each kind of folder: its files, and its settings with their types; older folders are known by these keys.
FILES: dict[str, set[str]] = {
    "run": RUN_FILES,
    "comparison": {SETTINGS, *COMPARISON, REPORT},
    "tuning": {SETTINGS, *TUNING, REPORT, TUNING_DATABASE, f"{TUNING_DATABASE}-journal", "failed-*.txt"},
    # The last was made by older versions.
    "product": {SETTINGS, RESULT, LEARNED_PAGE, LEARNED_TABLES, LEARNED_CURVE, "tables.gif"},
}
INNER = "*-seed[0-9]*"  # a run in the folder of a comparison or of a search
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
            BlockingIOError: force was asked for, and another process works in it.
            ValueError: its settings.json is damaged.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{self.folder} is a file, expected a folder; take another --out")
        if not self.folder.exists() or _hardly_begun(self.folder):
            return
        if settings_of(self.folder) is None:
            raise FileExistsError(
                f"{self.folder} is not a folder of nplex runs (nplex wrote no {SETTINGS}); take another --out"
            )
        if self.force:
            stranger = _stranger(self.folder)
            if stranger is not None:
                raise FileExistsError(f"refusing to delete {stranger}: nplex did not create it; move it away")
            _empty(self.folder)
        elif not self.resume:
            resume = "--resume goes on with it, " if self.resumable else ""
            raise FileExistsError(
                f"{self.folder} exists: {resume}--force deletes it and starts anew, --out takes another"
            )


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made if need be; free again as soon as this process ends.

    What an earlier process was writing when it was killed is deleted.

    Raises:
        BlockingIOError: another process works in the folder; names both.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        who = path.read_text("utf-8", errors="replace") or "another process"
        raise BlockingIOError(f"{folder} is in use by {who:.80}; wait for its end, or take another --out") from None
    try:
        path.write_text(f"process {os.getpid()} on {platform.node()}", "utf-8")
        for leftover in filter(_is_part, folder.iterdir()):
            leftover.unlink()
        yield
    finally:
        try:
            path.unlink(missing_ok=True)
        finally:
            lock.release()


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
    advice = f"move {folder} away or take another --out"
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or was not written by nplex ({error}); {advice}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged or was not written by nplex (no object); {advice}")
    keys = values.keys() - {"kind", "format"}
    found = next((kind for kind, wanted in KEYS.items() if wanted.keys() == keys), None)
    kind, version = values.pop("kind", found), values.pop("format", FORMAT)
    if not isinstance(kind, str) or kind not in KEYS:
        if found is None:
            return None
        raise ValueError(f"{path} is damaged: its kind is {kind!r:.40}, expected {found}; {advice}")
    if version != FORMAT or isinstance(version, bool):
        raise ValueError(f"{path} has format {version!r:.40}, this nplex reads {FORMAT}; install the newer one")
    wrong = [
        key for key, wanted in KEYS[kind].items() if type(values.get(key)) is not wanted and wanted is not object
    ]
    wrong += [key for key, wanted in KEYS[kind].items() if wanted is object and key not in values]
    if wrong:
        raise ValueError(f"{path} is damaged: {wrong[0]} is missing or of a wrong type; {advice}")
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


def _is_part(path: Path) -> bool:
    """Whether a file is what nplex was writing when it was killed."""
    return PART.search(path.name) is not None and path.is_file() and _is_of(path, set().union(*FILES.values()))


def _is_of(path: Path, names: set[str]) -> bool:
    return any(fnmatchcase(PART.sub("", path.name), name) for name in names)


def _hardly_begun(folder: Path) -> bool:
    """Whether a folder is empty, but for what a process leaves that was killed before its first file was whole."""
    return all(path.name == LOCK or _is_part(path) for path in folder.iterdir())


def _stranger(folder: Path) -> Path | None:
    """The first file or folder that nplex did not write."""
    if _hardly_begun(folder):
        return None
    settings = settings_of(folder)
    if settings is None:
        return folder
    for path in sorted(folder.iterdir()):
        if path.is_dir() and settings.kind in ("comparison", "tuning") and fnmatchcase(path.name, INNER):
            inner = _stranger(path)
            if inner is not None:
                return inner
        elif path.is_dir() and path.name == TENSORBOARD:
            strange = [p for p in sorted(path.iterdir()) if p.is_dir() or ".tfevents." not in p.name]
            if strange:
                return strange[0]
        elif path.is_dir() or not _is_of(path, {LOCK} | FILES[settings.kind]):
            return path
    return None


def _empty(folder: Path) -> None:
    """Deletes what is in a folder: first what says that a run is done, last what says that the folder is ours."""
    first, last = (RESULT, CHECKPOINT), (SETTINGS, LOCK)
    with owned(folder):
        for path in sorted(folder.iterdir(), key=lambda path: (path.name in last, path.name not in first)):
            if path.is_dir() and path.name != TENSORBOARD:
                _empty(path)
                path.rmdir()
            elif path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
