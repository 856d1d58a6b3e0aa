"""Lines of files: plain, .gz, or a member of a .tgz; what is damaged is named by file and line."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
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
        path: plain text, or .gz; a .tgz with `member`. Nothing is unpacked on disk.
        member: what the name of the archive's file ends with.

    Raises:
        ValueError: the file is damaged or not UTF-8, or a line is longer than a million bytes; names the line.
        FileNotFoundError: there is no such file, or no such member.
    """
    name = str(path) if member is None else f"{path}, {member}"
    lines = []
    with _opened(path, member) as file:
        number = 0
        while line := _next_line(file, name, number := number + 1):
            lines.append(_decoded(line, name, number))
    if lines and lines[0].startswith("\ufeff"):
        lines[0] = lines[0][1:]
    return lines


def _next_line(file: BufferedIOBase, name: str, number: int) -> bytes:
    """One line with its end, b"" at the end of the file; never more than the longest line is read."""
    try:
        line = file.readline(LONGEST_LINE + 1)
    except DAMAGED as error:
        raise ValueError(f"{name} is damaged, expected gzip: {error}") from None
    if len(line) > LONGEST_LINE:
        raise ValueError(
            f"{name}, line {number}: longer than {LONGEST_LINE:,} bytes; is it a text file with a sentence a line?"
        )
    return line


def _decoded(line: bytes, name: str, number: int) -> str:
    """Text without the line's end: only newlines end a line."""
    line = line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\r\n") else line.removesuffix(b"\n")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, line {number}: expected UTF-8, got byte 0x{line[error.start]:02x}") from None


@contextmanager
def _opened(path: Path, member: str | None) -> Iterator[BufferedIOBase]:
    """The bytes of the file, decompressed as they are read."""
    if member is not None:
        with _archive(path) as archive:
            yield _member(archive, path, member)
    elif path.suffix == ".gz":
        with gzip.open(path, "rb") as file:
            yield file
    else:
        with path.open("rb") as file:
            yield file


@contextmanager
def _archive(path: Path) -> Iterator[tarfile.TarFile]:
    """A .tgz, which is read to its end afterwards: only there stands the checksum of what was read."""
    try:
        with gzip.open(path, "rb") as packed:
            with tarfile.open(fileobj=packed, mode="r:") as archive:
                yield archive
            while packed.read(LONGEST_LINE):
                pass
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged, expected a .tgz archive: {error}") from None


def _member(archive: tarfile.TarFile, path: Path, member: str) -> BufferedIOBase:
    """The archive's first file whose name ends so."""
    for info in archive:
        if (
            info.isfile()
            and info.name.endswith(member)
            and isinstance(file := archive.extractfile(info), BufferedIOBase)
        ):
            return file
    raise FileNotFoundError(f"{path} has no file called {member}")
