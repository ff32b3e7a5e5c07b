"""The `tinygpt` command: what it prints and what it leaves behind. What it refuses stands in test_refusals.py."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tinygpt.cli import COMMANDS, GUIDE, main
from tinygpt.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
TINYGPT = [sys.executable, "-m", "tinygpt"]
NAMES, THINGS = ("Ann", "Bob", "Cid", "Dot"), ("hat", "cup", "map", "key", "pen")
TEXT = "\n<|endoftext|>\n".join(
    f"{a} has a {t}. {a} gives the {t} to {b}. Now {b} has the {t}." for a in NAMES for b in NAMES if a != b for t in THINGS
)
QUICK = (
    "--data.source text.txt --data.tokenizer char --data.batches documents --data.batch_size 8 --model.d_model 32 --model.n_layers 1"
    " --model.n_heads 2 --model.context_length 96 --optim.steps 8 --run.eval_every 4 --run.device cpu --run.out_dir run"
).split()


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    "An empty folder to work in, with a small text."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TINYGPT_DEBUG", raising=False)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def refused(capsys, argv: list[str], said: str) -> str:
    "One line on stderr that says `said`, exit code 2, nothing on stdout."
    code = main(argv)
    out = capsys.readouterr()
    lines = out.err.splitlines()
    assert code == 2, out.err
    assert len(lines) == 1 and lines[0].startswith("tinygpt: "), out.err
    assert said in lines[0], lines[0]
    assert out.out == ""
    return lines[0]


def test_help_is_quick_and_light():
    heavy = {"torch", "numpy", "transformers", "datasets", "matplotlib", "yaml", "jsonargparse"}
    code = f"import sys, tinygpt.cli as c; c.main(['--help']); print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == GUIDE and done.stderr.strip() == "[]"
    best = min(_seconds([*TINYGPT, "--help"]) for _ in range(5))
    assert best < 0.3, f"tinygpt --help took {best:.2f} s"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_is_quick_and_light(name):
    "And so is the answer to a wrong option: neither imports PyTorch."
    for word, code, said in (("--help", 0, "usage"), ("--nosuch", 2, "unknown argument '--nosuch'")):
        run = f"import sys, tinygpt.cli as c; code = c.main([{name!r}, {word!r}]); print('torch' in sys.modules); sys.exit(code)"
        done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True)
        assert done.returncode == code and said in done.stdout + done.stderr
        assert word != "--help" and name in ("train", "demo", "finetune", "profile") or done.stdout.endswith("False\n"), word
    best = min(_seconds([*TINYGPT, name, "--help"]) for _ in range(5))
    assert best < 0.5, f"tinygpt {name} --help took {best:.2f} s"


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - started


def test_version(capsys):
    from tinygpt import __version__

    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == f"tinygpt {__version__}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches(name, capsys):
    assert f"\n  tinygpt {name}" in GUIDE
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: tinygpt {name}" in out and out.split("examples:")[1].count(f"tinygpt {name}") >= 2
    assert max(map(len, out.splitlines())) < 180


def test_train_help_says_what_each_recipe_is(capsys):
    from tinygpt.runs import recipes

    main(["train", "--help"])
    out = capsys.readouterr().out.split("recipes:")[1].split("fields,")[0]
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.strip().splitlines()}
    assert set(lines) == set(recipes()) and all(len(says) > 20 for says in lines.values())


def test_a_dash_is_as_good_as_an_underscore(here, capsys):
    assert main(["data", "tales", "--n=1", "--text-field", "text", "--val-frac=0.1"]) == 0
    capsys.readouterr()
    refused(capsys, ["generate", "--max-new-tokens", "x"], "whole number")


def test_fields_are_listed_with_their_meaning(capsys):
    from tinygpt.config import config_fields

    assert main(["train", "--fields"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  --")}
    for name in config_fields():
        assert f"--{name}" in lines, name
        assert len(lines[f"--{name}"].split("[")[0].split()) > 1, f"{name} has no comment beside it"
    assert main(["profile", "--fields", "optim"]) == 0
    assert {line.split(".")[0] for line in capsys.readouterr().out.splitlines()} == {"  --optim"}
    refused(capsys, ["demo", "--fields", "optin"], "did you mean optim?")


def test_train_generate_evaluate(here, capsys):
    assert main(["train", *QUICK]) == 0
    out = capsys.readouterr()
    assert "tinygpt generate run" in out.out and "bits per byte" in out.out and "bits/byte" in out.err
    assert (here / "run/best.json").exists() and "## step 8" in (here / "run/samples.md").read_text()
    assert main(["generate", "run", "--prompt", "Ann has", "--n", "2", "--max_new_tokens", "9", "--seed", "4"]) == 0
    first = capsys.readouterr().out
    assert first.count("Ann has") == 2
    assert main(["generate", "run", "--prompt", "Ann has", "--n", "2", "--max_new_tokens", "9", "--seed", "4"]) == 0
    assert capsys.readouterr().out == first, "the same seed writes the same text"
    assert main(["generate", "run", "--prompt", "Ann", "--stream", "--max_new_tokens", "9", "--temperature", "0"]) == 0
    streamed = capsys.readouterr().out.strip()
    assert main(["generate", "run", "--prompt", "Ann", "--max_new_tokens", "9", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.strip() == streamed
    assert main(["generate", "run/checkpoints/step_000008", "--max_new_tokens", "3"]) == 0
    capsys.readouterr()
    best = json.loads((here / "run/best.json").read_text())
    for place in ("run", "run/checkpoints/" + best["checkpoint"]):
        assert main(["evaluate", place, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["bits_per_byte"] == pytest.approx(best["bits_per_byte"], rel=1e-5) and found["checkpoint"] == best["checkpoint"]
        assert main(["evaluate", place]) == 0
        assert f"{best['bits_per_byte']:.4f}" in capsys.readouterr().out


def test_print_config_is_a_recipe(here, capsys):
    assert main(["train", *QUICK, "--print_config"]) == 0
    (here / "mine.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "--recipe", "mine.yaml"]) == 0
    assert (here / "run/config.yaml").read_text().replace("vocab_size: 29", "vocab_size: 0") != ""
    assert {p.name for p in here.iterdir()} == {"text.txt", "mine.yaml", "run"}


def test_prepared_tokens_serve_many_runs(here, capsys):
    assert main(["data", "text.txt", "--tokenizer", "char", "--out", "prepared"]) == 0
    assert "documents" in capsys.readouterr().out
    argv = [word if word != "text.txt" else "prepared" for word in QUICK]
    assert main(["train", *argv]) == 0
    assert not (here / "run/data").exists()
    assert main(["evaluate", "run"]) == 0


def test_prepared_tokens_keep_those_of_a_chat_free(here, capsys):
    assert main(["data", "text.txt", "--tokenizer", "byte", "--template", "tales", "--out", "prepared"]) == 0
    assert list(load_tokenizer("prepared/tokenizer.json").special_tokens)[1:] == ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    assert main(["data", "text.txt", "--template", "tales"]) == main(["data", "text.txt", "--template", "tails", "--out", "x"]) == 2
    assert not Path("x").exists() and "does nothing without --out" in (said := capsys.readouterr().err) and "'tails' is unknown" in said


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(here, number, code):
    argv = [*QUICK, "--optim.steps", "100000"]
    with subprocess.Popen([*TINYGPT, "train", *argv], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        while not (here / "run/metrics.jsonl").exists() or len((here / "run/metrics.jsonl").read_text().splitlines()) < 12:
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.05)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    assert child.returncode == code and "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("tinygpt: stopped") and "tinygpt train --resume run" in err
    last = json.loads((here / "run/last.json").read_text())
    rows = [json.loads(line) for line in (here / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == last["step"], "a step was lost"


# --- generate: one text, many, a conversation ----------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    "A folder with text.txt and a small trained run."
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    with contextlib.chdir(folder):
        assert main(["train", *QUICK, "--optim.steps", "80", "--run.eval_every", "40", "--run.keep_checkpoints", "9", "--no_samples"]) == 0
    return folder


@pytest.fixture
def run(trained, here) -> Path:
    "A copy of the trained run, to work with."
    shutil.copytree(trained / "run", here / "run")
    return here / "run"


def test_many_prompts(run, here, capsys, monkeypatch):
    (here / "prompts.txt").write_text("Ann\n\nBob has a hat.\n")
    (here / "prompts.jsonl").write_text('{"prompt": "Ann"}\n{"prompt": "Bob has a hat."}\n')
    argv = ["generate", "run", "--n", "2", "--seed", "5", "--json"]
    assert main([*argv, "--prompts", "prompts.txt"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["prompt"], row["seed"]) for row in rows] == [("Ann", 5), ("Ann", 6), ("Bob has a hat.", 7), ("Bob has a hat.", 8)]
    monkeypatch.setattr("sys.stdin", io.StringIO("Ann\nBob has a hat.\n"))
    for source in ("prompts.jsonl", "-"):
        assert main([*argv, "--prompts", source]) == 0
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert main([*argv[:-1], "--prompts", "prompts.txt"]) == 0
    assert capsys.readouterr().out == "\n\n".join(row["prompt"] + row["text"] for row in rows) + "\n"
    alone = ["generate", "run", "--prompt", "Bob has a hat.", "--seed", "7", "--json", "--max_new_tokens", "20"]
    assert main(alone) == 0
    assert rows[2]["text"].startswith(json.loads(capsys.readouterr().out)["text"]), "others in the batch change nothing"


def test_all_sampling_options(run, capsys):
    base = ["generate", "run", "--prompt", "Ann", "--seed", "1", "--max_new_tokens", "30"]
    texts = {}
    for extra in ("", "--temperature 2", "--temperature 2 --top_k 1", "--temperature 2 --top_p 0.01", "--temperature 2 --min_p 1",
                  "--temperature 0", "--repetition_penalty 3", "--frequency_penalty 2", "--presence_penalty 2"):
        assert main([*base, *extra.split()]) == 0
        texts[extra] = capsys.readouterr().out
    assert len({texts[f"--temperature 2 {cut}"] for cut in ("--top_k 1", "--top_p 0.01", "--min_p 1")} | {texts["--temperature 0"]}) == 1
    assert len(set(texts.values())) == 6
    assert main([*base, "--temperature", "0", "--stop", " a", "--stop", "zzz"]) == 0
    assert texts["--temperature 0"].startswith(capsys.readouterr().out.rstrip("\n"))
    assert main(["generate", "run", "--prompt", "Ann", "--sliding", "--max_new_tokens", "200", "--no_stream"]) == 0


def test_a_new_seed_each_time_and_it_is_shown(run, capsys):
    assert main(["generate", "run"]) == 0
    first = capsys.readouterr()
    (seed,) = re.findall(r"again with --seed (\d+)", first.err)
    assert main(["generate", "run", "--seed", seed]) == 0
    second = capsys.readouterr()
    assert second.out == first.out and second.err == ""


def test_a_draft_changes_no_word_and_few_bits_hardly_one(run, here, capsys):
    argv = ["generate", "run", "--prompts", "prompts.txt", "--temperature", "0"]
    (here / "prompts.txt").write_text("Ann\nBob has a\nDot\n")
    assert main(argv) == 0
    plain = capsys.readouterr()
    for more in (["--draft", "lookup"], ["--draft", "run", "--n_draft", "7"]):
        assert main([*argv, *more]) == 0
        out = capsys.readouterr()
        assert out.out == plain.out and re.search(r"[\d,]+ tokens in [\d,]+ calls of the model", out.err)
    assert main([*argv, "--quantize", "int8"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(plain.out.splitlines())
    assert main(["generate", "run", "--quantize", "int4", "--draft", "run", "--seed", "1", "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["text"] and out.err == ""


def test_interactive(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Ann has\nZoe\n\nBob"))
    assert main(["generate", "run", "--interactive", "--seed", "3", "--max_new_tokens", "9"]) == 0
    out = capsys.readouterr()
    lines = out.out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("Ann has") and lines[2].startswith("Bob")
    assert len(out.err.splitlines()) == 1 and out.err.startswith("tinygpt: the prompt") and "'Z'" in out.err


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of its own")
def test_on_a_terminal_it_asks_and_remembers(run):
    "In a real terminal: a prompt mended with the arrow key, then called back with another, Ctrl-D, exit code 0."
    import pty

    pytest.importorskip("readline")
    master, slave = pty.openpty()
    command = [*TINYGPT, "generate", "run", "--interactive", "--temperature", "0", "--max_new_tokens", "9"]
    said = b""
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=os.environ | {"TERM": "xterm"}) as child:
        os.close(slave)
        for typed in (b"Ann hs a\x1b[D\x1b[D\x1b[Da\n", b"\x1b[A\n", b"\x04"):
            n_asked = said.count(b"> ")
            while said.count(b"> ") == n_asked:
                said += os.read(master, 1000)
            os.write(master, typed)
        assert child.wait(60) == 0
    os.close(master)
    texts = [line for line in said.decode().splitlines() if line.startswith("Ann has a ")]
    assert len(texts) == 2 and texts[0] == texts[1] and "Ctrl-D" in said.decode() and "Traceback" not in said.decode()


def test_one_text_is_streamed_on_a_terminal_alone(run, capsys, monkeypatch):
    from tinygpt import telling

    streamed = []
    monkeypatch.setattr(telling, "show_stream", lambda prompt, pieces: streamed.append("".join(pieces)))
    assert main(["generate", "run", "--seed", "1"]) == 0 and not streamed
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["generate", "run", "--seed", "1", "--no_stream"]) == 0 and not streamed
    assert main(["generate", "run", "--seed", "1"]) == 0 and len(streamed) == 1


# --- evaluate, checkpoints, profile --------------------------------------------------------------------------


def test_evaluate_another_text(run, here, capsys):
    (here / "other.txt").write_text("Ann has a hat.\n<|endoftext|>\nBob has a cup. Bob gives the cup to Ann.")
    assert main(["evaluate", "run", "other.txt", "--stride", "7"]) == 0
    assert "run, step_000080, on other.txt:" in capsys.readouterr().out
    assert main(["evaluate", "run", "other.txt", "--max_docs", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_documents"] == 1 and found["n_bytes"] == 14 and "floor" not in found


def test_evaluate_on_cases(run, here, capsys):
    cases = [{"kind": "things", "prompt": "Ann has a", "expected": " hat", "rejected": [" dog"]}, {"prompt": "", "allowed": ["Ann", "Bob", "Cid", "Dot"]}]
    (here / "cases.yaml").write_text(yaml.safe_dump({"version": 1, "cases": cases}))
    (here / "bad.yaml").write_text("version: 1\ncases: [{prompt: Ann}]\n")
    refused(capsys, ["evaluate", "run", "--cases", "bad.yaml"], "bad.yaml: case 1")
    (here / "bad.yaml").unlink()
    cases = [{"kind": "things", "prompt": "Ann has a", "allowed": [" hat", " cup"]}, {"prompt": "", "allowed": ["Ann", "Bob", "Cid", "Dot"]}]
    (here / "cases.yaml").write_text(yaml.safe_dump({"version": 1, "cases": cases}))
    assert main(["evaluate", "run", "--cases", "cases.yaml"]) == 0
    assert re.search(r"(?m)^things +1 ", capsys.readouterr().out)
    assert main(["checkpoints", "run", "--cases", "cases.yaml"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("2 cases") and out[2].startswith("step_000080") and out[3].startswith("step_000040")


def test_checkpoints(run, here, capsys):
    shutil.copytree(run, here / "again")
    assert main(["checkpoints", "run", "again"]) == 0
    out = capsys.readouterr().out
    assert out.count("step_000040") == out.count("step_000080") == 2 and out.count("best last") == 2
    assert out.startswith("run:\n") and "\n\nagain:\n" in out
    (run / "checkpoints/step_000040/model.safetensors").unlink()
    assert main(["checkpoints", "run"]) == 0
    assert re.search(r"step_000040 .*damaged", capsys.readouterr().out)


def test_profile(run, here, capsys):
    assert main(["profile", "run", "--measure"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("run: 1 layers, 32 wide, 2 heads") and "operations per second (cpu" in out
    shown = {}
    for argv in (["tiny"], ["--recipe", "smoke"], ["smoke"], ["gpt2-124m"], ["gpt2-124m", "--model.n_layers", "1"], ["run/checkpoints/step_000080"]):
        assert main(["profile", *argv]) == 0
        shown[" ".join(argv)] = capsys.readouterr().out
    assert shown["smoke"] == shown["--recipe smoke"] and "124 M" in shown["gpt2-124m"] and "50,257" in shown["gpt2-124m"]
    assert shown["gpt2-124m --model.n_layers 1"] != shown["gpt2-124m"]
    assert main(["train", *QUICK, "--print_config"]) == 0
    (here / "mine.yaml").write_text(capsys.readouterr().out)
    assert main(["profile", "mine.yaml"]) == 0
    assert "1 layers, 32 wide, 2 heads" in capsys.readouterr().out


def test_a_shipped_model_by_its_name(run, here, capsys, monkeypatch):
    "Named, and as what is taken when there are no runs."
    from tinygpt import runs

    monkeypatch.setattr(runs, "shipped_models", lambda: {"small": run})
    assert main(["generate", "small", "--seed", "1"]) == 0
    first = capsys.readouterr().out
    assert main(["generate", "--seed", "1"]) == 0
    out = capsys.readouterr()
    assert out.out == first and out.err == "using small\n"
    for command in ("checkpoints", "evaluate", "profile"):
        assert main([command, "small"]) == 0, capsys.readouterr().err


def test_the_shipped_model_speaks_without_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--prompt", "One", "--seed", "1", "--min_p", "0.1"]) == 0
    assert capsys.readouterr().out.startswith("One ")
    assert main(["evaluate", "--tales", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["over_floor"] < 1.1 and found["way"] > 0.9 and found["tales"]["consistent"] > 10


# --- runs ----------------------------------------------------------------------------------------------------


def test_a_run_is_never_overwritten(run, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    refused(capsys, ["train", *QUICK], "exists")
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_without_a_name_runs_are_numbered(here, capsys):
    argv = QUICK[: QUICK.index("--run.out_dir")]
    assert main(["train", *argv]) == 0 and main(["train", *argv]) == 0
    assert sorted(p.name for p in (here / "runs").iterdir()) == ["text", "text-2"]
    assert main(["generate", "--max_new_tokens", "3"]) == 0  # the latest


def test_debug_raises(here, monkeypatch):
    monkeypatch.setenv("TINYGPT_DEBUG", "1")
    with pytest.raises(ValueError):
        main(["trian"])


def test_resume_with_changes(run, capsys):
    assert main(["train", "--resume", "run", "--run.eval_every", "20", "--no_samples"]) == 0
    assert "eval_every: 20" in (run / "config.yaml").read_text()


def test_doctor(here, capsys):
    code = main(["doctor"])
    out = capsys.readouterr().out
    for name in ("python", "command", "packages", "torch", "arithmetic", "accelerator", "memory", "disk", "corpora", "recipes"):
        assert f"  {name} " in out
    assert code == (0 if "all is well" in out else 1)
    assert ("XX" in out) == (code == 1) and ("->" in out) == (code == 1)


# --- with the Tales and with real text -----------------------------------------------------------------------


def test_the_smoke_recipe(here, capsys):
    assert main(["train", "--recipe", "smoke", "--run.out_dir", "smoke"]) == 0
    rows = [json.loads(line) for line in (here / "smoke/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 50 and losses[-1] < 0.7 * losses[0]


def test_more_tales(here, capsys):
    assert main(["data", "tales", "--n", "3", "--seed", "5", "--out", "more.txt"]) == 0
    assert (here / "more.txt").read_text().count("<|endoftext|>") == 2
    assert main(["data", "tales", "--n", "3", "--seed", "5"]) == 0
    assert (here / "more.txt").read_text().split("\n")[0] in capsys.readouterr().out


def test_demo_from_end_to_end(here, capsys):
    short = "--optim.steps 12 --data.batch_size 8 --run.eval_docs 40 --model.d_model 32 --model.n_layers 1 --tales 5".split()
    assert main(["demo", *short]) == 0
    out = capsys.readouterr()
    for said in ("times the floor", "of the way from the trigram", "bits above the floor per tale", "new tales are consistent", "tinygpt generate runs/tales"):
        assert said in out.out
    assert "floor" in out.err


def test_shakespeare_letters(here, capsys, real_text):
    argv = ["--data.source", str(real_text / "tinyshakespeare.txt"), "--optim.steps", "30", "--run.out_dir", "run", "--data.batch_size", "8"]
    assert main(["train", "--recipe", "shakespeare-char", *argv, "--no_samples"]) == 0
    assert main(["generate", "run", "--prompt", "ROMEO:"]) == 0
    assert "ROMEO:" in capsys.readouterr().out


def test_gsm8k_with_a_bpe(here, capsys, real_text):
    lines = (real_text / "gsm8k" / "train.jsonl").read_text().splitlines()[:400]
    (here / "gsm8k.jsonl").write_text("\n".join(lines))
    argv = "--data.source gsm8k.jsonl --data.text_field question,answer --data.vocab_size 4096 --optim.steps 12 --data.batch_size 4 --run.out_dir run --no_samples".split()
    assert main(["train", "--recipe", "smoke", *argv]) == 0
    assert main(["generate", "run", "--prompt", "Natalia sold"]) == 0
    assert "Natalia sold" in capsys.readouterr().out
