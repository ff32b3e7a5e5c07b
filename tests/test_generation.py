"""Generation: what comes back for what went in, alone and in a batch; streams; text that is safe to print."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.generation import SafeText, generate, generate_text, stream, stream_text
from tinygpt.model import GPT, PRESETS, GPTConfig
from tinygpt.sampling import reread
from tinygpt.tokenizer import ByteTokenizer, CharTokenizer


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(PRESETS["tiny"].replace(vocab_size=50, d_model=32, n_layers=2, n_heads=2, context_length=24)).eval()


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


@pytest.mark.parametrize("bad", [dict(temperature=-0.1), dict(temperature=float("nan")), dict(top_k=0), dict(top_p=0), dict(top_p=1.1), dict(min_p=2), dict(repetition_penalty=0)])
def test_settings_out_of_range_are_named(bad, model):
    (name,) = bad
    calls = [lambda: generate(model, [1], 3, **bad), lambda: stream(model, [1], 3, **bad),
             lambda: generate_text(model, ByteTokenizer(), "a", 3, **bad), lambda: stream_text(model, ByteTokenizer(), "a", 3, **bad)]
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


@pytest.mark.parametrize("kind", [{}, dict(window=5), dict(n_kv_heads=1, qk_norm=True), dict(position="learned"), dict(position="none", logit_cap=5.0)], ids=str)
@pytest.mark.parametrize("settings", [dict(temperature=0), dict(top_p=0.9, repetition_penalty=1.2)], ids=str)
def test_the_quickest_reader_changes_no_text(kind, settings):
    "Equal prompts and unequal ones, rows that end early, past the context, in every kind of attention."
    torch.manual_seed(0)
    model = GPT(PRESETS["tiny"].replace(vocab_size=50, d_model=32, n_layers=2, n_heads=2, context_length=24, init_std=0.3, **kind))
    dice = lambda n: [torch.Generator().manual_seed(seed) for seed in range(n)]
    for prompts, n_new, sliding in (([[1]] * 3, 20, False), ([[1], [2, 3, 4], [5] * 9], 14, False), ([[1, 2]], 40, True)):
        quick, anew = (
            generate(model, prompts, n_new, stop=[7, [9, 3]], sliding=sliding, generator=dice(len(prompts)), **reader, **settings)
            for reader in ({}, {"reader": reread})
        )
        assert quick == anew


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


@pytest.mark.parametrize("request_, said", [
    (dict(ids=[50]), r"id=50 is not in 0\.\.49"), (dict(ids=[-1]), "id=-1"), (dict(ids="One"), "prompt is text"), (dict(ids=["One"]), "prompt is text"),
    (dict(ids=torch.zeros(1, 2)), "no token ids"), (dict(ids=[1.5, 2]), "holds 1.5"), (dict(ids=[[1], [1.5]]), "holds 1.5"), (dict(ids=[1], stop=["."]), "stop_strings"), (dict(ids=[1], stop=[[]]), "empty stop"),
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


def test_streams_side_by_side_leave_a_model_that_trains_as_it_was():
    "Dropout is off in each read, and on again between two of them."
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50, context_length=32, d_model=16, n_layers=2, n_heads=2, dropout=0.5, init_std=0.3))
    alone = [list(stream(model, [i], 8, temperature=0)) for i in (1, 2)]
    pair, got = [stream(model, [i], 8, temperature=0) for i in (1, 2)], [[], []]
    for _ in range(8):
        for text, ids in zip(got, pair):
            text.append(next(ids))
            assert all(part.training for part in model.modules())
    assert got == alone == [generate(model.eval(), [i], 8, temperature=0)[1:] for i in (1, 2)]


def test_autocast_around_generation_changes_nothing():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50, context_length=32, d_model=16, n_layers=2, n_heads=2, init_std=0.3)).eval()
    plain = generate(model, [1, 2], 8, temperature=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generate(model, [1, 2], 8, temperature=0) == plain
        assert torch.is_autocast_enabled("cpu")


def test_stops_of_a_text_are_checked_as_those_of_ids():
    tokenizer = ByteTokenizer()
    model = GPT(GPTConfig(vocab_size=257, context_length=32, d_model=16, n_layers=1, n_heads=2)).eval()
    whole = generate_text(model, tokenizer, "a", 8, temperature=0)
    assert generate_text(model, tokenizer, "a", 8, temperature=0, stop=None, stop_strings=None) == whole
    assert generate(model, [1], 4, stop=None, temperature=0) == generate(model, [1], 4, temperature=0)
    first = generate(model, [256, 97], 1, temperature=0)[-1]
    assert generate_text(model, tokenizer, "a", 8, temperature=0, stop=first) == ""
    for stop, said in ((".", "is text"), ([[1, 2]], "several ids in a row"), ([1.5], "no whole number")):
        with pytest.raises(ValueError, match=said):
            generate_text(model, tokenizer, "a", 8, stop=stop)
