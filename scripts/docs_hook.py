"""A hook of mkdocs: files outside docs/ that pages link to, as results, become part of the site."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config) -> Files:
    """Adds what is linked to, and what that links to."""
    pages = [file.src_uri for file in files if file.src_uri.endswith(".md")]
    for page in pages:
        home = _home(page)
        for link in LINK.findall((ROOT / home).read_text("utf-8")):
            target = _target(home, link)
            if not target.startswith("docs/") and (ROOT / target).is_file() and target not in files.src_uris:
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
                pages += [target] if target.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Writes links as they are within the site."""
    here = page.file.src_uri

    def moved(match: re.Match) -> str:
        uri = _target(_home(here), match[1]).removeprefix("docs/")
        return posixpath.relpath(uri, posixpath.dirname(here)) if uri in files.src_uris else match[1]

    return LINK.sub(moved, markdown)


def _home(page: str) -> str:
    """Where a page of the site lies in the repository."""
    return f"docs/{page}" if (ROOT / "docs" / page).exists() else page


def _target(home: str, link: str) -> str:
    """What a link means, from the root of the repository; of a folder its README."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(home), link))
    return f"{target}/README.md" if (ROOT / target).is_dir() else target
