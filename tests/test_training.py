"""Training as a whole: runs, resuming, checkpoints that are whole or not there, configurations that say what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tinygpt import training
from tinygpt.training import TrainConfig, load, load_checkpoint, make_config, read_config, save_checkpoint, train

NAMES, THINGS = ("Ann", "Bob", "Cid", "Dot"), ("hat", "cup", "map", "key", "pen")
TEXT = "\n<|endoftext|>\n".join(
    f"{a} has a {t}. {a} gives the {t} to {b}. Now {b} has the {t}." for a in NAMES for b in NAMES if a != b for t in THINGS
)


@pytest.fixture
def settings(tmp_path: Path) -> dict:
    "A run of seconds."
    (tmp_path / "text.txt").write_text(TEXT)
    return {
        "data": {"source": str(tmp_path / "text.txt"), "tokenizer": "char", "batches": "documents", "batch_size": 8},
        "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "context_length": 96},
        "optim": {"steps": 30, "lr": 5e-3, "warmup_steps": 5},
        "run": {"out_dir": str(tmp_path / "run"), "device": "cpu", "n_threads": 1, "log_every": 7, "eval_every": 10, "checkpoint_every": 10},
    }


def same_run(a: Path, b: Path) -> None:
    "Two runs ended with the same bits."
    for name in ("model", "optimizer"):
        left, right = ((p / "checkpoints/step_000030" / f"{name}.safetensors").read_bytes() for p in (a, b))
        assert left == right, f"{name} differs"
    rows = [(p / "metrics.jsonl").read_text().splitlines() for p in (a, b)]
    assert rows[0] == rows[1]


def with_run(settings: dict, **changes) -> TrainConfig:
    return make_config(settings | {"run": settings["run"] | changes})


def test_a_run_leaves_what_the_design_says(settings):
    path = train(make_config(settings), sample=lambda model, tokenizer: "Once")
    for name in ("config.yaml", "tokenizer.json", "metrics.jsonl", "samples.md", "best.json", "last.json"):
        assert (path / name).is_file(), name
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert (path / "checkpoints" / "step_000030" / name).is_file(), name
    assert not [p for p in path.rglob("*") if p.suffix in (".pt", ".pkl", ".bin") and "data" not in p.parts]
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 31))
    assert [row["step"] for row in rows if "val_loss" in row] == [10, 20, 30]
    assert rows[30]["loss"] < 0.75 * rows[1]["loss"]
    model, tokenizer = load(path)
    assert not model.training and model.cfg.vocab_size == tokenizer.vocab_size
    assert read_config(path / "config.yaml").model == model.cfg


def test_the_same_seed_gives_the_same_run_whatever_was_drawn_before(settings, tmp_path):
    a = train(with_run(settings, out_dir=str(tmp_path / "a")))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    b = train(with_run(settings, out_dir=str(tmp_path / "b")))
    assert torch.equal(before, torch.get_rng_state()), "training changed the caller's random numbers"
    same_run(a, b)


def test_a_stopped_run_ends_with_the_same_bits(settings, tmp_path):
    settings["model"]["dropout"] = 0.1
    whole = train(with_run(settings, out_dir=str(tmp_path / "whole")))

    class StopAt(training.Progress):
        def __init__(self, at):
            self.at = at

        def step(self, step):
            if step == self.at:
                os.kill(os.getpid(), signal.SIGINT)

    path = training.create_run(with_run(settings, out_dir=str(tmp_path / "parts")))
    for at in (4, 17):
        with pytest.raises(training.Stopped) as stopped:
            training.resume(path, progress=StopAt(at))
        assert stopped.value.step_done == at and json.loads((path / "last.json").read_text())["step"] == at
    training.resume(path)
    same_run(whole, path)


def test_killed_at_any_moment_no_checkpoint_is_broken(settings, tmp_path):
    whole = train(with_run(settings, out_dir=str(tmp_path / "whole"), checkpoint_every=1))
    path = training.create_run(with_run(settings, out_dir=str(tmp_path / "killed"), checkpoint_every=1))
    code = "import sys; from tinygpt.training import resume; print('go', flush=True); resume(sys.argv[1])"
    for delay in (0.05, 0.3, 0.6):
        with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as child:
            child.stdout.readline()
            time.sleep(delay)
            child.kill()
        for checkpoint in (path / "checkpoints").glob("step_*"):
            load(checkpoint)
    training.resume(path)
    same_run(whole, path)
    assert not list(path.rglob(".*.part"))


def test_a_time_limit_ends_a_run_that_can_go_on(settings):
    path = train(with_run(settings, max_minutes=1e-9))
    assert json.loads((path / "last.json").read_text())["step"] == 1
    assert json.loads((path / "best.json").read_text())["step"] == 1


def test_two_trainings_do_not_share_a_directory(settings):
    class Second(training.Progress):
        def start(self, config, model, step):
            code = "import sys; from tinygpt.training import resume; resume(sys.argv[1])"
            done = subprocess.run([sys.executable, "-c", code, config.run.out_dir], capture_output=True, text=True)
            assert "another training is at work" in done.stderr

    train(make_config(settings), progress=Second())


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(settings):
    path = training.create_run(with_run(settings, eval_every=1000, log_every=5))

    class Poison(training.Progress):
        def start(self, config, model, step):
            self.model = model

        def step(self, step):
            if step == 12:
                self.model.norm.weight.data.fill_(torch.nan)

    with pytest.raises(FloatingPointError, match="no longer a number"):
        training.resume(path, progress=Poison())
    assert json.loads((path / "last.json").read_text())["step"] == 10
    model, _ = load(path)
    assert all(p.isfinite().all() for p in model.parameters())


# --- checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path):
    config = make_config({"model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 20}})
    model, optimizer = training.make_model(config, torch.device("cpu"))
    ids = torch.arange(12).reshape(2, 6)
    model.loss(ids, ids).backward()
    optimizer.step()
    return save_checkpoint(tmp_path / "step_000001", model, optimizer, 1), config, model, optimizer


def test_a_checkpoint_comes_back(checkpoint):
    path, config, model, optimizer = checkpoint
    fresh, memory = training.make_model(config, torch.device("cpu"))
    assert load_checkpoint(path, fresh, memory)["step"] == 1
    for p, q in zip(model.parameters(), fresh.parameters()):
        assert torch.equal(p, q)
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, memory.state[q][key]), key


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped"])
def test_damage_is_named_in_one_line(checkpoint, name, damage):
    path, config, *_ = checkpoint
    content = (path / name).read_bytes()
    if damage == "missing":
        (path / name).unlink()
    elif damage == "flipped":
        middle = len(content) // 2
        (path / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        (path / name).write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    model, optimizer = training.make_model(config, torch.device("cpu"))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_checkpoint(path, model, optimizer)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert all(map(torch.equal, before, model.parameters())) and not optimizer.state, "changed before it was verified"


def test_another_models_checkpoint_is_refused(checkpoint):
    path, *_ = checkpoint
    other = make_config({"model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 20}})
    with pytest.raises(ValueError, match="shape .* the model"):
        load_checkpoint(path, training.make_model(other, torch.device("cpu"))[0])
    other = make_config({"model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 20}})
    with pytest.raises(ValueError, match="is missing"):
        load_checkpoint(path, training.make_model(other, torch.device("cpu"))[0])


def test_writing_over_a_checkpoint_replaces_it(checkpoint):
    path, config, model, optimizer = checkpoint
    save_checkpoint(path, model, optimizer, 2)
    assert load_checkpoint(path, model, optimizer)["step"] == 2
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# --- configurations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"model.n_layer": 2}, "unknown field model.n_layer; did you mean model.n_layers?"),
        ({"optim": {"learning_rate": 1}}, "unknown field optim.learning_rate; optim has steps, lr"),
        ({"lr": 1}, "unknown field lr; did you mean optim.lr?"),
        ({"modle": {"n_layers": 2}}, "unknown field modle; did you mean model?"),
        ({"model.n_layers": "two"}, "model.n_layers='two' must be a whole number"),
        ({"model.n_layers": 2.5}, "model.n_layers=2.5 must be a whole number"),
        ({"model.n_kv_heads": "x"}, "model.n_kv_heads='x' must be a whole number, or null"),
        ({"optim.lr": "fast"}, "optim.lr='fast' must be a number"),
        ({"optim.lr": -1}, "lr=-1.0 must be above 0"),
        ({"data.batches": "window"}, "data.batches='window' must be one of documents, windows, shuffled"),
        ({"model.tie_embeddings": "maybe"}, "model.tie_embeddings='maybe' must be true or false"),
        ({"model.n_heads": 5}, "n_heads=5 does not divide d_model=96"),
        ({"model": 3}, "model=3 must be a section"),
        ({"data.special_tokens": "x"}, "data.special_tokens='x' must be a list"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(settings, said):
    with pytest.raises(ValueError) as error:
        make_config(settings)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_configuration_survives_yaml(tmp_path):
    for name in training.recipes():
        config = read_config(name, {"optim.lr": "3e-3", "model.n_layers": 7})
        assert config.optim.lr == 3e-3 and config.model.n_layers == 7
        (tmp_path / "mine.yaml").write_text(training.config_to_yaml(config))
        assert read_config(tmp_path / "mine.yaml") == config


@pytest.mark.parametrize("text", ["- a\n- b\n", "model: [1\n", "version: 2\n", "\x00\x01"])
def test_a_file_that_is_no_recipe(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        read_config(tmp_path / "bad.yaml")
    assert "bad.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"data.source": "nowhere.txt"}, "nowhere.txt"),
        ({"model.vocab_size": 7}, "model.vocab_size=7 is not the tokenizer's"),
        ({"data.tokenizer": "nothing.json"}, "nothing.json"),
        ({"run.device": "tpu"}, "run.device='tpu'"),
        ({"data.batches": "windows", "model.context_length": 100_000}, "window"),
    ],
)
def test_what_cannot_begin_leaves_nothing(settings, tmp_path, changes, said):
    settings["run"]["out_dir"] = str(tmp_path / "new" / "run")
    config = make_config(settings | changes)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        train(config)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]
