"""Lines of files: plain, .gz, or a member of a .tgz; what is damaged is named by file and line."""

import codecs
import gzip
import io
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_LINE = 1 << 20
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError)


def find_file(folder: Path, name: str) -> Path:
    """`folder/name.gz` or `folder/name`.

    Raises:
        FileNotFoundError: neither is there.
    """
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{folder} has no {name} or {name}.gz; a data folder holds train, dev and test, see docs/tasks.md"
    )


def read_lines(path: Path, member: str | None = None) -> list[str]:
    """The lines of a UTF-8 text file, without their ends.

    Args:
        path: plain text, or .gz; a .tgz with `member`. Nothing is unpacked on disk. `-` is what comes in by stdin.
        member: what the name of the archive's file ends with.

    Raises:
        ValueError: the file is damaged or not UTF-8, or a line is longer than a million bytes; names the line.
        FileNotFoundError: there is no such file, or no such member.
    """
    name, lines = str(path) if member is None else f"{path}, {member}", []
    try:
        with _opened(path, member) as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
                if len(line) > LONGEST_LINE:
                    longer = f"longer than {LONGEST_LINE:,} bytes; is it a text file with a sentence a line?"
                    raise ValueError(f"{name}, line {number}: {longer}")
                lines.append(_decoded(line, name, number))
    except DAMAGED as error:
        raise ValueError(f"{name} is damaged, expected gzip: {error}") from None
    return lines


def _decoded(line: bytes, name: str, number: int) -> str:
    """Text without the line's end, and without the mark that may begin a file: only newlines end a line."""
    text = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"")
    text = text[:-2] if text.endswith(b"\r\n") else text.removesuffix(b"\n")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, line {number}: expected UTF-8, got byte 0x{text[error.start]:02x}") from None


@contextmanager
def _opened(path: Path, member: str | None) -> Iterator[io.BufferedIOBase]:
    """The bytes of the file, decompressed as they are read."""
    if str(path) == "-":
        yield sys.stdin.buffer  # pyright: ignore[reportReturnType] - it has what is used
        return
    packed = member is not None or path.suffix == ".gz"
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        if member is None:
            yield file
            return
        with tarfile.open(fileobj=file, mode="r:") as archive:
            found = (info for info in archive if info.isfile() and info.name.endswith(member))
            inside = archive.extractfile(info) if (info := next(found, None)) else None
            if not isinstance(inside, io.BufferedIOBase):
                raise FileNotFoundError(f"{path} has no file called {member}")
            yield inside
        while file.read(LONGEST_LINE):  # only at the end stands the checksum of what was read
            pass
