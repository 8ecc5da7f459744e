"""What mkdocs does not do by itself: pages from outside docs/, links that lead there, and a site that needs no network.

The documents are written to be read in the repository, where a link may lead to any file. In the site it leads to the
page made of that file, or, if there is none, is plain text. What leads nowhere is left for mkdocs to complain about.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.exceptions import BuildError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "benchmarks/README.md": "project/benchmarks.md",
    "tests/README.md": "project/tests.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}
"""Documents from outside docs/, and the pages of the site that they are."""
SOURCES = {page: source for source, page in PAGES.items()}

LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]+)\]\((?!\w+:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
FETCHED = re.compile(
    r"<(?:script|img|iframe|link(?![^>]*rel=\"canonical\"))\b[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>"
)


class Sessions(Preprocessor, Extension):
    """Fence the ``>>>`` samples of docstrings, which Markdown would quote."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  its name there
        """Take part, before fences are looked for."""
        md.preprocessors.register(self, "sessions", 30)

    def run(self, lines: list[str]) -> list[str]:
        """Return the lines, with a fence around each sample that has none."""
        out: list[str] = []
        fenced = sample = False
        for line in lines:
            text = line.lstrip()
            fenced ^= text.startswith("```")
            if not (fenced or sample) and text.startswith(">>> "):
                out.append("```pycon")
                sample = True
            elif sample and not text:
                out.append("```")
                sample = False
            out.append(text if sample else line)
        return [*out, "```"] if sample else out


def on_config(config: Any) -> Any:
    """Add what our docstrings need."""
    config["markdown_extensions"].append(Sessions())
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the documents that lie outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Have the links lead where they lead in the repository."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def led(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
        if not (ROOT / target).exists():
            return link[0]
        there = PAGES.get(target) or (target.removeprefix("docs/") if re.match(r"docs/.*\.md$", target) else None)
        if there is None:
            return link["text"]
        return f"[{link['text']}]({posixpath.relpath(there, posixpath.dirname(here) or '.')}{link['anchor'] or ''})"

    return LINK.sub(led, markdown)


def on_post_build(config: Any) -> None:
    """Refuse a site whose pages would fetch something from another host.

    Raises:
        BuildError: a page does, and which.
    """
    site = Path(config["site_dir"])
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        if found := FETCHED.search(text):
            raise BuildError(f"{page.relative_to(site)} needs the network: {found[0]}")
        if 'class="mermaid"' in text:
            raise BuildError(f"{page.relative_to(site)} needs the network: mermaid is loaded from a CDN")
