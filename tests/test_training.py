"""Training as a whole: the loop with all its switches, stopping, resuming, and what it says when something is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tinygpt import folder, learning, machine, runs, training
from tinygpt.data import TokenDataset
from tinygpt.machine import LossScaler
from tinygpt.tokenizer import load_tokenizer
from tinygpt.training import TrainConfig, load, make_config, read_config, train
from tinygpt.worlds import Rungs

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


def test_whoever_watches_is_told_the_rate_and_the_gradient(settings):
    class Watching(training.Progress):
        rows: list[dict] = []

        def metrics(self, row: dict) -> None:
            self.rows.append(row)

    run = train(make_config(settings), progress=Watching())
    written = {row["step"]: row for row in training.read_metrics(run) if "loss" in row}
    seen = [row for row in Watching.rows if "loss" in row]
    assert [row["step"] for row in seen] == [7, 10, 14, 20, 21, 28, 30]
    for row in seen:
        assert all(row[name] == written[row["step"]][name] for name in ("lr", "grad_norm")) and row["tokens_per_s"] > 0
    assert abs(seen[0]["loss"] - sum(written[step]["loss"] for step in range(1, 8)) / 7) < 1e-6, "the mean of seven steps"


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


def test_a_time_limit_ends_a_run_that_can_go_on(settings, tmp_path):
    "It is measured and saved where it ends; going on, it forgets that this was not yet due."
    whole = train(with_run(settings, out_dir=str(tmp_path / "whole")), sample=lambda model, tokenizer: "Once")
    path = train(with_run(settings, max_minutes=1e-9), sample=lambda model, tokenizer: "Once")
    assert json.loads((path / "last.json").read_text())["step"] == 1
    assert json.loads((path / "best.json").read_text())["step"] == 1
    assert training.read_metrics(path)[-1].keys() >= {"val_loss", "early"} and "## step 1, early" in (path / "samples.md").read_text()
    training.resume(path, lambda model, tokenizer: "Once", changes={"run.max_minutes": None})
    same_run(whole, path)
    assert (whole / "samples.md").read_bytes() == (path / "samples.md").read_bytes()
    assert (whole / "best.json").read_bytes() == (path / "best.json").read_bytes()
    assert read_config(path / "config.yaml").run.max_minutes is None


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

    with pytest.raises(FloatingPointError, match="loss is nan at step 13; .* keeps its last good checkpoint, step 10"):
        training.resume(path, progress=Poison())
    assert json.loads((path / "last.json").read_text())["step"] == 10
    model, _ = load(path)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_gradient_that_is_no_number_stops_before_it_is_saved(settings):
    "The loss of the step is fine, and the weights after it are not."

    class Poison(training.Progress):
        def start(self, config, model, step):
            self.weight = model.blocks[0].mlp.down.weight

        def step(self, step):
            if step == 19:
                self.weight.register_hook(lambda grad: grad / 0)

    path = training.create_run(with_run(settings, eval_every=1000))
    with pytest.raises(FloatingPointError, match="gradient is infinite or no longer a number at step 20"):
        training.resume(path, progress=Poison())
    assert json.loads((path / "last.json").read_text())["step"] == 10
    assert [row["step"] for row in training.read_metrics(path)] == list(range(1, 20))


# --- the switches of the loop --------------------------------------------------------------------------------


def losses(path: Path) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in training.read_metrics(path) if "loss" in row])


def changed(settings: dict, name: str, **changes) -> TrainConfig:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return make_config(settings | {"run.out_dir": str(Path(settings["run"]["out_dir"]).with_name(name))} | dotted)


def test_a_validation_that_fails_leaves_the_model_in_training(settings, monkeypatch):
    run = train(make_config(settings))
    model, _ = load(run)
    model.train().blocks[0].eval()
    held_out = TokenDataset(run / "data" / "val")
    before = [part.training for part in model.modules()]
    training.validate(model, held_out)
    assert [part.training for part in model.modules()] == before
    monkeypatch.setattr(model, "loss", lambda *batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.validate(model, held_out)
    assert [part.training for part in model.modules()] == before


def test_pieces_of_a_batch_make_the_same_step(settings):
    whole, pieces = (train(changed(settings, f"in{n}", optim__accumulate=n)) for n in (1, 3))
    torch.testing.assert_close(losses(whole), losses(pieces), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(losses(whole)[:3], losses(pieces)[:3], rtol=1e-5, atol=1e-6)


def test_computing_again_gives_the_same_gradients(settings):
    settings["model"]["dropout"] = 0.1
    plain, again = (train(changed(settings, f"ck{on}", run__gradient_checkpointing=on)) for on in (False, True))
    torch.testing.assert_close(losses(plain), losses(again), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_the_same(settings, dtype):
    full, half = (train(changed(settings, kind, run__dtype=kind)) for kind in ("float32", dtype))
    torch.testing.assert_close(losses(full), losses(half), rtol=0.03, atol=0.03)
    assert not torch.equal(losses(full), losses(half))
    rows = training.read_metrics(half)
    assert ("loss_scale" in rows[0]) == (dtype == "float16")
    assert all(p.dtype == torch.float32 for p in load(half)[0].parameters())


def test_float16_finds_its_scale(settings, monkeypatch):
    "Steps that overflow are left out, the scale is halved, and the run goes on."
    monkeypatch.setattr(folder, "LossScaler", lambda on: LossScaler(on, scale=2.0**40))
    path = train(changed(settings, "wild", run__dtype="float16"))
    rows = [row for row in training.read_metrics(path) if "loss" in row]
    skipped = [row for row in rows if row["grad_norm"] is None]
    assert 3 < len(skipped) < 25 and skipped == rows[: len(skipped)]
    assert rows[len(skipped)]["loss_scale"] == 2.0 ** (40 - len(skipped))
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("schedule", ["linear", "wsd"])
def test_muon_and_other_schedules(settings, schedule):
    path = train(changed(settings, "muon", optim__optimizer="muon", optim__schedule=schedule))
    rates = [row["lr"] for row in training.read_metrics(path) if "loss" in row]
    assert max(rates) == 5e-3 and (rates.count(5e-3) > 10) == (schedule == "wsd")
    assert losses(path)[-1] < 0.75 * losses(path)[0]


def test_compile_is_used_and_saves_the_same_names(settings, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or f)
    plain, quick = (train(changed(settings, f"c{on}", run__compile=on)) for on in (False, True))
    assert len(compiled) == 1
    same_run(plain, quick)


def test_tensorboard(settings, monkeypatch):
    "With the package, the same numbers; without, one line and nothing written."
    class Writer:
        def __init__(self, folder, purge_step):
            self.at, told["purge"] = (folder, purge_step), told.get("purge", []) + [purge_step]

        def add_scalar(self, name, value, step):
            told[name, step] = value

        def close(self):
            told["closed"] = True

    told: dict = {}
    monkeypatch.setattr(folder, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        train(changed(settings, "board", run__tensorboard=True))
    assert not Path(settings["run"]["out_dir"]).with_name("board").exists()
    monkeypatch.setattr(folder, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    path = train(changed(settings, "board", run__tensorboard=True))
    assert told["closed"] and told["purge"] == [1]
    for row in training.read_metrics(path):
        for name in row.keys() - {"step"}:
            assert told[name, row["step"]] == row[name]


# --- before the first step, and after the last ---------------------------------------------------------------


class Listen(training.Progress):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_it_says_where_it_computes_and_what_memory_that_takes(settings, monkeypatch):
    listen = Listen()
    path = train(make_config(settings), progress=listen)
    (line,) = [text for text in listen.said if "needs about" in text]
    assert line.startswith("cpu, 1 thread, float32") and "activations" in line and "warning" not in line
    monkeypatch.setattr(machine, "memory_free", lambda device: 1000)
    training.resume(path, progress=listen)
    assert "warning: this may not fit" in listen.said[-1] and "optim.accumulate" in listen.said[-1]


def test_a_device_that_computes_wrong_is_not_trusted(settings, monkeypatch):
    monkeypatch.setattr(machine, "pick_device", lambda name: torch.device("mps"))
    monkeypatch.setattr(machine, "device_error", lambda device: 0.5)
    listen = Listen()
    assert machine.trusted_device("auto", listen) == torch.device("cpu")
    assert listen.said == ["mps is passed over: it computes the loss of a known input 50.0% off"]
    with pytest.raises(ValueError, match="run.device='mps' computes the loss of a known input 50.0% off; .* use run.device=cpu"):
        machine.trusted_device("mps")
    monkeypatch.setattr(machine, "device_error", lambda device: float("nan"))
    assert machine.trusted_device("auto") == torch.device("cpu")
    monkeypatch.setattr(machine, "device_error", lambda device: 1e-6)
    assert machine.trusted_device("mps") == torch.device("mps")


def test_a_summary_is_drawn(settings, monkeypatch):
    path = train(make_config(settings))
    assert (path / "summary.png").read_bytes().startswith(b"\x89PNG")
    rungs = Rungs(uniform=8.0, unigram=4.0, bigram=2.0, trigram=1.5, floor=1.0, bytes_per_tale=300.0)
    picture = training.plot_run(path, rungs)
    assert picture._repr_png_().startswith(b"\x89PNG")  # shown by notebooks that have drawn nothing with pyplot yet
    top, _, bottom = picture.axes
    assert {text.get_text() for text in top.texts} == {"unigram", "bigram", "trigram", "floor"}
    assert [len(line.get_xdata()) for line in top.lines[:2]] == [30, 3] and len(bottom.lines[0].get_xdata()) == 30
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    (path / "summary.png").unlink()
    training.resume(path)
    assert not (path / "summary.png").exists()  # no matplotlib, no picture, no harm
    with pytest.raises(FileNotFoundError, match="metrics.jsonl: not found"):
        training.plot_run(training.create_run(changed(settings, "fresh")))


# --- what is refused when a run goes on ----------------------------------------------------------------------


@pytest.fixture
def half(settings) -> Path:
    "A run that was stopped after 15 of 30 steps."

    class Stop(training.Progress):
        def step(self, step):
            if step == 15:
                os.kill(os.getpid(), signal.SIGTERM)

    path = training.create_run(make_config(settings))
    with pytest.raises(training.Stopped):
        training.resume(path, progress=Stop())
    return path


def everything(path: Path) -> dict:
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"optim.lr": 1.0}, "optim.lr was 0.005 in the 15 steps done and is 1.0 now"),
        ({"model.n_layers": 3}, "model.n_layers was 2"),
        ({"optim.steps": 40}, "optim.steps was 30 in the 15 steps done and is 40 now, and their rates with it"),
        ({"run.evalevery": 3}, "did you mean run.eval_every?"),
        ({"run.eval_every": "often"}, "run.eval_every='often' must be a whole number"),
    ],
)
def test_a_run_goes_on_as_it_began(half, change, said):
    before = everything(half)
    for given in ({"changes": change}, {}):
        if not given:  # the same change, by hand
            if "run" in next(iter(change)):
                break
            config = make_config(runs.config_to_dict(read_config(half / "config.yaml")) | change)
            (half / "config.yaml").write_text(runs.config_to_yaml(config))
            before = everything(half)
        with pytest.raises(ValueError) as error:
            training.resume(half, **given)
        assert said in str(error.value) and "\n" not in str(error.value)
        assert everything(half) == before


def test_what_may_change_changes_and_is_written_down(half, settings, tmp_path):
    whole = train(with_run(settings, out_dir=str(tmp_path / "whole")))
    training.resume(half, changes={"run.checkpoint_every": 3, "run.log_every": 4, "run.device": "auto"})
    same_run(whole, half)
    assert read_config(half / "config.yaml").run.checkpoint_every == 3


def test_a_damaged_checkpoint_can_be_left_behind(half, settings, tmp_path):
    whole = train(with_run(settings, out_dir=str(tmp_path / "whole")))
    weights = half / "checkpoints/step_000015/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    before = everything(half)
    with pytest.raises(ValueError, match=r"cut short or changed.*\(delete step_000015 to go on from step_000010\)") as error:
        training.resume(half)
    assert "\n" not in str(error.value) and everything(half) == before
    shutil.rmtree(weights.parent)
    training.resume(half)
    same_run(whole, half)


def test_other_tokens_are_refused(half):
    prepared = half / "data"
    (half / "text.txt").write_text(TEXT.replace("hat", "cap"))
    shutil.rmtree(prepared)
    config = read_config(half / "config.yaml").data
    training.prepare_tokens(replace(config, source=str(half / "text.txt")), load_tokenizer(half / "tokenizer.json"), prepared)
    with pytest.raises(ValueError, match="the data is not what it was trained on for 15 steps"):
        training.resume(half)


@pytest.mark.parametrize("what", ["metrics.jsonl", "weights", "last.json"])
def test_a_full_disk_is_said_and_the_last_checkpoint_is_kept(half, settings, tmp_path, monkeypatch, what):
    def full(name):
        def refuse(*args, **kw):
            if name == "weights":
                raise SafetensorError("I/O error: no space left on device")
            if Path(args[0]).name == name:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kw)
        return refuse

    with monkeypatch.context() as patch:
        if what == "metrics.jsonl":
            real = open
            patch.setattr(training, "open", full(what), raising=False)
        elif what == "weights":
            patch.setattr(runs, "save_file", full(what))
        else:
            real = folder.write_json
            patch.setattr(folder, "write_json", full(what))
        with pytest.raises(OSError) as error:
            training.resume(half)
    assert "cannot be written" in str(error.value) and "no space left on device" in str(error.value)
    assert str(error.value).endswith("it keeps its last good checkpoint, step 15") and "\n" not in str(error.value)
    assert json.loads((half / "last.json").read_text())["step"] == 15
    assert not list((half / "checkpoints").glob(".*"))
    training.resume(half)
    same_run(train(with_run(settings, out_dir=str(tmp_path / "whole"))), half)


def test_asked_to_stop_while_it_is_made_leaves_nothing(settings, tmp_path, monkeypatch):
    def asked(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    monkeypatch.setattr(learning, "prepare_tokens", asked)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        train(make_config(settings))
    assert sorted(tmp_path.iterdir()) == before


def test_asked_to_stop_while_it_looks_saves(settings):
    "The request comes during a validation, after the step has been noted."
    def evaluate(model, val_set):
        os.kill(os.getpid(), signal.SIGINT)
        return {"bits_per_byte": 9.0 if calls else 1.0}

    calls: list = []
    path = training.create_run(with_run(settings, checkpoint_every=1000, eval_every=8))
    for step in (8, 16):
        with pytest.raises(training.Stopped, match=f"after step {step}"):
            training.resume(path, evaluate=evaluate)
        calls.append(step)
        assert json.loads((path / "last.json").read_text())["step"] == step
    assert json.loads((path / "best.json").read_text())["step"] == 8


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


def test_what_a_new_run_refuses_is_said_of_its_fields(tmp_path):
    (tmp_path / "short.txt").write_text("One short line.\nAnother one.\n" * 3)
    for settings, said in (
        ({"data.source": "nowhere.txt"}, "config: data.source='nowhere.txt' is no file"),
        ({"data.source": str(tmp_path / "short.txt"), "data.tokenizer": "byte"}, f"{tmp_path}/run/data/train: n_tokens="),
    ):
        config = make_config(settings | {"run.out_dir": str(tmp_path / "run"), "run.device": "cpu"})
        with pytest.raises((ValueError, FileNotFoundError)) as found:
            training.create_run(config)
        assert str(found.value).startswith(said), found.value
        assert not (tmp_path / "run").exists()
