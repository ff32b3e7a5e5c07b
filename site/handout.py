"""Copies of chapters for a class, without the solutions: each becomes an empty cell under its question.

    python site/handout.py 05 12                # writes handout/05_attention.ipynb and handout/12_sampling.ipynb
    python site/handout.py 05 --out week6       # into another folder

The rest stays as it is, with outputs and explorers. The copies need the package, not the folder nbs: links to chapters that
are not handed out are plain words there.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
SOLUTION = '#| code-summary: "Solution"'
LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./\w+/)?([\w.]+\.(?:ipynb|md|qmd))(?:#[^)]*)?\)")


def without_solutions(path: Path, given: set[str]) -> nbformat.NotebookNode:
    "A chapter with an empty cell where a solution was, and links to the given chapters only."
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(lambda link: link[0] if link[2] in given else link[1], cell.source)
        if cell.cell_type == "code" and SOLUTION in cell.source:
            cell.update(source="# your solution\n", outputs=[], execution_count=None)
            cell.metadata.pop("jupyter", None)
    return book


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters", nargs="+", help="numbers, such as 05 or 13b")
    parser.add_argument("--out", type=Path, default=Path("handout"), help="the folder to write (default: %(default)s)")
    args = parser.parse_args()
    known = {path.stem.partition("_")[0]: path for path in sorted((ROOT / "nbs").glob("*.ipynb"))}
    if unknown := [number for number in args.chapters if number not in known]:
        print(f"handout: there is no chapter {unknown[0]}; choose from {', '.join(known)}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    given = {known[number].name for number in args.chapters}
    for number in args.chapters:
        target = args.out / known[number].name
        nbformat.write(without_solutions(known[number], given), target)
        print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
