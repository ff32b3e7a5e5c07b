"""How the shipped model `tales-base` was made: a teller of tales that has also learned to look things up.

    python bench/tales_base.py --out runs/tales-base     # about 40 minutes on one core
    python bench/tales_base.py --out runs/x --quick      # does it run?

The model `tales` has read nothing but tales, in which nobody ever needs to know that it was Anna who is the baker. So it does
not know it: asked for the job of one of two people, it guesses. `tales-base` has read each tale with some true remarks after
it ("Anna is the baker.", "If Tom found two more, Tom would have five eggs."). They speak of what the exam asks about, most of
them as plain statements; two are put as questions ("Who has more? ..."), much like one of the exam's kinds. No chat token
occurs, and no remark states a fact that the exam holds out (chapter 16a).

Reading    `tinygpt train` on 60,000 tales with remarks. It learns to count and to copy. To find out which job goes with which
           name it does not learn: of two, it names the wrong one half of the time.
Practice   Then one thing at a time, in short tales with many remarks, and the loss on these alone. What 100,000 mixed examples
           do not teach is learned in a minute or two when nothing else is asked: whose job it is; whether two words are the
           same ("Perhaps Mia is a tailor. Mia is a smith, so no."), where at first the verdicts alone count; what came first.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from tinygpt.marking import facts, is_held
from tinygpt.optim import clip_grad_norm, make_optimizer
from tinygpt.questions import KINDS, Moment, deeds, fill, watch
from tinygpt.runs import load, read_config, read_facts, find_checkpoint, save_checkpoint
from tinygpt.training import train
from tinygpt.worlds import pieces, shipped

SAY = {  # a remark for each kind of question; the slots are those of chapter 16
    "job": "{who} is a {job}. / {who} is the {job}.",
    "start": "At first {who} was {at}. / {who} was {at} at first.",
    "number": "{who} has {amount} now. / Now {who} has {amount}.",
    "who": "The one that {did} is {who}. / Somebody {did}: {who}.",
    "colour": "{toy} is {colour}. / The colour of {toy} is {colour}.",
    "animal": "{pet} is a {animal}.",
    "why": "{who} was {feeling} because {reason}. / {who} was {feeling}: because {reason}.",
    "yes or no": "It may be that {x} {v} {r}. {fact}, so {yes}. / Perhaps {x} {v} {r}. {fact}, so {yes}.",
    "where": "{fact}.",
    "where the toy is": "{fact}.",
    "yes or no now": "It may be that {x} {v} {r} now. {fact}, so {yes}. / Perhaps {x} {v} {r} now. {fact}, so {yes}.",
    "who has it": "The one with {x} is {who}. / {x} is with {who}. / {who} has {x}.",
    "who is there": "Somebody may be {at}. {fact}, so {who}. / Who may be {at}? {fact}, so {who}.",
    "together": "{fact}, so they have {amount}. / {fact}, so together they have {amount}.",
    "more or fewer": "{fact}, so {who} has {than} {goods}. / {fact}, so {who} has {than}. / Who has {than}? {fact}, so {who}.",
    "what if": "If {if}, {who} would have {amount}. / Suppose {if}. Then {who} would have {amount}.",
    "first or last": "{p}, and {q}. The {which} was: {that}. / The {which}, of {p} and {q}: {that}.",
    "first or last deed": "The {which} thing was that {name} {did}. / {x} did many things, and {which} {name} {did}.",
}
OFTEN = ("job", "start", "who is there", "yes or no now", "first or last", "first or last deed")
ROOM = 190  # words and marks of a tale with its remarks: what the context holds


def remarks(m: Moment, kind: str, rng: random.Random, most: int = 1) -> list[str]:
    "True remarks of a kind, without those that would state a fact that is held out."
    found = list(KINDS[kind].find(m, rng))
    rng.shuffle(found)
    free = [slots for slots in found if not any(map(is_held, facts(" ".join(slots.values()))))]
    return [fill(rng.choice(SAY[kind].split(" / ")), slots) for slots in free[:most]]


def fitting(tale: str, said: list[str]) -> Iterator[str]:
    "As many of the remarks as there is room for."
    room = ROOM - len(pieces(tale))
    for text in said:
        if len(pieces(text)) + 1 <= room:
            room -= len(pieces(text)) + 1
            yield text


def first_kind(rng: random.Random) -> str:
    "A tale up to some moment; in the next line a remark of every kind that fits, in any order."
    m = rng.choice(watch(rng))
    kinds = sorted(KINDS, key=lambda kind: rng.random() ** (1 / KINDS[kind].n_facts), reverse=True)
    said = [text for kind in kinds for text in remarks(m, kind, rng)]
    return m.text + "\n" + " ".join(fitting(m.text, said))


Doc = tuple[str, list[tuple[str, str]]] # a tale; remarks, each as a part that is given and a part that is learned


def who_is_who(rng: random.Random) -> Doc:
    "Half of them are short tales and who is who, where and with what; half are longer, with remarks of all kinds."
    moments = watch(rng)
    if rng.random() < 0.5:
        m = moments[min(rng.randrange(4), len(moments) - 2)]
        said = [text for kind in ("job", "start", "number", "who is there", "yes or no") for text in remarks(m, kind, rng, 2)]
        now = [f"{p.name} is at the {p.place}." for p in m.people]
        now += [f"The {p.job} is {p.name}, and {p.name} is at the {p.place}." for p in m.people]
        said += [text for text in now if not any(map(is_held, facts(text)))]
        return m.text, [("", "\n" + text) for text in rng.sample(said, min(8, len(said)))]
    m = rng.choice(moments)
    said = [text for kind in KINDS for text in remarks(m, kind, rng, 2 if kind in OFTEN else 1)]
    p = rng.choice(m.people)
    own = [did for who, did in deeds(m) if who == p.name and did]
    if len(own) > 1 and rng.random() < 0.5: # what somebody did, in order
        text = f"{p.name} {own[0]}, " + ", ".join(f"then {did}" for did in own[1:]) + "."
        said += [text] * (not any(map(is_held, facts(text))))
    rng.shuffle(said)
    return m.text, [("", "\n" + text) for text in fitting(m.text, said)]


def practice(rng: random.Random, wanted: dict[str, int], longest: int, learned: str) -> Doc:
    "Remarks of few kinds, after a tale of so many events at most; of each what matches a pattern is learned, and what follows."
    while True:
        moments = watch(rng)
        m = moments[min(rng.randrange(longest), len(moments) - 2)]
        said = sorted({text for kind, most in wanted.items() for text in remarks(m, kind, rng, most)})
        rng.shuffle(said)
        if kept := list(fitting(m.text, said)):
            cuts = [(text, re.search(learned, text).start()) for text in kept]
            return m.text, [("\n" + text[:i], text[i:]) for text, i in cuts]


TO_JUDGE = {"yes or no": 9, "yes or no now": 9, "who is there": 9, "more or fewer": 2}
TO_ORDER = {"first or last": 9, "first or last deed": 4}
ALL_OF_IT, VERDICT, FROM_FACT, WHAT = r"^", r"(?<=, so)", r"(?<=[.?]) |^", r"(?<=was:) |(?<=[a-z]:) |(?<=was that) |(?<=things,) "


def learn(model, tokenizer, docs: list[Doc], steps: int, size: int) -> None: # the model is changed in place
    "Batches of like lengths, the loss on what is to be learned."
    rng, pairs, batches = random.Random(0), [], []
    for tale, said in docs:
        ids, counts = [tokenizer.eot_id, *tokenizer.encode(tale)], []
        counts = [False] * len(ids)
        for given, learned in said:
            for text, is_learned in ((given, False), (learned, True)):
                new = tokenizer.encode(text)
                ids, counts = ids + new, counts + [is_learned] * len(new)
        ids, counts = torch.tensor(ids[: model.cfg.context_length + 1]), torch.tensor(counts[: model.cfg.context_length + 1])
        if counts.any():
            pairs.append((ids[:-1], torch.where(counts[1:], ids[1:], -100)))
    optimizers = make_optimizer(model.train(), "muon", lr=3e-3, muon_lr=4e-3, betas=(0.9, 0.98), weight_decay=0.05)
    for step in range(steps):
        if not batches:
            order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + rng.random() * 20)
            batches = [order[i : i + size] for i in range(0, len(order), size)]
            rng.shuffle(batches)
        ids, targets = zip(*(pairs[i] for i in batches.pop()))
        loss = model.loss(pad_sequence(ids, True, tokenizer.eot_id), pad_sequence(targets, True, -100))
        loss.backward()
        clip_grad_norm(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * min(1, (step + 1) / 30, 2 * (1 - step / steps) + 0.02)
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step:5} of {steps}, loss {loss.item():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the run directory to make")
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run?")
    args = parser.parse_args()
    n, steps = (300, 20) if args.quick else (60_000, 11_000)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name, seed, n_docs in (("train", 1000, n), ("val", 1001, 300 if args.quick else 1000)):
        rng = random.Random(seed)
        text = "\n<|endoftext|>\n".join(first_kind(rng) for _ in range(n_docs))
        args.out.with_name(f"remarks-{name}.txt").write_text(text + "\n")
    config = read_config("tales", {
        "data.source": str(args.out.with_name("remarks-train.txt")), "data.val_source": str(args.out.with_name("remarks-val.txt")),
        "data.tokenizer": str(shipped("models/tales/tokenizer.json")), "data.batch_size": 8,
        "model.n_layers": 4, "model.d_model": 96, "model.n_heads": 6, "optim.steps": steps, "optim.warmup_steps": min(100, steps),
        "run.n_threads": 1, "run.eval_every": 1000, "run.eval_docs": 300, "run.checkpoint_every": 1000, "run.out_dir": str(args.out)})
    train(config)
    model, tokenizer = load(args.out)
    rng, few = random.Random(2000), 100 if args.quick else 1 # a hundredth of everything
    who = [who_is_who(rng) for _ in range(36_000 // few)]
    judge = [practice(rng, TO_JUDGE, 7, ALL_OF_IT) for _ in range(8_000 // few)]
    order = [practice(rng, TO_ORDER, 7, ALL_OF_IT) for _ in range(8_000 // few)]
    learn(model, tokenizer, who, 2_600 // few, 12)
    learn(model, tokenizer, who[: 3_000 // few] + judge + order, 1_270 // few, 12)
    learn(model, tokenizer, [practice(rng, TO_JUDGE, 4, VERDICT) for _ in range(7_000 // few)], 790 // few, 16)
    order = [practice(rng, TO_ORDER, 6, WHAT) for _ in range(6_000 // few)]
    judge = [practice(rng, TO_JUDGE, 7, FROM_FACT) for _ in range(3_000 // few)]
    learn(model, tokenizer, order + judge + who[: 3_000 // few], 740 // few, 16)
    path = find_checkpoint(args.out)
    save_checkpoint(path, model, None, steps, **read_facts(path / "state.json", "tinygpt.checkpoint")["facts"])
    print(f"{args.out}: pack it with tinygpt.runs.pack_run")


if __name__ == "__main__":
    main()
