"""Sampling beside transformers, and what holds for any logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.model import GPT, PRESETS
from tinygpt.sampling import generate, next_token_probs, penalize_repetition, stream

FILTERS = dict(
    temperature=st.sampled_from([0.0, 1e-8, 0.3, 1.0, 2.5, 1e6]),
    top_k=st.sampled_from([None, 1, 2, 7, 1000]),
    top_p=st.sampled_from([None, 0.0, 0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.05, 0.5, 1.0]),
)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(PRESETS["tiny"].replace(vocab_size=50, d_model=32, n_layers=2, n_heads=2, context_length=24)).eval()


@pytest.mark.parametrize("settings", [
    dict(temperature=0.7), dict(top_k=5), dict(top_p=0.8), dict(min_p=0.1), dict(temperature=1.7, top_k=20, top_p=0.9, min_p=0.05),
])
def test_filters_are_those_of_transformers(settings):
    from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    makers = [("temperature", TemperatureLogitsWarper), ("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper), ("min_p", MinPLogitsWarper)]
    theirs = LogitsProcessorList([maker(settings[name]) for name, maker in makers if name in settings])
    logits = torch.randn(64, 200, generator=torch.Generator().manual_seed(1)) * 3
    torch.testing.assert_close(next_token_probs(logits, **settings), theirs(None, logits.clone()).softmax(-1))


def test_the_penalty_is_that_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, ids = torch.randn(4, 30), torch.randint(0, 30, (4, 12))
    seen = torch.zeros(4, 30).scatter(1, ids, 1.0)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits.clone())
    torch.testing.assert_close(penalize_repetition(logits, seen, 1.3), theirs)


def test_generation_is_that_of_transformers():
    "Greedy, penalty included, through the same weights."
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
    )).eval()
    ids = torch.randint(3, 40, (3, 6))
    ours = generate(lambda x: theirs(x).logits, ids, 20, temperature=0, repetition_penalty=1.2)
    wanted = theirs.generate(ids, max_new_tokens=20, min_new_tokens=20, do_sample=False, repetition_penalty=1.2, pad_token_id=0, eos_token_id=None)
    assert torch.equal(ours, wanted)


@given(logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=12), **FILTERS)
def test_always_a_distribution(logits, temperature, top_k, top_p, min_p):
    logits = torch.tensor(logits)
    probs = next_token_probs(logits, temperature, top_k, top_p, min_p)
    assert probs.isfinite().all() and (probs >= 0).all() and abs(probs.sum().item() - 1) < 1e-5
    assert probs[logits.argmax()] > 0, "the likeliest token always stays"
    if top_k is not None:
        assert (probs > 0).sum() <= top_k
    if temperature == 0 or top_k == 1 or top_p == 0:
        assert probs[logits.argmax()] == 1


@pytest.mark.parametrize("bad", [
    dict(temperature=-0.1), dict(temperature=float("nan")), dict(temperature=float("inf")), dict(top_k=0), dict(top_k=-3), dict(top_k=2.5),
    dict(top_p=-0.1), dict(top_p=1.1), dict(min_p=-1), dict(min_p=2),
])
def test_values_out_of_range_are_named(bad, model):
    (name,) = bad
    for call in (lambda: next_token_probs(torch.zeros(5), **bad), lambda: generate(model, [1], 3, **bad), lambda: stream(model, [1], 3, **bad)):
        with pytest.raises(ValueError, match=f"sampling: {name}="):
            call()


def test_a_batch_is_each_prompt_by_itself(model):
    "Prompts of unequal lengths, some ending early: greedy, so that every row has one right answer."
    prompts = [[1], [2, 3, 4], [5] * 9, [7, 8], [9, 1, 4, 4, 2]]
    alone = [generate(model, prompt, 12, temperature=0) for prompt in prompts]
    assert generate(model, prompts, 12, temperature=0) == alone
    ends = [alone[0][4], alone[2][12]]
    together = generate(model, prompts, 12, temperature=0, stop=ends)
    assert together == [generate(model, prompt, 12, temperature=0, stop=ends) for prompt in prompts]
    assert len({len(row) for row in together}) > 1


def test_what_comes_back_is_what_went_in(model):
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    out = generate(model, ids, 4)
    assert out.shape == (2, 7) and out.dtype == torch.int64 and torch.equal(out[:, :3], ids)
    assert generate(model, ids[0], 4).shape == (7,)
    assert all(isinstance(row, torch.Tensor) for row in generate(model, [ids[0], ids[1, :1]], 2))
    assert torch.equal(generate(model, ids, 0), ids)
    model.embed(out)  # an ordinary tensor: it can be trained on
    assert not out.is_inference()


def test_a_stop_of_several_ids_and_rows_of_one_width(model):
    free = generate(model, torch.tensor([[1], [2]]), 10, temperature=0)
    end = free[0, 3:5].tolist()
    out = generate(model, torch.tensor([[1], [2]]), 10, temperature=0, stop=[end])
    assert out[0, : 5].tolist() == free[0, :5].tolist() and set(out[0, 5:].tolist()) <= {end[-1]}


def test_stream_says_what_generate_says(model):
    for settings in (dict(temperature=0), dict(temperature=1.3, top_k=9, repetition_penalty=1.1)):
        whole = generate(model, [1, 2], 15, generator=torch.Generator().manual_seed(3), **settings)
        assert list(stream(model, [1, 2], 15, generator=torch.Generator().manual_seed(3), **settings)) == whole[2:]


def test_past_the_context(model):
    with pytest.raises(ValueError, match=r"context_length=24.*at most 20 new tokens.*sliding=True"):
        generate(model, [1, 2, 3, 4], 21)
    assert len(generate(model, [1, 2, 3, 4], 20)) == 24
    long = generate(model, [1, 2, 3, 4], 40, temperature=0, sliding=True)
    assert len(long) == 44
    for end in (25, 30, 43):  # each token from the latest 24 alone
        assert long[end] == model(torch.tensor([long[end - 24 : end]]))[0, -1].argmax()


def test_generation_leaves_the_model_as_it_was(model):
    model.train()
    generate(model, [1], 3)
    assert model.training
    tokens = stream(model, [1], 5)
    next(tokens)
    tokens.close()
    assert model.training
    model.eval()


@pytest.mark.parametrize("ids", [[], [[]], [[1], []], torch.zeros(1, 0, dtype=torch.long)])
def test_an_empty_prompt(model, ids):
    with pytest.raises(ValueError, match="empty"):
        generate(model, ids, 3)
