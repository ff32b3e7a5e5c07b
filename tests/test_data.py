"""Chapters 02 to 02c where a notebook cannot go: killed processes, memory, many seeds, real text, hostile files."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt import corpus, data, sources
from tinygpt.data import (
    RandomWindows, ShuffledWindows, Source, TokenDataset, WholeDocuments, documents, eval_batches, get_batch,
    group_slices, open_source, prepare, read_text,
)
from tinygpt.tokenizer import GPT2_PATTERN, GPT4_PATTERN, BPETokenizer, ByteTokenizer, CharTokenizer, load_tokenizer
from tinygpt.worlds import shipped


@pytest.fixture(scope="module")
def byte() -> ByteTokenizer:
    return ByteTokenizer()


def texts_of(split: TokenDataset, tokenizer) -> list[str]:
    return [tokenizer.decode(split.document(i)) for i in range(split.n_docs)]


def toy(tmp_path: Path, n: int = 300, seed: int = 0, longest: int = 90) -> TokenDataset:
    "A split of `n` documents of 1 to `longest` letters."
    draw = np.random.default_rng(seed)
    docs = ["".join(map(chr, draw.integers(97, 123, draw.integers(1, longest + 1)))) for _ in range(n)]
    return TokenDataset(prepare(docs, ByteTokenizer(), tmp_path / f"toy_{n}_{seed}_{longest}", val_frac=0) / "train")


# --- reading -------------------------------------------------------------------------------------------------

letters = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=200)
@given(st.lists(letters, min_size=1, max_size=6), st.booleans(), st.booleans())
def test_what_was_written_between_separators_is_read_back(tmp_path_factory, docs, windows, bom):
    docs = [doc for doc in docs if "<|endoftext|>" not in doc]
    text = "\n<|endoftext|>\n".join([*docs, ""])
    if not docs:
        return
    raw = (text.replace("\n", "\r\n") if windows else text).encode()
    path = tmp_path_factory.getbasetemp() / "separated.txt"
    path.write_bytes(b"\xef\xbb\xbf" + raw if bom else raw)
    if docs[0].startswith("\ufeff") and not bom:
        docs[0] = docs[0][1:]
    assert list(read_text(path))[:-1] == docs and list(read_text(path))[-1] == ""


def test_a_long_line_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_DOC_CHARS", 1 << 20)
    text = "€uro" * 900_000  # one line of 5.4 MB; three bytes and then one, so that blocks end inside a character
    (tmp_path / "line.txt").write_text(text, encoding="utf-8")
    parts = list(read_text(tmp_path / "line.txt"))
    assert "".join(parts) == text and len(parts) >= 4


@pytest.mark.parametrize("raw, place", [
    (b"good\nbad \xff\n", 9), (b"\xef\xbb\xbfbad \xff", 7), (b"cut off \xe2\x82", 8), (b"line\n\xe2\x82\nline", 5),
    ("a".encode("utf-16-le"), 1), (b"text\0", 4)])
def test_the_byte_that_is_not_text_is_named(tmp_path, byte, raw, place):
    (tmp_path / "bad.txt").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"bad\.txt: byte {place} ") as error:
        prepare(tmp_path / "bad.txt", byte, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_folders_globs_and_hidden_files(tmp_path):
    for name in ("b.txt", "a/c.md", "a/.hidden/d.txt", "e.bin", "f.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(documents(tmp_path)) == ["a/c.md", "b.txt"]
    assert list(documents(str(tmp_path / "*.log"))) == ["f.log"]
    assert list(documents(str(tmp_path / "**" / "*.md"))) == ["a/c.md"]
    assert list(documents([tmp_path / "f.log", tmp_path / "e.bin"])) == ["f.log", "e.bin"]
    with pytest.raises(FileNotFoundError, match=r"did you mean .*f\.log"):
        open_source(tmp_path / "f.logg")


@pytest.mark.parametrize("name, right", [("tale", "tales"), ("TinyStories", "tinystories"), ("wikitext103", "wikitext-103")])
def test_a_misspelt_name_is_answered_with_the_nearest(tmp_path, byte, name, right):
    with pytest.raises(FileNotFoundError, match=f"did you mean {right}") as error:
        prepare(name, byte, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", " ", "A text that was given\nin place of a name.", "word " * 1000])
def test_a_text_is_not_a_name(text):
    with pytest.raises(ValueError, match=r"for a text in memory give \[text\]") as error:
        open_source(text)
    assert "\n" not in str(error.value)


def test_an_empty_validation_source_is_refused(tmp_path, byte):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="validation source holds no text"):
        prepare(["a", "b"], byte, tmp_path / "out", val_source=tmp_path / "empty.txt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [None, 3, b"bytes", {"test": ["a"]}])
def test_what_is_no_source_is_refused(bad):
    with pytest.raises(ValueError, match="is no name, path or collection"):
        open_source(bad)


def test_surrogates_and_special_tokens_in_json_are_ordinary_text(tmp_path, byte):
    (tmp_path / "x.jsonl").write_text('{"text": "half \\ud83d"}\n{"text": "<|endoftext|> inside"}\n')
    out = prepare(tmp_path / "x.jsonl", byte, tmp_path / "out", val_frac=0)
    split = TokenDataset(out / "train")
    assert texts_of(split, byte) == ["half \ufffd", "<|endoftext|> inside"] and split.n_docs == 2


# --- the `datasets` library, on local files of the same form -------------------------------------------------


def test_datasets_in_every_form(tmp_path, byte, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"text": f"story {i} of the day", "n": i} for i in range(40)]
    for split, part in (("train", rows[:36]), ("validation", rows[36:])):
        (tmp_path / "hub").mkdir(exist_ok=True)
        (tmp_path / "hub" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    train, val = [r["text"] for r in rows[:36]], [r["text"] for r in rows[36:]]

    for streaming in (False, True):
        opened = data.open_source(data.HubDataset(str(tmp_path / "hub"), val_split="validation"), streaming=streaming)
        assert list(opened.train()) == train and list(opened.val()) == val
    both = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows[:36]), "validation": datasets.Dataset.from_list(rows[36:])})
    both.save_to_disk(tmp_path / "saved")
    for form in (both, tmp_path / "saved", str(tmp_path / "saved")):
        opened = open_source(form)
        assert list(opened.train()) == train and list(opened.val()) == val and opened.identity
    out = prepare(tmp_path / "saved", byte, tmp_path / "out")
    assert texts_of(TokenDataset(out / "train"), byte) == train and texts_of(TokenDataset(out / "val"), byte) == val
    stream = both["train"].to_iterable_dataset()
    assert list(documents(stream)) == list(documents(stream)) == train
    with pytest.raises(ValueError, match="text_field='body' is no column of text; there is text"):
        list(documents(both["train"], text_field="body"))
    with pytest.raises(ValueError, match="did not load"):
        list(documents(f"hf:{tmp_path / 'nothing'}"))


def test_a_dropped_connection_loses_nothing(tmp_path, byte, monkeypatch, capsys):
    """A data set of the hub's shape (parquet files, a validation split) arrives as a stream; the line breaks on the way, the
    network is down at the next try, and the third goes on to the bytes that an unbroken one would have written."""
    import datasets

    from tinygpt.cli import main

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub = tmp_path / "hub"
    for name, first, end in (("train-00000-of-00002", 0, 1500), ("train-00001-of-00002", 1500, 3000), ("validation-00000-of-00001", 3000, 3100)):
        rows = [{"text": f"Story {i} is about the number {i * i}. " * 40, "n": i} for i in range(first, end)]
        datasets.Dataset.from_list(rows).to_parquet(hub / "data" / f"{name}.parquet")
    source = data.HubDataset(str(hub), val_split="validation")
    whole = prepare(source, byte, tmp_path / "whole", streaming=True, block_tokens=10**6)

    load, starts = datasets.load_dataset, []

    def breaking(*args, **options):
        starts.append(0)
        yield from islice(load(*args, **options), 2000)
        raise ConnectionResetError("connection reset by peer")

    def down(*args, **options):
        raise ConnectionError("Couldn't reach the hub")

    state = tmp_path / "cut" / ".partial" / "state.json"
    for answer, said in ((breaking, "broke off after 2,000 rows (connection reset by peer); run the same again"),
                         (down, "did not load (Couldn't reach the hub); check its name and the network")):
        monkeypatch.setattr(datasets, "load_dataset", answer)
        with pytest.raises(ConnectionError, match=re.escape(said)):
            prepare(source, byte, tmp_path / "cut", streaming=True, block_tokens=10**6)
        assert 1000 < json.loads(state.read_text())["n_seen"] <= 2000  # kept, also by the call that found no network
    assert main(["data", f"hf:{hub}", "--out", str(tmp_path / "none"), "--tokenizer", "byte", "--streaming"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("tinygpt: dataset") and sum(line.startswith("tinygpt:") for line in said) == 1

    monkeypatch.setattr(datasets, "load_dataset", load)
    done = []
    prepare(source, byte, tmp_path / "cut", streaming=True, block_tokens=10**6, progress=done.append)
    written = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.name != "header.json"]
    assert written and all((whole / path).read_bytes() == (tmp_path / "cut" / path).read_bytes() for path in written)
    assert sum(done) < 0.7 * sum(TokenDataset(whole / split).n_text_bytes for split in ("train", "val"))  # not from the start


def test_without_a_network_nobody_waits(monkeypatch):
    monkeypatch.setattr(sources, "getproxies", dict)
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
    assert not data.hub_is_known()
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")
    assert data.hub_is_known()


def test_the_named_datasets_ask_the_hub_for_the_right_thing(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or [{"text": "row"}])
    for name in (*data.HUB, "hf:someone/something:part"):
        assert list(documents(name, streaming=True)) == ["row"]
    assert [a for a, _ in asked] == [
        ("roneneldan/TinyStories", None), ("Salesforce/wikitext", "wikitext-103-raw-v1"), ("Skylion007/openwebtext", None),
        ("wikimedia/wikipedia", "20231101.en"), ("shahrukhx01/wikipedia-bookscorpus-en-preprocessed", None),
        ("someone/something", "part")]
    assert all(k["streaming"] and k["split"] == "train" for _, k in asked)


# --- splitting and slicing -----------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.sets(st.text(min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=60), st.floats(0.01, 0.99))
def test_a_small_corpus_is_shared_out_exactly(docs, val_frac):
    docs = sorted(docs)
    source = Source(lambda: iter(docs))
    labels = Counter(split for split, _ in data.label_documents(source, val_frac))
    wanted = min(max(1, round(val_frac * len(docs))), len(docs) - 1)
    assert labels["val"] == wanted and labels["train"] == len(docs) - wanted


def test_a_large_corpus_is_shared_out_about_right_and_copies_stay_together():
    docs = [f"document {i % 5000}" for i in range(20_000)]
    labelled = list(data.label_documents(Source(lambda: iter(docs)), 0.05))
    sides = {split: {text for s, text in labelled if s == split} for split in ("train", "val")}
    assert not sides["train"] & sides["val"] and 0.035 < len(sides["val"]) / 5000 < 0.065


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, GPT4_PATTERN])
def test_slicing_a_document_does_not_change_its_tokens(pattern):
    library = "\n".join(documents([data.stdlib_files()[0], *(Path(module.__file__) for module in (sources, corpus, data))]))[:60_000] + "  \n\n wait!! \t\n x 12345 don't\n"
    tokenizer = BPETokenizer.train(library, 600, pattern=pattern)
    for size in (50, 333, 4096):
        pieces = [p for group in group_slices([("train", library)], size) for p in group]
        assert "".join(text for _, text, _ in pieces) == library and len(pieces) > 10
        assert [end for *_, end in pieces] == [False] * (len(pieces) - 1) + [True]
        if size > 100:  # (below that, long indentations leave no place to cut, and the cut is made anywhere)
            assert [i for _, text, _ in pieces for i in tokenizer.encode(text)] == tokenizer.encode(library)


# --- prepare -------------------------------------------------------------------------------------------------


def test_real_plays_come_back_to_the_byte(real_text, tmp_path, byte):
    path = real_text / "tinyshakespeare.txt"
    out = prepare(path, byte, tmp_path / "plays")
    train, val = (TokenDataset(out / split, byte) for split in ("train", "val"))
    text = path.read_text(encoding="utf-8")
    assert byte.decode(train.document(0)) + byte.decode(val.document(0)) == text
    assert byte.decode(train.document(0)).endswith("\n") and train.n_docs == val.n_docs == 1
    assert abs(val.n_text_bytes / len(text.encode()) - 0.1) < 0.001
    assert load_tokenizer(out).fingerprint == byte.fingerprint


def test_real_problems_with_bpe(real_text, tmp_path):
    path = real_text / "gsm8k" / "test.jsonl"
    fields = "question,answer"
    tokenizer = BPETokenizer.train(documents(path, fields), 1024)
    out = prepare(path, tokenizer, tmp_path / "gsm8k", text_field=fields)
    train, val = (TokenDataset(out / split, tokenizer) for split in ("train", "val"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    wanted = Counter(f"{row['question']}\n{row['answer']}" for row in rows)
    assert Counter(texts_of(train, tokenizer) + texts_of(val, tokenizer)) == wanted
    one = next(iter(wanted))
    assert tokenizer.encode(one) in [train.document(i).tolist() for i in range(train.n_docs)] + [
        val.document(i).tolist() for i in range(val.n_docs)]


def test_the_shipped_tales_have_their_own_validation(tmp_path, byte):
    out = prepare("tales", byte, tmp_path / "tales")
    for split in ("train", "val"):
        written = list(read_text(shipped(f"tales/{split}.txt")))
        ds = TokenDataset(out / split)
        assert ds.n_docs == len(written) and ds.n_text_bytes == sum(len(t.encode()) for t in written)
        assert byte.decode(ds.document(ds.n_docs - 1)) == written[-1]


def test_a_finished_folder_is_used_again_only_if_nothing_changed(tmp_path, byte):
    path, out = tmp_path / "a.txt", tmp_path / "out"
    path.write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\nthree\n")

    def runs(*args, **options) -> bool:
        "Does `prepare` encode anything?"
        done = []
        prepare(*args, **options, progress=done.append)
        return bool(done)

    assert runs(path, byte, out) and not runs(path, byte, out) and not runs(str(path), byte, out)
    assert runs(path, byte, out, val_frac=0.5) and not runs(path, byte, out, val_frac=0.5)
    assert runs(path, CharTokenizer.train(path.read_text()), out)
    os.utime(path, ns=(1, 1))
    assert runs(path, byte, out) and not runs(path, byte, out)
    path.write_text("other text\n<|endoftext|>\nand more\n")
    assert runs(path, byte, out)
    both = [text for split in ("train", "val") for text in texts_of(TokenDataset(out / split), byte)]
    assert sorted(both) == ["and more", "other text"]
    assert runs(iter(["a", "b"]), byte, out) and runs(iter(["a", "b"]), byte, out)  # nothing to know it by
    assert runs(["a", "b"], byte, out) and not runs(["a", "b"], byte, out)
    assert sorted(p.name for p in out.iterdir()) == ["dataset.json", "tokenizer.json", "train", "val"]


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path, byte):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "photos.txt").write_text("mine")
    with pytest.raises(ValueError, match="not ours"):
        prepare(["a", "b"], byte, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["train"] and (tmp_path / "train" / "photos.txt").exists()


def test_a_failure_far_into_the_corpus_leaves_the_old_one(tmp_path, byte):
    out = prepare(["a", "b"], byte, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for i in range(3):
        (tmp_path / f"{i}.txt").write_bytes(b"fine\n" * 300_000 if i < 2 else b"\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        prepare(tmp_path / "*.txt", byte, out, block_tokens=1000)
    assert {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_tokens_need_four_bytes_above_65536(tmp_path):
    class Wide:
        fingerprint, eot_id = "f" * 64, 70_000

        def __init__(self, vocab_size):
            self.vocab_size = vocab_size

        def encode(self, text):
            return [ord(c) for c in text]

        def save(self, path):
            path.write_text("{}")

    ds = TokenDataset(prepare(["ab\U00010001"], Wide(70_001), tmp_path / "w", val_frac=0) / "train")
    assert ds.tokens.dtype == np.uint32 and ds.tokens.tolist() == [70_000, 97, 98, 0x10001, 70_000]
    with pytest.raises(ValueError, match="outside 0..99"):
        prepare(["ab\U00010001"], Wide(100), tmp_path / "narrow", val_frac=0)
    assert not (tmp_path / "narrow").exists()


WORKER = """
import sys, time
from pathlib import Path
from tinygpt.data import prepare
from tinygpt.tokenizer import ByteTokenizer
prepare(Path(sys.argv[1]), ByteTokenizer(), sys.argv[2], block_tokens=100_000,
        progress=lambda n: time.sleep(float(sys.argv[3])))
"""


def test_a_killed_prepare_goes_on_to_the_same_bytes(tmp_path):
    lines = (f"This is line {i} of a long corpus, number {i * i}.\n" + "<|endoftext|>\n" * (i % 40 == 0) for i in range(100_000))
    (tmp_path / "long.txt").write_text("".join(lines))
    whole = prepare(tmp_path / "long.txt", ByteTokenizer(), tmp_path / "whole")
    killed = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WORKER, tmp_path / "long.txt", tmp_path / "cut", "0.3"])
        state, seen = tmp_path / "cut" / ".partial" / "state.json", ""
        before = state.read_text() if state.exists() else ""
        deadline = time.time() + 60
        while process.poll() is None and time.time() < deadline:
            seen = state.read_text() if state.exists() else ""
            if seen != before:
                break
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
            killed += 1
        process.wait()
    assert killed and not (tmp_path / "cut" / "dataset.json").exists()
    done = []
    prepare(tmp_path / "long.txt", ByteTokenizer(), tmp_path / "cut", block_tokens=100_000, progress=done.append)
    assert 0 < sum(done) < (tmp_path / "long.txt").stat().st_size  # it did not begin again
    for name in ("train/tokens.bin", "val/tokens.bin", "tokenizer.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes()
    TokenDataset(tmp_path / "cut" / "train")
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == ["dataset.json", "tokenizer.json", "train", "val"]


def test_two_processes_prepare_the_same_folder(tmp_path):
    (tmp_path / "text.txt").write_text("A line of text.\n<|endoftext|>\nAnother one.\n" * 20_000)
    pair = [subprocess.Popen([sys.executable, "-c", WORKER, tmp_path / "text.txt", tmp_path / "out", "0"]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in pair] == [0, 0]
    TokenDataset(tmp_path / "out" / "train"), TokenDataset(tmp_path / "out" / "val")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["dataset.json", "tokenizer.json", "train", "val"]


MEMORY = """
import resource, sys
from pathlib import Path
from tinygpt import data, sources

class Quick:  # bytes, without waiting for chapter 01
    vocab_size, eot_id, fingerprint = 257, 256, "f" * 64
    encode = staticmethod(lambda text: list(text.encode()))
    save = staticmethod(lambda path: path.write_text("{}"))

sources.MAX_DOC_CHARS = 1 << 20
data.prepare(Path(sys.argv[1]), Quick(), sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    peak = {}
    for n in (1, 16):
        with open(tmp_path / f"{n}.txt", "w") as file:
            for i in range(n * 60_000):
                file.write(f"line {i}, one of many in a file without any separator\n")
        out = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / f"{n}.txt", tmp_path / f"out{n}"],
                             capture_output=True, text=True, check=True)
        peak[n] = int(out.stdout) / 1024
    assert peak[16] < peak[1] + 25, peak  # MB; the larger file has 50 MB more, and a list of its ids 400 MB


# --- TokenDataset --------------------------------------------------------------------------------------------


def test_any_changed_byte_is_found(tmp_path):
    ds = toy(tmp_path)
    draw = np.random.default_rng(0)
    for name in ("tokens.bin", "header.json"):
        good = (ds.path / name).read_bytes()
        for place in draw.integers(0, len(good), 40).tolist() + [0, len(good) - 2]:
            bad = bytearray(good)
            bad[place] ^= 1 << int(draw.integers(8))
            (ds.path / name).write_bytes(bad)
            if name == "header.json" and bad.split() == good.split():
                continue
            with pytest.raises(ValueError, match="delete .* and prepare again") as error:
                TokenDataset(ds.path)
            assert "\n" not in str(error.value)
        (ds.path / name).write_bytes(good)
    for size in (0, 1, len(good) // 2):
        os.truncate(ds.path / "tokens.bin", size)
        with pytest.raises(ValueError, match="truncated"):
            TokenDataset(ds.path)
    (ds.path / "tokens.bin").unlink()
    with pytest.raises(ValueError, match="truncated"):
        TokenDataset(ds.path)


def test_prepare_reports_a_damaged_folder_and_does_not_hide_it(tmp_path, byte):
    out = prepare(["one", "two"], byte, tmp_path / "out")
    os.truncate(out / "train" / "tokens.bin", 2)
    with pytest.raises(ValueError, match="truncated"):
        prepare(["one", "two"], byte, tmp_path / "out")


def test_another_process_maps_the_file_itself(tmp_path):
    ds = toy(tmp_path)
    packed = pickle.dumps(ds)
    assert len(packed) < 1000
    assert np.array_equal(pickle.loads(packed).tokens, ds.tokens)


# --- batches -------------------------------------------------------------------------------------------------

sizes = st.tuples(st.integers(2, 80), st.integers(1, 12), st.integers(1, 40), st.integers(0, 5), st.integers(1, 5))


@settings(max_examples=60)
@given(sizes)
def test_every_document_once_per_epoch_whatever_the_sizes(tmp_path_factory, size):
    n, batch_size, context, seed, pool = size
    ds = toy(tmp_path_factory.getbasetemp(), n, seed % 2)
    maker = WholeDocuments(ds, batch_size, context, seed, pool)
    wanted = Counter(ds.tokens[1:].tolist())
    for epoch in (0, 3):
        got = Counter()
        for step in range(epoch * maker.batches_per_epoch, (epoch + 1) * maker.batches_per_epoch):
            ids, targets, *_ = maker.batch(step)
            assert ids.dtype == targets.dtype == torch.int64 and ids.shape == targets.shape
            assert 1 <= len(ids) <= batch_size and ids.shape[1] <= context
            got.update(targets[targets != -100].tolist())
        assert got == wanted
    evaluated = Counter(t for b in eval_batches(ds, batch_size, context) for t in b.targets[b.targets != -100].tolist())
    assert evaluated == wanted


@settings(max_examples=60)
@given(sizes)
def test_every_window_once_per_epoch_whatever_the_sizes(tmp_path_factory, size):
    n, batch_size, context, seed, _ = size
    ds = toy(tmp_path_factory.getbasetemp(), n, seed % 2)
    if ds.n_tokens <= context:
        return
    maker = ShuffledWindows(ds, batch_size, context, seed)
    starts = np.concatenate([maker.starts(step) for step in range(3 * maker.batches_per_epoch + 1)])
    for epoch in range(3):
        seen = starts[epoch * maker.n_windows : (epoch + 1) * maker.n_windows]
        assert sorted(seen) == list(range(0, maker.n_windows * context, context))
    ids, targets, *_ = maker.batch(5)
    torch.testing.assert_close(ids[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("kind", [RandomWindows, ShuffledWindows, WholeDocuments])
def test_a_resumed_run_sees_the_batches_that_the_other_would_have_seen(tmp_path, kind):
    ds = toy(tmp_path)
    straight = [kind(ds, 8, 32, seed=3).batch(step) for step in range(40)]
    one = kind(ds, 8, 32, seed=3)
    torch.manual_seed(1), np.random.seed(1)  # global generators have no say
    for step in (39, 0, 20, 20, 5):
        torch.testing.assert_close(one.batch(step), straight[step])
    assert not all(torch.equal(a.ids, b.ids) for a, b in zip(straight, (kind(ds, 8, 32, seed=4).batch(s) for s in range(40)))
                   if a.ids.shape == b.ids.shape)


def test_documents_are_seen_from_their_first_token(tmp_path):
    ds = toy(tmp_path)
    maker = WholeDocuments(ds, 16, 128)
    for step in range(maker.batches_per_epoch):
        ids, targets, *_ = maker.batch(step)
        assert (ids[:, 0] == ds.eot_id).all()
        last = (targets != -100).sum(1) - 1
        assert (targets[torch.arange(len(ids)), last] == ds.eot_id).all()  # and to their end


def test_masks_agree_with_the_documents_of_the_stream(tmp_path):
    ds = toy(tmp_path)
    maker = RandomWindows(ds, 16, 64, seed=1, doc_mask=True)
    starts, batch = maker.starts(9), maker.batch(9)
    owner = np.cumsum(np.asarray(ds.tokens) == ds.eot_id)
    for row, start in enumerate(starts):
        own = torch.from_numpy(owner[start : start + 64])
        same = own[:, None] == own[None, :]
        assert torch.equal(batch.doc_ids[row][:, None] == batch.doc_ids[row][None, :], same)
        at = torch.arange(64)
        first = torch.stack([at[own == o].min() for o in own])
        torch.testing.assert_close(batch.positions[row], at - first)


def test_get_batch_reaches_both_ends_and_nothing_else():
    x, y = get_batch(list(range(12)), 4000, 3, generator=torch.Generator().manual_seed(0))
    assert sorted(set(x[:, 0].tolist())) == list(range(9)) and int(y.max()) == 11
    for bad in ([], [1, 2, 3], np.zeros((3, 9), int)):
        with pytest.raises(ValueError, match="get_batch"):
            get_batch(bad, 1, 3)
    for wrong in ((0, 3), (2, 0)):
        with pytest.raises(ValueError, match="must both be 1 or more"):
            get_batch(range(99), *wrong)


def test_a_corpus_shorter_than_a_window_says_so(tmp_path):
    ds = toy(tmp_path, n=2, longest=3)
    for kind in (RandomWindows, ShuffledWindows):
        with pytest.raises(ValueError, match="shorter than one window") as error:
            kind(ds, 4, 64)
        assert "\n" not in str(error.value)


def test_batches_cost_next_to_nothing(tmp_path):
    ds = toy(tmp_path, n=3000)

    def best(make, n=50):
        times = []
        for step in range(n):
            start = time.perf_counter()
            make(step)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(lambda step: TokenDataset(ds.path)) < 0.005
    for kind in (RandomWindows, ShuffledWindows, WholeDocuments):
        assert best(kind(ds, 64, 128).batch) < 0.001


def test_batches_of_no_ids_are_refused():
    for tokens in (torch.rand(100), np.random.rand(100), [0.5] * 100, torch.rand(100) > 0.5):
        with pytest.raises(ValueError, match="get_batch: tokens are .*; give whole numbers"):
            get_batch(tokens, 2, 16)
