"""What a run is told and what it remembers: configurations that say what is wrong, checkpoints that are whole or not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinygpt import runs, training
from tinygpt.runs import (
    DataConfig, OptimConfig, RunConfig, TrainConfig, load, load_checkpoint, make_config, read_config, save_checkpoint,
    whole_directory,
)
from tinygpt.tokenizer import CharTokenizer

# --- checkpoints ---------------------------------------------------------------------------------------------


def checkpoint_of(path: Path, optimizer: str):
    model = {"d_model": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 20}
    config = make_config({"model": model, "optim.optimizer": optimizer})
    model, optimizers = training.make_model(config, torch.device("cpu"))
    ids = torch.arange(12).reshape(2, 6)
    model.loss(ids, ids).backward()
    for each in optimizers:
        each.step()
    return save_checkpoint(path, model, optimizers, 1), config, model, optimizers


@pytest.fixture
def checkpoint(tmp_path: Path):
    return checkpoint_of(tmp_path / "step_000001", "adamw")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_checkpoint_comes_back(tmp_path, name):
    path, config, model, optimizers = checkpoint_of(tmp_path / "step_000001", name)
    fresh, memories = training.make_model(config, torch.device("cpu"))
    assert load_checkpoint(path, fresh, memories)["step"] == 1
    assert len(optimizers) == len(memories) == (2 if name == "muon" else 1)
    for optimizer, memory in zip(optimizers, memories):
        for p, q in zip(*(o.param_groups[0]["params"] for o in (optimizer, memory))):
            assert torch.equal(p, q) and optimizer.state[p].keys() == memory.state[q].keys()
            for key, value in optimizer.state[p].items():
                assert torch.equal(value, memory.state[q][key]), key


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_the_files_of_a_checkpoint_are_for_whoever_new_files_are_for(checkpoint, tmp_path):
    path, config, model, optimizers = checkpoint
    before = os.umask(0o027)
    try:
        saved = save_checkpoint(tmp_path / "rights", model, optimizers, 1)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in saved.iterdir()} == {0o640}


def test_one_optimizer_or_a_list_of_them(checkpoint, tmp_path):
    path, config, model, (optimizer,) = checkpoint
    save_checkpoint(tmp_path / "one", model, optimizer, 1)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert (path / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    save_checkpoint(tmp_path / "none", model, None, 1)
    fresh, (memory,) = training.make_model(config, torch.device("cpu"))
    load_checkpoint(tmp_path / "none", fresh)
    with pytest.raises(ValueError, match="holds the state of"):
        load_checkpoint(tmp_path / "none", fresh, memory)


def test_a_compiled_model_is_saved_by_the_names_of_its_weights(checkpoint, tmp_path):
    "`torch.compile` calls them _orig_mod.embed.weight and so on, and a plain model could not read that."
    path, config, model, (optimizer,) = checkpoint
    compiled = torch.compile(model, backend="eager")
    save_checkpoint(tmp_path / "compiled", compiled, optimizer, 1)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert (path / name).read_bytes() == (tmp_path / "compiled" / name).read_bytes()
    fresh, (memory,) = training.make_model(config, torch.device("cpu"))
    load_checkpoint(path, torch.compile(fresh, backend="eager"), memory)
    assert all(map(torch.equal, fresh.parameters(), model.parameters()))


def test_the_memory_of_another_optimizer_is_refused(checkpoint):
    path, config, model, _ = checkpoint
    other = make_config({"model": dict(vars(config.model)), "optim.optimizer": "muon"})
    fresh, memories = training.make_model(other, torch.device("cpu"))
    with pytest.raises(ValueError, match="holds the state of .*AdamW.*Muon"):
        load_checkpoint(path, fresh, memories)
    assert not any(each.state for each in memories)


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
    model, optimizers = training.make_model(config, torch.device("cpu"))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_checkpoint(path, model, optimizers)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert all(map(torch.equal, before, model.parameters())) and not optimizers[0].state, "changed before it was verified"


def test_another_models_checkpoint_is_refused(checkpoint):
    path, *_ = checkpoint
    other = make_config({"model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 20}})
    with pytest.raises(ValueError, match="shape .* the model"):
        load_checkpoint(path, training.make_model(other, torch.device("cpu"))[0])
    other = make_config({"model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 20}})
    with pytest.raises(ValueError, match="is missing"):
        load_checkpoint(path, training.make_model(other, torch.device("cpu"))[0])


def test_a_state_that_was_changed_is_refused(checkpoint):
    path, _, model, _ = checkpoint
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"step": 2}))
    with pytest.raises(ValueError, match="state.json: not what its checksum says"):
        load_checkpoint(path, model)
    (path / "state.json").write_text('{"format": "pt"}')
    with pytest.raises(ValueError, match="not a tinygpt.checkpoint file"):
        load_checkpoint(path, model)


def test_half_the_bytes_are_enough_to_use_a_model(checkpoint, tmp_path):
    "Weights in float16 come back as float32, rounded."
    _, config, model, _ = checkpoint
    before = [p.clone() for p in model.parameters()]
    small = save_checkpoint(tmp_path / "half", model.half(), None, 1)
    fresh, _ = training.make_model(config, torch.device("cpu"))
    load_checkpoint(small, fresh)
    for p, q in zip(before, fresh.parameters()):
        assert q.dtype == torch.float32
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-6)


def test_writing_over_a_checkpoint_replaces_it(checkpoint):
    path, config, model, optimizers = checkpoint
    save_checkpoint(path, model, optimizers, 2)
    assert load_checkpoint(path, model, optimizers)["step"] == 2
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# --- configurations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"model.n_layer": 2}, "unknown field model.n_layer; did you mean model.n_layers?"),
        ({"optim": {"learning_rate": 1}}, "unknown field optim.learning_rate; here it is optim.lr"),
        ({"optim.lrs": 1}, "unknown field optim.lrs; did you mean optim.lr?"),
        ({"optim.colour": 1}, "unknown field optim.colour; optim has steps, optimizer"),
        ({"lr": 1}, "unknown field lr; did you mean optim.lr?"),
        ({"modle": {"n_layers": 2}}, "unknown field modle; did you mean model?"),
        ({"model.n_layers": "two"}, "model.n_layers='two' must be a whole number"),
        ({"model.n_layers": 2.5}, "model.n_layers=2.5 must be a whole number"),
        ({"model.n_kv_heads": "x"}, "model.n_kv_heads='x' must be a whole number, or null"),
        ({"optim.lr": "fast"}, "optim.lr='fast' must be a number"),
        ({"optim.lr": -1}, "lr=-1.0 must be above 0"),
        ({"data.batches": "window"}, "data.batches='window' must be one of documents, windows, shuffled"),
        ({"optim.optimizer": "adam"}, "optim.optimizer='adam' must be one of adamw, muon"),
        ({"optim.schedule": "cos"}, "optim.schedule='cos' must be one of cosine, linear, wsd"),
        ({"run.dtype": "bf16"}, "run.dtype='bf16' must be one of float32, bfloat16, float16"),
        ({"optim.accumulate": 0}, "accumulate=0 must be 1 or more"),
        ({"optim.accumulate": 33}, "accumulate=33 cuts data.batch_size=32 into more pieces than sequences"),
        ({"optim.decay_frac": 1.5}, "decay_frac=1.5 must lie between 0 and 1"),
        ({"run.compile": "soon"}, "run.compile='soon' must be true or false"),
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
    for name in runs.recipes():
        config = read_config(name, {"optim.lr": "3e-3", "model.n_layers": 7})
        assert config.optim.lr == 3e-3 and config.model.n_layers == 7
        (tmp_path / "mine.yaml").write_text(runs.config_to_yaml(config))
        assert read_config(tmp_path / "mine.yaml") == config


@pytest.mark.parametrize("text", ["- a\n- b\n", "model: [1\n", "version: 2\n", "\x00\x01"])
def test_a_file_that_is_no_recipe(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        read_config(tmp_path / "bad.yaml")
    assert "bad.yaml" in str(error.value) and "\n" not in str(error.value)


# --- directories that are whole or not there -----------------------------------------------------------------


def test_nothing_is_overwritten_unasked(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        with whole_directory(tmp_path / "full"):
            raise AssertionError("never begun")
    with pytest.raises(ValueError, match="exists already"):  # somebody else is quicker
        with whole_directory(tmp_path / "raced") as part:
            (part / "a").write_text("mine")
            (tmp_path / "raced").mkdir()
            (tmp_path / "raced" / "a").write_text("theirs")
    assert (tmp_path / "raced" / "a").read_text() == "theirs"
    assert {p.name for p in tmp_path.iterdir()} == {"full", "raced"}
    (tmp_path / "empty").mkdir()
    with whole_directory(tmp_path / "empty") as part:
        (part / "a").write_text("mine")
    with whole_directory(tmp_path / "full", overwrite=True) as part:
        (part / "b").write_text("new")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["b"] and (tmp_path / "empty" / "a").exists()


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nobody can be asked whether a process lives")
def test_what_a_killed_process_left_is_removed_and_the_work_of_a_living_one_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living = [f".run.{os.getppid()}.part", f".other.{dead.pid}.part", f".run.b.{dead.pid}.part", ".run.mine.part"]
    for name in [f".run.{dead.pid}.part", *living]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens").write_text("half")
    with whole_directory(tmp_path / "run") as part:
        (part / "a").write_text("whole")
    assert {each.name for each in tmp_path.iterdir()} == {"run", *living}


def test_an_error_in_words_names_the_directory_that_was_asked_for(tmp_path):
    with pytest.raises(OSError) as error:
        with whole_directory(tmp_path / "run") as part:
            (part / "a").write_text("a file")
            CharTokenizer("ab").save(part / "a" / "tokenizer.json")
    assert str(error.value).startswith(f"{tmp_path / 'run' / 'a' / 'tokenizer.json'}: cannot be written")


UNWRITABLE = [Path(__file__) / "run", Path(os.devnull) / "run"] + [Path("/proc/run")] * sys.platform.startswith("linux")


@pytest.mark.parametrize("path", UNWRITABLE, ids=lambda p: p.parent.name)
def test_an_unwritable_place_is_named_in_one_line(path):
    with pytest.raises(OSError) as error:
        with whole_directory(path):
            pass
    assert str(path) in str(error.value) and "cannot be written" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OSError, match="run: cannot be written: permission denied"):
        with whole_directory(tmp_path / "locked" / "run"):
            pass


FULL = """
import resource, signal, sys, torch
from tinygpt.runs import make_config, save_checkpoint
from tinygpt.training import make_model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
config = make_config({"model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 20}})
model, _ = make_model(config, torch.device("cpu"))
for size in (100_000, 3000, 200):  # room for all, for a part of the weights, for nothing
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        save_checkpoint(sys.argv[1], model, None, 1)
        print("saved")
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on the size of files")
def test_a_full_disk_leaves_nothing(tmp_path):
    path = tmp_path / "runs" / "step_000001"
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True)
    said = done.stdout.strip().splitlines()
    assert done.returncode == 0 and len(said) == 3, done.stderr
    assert "saved" in said[0] and all(str(path) in line and "cannot be written" in line for line in said[1:]), said
    load_it = [p.name for p in path.iterdir()]
    assert sorted(load_it) == ["model.safetensors", "state.json"] and [p.name for p in path.parent.iterdir()] == [path.name]


# --- finding, and what may change ----------------------------------------------------------------------------


def test_damaged_pointers_and_missing_checkpoints(tmp_path):
    run = tmp_path / "run"
    for step in (5, 999_999, 1_000_000):
        checkpoint_of(run / "checkpoints" / f"step_{step:06d}", "adamw")
    assert [p.name for p in runs.checkpoint_dirs(run)] == ["step_000005", "step_999999", "step_1000000"]
    pointer = {"format": "tinygpt.pointer", "version": 1, "checkpoint": "step_000005", "step": 5}
    (run / "best.json").write_text(json.dumps(pointer))
    (run / "last.json").write_text(json.dumps(pointer | {"checkpoint": "step_000007"}))
    assert runs.find_checkpoint(run).name == "step_000005"
    assert runs.find_checkpoint(run, "last").name == "step_1000000"  # 7 was deleted
    (run / "best.json").write_text("{")
    with pytest.raises(ValueError, match="best.json: damaged"):
        runs.find_checkpoint(run)
    with pytest.raises(FileNotFoundError, match="neither a run directory nor a checkpoint"):
        load(tmp_path / "nothing")


def test_a_shipped_model_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "shipped", lambda name: tmp_path)
    path, *_ = checkpoint_of(tmp_path / "toy" / "checkpoints" / "step_000001", "adamw")
    (tmp_path / "toy" / "config.yaml").write_text("...")
    assert runs.find_checkpoint("toy") == path
    with pytest.raises(FileNotFoundError, match="did you mean toy"):
        runs.find_checkpoint("toys")


OLD = {"optim.steps": 100, "optim.warmup_steps": 10, "optim.schedule": "wsd", "optim.decay_frac": 0.2}


@pytest.mark.parametrize(
    "change, step, fault",
    [
        ({"run.device": "cpu", "run.max_minutes": 3.0, "optim.accumulate": 2}, 50, None),
        ({"optim.lr": 5e-3}, 50, "optim.lr was 0.001 in the 50 steps done and is 0.005 now"),
        ({"data.batch_size": 16}, 50, "data.batch_size was 32"),
        ({"model.n_layers": 7}, 50, "model.n_layers was 3"),
        ({"run.dtype": "bfloat16"}, 50, "run.dtype was 'float32'"),
        ({"run.seed": 1}, 50, "run.seed was 0"),
        ({"optim.steps": 200}, 80, None),  # the stable rate holds: the past is the same
        ({"optim.steps": 200}, 90, "optim.steps was 100 .* rates"),
        ({"optim.decay_frac": 0.5}, 50, None),
        ({"optim.decay_frac": 0.5}, 60, "optim.decay_frac was 0.2"),
        ({"optim.schedule": "cosine"}, 11, None),
        ({"optim.schedule": "cosine"}, 12, "optim.schedule was 'wsd'"),
    ],
)
def test_what_may_change_on_the_way(change, step, fault):
    before, after = make_config(OLD), make_config(OLD | change)
    assert set(runs.config_changes(before, after)) == set(change)
    if fault is None:
        runs.check_changes(before, after, step)
    else:
        with pytest.raises(ValueError, match=fault) as error:
            runs.check_changes(before, after, step)
        assert "may change: data.source" in str(error.value) and "\n" not in str(error.value)


def test_weights_in_few_bits_are_packed_read_and_not_trained(tmp_path):
    from tinygpt.quantization import quantize

    model, tokenizer = runs.load("tales")
    ids = torch.tensor([tokenizer.encode("The door opened.")])
    packed = runs.pack_run(runs.shipped_models()["tales"], tmp_path / "light", change=lambda model: quantize(model, bits=8))
    light, _ = runs.load(packed)
    assert light.quantization == {"bits": 8} and not light.training
    torch.testing.assert_close(light(ids), quantize(model, bits=8)(ids))
    with pytest.raises(ValueError, match="few bits; .* start from the float checkpoint"):
        runs.load_checkpoint(runs.find_checkpoint(packed), model)
    with pytest.raises(ValueError, match="load it with tinygpt.load"):
        runs.load_checkpoint(runs.find_checkpoint("tales"), light)


@pytest.mark.parametrize("field, value, said", [
    ("optim.lr", -1, "config: optim.lr=-1.0 must be above 0"),
    ("model.n_heads", 5, "config: model.n_heads=5 does not divide d_model=96"),
    ("optim.accumulate", 99, "config: optim.accumulate=99 cuts data.batch_size=32"),
    ("data.val_frac", 2, "config: data.val_frac=2.0 must lie between 0 and 1"),
])
def test_a_wrong_value_is_named_as_it_was_written(field, value, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        make_config({field: value})


def test_only_a_checkpoint_is_written_over(checkpoint, tmp_path):
    "Whatever else lies there stays; so does the tokenizer that somebody put beside the weights."
    path, _, model, _ = checkpoint
    (tmp_path / "work").mkdir()
    (tmp_path / "work/thesis.txt").write_text("years")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "state.json").write_text("{}")
    (tmp_path / "file").write_text("mine")
    for place in ("work", "foreign", "file"):
        with pytest.raises(ValueError, match="something else than a checkpoint.*name a new directory"):
            save_checkpoint(tmp_path / place, model, None, 1)
    assert (tmp_path / "work/thesis.txt").read_text() == "years" and (tmp_path / "file").read_text() == "mine"
    (path / "notes.md").write_text("mine")
    with pytest.raises(ValueError, match="something else"):
        save_checkpoint(path, model, None, 1)
    (path / "notes.md").unlink()
    (tmp_path / "empty").mkdir()
    save_checkpoint(tmp_path / "empty", model, None, 1)


def test_a_lone_checkpoint_wants_its_tokenizer(checkpoint, tmp_path):
    _, _, model, _ = checkpoint
    alone = save_checkpoint(tmp_path / "a/b/alone", model, None, 1)
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing.*tokenizer.save") as error:
        runs.load(alone)
    assert "\n" not in str(error.value)
    CharTokenizer("abc").save(alone)
    assert runs.load(alone)[1].vocab_size == 4
    save_checkpoint(alone, model, None, 2)
    assert (alone / "tokenizer.json").is_file()


@pytest.mark.parametrize("device", ["cuda:77", "gpu", torch.device("cuda")])
def test_a_device_that_is_not_there(device):
    if torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(ValueError, match="load: device=.* is not on this machine, which has .*; use auto"):
        runs.load("tales", device)


@pytest.mark.parametrize("field, value", [("rope_theta", 500.0), ("window", 3), ("rope_layout", "interleaved")])
def test_weights_are_not_read_into_another_kind_of_model(checkpoint, field, value):
    "No shape shows these fields."
    path, config, *_ = checkpoint
    other = replace(config, model=replace(config.model, **{field: value}))
    with pytest.raises(ValueError, match=f"its model has {field}=.*this one"):
        load_checkpoint(path, training.make_model(other, torch.device("cpu"))[0])
    free = replace(config, model=replace(config.model, dropout=0.5, init_std=0.1))
    load_checkpoint(path, training.make_model(free, torch.device("cpu"))[0])


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: OptimConfig(steps=2.5), "OptimConfig: steps=2.5 must be a whole number"),
        (lambda: OptimConfig(steps="5"), "OptimConfig: steps='5' must be a whole number"),
        (lambda: OptimConfig(optimizer="sgd"), "optimizer='sgd' must be one of adamw, muon"),
        (lambda: OptimConfig(betas=(0.9,)), "betas=(0.9,) must be a list like [a number, a number]"),
        (lambda: RunConfig(dtype="fp16"), "dtype='fp16' must be one of float32, bfloat16, float16"),
        (lambda: DataConfig(batches="window"), "batches='window' must be one of documents, windows, shuffled"),
        (lambda: DataConfig(special_tokens="<|end|>"), "special_tokens='<|end|>' must be a list like [text]"),
        (lambda: TrainConfig(optim={"steps": 5}), "TrainConfig: optim={'steps': 5} must be OptimConfig(...)"),
        (lambda: make_config(5), "config: 5 is no mapping"),
        (lambda: training.train({}), "config: {} is no TrainConfig"),
    ],
)
def test_what_is_written_in_python_is_checked_too(make, said):
    with pytest.raises(ValueError) as error:
        make()
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_path_stands_for_text():
    assert RunConfig(out_dir=Path("runs/a")).out_dir == str(Path("runs/a"))
    assert OptimConfig(betas=[0.9, 0.95]) == OptimConfig(betas=(0.9, 0.95))
