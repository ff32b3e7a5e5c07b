"""A cache changes nothing but the time: cached logits equal uncached ones, whatever the model and however the text comes in."""

from __future__ import annotations

import pytest
import torch

from tinygpt.cache import KVCache, remember
from tinygpt.model import GPT, GPTConfig
from tinygpt.sampling import generate

SHAPE = dict(vocab_size=31, context_length=24, d_model=32, n_layers=2, n_heads=4, init_std=0.3)
KINDS = [{}, {"window": 5}, {"window": 3, "n_kv_heads": 2}, {"position": "learned"}, {"position": "none"}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@torch.no_grad()
def test_token_by_token_equals_at_once(kind):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE | kind)).eval()
    ids = torch.randint(31, (2, 24))
    cache = KVCache(model.cfg, 2)
    new = torch.cat([model(ids[:, t : t + 1], cache=cache) for t in range(24)], 1)
    torch.testing.assert_close(new, model(ids), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("prompts", [[[1]] * 5, [list(range(1, 10))] * 4, [[1, 2, 3, 4], [3], [5, 6]]], ids=["short", "long", "unequal"])
def test_remembering_is_reading_anew(kind, prompts):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE | kind))
    for sliding in (False, True):
        n_new = 40 if sliding else 24 - len(prompts[0])
        anew, kept = (
            generate(model, prompts, n_new, stop=[7], sliding=sliding, generator=torch.Generator().manual_seed(1), **reader)
            for reader in ({}, {"reader": remember})
        )
        assert anew == kept
