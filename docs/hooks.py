"""What the site shows from outside docs/: the README as its home, measured results, the cards of the weights, and the changelog.

In the repository, pages link to these where they lie. On the site, such links lead to the page that shows the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FOLDERS = {  # of the repository -> of the site
    "benchmarks/results": "results",
    "src/quadtree_attention/weights/embedded": "cards",
    "examples": "examples",
}
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that lie elsewhere."""
    places = dict(PAGES)
    for folder, place in FOLDERS.items():
        for path in sorted((ROOT / folder).iterdir()):
            if path.suffix in (".md", ".png", ".jpg"):
                places[f"{folder}/{path.name}"] = f"{place}/{path.name}"
    for path, place in places.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at the site's pages; a file that the site does not show is named instead."""
    here = page.file.src_uri
    source = Path(page.file.abs_src_path).parent

    def link(found: re.Match[str]) -> str:
        image, text, target, part = found.groups()
        path = (source / target).resolve().relative_to(ROOT).as_posix()
        place = PAGES.get(path, path.removeprefix("docs/"))
        for folder, name in FOLDERS.items():
            if path.startswith(f"{folder}/"):
                place = name + path.removeprefix(folder)
        if files.get_file_from_path(place) is None:
            if (ROOT / path).exists() and not path.startswith("docs/"):
                return f"{text} (`{path}`)"
            return found[0]  # mkdocs tells that it leads nowhere
        return f"{image}[{text}]({'../' * here.count('/')}{place}{part or ''})"

    return _LINK.sub(link, markdown)
