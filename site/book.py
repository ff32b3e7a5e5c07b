"""The book as the written pages need it: its chapters, and text as Markdown."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SITE = Path(__file__).resolve().parent
ROOT = SITE.parent
MARK = "<!-- Written by site/make_pages.py: change what it reads, and run it again. -->"


@dataclass(frozen=True)
class Chapter:
    "A notebook: its file, its title with the number, its one sentence, and the module it exports (or None)."

    path: Path
    title: str
    sentence: str
    module: str | None

    @property
    def number(self) -> str:
        return self.title.partition(" · ")[0]

    def link(self, text: str = "", anchor: str = "") -> str:
        "A Markdown link from a page in site/; JupyterLab follows it, and Quarto turns it into the page."
        return f"[{text or self.title}](../nbs/{self.path.name}{'#' + anchor if anchor else ''})"


@cache
def chapters() -> list[Chapter]:
    found = []
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        cells = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        title = re.search(r'(?m)^title:\s*"?(.*?)"?\s*$', cells[0])
        sentence = re.search(r"(?m)^> (.*(?:\n> .*)*)", cells[1])
        module = next((m[1] for c in cells if (m := re.search(r"(?m)^#\|\s*default_exp\s+(\S+)", c))), None)
        words = re.sub(r"\n> ", " ", sentence[1]) if sentence else ""
        found.append(Chapter(path, title[1] if title else path.stem, words, module))
    return found


def front(title: str, description: str) -> str:
    return f'---\ntitle: "{title}"\ndescription: "{description}"\ntoc-depth: 2\n---\n\n{MARK}\n'


def plain(text: str) -> str:
    "Text whose characters mean nothing to Markdown, but for the code in backticks; papers become links."
    pieces = re.split(r"(`[^`]+`)", text)
    for i, piece in enumerate(pieces):
        if i % 2 and "|" in piece:  # a bar ends a table's cell, in code too
            inner = piece.strip("`").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
            pieces[i] = f"<code>{inner}</code>"
        elif i % 2 == 0:
            piece = re.sub(r"([\\|*_\[\]<>$~^@#])", r"\\\1", piece)
            pieces[i] = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", piece)
    return "".join(pieces)


def code(value: str) -> str:
    return plain(f"`{value}`") if value else ""


def table(header: tuple[str, ...], widths: tuple[int, ...], rows: list[tuple[str, ...]]) -> str:
    "A pipe table; `widths` are shares of the line, for pandoc gives long lines their room by the dashes."
    lines = [header, tuple("-" * width for width in widths), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
