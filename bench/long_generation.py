"""A text without end: a model with a sliding window writes 20,000 tokens; what each thousand costs, in time and in memory.

    python bench/long_generation.py          # exit code 1 if the time per token or the memory grows
    python bench/long_generation.py --window 0 --tokens 4000     # for comparison: no window, so both grow

The model is the preset "small" with random weights, a window of 64 and a context_length that is long enough: that
costs nothing but longer tables for rope. `tinygpt.stream` is called as everyone calls it. Memory is what the process
holds (resident set), and what the buffers of the cache hold.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time

import torch

import tinygpt
from tinygpt.cache import KVCache

SLOWER, MORE = 1.15, 4.0  # the last thousands may cost at most so many times the first ones; and so many MB more
GLUED = 5.0  # gluing a token to 1,023 others takes at least so many times as long as writing it into a buffer


def resident_mb() -> float:
    "Memory that this process holds now, MB."
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096 / 1e6
    except OSError:  # no Linux: the most that it ever held
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def gluing() -> float:
    "How many times as long it takes to glue a token to 1,023 others as to write it to its slot (chapter 13)."
    buffer, new = torch.zeros(16, 12, 1024, 64), torch.randn(16, 12, 1, 64)  # (B, K, S, D), (B, K, 1, D)
    held, best = buffer[:, :, :-1].clone(), [float("inf")] * 2
    for _ in range(20):
        for i, f in enumerate((lambda: torch.cat([held, new], 2), lambda: buffer.narrow(2, 1023, 1).copy_(new))):
            start = time.perf_counter()
            f()
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0] / best[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--every", type=int, default=1000, help="tokens between two lines")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = tinygpt.GPT(tinygpt.PRESETS["small"].replace(window=args.window, context_length=args.tokens + 1)).eval()
    new = tinygpt.stream(model, [0], args.tokens, generator=torch.Generator().manual_seed(0))
    print(f"{args.tokens:,} tokens, window of {args.window or 'everything'}, {torch.get_num_threads()} threads")
    times, quick, memory, held, marks = [], [], [], set(), [time.perf_counter()]
    for n, _ in enumerate(new, 1):
        marks.append(time.perf_counter())
        if n % args.every:
            continue
        each = sorted(1000 * (b - a) for a, b in zip(marks, marks[1:]))  # ms
        times.append(statistics.median(each))
        quick.append(each[len(each) // 5])  # a fifth is quicker: other work on the machine hardly touches it
        memory.append(resident_mb())
        (cache,) = [x for x in gc.get_objects() if type(x) is KVCache]
        held.add((cache.n_bytes, *(x.data_ptr() for x in cache.k + cache.v)))
        print(f"{n:8,} tokens: {times[-1]:6.2f} ms per token, {memory[-1]:6.1f} MB, cache {cache.n_bytes / 1e6:.2f} MB", flush=True)
        marks = [time.perf_counter()]

    third = max(len(quick) // 3, 1)
    slower = statistics.median(quick[-third:]) / statistics.median(quick[:third])
    more = memory[-1] - memory[0]
    print(f"last third against first: {slower:.2f} times the time per token (at most {SLOWER}), {more:+.1f} MB (at most {MORE})")
    print(f"buffers of the cache: {'never moved' if len(held) == 1 else 'moved'}")
    glued = gluing()
    print(f"a token glued to 1,023 others: {glued:.0f} times the time of writing it into a buffer (at least {GLUED:.0f})")
    return 0 if slower <= SLOWER and more <= MORE and len(held) == 1 and glued >= GLUED else 1


if __name__ == "__main__":
    sys.exit(main())
