"""What few bits cost and save: bytes, bits per byte on two corpora, and speed at GPT-2's size.

    python bench/quantization.py                            # everything: some minutes; exit code 1 if an aim is missed
    python bench/quantization.py --parts tales              # the shipped model alone
    python bench/quantization.py --parts speed --tokens 60  # no training

tales        the shipped model on the shipped validation tales (--docs of them).
shakespeare  a model of the recipe shakespeare-char, trained here (about a minute of one core), on the last tenth of the
             text, which it has not seen. The text is not part of the project: it is looked for in TINYGPT_TEST_DATA,
             else in ../shared/data.
speed        one token at a time by the fast step (chapter 13b), in a model of GPT-2's size with random weights: 12 layers,
             768 wide, 50,257 tokens. float32, int8, int4, and float32 by calls of its modules, take turns, token by token.
             The ratio is that of the medians, and beside it that of the shortest steps: what else the machine does can only
             slow a step down. GB/s is how fast the weights are read: float32 goes as fast as memory lets it, int8 as fast
             as its kernel does, so where memory is quick the ratio is smaller. With one thread, processor time is counted:
             others may be at work.

Bytes are those of the memory that all parameters lie in: levels, scales, zeros, norms, biases, the embedding.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tinygpt import training
from tinygpt.cache import KVCache
from tinygpt.decode import DecodeStep
from tinygpt.evaluation import evaluate_text
from tinygpt.few_bits import int4_block, int8_digit
from tinygpt.model import GPT, PRESETS
from tinygpt.quantization import Int8Matrix, quantize, weight_bytes
from tinygpt.runs import load, read_config

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_DATA = Path(os.environ.get("TINYGPT_TEST_DATA") or ROOT.parent / "shared" / "data") / "tinyshakespeare.txt"
MOST_BYTES = {"int8": 0.26, "int4": 0.16}  # share of float32's
MOST_LOSS = {"int8": 0.01, "int4": 0.05}  # share of float32's bits per byte that may be added
LEAST_SPEED = {"int8": 1.8}  # times float32's


def variants(model: GPT, halves: bool = True) -> dict[str, GPT]:
    "The model in every form."
    made = {"float32": model}
    if halves:
        made |= {"bfloat16": copy.deepcopy(model).bfloat16(), "float16": copy.deepcopy(model).half()}
    made["int8"] = quantize(model, bits=8)
    if halves:  # small matrices are multiplied as floats: here as large ones are, with x rounded
        made["int8, x too"] = quantize(model, bits=8)
        for m in made["int8, x too"].modules():
            if isinstance(m, Int8Matrix):
                m.sums = torch.nn.Parameter(m.levels.sum(-1, dtype=torch.int32), requires_grad=False)
    return made | {"int4": quantize(model, bits=4)}


def compare(title: str, model: GPT, measure) -> list[str]:
    "Print bytes and bits per byte of every form; what misses its aim."
    print(f"\n{title}\n{'':11} {'bytes':>12} {'share':>7} {'bits/byte':>10} {'change':>8}")
    missed, full, base = [], weight_bytes(model), None
    for name, m in variants(model).items():
        size, bits = weight_bytes(m), measure(m)
        base = base or bits
        print(f"{name:11} {size:12,} {size / full:7.2%} {bits:10.5f} {bits / base - 1:+8.2%}", flush=True)
        if size / full > MOST_BYTES.get(name, 1):
            missed.append(f"{title}: {name} takes {size / full:.2%} of the bytes; aim {MOST_BYTES[name]:.0%}")
        if bits / base - 1 > MOST_LOSS.get(name, 0.01):
            missed.append(f"{title}: {name} adds {bits / base - 1:.2%}; aim {MOST_LOSS.get(name, 0.01):.0%}")
    return missed


def tales(n_docs: int) -> list[str]:
    model, tokenizer = load("tales")
    title = f"tales: the shipped model, {n_docs:,} validation tales"
    return compare(title, model, lambda m: evaluate_text(m, tokenizer, "tales", max_docs=n_docs).bits_per_byte)


def shakespeare(text: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        config = read_config("shakespeare-char", {"data.source": str(text)})
        quiet = dict(eval_every=10**9, eval_docs=1, sample_every=0, checkpoint_every=10**9, device="cpu", n_threads=1)
        config = replace(config, run=replace(config.run, out_dir=str(Path(folder) / "run"), **quiet))
        start = time.perf_counter()
        run = training.train(config, evaluate=lambda model, dataset: {"bits_per_byte": 0.0})
        model, tokenizer = load(run)
        unseen = training.TokenDataset(run / "data" / "val", tokenizer)
        title = f"shakespeare: recipe shakespeare-char, {time.perf_counter() - start:.0f} s, {unseen.n_text_bytes:,} unseen bytes"
        return compare(title, model, lambda m: evaluate_text(m, tokenizer, unseen).bits_per_byte)


@torch.no_grad()
def speed(n_tokens: int, n_threads: int) -> list[str]:
    cfg = PRESETS["gpt2-124m"]
    torch.manual_seed(0)
    models = variants(GPT(cfg).eval(), halves=False)
    models["modules"] = models["float32"]  # the same weights, called as in chapter 13
    torch.set_num_threads(n_threads)
    print(f"\nspeed: GPT-2's size, one text, {n_threads} threads; largest digit {int8_digit()}, nibbles in blocks of {int4_block()}")
    clock = time.process_time if n_threads == 1 else time.perf_counter
    prompt, steps, last, times = torch.randint(cfg.vocab_size, (1, 16)), {}, {}, {}
    for name, m in models.items():
        cache = KVCache(cfg, 1)
        steps[name], times[name] = partial(m, cache=cache) if name == "modules" else DecodeStep(m, cache), []
        last[name] = steps[name](prompt)[:, -1:]
    for turn in range(n_tokens + 3):
        for name, step in steps.items():
            ids = last[name].argmax(-1)
            start = clock()
            last[name] = step(ids)
            if turn >= 3:  # the first steps lay the weights out
                times[name].append(clock() - start)
    print(f"{'':10} {'bytes':>12} {'share':>7} {'ms/token':>9} {'least':>7} {'tokens/s':>9} {'GB/s':>6} {'x float32':>10} {'least':>6}")
    missed, (full, base, least) = [], (weight_bytes(models["float32"]), *middle(times["float32"]))
    for name, m in models.items():
        (median, best), size = middle(times[name]), weight_bytes(m)
        print(f"{name:10} {size:12,} {size / full:7.2%} {median * 1e3:9.2f} {best * 1e3:7.2f} {1 / median:9.1f} "
              f"{size / median / 1e9:6.1f} {base / median:9.2f}x {least / best:5.2f}x")  # fmt: skip
        if base / median < LEAST_SPEED.get(name, 0):
            missed.append(f"speed: {name} is {base / median:.2f} times as fast as float32; aim {LEAST_SPEED[name]}")
        if size / full > MOST_BYTES.get(name, 1):
            missed.append(f"speed: {name} takes {size / full:.2%} of the bytes; aim {MOST_BYTES[name]:.0%}")
    return missed


def middle(times: list[float]) -> tuple[float, float]:
    "Median and least."
    return statistics.median(times), min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["tales", "shakespeare", "speed"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--docs", type=int, default=500, help="validation tales [500]")
    parser.add_argument("--tokens", type=int, default=40, help="tokens that are timed, of each form [40]")
    parser.add_argument("--threads", type=int, default=2, help="processor threads, for speed [2]")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="tinyshakespeare.txt")
    args = parser.parse_args()
    if min(args.docs, args.tokens, args.threads) < 1:
        parser.error("--docs, --tokens and --threads must be 1 or more")
    if "shakespeare" in args.parts and not args.data.is_file():
        parser.exit(2, f"quantization: {args.data} not found; name the text by --data, its folder in TINYGPT_TEST_DATA, "
                       "or leave it out: --parts tales speed\n")  # fmt: skip
    torch.set_num_threads(1)
    missed = tales(args.docs) if "tales" in args.parts else []
    missed += shakespeare(args.data) if "shakespeare" in args.parts else []
    missed += speed(args.tokens, args.threads) if "speed" in args.parts else []
    print("\n" + ("\n".join(["missed:", *missed]) if missed else "all aims met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
