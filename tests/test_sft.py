"""Fine-tuning: the masked loss against transformers, real conversations end to end, packing, exact resume, refusals."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tinygpt import training
from tinygpt.chat import Chat
from tinygpt.conversations import find_template, read_conversations
from tinygpt.interop import from_hf
from tinygpt.model import GPT, GPTConfig
from tinygpt.replies import (
    ChatData, PackedConversations, PaddedConversations, add_tokens, encode_chats, lay_out, open_chat_data, pack,
    validate_replies,
)
from tinygpt.runs import TrainConfig, config_to_yaml, find_checkpoint, load, make_config, read_config, recipes, save_checkpoint
from tinygpt.sft import TuneConfig, finetune
from tinygpt.tokenizer import ByteTokenizer, load_tokenizer
from tinygpt.training import read_metrics


def talk(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


TALKS = [talk(f"What comes after {n}?", f"{n + 1}." + " Surely." * (n % 3)) for n in range(40)]


def make_base(path: Path, tokenizer, **changes) -> Path:
    "A run directory with a random model."
    torch.manual_seed(0)
    cfg = GPTConfig(**dict(vocab_size=tokenizer.vocab_size, context_length=96, d_model=32, n_layers=2, n_heads=2, init_std=0.1) | changes)
    save_checkpoint(path / "checkpoints/step_000001", GPT(cfg), None, 1, tokenizer=tokenizer.fingerprint)
    (path / "config.yaml").write_text(config_to_yaml(TrainConfig(model=cfg)))
    tokenizer.save(path / "tokenizer.json")
    return path


def write(path: Path, talks: list) -> str:
    path.write_text("".join(json.dumps({"messages": t}) + "\n" for t in talks))
    return str(path)


@pytest.fixture
def told(tmp_path):
    "Makes the configuration of a small run."
    make_base(tmp_path / "base", ByteTokenizer())
    source = write(tmp_path / "talks.jsonl", TALKS)

    def told(name: str, **changes) -> TuneConfig:
        settings = {"base": str(tmp_path / "base"), "chat": {"source": source, "batch_size": 4}, "optim": {"steps": 12, "warmup_steps": 2},
                    "run": {"out_dir": str(tmp_path / name), "device": "cpu", "n_threads": 1, "eval_every": 4, "log_every": 3,
                            "sample_every": 0, "checkpoint_every": 5}}
        return make_config(settings | {key.replace("__", "."): value for key, value in changes.items()}, kind=TuneConfig)

    return told


@pytest.mark.parametrize("packed", [False, True])
def test_the_masked_loss_is_that_of_transformers(packed):
    "Same ids, -100 where ours has -100: transformers shifts the labels itself. To 1e-6, in float64."
    transformers = pytest.importorskip("transformers")
    tokenizer = ByteTokenizer(special_tokens=find_template("tales").special_tokens)
    torch.manual_seed(1)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3)).double().eval()
    ours = from_hf(theirs)
    data = encode_chats(TALKS[:6], "tales", tokenizer, 127)
    losses, counts = [], []
    for i in range(len(data)):
        ids, mask = data.conversation(i)
        ids = torch.from_numpy(ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(mask)[None], ids, -100)
        with torch.no_grad():
            losses.append(theirs(ids, labels=labels).loss.item())
        counts.append(int(mask.sum()))
    expected = np.average(losses, weights=counts)
    rows = pack(data.lengths, 127) if packed else [[i] for i in range(len(data))]
    batch = lay_out(data, rows, 127, packed)
    with torch.no_grad():
        found = ours.loss(batch.ids, batch.targets, batch.positions, batch.doc_ids).item()
    assert abs(found - expected) < 1e-6
    assert abs(validate_replies(ours, data)["loss"] - expected) < 1e-6


REAL = {
    "alpaca": ("instruction-data.json", "alpaca", "output"),
    "gsm8k": ("gsm8k/train.jsonl", "chatml", "answer"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_conversations_end_to_end(name, real_text, tmp_path, capsys):
    "GPT-2's vocabulary and a small random model: the masks are right, the loss falls, the checkpoint chats."
    file, template, answer = REAL[name]
    source = real_text / file
    if not source.is_file() or not (real_text / "gpt2/vocab.json").is_file():
        pytest.skip(f"no {file} or no gpt2 in {real_text}")
    records = json.loads(source.read_text()) if file.endswith(".json") else list(map(json.loads, source.read_text().splitlines()))
    base = make_base(tmp_path / "base", load_tokenizer(real_text / "gpt2"), context_length=192)
    run = finetune(make_config({
        "base": str(base), "chat": {"source": str(source), "template": template, "batch_size": 8, "val_frac": 0.05},
        "optim": {"steps": 30, "lr": 0.02, "warmup_steps": 3, "optimizer": "adamw"},
        "run": {"out_dir": str(tmp_path / "run"), "device": "cpu", "n_threads": 1, "eval_every": 10, "eval_docs": 32, "sample_every": 0}}, kind=TuneConfig))
    model, tokenizer = load(run)
    assert model.cfg.vocab_size == tokenizer.vocab_size == 50257 + (2 if template == "chatml" else 0)
    data = open_chat_data(run / "data/train.safetensors", tokenizer)
    answers = {r[answer].strip() for r in records if isinstance(r[answer], str)}
    for i in range(0, len(data), 50):  # what counts is an answer and its end, nothing else
        ids, mask = data.conversation(i)
        assert tokenizer.decode(ids[mask][:-1]).strip() in answers
        assert int(ids[mask][-1]) in tokenizer.special_tokens.values()
    n = len(data) + data.facts["n_dropped"] + len(open_chat_data(run / "data/val.safetensors"))
    assert abs(n - len(records)) <= open_chat_data(run / "data/val.safetensors").facts["n_dropped"]
    losses = [row["val_loss"] for row in read_metrics(run) if "val_loss" in row]
    assert losses[-1] < losses[0] and losses[-1] < 0.75 * math.log(tokenizer.vocab_size)  # where it began
    said = "".join(Chat(model, tokenizer, find_template(template), max_new_tokens=8, seed=0).say("How are you?"))
    assert isinstance(said, str)
    ids, mask = data.conversation(0)
    print(f"\n{data}\n[{tokenizer.decode(ids[~mask])}]\n=> {tokenizer.decode(ids[mask])}\nloss {losses}\nchats: {said!r}")


def test_all_of_alpaca_is_read(real_text):
    source = real_text / "instruction-data.json"
    if not source.is_file():
        pytest.skip("no instruction-data.json")
    assert len(list(read_conversations(source))) == 1100


@pytest.mark.parametrize("changes", [{}, {"chat__batches": "packed", "chat__too_long": "cut"}, {"optim__optimizer": "muon", "optim__accumulate": 2}], ids=str)
def test_stopped_and_resumed_to_the_same_bytes(told, tmp_path, changes):
    class Stop(training.Progress):
        def __init__(self, at):
            self.at = at

        def step(self, step):
            if step == self.at:
                raise KeyboardInterrupt  # as hard as it comes: nothing is saved

    whole = finetune(told("whole", **changes))
    parts = training.create_run(told("parts", **changes))
    for at in (3, 7, 11):
        with pytest.raises(KeyboardInterrupt):
            training.resume(parts, progress=Stop(at))
    training.resume(parts)
    for name in ("metrics.jsonl", "best.json", *(f"checkpoints/step_000012/{kind}.safetensors" for kind in ("model", "optimizer"))):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_epochs_set_the_steps_and_patience_ends_the_run(told):
    config = told("run", chat__epochs=100, run__patience=2, optim__lr=0.03)
    run = finetune(config)
    rows = [row for row in read_metrics(run) if "val_loss" in row]
    best = min(rows, key=lambda row: row["val_loss"])["step"]
    assert rows[-1]["step"] == best + 2 * 4 and find_checkpoint(run, "last").name == f"step_{rows[-1]['step']:06d}"
    before = (run / "metrics.jsonl").read_bytes()
    training.resume(run)  # it is over
    assert (run / "metrics.jsonl").read_bytes() == before


def test_too_long_is_counted_and_said(told, tmp_path):
    heard = []

    class Hear(training.Progress):
        def say(self, text):
            heard.append(text)

    source = write(tmp_path / "long.jsonl", [*TALKS, talk("x" * 200, "y"), talk("x", "y" * 200)])
    for rule, said in (("drop", "2 dropped"), ("cut", "1 dropped, 1 cut")):
        heard.clear()
        training.create_run(told(rule, chat__source=source, chat__val_source=source, chat__too_long=rule), Hear())
        assert any(line.startswith("train: ") and said in line for line in heard), heard


def test_batches_are_functions_of_the_step():
    tokenizer = ByteTokenizer(special_tokens=find_template("tales").special_tokens)
    data = encode_chats(TALKS, "tales", tokenizer, 96)
    for kind in (PaddedConversations, PackedConversations):
        one, other = (kind(data, 4, 96, seed=3) for _ in range(2))
        steps = list(range(2 * one.batches_per_epoch))
        for step in reversed(steps):
            other.batch(step)
        for step in steps:
            assert all(torch.equal(a, b) for a, b in zip(one.batch(step), other.batch(step)) if a is not None)
        for epoch in range(2):
            seen = sum(int((one.batch(epoch * one.batches_per_epoch + i).targets >= 0).sum()) for i in range(one.batches_per_epoch))
            assert seen == data.n_targets


@pytest.mark.parametrize("seed", range(5))
def test_packing_loses_nothing(seed):
    lengths = np.random.default_rng(seed).integers(1, 65, size=500)
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    assert len(rows) <= 1.1 * lengths.sum() / 64, "rows are full"


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens(tied, tmp_path):
    tokenizer = ByteTokenizer()
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, context_length=32, d_model=16, n_layers=1, n_heads=2, tie_embeddings=tied))
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    wider, known, new = add_tokens(model, tokenizer, ("<|a|>", "<|endoftext|>", "<|b|>", "<|a|>"))
    assert torch.equal(torch.get_rng_state(), state) and new == [257, 258] == [known.special_tokens[n] for n in ("<|a|>", "<|b|>")]
    for name, p in wider.named_parameters():
        assert torch.equal(p[: len(before[name])], before[name])
    assert wider.cfg.vocab_size == known.vocab_size == 259 and model.cfg.vocab_size == 257
    rows = wider.embed.weight[257:]
    assert not torch.equal(rows[0], rows[1])
    torch.testing.assert_close(rows.mean(0), wider.embed.weight[:257].mean(0), atol=0.2 * model.embed.weight.std().item(), rtol=0)
    again = load_tokenizer(known.save(tmp_path))
    assert again.fingerprint == known.fingerprint and known.encode("<|a|>") == tokenizer.encode("<|a|>")


def test_damaged_and_foreign_data_is_refused(told, tmp_path):
    run = finetune(told("run", optim__steps=5))
    file = run / "data/train.safetensors"
    data = open_chat_data(file)
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(ValueError, match="checksum"):
        training.resume(run)
    mask = data.mask.copy()
    mask[1] = ~mask[1]
    ChatData(data.ids, mask, data.starts, data.n_text_bytes, **data.facts).save(file)
    with pytest.raises(ValueError, match="not what it was trained on"):
        training.resume(run)


@pytest.mark.parametrize("name", recipes("finetune"))
def test_every_recipe_makes_a_configuration(name, tmp_path):
    config = read_config(name, kind="finetune")
    (tmp_path / "again.yaml").write_text(config_to_yaml(config))
    assert read_config(tmp_path / "again.yaml", kind=None) == config
    assert recipes("finetune")[name].read_text().startswith("# ")
    with pytest.raises((ValueError, FileNotFoundError), match="finetune"):
        read_config(name)


def test_a_sampled_conversation_is_what_the_template_writes():
    tokenizer = ByteTokenizer(special_tokens=find_template("tales").special_tokens)
    data = encode_chats(islice(TALKS, 3), "tales", tokenizer, 96)
    for i, messages in enumerate(TALKS[:3]):
        ids, mask = data.conversation(i)
        assert ids.tolist() == find_template("tales").encode(messages, tokenizer).ids
        assert tokenizer.decode(ids[mask]) == messages[1]["content"] + "<|end|>"
