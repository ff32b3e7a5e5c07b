"""Keep stored explorers fit for pages without a kernel: the live half goes, script and style are those of the package.

    python tests/strip_widgets.py                       # every chapter
    python tests/strip_widgets.py nbs/05_attention.ipynb
    python tests/strip_widgets.py --check               # say which, change nothing

A cell that shows an explorer stores it twice: as a widget, which needs its kernel and would stand empty beside the
other, and as HTML, which carries its script (tinygpt/static) and needs nothing.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VIEW = "application/vnd.jupyter.widget-view+json"


def strip(notebook: dict) -> int:
    "Remove widget views that have HTML beside them, and saved widget state; says how many things went."
    gone = int(notebook.get("metadata", {}).pop("widgets", None) is not None)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if VIEW in output.get("data", {}) and "text/html" in output["data"]:
                del output["data"][VIEW]
                gone += 1
    return gone


def present(html: str) -> str:
    "An explorer's HTML with the script and the style that the package has now."
    from tinygpt.pictures import script, style  # here, for few notebooks have explorers, and torch takes its time

    kind = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])["kind"]
    for start, end, now in (
        ("<style>", "</style>", style(kind)),
        ('<script type="module">', '\nstart("', script(kind)),
    ):
        before, rest = html.split(start, 1)
        html = before + start + now + rest[rest.index(end) :]
    return html


def renew(notebook: dict) -> int:
    "Bring stored explorers up to date; says how many were behind."
    behind = 0
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            stored = output.get("data", {}).get("text/html", "")
            html = "".join(stored)
            if html.startswith('<div data-tgx="') and (now := present(html)) != html:
                output["data"]["text/html"] = now.splitlines(keepends=True) if isinstance(stored, list) else now
                behind += 1
    return behind


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    paths = [Path(a) for a in arguments if not a.startswith("-")] or sorted((ROOT / "nbs").glob("*.ipynb"))
    found = 0
    for path in paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if gone := strip(notebook) + renew(notebook):
            found += 1
            print(f"{path.name}: {gone} explorer{'s' * (gone > 1)} {'not fit to be stored; run make export' if check else 'mended'}")
            if not check:  # as nbdev_clean writes it
                text = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False)
                path.write_text(text + "\n", encoding="utf-8")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
