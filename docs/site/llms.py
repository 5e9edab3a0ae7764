"""A hook of the site's build: llms.txt, what an assistant has to know of the package, made from the docs themselves."""

import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[2]
PACKAGE, CHOOSING = "pml_extensions", "choosing.md"
pages: dict[str, tuple[str, str, str]] = {}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> None:
    """Keep what a page says."""
    if not markdown.startswith(":::"):  # a page of the reference
        pages[page.file.src_uri] = page.title, page.url, markdown


def on_post_build(config: Any, **_: Any) -> None:
    """Write the file beside the pages."""
    parts = [
        f"# {config.site_name}\n\n> {config.site_description}",
        "## What to import\n\n" + "\n".join(imports()),
        in_text(pages[CHOOSING][2]),
        "## Pages\n\n" + "\n".join(f"- [{title}]({url}): {sentence(text)}" for title, url, text in pages.values()),
    ]
    Path(config.site_dir, "llms.txt").write_text("\n\n".join(parts) + "\n")


def imports() -> list[str]:
    """Return a line for every public name: how to import it, and what it is."""
    package = griffe.load(PACKAGE, search_paths=[ROOT], resolve_aliases=True)
    return [
        f"- `from {PACKAGE}.{face} import {name}`: {sentence(package[face][name].docstring.value)}"
        for face in exports(package)
        for name in exports(package[face])
    ]


def exports(module: Any) -> list[str]:
    """Return the names of ``__all__``."""
    return [str(name).strip("'\"") for name in module.exports]


def in_text(markdown: str) -> str:
    """Return a page with a heading of the second level and no pictures, whose links lead to the built pages."""
    body = re.sub(r"^#", "##", re.sub(r"!\[[^\]]*\]\([^)]*\)\n*", "", markdown).strip(), flags=re.MULTILINE)
    return re.sub(r"\]\(([\w/]+)\.md", r"](\1/", body)


def sentence(text: str) -> str:
    """Return the first sentence of a text, no heading and no table, in one line and without links."""
    prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"^#.*$", "", text, flags=re.MULTILINE)).split("\n\n")
    paragraph = next(part for part in prose if part.strip() and not part.lstrip().startswith("|"))
    return re.split(r"(?<=[.?!]) ", " ".join(paragraph.split()))[0]
