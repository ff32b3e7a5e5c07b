"""What the command refuses: one line on stderr that says what to do, exit code 2, and nothing written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import QUICK, TEXT, TINYGPT

from tinygpt.cli import main


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    "A folder with text.txt, and a run that was stopped half-way."
    folder = tmp_path_factory.mktemp("begun")
    (folder / "text.txt").write_text(TEXT)
    with contextlib.chdir(folder):
        assert main(["train", *QUICK, "--run.checkpoint_every", "4", "--no_samples"]) == 0
        assert main(["train", *QUICK, "--run.out_dir", "other", "--model.d_model", "16", "--no_samples"]) == 0
    run = folder / "run"
    shutil.rmtree(run / "checkpoints/step_000008")
    for which in ("best", "last"):
        pointer = json.loads((run / f"{which}.json").read_text())
        (run / f"{which}.json").write_text(json.dumps(pointer | {"checkpoint": "step_000004", "step": 4}))
    return folder


def everything(folder: Path) -> dict[str, bytes | None]:
    "All files and folders, with their content."
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def check(code: int, out: str, err: str, said: str) -> None:
    lines = err.splitlines()
    assert code == 2, err
    assert len(lines) == 1 and lines[0].startswith("tinygpt: ") and len(lines[0]) < 600, err
    assert said in lines[0], lines[0]
    assert "Traceback" not in err and out == ""


def refused(capsys, argv: list[str], said: str, folder: Path) -> None:
    before = everything(folder)
    code = main(argv)
    check(code, *capsys.readouterr(), said)
    assert everything(folder) == before, "something was written"


def test_the_half_run_is_sound(here, capsys):
    "Else the refusals below would prove nothing."
    assert main(["generate", "run", "--seed", "1"]) == 0
    assert main(["evaluate", "run"]) == 0
    assert main(["train", "--resume", "run", "--no_samples"]) == 0
    assert (here / "run/checkpoints/step_000008").is_dir()


# --- checkpoints that are truncated, tampered with, or of somebody else --------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def foreign(path: Path) -> None:
    "As another library would write it."
    path.write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 32}')


def nonsense(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def of_other(path: Path) -> None:
    "The same file of a model of another shape."
    shutil.copy(str(path).replace("/run/", "/other/").replace("step_000004", "step_000008"), path)


STEP = "checkpoints/step_000004"
DAMAGE = [
    (cut, f"{STEP}/model.safetensors"), (flip, f"{STEP}/model.safetensors"), (of_other, f"{STEP}/model.safetensors"),
    (nonsense, f"{STEP}/model.safetensors"), (Path.unlink, f"{STEP}/model.safetensors"),
    (cut, f"{STEP}/state.json"), (flip, f"{STEP}/state.json"), (foreign, f"{STEP}/state.json"), (nonsense, f"{STEP}/state.json"),
    (cut, "tokenizer.json"), (foreign, "tokenizer.json"), (nonsense, "tokenizer.json"), (Path.unlink, "tokenizer.json"),
    (foreign, "best.json"), (cut, "best.json"),
]  # fmt: skip
OF_TRAINING = [
    (cut, f"{STEP}/optimizer.safetensors"), (flip, f"{STEP}/optimizer.safetensors"), (Path.unlink, f"{STEP}/optimizer.safetensors"),
    (cut, "config.yaml"), (nonsense, "config.yaml"), (Path.unlink, "config.yaml"), (cut, "data/train/tokens.bin"), (flip, "data/train/tokens.bin"),
    (cut, "data/val/header.json"), (cut, "last.json"),
]  # fmt: skip


def named(damage) -> str:
    return f"{damage[0].__name__}-{Path(damage[1]).name}"


DAMAGED_READS = [(how, name, argv) for how, name in DAMAGE for argv in ("generate run", "evaluate run", "train --resume run")
                 if not ("resume" in argv and name == "best.json")]  # training does not read it


@pytest.mark.parametrize("how, name, argv", DAMAGED_READS, ids=[f"{argv.split()[0]}-{named(d)}" for *d, argv in DAMAGED_READS])
def test_a_damaged_checkpoint(here, capsys, how, name, argv):
    how(here / "run" / name)
    refused(capsys, argv.split(), Path(name).name if Path(name).name != "state.json" or how is not foreign else "checkpoint", here)


@pytest.mark.parametrize("how, name", OF_TRAINING, ids=map(named, OF_TRAINING))
def test_a_damaged_run(here, capsys, how, name):
    how(here / "run" / name)
    refused(capsys, ["train", "--resume", "run"], "", here)


@pytest.mark.parametrize("make", [
    lambda path: path.mkdir(),
    lambda path: path.write_bytes(b"\x80\x02}q\x00."),
    lambda path: (path.mkdir(), (path / "pytorch_model.bin").write_bytes(b"PK"), foreign(path / "config.json")),
    lambda path: (path.mkdir(), foreign(path / "state.json")),
    lambda path: (path.mkdir(), (path / "config.yaml").write_text("model: {}\n")),
], ids=["an empty folder", "a pickle", "another library's", "another's state", "a configuration alone"])  # fmt: skip
@pytest.mark.parametrize("command", ["generate", "evaluate", "checkpoints", "profile", "train --resume"])
def test_what_is_no_run(here, capsys, make, command):
    make(here / "thing")
    refused(capsys, [*command.split(), "thing"], "thing", here)


# --- going on with a changed configuration -------------------------------------------------------------------


@pytest.mark.parametrize("change, said", [
    ("--model.n_layers 2", "model.n_layers was 1 in the 4 steps done and is 2 now"),
    ("--model.dropout 0.1", "model.dropout was 0.0"),
    ("--data.batch_size 4", "data.batch_size was 8"),
    ("--data.tokenizer byte", "data.tokenizer was 'char'"),
    ("--optim.lr 0.1", "optim.lr was "),
    ("--optim.optimizer adamw", "adamw"),
    ("--optim.steps 16", "optim.steps was 8"),
    ("--run.seed 1", "run.seed was 0"),
    ("--run.dtype bfloat16", "run.dtype was 'float32'"),
    ("--run.device tpu", "tpu"),
    ("--run.eval_evry 3", "did you mean run.eval_every?"),
    ("--run.eval_every x", "must be a whole number"),
    ("--recipe tales", "leave out --recipe"),
])  # fmt: skip
def test_a_resume_with_a_changed_configuration(here, capsys, change, said):
    refused(capsys, ["train", "--resume", "run", *change.split()], said, here)


def test_the_refusal_lists_what_may_change(here, capsys):
    assert main(["train", "--resume", "run", "--optim.lr", "0.1"]) == 2
    line = capsys.readouterr().err
    assert "on the way may change" in line and "run.max_minutes" in line and "run.checkpoint_every" in line


@pytest.mark.parametrize("of", ["tokenizer.json", "data"])
def test_a_resume_on_other_tokens(here, capsys, of):
    (here / "text.txt").write_text(TEXT.replace("Ann", "Zoe"))
    assert main(["train", *QUICK, "--run.out_dir", "third", "--no_samples"]) == 0
    capsys.readouterr()
    shutil.rmtree(here / "run" / of) if of == "data" else (here / "run" / of).unlink()
    (shutil.copytree if of == "data" else shutil.copy)(here / "third" / of, here / "run" / of)
    refused(capsys, ["train", "--resume", "run"], "run", here)


# --- places that cannot be written to ------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["text.txt", "text.txt/run", "run", "."])
def test_a_place_that_is_taken(here, capsys, place):
    argv = [word if word != "run" else place for word in QUICK]
    refused(capsys, ["train", *argv], place, here)
    refused(capsys, ["data", "text.txt", "--out", place], place, here)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
@pytest.mark.parametrize("argv", [["train", *QUICK, "--run.out_dir", "/proc/run"], ["data", "text.txt", "--out", "/proc/run"],
                                  ["data", "tales", "--n", "2", "--out", "/proc/more.txt"]])  # fmt: skip
def test_a_place_that_cannot_be_written_to(here, capsys, argv):
    refused(capsys, argv, "/proc", here)


SMALL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from tinygpt.cli import main
sys.exit(main())
"""


@pytest.mark.skipif(os.name != "posix", reason="resource limits")
@pytest.mark.parametrize("limit, argv", [
    (2_000, ["train", *QUICK, "--run.out_dir", "new"]),
    (2_000, ["data", "text.txt", "--out", "new", "--tokenizer", "byte"]),
    (2_000, ["data", "tales", "--n", "50", "--out", "new.txt"]),
])  # fmt: skip
def test_a_full_disk(here, limit, argv):
    "In a process of its own, which may write no more than so many bytes to a file."
    before = everything(here)
    done = subprocess.run([sys.executable, "-c", SMALL_DISK, str(limit), *argv], capture_output=True, text=True)
    check(done.returncode, done.stdout, done.stderr, "new")
    assert everything(here) == before


@pytest.mark.skipif(os.name != "posix", reason="resource limits")
def test_a_disk_that_fills_up_while_it_trains(here):
    "The run keeps its last good checkpoint, and can go on later."
    done = subprocess.run([sys.executable, "-c", SMALL_DISK, "30000", "train", "--resume", "run"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("tinygpt: run: cannot be written at step 8") and "last good checkpoint, step 4" in last
    assert [p.name for p in (here / "run/checkpoints").iterdir()] == ["step_000004"]
    assert main(["train", "--resume", "run", "--no_samples"]) == 0


def test_a_folder_in_use_by_a_running_training(here, capsys):
    argv = [*QUICK, "--optim.steps", "100000", "--run.out_dir", "busy", "--no_samples"]
    with subprocess.Popen([*TINYGPT, "train", *argv], stderr=subprocess.DEVNULL) as child:
        try:
            while not (here / "busy/metrics.jsonl").exists():
                assert child.poll() is None
                time.sleep(0.05)
            for again, said in ((["--resume", "busy"], "another training is at work here"), ([*QUICK, "--run.out_dir", "busy"], "exists")):
                code = main(["train", *again])
                check(code, *capsys.readouterr(), said)
            assert child.poll() is None, "the running one was disturbed"
        finally:
            child.terminate()
    assert child.returncode == 143
    assert main(["checkpoints", "busy"]) == 0


# --- what cannot be written as asked -------------------------------------------------------------------------

SAMPLING = [
    ("--temperature -1", "generate: --temperature -1.0"), ("--temperature nan", "generate: --temperature nan"), ("--temperature inf", "generate: --temperature inf"),
    ("--temperature hot", "--temperature: invalid number value: 'hot'"), ("--top_k 0", "generate: --top_k 0"), ("--top_k 1.5", "whole number"),
    ("--top_p 1.5", "generate: --top_p 1.5"), ("--top_p -0.1", "generate: --top_p -0.1"), ("--min_p 2", "generate: --min_p 2.0"), ("--repetition_penalty 0", "generate: --repetition_penalty 0.0"),
    ("--frequency_penalty 3", "generate: --frequency_penalty 3.0"), ("--presence_penalty -3", "generate: --presence_penalty -3.0"), ("--max_new_tokens -1", "max_new_tokens -1"),
    ("--stop=", "stop"), ("--seed -1", "--seed -1"), ("--seed 99999999999999999999", "--seed"), ("--n 0", "--n 0"), ("--sliding", "--max_new_tokens"),
    ("--prompt=", "--prompt is empty"), ("--prompts empty.txt", "holds no prompts"), ("--prompts nowhere.txt", "nowhere.txt"), ("--prompts binary", "not UTF-8"),
    ("--draft lookup --n_draft 0", "--n_draft 0"), ("--n_draft 3", "give --draft MODEL"), ("--quantize int2", "'int2'"),
    ("--draft lookup --sliding --max_new_tokens 9", "a draft cannot slide"), ("--top_p 0", "generate: --top_p 0.0"),
    ("--prompts rows.jsonl", "rows.jsonl, line 2"), ("--prompts run", "run"), ("--interactive --prompt Ann", "not allowed"), ("--interactive --json", "--json"),
    ("--prompt", "--prompt needs a value"), ("--prompt Ann Bob Cid", "'Bob'"), ("--temprature 1", "did you mean --temperature?"), ("--device tpu", "tpu"),
]  # fmt: skip


@pytest.mark.parametrize("words, said", SAMPLING, ids=[words for words, _ in SAMPLING])
def test_an_option_is_refused_before_anything_is_loaded(here, capsys, monkeypatch, words, said):
    from tinygpt import telling

    monkeypatch.setattr(telling, "load", lambda *_: pytest.fail("a model was loaded first"))
    (here / "empty.txt").write_text("\n\n")
    (here / "binary").write_bytes(bytes(range(256)))
    (here / "rows.jsonl").write_text('{"prompt": "Ann"}\n["Bob"]\n')
    for more in ([], ["--stream"]):
        refused(capsys, ["generate", "run", *words.split(), *more], said, here)


@pytest.mark.parametrize("words, said", [
    (["--prompt", "Zoë ☃"], "'Z'"),
    (["--prompts", "prompts.txt"], "prompt 2 of 2"),
    (["--prompt", "Ann has a hat. " * 10], "context_length=96"),
    (["--max_new_tokens", "500"], "give --sliding"),
    (["--draft", "tales"], "has another tokenizer"),
    (["--draft", "nowhere"], "nowhere"),
])  # fmt: skip
@pytest.mark.parametrize("more", [[], ["--stream"], ["--json"]])
def test_a_prompt_that_cannot_be_continued(here, capsys, words, said, more):
    (here / "prompts.txt").write_text("Ann\nÄnn\n", encoding="utf-8")
    refused(capsys, ["generate", "run", *words, *more], said, here)


@pytest.mark.parametrize("words, said", [
    ("evaluate run nowhere.txt", "nowhere.txt"), ("evaluate run empty.txt", "no text"), ("evaluate run zoe.txt", "'Z'"), ("evaluate run binary", "binary"),
    ("evaluate run --stride 0", "--stride 0"), ("evaluate run --stride 97", "stride=97"), ("evaluate run --tales -1", "--tales -1"),
    ("evaluate run --max_docs 0", "--max_docs 0"), ("evaluate run --cases nowhere.yaml", "nowhere.yaml"), ("evaluate run --cases text.txt", "text.txt"),
    ("evaluate run --cases tales", "case 1"), ("checkpoints run nowhere", "nowhere"), ("checkpoints --case x", "did you mean --cases?"),
    ("profile --recipe tails", "did you mean tales?"), ("profile gpt2", "did you mean gpt2-124m?"), ("profile tiny --model.n_head 3", "did you mean model.n_heads?"),
    ("profile tiny --model.n_heads 5", "n_heads=5"), ("profile tiny --recipe tales", "two things"), ("demo --tales -1", "--tales -1"), ("demo --minutes 0", "fit_minutes"),
])  # fmt: skip
def test_what_cannot_be_looked_at(here, capsys, words, said):
    (here / "empty.txt").write_text("\n")
    (here / "zoe.txt").write_text("Zoe has a hat.")
    (here / "binary").write_bytes(bytes(range(256)))
    refused(capsys, words.split(), said, here)


# --- texts that are none -------------------------------------------------------------------------------------

BAD_FILES = {
    "empty.txt": (b"", "no text"),
    "blank.txt": (b" \n\n", "no text"),
    "one.txt": (b"a", ""),
    "latin.txt": ("caf\xe9 au lait, s'il vous pla\xeet. ".encode("latin-1") * 40, "UTF-8"),
    "binary.bin": (bytes(range(256)) * 20, ""),
    "short.txt": (b"Once upon a time.", ""),
}


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_text(here, capsys, name, tokenizer):
    content, said = BAD_FILES[name]
    (here / name).write_bytes(content)
    argv = [{"text.txt": name, "char": tokenizer, "documents": "windows", "run": "new"}.get(word, word) for word in QUICK]
    refused(capsys, ["train", *argv], said, here)
    if name != "short.txt":  # it can be prepared, and is too short for a window
        refused(capsys, ["data", name, "--tokenizer", tokenizer, "--out", "prepared"], "", here)


# --- wrong words ---------------------------------------------------------------------------------------------

NEW = [word if word != "run" else "new" for word in QUICK]


@pytest.mark.parametrize("words, said", [
    (["trian"], "unknown command 'trian'; did you mean train?"),
    (["checkpoint"], "did you mean checkpoints?"),
    (["train", "--recipe", "tails"], "did you mean tales?"),
    (["train", "--recip", "tales"], "did you mean --recipe?"),
    (["train", "tales"], "'tales'"),
    (["train", "--steps", "5"], "unknown argument '--steps'; did you mean --optim.steps?"),
    (["demo", "--n-layer", "5"], "did you mean --model.n_layers?"),
    (["profile", "--block_size", "5"], "did you mean --model.context_length?"),
    (["train", *NEW, "--model.n_layer", "2"], "did you mean model.n_layers?"),
    (["train", *NEW, "--optim.max_iters", "2"], "here it is optim.steps"),
    (["train", *NEW, "--model.n_layers", "two"], "model.n_layers='two' must be a whole number"),
    (["train", *NEW, "--model.n_layers"], "--model.n_layers"),
    (["train", *NEW, "--model.n_heads", "5"], "n_heads=5 does not divide d_model=32"),
    (["train", *NEW, "--model.vocab_size", "7"], "model.vocab_size=7 is not the tokenizer's"),
    (["train", *NEW, "--data.source", "texd.txt"], "did you mean text.txt?"),
    (["train", *NEW, "--data.tokenizer", "bep"], "data.tokenizer='bep' is neither char, byte, bpe nor a file; give one of these"),
    (["train", "--recipe", "gpt2-124m"], "gpt2-124m.yaml says where it comes from"),
    (["generate", "run", "--prompt", "-x"], "--prompt=-x"),
    (["evaluate", "text.txt"], "tinygpt evaluate RUN text.txt"),
    (["profile", "runs/ruin"], "there is no 'runs/ruin'"),
    (["train", *NEW, "--data.vocab_size", "100", "--data.tokenizer", "bpe"], "vocab_size=100"),
    (["train", *NEW, "--run.device", "tpu"], "tpu"),
    (["train", "--resume", "nowhere"], "nowhere"),
    (["generate"], "tinygpt demo"),
    (["generate", "nowhere"], "nowhere"),
    (["generate", "ruin"], "ruin"),
    (["evaluate", "."], "neither a run directory nor a checkpoint"),
    (["data", "texd.txt"], "did you mean text.txt?"),
    (["data", "text.txt", "--n", "3"], "tinygpt data tales"),
    (["data", "tales", "--n", "0"], "--n 0"),
    (["data", "--n", "3"], "tinygpt data tales --n 3"),
    (["data", "run/data"], "tinygpt train --data.source run/data"),
    (["data", "text.txt", "--vocab_size", "512"], "--vocab_size does nothing without --out"),
    (["data", "text.txt", "--out", "new", "--tokenizer", "bep"], "tinygpt: data: data.tokenizer='bep' is neither"),
    (["data", "text.txt", "--out", "new", "--val_frac", "2"], "tinygpt: data: val_frac=2.0"),
    (["generate", "Once upon"], "tinygpt generate --prompt 'Once upon'"),
    (["generate", "run", "Once upon"], "a prompt is given with --prompt"),
    (["generate", "run", "--top_k", "0"], "tinygpt: generate: --top_k 0 must"),
    (["generate", "run", "--stop", ""], "--stop is empty"),
    (["generate", "run", "--device", "tpu"], "tinygpt: --device tpu"),
    (["evaluate", "run", "--device", "tpu"], "tinygpt: --device tpu"),
    (["evaluate", "run", "--stride", "9999"], "tinygpt: evaluate: stride=9999"),
    (["doctor", "--now"], "--now"),
])  # fmt: skip
def test_a_wrong_word(here, capsys, monkeypatch, words, said):
    from tinygpt import runs

    monkeypatch.setattr(runs, "shipped_models", dict)
    refused(capsys, words, said, here)


# --- the same through the real command -----------------------------------------------------------------------


@pytest.mark.parametrize("words, said", [
    (["trian"], "did you mean train?"),
    (["generate", "run", "--top_p", "7"], "--top_p 7.0"),
    (["generate", "run", "--prompt", "Zoe"], "'Z'"),
    (["evaluate", "cut"], "model.safetensors"),
    (["train", "--resume", "run", "--optim.lr", "1"], "optim.lr was "),
])  # fmt: skip
def test_in_a_process_of_its_own(here, words, said):
    shutil.copytree(here / "run", here / "cut")
    cut(here / "cut" / STEP / "model.safetensors")
    before = everything(here)
    done = subprocess.run([*TINYGPT, *words], capture_output=True, text=True)
    check(done.returncode, done.stdout, done.stderr, said)
    assert everything(here) == before
