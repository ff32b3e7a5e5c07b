"""Sampling beside transformers, and what holds for any logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.model import GPT, PRESETS
from tinygpt.sampling import Sampling, candidates, choose, decode_steps, draw, keep_top_p, next_token_probs, penalize, reread, top_ids

FILTERS = dict(
    temperature=st.sampled_from([0.0, 1e-8, 0.3, 1.0, 2.5, 1e6]),
    top_k=st.sampled_from([None, 1, 2, 7, 1000]),
    top_p=st.sampled_from([None, 1e-9, 0.1, 0.5, 0.9, 1.0]),
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
    torch.testing.assert_close(penalize(logits, seen, torch.zeros(4, 30), Sampling(repetition_penalty=1.3)), theirs)


@given(logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=12), **FILTERS)
def test_always_a_distribution(logits, temperature, top_k, top_p, min_p):
    logits = torch.tensor(logits)
    probs = next_token_probs(logits, temperature, top_k, top_p, min_p)
    assert probs.isfinite().all() and (probs >= 0).all() and abs(probs.sum().item() - 1) < 1e-5
    best = logits >= logits.max() - 1e-5 * max(temperature, 1)  # nearer than rounding, either may count as the likeliest
    assert (probs[best] > 0).any(), "the likeliest token always stays"
    if top_k is not None:
        assert (probs > 0).sum() <= top_k
    if temperature == 0 or top_k == 1 or top_p == 1e-9:
        assert probs.max() == 1


@pytest.mark.parametrize("bad", [
    dict(temperature=-0.1), dict(temperature=float("nan")), dict(temperature=float("inf")), dict(top_k=0), dict(top_k=-3), dict(top_k=2.5),
    dict(top_p=0), dict(top_p=0.0), dict(top_p=-0.1), dict(top_p=float("nan")), dict(top_p=1.1), dict(min_p=-1), dict(min_p=2), dict(temperature="hot"), dict(top_k=True), dict(temperature=None),
    dict(repetition_penalty=0), dict(repetition_penalty=float("inf")), dict(frequency_penalty=-2.1), dict(presence_penalty=3),
])
def test_values_out_of_range_are_named(bad):
    (name,) = bad
    calls = [lambda: Sampling(**bad)]
    calls += [] if name.endswith("penalty") else [lambda: next_token_probs(torch.zeros(5), **bad)]
    for call in calls:
        with pytest.raises(ValueError, match=f"sampling: {name}="):
            call()


# --- drawing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.5, 6.0])  # flat: the shortlist of top-p does not hold the share; peaked: it does
@pytest.mark.parametrize("settings", [dict(top_p=0.3), dict(top_p=0.9, min_p=0.01), dict(top_k=40, top_p=0.7, temperature=0.5)])
def test_the_short_way_is_the_long_way(settings, spread):
    logits = torch.randn(16, 5000, generator=torch.Generator().manual_seed(1)) * spread
    probs = (logits / settings.get("temperature", 1.0)).softmax(-1)
    if "top_k" in settings:
        kept = torch.zeros_like(probs).scatter(-1, probs.topk(settings["top_k"]).indices, 1.0)
        probs = probs * kept / (probs * kept).sum(-1, keepdim=True)
    probs = probs * keep_top_p(probs, settings["top_p"])
    if "min_p" in settings:
        probs = probs * (probs >= settings["min_p"] * probs.amax(-1, keepdim=True))
    torch.testing.assert_close(next_token_probs(logits, **settings), probs / probs.sum(-1, keepdim=True))


@given(scores=st.lists(st.integers(-3, 3), min_size=1, max_size=12), k=st.integers(1, 12))
def test_of_equal_scores_the_lower_id_stays(scores, k):
    k = min(k, len(scores))
    wanted = sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])
    assert top_ids(torch.tensor(scores, dtype=torch.float), k).tolist() == wanted
    rows = torch.tensor([scores, scores[::-1]], dtype=torch.bfloat16)
    assert top_ids(rows, k)[0].tolist() == wanted and top_ids(rows, k).shape == (2, k)
    assert top_ids(rows, 1)[:, 0].equal(rows.argmax(-1)), "top-k of 1 is greedy"


@given(weights=st.lists(st.sampled_from([0.0, 1e-30, 1e-8, 0.5, 3.0]), min_size=1, max_size=9).filter(any), u=st.floats(0, 1, exclude_max=True))
def test_only_what_has_weight_is_drawn(weights, u):
    for u in (u, 0.0, 1 - 2**-53):
        assert weights[draw(torch.tensor(weights, dtype=torch.float64), torch.tensor(u, dtype=torch.float64))] > 0
    rows = torch.tensor([weights, weights[::-1]])
    u = torch.tensor([u, u], dtype=torch.float64)
    assert draw(rows, u).tolist() == [draw(row, u[0]) for row in rows]


def test_logits_that_are_no_numbers():
    for bad in ([0.0, float("nan")], [float("inf"), 0.0], [-float("inf")] * 2):
        for temperature in (0, 1):
            with pytest.raises(ValueError, match="highest logit"):
                next_token_probs(torch.tensor(bad), temperature)
            with pytest.raises(ValueError, match="highest logit"):
                choose(torch.tensor([bad]), Sampling(temperature=temperature), lambda: torch.rand(1))
    masked = next_token_probs(torch.tensor([0.0, -float("inf"), 0.0]), top_k=3, top_p=0.99)
    torch.testing.assert_close(masked, torch.tensor([0.5, 0.0, 0.5]))


def test_half_precision_comes_out_in_float32():
    logits = torch.randn(3, 50).bfloat16()
    torch.testing.assert_close(next_token_probs(logits, top_p=0.9), next_token_probs(logits.float(), top_p=0.9))


def test_seeds_that_follow_one_another_are_independent():
    "Prompt i of a batch is written with seed + i: the first numbers of 4,000 seeds, alone and in pairs, by chi-square."
    u = torch.stack([torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in range(4001)])
    for cells in ((u[:-1, 0] * 25).long(), (u[:-1, 0] * 5).long() * 5 + (u[1:, 0] * 5).long(), (u[:-1, 0] * 5).long() * 5 + (u[:-1, 1] * 5).long()):
        statistic = ((cells.bincount(minlength=25) - 160.0) ** 2 / 160).sum()
        assert torch.special.gammaincc(torch.tensor(12.0), statistic / 2) > 0.001


# --- the loop ------------------------------------------------------------------------------------------------


def test_counts_go_on_as_they_would_be_counted_anew(model):
    "Penalties count from step to step; rows that end take their counts with them."
    settings = Sampling(temperature=0, repetition_penalty=1.3, frequency_penalty=0.6, presence_penalty=0.2)
    prompts, texts = [[3, 3, 7], [5], [1, 2, 2, 2, 9]], [[], [], []]

    def ended(row, token):
        texts[row].append(token)
        return row == 0 and len(texts[0]) == 4

    list(decode_steps(model, prompts, 12, settings, ended))
    for prompt, text in zip(prompts, texts):
        for n, token in enumerate(text):
            logits = model(torch.tensor([prompt + text[:n]]))[:, -1]
            seen, new = (torch.tensor(part, dtype=torch.long).bincount(minlength=50)[None].float() for part in (prompt + text[:n], text[:n]))
            assert penalize(logits, seen, new, settings).argmax() == token
    assert [len(text) for text in texts] == [4, 12, 12]


def test_the_reader_reads_what_the_model_says(model):
    ids = torch.randint(0, 50, (3, 24), generator=torch.Generator().manual_seed(0))
    for lengths in ([5, 5, 5], [2, 9, 24]):
        for limit in (None, 24, 6):
            wanted = [model(row[max(0, n - (limit or n)) : n][None])[0, -1] for row, n in zip(ids, lengths)]
            for reading in (model, lambda ids: model(ids)):  # a GPT computes one row of the head; a function is asked as it is
                torch.testing.assert_close(reread(reading, limit)(ids, lengths, [0, 1, 2]), torch.stack(wanted))


def test_nothing_happens_before_the_first_step(model):
    model.train()
    steps = decode_steps(model, [[1]], 3, Sampling(), lambda row, token: False)
    assert model.training
    next(steps)
    assert model.training, "between steps, too"
    steps.close()
    assert model.training
    model.blocks[0].eval()
    list(decode_steps(model, [[1]], 2, Sampling(), lambda row, token: False))
    assert model.training and not model.blocks[0].training, "every part as it was"
    model.eval()


def test_candidates_are_few():
    logits = torch.randn(2, 5000) * 6
    weights, ids = candidates(logits, Sampling(top_k=7))
    assert weights.shape == ids.shape == (2, 7)
    weights, ids = candidates(logits, Sampling(top_p=0.5))
    assert weights.shape == (2, 256), "top-p looks among the best first"
    assert candidates(logits, Sampling())[1] is None


def test_a_compiled_model_writes_as_it_would_without(model, recwarn):
    "Compiled code fits one length, and each token makes another: it would be compiled again and again."
    compiled = torch.compile(model, backend="eager")
    texts = []
    for each in (model, compiled):
        texts.append([])
        for _ in decode_steps(each, [[1, 2, 3]], 16, Sampling(temperature=0), lambda row, token: texts[-1].append(token)):
            pass
    assert texts[0] == texts[1] and len(texts[0]) == 16 and not recwarn.list
