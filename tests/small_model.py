"""A small random model and a tokenizer of the Tales, for the tests of chapters 09 and 09b."""

from __future__ import annotations

import pytest
import torch

from tinygpt.model import GPT, PRESETS
from tinygpt.tokenizer import BPETokenizer
from tinygpt.worlds import Tales

EOT = "<|endoftext|>"
TEXTS = [tale.text for tale in Tales(5).tales(12)]


def make(vocab_size: int, **changes) -> GPT:
    torch.manual_seed(0)
    size = dict(vocab_size=vocab_size, d_model=32, n_layers=2, n_heads=2, context_length=40, init_std=0.2)
    return GPT(PRESETS["tiny"].replace(**size | changes)).eval()


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(TEXTS, vocab_size=400)


@pytest.fixture(scope="module")
def model(tokenizer) -> GPT:
    return make(tokenizer.vocab_size)
