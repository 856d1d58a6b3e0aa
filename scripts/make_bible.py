"""Makes the style set src/nplex/lab/data/bible: verses of the King James Bible and of the World English Bible.

From the Debian packages sword-text-kjv and sword-text-web, read with mod2imp of libsword-utils:
`apt-get install libsword-utils`, then `python scripts/make_bible.py`.
"""

import argparse
import gzip
import hashlib
import html
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

MODULES = {
    "kjv": ("sword-text-kjv", "14.3-1", "engKJV2006eb"),
    "web": ("sword-text-web", "426.0-1", "engWEB2015eb"),
}
SHA256 = {
    "kjv": "9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57",
    "web": "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
}
PARTS = ("train", "valid", "test")
DROPPED = re.compile(r"<(note|title|speaker)\b[^>]*?(?<!/)>.*?</\1>", re.DOTALL)
BREAK = re.compile(r"</?(?:div|l|lg|lb|p|chapter|milestone|list|item)\b[^>]*>")
TAG = re.compile(r"<[^>]*>")
USFM = re.compile(r"\\\+?[a-z]+\d?\*? ?")  # marks of the format before OSIS, which a few verses kept
VERSE = re.compile(r"\$\$\$(.+) (\d+):(\d+)")

Reference = tuple[str, int, int]


def clean(text: str) -> str:
    """A verse without notes, titles and tags, with single spaces."""
    text = USFM.sub("", TAG.sub("", BREAK.sub(" ", DROPPED.sub(" ", text))))
    text = " ".join(html.unescape(text).replace("¶", " ").split())
    return re.sub(r" (?=[,.;:?!)’”])", "", text)


def verses(lines: Iterable[str]) -> dict[Reference, str]:
    """The verses in mod2imp's output: `$$$Book chapter:verse`, then the text; headings and empty verses left out."""
    found: dict[Reference, list[str]] = {}
    at: list[str] = []
    for line in lines:
        if line.startswith("$$$"):
            match = VERSE.fullmatch(line.rstrip("\n"))
            at = []
            if match and "0" not in match.groups()[1:]:
                at = found.setdefault((match[1], int(match[2]), int(match[3])), [])
        else:
            at.append(line)
    cleaned = {reference: clean(" ".join(text)) for reference, text in found.items()}
    return {reference: text for reference, text in cleaned.items() if text}


def part_of(book: int, chapter: int) -> str:
    """Whole chapters go to one part: a twentieth to test, a twentieth to valid."""
    return {0: "test", 1: "valid"}.get((book * 200 + chapter) % 20, "train")


def build(kjv: Mapping[Reference, str], web: Mapping[Reference, str]) -> dict[str, list[tuple[str, str]]]:
    """Pairs of verses that both have, in the order of the King James Bible; books are numbered from 1."""
    books = {book: number for number, book in enumerate(dict.fromkeys(book for book, _, _ in kjv), 1)}
    made: dict[str, list[tuple[str, str]]] = {part: [] for part in PARTS}
    for (book, chapter, verse), text in kjv.items():
        if other := web.get((book, chapter, verse)):
            made[part_of(books[book], chapter)].append((text, other))
    return made


def write(path: Path, lines: Iterable[str]) -> None:
    """Writes lines; the same lines give the same bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as packed:
        packed.write("".join(line + "\n" for line in lines).encode())


def fetch(folder: Path, side: str) -> Path:
    """Asks Debian's archive for a package."""
    package, version, _ = MODULES[side]
    done = subprocess.run(["apt-get", "download", f"{package}={version}"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"apt-get download {package}={version} failed:\n{done.stderr.strip()}")
    return next(folder.glob(f"{package}_*.deb"))


def read_package(package: Path, side: str, folder: Path) -> dict[Reference, str]:
    """The verses of a package; refuses another file than the one known."""
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    if digest != SHA256[side]:
        raise SystemExit(f"{package} is not {MODULES[side][0]}: expected SHA-256 {SHA256[side]}, got {digest}.")
    if shutil.which("mod2imp") is None:
        raise SystemExit("mod2imp is needed to read the text: apt-get install libsword-utils.")
    subprocess.run(["dpkg", "-x", package, folder], check=True)
    done = subprocess.run(
        ["mod2imp", MODULES[side][2]], capture_output=True, text=True, encoding="utf-8", check=True,
        env={**os.environ, "SWORD_PATH": str(folder / "usr/share/sword")},
    )  # fmt: skip
    return verses(done.stdout.split("\n"))


def main() -> None:
    """Makes the six files and prints what is in them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("src/nplex/lab/data/bible"))
    parser.add_argument("--kjv", type=Path, help="the Debian package, if it is here already")
    parser.add_argument("--web", type=Path, help="the same")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = {
            side: read_package((getattr(given, side) or fetch(folder, side)).resolve(), side, folder)
            for side in MODULES
        }
    given.out.mkdir(parents=True, exist_ok=True)
    print("| part | verses | words, KJV | words, WEB |\n|---|---|---|---|")
    for part, pairs in build(texts["kjv"], texts["web"]).items():
        counts = []
        for side, lines in zip(MODULES, zip(*pairs, strict=True), strict=True):
            write(given.out / f"{part}.{side}.gz", lines)
            counts.append(sum(len(line.split()) for line in lines))
        print(f"| {part} | {len(pairs):,} | {counts[0]:,} | {counts[1]:,} |")


if __name__ == "__main__":
    main()
