"""What a model remembers while it writes changes nothing but the time; costs are those of the real model."""

from __future__ import annotations

import pytest
import torch

from tinygpt.looking import bill, configuration_of, measure_speed, remember, with_vocabulary
from tinygpt.model import GPT, GPTConfig
from tinygpt.sampling import generate

SHAPE = dict(vocab_size=31, context_length=24, d_model=32, n_layers=2, n_heads=4, init_std=0.3)
KINDS = [
    {}, {"window": 5}, {"window": 3, "n_kv_heads": 2}, {"position": "learned"}, {"position": "none"}, {"logit_cap": 5.0},
    {"qk_norm": True, "norm_position": "post"}, {"rope_layout": "interleaved"}, {"n_kv_heads": 1, "mlp": "gelu", "norm": "layernorm"},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("prompts", [[[1]] * 5, [list(range(1, 10))] * 4, [[1, 2], [3]]], ids=["short", "long", "unequal"])
def test_remembering_is_reading_anew(kind, prompts):
    "Texts that end at different steps, prompts longer than a window, unequal prompts."
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE | kind))
    anew, kept = (
        generate(model, prompts, 24 - len(prompts[0]), stop=[7], generator=torch.Generator().manual_seed(1), **reader)
        for reader in ({}, {"reader": remember})
    )
    assert anew == kept


@pytest.mark.parametrize("kind", [{}, {"window": 5}], ids=str)
def test_past_the_context_it_reads_anew(kind):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE | kind))
    anew, kept = (
        generate(model, [1, 2], 60, sliding=True, generator=torch.Generator().manual_seed(1), **reader) for reader in ({}, {"reader": remember})
    )
    assert anew == kept


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
