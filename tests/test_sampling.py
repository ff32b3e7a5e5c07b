"""Sampling beside transformers, and what holds for any logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.model import GPT, PRESETS
from tinygpt.sampling import (
    SafeText, Sampling, candidates, decode_steps, draw, generate, generate_text, keep_top_p, next_token_probs, penalize,
    reread, stream, stream_text, top_ids,
)
from tinygpt.tokenizer import ByteTokenizer, CharTokenizer

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
    torch.testing.assert_close(penalize(logits, seen, torch.zeros(4, 30), Sampling(repetition_penalty=1.3)), theirs)


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
    dict(top_p=-0.1), dict(top_p=1.1), dict(min_p=-1), dict(min_p=2), dict(temperature="hot"), dict(top_k=True), dict(temperature=None),
    dict(repetition_penalty=0), dict(repetition_penalty=float("inf")), dict(frequency_penalty=-2.1), dict(presence_penalty=3),
])
def test_values_out_of_range_are_named(bad, model):
    (name,) = bad
    calls = [lambda: generate(model, [1], 3, **bad), lambda: stream(model, [1], 3, **bad), lambda: Sampling(**bad),
             lambda: generate_text(model, ByteTokenizer(), "a", 3, **bad), lambda: stream_text(model, ByteTokenizer(), "a", 3, **bad)]
    calls += [] if name.endswith("penalty") else [lambda: next_token_probs(torch.zeros(5), **bad)]
    for call in calls:
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
                generate(lambda ids: torch.tensor(bad).expand(*ids.shape, 2), [0], 1, temperature)
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


def test_penalties_count_as_they_are_defined(model):
    "Repetition over prompt and text, frequency and presence over the text alone: against a plain loop."
    prompt, settings = [3, 3, 7], dict(repetition_penalty=1.4, frequency_penalty=0.7, presence_penalty=0.3)
    ids = list(prompt)
    for _ in range(15):
        logits = model(torch.tensor([ids]))[0, -1].tolist()
        for i in set(ids):
            logits[i] = logits[i] / 1.4 if logits[i] > 0 else logits[i] * 1.4
        for i in set(ids[3:]):
            logits[i] -= 0.7 * ids[3:].count(i) + 0.3
        ids.append(max(range(50), key=logits.__getitem__))
    assert generate(model, prompt, 15, temperature=0, **settings) == ids
    together = generate(model, [[5], prompt, [1, 2]], 15, temperature=0, **settings)
    assert together[1] == ids and together[0] == generate(model, [5], 15, temperature=0, **settings)


@pytest.mark.parametrize("settings", [dict(), dict(top_k=10, repetition_penalty=1.2), dict(top_p=0.9, frequency_penalty=0.5), dict(temperature=0)])
def test_a_prompt_with_its_own_seed_does_not_see_its_neighbours(model, settings):
    prompts, seeds = [[1], [2, 3, 4], [5] * 9, [7, 8]], [11, 12, 13, 11]
    dice = lambda: [torch.Generator().manual_seed(seed) for seed in seeds]
    together = generate(model, prompts, 12, generator=dice(), stop=[9, 17], **settings)
    assert together == [generate(model, p, 12, generator=g, stop=[9, 17], **settings) for p, g in zip(prompts, dice())]
    with pytest.raises(ValueError, match="2 generators for 4 prompts"):
        generate(model, prompts, 3, generator=dice()[:2])


def test_the_reader_reads_what_the_model_says(model):
    ids = torch.randint(0, 50, (3, 24), generator=torch.Generator().manual_seed(0))
    for lengths in ([5, 5, 5], [2, 9, 24]):
        for limit in (None, 24, 6):
            wanted = [model(row[max(0, n - (limit or n)) : n][None])[0, -1] for row, n in zip(ids, lengths)]
            for reading in (model, lambda ids: model(ids)):  # a GPT computes one row of the head; a function is asked as it is
                torch.testing.assert_close(reread(reading, limit)(ids, lengths, [0, 1, 2]), torch.stack(wanted))


def test_another_reader(model):
    seen = []

    def reader(model, limit):
        def read(ids, lengths, rows):
            seen.append((lengths, rows))
            return torch.eye(50)[[5 + n for n in lengths]]
        return read

    assert generate(model, [[1], [2, 3]], 3, temperature=0, stop=[7], reader=reader) == [[1, 6, 7], [2, 3, 7]]
    assert seen == [([1, 2], [0, 1]), ([2], [0])]
    assert list(stream(model, [1], 2, 0, reader=reader)) == [6, 7]


def test_nothing_happens_before_the_first_step(model):
    model.train()
    steps = decode_steps(model, [[1]], 3, Sampling(), lambda row, token: False)
    assert model.training
    next(steps)
    assert not model.training
    steps.close()
    assert model.training
    model.blocks[0].eval()
    generate(model, [1], 2)
    assert model.training and not model.blocks[0].training, "every part as it was"
    model.eval()


@pytest.mark.parametrize("request_, said", [
    (dict(ids=[50]), r"id=50 is not in 0\.\.49"), (dict(ids=[-1]), "id=-1"), (dict(ids="One"), "prompt is text"), (dict(ids=["One"]), "prompt is text"),
    (dict(ids=torch.zeros(1, 2)), "no token ids"), (dict(ids=[1], stop=["."]), "stop_strings"), (dict(ids=[1], stop=[[]]), "empty stop"),
    (dict(ids=[1], max_new_tokens=-1), "max_new_tokens=-1"), (dict(ids=[1], max_new_tokens=2.5), "max_new_tokens=2.5"),
    (dict(ids=[1] * 24), "24 prompt tokens.*context_length=24; shorten the prompt, or pass sliding=True"),
    (dict(ids=[1] * 30), "shorten the prompt, or pass sliding=True"), (dict(ids=[1], max_new_tokens=None, sliding=True), "say how many"),
])
def test_a_request_that_cannot_be_served(model, request_, said):
    request_ = dict(max_new_tokens=3) | request_
    for call in (generate, stream):
        with pytest.raises(ValueError, match=said) as error:
            call(model, **request_)
        assert "\n" not in str(error.value)


def test_as_many_as_fit(model):
    assert len(generate(model, [1, 2, 3], None)) == 24
    assert [len(row) for row in generate(model, [[1], [2, 3]], None, temperature=0)] == [23, 24]
    assert list(stream(model, [1], 0)) == []


# --- text ----------------------------------------------------------------------------------------------------


def by_character(text: str, stops: list[str]) -> str:
    "What comes before the stop that is complete first; of two complete at once, the longer."
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))]
    return text


@given(
    text=st.text("ab☃🐾é", max_size=12), stops=st.lists(st.text("ab☃🐾", min_size=1, max_size=4), max_size=3),
    cuts=st.sets(st.integers(1, 40), max_size=12), tail=st.sampled_from([b"", "🐾".encode()[:3], b"\xc3"]),
)
def test_text_that_is_safe_to_print(text, stops, cuts, tail):
    raw, safe, wanted = text.encode() + tail, SafeText(stops), by_character(text, stops)
    edges = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
    out = ""
    for begin, end in zip(edges, edges[1:]):
        out += safe.feed(raw[begin:end])
        assert wanted.startswith(out) and "\ufffd" not in out
    assert out + safe.finish() == wanted
    assert safe.feed(b"more") == "", "the end is the end"


def reciter(text: str, at_first: int = 1):
    "A model of bytes that recites, `at_first` tokens after the beginning of its input."
    script = torch.tensor([*ByteTokenizer().encode(text), ByteTokenizer().eot_id] * 2)
    logits = 100.0 * torch.nn.functional.one_hot(script, 257).float()
    return lambda ids: torch.cat([torch.zeros(at_first - 1, 257), logits])[None, : ids.shape[1]].expand(len(ids), -1, -1)


def test_streams_of_text():
    tokenizer, said = ByteTokenizer(), "naïve 🐾 walk. The end, at last"
    assert "".join(stream_text(reciter(said), tokenizer, None, 60)) == said, "it stops at the end-of-text token, unprinted"
    assert list(stream_text(reciter("é🐾"), tokenizer, None, 9)) == ["é", "🐾"]
    pieces = list(stream_text(reciter(said), tokenizer, None, 60, stop_strings=["The end"]))
    assert "".join(pieces) == "naïve 🐾 walk. " and all(pieces)
    assert generate_text(reciter(said), tokenizer, None, 60, stop_strings="end") == "naïve 🐾 walk. The "
    assert generate_text(reciter(said), tokenizer, None, 60, stop=[ord("v")]) == "naï"
    assert generate_text(reciter("a🐾"), tokenizer, None, 3) == "a", "half a character is not printed at the end either"
    assert generate_text(reciter(said, 3), tokenizer, "ab", 5) == "naïv"  # a prompt of two bytes and what opens a document


def test_texts_in_a_batch():
    torch.manual_seed(0)
    tokenizer = ByteTokenizer()
    model = GPT(PRESETS["tiny"].replace(vocab_size=257, d_model=32, n_layers=1, n_heads=2, context_length=40)).eval()
    prompts, settings = ["One day", None, "é", "at the end of"], dict(stop_strings=["a", "\x00"], temperature=2.0)
    together = generate_text(model, tokenizer, prompts, 20, seed=7, **settings)
    for i, (prompt, text) in enumerate(zip(prompts, together)):
        assert text == generate_text(model, tokenizer, prompt, 20, seed=7 + i, **settings)
        assert text == "".join(stream_text(model, tokenizer, prompt, 20, seed=7 + i, **settings))
    assert together == generate_text(model, tokenizer, prompts, 20, seed=[7, 8, 9, 10], **settings)
    assert generate_text(model, tokenizer, prompts[::-1], 20, seed=[10, 9, 8, 7], **settings) == together[::-1]
    ids = generate(model, [tokenizer.eot_id], None, generator=torch.Generator().manual_seed(3), stop=[tokenizer.eot_id])
    free = generate_text(model, tokenizer, None, seed=3)
    assert tokenizer.decode([i for i in ids if i != tokenizer.eot_id]).startswith(free)


@pytest.mark.parametrize("prompts, options, said", [
    ("Zoë", {}, "encode: text.0.='Z'"), (["ab", "a☃"], {}, "prompt 2 of 2: encode: text.1.='☃'"), ("", {}, "the prompt is empty; .* or None"),
    (["a", ""], {}, "prompt 2 of 2 is empty"), ([], {}, "a prompt is empty"), ("a", dict(stop_strings=""), "stop_strings=''"),
    ("a", dict(stop_strings=["b", ""]), "stop_strings"), (["a", "b"], dict(seed=[1]), "1 generators for 2 prompts"), ("a" * 30, {}, "shorten the prompt"),
])
def test_texts_that_cannot_be_continued(prompts, options, said):
    torch.manual_seed(0)
    tokenizer = CharTokenizer.train("ab")
    model = GPT(PRESETS["tiny"].replace(vocab_size=tokenizer.vocab_size, d_model=32, n_layers=1, n_heads=2, context_length=24))
    with pytest.raises(ValueError, match=said) as error:
        generate_text(model, tokenizer, prompts, 3, **options)
    assert "\n" not in str(error.value)


def test_no_document_without_its_token():
    tokenizer = CharTokenizer("ab", special_tokens=())
    model = lambda ids: torch.zeros(*ids.shape, 2)
    assert len(generate_text(model, tokenizer, "a", 5, seed=0)) == 5
    with pytest.raises(ValueError, match="the prompt is empty; give it some text$"):
        generate_text(model, tokenizer, None, 5)
    with pytest.raises(TypeError, match="temprature"):
        generate_text(model, tokenizer, "a", 5, temprature=1)


def test_candidates_are_few():
    logits = torch.randn(2, 5000) * 6
    weights, ids = candidates(logits, Sampling(top_k=7))
    assert weights.shape == ids.shape == (2, 7)
    weights, ids = candidates(logits, Sampling(top_p=0.5))
    assert weights.shape == (2, 256), "top-p looks among the best first"
    assert candidates(logits, Sampling())[1] is None
