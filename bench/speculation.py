"""What drafts are worth: time for a token with and without, in turns, in one run, by two shipped models of the Tales.

    python bench/speculation.py                # minutes; exit code 1 if a text differs or the aim is missed
    python bench/speculation.py --quick        # seconds: does it run, are the texts equal?

The target is `tales-deep`, 16 layers, drafted for by `tales-two`, 2 layers, which has learned from it (bench/distil.py),
by `tales`, 4 layers, and by look-up; then `tales` is the target, which is small: its drafts cost nearly what they save.
Everybody writes new tales after the same prompts, at batch 1, with the same fast decode step, plain and with drafts of
several lengths. Greedy texts must be equal, token for token, to plain ones.

ms/token     of the fastest round; everybody runs once in every round. With one thread, processor time is counted.
times        how often as fast as plain writing of the same kind
a call       new tokens for each call of the target, and what the formula (1 - a^(k+1)) / (1 - a) says for them
accepted     share of the drafted tokens accepted, of those looked at; then by place in the draft
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tinygpt.generation import generate
from tinygpt.runs import load
from tinygpt.speculation import DraftStats, drafting
from tinygpt.worlds import Tales

AIM = 1.5  # times as fast as plain, for the deep target at its best draft length, greedy and drawn
KINDS = {"greedy": dict(temperature=0), "drawn, temperature 1": dict(temperature=1.0)}


@dataclass
class Entry:
    "One way to write, and how it did."

    name: str
    loop: dict  # for `generate`
    stats: DraftStats | None = None
    n_draft: int = 0
    ms: float = float("inf")  # per token, in the fastest round
    texts: list = field(default_factory=list)

    def run(self, model, prompts: list[list[int]], n_new: int, eot: int, settings: dict, clock: Callable[[], float]) -> None:
        if self.stats is not None:
            self.stats.__init__()  # the rounds are alike: keep the figures of the last
        chance = torch.Generator().manual_seed(0)
        begin = clock()
        self.texts = [generate(model, p, n_new, stop=[eot], generator=chance, **self.loop, **settings) for p in prompts]
        took = clock() - begin
        self.ms = min(self.ms, 1000 * took / sum(len(text) - len(p) for text, p in zip(self.texts, prompts)))


def entries(drafts: dict, lengths: list[int]) -> list[Entry]:
    out = [Entry("plain", {})]
    for name, draft in drafts.items():
        for k in lengths:
            stats = DraftStats()
            out.append(Entry(f"{name}, {k}", dict(loop=drafting(draft, k, stats)), stats, k))
    return out


def expected(a: float, k: int) -> float:
    return sum(a**i for i in range(k + 1))


def show(plain: Entry, e: Entry) -> str:
    head = f"  {e.name:24} {e.ms:8.3f} {plain.ms / e.ms:7.2f}"
    if e.stats is None:
        return head
    s = e.stats
    places = " ".join(f"{a / max(t, 1):.2f}" for a, t in zip(s.accepted, s.tested))
    return f"{head} {s.tokens_per_call:8.2f} ({expected(s.acceptance, e.n_draft):5.2f}) {s.acceptance:9.0%}   {places}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few short texts, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    deep, tokenizer = load("tales-deep")
    small, _ = load("tales")
    two, _ = load("tales-two")
    eot, n_prompts, n_new, rounds = tokenizer.eot_id, *((3, 25, 1) if args.quick else (10, 100, args.rounds))
    prompts = [[eot, *tokenizer.encode(" ".join(t.text.split(" ")[:4]))] for t in Tales(seed=77).tales(n_prompts)]
    ok, lengths = True, [2, 4] if args.quick else [2, 4, 8, 12]
    print(f"{n_prompts} tales of at most {n_new} new tokens each, batch 1, {args.threads} thread(s), torch {torch.__version__}")
    for target, model, drafts in (("tales-deep, 16 layers", deep, {"tales-two": two, "tales": small, "look-up": "lookup"}),
                                  ("tales, 4 layers", small, {"tales-two": two, "itself": small, "look-up": "lookup"})):
        for kind, settings in KINDS.items():
            everybody = entries(drafts, lengths)
            for e in everybody:  # warm up
                e.run(model, prompts[:1], 8, eot, settings, clock)
                e.ms = float("inf")
            for _ in range(rounds):
                for e in everybody:
                    e.run(model, prompts, n_new, eot, settings, clock)
            plain, *others = everybody
            print(f"\n{target}, {kind}\n  {'draft, tokens at a time':24} ms/token   times   a call (formula)  accepted   by place")
            for e in everybody:
                print(show(plain, e))
                if kind == "greedy" and e.texts != plain.texts:
                    ok = False
                    print(f"  WRONG: {e.name} writes another text")
            best = min(others, key=lambda e: e.ms)
            reached = plain.ms / best.ms
            print(f"  best: {best.name}, {reached:.2f} times as fast as plain", end="")
            if model is deep and not args.quick:
                print(f" (aim {AIM}: {'reached' if reached >= AIM else 'MISSED'})", end="")
                ok &= reached >= AIM
            print()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
