"""The model that travels with the package is what its card says."""

import torch

import tinygpt
from tinygpt.evaluation import evaluate_text
from tinygpt.runs import find_checkpoint, shipped_models
from tinygpt.worlds import Tales, load_rungs


def test_the_model_of_the_tales_is_near_the_floor():
    model, tokenizer = tinygpt.load("tales")
    tales = Tales(seed=9).tales(300)  # neither trained nor validated on
    found = evaluate_text(model, tokenizer, [tale.text for tale in tales])
    assert sum(found.bits) < 1.07 * sum(tale.bits for tale in tales)
    assert found.bits_per_byte < load_rungs("tales").trigram / 2


def test_it_is_small_and_whole():
    (path,) = [shipped_models()["tales"]]
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 1e6
    assert find_checkpoint("tales").parent.parent == path
    model, tokenizer = tinygpt.load("tales")
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training
    assert {"<|user|>", "<|assistant|>", "<|system|>", "<|end|>"} <= set(tokenizer.special_tokens)
