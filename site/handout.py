"""Copies of chapters for a class, without the solutions: each becomes an empty cell under its question.

    python site/handout.py 05 12                     # writes handout/05_attention.ipynb and handout/12_sampling.ipynb
    python site/handout.py 05#the-loop --no-outputs  # up to the end of that section, nothing printed yet
    python site/handout.py 05 --out week6            # into another folder

The rest stays as it is, with outputs and explorers. The copies need the package, not the folder nbs: links to chapters and
sections that are not handed out are plain words there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOLUTION = '#| code-summary: "Solution"'
LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./\w+/)?([\w.]+\.(?:ipynb|md|qmd))?(?:#([^)]*))?\)")
HEADING = re.compile(r"(#+) +(.+?)\s*$")
Cell = dict  # as a notebook's file holds it


def anchor(heading: str) -> str:
    "What a link to this heading ends in."
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def headings(cells: list[Cell]) -> list[tuple[int, int, int, str]]:
    "Cell, line, depth and anchor of every heading."
    found = []
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "markdown":
            for j, line in enumerate("".join(cell["source"]).splitlines()):
                if heading := HEADING.match(line):
                    found.append((i, j, len(heading[1]), anchor(heading[2])))
    return found


def up_to(cells: list[Cell], section: str) -> list[Cell]:
    "The cells from the first to the last of this section. Raises ValueError where there is no such section."
    known = headings(cells)
    names = [name for *_, depth, name in known if depth > 1]
    if section not in names:
        raise ValueError(f"there is no section {section!r}; choose from {', '.join(names)}")
    at = next(k for k, (*_, depth, name) in enumerate(known) if depth > 1 and name == section)
    following = next(((i, j) for i, j, depth, _ in known[at + 1 :] if depth <= known[at][2]), (len(cells), 0))
    kept = cells[: following[0]]
    if following[1]:  # the next heading stands inside a cell
        lines = "".join(cells[following[0]]["source"]).splitlines(True)[: following[1]]
        kept.append(cells[following[0]] | {"source": lines})
    return kept


def for_a_class(book: dict, given: dict[str, set[str]], outputs: bool) -> dict:
    "A chapter with an empty cell where a solution was, and links only to the sections `given` by file name; \"\" is itself."

    def linked(link: re.Match) -> str:
        there = given.get(link[2] or "")
        return link[0] if there is not None and (not link[3] or link[3] in there) else link[1]

    cells = []
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = LINK.sub(linked, source)
        elif cell["cell_type"] == "code":
            if SOLUTION in source:
                source = "# your solution\n"
                cell = cell | {"metadata": {}, "outputs": [], "execution_count": None}
            elif not outputs:
                source = "".join(line for line in source.splitlines(True) if not line.startswith("#|"))
                cell = cell | {"outputs": [], "execution_count": None}
                if not source.strip():
                    continue
        cells.append(cell | {"source": source.splitlines(True)})
    return book | {"cells": cells}


def chapter_named(number: str, known: dict[str, Path]) -> Path:
    "Raises ValueError, with the nearest number, where there is no such chapter."
    if number in known:
        return known[number]
    near = [name for name in known if name == f"0{number}" or (len(number) > 1 and name.startswith(number))]
    remedy = f"did you mean {' or '.join(near)}?" if near else "the numbers are those of the files in nbs, such as 05 or 13b"
    raise ValueError(f"there is no chapter {number}; {remedy}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters", nargs="+", help="numbers, such as 05 or 13b; 05#the-loop ends with that section")
    parser.add_argument("--out", type=Path, default=Path("handout"), help="the folder to write (default: %(default)s)")
    parser.add_argument("--no-outputs", action="store_true", help="leave outputs and captions out: guess before you run")
    parser.add_argument("--force", action="store_true", help="write over copies that have been changed")
    args = parser.parse_args()
    known = {path.stem.partition("_")[0]: path for path in sorted((ROOT / "nbs").glob("*.ipynb"))}
    try:
        books = {}
        for chapter in args.chapters:
            number, _, section = chapter.partition("#")
            path = chapter_named(number, known)
            books[path.name] = book = json.loads(path.read_text(encoding="utf-8"))
            if section:
                book["cells"] = up_to(book["cells"], section)
        given = {name: {heading[-1] for heading in headings(book["cells"])} for name, book in books.items()}
        copies = {}
        for name, book in books.items():
            copy = for_a_class(book, given | {"": given[name]}, not args.no_outputs)
            copies[args.out / name] = json.dumps(copy, indent=1, ensure_ascii=False) + "\n"
        for target, text in copies.items():
            if not args.force and target.exists() and target.read_text(encoding="utf-8") != text:
                raise ValueError(f"{target} is there and differs; give --force to write over it, or another folder with --out")
    except ValueError as error:
        print(f"handout: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for target, text in copies.items():
        target.write_text(text, encoding="utf-8")
        print(target)
    if not args.no_outputs:
        print(f"explorers stand still until a notebook is trusted: jupyter trust {' '.join(map(str, copies))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
