"""README's and the documentation's examples run as they stand there, and print what stands below them.

A page's blocks run from top to bottom, ```python ones in one namespace, ```console ones through the command line,
all in one empty folder. A ```text block right after a python block is what it prints; `...` stands for anything. A
comment before a block says more: `<!-- slow -->`, `<!-- needs onnxscript -->`, `<!-- numbers vary -->`, or
`<!-- not run: why -->`.
"""

import contextlib
import doctest
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from nplex.cli import app, spread

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"(?:<!-- (.*?) -->\n)?```(python|console)\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


class Block(NamedTuple):
    """A piece of a page, and what it prints; None where the page does not say."""

    note: str
    kind: str
    code: str
    output: str | None

    @property
    def runs(self):
        """Whether it is meant to run, and what it needs is there."""
        names = self.note.partition("needs ")[2].split(";")[0].replace(",", " ").split()
        return "not run" not in self.note and all(map(importlib.util.find_spec, names))


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    return [Block(*found) for found in BLOCK.findall(page.read_text("utf-8"))]


def run(page, slow):
    """All blocks of a page, in the present folder."""
    names = {"__name__": "__main__"}
    for block in blocks(page):
        if not block.runs or ("slow" in block.note and not slow):
            continue
        if block.kind == "console":
            for command, output in commands(block.code):
                check(output, call(command), block.note)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block.code, name_of(page), "exec"), names)
        if block.output:
            check(block.output, printed.getvalue(), block.note)


def commands(code):
    """Each command of a console block and what it prints."""
    parts = re.split(r"^\$ (.*)\n", code, flags=re.MULTILINE)
    assert parts[0] == "", "a console block begins with a command"
    return zip(parts[1::2], parts[2::2], strict=True)


def call(command):
    program, *arguments = shlex.split(command)
    assert program == "nplex"
    result = CliRunner().invoke(app, spread(arguments), prog_name="nplex")
    assert result.exit_code == 0, result.output
    return result.stdout


def check(wanted, printed, note):
    wanted, printed = ("\n".join(map(str.rstrip, text.strip().splitlines())) for text in (wanted, printed))
    if "numbers vary" in note:
        wanted, printed = (re.sub(r"[\s\d.,+─-]+", " ", text) for text in (wanted, printed))
    assert doctest.OutputChecker().check_output(wanted, printed, doctest.ELLIPSIS), printed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to be in, no other cache or network, and no rule of n = 4 identified: that takes seconds."""
    monkeypatch.setattr("nplex.lab.reporting.rule_tables.LARGEST", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.mark.usefixtures("folder", "unchecked")  # torch.export cannot trace the checks of annotations
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
def test_code_runs(page):
    run(page, slow=False)


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", [p for p in PAGES if any("slow" in b.note for b in blocks(p))], ids=name_of)
def test_slow_code_runs(page):
    """In a process of its own: torch.compile cannot trace the checks of annotations at all."""
    done = subprocess.run([sys.executable, __file__, page], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(page):
    links = LINK.findall(page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


if __name__ == "__main__":
    run(Path(sys.argv[1]), slow=True)
