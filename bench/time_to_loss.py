"""How long a model of Shakespeare's characters trains until it is as good as nanoGPT's, and how good it is in the end.

    python bench/time_to_loss.py            # three seeds, one thread; exit code 1 if an aim is missed

Two recipes of the package train in turns, each by `tinygpt.training.resume` as everyone calls it: shakespeare-char,
which is the one to use, and nanogpt-char, which is nanoGPT's for a laptop and ends near 1.898. The loss is the mean in
nats per character over the last tenth of the file, in windows of 64 that do not overlap. It is measured every 200
steps, and the clock stands still meanwhile. Between two measurements the loss is taken to fall in a straight line: an
interpolation, and a cautious one, because a loss falls fast first. With one thread, processor time is counted: others
may be at work. The text is split as by `tinygpt train`, which cuts the only document of a source where its last tenth
begins, at the line before.

The text is not part of the project. It is looked for in TINYGPT_TEST_DATA, else in ../shared/data.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from tinygpt import training
from tinygpt.runs import read_config
from tinygpt.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
OURS, THEIRS = "shakespeare-char", "nanogpt-char"
TARGET = 1.898  # nats per character, where nanoGPT's recipe ends
WINDOW = 64  # characters that are read at once when the loss is measured
EVERY = 200  # steps between measurements
AIM_SHARE, AIM_LOSS = 0.25, 1.70  # of nanoGPT's time; nats per character, at the end
DEFAULT_DATA = Path(os.environ.get("TINYGPT_TEST_DATA") or ROOT.parent / "shared" / "data") / "tinyshakespeare.txt"


@torch.inference_mode()
def mean_loss(model, ids: torch.Tensor) -> float:
    "Nats per character over windows side by side; the rest that fills no window is left out."
    n = (len(ids) - 1) // WINDOW
    inputs, targets = ids[: n * WINDOW].view(n, WINDOW), ids[1 : n * WINDOW + 1].view(n, WINDOW)
    model.eval()
    parts = zip(inputs.split(64), targets.split(64))
    total = sum(model.loss(x, y).item() * len(x) for x, y in parts)
    model.train()
    return total / n


class Stopwatch(training.Progress):
    "Notes (seconds of training, loss) at a fixed rhythm; the clock stands still while the loss is measured."

    def __init__(self, ids: torch.Tensor, clock):
        self.ids, self.clock, self.seconds, self.curve = ids, clock, 0.0, []

    def start(self, config, model, step):
        self.model, self.n_steps, self.since = model, config.optim.steps, self.clock()

    def step(self, step):
        if step % EVERY and step != self.n_steps:
            return
        self.seconds += self.clock() - self.since
        self.curve.append((self.seconds, mean_loss(self.model, self.ids)))
        self.since = self.clock()

    def seconds_to(self, target: float) -> float | None:
        "When the loss first was at most `target`; None if it never was."
        for (t0, above), (t1, loss) in zip([(0.0, float("inf")), *self.curve], self.curve):
            if loss <= target:  # before the first measurement nothing is known
                return t1 if above == float("inf") else t0 + (t1 - t0) * (above - target) / (above - loss)
        return None


def measure(recipe: str, text: Path, seed: int, n_threads: int, folder: Path) -> Stopwatch:
    "Train by a recipe."
    never = dict(eval_every=10**9, eval_docs=1, sample_every=0, checkpoint_every=10**9)  # we measure by ourselves
    out = folder / f"{recipe}-{seed}"
    config = read_config(recipe, {"data.source": str(text)})
    own = dict(out_dir=str(out), seed=seed, device="cpu", n_threads=n_threads)
    config = replace(config, run=replace(config.run, **never, **own))
    training.create_run(config)
    tokenizer, characters = load_tokenizer(out / "tokenizer.json"), text.read_text(encoding="utf-8")
    begin = int(0.9 * len(characters))
    n_trained = training.TokenDataset(out / "data" / "train").n_tokens - 2  # without the marks around the document
    assert n_trained <= begin, "it must not have read what it is tested on"
    ids = torch.tensor(tokenizer.encode(characters[begin:]))
    clock = time.process_time if n_threads == 1 else time.perf_counter
    watch = Stopwatch(ids, clock)
    training.resume(out, evaluate=lambda model, dataset: {"bits_per_byte": 0.0}, progress=watch)
    return watch


def spread(values: list[float], form: str = ".1f") -> str:
    "Mean, and lowest to highest."
    mean, low, high = (format(v, form) for v in (statistics.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe [3]")
    parser.add_argument("--threads", type=int, default=1, help="processor threads [1]")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="tinyshakespeare.txt")
    args = parser.parse_args()
    if args.seeds < 1 or args.threads < 1:
        parser.error("--seeds and --threads must be 1 or more")
    if not args.data.is_file():
        parser.exit(2, f"time_to_loss: {args.data} not found; name the text by --data, or its folder in TINYGPT_TEST_DATA\n")
    torch.set_num_threads(args.threads)
    kind = "processor seconds" if args.threads == 1 else "seconds"
    print(f"{kind} of training, {args.threads} thread{'s' * (args.threads > 1)}; loss in nats per character")
    print(f"{'recipe':18} {'seed':>4} {f's to {TARGET}':>12} {'s in all':>9} {'last loss':>10}")
    runs = {OURS: [], THEIRS: []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for recipe in runs:
                watch = measure(recipe, args.data, seed, args.threads, Path(folder))
                reached = watch.seconds_to(TARGET)
                runs[recipe].append((reached, *watch.curve[-1]))
                shown = "never" if reached is None else f"{reached:.1f}"
                print(f"{recipe:18} {seed:4} {shown:>12} {watch.seconds:9.1f} {watch.curve[-1][1]:10.4f}", flush=True)
    return report(runs)


def report(runs: dict[str, list[tuple]]) -> int:
    "Means over the seeds, ratios seed by seed, and whether the aims are met."
    print(f"\nmean (lowest to highest) of {len(runs[OURS])}")
    for recipe, rows in runs.items():
        reached, whole, last = zip(*rows)
        first = "not by every seed" if None in reached else f"{spread(reached)} s"
        print(f"{recipe:18} to {TARGET}: {first}; in all: {spread(whole)} s; last loss: {spread(last, '.3f')}")
    pairs = list(zip(runs[OURS], runs[THEIRS]))
    ends = [theirs[1] if theirs[0] is None else theirs[0] for _, theirs in pairs]  # or its whole time
    shares = [ours[0] / end if ours[0] else float("inf") for (ours, _), end in zip(pairs, ends)]
    wholes = [ours[1] / theirs[1] for ours, theirs in pairs]
    print(f"share of nanoGPT's time to {TARGET} (its whole time where it does not get there): {spread(shares, '.3f')}; aim {AIM_SHARE}")
    print(f"share of nanoGPT's whole time: {spread(wholes, '.2f')}; loss there: at most {max(o[2] for o, _ in pairs):.3f}; aim {AIM_LOSS}")
    met = statistics.mean(shares) <= AIM_SHARE and statistics.mean(wholes) <= 1 and max(o[2] for o, _ in pairs) <= AIM_LOSS
    print("aims met" if met else "AIMS MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
