"""Speculation changes no greedy text and no distribution, whatever the draft; and it says what it did."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.generation import generate, generate_text, stream, stream_text
from tinygpt.model import GPT, PRESETS, GPTConfig
from tinygpt.quantization import quantize
from tinygpt.runs import load
from tinygpt.sampling import Sampling, next_token_probs
from tinygpt.speculation import (
    Dice, DraftStats, Follower, Lookup, ModelDraft, Rules, draft_and_verify, drafting, load_draft, residual, speculate, speculate_text, verify,
)
from tinygpt.tokenizer import CharTokenizer

KINDS = [
    {}, {"window": 5}, {"window": 3, "n_kv_heads": 1}, {"position": "learned"}, {"position": "none", "logit_cap": 5.0}, {"qk_norm": True, "norm_position": "post"},
    {"rope_layout": "interleaved", "mlp": "gelu", "norm": "layernorm", "bias": True}, {"tie_embeddings": False},
]  # fmt: skip


def make(seed: int = 0, **changes) -> GPT:
    torch.manual_seed(seed)
    shape = dict(vocab_size=30, d_model=32, n_layers=2, n_heads=2, context_length=48, init_std=0.3)
    return GPT(PRESETS["tiny"].replace(**shape | changes)).eval()


@pytest.fixture(scope="module")
def pair() -> tuple[GPT, GPT]:
    return make(), make(1, n_layers=1)


def near(model: GPT) -> GPT:
    "A draft that agrees now and then: the model itself, a little shaken."
    draft = GPT(model.cfg).eval()
    noise = torch.Generator().manual_seed(5)
    draft.load_state_dict({k: v + 0.05 * torch.randn(v.shape, generator=noise) for k, v in model.state_dict().items()})
    return draft


# --- greedy: the same texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("n_draft", [1, 3, 7])
def test_greedy_texts_are_the_plain_ones(kind, n_draft):
    "Unequal prompts, stops, every kind of attention, to the last token of the context; drafts good, bad and looked up."
    model = make(**kind)
    for settings in (dict(), dict(repetition_penalty=1.3, frequency_penalty=0.4)):
        wanted = generate(model, [[1], [2, 3, 4], [5] * 9], 39, temperature=0, stop=[7, [9, 3]], **settings)
        for draft in (near(model), make(1, n_layers=1), "lookup", model):
            out, stats = speculate(model, draft, [[1], [2, 3, 4], [5] * 9], 39, n_draft, temperature=0, stop=[7, [9, 3]], **settings)
            assert out == wanted
            assert stats.n_calls <= len(stats.written_by) == sum(map(len, out)) - 13
    _, stats = speculate(model, model, [1], 40, n_draft, temperature=0)
    assert sum(stats.accepted) == sum(stats.tested), "a draft by the model itself is never refused"


def test_a_window_rolls_and_a_short_draft_falls_silent():
    model, draft = make(window=4, context_length=300), make(1, window=7, context_length=300)
    assert speculate(model, draft, [1, 2], 298, 5, temperature=0)[0] == generate(model, [1, 2], 298, temperature=0)
    short = make(1, context_length=20)
    out, stats = speculate(model, short, [1, 2], 60, 5, temperature=0)
    assert out == generate(model, [1, 2], 60, temperature=0)
    assert stats.written_by[-30:] == ["bonus"] * 30, "past its context it drafts nothing"


def test_the_pair_that_is_shipped():
    model, tokenizer = load("tales-deep")
    draft = load_draft("tales-two", tokenizer)
    prompts = ["One rainy morning, Tom", None, "One sunny day, Ella the"]
    wanted = generate_text(model, tokenizer, prompts, 60, temperature=0)
    for guess in (draft, "lookup"):
        texts, stats = speculate_text(model, tokenizer, guess, prompts, 60, temperature=0)
        assert texts == wanted
    _, stats = speculate_text(model, tokenizer, draft, prompts, 60, seed=0)
    assert stats.acceptance > 0.85 and stats.tokens_per_call > 3


# --- drawn: the same distribution --------------------------------------------------------------------------------


class Fork(Exception):
    pass


class EveryWay:
    "Dice that follow a given path of decisions, and say where it forks."

    def __init__(self, path: list[int]):
        self.path, self.at, self.chance = path, 0, 1.0

    def decide(self, chances: list[float]) -> int:
        if self.at == len(self.path):
            raise Fork([i for i, chance in enumerate(chances) if chance > 0])
        choice = self.path[self.at]
        self.at, self.chance = self.at + 1, self.chance * chances[choice]
        return choice

    def coin(self, chance: float) -> bool:
        return bool(self.decide([1 - min(chance, 1), min(chance, 1)]))

    def draw(self, weights: torch.Tensor) -> int:
        return self.decide((weights / weights.sum()).tolist())


def outcomes(run) -> dict:
    "Every outcome of `run(dice)`, and its probability."
    probs, paths = {}, [[]]
    while paths:
        path = paths.pop()
        try:
            outcome = run(dice := EveryWay(path))
        except Fork as fork:
            paths += [path + [choice] for choice in fork.args[0]]
        else:
            probs[outcome] = probs.get(outcome, 0.0) + dice.chance
    return probs


weights = st.lists(st.sampled_from([0.0, 1e-12, 0.1, 0.5, 1.0]) | st.floats(0.01, 1), min_size=4, max_size=4).filter(any)


@given(p=st.lists(weights, min_size=3, max_size=3), q=st.lists(weights, min_size=2, max_size=2))
def test_every_token_is_drawn_from_p(p, q):
    "Two drafted tokens, all ways: the first token out is drawn from p[0], the next from p[1] after it."
    p, q = ((x := torch.tensor(rows, dtype=torch.float64)) / x.sum(1, keepdim=True) for rows in (p, q))

    def run(dice):
        drafted = [dice.draw(row) for row in q]
        n, token = verify(p, q, drafted, dice)
        return (*drafted[:n], token)

    found = outcomes(run)
    for a in range(4):
        begins = {text: chance for text, chance in found.items() if text[0] == a}
        assert abs(sum(begins.values()) - p[0, a]) < 1e-9
        longer = {text: chance for text, chance in begins.items() if len(text) > 1}
        for b in range(4):
            seconds = sum(chance for text, chance in longer.items() if text[1] == b)
            assert abs(seconds - sum(longer.values()) * p[1, b]) < 1e-9


@pytest.mark.parametrize("settings", [
    dict(), dict(temperature=0.5), dict(top_k=2), dict(top_p=0.6), dict(temperature=3.0, min_p=0.5), dict(repetition_penalty=2.0, presence_penalty=0.5, top_k=3),
], ids=str)
@pytest.mark.parametrize("n_draft", [1, 3])
@pytest.mark.parametrize("kind", ["model", "lookup"])
def test_exact_by_enumeration(settings, n_draft, kind):
    tiny = dict(vocab_size=4, context_length=8, d_model=16, n_heads=2)
    model, draft = make(3, **tiny).double(), make(4, **tiny, n_layers=1, window=2).double()
    sampling, prompt = Sampling(**settings), [0, 1, 0]
    target, reader = Follower(model, 6, n_draft), Follower(draft, 6, n_draft)

    @torch.inference_mode()
    def run(dice):
        text, drafter = list(prompt), Lookup() if kind == "lookup" else ModelDraft(reader)
        list(draft_and_verify(target, drafter, text, 3, n_draft, Rules(sampling, dice, prompt), DraftStats()))
        return tuple(text[3:])

    found = outcomes(run)
    assert abs(sum(found.values()) - 1) < 1e-9
    with torch.inference_mode():
        for new in itertools.product(range(4), repeat=3):
            stated, rules = 1.0, Rules(sampling, None, prompt)
            for i, token in enumerate(new):
                stated *= rules.probs(model(torch.tensor([prompt + list(new[:i])]))[:, -1], [])[0, token].item()
                rules.count([token])
            assert abs(found.get(new, 0.0) - stated) < 1e-9


def test_drawn_texts_are_drawn_fairly(pair):
    "The third token after a prompt, through `speculate` as a user calls it: chi-square over 1,500 texts."
    model, draft = make(vocab_size=5, init_std=0.15), make(1, vocab_size=5, init_std=0.15, n_layers=1)
    chance = torch.Generator().manual_seed(0)
    out, _ = speculate(model, draft, [[1]] * 1500, 3, 2, generator=chance)
    pairs = torch.tensor(out)[:, 2:] @ torch.tensor([5, 1])
    seconds = next_token_probs(model(torch.cartesian_prod(torch.tensor([1]), torch.arange(5)))[:, -1])  # (5, 5) after each first
    first = next_token_probs(model(torch.tensor([[1]]))[0, -1])
    three = torch.cartesian_prod(torch.tensor([1]), torch.arange(5), torch.arange(5))
    third = next_token_probs(model(three)[:, -1]).view(5, 5, 5)
    stated = (first[:, None, None] * seconds[:, :, None] * third).sum(0).flatten()
    expected = 1500 * stated.double()
    statistic = ((pairs.bincount(minlength=25) - expected) ** 2 / expected).sum()
    assert expected.min() > 5 and torch.special.gammaincc(torch.tensor(12.0), statistic / 2) > 0.001


def test_the_residual_is_never_empty():
    p = torch.tensor([0.5, 0.5])
    assert residual(p, p).equal(p) and residual(p, torch.tensor([1.0, 0.0])).tolist() == [0, 0.5]


# --- seeds, streams, batches -------------------------------------------------------------------------------------


def test_seeds_streams_and_batches_agree(pair):
    model, draft = pair
    prompts = [[1], [2, 3, 4], [5] * 9]
    dice = lambda: [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]  # noqa: E731
    for guess in (draft, "lookup"):
        settings = dict(top_p=0.9, stop=[7], loop=drafting(guess, 3))
        together = generate(model, prompts, 30, generator=dice(), **settings)
        assert together == [generate(model, p, 30, generator=g, **settings) for p, g in zip(prompts, dice())]
        settings["temperature"] = 1.0
        assert together == [p + list(stream(model, p, 30, generator=g, **settings)) for p, g in zip(prompts, dice())]
    out, _ = speculate(model, draft, torch.tensor([[1, 2], [3, 4]]), 5)
    assert out.shape == (2, 7) and out[:, :2].tolist() == [[1, 2], [3, 4]]


def test_texts_stop_where_they_would(pair):
    tokenizer = CharTokenizer.train("abcdefghijklmnopqrstuvwxyz. ")
    model, draft = make(vocab_size=tokenizer.vocab_size), make(1, vocab_size=tokenizer.vocab_size)
    for settings in (dict(temperature=0), dict(seed=3, temperature=1.5)):
        text, _ = speculate_text(model, tokenizer, draft, "the ", 30, stop_strings=["a", "x."], **settings)
        assert "a" not in text
        assert text == "".join(stream_text(model, tokenizer, "the ", 30, stop_strings=["a", "x."], loop=drafting(draft), **settings))
    assert speculate_text(model, tokenizer, "lookup", "the ", 30, temperature=0)[0] == generate_text(model, tokenizer, "the ", 30, temperature=0)


def test_models_are_left_as_they_were(pair):
    model, draft = make().train(), make(1).train()
    tokens = stream(model, [1], 9, loop=drafting(draft))
    next(tokens)
    assert model.training and draft.training, "between steps, too"
    tokens.close()
    assert model.training and draft.training


def test_the_figures_add_up(pair):
    model, draft = pair
    _, stats = speculate(model, draft, [1], 40, 4, generator=torch.Generator().manual_seed(0))
    who = {name: stats.written_by.count(name) for name in ("draft", "corrected", "bonus")}
    assert who["draft"] == sum(stats.accepted) and who["corrected"] + who["bonus"] == stats.n_calls and sum(who.values()) == 40
    assert who["corrected"] == sum(stats.tested) - sum(stats.accepted), "every refused token was corrected"
    assert all(a <= t <= d for a, t, d in zip(stats.accepted, stats.tested, stats.drafted))
    assert stats.tested[1:] <= stats.accepted[:-1] and "40 tokens in" in str(stats)
    assert str(DraftStats()).startswith("0 tokens in 0 calls")


# --- look-up -------------------------------------------------------------------------------------------------------


@given(text=st.lists(st.integers(0, 2), min_size=1, max_size=20), n=st.integers(0, 6), longest=st.integers(1, 4))
def test_lookup_is_a_search(text, n, longest):
    def search(text):
        for size in range(min(longest, len(text)), 0, -1):
            for end in range(len(text) - 1, size - 1, -1):
                if text[end - size : end] == text[-size:]:
                    whole = list(text)
                    for i in range(n):
                        whole.append(whole[end + i])
                    return whole[len(text) :]
        return []

    growing = Lookup(longest)
    for end in range(1, len(text) + 1):
        assert growing.propose(text[:end], n) == (search(text[:end]), None)
    assert Lookup(longest).propose(text, n)[0] == search(text)


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_, said", [
    (dict(draft=make(vocab_size=31)), r"vocabulary of 31 tokens is not the model's of 30; take a draft .*same tokenizer"),
    (dict(n_draft=0), "n_draft=0 must be a whole number from 1"), (dict(n_draft=-2), "n_draft=-2"), (dict(n_draft=2.0), "n_draft=2.0"), (dict(n_draft=True), "n_draft=True"),
    (dict(draft="tales"), "draft='tales' is no model"), (dict(draft=lambda ids: ids), "is no model; give a GPT, or 'lookup'"),
    (dict(model=lambda ids: torch.zeros(*ids.shape, 30)), "the model is a plain function"), (dict(max_new_tokens=60), "context_length=48"),
    (dict(max_new_tokens=60, sliding=True), "a draft cannot slide"), (dict(ids=[]), "empty"), (dict(ids=[99]), "id=99"), (dict(top_p=0), "top_p=0"),
    (dict(temperature=float("nan")), "temperature=nan"),
])  # fmt: skip
def test_what_cannot_work_is_said(pair, request_, said):
    request_ = dict(model=pair[0], draft=pair[1], ids=[1], max_new_tokens=5) | request_
    with pytest.raises(ValueError, match=said) as error:
        speculate(**request_)
    assert "\n" not in str(error.value)
    loop = {key: request_.pop(key) for key in ("draft", "n_draft") if key in request_}
    with pytest.raises(ValueError, match=said):
        stream(**request_, loop=drafting(**loop))  # at once, not at the first token


def test_a_draft_by_name():
    _, tokenizer = load("tales")
    assert load_draft("lookup", tokenizer) == "lookup"
    with pytest.raises(ValueError, match=r"tales has another tokenizer \(of 1024 tokens\) than the model \(of 4\); take") as error:
        load_draft("tales", CharTokenizer.train("abc"))
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        load_draft("no-such-model", tokenizer)


def test_dice():
    dice = Dice(torch.Generator().manual_seed(0))
    state = dice.generator.get_state()
    assert dice.coin(1.0) and dice.coin(3.7) and not dice.coin(0.0)
    assert dice.generator.get_state().equal(state), "what is certain costs no number"
    assert Dice().draw(torch.tensor([0.0, 2.0])) == 1


def test_wrapped_models_are_unwrapped():
    "As torch.compile wraps them."
    model, draft = (GPT(GPTConfig(vocab_size=40, context_length=64, d_model=16, n_layers=n, n_heads=2)).eval() for n in (2, 1))
    wrapped = [torch.compile(m, backend="eager") for m in (model, draft)]
    texts, _ = speculate(*wrapped, [[1, 2, 3]], 12, temperature=0)
    assert texts == generate(model, [[1, 2, 3]], 12, temperature=0)
    assert type(quantize(wrapped[0])) is GPT
