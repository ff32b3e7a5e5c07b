"""Costs are those of the real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tinygpt.cli import main
from tinygpt.looking import bill, configuration_of, measure_speed, with_vocabulary
from tinygpt.model import GPT, GPTConfig
from tinygpt.quantization import quantize
from tinygpt.runs import save_checkpoint
from tinygpt.tokenizer import ByteTokenizer


@pytest.mark.parametrize("changes", [{}, {"optim.optimizer": "muon"}, {"run.dtype": "bfloat16"}, {"run.gradient_checkpointing": "true"}, {"optim.accumulate": "4"}])
def test_the_bill_says_what_it_is_for(changes):
    _, config = configuration_of("smoke", overrides=changes)
    text = bill(with_vocabulary(config))
    for part in (config.optim.optimizer, config.run.dtype):
        assert part in text
    assert ("blocks computed twice" in text) == config.run.gradient_checkpointing
    assert ("4 pieces a step" in text) == (config.optim.accumulate == 4)


def test_measuring_leaves_threads_as_they_were():
    before = torch.get_num_threads()
    rate, how = measure_speed(with_vocabulary(configuration_of("smoke")[1]), torch.device("cpu"), seconds=0.2)
    assert rate > 0 and "cpu" in how and torch.get_num_threads() == before


# --- a checkpoint that lies in no run: what `save_checkpoint` wrote for somebody's own loop, a tokenizer beside it -----


@pytest.fixture
def bare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer, torch_state = ByteTokenizer(), torch.get_rng_state()
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, context_length=96, d_model=32, n_layers=2, n_heads=2, init_std=0.1))
    torch.set_rng_state(torch_state)
    for name, each in (("mine", model), ("eight", quantize(model, 8))):
        tokenizer.save(save_checkpoint(name, each, None, 3, tokenizer=tokenizer.fingerprint))
    Path("text.txt").write_text("Ann saw Ben. Ben saw Ann.\n" * 20)
    Path("talks.jsonl").write_text("".join(f'{{"question": "{n}?", "answer": "{n + 1}."}}\n' for n in range(20)))
    return tmp_path


def test_every_command_takes_a_bare_checkpoint(bare, capsys):
    for name in ("mine", "eight"):
        for command in (
            f"profile {name}", f"generate {name} --max_new_tokens 3 --seed 1", f"evaluate {name} text.txt",
            f"generate {name} --max_new_tokens 3 --seed 1 --temperature 0",
        ):
            assert main(command.split()) == 0, (command, capsys.readouterr().err)
        assert configuration_of(name)[1].model.d_model == 32
        for command, said in (
            (f"evaluate {name}", f"name a text: tinygpt evaluate {name} TEXT"), (f"chat {name}", f"finetune --base {name} --data FILE"),
            (f"checkpoints {name}", "name the run's directory"), (f"train --resume {name}", "not a run directory"),
        ):
            capsys.readouterr()
            assert main(command.split()) == 2, command
            out, err = capsys.readouterr()
            assert said in err and err.count("\n") == 1 and not out, err
    capsys.readouterr()
    tune = "--data talks.jsonl --optim.steps 2 --chat.batch_size 4 --run.device cpu --run.n_threads 1 --run.out_dir tuned --no_samples"
    assert main(["finetune", "--base", "eight", *tune.split()]) == 2
    out, err = capsys.readouterr()
    assert "is stored in few bits and cannot be trained; give the float model" in err and err.count("\n") == 1 and not Path("tuned").exists()
    assert main(["finetune", "--base", "mine", *tune.split()]) == 0
    assert main(["profile", "tuned"]) == 0
    Path("mine/tokenizer.json").unlink()
    capsys.readouterr()
    assert main(["finetune", "--base", "mine", *tune.replace("tuned", "again").split()]) == 2
    assert "mine/tokenizer.json is not a file" in capsys.readouterr().err
