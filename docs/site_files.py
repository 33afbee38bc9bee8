"""What the site holds beside docs/: the pages of other folders, README as its home, and the files that pages link to.

On GitHub and on a disk a page links to a file beside it; here such a link leads to that file's page, or to its copy.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {  # of the repository, and what they are called here
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "android_demo/README.md": "android_demo.md",
    "benchmarks/README.md": "benchmarks.md",
}
_SOURCES = {place: source for source, place in PAGES.items()}
_LINK = re.compile(r"(?<=\]\()(?!https?:)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages, and what any page links to."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    pages = [file for file in files if file.is_documentation_page()]
    for page in pages:
        for link in _LINK.findall(page.content_string):
            place = _place(link, page.src_uri)
            if files.get_file_from_path(place) is None and place.startswith("files/"):
                original = ROOT / place.removeprefix("files/")
                files.append(File.generated(config, place, abs_src_path=str(original)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn each link of a page of the repository into one of the site."""
    here = page.file.src_uri
    if here.startswith("files/"):
        return markdown
    back = posixpath.dirname(here) or "."

    def relinked(found: re.Match[str]) -> str:
        return posixpath.relpath(_place(found[1], here), back)

    return _LINK.sub(relinked, markdown)


def _place(link: str, page: str) -> str:
    """Where a file of the repository is in the site; of a folder, the page that is about it."""
    folder = posixpath.dirname(_SOURCES.get(page, f"docs/{page}"))
    target = posixpath.normpath(posixpath.join(folder, link))
    while (ROOT / target).is_dir():
        about = posixpath.join(target, "README.md")
        target = about if about in PAGES else posixpath.dirname(target)
    if target in PAGES:
        return PAGES[target]
    return target.removeprefix("docs/") if target.startswith("docs/") else f"files/{target}"
