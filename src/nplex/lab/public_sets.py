"""Public data sets by name, through Hugging Face's datasets, as files of the tasks' own form."""

import gzip
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nplex.files import replace_file

PARTS = ("train", "dev", "test")
ENTAILS = {"entails": "entailment"}  # SciTail's word


@dataclass(frozen=True)
class Public:
    """A set on the hub.

    Attributes:
        task: that reads it.
        hub: its name there.
        config: of sets that have several.
        splits: what is train, dev and test.
        columns: of the two texts.
        label: the column of the label; "" for two sides of a translation, whose files end as the columns are called.
        source: the column that says what kind of example each is.
        licence: as its page states.
    """

    task: str
    hub: str
    columns: tuple[str, str]
    licence: str
    config: str | None = None
    splits: tuple[str, str, str] = ("train", "validation", "test")
    label: str = ""
    source: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


NLI = {"task": "inference", "columns": ("premise", "hypothesis"), "label": "label"}
SETS: dict[str, Public] = {
    "snli": Public(hub="stanfordnlp/snli", licence="CC BY-SA 4.0", **NLI),
    "mnli": Public(
        hub="nyu-mll/multi_nli", licence="OANC, CC BY", source="genre",
        splits=("train", "validation_matched", "validation_mismatched"), **NLI,
    ),
    "scitail": Public(hub="allenai/scitail", licence="Apache-2.0", config="tsv_format", names=ENTAILS, **NLI),
    "multi30k": Public(
        task="translation", hub="bentrevett/multi30k", columns=("de", "en"),
        licence="non-commercial research and education",
    ),
}  # fmt: skip


def fetch(name: str, folder: Path, *, copy: str = "", report: Callable[[str, int], None] | None = None) -> list[Path]:
    """Writes train, dev and test of a public set, so that `--data` can name the folder.

    Examples without a label (-1 in SNLI) or with an empty side are left out, and white space becomes single spaces.

    Args:
        name: of SETS.
        folder: for the files; made if it is not there.
        copy: another place that datasets can load: a folder of Parquet or JSON-lines files, another name on the hub.
        report: called after each part with its name and how many examples it has.

    Raises:
        ImportError: datasets is not installed; names the command.
        ValueError: there is no such set, or its columns or labels are others; says what was expected.
        FileExistsError: a file is there already.
        OSError: it could not be read, as without a network.
    """
    if name not in SETS:
        raise ValueError(f"unknown public set {name!r}; choose from {', '.join(SETS)}")
    public = SETS[name]
    written: list[Path] = []
    for part, split in zip(PARTS, public.splits, strict=True):
        paths = [folder / f"{part}.{end}.gz" for end in (("tsv",) if public.label else public.columns)]
        if there := next((path for path in paths if path.exists()), None):
            raise FileExistsError(f"{there} exists; delete it, or take another folder")
        rows = list(_rows(_loaded(public, copy or public.hub, split), public, f"{name}, {split}"))
        for path, lines in zip(paths, zip(*rows, strict=True) if rows else [()] * len(paths), strict=True):
            packed = gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)
            replace_file(path, lambda part, packed=packed: part.write_bytes(packed))
        written += paths
        if report is not None:
            report(part, len(rows))
    return written


def _loaded(public: Public, source: str, split: str) -> Any:
    """A split, as datasets gives it; what goes wrong on the way is one error."""
    try:
        import datasets
    except ImportError:
        raise ImportError("fetching needs datasets, which is not installed: pip install 'nplex[data]'") from None
    try:
        return datasets.load_dataset(source, public.config if source == public.hub else None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OSError(f"{source} could not be loaded ({reason}); with a copy of it: --from FOLDER") from None


def _rows(loaded: Any, public: Public, where: str) -> Iterator[tuple[str, ...]]:
    """What stands in each file's line."""
    wanted = [column for column in (*public.columns, public.label, public.source) if column]
    if missing := [column for column in wanted if column not in loaded.column_names]:
        raise ValueError(
            f"{where}: expected the columns {', '.join(wanted)}, got {', '.join(loaded.column_names)} "
            f"({missing[0]} is missing)"
        )
    label_of = _labels(loaded, public, where)
    for row in loaded:
        texts = [" ".join(str(row[column]).split()) for column in public.columns]
        label = label_of(row[public.label]) if public.label else None
        if not all(texts) or label == "":
            continue
        if label is None:
            yield tuple(texts)
        else:
            yield ("\t".join([label, *texts, *([str(row[public.source])] if public.source else [])]),)


def _labels(loaded: Any, public: Public, where: str) -> Callable[[Any], str]:
    """From a row's label to our word for it; "" for none."""
    from nplex.lab.recipes.natural_language_inference import LABELS

    names = getattr(loaded.features.get(public.label), "names", None) or list(LABELS)

    def label_of(value: Any) -> str:
        if value in (None, -1, "-", ""):
            return ""
        name = names[value] if isinstance(value, int) and value < len(names) else str(value)
        name = public.names.get(name, name)
        if name not in LABELS:
            raise ValueError(f"{where}: expected the labels {', '.join(LABELS)}, got {value!r}")
        return name

    return label_of
