"""How far readers come in the sampling explorers that pages hold without a kernel.

    python tests/reach.py                       # every chapter, and the home page
    python tests/reach.py nbs/12_sampling.ipynb page.html

For readers who draw at temperature 1: how many draws they get on average before the stored tree ends, and how many
of a hundred get ten, or reach the end of the tale before. And how many draws they get who take a stored word in the
place of each that is not, and how often they do so.
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


def led(tree: dict[str, str], end: int | None) -> tuple[float, float]:
    "Mean number of draws of readers who are led back to the stored words wherever a draw leaves them; how often they are."
    places = {tuple(map(int, path.split(","))) if path else (): packed for path, packed in tree.items()}
    ahead: dict[tuple[int, ...], tuple[float, float]] = {}
    for place in sorted(places, key=len, reverse=True):
        probs = next_probs(places[place]).tolist()
        stored = {id: ahead.get((*place, id), (0.0, 0.0)) for id in range(len(probs)) if (*place, id) in places or id == end and probs[end] >= 0.01}
        held = sum(probs[id] for id in stored)
        mean = [sum(probs[id] * further[i] for id, further in stored.items()) / held if any((*place, id) in places for id in stored) else 0.0 for i in (0, 1)]
        ahead[place] = (1 + mean[0], 1 - held + mean[1] if mean[0] else 0.0)
    return ahead[()]


def main(arguments: list[str]) -> int:
    paths = [Path(a) for a in arguments] or [*sorted((ROOT / "nbs").glob("*.ipynb")), ROOT / "site" / "_parts" / "explorer.md"]
    print("stored in               places     kB   draws   ten or the end   led back: draws, times")
    for path in paths:
        for html, told in stored(path):
            tree = told["state"]["tree"]
            draws, far = reach(tree, told["data"].get("end"))
            further, times = led(tree, told["data"].get("end"))
            print(f"{path.name:22} {len(tree):7} {len(html) / 1000:6.0f} {draws:7.1f} {far:10.0%} {further:20.1f} {times:6.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
