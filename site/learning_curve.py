"""Draws how a run learned, over the rungs of its corpus: the picture in the README.

    python site/learning_curve.py runs/tales site/learning.png
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from tinygpt.worlds import load_rungs


def main(run: str, picture: str) -> None:
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()[1:]]
    train = [(row["step"], row["bits_per_byte"]) for row in rows if "bits_per_byte" in row]
    held_out = [(row["step"], row["val_bits_per_byte"]) for row in rows if "val_bits_per_byte" in row]
    every = 25  # steps averaged into one point
    smooth = [(train[i][0], sum(bits for _, bits in train[i:i + every]) / every) for i in range(0, len(train) - every, every)]
    plt.style.use("tinygpt.static.book")
    fig, ax = plt.subplots(figsize=(8, 3.8))
    ax.plot(*zip(*smooth), color="C0", linewidth=1.2, label="training")
    ax.plot(*zip(*held_out), "o", color="C0", label="held-out tales")
    rungs, last = load_rungs("tales"), train[-1][0]
    for name in ("unigram", "bigram", "trigram", "floor"):
        level = getattr(rungs, name)
        ax.axhline(level, color="C1" if name == "floor" else "0.6", linewidth=1, linestyle="--")
        ax.text(last * 1.01, level, f"{name} {level:.3f}", va="center", fontsize=9, color="C1" if name == "floor" else "0.3")
    ax.set(xlabel="step", ylabel="bits per byte", yscale="log", xlim=(0, last), ylim=(0.18, 2.5), yticks=[0.2, 0.5, 1, 2],
           yticklabels=["0.2", "0.5", "1", "2"], title="The demo: down the rungs, towards the floor")  # fmt: skip
    ax.minorticks_off()
    ax.legend()
    fig.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
