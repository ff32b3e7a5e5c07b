"""`tinygpt finetune`: from a file of conversations to a run that is used, stopped and resumed; and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shutil
from pathlib import Path

import pytest
from test_refusals import check, everything
from test_sft import make_base, write

from tinygpt.cli import main
from tinygpt.conversations import find_template, read_conversations
from tinygpt.finetuning import compare, tuning_config
from tinygpt.replies import open_chat_data
from tinygpt.runs import config_fields, find_checkpoint, load, read_run_config
from tinygpt.sft import TuneConfig, methods
from tinygpt.tokenizer import ByteTokenizer, CharTokenizer
from tinygpt.training import read_metrics

TALKS = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n + 1}."}] for n in range(20)]
QUICK = [
    "--base", "base", "--data", "talks.jsonl", "--optim.steps", "6", "--chat.batch_size", "4", "--run.device", "cpu",
    "--run.n_threads", "1", "--run.eval_every", "3", "--run.sample_every", "3", "--run.checkpoint_every", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    "A folder with a base, another base, conversations, a run of sft and one of lora, and broken files."
    folder = tmp_path_factory.mktemp("begun")
    make_base(folder / "base", ByteTokenizer())
    make_base(folder / "other", ByteTokenizer(), d_model=16)
    make_base(folder / "letters", CharTokenizer("abc\n#:", special_tokens=("<|endoftext|>",)))
    write(folder / "talks.jsonl", TALKS)
    (folder / "empty.jsonl").write_text(json.dumps({"question": "Why?", "answer": "Because."}) + "\n" + json.dumps({"question": "Why?", "answer": ""}) + "\n")
    (folder / "fields.jsonl").write_text(json.dumps({"prompt": "Why?", "reply": "Because."}) + "\n")
    (folder / "talks.csv").write_text("question,answer\nWhy?,Because.\n")
    (folder / "broken.json").write_text('[{"question": "Why?", ')
    write(folder / "long.jsonl", [[{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]] * 3)
    with contextlib.chdir(folder):
        assert main(["finetune", *QUICK, "--run.out_dir", "run"]) == 0
        assert main(["finetune", *QUICK, "--run.out_dir", "small", "--method", "lora", "--no_samples"]) == 0
    return folder


def test_a_run_is_used_like_any_other(here, capsys):
    model, tokenizer = load("run")
    assert read_run_config(Path("run")).chat.template == "tales" and model.cfg.vocab_size == tokenizer.vocab_size == 261
    assert "->" in (here / "run/samples.md").read_text()
    assert main(["generate", "run", "--prompt", "5?", "--max_new_tokens", "4", "--seed", "1"]) == 0
    assert capsys.readouterr().err == "(run has learned to answer in a chat, and goes on with a text badly: tinygpt chat run)\n"
    assert main(["generate", "base", "--prompt", "5?", "--max_new_tokens", "4", "--seed", "1"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["checkpoints", "run", "small"]) == 0
    assert find_checkpoint("run").is_dir()
    sizes = {name: (find_checkpoint(name, "last") / "model.safetensors").stat().st_size for name in ("run", "small")}
    assert sizes["small"] < 0.7 * sizes["run"], "an adapter is not the whole model"
    capsys.readouterr()
    assert main(["finetune", "--resume", "run", "--run.keep_checkpoints", "3"]) == 0
    assert "tinygpt chat run  talk with it, one question at a time" in capsys.readouterr().out


def test_few_conversations_are_read_often_enough(here):
    assert tuning_config(None, {"base": "base", "chat.source": "talks.jsonl"}).chat.epochs == 160
    assert tuning_config(None, {"base": "base", "chat.source": "talks.jsonl", "chat.epochs": "2"}).chat.epochs == 2
    assert tuning_config(None, {"base": "base", "chat.source": "talks.jsonl", "optim.steps": "2"}).chat.epochs is None


def test_help_lists_every_field_with_its_meaning(capsys):
    assert main(["finetune", "--help"]) == main(["finetune", "--fields"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  --")}
    for name in config_fields(TuneConfig):
        assert f"--{name}" in lines, name
    assert all(f" {name}, " in lines["--method"] for name in methods())
    assert "[--data says it]" in lines["--chat.source"] and "[by chat.epochs]" in lines["--optim.steps"]


def test_a_field_of_lora_means_lora(here, capsys):
    quick = ["--base", "base", "--data", "talks.jsonl", "--print_config"]
    assert main(["finetune", *quick, "--lora.rank", "4"]) == 0
    assert "method: lora" in (said := capsys.readouterr().out) and "rank: 4" in said
    for more in (["--method", "sft"], ["--recipe", "alpaca"]):
        check(main(["finetune", *quick, *more, "--lora.rank", "4"]), *capsys.readouterr(), "--lora.rank is about adapters")
    assert main(["finetune", *quick, "--recipe", "alpaca", "--method", "lora", "--lora.rank", "4"]) == 0


REFUSED = {
    "nothing to learn": (["--base", "base"], "give --data FILE"),
    "no such file": (["--base", "base", "--data", "nothing.json"], "chat.source='nothing.json' is not there"),
    "no such base, and no data": (["--base", "bse"], "bse: neither a run directory nor a checkpoint; "),
    "misspelt field, and no data": (["--chat.epoch", "2"], "did you mean chat.epochs?"),
    "a folder of data": (["--base", "base", "--data", "."], "chat.source='.' is a folder; give one .json"),
    "a letter that the base lacks": (["--base", "letters", "--data", "talks.jsonl", "--chat.template", "alpaca"], "talks.jsonl, line 1: encode: text["),
    "no such base": (["--base", "bse", "--data", "talks.jsonl"], "bse: neither a run directory nor a checkpoint"),
    "unknown method": (["--base", "base", "--data", "talks.jsonl", "--method", "lroa"], "method='lroa' is unknown; did you mean lora?"),
    "unknown template": (["--base", "base", "--data", "talks.jsonl", "--chat.template", "tale"], "config: chat.template='tale' is unknown; choose from tales"),
    "another kind of file": (["--base", "base", "--data", "talks.csv"], 'one line for each: {"question": "'),
    "missing fields": (["--base", "base", "--data", "fields.jsonl"], "line 1: fields prompt, reply"),
    "empty answer": (["--base", "base", "--data", "empty.jsonl"], "line 2: answer is empty"),
    "no JSON": (["--base", "base", "--data", "broken.json"], "line 1 is not JSON"),
    "all too long": (["--base", "base", "--data", "long.jsonl"], "train a base with a longer model.context_length"),
    "misspelt field": (["--base", "base", "--data", "talks.jsonl", "--chat.epoch", "2"], "did you mean chat.epochs?"),
    "a field of train": (["--base", "base", "--data", "talks.jsonl", "--lr", "2"], "did you mean --optim.lr?"),
    "a wrong rank": (["--base", "base", "--data", "talks.jsonl", "--method", "lora", "--lora.rank", "0"], "lora.rank=0 must be 1 or more"),
    "a recipe of train": (["--recipe", "smoke"], "recipe of tinygpt train"),
    "no such recipe": (["--recipe", "alpacca"], "did you mean alpaca?"),
    "something is there": (["--base", "base", "--data", "talks.jsonl", "--run.out_dir", "run"], "exists"),
    "two recipes": (["--resume", "run", "--recipe", "alpaca"], "leave out --recipe"),
    "another rate on the way": (["--resume", "run", "--optim.lr", "1"], "optim.lr was"),
    "another method on the way": (["--resume", "run", "--method", "lora"], "method was"),
    "a run of train": (["--resume", "base"], "is a run of tinygpt train"),
    "another base": (["--resume", "small", "--base", "other"], "small"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case, here, capsys):
    argv, said = REFUSED[case]
    before = everything(here)
    code = main(["finetune", *argv])
    check(code, *capsys.readouterr(), said)
    changed = {name for name, content in everything(here).items() if before.get(name) != content and not name.endswith(".lock")}
    assert not changed, "something was written"


def test_an_adapter_for_another_base_is_refused(here, capsys):
    assert main(["finetune", *QUICK, "--run.out_dir", "mine", "--method", "lora", "--no_samples"]) == 0
    capsys.readouterr()
    shutil.rmtree(here / "base")
    shutil.copytree(here / "other", here / "base")
    code = main(["generate", "mine", "--prompt", "5?"])
    check(code, *capsys.readouterr(), "base")


def test_train_does_not_go_on_with_it(here, capsys):
    check(main(["train", "--resume", "run"]), *capsys.readouterr(), "tinygpt finetune --resume run")


def test_the_exam(here, capsys):
    from tinygpt.marking import write_questions

    write_questions("mine", n_train=4, n_val=4, n_held=3, seed=1)
    assert main(["evaluate", "run", "--questions", "mine/held_out.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "new wordings" in out and "new facts" in out
    check(main(["evaluate", "run", "--questions", "fields.jsonl"]), *capsys.readouterr(), "fields.jsonl, line 1: fields prompt, reply; give question and answer")


def test_an_exam_of_ones_own(here, capsys):
    "The same file as for finetune; a reply is right if it says the same; every question of a conversation is asked."
    assert main(["evaluate", "run", "--questions", "talks.jsonl", "--json"]) == 0
    (marks,) = json.loads(capsys.readouterr().out)["marks"]
    assert marks["n"] == 20 and marks["share"] == marks["n_right"] / 20 and marks["low"] <= marks["share"] <= marks["high"]
    model, tokenizer = load("run")
    found = compare(model, tokenizer, find_template("tales"), TALKS[:3])
    assert [(question, answer) for question, answer, _ in found] == [(talk[0]["content"], talk[1]["content"]) for talk in TALKS[:3]]
    write(here / "mine.jsonl", [[*TALKS[0], *TALKS[1]], [{**TALKS[2][0]}, {"role": "assistant", "content": found[2][2] or "?"}]])
    assert main(["evaluate", "run", "--questions", "mine.jsonl"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"(?m)^all +3 ", said) and "     expected: 1." in said


def sharegpt(record: dict) -> dict:
    asked = "\n\n".join(filter(None, (record["instruction"], record["input"])))
    return {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": record["output"]}]}


@pytest.fixture(scope="module")
def with_gpt2_tokens(real_text, tmp_path_factory) -> Path:
    "A folder with a random base, as `tinygpt train` makes it with GPT-2's vocabulary, and real conversations in three forms."
    for file in ("gpt2/vocab.json", "instruction-data.json", "gsm8k/train.jsonl"):
        if not (real_text / file).is_file():
            pytest.skip(f"no {file} in {real_text}")
    folder = tmp_path_factory.mktemp("gpt2")
    records = [record for record in json.loads((real_text / "instruction-data.json").read_text())[:40] if record["output"]]
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(record["output"] for record in records))
    (folder / "alpaca.json").write_text(json.dumps(records))
    (folder / "sharegpt.jsonl").write_text("".join(json.dumps(sharegpt(record)) + "\n" for record in records))
    (folder / "gsm8k.jsonl").write_text("".join((real_text / "gsm8k/train.jsonl").read_text().splitlines(True)[:24]))
    with contextlib.chdir(folder):
        assert main([
            "train", "--recipe", "smoke", "--data.source", "text.txt", "--data.tokenizer", str(real_text / "gpt2"), "--data.val_frac", "0.1",
            "--model.context_length", "256", "--model.d_model", "16", "--model.n_layers", "1", "--model.n_heads", "2", "--optim.steps", "4",
            "--run.device", "cpu", "--run.n_threads", "1", "--run.out_dir", "base", "--no_samples"]) == 0  # fmt: skip
    return folder


@pytest.mark.parametrize(("recipe", "file", "n"), [("alpaca", "alpaca.json", 40), ("gsm8k", "gsm8k.jsonl", 24), ("alpaca", "sharegpt.jsonl", 40)])
def test_shipped_recipes_run_on_real_conversations(with_gpt2_tokens, recipe, file, n, monkeypatch, capsys):
    "The recipes as they are, but for the base, the file, and the machine: trained, masked, stopped early by nothing, asked."
    monkeypatch.chdir(with_gpt2_tokens)
    run = Path(f"{recipe}-{Path(file).stem}")
    argv = ["--recipe", recipe, "--base", "base", "--data", file, "--run.device", "cpu", "--run.n_threads", "1", "--run.out_dir", str(run)]
    assert main(["finetune", *argv]) == 0
    assert f"tinygpt chat {run}" in capsys.readouterr().out
    config, (model, tokenizer) = read_run_config(run), load(run)
    assert config.chat.template == "chatml" and config.chat.epochs == 3 and config.chat.batches == "packed" and config.run.dtype == "bfloat16"
    assert model.cfg.vocab_size == tokenizer.vocab_size == 50259 and tokenizer.special_tokens["<|im_end|>"] == 50258
    parts = [open_chat_data(run / "data" / f"{split}.safetensors", tokenizer) for split in ("train", "val")]
    assert sum(len(part) + part.facts["n_dropped"] for part in parts) in range(n - 3, n + 1)
    for talk, (ids, mask) in zip(read_conversations(file), map(parts[0].conversation, range(3))):
        assert tokenizer.decode(ids[mask]).endswith("<|im_end|>") and not mask[0] and len(talk) == 2
    losses = [row["loss"] for row in read_metrics(run) if "loss" in row]
    assert len(losses) == config.optim.steps >= 3 and all(map(math.isfinite, losses))
    monkeypatch.setattr("sys.stdin", io.StringIO("How are you?\n"))
    assert main(["chat", str(run), "--max_new_tokens", "4"]) == 0
