"""Exact resume, the hard way: real processes, killed without warning or asked to stop, at moments drawn by a seed.

Every run that was stopped is resumed, and must end with the same bytes as the one that nobody disturbed: weights,
optimizer, metrics, samples, pointers. The killing is of two kinds: from outside, at a random moment; and from
inside, at the n-th time that the process touches a file of its checkpoints, so that it dies while it writes one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from tinygpt import training
from tinygpt.model import GPT, GPTConfig
from tinygpt.runs import TrainConfig, config_to_yaml, save_checkpoint
from tinygpt.sft import TuneConfig
from tinygpt.tokenizer import ByteTokenizer

# A fork has torch imported already; elsewhere a process of its own takes seconds to begin.
PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
TEXT = "\n<|endoftext|>\n".join(
    f"{a} has a {t}. {a} gives the {t} to {b}." for a in ("Ann", "Bob", "Cid") for b in ("Dot", "Eve") for t in ("hat", "cup", "map")
)
STEPS = 20
VARIANTS = {
    "adamw": {"model.dropout": 0.1, "run.checkpoint_every": 1, "run.eval_every": 5},
    "muon": {"optim.optimizer": "muon", "optim.schedule": "wsd", "optim.accumulate": 3, "run.dtype": "bfloat16",
             "run.gradient_checkpointing": True, "model.dropout": 0.1, "run.checkpoint_every": 3, "run.eval_every": 4},
    "float16": {"run.dtype": "float16", "optim.grad_clip": 0.5, "run.checkpoint_every": 2, "run.eval_every": 20},
    "sft": {"method": "sft", "chat.batches": "packed", "run.checkpoint_every": 2, "run.eval_every": 5},
    "lora": {"method": "lora", "lora.rank": 2, "lora.dropout": 0.1, "run.checkpoint_every": 3, "run.eval_every": 4},
}  # fmt: skip


def sample(model, tokenizer) -> str:
    "Draws from torch's own generator, as a careless sampler would."
    return " ".join(map(str, torch.randint(0, 9, (3,)).tolist()))


class Count(training.Progress):
    def __init__(self, counter):
        self.counter = counter

    def start(self, config, model, step):
        self.counter.value = step

    def step(self, step):
        self.counter.value = step


def touches(n: int, counter) -> None:
    "Count how often this process touches a file of its checkpoints, and die at the n-th time (0: never)."

    def hook(event, args):
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree") and "step_" in str(args[0]):
            counter.value += 1
            if counter.value == n:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def go_on(path: Path, die_at: int | None, touched, counter) -> None:
    "What the process does: exit code 0 at the end of the run, 3 when it was asked to stop."
    torch.set_num_threads(1)
    training.draw_summary = lambda path: None  # the picture takes longer than the run
    if die_at is not None:
        touches(die_at, touched)
    try:
        training.resume(path, sample, progress=Count(counter))
    except training.Stopped:
        os._exit(3)
    os._exit(0)


class Child:
    "A process that resumes a run."

    def __init__(self, path: Path, die_at: int | None = None):
        self.path, self.touched, self.counter = path, PROCESSES.Value("i", 0), PROCESSES.Value("i", -1)
        self.process = PROCESSES.Process(target=go_on, args=(path, die_at, self.touched, self.counter))
        self.process.start()

    def end(self) -> int:
        self.process.join(60)
        assert self.process.exitcode is not None, "the process hangs"
        return self.process.exitcode


def new_tuning(folder: Path, variant: str) -> Path:
    "A run of fine-tuning at step 0, on a random model."
    tokenizer = ByteTokenizer()
    torch.manual_seed(0)
    cfg = GPTConfig(vocab_size=tokenizer.vocab_size, context_length=64, d_model=16, n_layers=1, n_heads=2, dropout=0.1)
    save_checkpoint(folder / "base/checkpoints/step_000001", GPT(cfg), None, 1, tokenizer=tokenizer.fingerprint)
    (folder / "base/config.yaml").write_text(config_to_yaml(TrainConfig(model=cfg)))
    tokenizer.save(folder / "base/tokenizer.json")
    talks = [[{"role": "user", "content": f"{n} + 1"}, {"role": "assistant", "content": f"{n + 1}"}] for n in range(30)]
    (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    config = {
        "base": str(folder / "base"), "chat": {"source": str(folder / "talks.jsonl"), "batch_size": 6},
        "optim": {"steps": STEPS, "lr": 5e-3, "warmup_steps": 5},
        "run": {"out_dir": str(folder / "new"), "device": "cpu", "n_threads": 1, "log_every": 4, "sample_every": 7, "keep_checkpoints": 2},
    }
    return training.create_run(training.make_config(config | VARIANTS[variant], kind=TuneConfig))


def new_run(folder: Path, variant: str) -> Path:
    "A run at step 0."
    if "method" in VARIANTS[variant]:
        return new_tuning(folder, variant)
    (folder / "text.txt").write_text(TEXT)
    config = {
        "data": {"source": str(folder / "text.txt"), "tokenizer": "char", "batches": "documents", "batch_size": 6},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context_length": 64},
        "optim": {"steps": STEPS, "lr": 5e-3, "warmup_steps": 5},
        "run": {"out_dir": str(folder / "new"), "device": "cpu", "n_threads": 1, "log_every": 4, "sample_every": 7, "keep_checkpoints": 2},
    }
    return training.create_run(training.make_config(config | VARIANTS[variant]))


@pytest.fixture(scope="module", params=list(VARIANTS))
def whole(request, tmp_path_factory):
    "A new run, the same run undisturbed to its end, the seconds that took, and how often it touched its checkpoints."
    folder = tmp_path_factory.mktemp(request.param)
    new = new_run(folder, request.param)
    shutil.copytree(new, folder / "warm")
    assert Child(folder / "warm").end() == 0
    shutil.copytree(new, folder / "whole")
    begin = time.monotonic()
    child = Child(folder / "whole", die_at=0)
    assert child.end() == 0
    return new, folder / "whole", time.monotonic() - begin, child.touched.value


def bytes_of(path: Path) -> dict[str, bytes]:
    "Everything in a run that must be the same."
    files = [p for p in path.rglob("*") if p.is_file() and p.name not in (".lock", "summary.png")]
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in files}


def all_readable(path: Path) -> int:
    "How many checkpoints there are; every one can be read, and the pointers lead to one."
    found = list((path / "checkpoints").glob("step_*"))
    for checkpoint in found:
        training.load(checkpoint)
    for which in ("best", "last"):
        if (path / f"{which}.json").exists():
            pointer = json.loads((path / f"{which}.json").read_text())
            assert path / "checkpoints" / pointer["checkpoint"] in found
    return len(found)


def assert_same(whole: Path, path: Path) -> None:
    expected, found = bytes_of(whole), bytes_of(path)
    assert {name for name in expected if found.get(name) != expected[name]} == set(), "differs"
    assert found.keys() == expected.keys()


def kill(path: Path, inside: bool, dice: random.Random, n_touches: int, seconds: float) -> bool:
    "Resume a run and kill it, from inside or from outside; was it quick enough?"
    done = json.loads((path / "last.json").read_text())["step"] if (path / "last.json").exists() else 0
    if inside:
        child = Child(path, die_at=dice.randint(1, max(1, int(0.8 * n_touches * (1 - done / STEPS)))))
    else:
        child, wait_for = Child(path), dice.choice([-1, *range(done, STEPS - 2)])  # -1: while the run is being opened
        while child.counter.value < wait_for and child.process.is_alive():
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.1 if wait_for < 0 else seconds / STEPS))
        child.process.kill()
    return child.end() == -signal.SIGKILL


def test_killed_at_random_moments(whole, tmp_path):
    "Seven runs of each kind are killed twice each, once from inside while a checkpoint is touched, once from outside."
    new, undisturbed, seconds, n_touches = whole
    dice, kills, while_writing = random.Random(undisturbed.parent.name.rstrip("0123456789")), [], 0
    for attempt in range(7):
        path = tmp_path / f"run{attempt}"
        shutil.copytree(new, path)
        for again in range(2):
            kills.append(kill(path, (attempt + again) % 2 == 1, dice, n_touches, seconds))
            while_writing += any((path / "checkpoints").glob(".*"))
            all_readable(path)
        assert any(kills[-2:]), "killed too late, twice"
        assert Child(path).end() == 0
        assert_same(undisturbed, path)
        all_readable(path)
    print(f"{sum(kills)} kills of 7 runs, {while_writing} while a checkpoint was written: 7 of 7 end with the same bytes")
    assert while_writing >= 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_asked_to_stop_no_step_is_lost(whole, tmp_path, number):
    new, undisturbed, seconds, _ = whole
    dice, path, done = random.Random(int(number)), tmp_path / "run", 0
    shutil.copytree(new, path)
    for stop in range(3):
        child, wait_for = Child(path), done + dice.randint(0, 4)
        while child.counter.value < wait_for and child.process.is_alive():
            time.sleep(0.001)
        time.sleep(dice.uniform(0.005, 0.05))
        os.kill(child.process.pid, number)
        assert child.end() == 3, "not stopped cleanly"
        done = json.loads((path / "last.json").read_text())["step"]
        assert done == child.counter.value < STEPS, "a step was lost"
        assert not list((path / "checkpoints").glob(".*"))
        all_readable(path)
    assert Child(path).end() == 0
    last = f"checkpoints/step_{STEPS:06d}/"
    expected, found = bytes_of(undisturbed), bytes_of(path)
    for name in (last + "model.safetensors", last + "optimizer.safetensors", last + "state.json", "metrics.jsonl", "samples.md"):
        assert found[name] == expected[name], f"{name} differs"
