"""The documentation as a site: it builds without a warning, needs no network, and its reference is whole."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nplex
import nplex.distributed

ROOT = Path(__file__).parents[1]
LOADED = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]*)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a link or a name that leads nowhere is an error."""
    for module in ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason="needs nplex[docs]")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_builds_and_loads_nothing_from_elsewhere(site):
    pages = [*site.glob("**/*.html")]
    assert len(pages) > 15
    assert {url for page in pages for url in LOADED.findall(page.read_text("utf-8"))} == set()


@pytest.mark.parametrize(
    "package",
    [nplex, nplex.nn, nplex.algebra, nplex.ops, nplex.adapters, nplex.distributed],
    ids=lambda package: package.__name__,
)
def test_every_public_name_is_in_the_reference(site, package):
    page = (site / "api" / f"{package.__name__.rpartition('.')[2]}.html").read_text("utf-8")
    callables = [name for name in package.__all__ if callable(getattr(package, name))]
    assert [
        name for name in callables if not any(f'id="{anchor}"' in page for anchor in anchors(package, name))
    ] == []


def test_tables_are_what_the_results_say():
    """Each table of README and docs is made from the JSON of the run that measured it."""
    command = [sys.executable, ROOT / "scripts" / "tables.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), (
        f"stale tables, run scripts/tables.py: {done.stdout}{done.stderr}"
    )


def anchors(package, name):
    """What the reference may call an object: by its module too, where a module has its own name."""
    public = f"{package.__name__}.{name}"
    own = f"{getattr(package, name).__module__}.{name}"
    return {own} if public in sys.modules else {public, own}
