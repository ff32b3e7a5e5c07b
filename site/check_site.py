"""Looks at the rendered pages: links and anchors, words for pictures, closed solutions, and nothing from elsewhere.

    python site/check_site.py            # _site; exit code 1 and a line for each fault

`make site` calls it. Without Quarto, tests/test_site.py asks the same of the pages before they are rendered.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

MOST_BYTES = 3_000_000  # of one page, its own script and styles included


class Page(HTMLParser):
    "What a page names and what it asks for."

    def __init__(self, text: str):
        super().__init__()
        self.anchors, self.links, self.loads, self.wordless = set(), [], [], []
        self.folds, self.shown = [""], 0  # classes of the <details> we are in; solutions of which only the code is closed
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = {name: value or "" for name, value in attrs}
        self.anchors |= {has[name] for name in ("id", "name") if has.get(name)}
        if tag == "a" and has.get("href"):
            self.links.append(has["href"])
        elif tag == "link" and "stylesheet" in has.get("rel", ""):
            self.loads.append(has.get("href", ""))
        elif tag in ("script", "img", "iframe", "source", "video") and has.get("src"):
            self.loads.append(has["src"])
        if tag == "img" and "alt" not in has:
            self.wordless.append(has.get("src", "")[:80])
        if tag == "details":
            self.folds.append(has.get("class", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "details" and len(self.folds) > 1:
            self.folds.pop()

    def handle_data(self, text: str) -> None:
        self.shown += text.startswith("Solution") and "code-fold" in self.folds[-1]


def faults(root: Path) -> list[str]:
    "One line for each fault of the pages below `root`."
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(root.resolve()).as_posix()
        if path.stat().st_size > MOST_BYTES:
            found.append(f"{name}: {path.stat().st_size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}")
        found += [f"{name}: a picture without words: {source}" for source in page.wordless]
        if page.shown:
            found.append(f"{name}: {page.shown} solutions show what they print; site/pages.lua closes them")
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https") or link.startswith("//"):
                if link in page.loads:
                    found.append(f"{name}: asks another server for {link}")
                continue
            if parts.scheme:  # data:, mailto:
                continue
            start = root if parts.path.startswith("/") else path.parent
            target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{name}: {link} is not there")
            elif target in pages and parts.fragment and unquote(parts.fragment) not in pages[target].anchors:
                if "." not in parts.fragment and not parts.fragment.startswith("_"):  # methods and private names have none
                    found.append(f"{name}: {link} leads to no heading")
    return found if pages else [f"{root}: no pages; run make site"]


def main(arguments: list[str]) -> int:
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1] / "_site"
    found = faults(root)
    for line in found:
        print(line)
    print(f"check_site: {len(list(root.rglob('*.html')))} pages, " + (f"faults: {len(found)}" if found else "no faults"))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
