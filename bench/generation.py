"""How fast we write, beside transformers: the same weights, threads and prompts, in turns, in one run.

    python bench/generation.py                     # both sizes; minutes
    python bench/generation.py --quick             # seconds: does it run, are the texts equal?
    python bench/generation.py --sizes small --compile           # transformers' compiled step as well (we have none)

A Llama with random weights is made by transformers and read by `from_hf`. Everybody gets the same prompts and writes
greedily; the texts must be equal. Random weights now and then score two tokens alike to the last bits, and then two
right implementations may part: the first token that differs is looked up in transformers' own logits of that text, and
counts as a tie only if the two scores are as near as rounding. Anything else makes the exit code 1.

tokens/s     new tokens of all texts by the seconds of the whole call, prompt included, in the fastest of the rounds:
             what else the machine does can only slow a round down. Everybody runs once in every round.
/ dynamic    how often as fast as transformers' generate with its default cache; / static: with its static cache, whose
             buffers are allocated once; / compiled (with --compile): with its static cache and its compiled forward.
step         milliseconds from one token to the next, the prompt left aside (a call for one token is timed as well).
bandwidth    bytes that a step must read (every weight once, the keys and values so far), per second of it, as a share of
             what this machine read in this run when it summed up one large tensor. A model that fits into the
             processor's cache can be above 100 %.
where        shares of the call's time: the prompt; in the steps the products with the layers' matrices, the kernels of
             attention, the product with the table of tokens, the choice of a token, and the rest: norms, rotations,
             copies, and Python. The operators are timed by torch's profiler in a short call of their own; the rest is
             what they leave of the time without a profiler. (Compiled code hides its operators.)

With several threads, run it when nothing else runs: a thread that is interrupted makes all others wait, and everybody's
figures become those of the interruptions. With --threads 1, processor time is counted, and others may be at work.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler prints when it starts and stops

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import tinygpt
from tinygpt.interop import from_hf

SIZES = {
    "small": dict(vocab_size=4096, hidden_size=256, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
                  intermediate_size=688),
    "gpt2": dict(vocab_size=50257, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
                 intermediate_size=2048),
}  # fmt: skip
CONTEXT = 1024
AIMS = {  # (size, who): times the faster of transformers' eager caches, at batch 1 and at batch 16
    ("small", "ours"): (1.7, 1.5), ("gpt2", "ours"): (1.4, 1.5),
}  # fmt: skip
PARTS = ("prompt", "matrices", "attention", "head", "choice", "rest")
N_PROFILED = 16  # steps under the profiler

Write = Callable[[Tensor, int], Tensor]  # ids (B, T), how many more -> ids (B, T + new)


# --- who takes part ---------------------------------------------------------------------------------------------------


def make_theirs(size: str, seed: int = 0):
    "A Llama of transformers whose layers matter: with weights as at the start of training, a text repeats one token."
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(**SIZES[size], max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, tie_word_embeddings=True,
                         bos_token_id=None, eos_token_id=None, pad_token_id=0)  # fmt: skip
    model = LlamaForCausalLM(config)  # attention: sdpa, the fused kernel, is its default
    for name, p in model.named_parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.1 if "embed" in name else 1.5 * p.shape[1] ** -0.5)
    return model.eval()


def theirs_with(model, cache: str | None, compiled: bool = False) -> Write:
    "transformers' generate, set up as its manual advises for greedy writing."
    from transformers import CompileConfig, GenerationConfig

    options = dict(do_sample=False, use_cache=True, cache_implementation=cache, pad_token_id=0, disable_compile=not compiled)
    if compiled:  # generate compiles by itself only on a GPU
        options["compile_config"] = CompileConfig(fullgraph=False, dynamic=None, mode="default")
        options["compile_config"]._compile_all_devices = True

    @torch.inference_mode()
    def write(ids: Tensor, n_new: int) -> Tensor:
        settings = GenerationConfig(max_new_tokens=n_new, **options)
        return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)

    return write


def ours_with(model, **options) -> Write:
    def write(ids: Tensor, n_new: int) -> Tensor:
        return tinygpt.generate(model, ids, n_new, temperature=0, **options)

    return write


def contestants(theirs, ours, compiled: bool) -> dict[str, Write]:
    out = {"ours": ours_with(ours), "dynamic": theirs_with(theirs, None), "static": theirs_with(theirs, "static")}
    if compiled:
        out["compiled"] = theirs_with(theirs, "static", True)
    return out


# --- measuring --------------------------------------------------------------------------------------------------------


def seconds(f: Callable[[], object]) -> tuple[float, object]:
    "How long a call takes; with one thread, processor time is counted, since others may be at work."
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    out = f()
    return clock() - start, out


def read_speed(n_bytes: int = 2**29, rounds: int = 5) -> float:
    "Bytes per second of a sum over one large tensor, the best of some."
    x = torch.ones(n_bytes // 4)
    return n_bytes / min(seconds(x.sum)[0] for _ in range(rounds))


@dataclass
class Timing:
    "What one contestant needed for one kind of work."

    wholes: list[float] = field(default_factory=list)  # seconds for the prompt and all new tokens, a round each
    prompts: list[float] = field(default_factory=list)  # seconds for the prompt and one token
    text: Tensor | None = None

    @property
    def whole(self) -> float:
        return min(self.wholes)

    @property
    def prompt(self) -> float:
        return min(*self.prompts, self.whole)


def race(writers: dict[str, Write], ids: Tensor, n_new: int, rounds: int, patience_s: float) -> dict[str, Timing]:
    "Everybody once in every round, each round begun by somebody else; no new round when patience is at its end."
    timings, names, spent = {name: Timing() for name in writers}, list(writers), 0.0
    for name, write in writers.items():  # imports, first allocations and compilation happen before the race
        write(ids, n_new) if "compiled" in name else write(ids[:, :8], 4)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            t = timings[name]
            t.prompts.append(seconds(lambda: writers[name](ids, 1))[0])
            took, t.text = seconds(lambda: writers[name](ids, n_new))
            t.wholes.append(took)
            spent += took + t.prompts[-1]
        if spent > patience_s:
            break
    return timings


PRODUCTS = {  # operator -> which inputs are multiplied
    "aten::mm": (0, 1), "aten::addmm": (1, 2), "aten::addmm_": (1, 2), "aten::mv": (1, 0), "aten::addmv": (2, 1),
    "aten::bmm": (0, 1), "aten::baddbmm": (1, 2), "aten::baddbmm_": (1, 2), "mkldnn::_linear_pointwise": (0, 1),
    "aten::mkldnn_linear": (0, 1),
}  # fmt: skip
CHOICE = ("aten::argmax", "aten::amax", "aten::max", "aten::topk", "aten::_local_scalar_dense")


def kind_of(op: str, shapes: list[list[int]], batch: int, cfg) -> str | None:
    "The part of a step that an operator belongs to, by its name and its inputs' shapes; None: the rest, or the prompt."
    if op in PRODUCTS:
        a, b = (shapes[i] for i in PRODUCTS[op])
        if len(a) == len(b) == 3 and a[0] == batch * cfg.kv_heads and cfg.head_width in (a[-1], b[-1]) and a[-2] <= cfg.n_heads:
            return "attention"  # queries and keys, weights and values
        widths = {cfg.d_model, cfg.mlp_width, cfg.n_heads * cfg.head_width}  # what a weight multiplies
        a_pieces, b_pieces = (s[0] if len(s) == 3 else 1 for s in (a, b))
        if a[-2] * a_pieces > batch and b[-1] == batch and a[-1] in widths:  # W xᵀ, in pieces
            d_out = a[-2] * a_pieces
        elif a[-2] == batch and a[-1] in widths and b[-1] * b_pieces > batch:  # x Wᵀ
            d_out = b[-1] * b_pieces
        elif op in ("mkldnn::_linear_pointwise", "aten::mkldnn_linear") and batch in (a[-2], b[-2]):  # weights are (d_out, d_in)
            d_out = a[-2] if b[-2] == batch else b[-2]
        else:
            return None  # the prompt, rotations, sums of squares
        return "head" if cfg.vocab_size - d_out in range(16) else "matrices"
    if op.startswith("aten::_scaled_dot_product") or op == "aten::_softmax":
        return "attention" if shapes[0][-2] <= cfg.n_heads else None  # more queries: a prompt
    return "choice" if op in CHOICE else None


def where(write: Write, ids: Tensor, n_new: int, timing: Timing, cfg) -> dict[str, float]:
    "Shares of the whole call: the prompt, and each part of a step times the number of steps."
    n_steps, groups = min(N_PROFILED, n_new - 1), {}
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as watched:
        write(ids, 1 + n_steps)
    for event in watched.events():
        kind = kind_of(event.name, event.input_shapes, len(ids), cfg)
        if kind:
            groups.setdefault((kind, event.name, str(event.input_shapes)), []).append(event.self_cpu_time_total / 1e6)
    out = dict.fromkeys(PARTS, 0.0)
    for (kind, *_), times in groups.items():  # the lower quartile: a call that was interrupted says nothing
        out[kind] += sorted(times)[len(times) // 4] * len(times)
    for kind in ("head", "choice"):  # the prompt ends with one of each, too
        out[kind] *= n_steps / (n_steps + 1)
    grown = (ids.shape[1] + n_new / 2) / (ids.shape[1] + n_steps / 2)  # keys in all steps by keys in these
    out = {k: v * (n_new - 1) / max(n_steps, 1) * (grown if k == "attention" else 1) for k, v in out.items()}
    out["prompt"] = timing.prompt
    out["rest"] = max(timing.whole - sum(out.values()), 0.0)
    return {k: v / max(timing.whole, sum(out.values())) for k, v in out.items()}


# --- are the texts equal? ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def parting(theirs, a: Tensor, b: Tensor, n_prompt: int) -> tuple[int, float]:
    "Rows that differ, and the widest gap between the two scores at their first difference, by the greatest score there."
    rows, widest = (a != b).any(1).nonzero()[:, 0].tolist(), 0.0
    for r in rows:
        at = int((a[r] != b[r]).nonzero()[0])
        scores = theirs(a[r : r + 1, :at], logits_to_keep=1).logits[0, -1]
        gap = (scores[a[r, at]] - scores[b[r, at]]).abs() / scores.abs().max()
        widest = max(widest, gap.item()) if at >= n_prompt else float("inf")
    return len(rows), widest


TIE = 2e-5  # of the greatest score: some hundred times float32's step, as a sum over layers may round


# --- the page ---------------------------------------------------------------------------------------------------------


def step_bytes(cfg, batch: int, n_prompt: int, n_new: int) -> float:
    "Bytes that a step reads, on average: the weights once, and every text's keys and values."
    weights = sum(tinygpt.model.count_params(cfg).values())
    cached = 2 * cfg.n_layers * cfg.kv_heads * cfg.head_width * batch * (n_prompt + n_new / 2)
    return 4 * (weights + cached)


def report(size, cfg, batch, n_prompt, n_new, timings, shares, speed) -> None:
    theirs = [name for name in ("dynamic", "static", "compiled") if name in timings]
    head = "".join(f"{'/ ' + name:>11}" for name in theirs)
    print(f"\n{size}, batch {batch}, prompt {n_prompt}, {n_new} new tokens")
    print(f"  {'':14}{'tokens/s':>9}{head}{'step ms':>9}{'bandwidth':>10}   where: " + "".join(f"{p:>10}" for p in PARTS))
    for name, t in timings.items():
        label = name if name.startswith("ours") else f"hf {name}"
        ratios = "".join(f"{timings[other].whole / t.whole:11.2f}" for other in theirs)
        step = (t.whole - t.prompt) / max(n_new - 1, 1)
        used = step_bytes(cfg, batch, n_prompt, n_new) / step / speed
        parts = "".join(f"{shares[name][p]:10.0%}" for p in PARTS) if name in shares else ""
        print(f"  {label:14}{batch * n_new / t.whole:9.1f}{ratios}{1000 * step:9.2f}{used:10.0%}{'':10}{parts}", flush=True)


def measure(size: str, args, speed: float) -> tuple[bool, list[str]]:
    "Race at all settings of one size. Whether all texts were equal, and how the aims were met."
    theirs = make_theirs(size)
    ours = from_hf(theirs)
    writers, equal, verdicts = contestants(theirs, ours, args.compile), True, []
    weights = sum(p.numel() for p in ours.parameters())
    print(f"\n== {size}: {weights / 1e6:.1f} M parameters, {4 * weights / 1e6:.0f} MB in float32")
    for batch in args.batches:
        for n_prompt in args.prompts:
            g = torch.Generator().manual_seed(1)
            ids = torch.randint(1, ours.cfg.vocab_size, (batch, n_prompt), generator=g)
            timings = race(writers, ids, args.new, args.repeats, args.patience)
            shown = [n for n in ("ours", "dynamic") if n in timings]
            shares = {n: where(writers[n], ids, args.new, timings[n], ours.cfg) for n in shown}
            report(size, ours.cfg, batch, n_prompt, args.new, timings, shares, speed)
            base = timings["dynamic"].text
            n_kinds = torch.unique(base[:, n_prompt:]).numel()
            for name, t in timings.items():
                n, gap = parting(theirs, base, t.text, n_prompt)
                if n:
                    print(f"  {name}: {n} of {batch} texts part from the dynamic one, at scores {gap:.0e} apart: "
                          + ("ties" if gap < TIE else "NOT EQUAL"))  # fmt: skip
                equal &= gap < TIE
            print(f"  greedy texts compared: {batch} of {args.new} tokens, {n_kinds} different ones")
            for name, t in timings.items():
                if (size, name) in AIMS:
                    ratio = min(timings["dynamic"].whole, timings["static"].whole) / t.whole
                    aim = AIMS[size, name][batch > 1]
                    verdicts.append(f"{size}, batch {batch}, prompt {n_prompt}: {name} {ratio:.2f} times transformers'"
                                    f" best eager, aim {aim}{'' if ratio >= aim else ', MISSED'}")  # fmt: skip
    return equal, verdicts


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="small: 6 layers, 256 wide; gpt2: 12 layers, 768 wide")
    p.add_argument("--batches", nargs="+", type=int, default=[1, 16], help="texts at a time (1 16)")
    p.add_argument("--prompts", nargs="+", type=int, default=[32, 512], help="tokens in each prompt (32 512)")
    p.add_argument("--new", type=int, default=256, help="tokens to write (256)")
    p.add_argument("--repeats", type=int, default=3, help="rounds at most; the fastest counts (3)")
    p.add_argument("--patience", type=float, default=20, help="no further round at a setting after so many seconds (20)")
    p.add_argument("--threads", type=int, default=0, help="for everybody (as many as torch takes by itself)")
    p.add_argument("--compile", action="store_true", help="also theirs with torch.compile; adds minutes")
    p.add_argument("--quick", action="store_true", help="the small size, 32 new tokens, one round")
    args = p.parse_args(argv)
    if args.quick:
        args.sizes, args.batches, args.prompts, args.new, args.repeats = ["small"], [1, 2], [32], 32, 1
    for name in ("batches", "prompts", "new", "repeats"):
        if min([getattr(args, name)] if isinstance(getattr(args, name), int) else getattr(args, name)) < 1:
            p.error(f"--{name} must be at least 1")
    if args.threads < 0:
        p.error("--threads must be at least 1, or 0 for torch's own choice")
    if max(args.prompts) + args.new > CONTEXT:
        p.error(f"--prompts {max(args.prompts)} and --new {args.new} exceed the context of {CONTEXT}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    import transformers

    transformers.logging.set_verbosity_error()
    if args.threads:
        torch.set_num_threads(args.threads)
    speed = read_speed()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads; "
          f"a large read: {speed / 1e9:.1f} GB/s")  # fmt: skip
    equal, verdicts = True, []
    for size in args.sizes:
        same, lines = measure(size, args, speed)
        equal, verdicts = equal and same, verdicts + lines
    print("\n" + "\n".join(verdicts))
    print("all texts equal, ties aside" if equal else "TEXTS DIFFER")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
