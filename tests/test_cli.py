"""The `tinygpt` command: what it prints, what it refuses and how, what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinygpt.cli import COMMANDS, GUIDE, main

ROOT = Path(__file__).resolve().parents[1]
TINYGPT = [sys.executable, "-c", "import sys; from tinygpt.cli import main; sys.exit(main())"]
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
    lines = [line for line in out.err.splitlines() if not line.startswith("reading ")]
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


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - started


def test_version(capsys):
    from tinygpt import __version__

    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == f"tinygpt {__version__}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches(name, capsys):
    assert name in GUIDE
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: tinygpt {name}" in out and f"tinygpt {name}" in out.split("examples:")[1]


def test_train_help_lists_every_field_with_its_meaning(capsys):
    from tinygpt.training import config_fields

    main(["train", "--help"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  --")}
    for name in config_fields():
        assert f"--{name}" in lines, name
        assert len(lines[f"--{name}"].split("[")[0].split()) > 1, f"{name} has no comment beside it"


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
    best = json.loads((here / "run/best.json").read_text())["bits_per_byte"]
    for place in ("run", "run/checkpoints/" + json.loads((here / "run/best.json").read_text())["checkpoint"]):
        assert main(["evaluate", place]) == 0
        assert f"{best:.3f} bits per byte" in capsys.readouterr().out


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


# --- what is refused -----------------------------------------------------------------------------------------

BAD_FILES = {
    "empty.txt": (b"", "no text"),
    "blank.txt": (b" \n\n", "no text"),
    "one.txt": (b"a", ""),
    "latin.txt": "caf\xe9 au lait, s'il vous pla\xeet. ".encode("latin-1") * 40, 
    "binary.bin": (bytes(range(256)) * 20, ""),
    "short.txt": (b"Once upon a time.", ""),
}


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_text(here, capsys, name, tokenizer):
    content, said = BAD_FILES[name] if isinstance(BAD_FILES[name], tuple) else (BAD_FILES[name], "UTF-8")
    (here / name).write_bytes(content)
    argv = [{"text.txt": name, "char": tokenizer, "documents": "windows"}.get(word, word) for word in QUICK]
    refused(capsys, ["train", *argv], said)
    assert {p.name for p in here.iterdir()} == {"text.txt", name}
    refused(capsys, ["data", name, "--tokenizer", tokenizer, "--out", "prepared"], "") if name not in ("short.txt",) else None
    assert "prepared" not in {p.name for p in here.iterdir()} or name == "short.txt"


@pytest.mark.parametrize("words, said", [
    (["trian"], "unknown command 'trian'; did you mean train?"),
    (["train", "--recipe", "tails"], "did you mean tales?"),
    (["train", "--recip", "tales"], "did you mean --recipe?"),
    (["train", "tales"], "'tales'"),
    (["train", *QUICK, "--model.n_layer", "2"], "did you mean model.n_layers?"),
    (["train", *QUICK, "--model.n_layers", "two"], "model.n_layers='two' must be a whole number"),
    (["train", *QUICK, "--model.n_layers"], "--model.n_layers"),
    (["train", *QUICK, "--model.n_heads", "5"], "n_heads=5 does not divide d_model=32"),
    (["train", *QUICK, "--model.vocab_size", "7"], "model.vocab_size=7 is not the tokenizer's"),
    (["train", *QUICK, "--data.source", "texd.txt"], "did you mean text.txt?"),
    (["train", *QUICK, "--data.tokenizer", "bep"], "bep"),
    (["train", *QUICK, "--data.vocab_size", "100", "--data.tokenizer", "bpe"], "vocab_size=100"),
    (["train", *QUICK, "--run.device", "tpu"], "tpu"),
    (["train", *QUICK, "--run.out_dir", "text.txt"], "text.txt"),
    (["train", *QUICK, "--run.out_dir", "text.txt/run"], "text.txt"),
    (["train", "--resume", "nowhere"], "nowhere"),
    (["train", "--resume", "nowhere", "--optim.lr", "1"], "--resume"),
    (["generate"], "tinygpt demo"),
    (["generate", "nowhere"], "nowhere"),
    (["generate", "--n", "x"], "whole number"),
    (["generate", "--temprature", "1"], "did you mean --temperature?"),
    (["evaluate", "."], "neither a run directory nor a checkpoint"),
    (["data", "texd.txt"], "did you mean text.txt?"),
    (["data", "text.txt", "--n", "3"], "tinygpt data tales"),
    (["data", "text.txt", "--out", "text.txt"], "exists"),
    (["doctor", "--now"], "--now"),
])
def test_a_wrong_word(here, capsys, words, said):
    refused(capsys, words, said)
    assert {p.name for p in here.iterdir()} == {"text.txt"}


@pytest.fixture
def run(here, capsys) -> Path:
    assert main(["train", *QUICK]) == 0
    capsys.readouterr()
    return here / "run"


@pytest.mark.parametrize("argv, said", [
    (["--temperature", "-1"], "temperature=-1.0"),
    (["--top_k", "0"], "top_k=0"),
    (["--top_p", "1.5"], "top_p=1.5"),
    (["--max_new_tokens", "-1"], "max_new_tokens=-1"),
    (["--max_new_tokens", "500"], "context_length=96"),
    (["--prompt", "Zoë ☃"], "'Z'"),
    (["--prompt", "Ann has a hat. " * 10], "context_length=96"),
    (["--n", "0"], "--n 0"),
])
def test_generate_says_what_is_wrong(run, capsys, argv, said):
    refused(capsys, ["generate", "run", *argv], said)
    refused(capsys, ["generate", "run", *argv, "--stream"], said)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.yaml", "data/val/tokens.bin", "data/train/header.json", "best.json", "model", "state"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_run(run, capsys, name, damage):
    path = {"model": "checkpoints/step_000008/model.safetensors", "state": "checkpoints/step_000008/state.json"}.get(name, name)
    content = (run / path).read_bytes()
    (run / path).unlink()
    if damage == "cut":
        (run / path).write_bytes(content[: len(content) // 2])
    if damage == "missing" and name == "best.json":
        return  # the last checkpoint stands in
    refused(capsys, ["evaluate", "run"], Path(path).name if name != "data/train/header.json" or damage == "cut" else "")


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


def test_doctor(here, capsys):
    code = main(["doctor"])
    out = capsys.readouterr().out
    for name in ("python", "torch", "memory", "disk", "packages", "data"):
        assert f"  {name}" in out
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
