"""What the training loop costs beside the bare work: tokens per second, ours over a bare loop of the same model.

    python bench/loop_overhead.py            # exit code 1 if a ratio is below its bound

The bare loop does nothing but forward, backward and the optimizer's step, on batches that were made before. Ours is
`tinygpt.training.resume` as everyone calls it: it makes its batches, sets the rate and the seed, clips, collects the
metrics and writes them (in every turn), and checks for requests to stop. Both train the same model with the same
fused AdamW in one process, in turns of a few steps, and the median over the turns is taken. With one thread,
processor time is counted.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tinygpt import training

BOUND = 0.97
SIZES = {  # layers, width, heads, sequences per step, steps in a turn, turns
    "4 layers of 128": (4, 128, 4, 32, 5, 20),
    "6 layers of 384": (6, 384, 6, 12, 2, 10),
}


class Turns(training.Progress):
    "After every few steps of the run the bare loop takes as many of its own; both are timed."

    def __init__(self, n_steps: int, run_dir: Path, clock: Callable[[], float]):
        run = training.open_run(run_dir)
        self.n, self.clock, self.model, self.optimizers = n_steps, clock, run.model, run.optimizers
        batches = training.make_batches(run.config, run.train_set)
        self.batches, self.ours, self.bare = [batches.batch(step) for step in range(n_steps)], [], []

    def start(self, config, model, step):
        self.model.train()
        self.begin = self.clock()

    def step(self, step):
        if step % self.n:
            return
        self.ours.append(self.clock() - self.begin)
        begin = self.clock()
        for batch in self.batches:
            self.model.loss(batch.ids, batch.targets).backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        self.bare.append(self.clock() - begin)
        self.begin = self.clock()


def measure(folder: Path, name: str, n_threads: int) -> tuple[float, float, float]:
    "Tokens per second of the bare loop and of ours, and the median ratio of neighbouring turns."
    n_layers, d_model, n_heads, batch_size, n_steps, n_turns = SIZES[name]
    config = training.make_config({
        "data": {"source": str(folder / "text.txt"), "tokenizer": "char", "batch_size": batch_size, "val_frac": 0.1},
        "model": {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "context_length": 64},
        "optim": {"steps": n_steps * (n_turns + 1)},
        "run": {"out_dir": str(folder / name.replace(" ", "_")), "device": "cpu", "n_threads": n_threads, "log_every": n_steps,
                "eval_every": 10**6, "eval_docs": 1, "sample_every": 0, "checkpoint_every": 10**6},
    })  # fmt: skip
    run_dir = training.create_run(config)
    clock = time.process_time if n_threads == 1 else time.perf_counter  # processor time: others may be at work
    turns = Turns(n_steps, run_dir, clock)
    training.resume(run_dir, progress=turns)
    ours, bare = turns.ours[1:], turns.bare[1:]  # the first turn warms up
    n_tokens = n_steps * batch_size * 64
    ratio = statistics.median(b / o for o, b in zip(ours, bare))
    return n_tokens / statistics.median(bare), n_tokens / statistics.median(ours), ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dice, worst = random.Random(0), 1.0
    letters = [chr(ord("0") + i) for i in range(64)]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text.txt").write_text("".join(dice.choices(letters, k=300_000)))
        print(f"{'model':18} {'bare tokens/s':>14} {'ours':>10} {'ratio':>8}   at least {BOUND}; threads: {args.threads}")
        for name in SIZES:
            bare, ours, ratio = measure(Path(folder), name, args.threads)
            print(f"{name:18} {bare:14,.0f} {ours:10,.0f} {ratio:8.3f}", flush=True)
            worst = min(worst, ratio)
    return worst < BOUND


if __name__ == "__main__":
    sys.exit(main())
