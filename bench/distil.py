"""A draft learns from its target: the small model is trained further on the odds that the large one gives.

    python bench/distil.py runs/tales-two --out data/models/tales-two       # as the shipped one was made; minutes of one core
    python bench/distil.py tales-two --out runs/try --quick                 # seconds: does it run?

The target writes tales of its own, greedily and drawn, after the first words of tales that nobody else gets; real tales
join them. On every token of these texts the draft is taught the target's odds (chapter 15, `imitation_loss`; the idea is
DistillSpec's, arXiv:2310.08461). Printed on the way: how many of the drafted tokens the target accepts, and how many
tokens each of its calls gives, on tales that were in no training. What comes out is a run directory, as `load` takes it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from pathlib import Path

import torch

from tinygpt.data import documents
from tinygpt.evaluation import evaluate_text
from tinygpt.generation import generate
from tinygpt.optim import clip_grad_norm, cosine_schedule, make_optimizer
from tinygpt.runs import find_checkpoint, load, read_facts, save_checkpoint, whole_directory
from tinygpt.speculation import imitation_loss, speculate
from tinygpt.worlds import Tales


def beginnings(tokenizer, n: int, seed: int, n_words: tuple[int, int]) -> list[list[int]]:
    "The first words of new tales, the shortest first."
    lengths = random.Random(seed)
    texts = (" ".join(tale.text.split(" ")[: lengths.randint(*n_words)]) for tale in Tales(seed=seed).tales(n))
    return sorted(([tokenizer.eot_id, *tokenizer.encode(text)] for text in texts), key=len)


def written(model, starts: list[list[int]], eot: int, temperature: float, n_new: int = 150) -> list[list[int]]:
    "How the model goes on with them, 128 at a time."
    chance = torch.Generator().manual_seed(0)
    parts = [starts[i : i + 128] for i in range(0, len(starts), 128)]
    return [text for part in parts for text in generate(model, part, n_new, temperature, stop=[eot], generator=chance)]


def batches(texts: list[list[int]], n: int, eot: int, context: int):
    "Endlessly: n texts of similar length, padded, and which of their tokens are read. (n, T) each."
    dice = random.Random(0)
    while True:
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), dice.random()))
        groups = [order[i : i + n] for i in range(0, len(order) - n + 1, n)]
        dice.shuffle(groups)
        for group in groups:
            rows = [texts[i][:-1][:context] for i in group]  # nothing is to be said after the last token
            ids = torch.full((n, max(map(len, rows))), eot)
            for row, text in zip(ids, rows):
                row[: len(text)] = torch.tensor(text)
            yield ids, torch.arange(ids.shape[1]) < torch.tensor([[len(text)] for text in rows])


def agreement(target, draft, prompts: list[list[int]], eot: int) -> str:
    "What a draft of 8 tokens is worth, greedily and drawn."
    out = []
    for name, temperature in (("greedy", 0), ("drawn", 1.0)):
        chance, n_accepted, n_tested, n_tokens, n_calls = torch.Generator().manual_seed(0), 0, 0, 0, 0
        for prompt in prompts:
            _, s = speculate(target, draft, prompt, 100, 8, temperature=temperature, stop=[eot], generator=chance)
            n_accepted, n_tested = n_accepted + sum(s.accepted), n_tested + sum(s.tested)
            n_tokens, n_calls = n_tokens + len(s.written_by), n_calls + s.n_calls
        out.append(f"{name} {n_accepted / n_tested:.1%} accepted, {n_tokens / n_calls:.2f} tokens a call")
    return "; ".join(out)


def teach(target, draft, stream, args, report) -> None:
    "Train the draft, in place, on the target's odds."
    optimizers = make_optimizer(draft, "muon", lr=args.lr, muon_lr=args.muon_lr, betas=(0.9, 0.95))
    for step in range(args.steps):
        ids, real = next(stream)
        with torch.no_grad():
            wanted = target(ids)[real]  # (tokens, V)
        loss = imitation_loss(wanted, draft(ids)[real])
        loss.backward()
        clip_grad_norm(list(draft.parameters()), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = cosine_schedule(step, group["initial_lr"], 0.02 * group["initial_lr"], args.steps // 40, args.steps)
            optimizer.step()
            optimizer.zero_grad()
        report(step + 1, loss.item())


def save(draft, tokenizer, args) -> None:
    "A run directory: that of the draft as it was, with the new weights in half precision."
    found = find_checkpoint(args.draft)
    state, run = read_facts(found / "state.json", "tinygpt.checkpoint"), found.parents[1]
    bits = evaluate_text(draft, tokenizer, "tales", max_docs=250).bits_per_byte
    facts = state["facts"] | {"learned_from": args.target, "steps_of_learning": args.steps, "bits_per_byte": bits}
    with whole_directory(Path(args.out), overwrite=args.overwrite) as part:
        save_checkpoint(part / "checkpoints" / found.name, draft.half(), None, state["step"], **facts)
        for name in ("config.yaml", "tokenizer.json", "metrics.jsonl", "README.md"):
            if (run / name).exists():
                shutil.copyfile(run / name, part / name)
        best = json.loads((run / "best.json").read_text(encoding="utf-8")) | {"bits_per_byte": bits}
        (part / "best.json").write_text(json.dumps(best, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("draft", help="the model that learns: a run directory or a shipped name")
    p.add_argument("--target", default="tales-deep", help="the model it learns from (tales-deep)")
    p.add_argument("--out", required=True, help="the directory to write")
    p.add_argument("--overwrite", action="store_true", help="replace that directory")
    p.add_argument("--steps", type=int, default=1000)
    p.add_argument("--texts", type=int, nargs=3, default=[3072, 1024, 1024], help="greedy, drawn, and real tales (3072 1024 1024)")
    p.add_argument("--batch", type=int, default=16, help="texts in a step (16)")
    p.add_argument("--lr", type=float, default=0.003, help="of AdamW (0.003)")
    p.add_argument("--muon_lr", type=float, default=0.002, help="of Muon (0.002)")
    p.add_argument("--quick", action="store_true", help="64 texts of each kind, 20 steps")
    args = p.parse_args()
    if args.quick:
        args.steps, args.texts = 20, [64, 64, 64]
    if Path(args.out).exists() and not args.overwrite:
        p.error(f"--out {args.out} exists; give another directory, or --overwrite")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.process_time()
    (target, tokenizer), (draft, _) = load(args.target), load(args.draft)
    eot = tokenizer.eot_id
    n_greedy, n_drawn, n_tales = args.texts
    texts = written(target, beginnings(tokenizer, n_greedy, 1000, (1, 10)), eot, 0)
    texts += written(target, beginnings(tokenizer, n_drawn, 2000, (1, 10)), eot, 1.0)
    real = [text for _, text in zip(range(n_tales), documents("tales"))]
    texts += [[eot, *ids, eot] for ids in tokenizer.encode_batch(real)]
    print(f"{len(texts):,} texts, {sum(map(len, texts)):,} tokens; {time.process_time() - start:.0f} s so far", flush=True)
    unseen = beginnings(tokenizer, 3 if args.quick else 10, 78, (4, 4))
    print(f"before: {agreement(target, draft, unseen, eot)}", flush=True)

    def report(step: int, loss: float) -> None:
        if step % 500 == 0 or step == args.steps:
            draft.eval()
            print(f"step {step:,}: loss {loss:.4f}; {agreement(target, draft, unseen, eot)}; "
                  f"{time.process_time() - start:.0f} s", flush=True)  # fmt: skip
            draft.train()

    teach(target, draft.train(), batches(texts, args.batch, eot, draft.cfg.context_length), args, report)
    save(draft.eval(), tokenizer, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
