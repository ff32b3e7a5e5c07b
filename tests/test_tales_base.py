"""bench/tales_base.py: its pages hold what they should, its lessons teach, and it runs."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

from tinygpt import load
from tinygpt.marking import facts, is_held
from tinygpt.questions import KINDS


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
    import tales_base

    yield tales_base
    sys.path.pop(0)


@pytest.fixture(scope="module")
def shipped():
    return load("tales-base")


@pytest.mark.parametrize("kinds", [["job"], ["who is there"], list(KINDS)], ids=["job", "who is there", "all"])
def test_a_page_states_nothing_that_the_exam_holds_out(bench, kinds):
    rng, held = random.Random(1), {wording for kind in KINDS.values() for wording in kind.held}
    for _ in range(20):
        tale, said = bench.page(rng, kinds, longest=6)
        assert said and len({question for question, _ in said}) == len(said)
        for question, answer in said:
            assert question not in held
            if kinds == ["job"]:  # "Anna is a baker.": one fact, which is no held one
                assert not any(map(is_held, facts(question + " " + answer)))


def test_a_drill_asks_of_one_thing_once(bench):
    rng = random.Random(2)
    for _ in range(20):
        _, said = bench.page(rng, ["who is there"], longest=6, alike=1)
        assert all(", so " in answer for _, answer in said)


def learned(tokenizer, targets):
    return tokenizer.decode([i for i in targets.tolist() if i >= 0])


def test_what_is_learned_of_a_page(bench, shipped):
    _, tokenizer = shipped
    page = ("Mia the smith was at the park.", [("Is Mia a baker?", "Mia is a smith, so no."), ("Who is Mia?", "A smith.")])
    ids, targets = bench.as_targets(random.Random(0), page, tokenizer, False, 256)
    assert learned(tokenizer, targets) == "Mia is a smith, so no.\nA smith.\n" and len(ids) == len(targets)
    _, targets = bench.as_targets(random.Random(0), page, tokenizer, True, 256)
    assert learned(tokenizer, targets) == " no.\nA smith.\n"
    assert len(bench.as_targets(random.Random(0), page, tokenizer, False, 20)[0]) == 20


def test_a_test_finds_what_is_known(bench, shipped):
    marks = bench.test(*shipped, seed=1, n=60)
    assert set(KINDS) < set(marks) and marks["colour"] > 0.6 and marks["all"] > 0.6


def test_it_runs(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tales_base.py", "--out", str(tmp_path / "base"), "--quick"])
    threads = torch.get_num_threads()
    try:
        bench.main()
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "drill 1, job" in said and "school is over after 1 rounds; not learned: " in said
    model, tokenizer = load(tmp_path / "base")
    assert tokenizer.vocab_size == model.cfg.vocab_size
