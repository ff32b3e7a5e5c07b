"""The assistant of the Tales: the base model, fine-tuned with all weights, and with adapters, on held-out questions.

    python bench/assistant.py                  # trains both side by side, one thread each; exit code 1 if an aim is missed
    python bench/assistant.py --quick          # does it run? a few steps, a few questions
    python bench/assistant.py --runs DIR       # marks what an earlier call has trained in DIR

First the world asks 60,000 questions, in some minutes. Both trainings read them, by the shipped recipes `finetune-tales` and
`finetune-tales-lora`, from the shipped model `tales-base`. The exam has 1,000 questions that training never saw: 500 in new
wordings, 500 that state a new fact. A reply counts if all that it says is right (chapter 16a). The range beside a share is
Wilson's: it holds the truth 19 times out of 20.

base         asked in a chat, which it has never seen; "in lines" as on the pages it has read (bench/tales_base.py)
minutes      of processor time, with encoding, validations and checkpoints; the two trainings run at the same time, a core each
guess, copy  whoever gives the most frequent answer to each kind of question; whoever copies what the tale named last
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from tinygpt.conversations import ChatTemplate, Turn, find_template
from tinygpt.finetuning import grade, take_exam
from tinygpt.marking import Mark, ask, last_mentioned, most_frequent, read_questions, write_talks
from tinygpt.runs import load, read_config, read_run_config
from tinygpt.sft import finetune

RECIPES = {"sft": "finetune-tales", "lora": "finetune-tales-lora"}
AIMS = {"one fact": 0.95, "two facts": 0.80}  # of all weights; adapters may be two points below
MINUTES, SHARE, GAP = 15, 0.05, 0.02  # of training in all; of the parameters that adapters train; between the two


def tune(method: str, folder: Path, quick: bool, took: dict) -> None:
    "One training, in a process of its own."
    own = {"chat.source": str(folder / "questions.jsonl"), "chat.val_source": str(folder / "val.jsonl"),
           "run.out_dir": str(folder / method), "run.n_threads": 1}
    config = read_config(RECIPES[method], own, kind="finetune")
    if quick:
        config = replace(config, optim=replace(config.optim, steps=20, warmup_steps=5), run=replace(config.run, eval_docs=20))
    begin = time.process_time() # one thread: what it takes on a core of its own
    finetune(config)
    took[method] = (time.process_time() - begin) / 60


def train_both(folder: Path, quick: bool) -> dict[str, float]: # minutes of each
    "All trainings at the same time, a thread each, on the same questions."
    if not (folder / "questions.jsonl").is_file():
        write_talks(folder / "questions.jsonl", ask(seed=200, n=600 if quick else 60_000, most=8))
    write_talks(folder / "val.jsonl", read_questions("val"))
    with multiprocessing.get_context("spawn").Manager() as manager:
        took = manager.dict()
        work = [multiprocessing.get_context("spawn").Process(target=tune, args=(m, folder, quick, took)) for m in RECIPES]
        for process in work:
            process.start()
        for process in work:
            process.join()
        if any(process.exitcode for process in work):
            sys.exit("a training failed; its message stands above")
        return dict(took)


def n_trained(run: Path) -> int:
    "The numbers that a run's training may change."
    from tinygpt.sft import find_method
    from tinygpt.tokenizer import load_tokenizer
    config = read_run_config(run)
    model, _ = find_method(config.method).model(config, run, load_tokenizer(run / "tokenizer.json"), torch.device("cpu"))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


LINES = ChatTemplate(name="lines", begin="<|endoftext|>", special_tokens=("<|endoftext|>",),
                     turns={role: Turn("", "\n") for role in ("user", "assistant")})


def exam(name: str, talks: list, template: str | ChatTemplate = "tales") -> list[Mark]:
    questions, replies = take_exam(*load(name), find_template(template), talks)
    return grade(questions, [reply.partition("\n")[0] for reply in replies])


def table(columns: dict[str, list[Mark]]) -> str:
    lines = ["kind of question      facts  asked" + "".join(f"{name:>21}" for name in columns)]
    for row in zip(*columns.values()):
        m = row[0]
        cells = "".join(f"{x.share:8.1%} {f'{100 * x.low:.0f} to {100 * x.high:.0f}':>12}" for x in row)
        lines += [""] * (m.kind == "one fact") + [f"{m.kind:20} {m.n_facts or '':>6} {m.n:6,}{cells}"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, a few questions: does it run?")
    parser.add_argument("--runs", type=Path, help="where the runs go, or lie; without it they are thrown away")
    args = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.runs or Path(scratch)
        took = {} if all((folder / m).is_dir() for m in RECIPES) else train_both(folder, args.quick)
        base = read_config(RECIPES["sft"], kind="finetune").base
        talks = read_questions("held_out")[:: 20 if args.quick else 1]
        held_out = [q for talk in talks for q in talk]
        guess = most_frequent(q for talk in read_questions("train") for q in talk)
        columns = {name: grade(held_out, [pupil(q) for q in held_out]) for name, pupil in (("guess", guess), ("copy", last_mentioned))}
        columns |= {"base": exam(base, talks), "base in lines": exam(base, talks, LINES)}
        columns |= {method: exam(folder / method, talks) for method in RECIPES}
        print(table(columns))
        marks = {name: {m.kind: m.share for m in column} for name, column in columns.items()}
        n_all = sum(p.numel() for p in load(base)[0].parameters())
        n = {m: n_trained(folder / m) for m in RECIPES}
    for m in RECIPES:
        print(f"\n{m}: {n[m]:,} parameters trained, {n[m] / n_all:.1%} of {n_all:,}" + (f"; {took[m]:.1f} minutes" if took else ""), end="")
    aims = {f"all weights, {kind}: above {share:.0%}": marks["sft"][kind] > share for kind, share in AIMS.items()}
    aims |= {f"adapters, {kind}: within two points": marks["sft"][kind] - marks["lora"][kind] <= GAP for kind in AIMS}
    aims["adapters train less than 5 % of the parameters"] = n["lora"] < SHARE * n_all
    if took:
        aims[f"both trained in less than {MINUTES} minutes"] = max(took.values()) < MINUTES
    print("\n")
    for aim, met in aims.items():
        print("reached" if met else "MISSED ", aim)
    return 0 if all(aims.values()) or args.quick else 1


if __name__ == "__main__":
    sys.exit(main())
