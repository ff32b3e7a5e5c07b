"""Take the live half out of stored explorers: a page without a kernel would show it empty, beside the half that lives.

    python tests/strip_widgets.py                       # every chapter
    python tests/strip_widgets.py nbs/05_attention.ipynb
    python tests/strip_widgets.py --check               # say which, change nothing

A cell that shows an explorer stores it twice: as a widget, which needs its kernel, and as HTML, which needs nothing.
"""

from __future__ import annotations

import json
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


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    paths = [Path(a) for a in arguments if not a.startswith("-")] or sorted((ROOT / "nbs").glob("*.ipynb"))
    found = 0
    for path in paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if gone := strip(notebook):
            found += 1
            print(f"{path.name}: {gone} widget{'s' * (gone > 1)} {'to strip; run make export' if check else 'stripped'}")
            if not check:  # as nbdev_clean writes it
                text = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False)
                path.write_text(text + "\n", encoding="utf-8")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
