"""How far readers come in the sampling explorers that pages hold without a kernel.

    python tests/reach.py                       # every chapter, and the home page
    python tests/reach.py nbs/12_sampling.ipynb page.html

For readers who draw at temperature 1: how many draws they get on average before the stored tree ends, and how many
of a hundred get ten, or reach the end of the tale before.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def stored(path: Path) -> list[tuple[str, dict]]:
    "HTML and data of the sampling explorers in a notebook or a page."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
        text = "\n".join("".join(output.get("data", {}).get("text/html", "")) for output in outputs)
    found = []
    for html in re.findall(r'<div data-tgx=.*?start\("\w+"\);</script></div>', text, re.S):
        told = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])
        if told["kind"] == "sampling":
            found.append((html, told))
    return found


def next_probs(packed: str) -> torch.Tensor:
    "What the model says at a place."
    step, steps = packed.split()
    return (torch.frombuffer(bytearray(base64.b64decode(steps)), dtype=torch.int16) * float(step)).softmax(0)


def reach(tree: dict[str, str], end: int | None, deep: int = 10) -> tuple[float, float]:
    "Mean number of draws until the tree ends; share of readers with `deep` draws, or a whole tale."
    chance, draws, far = {(): 1.0}, 0.0, 0.0
    places = {tuple(map(int, path.split(","))) if path else (): packed for path, packed in tree.items()}
    for place in sorted(places, key=len):
        draws += chance[place]  # whoever comes by draws once
        far += chance[place] * (len(place) == deep - 1)
        probs = next_probs(places[place]).tolist()
        for id, p in enumerate(probs):
            if (*place, id) in places:
                chance[(*place, id)] = chance[place] * p
        if end is not None and len(place) < deep - 1:
            far += chance[place] * probs[end]
    return draws, far


def main(arguments: list[str]) -> int:
    paths = [Path(a) for a in arguments] or [*sorted((ROOT / "nbs").glob("*.ipynb")), ROOT / "site" / "_parts" / "explorer.md"]
    print("stored in               places     kB   draws   ten or the end")
    for path in paths:
        for html, told in stored(path):
            tree = told["state"]["tree"]
            draws, far = reach(tree, told["data"].get("end"))
            print(f"{path.name:22} {len(tree):7} {len(html) / 1000:6.0f} {draws:7.1f} {far:10.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
