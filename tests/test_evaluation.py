"""Evaluation beside brute force: windows, documents, intervals, and where the bits go."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from small_model import TEXTS, make, model, tokenizer  # noqa: F401  fixtures are found by their names
from tinygpt.data import TokenDataset, prepare
from tinygpt.evaluation import (
    Evaluation, Score, choice_of_tokens, evaluate_text, excess_by_kind, mean_and_error, score_documents,
    windows,
)
from tinygpt.model import GPT
from tinygpt.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer
from tinygpt.training import train, validate
from tinygpt.worlds import Tales, shipped, write_tales


@torch.no_grad()
def one_by_one(model: GPT, tokenizer, ids: list[int], T: int) -> torch.Tensor:
    "Each token from the T before it, in a pass of its own."
    stream = torch.tensor([tokenizer.eot_id, *ids, tokenizer.eot_id])
    return torch.stack([-model(stream[None, max(0, i + 1 - T) : i + 1])[0, -1].log_softmax(-1)[stream[i + 1]] for i in range(len(stream) - 1)])


# --- windows and scores --------------------------------------------------------------------------------------


@given(n=st.integers(1, 300), T=st.integers(1, 64), data=st.data())
def test_every_token_is_scored_once_with_enough_before_it(n, T, data):
    stride = data.draw(st.integers(1, T))
    found = windows(n, T, stride)
    assert [i for _, first, end in found for i in range(first, end)] == list(range(n))
    for start, first, end in found:
        assert 0 <= start <= first < end <= start + T
        assert all(i - start + 1 >= min(i + 1, T - stride + 1) for i in range(first, end))


@pytest.mark.parametrize("changes", [
    dict(), dict(position="learned"), dict(position="none"), dict(window=7), dict(norm="layernorm", norm_position="post", mlp="gelu"), dict(tie_embeddings=False),
])
@pytest.mark.parametrize("T", [40, 17, 1])
def test_stride_one_is_token_by_token(tokenizer, changes, T):
    model = make(tokenizer.vocab_size, **changes)
    ids = [tokenizer.encode(text)[:n] for text, n in zip(TEXTS, (70, 3, 0, 41, 39, 1))]
    for doc, nats in zip(ids, score_documents(model, ids, tokenizer.eot_id, stride=1, context_length=T, batch_size=5), strict=True):
        torch.testing.assert_close(nats, one_by_one(model, tokenizer, doc, T), atol=2e-5, rtol=1e-4)


def test_the_company_does_not_matter(model, tokenizer):
    "Batches, order and other documents change nothing; a document that fits is read whole with any stride."
    ids = [tokenizer.encode(text)[: 11 * i + 2] for i, text in enumerate(TEXTS)]
    alone = [next(score_documents(model, [doc], tokenizer.eot_id, stride=9)) for doc in ids]
    for batch_size in (1, 7, 64):
        for a, b in zip(alone, score_documents(model, iter(ids), tokenizer.eot_id, stride=9, batch_size=batch_size), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    short = ids[:3]
    for stride in (1, 40):
        for doc, nats in zip(short, score_documents(model, short, tokenizer.eot_id, stride=stride)):
            torch.testing.assert_close(nats, one_by_one(model, tokenizer, doc, 40), atol=2e-5, rtol=1e-4)


def test_thousands_of_documents_come_back_in_order(model, tokenizer):
    ids = [[i % 300] * (i % 5) for i in range(2500)]
    assert [len(nats) for nats in score_documents(model, ids, tokenizer.eot_id, batch_size=512)] == [i % 5 + 1 for i in range(2500)]


def test_dropout_is_off_and_the_model_stays_as_it_was(tokenizer):
    model = make(tokenizer.vocab_size, dropout=0.5).train()
    first, again = (evaluate_text(model, tokenizer, TEXTS[:3]).nats for _ in range(2))
    assert first == again and model.training
    model.loss(torch.tensor([[1, 2]]), torch.tensor([[2, 3]])).backward()  # and can be trained on


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_sources_agree_with_validate(kind, tokenizer, tmp_path: Path):
    tokenizer = {"bpe": tokenizer, "byte": ByteTokenizer(), "char": CharTokenizer.train(TEXTS)}[kind]
    model = make(tokenizer.vocab_size)
    write_tales(tmp_path / "some.txt", Tales(5).tales(12))
    prepare(TEXTS, tokenizer, tmp_path / "tokens", val_source=TEXTS)
    dataset = TokenDataset(tmp_path / "tokens" / "val", tokenizer)
    wanted = validate(model, dataset)
    for source in (TEXTS, tmp_path / "some.txt", str(tmp_path / "some.txt"), dataset):
        found = evaluate_text(model, tokenizer, source, stride=40)
        assert math.isclose(found.loss, wanted["loss"], rel_tol=1e-5) and math.isclose(found.bits_per_byte, wanted["bits_per_byte"], rel_tol=1e-5)
        assert found.n_bytes == sum(len(text.encode()) for text in TEXTS) and len(found.per_document) == 12
    part = evaluate_text(model, tokenizer, TEXTS, max_docs=5, stride=40)
    assert part.bits == pytest.approx(found.bits[:5], rel=1e-4)


def test_bytes_of_other_scripts():
    "Bits per byte count UTF-8, in any tokenizer."
    texts = ["Grüße, 世界!", "naïve café ☕"]
    for tokenizer in (ByteTokenizer(), CharTokenizer.train(texts)):
        found = evaluate_text(make(tokenizer.vocab_size), tokenizer, texts)
        assert found.n_bytes == sum(len(text.encode()) for text in texts)


def test_a_corpus_is_measured_on_what_it_holds_out(model, tokenizer):
    by_name = evaluate_text(model, tokenizer, "tales", max_docs=4)
    assert by_name == evaluate_text(model, tokenizer, shipped("tales/val.txt"), max_docs=4)


def test_evaluation_by_hand():
    found = Evaluation((Score(math.log(2) * 4, 2, 8), Score(math.log(2) * 12, 6, 8)))
    assert found.bits == pytest.approx([4, 12]) and found.bits_per_byte == pytest.approx(1.0) and found.loss == pytest.approx(2 * math.log(2))
    assert found.perplexity == pytest.approx(4)
    assert found.standard_error == pytest.approx(math.sqrt((16 + 16) * 2) / 16)
    assert math.isnan(Evaluation((Score(1.0, 1, 1),)).standard_error) and "nan" not in str(Evaluation((Score(1.0, 1, 1),)))
    low, high = found.interval
    assert low < found.bits_per_byte < high and (low + high) / 2 == pytest.approx(found.bits_per_byte)


def test_the_interval_holds_what_it_promises():
    "The mean of many documents lies in the interval of few, in about 95 of 100 draws."
    rng = random.Random(0)
    def draw(n): return Evaluation(tuple(Score(rng.uniform(0.5, 1.5) * size, 1, size) for size in (rng.randrange(50, 500) for _ in range(n))))
    truth = draw(50_000).bits_per_byte
    inside = sum(low < truth < high for low, high in (draw(60).interval for _ in range(400)))
    assert 0.91 < inside / 400 < 0.98


def test_mean_and_error():
    assert mean_and_error([2.0] * 5) == (2.0, 0.0)
    assert mean_and_error(x for x in (1, 3)) == (2.0, 1.0)
    assert math.isnan(mean_and_error([1.0])[1])


def test_what_cannot_be_evaluated(model, tokenizer, tmp_path: Path):
    other = BPETokenizer.train(TEXTS[:3], vocab_size=300)
    prepare(TEXTS, other, tmp_path / "tokens", val_source=TEXTS)
    no_end = CharTokenizer.train(TEXTS, special_tokens=())
    for call, said in (
        (lambda: evaluate_text(model, tokenizer, TEXTS, stride=0), "stride=0 must lie in 1 to context_length=40"),
        (lambda: evaluate_text(model, tokenizer, TEXTS, stride=41), "stride=41"),
        (lambda: evaluate_text(model, tokenizer, TEXTS, context_length=41), "context_length=41 must lie in 1 to the model's 40"),
        (lambda: evaluate_text(model, tokenizer, TEXTS, context_length=0), "context_length=0"),
        (lambda: evaluate_text(model, no_end, TEXTS), "has no <|endoftext|>"),
        (lambda: evaluate_text(make(300), tokenizer, TEXTS), "vocab_size=400 exceeds the model's 300"),
        (lambda: evaluate_text(model, tokenizer, TokenDataset(tmp_path / "tokens" / "val")), "another tokenizer"),
        (lambda: evaluate_text(model, tokenizer, TEXTS, max_docs=0), "holds no text"),
        (lambda: evaluate_text(model, tokenizer, ["", "  "]), "holds no text"),
        (lambda: evaluate_text(model, tokenizer, tmp_path / "nothing.txt"), "nothing.txt"),
        (lambda: evaluate_text(make(97), CharTokenizer.train(["ab"]), ["abc"]), "c"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=None) as error:
            call()
        assert said in str(error.value) and "\n" not in str(error.value)


# --- where the bits go ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_nothing_is_lost_among_the_kinds(kind, tokenizer):
    tokenizer = {"bpe": tokenizer, "byte": ByteTokenizer(), "char": CharTokenizer.train(TEXTS)}[kind]
    model, tales = make(tokenizer.vocab_size, context_length=64), Tales(5).tales(12)
    costs = excess_by_kind(model, tokenizer, tales)
    paid = evaluate_text(model, tokenizer, [tale.text for tale in tales]).bits
    assert sum(cost.paid for cost in costs) == pytest.approx(sum(paid) / 12, rel=1e-5)
    assert sum(cost.owed for cost in costs) == pytest.approx(sum(tale.bits for tale in tales) / 12)
    assert all(cost.owed == 0 for cost in costs if cost.forced) and all(cost.owed > 0 for cost in costs if not cost.forced)
    assert [cost.excess for cost in costs] == sorted((cost.excess for cost in costs), reverse=True)
    assert sum(cost.n for cost in costs) == pytest.approx(sum(len(tale.choices) for tale in tales) / 12)


def test_bytes_belong_to_their_choices():
    for tale in Tales(8).tales(20):
        wrote = Counter(id(choice) for choice in choice_of_tokens(ByteTokenizer(), tale) if choice)
        assert [wrote[id(choice)] for choice in tale.choices] == [len(choice.words) for choice in tale.choices]


def test_a_diverged_model_has_a_bill_too():
    from tinygpt.evaluation import Evaluation, Score

    assert "perplexity inf" in str(Evaluation((Score(5000.0, 2, 4),)))
