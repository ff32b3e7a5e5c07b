"""Case files of every wrong kind, answers beside brute force, and checkpoints of a real run."""

from __future__ import annotations

import math
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

from small_model import EOT, TEXTS, make, model, tokenizer  # noqa: F401  fixtures are found by their names
from tinygpt.exams import (
    CASE_KINDS, Case, Onlooker, as_table, can_begin, case_kind, continue_greedily,
    list_checkpoints, rank_checkpoints, read_cases, run_cases, summarize_cases, tale_cases, write_cases,
)
from tinygpt.model import PRESETS
from tinygpt.tokenizer import CharTokenizer
from tinygpt.training import DataConfig, OptimConfig, RunConfig, TrainConfig, train
from tinygpt.worlds import Tales, shipped, told, write_tales


# --- cases ---------------------------------------------------------------------------------------------------


def test_options_by_brute_force(model, tokenizer):
    "Log-probabilities, ranks and the greedy text, beside one full pass for each option."
    rng, cases = random.Random(0), []
    for text in TEXTS[:6]:
        cut = rng.choice([i for i in range(20, 90) if text[i] == " "])
        words = {f" {word}" for other in TEXTS[6:9] for word in other.split()[:20]} - {text[cut:].split(".")[0]}
        words = [w for w in sorted(words) if not any(a != w and (a.startswith(w) or w.startswith(a)) for a in words)]
        cases.append(Case(prompt=text[:cut], allowed=tuple(words[:3]), rejected=tuple(words[3:8])))
    for case, result in zip(cases, run_cases(model, tokenizer, cases, batch_size=4), strict=True):
        prompt, found = [tokenizer.eot_id, *tokenizer.encode(case.prompt)], {}
        for option in case.right + case.rejected:
            ids = [tokenizer.eot_id, *tokenizer.encode(case.prompt + option)]
            assert ids[: len(prompt)] == prompt
            T = model.cfg.context_length
            view = torch.tensor([ids[:-1][-T:]])
            scores = model(view)[0].log_softmax(-1)[-(len(ids) - len(prompt)) :]
            found[option] = sum(scores[i, token].item() for i, token in enumerate(ids[len(prompt) :]))
        best = max(case.right, key=found.get)
        assert result.log_prob == pytest.approx(math.log(sum(math.exp(found[option]) for option in case.right)), abs=1e-3)
        assert result.rank == 1 + sum(found[wrong] >= found[best] for wrong in case.rejected)
        ids = list(prompt)
        while len(b"".join(tokenizer.token_bytes(i) for i in ids[len(prompt) :])) < max(map(len, case.right)) and ids[-1] != tokenizer.eot_id or len(ids) == len(prompt):
            ids.append(model(torch.tensor([ids[-40:]]))[0, -1].argmax().item())
        assert result.text == b"".join(tokenizer.token_bytes(i) for i in ids[len(prompt) :]).decode(errors="replace")
        assert result.exact == result.text.startswith(case.right)


def test_the_space_may_stand_on_either_side(model, tokenizer):
    one = Case(prompt="One sunny day, Mia", expected=" the", rejected=(" was",))
    other = Case(prompt="One sunny day, Mia ", expected="the", rejected=("was",))
    a, b = run_cases(model, tokenizer, [one, other])
    assert (a.log_prob, a.rank, a.exact) == (pytest.approx(b.log_prob, abs=1e-4), b.rank, b.exact)


def test_a_model_that_knows_the_answer():
    "A bigram table made by hand: after a comes b, after b the end."
    class Sure(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cfg, self.table = PRESETS["tiny"].replace(vocab_size=4, context_length=8), torch.nn.Embedding(4, 4)
            follow = {0: 1, 1: 2, 2: 0, 3: 3}
            with torch.no_grad():
                self.table.weight.copy_(torch.stack([20.0 * torch.nn.functional.one_hot(torch.tensor(follow[i]), 4) for i in range(4)]))
        def hidden(self, ids): return self.table(ids)
        def logits(self, x): return x

    tokenizer = CharTokenizer.train("abc")  # ids: the letters first, or the end first
    order = [tokenizer.eot_id, *(tokenizer.encode(letter)[0] for letter in "abc")]
    model = Sure()
    weight = torch.zeros(4, 4)
    for now, after in ((0, 1), (1, 2), (2, 0), (3, 3)):
        weight[order[now], order[after]] = 20.0
    with torch.no_grad():
        model.table.weight.copy_(weight)
    right = [Case(prompt="", expected="ab"), Case(prompt="a", expected=f"b{EOT}"), Case(prompt="a", allowed=("b", "c"), rejected=("a",))]
    for result in run_cases(model, tokenizer, right):
        assert result.exact and result.log_prob > -1e-6 and result.bits < 1e-6
    (wrong,) = run_cases(model, tokenizer, [Case(prompt="a", expected="c", rejected=("b", "a"))])
    assert not wrong.exact and wrong.text == "b" and wrong.rank == 3 and wrong.log_prob < -19
    assert continue_greedily(model, tokenizer, [[order[0]], [order[3]]], [10, 3]) == [b"ab" + EOT.encode(), b"ccc"]


def test_prompts_longer_than_the_context(model, tokenizer):
    (result,) = run_cases(model, tokenizer, [Case(prompt=TEXTS[0], expected=EOT, rejected=(" In",))])
    assert result.rank in (1, 2)
    with pytest.raises(ValueError, match="longer than the model's context"):
        run_cases(model, tokenizer, [Case(prompt="One", expected=TEXTS[0])])
    with pytest.raises(ValueError, match=r"case 1 \(letters\)"):
        letters = CharTokenizer.train("abc")
        run_cases(make(letters.vocab_size), letters, [Case(kind="letters", prompt="a", expected="z")])


def test_summaries():
    with pytest.raises(ValueError, match="at least one"):
        summarize_cases([])
    with pytest.raises(ValueError, match="at least one"):
        as_table([])


WRONG = {
    "cases:\n- prompt: x\n  expected: y": "version=None",
    "version: 2\ncases:\n- prompt: x": "version=2",
    "version: 1": "cases=None must be a list",
    "version: 1\ncases: {}": "cases={} must be a list",
    "version: 1\ncase: []": "unknown field case",
    "just words": "holds str",
    "": "holds NoneType",
    "version: 1\ncases:\n- prompt: x\n  expect: y": "case 1: unknown field expect; did you mean expected?",
    "version: 1\ncases:\n- prompt: x\n  zzz: y": "case 1: unknown field zzz; a case has allowed",
    "version: 1\ncases:\n- prompt: x\n  expected: y\n- prompt: 3\n  expected: y": "case 2: prompt=3 must be text",
    "version: 1\ncases:\n- prompt: x\n  allowed: [1, 2]": "case 1: allowed=[1, 2] must be a list of texts",
    "version: 1\ncases:\n- prompt: x\n  expected: yes": "case 1: expected=True must be text",
    "version: 1\ncases:\n- prompt: x\n  expected: y\n  allowed: [z]": "needs either `expected` or `allowed`",
    "version: 1\ncases:\n- prompt: x\n  allowed: []": "needs either `expected` or `allowed`",
    "version: 1\ncases:\n- prompt: x\n  expected: ''": "empty option",
    "version: 1\ncases:\n- prompt: x\n  allowed: [a, b]\n  rejected: [a]": "option 'a' begins option 'a'",
    "version: 1\ncases:\n- [prompt]": "is not a case",
    "version: 1\ncases:\n- expected: x": "prompt is missing",
    "version: 1\n  cases: [": "not readable as YAML",
}


@pytest.mark.parametrize("content", WRONG)
def test_wrong_case_files(content, tmp_path: Path):
    (path := tmp_path / "cases.yaml").write_text(content)
    with pytest.raises(ValueError) as error:
        read_cases(path)
    assert WRONG[content] in str(error.value) and "\n" not in str(error.value) and "cases.yaml" in str(error.value)


def test_no_case_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such case file"):
        read_cases(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"version: 1\ncases: [\xff]")
    with pytest.raises(ValueError, match="not readable"):
        read_cases(tmp_path / "latin.yaml")


# --- the world's own cases -----------------------------------------------------------------------------------


def test_looking_on_changes_nothing():
    for seed in range(40):
        told(teller := Onlooker(random.Random(seed)), Tales().words)
        tale = Tales(seed).tale()
        assert teller.text == tale.text
        assert [(turn.kind, turn.start, turn.words) for turn in teller.turns] == [(c.kind, c.start, c.words) for c in tale.choices]


def test_beginnings():
    for tale in Tales(3).tales(25):
        assert all(can_begin(tale.text[:n]) for n in range(len(tale.text) + 1)) and can_begin(tale.text + EOT)
        assert not can_begin(tale.text[:-1] + EOT) and not can_begin(tale.text + " ") and not can_begin("x" + tale.text)
        place = random.Random(tale.text).randrange(10, len(tale.text))
        changed = tale.text[:place] + "#" + tale.text[place + 1 :]
        assert not can_begin(changed) and can_begin(changed[:place])


def marked_by_the_world(cases: list[Case]) -> None:
    for case in cases:
        assert all(can_begin(case.prompt + option) for option in case.right), case
        assert not any(can_begin(case.prompt + option) for option in case.rejected), case
        assert not case.prompt.endswith(" ")


def test_the_world_marks_its_own_cases():
    cases = tale_cases(seed=9, n_each=8)
    assert Counter(case.kind for case in cases) == dict.fromkeys(CASE_KINDS, 8)
    assert tale_cases(seed=9, n_each=8) == cases and tale_cases(seed=10, n_each=2) != cases[:2]
    assert len({case.prompt for case in cases}) == len(cases)
    marked_by_the_world(cases)
    forced = [case for case in cases if case.expected and case.expected != EOT]
    assert len(forced) >= 36 and sum(len(case.rejected) for case in forced) > 2 * len(forced)


def test_shipped_cases_are_those_of_this_world(tmp_path: Path):
    """If this fails, the world has changed: python -c "from tinygpt.exams import write_cases; write_cases('data/tales/cases.yaml')"."""
    marked_by_the_world(read_cases(shipped("tales/cases.yaml")))
    write_cases(tmp_path / "cases.yaml")
    assert (tmp_path / "cases.yaml").read_bytes() == shipped("tales/cases.yaml").read_bytes()
    assert yaml.safe_load((tmp_path / "cases.yaml").read_text())["version"] == 1


def test_forced_cases_are_decided_by_something_that_happened():
    for seed in range(30):
        told(teller := Onlooker(random.Random(seed)), Tales().words)
        for i, turn in enumerate(teller.turns):
            kind = case_kind(teller.turns, i)
            assert kind in (None, *CASE_KINDS)
            assert kind in (None, "how a tale opens", "how a tale closes") or len(turn.options) == 1


# --- checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_tales(folder / "train.txt", Tales(0).tales(400))
    config = TrainConfig(
        data=DataConfig(source=str(folder / "train.txt"), vocab_size=700, batches="documents", batch_size=8),
        model=PRESETS["tiny"].replace(vocab_size=0, context_length=192, d_model=32, n_layers=1, n_heads=2, init_std=0.1),
        optim=OptimConfig(steps=60, lr=1e-2, warmup_steps=5),
        run=RunConfig(out_dir=str(folder / "run"), device="cpu", n_threads=1, eval_every=15, eval_docs=20, sample_every=0, checkpoint_every=15, keep_checkpoints=9),
    )
    return train(config)


def test_listing(run: Path, tmp_path: Path):
    rows = list_checkpoints(run)
    assert [row.step for row in rows] == [15, 30, 45, 60] and [row.name for row in rows] == [f"step_{row.step:06d}" for row in rows]
    assert "last" in rows[-1].marks and sum("best" in row.marks for row in rows) == 1 and not any("damaged" in row.marks for row in rows)
    assert all(row.bits_per_byte > 0 and row.size_bytes > 1000 and 0 <= row.age_s < 3600 for row in rows)
    assert rows[0].size_bytes == sum(file.stat().st_size for file in rows[0].path.rglob("*") if file.is_file())

    shutil.copytree(run, copy := tmp_path / "run")
    (copy / "checkpoints" / "step_000015" / "state.json").write_text("{")
    (copy / "checkpoints" / "step_000030" / "model.safetensors").unlink()
    (copy / "checkpoints" / ".step_000099.1.part").mkdir()
    (copy / "checkpoints" / "notes.txt").write_text("mine")
    rows = list_checkpoints(copy)
    assert [row.name for row in rows] == ["step_000030", "step_000045", "step_000060", "step_000015"]
    assert [("damaged" in row.marks) for row in rows] == [True, False, False, True] and rows[-1].step is None
    table = as_table(rows)
    assert len(table.splitlines()) == 5 and "damaged" in table and "path" not in table

    for bad in (tmp_path / "nothing", run / "checkpoints" / "step_000015"):
        with pytest.raises(FileNotFoundError) as error:
            list_checkpoints(bad)
        assert "\n" not in str(error.value)
    shutil.rmtree(copy / "checkpoints")
    (copy / "best.json").unlink(), (copy / "last.json").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        list_checkpoints(copy)


def test_ranking_follows_the_losses(run: Path):
    cases = read_cases(shipped("tales/cases.yaml"))[::4]
    rows = rank_checkpoints(run, cases)
    by_loss = sorted(list_checkpoints(run), key=lambda row: row.bits_per_byte)
    assert [row.name for row in rows] == [row.name for row in by_loss]
    assert [row.bits for row in rows] == sorted(row.bits for row in rows)
    assert [row.step for row in rank_checkpoints([row.path for row in rows[:2]], cases)] == [row.step for row in rows[:2]]
    assert all(len(row.results) == len(cases) and 0 <= row.exact <= 1 for row in rows)
    assert len(as_table(rows).splitlines()) == 5
    with pytest.raises(FileNotFoundError):
        rank_checkpoints("runs/nowhere", cases)
