"""Reports as those read them that they are written for: a browser, a CI server."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags, attributes and the text of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.text += " "

    def handle_data(self, data):
        self.text += data


def iter_cases(document):
    """Every test of a JUnit document."""
    for suite in document:
        yield from suite
