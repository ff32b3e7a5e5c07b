"""A cache changes nothing but the time: cached logits equal uncached ones, whatever the model and however the text comes in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.attention import Attention
from tinygpt.cache import KVCache, Slots, may_see, read_slots, remember, write_slots
from tinygpt.generation import generate
from tinygpt.model import GPT, GPTConfig, profile
from tinygpt.sampling import reread

V, LONGEST = 31, 40
SHAPE = dict(vocab_size=V, context_length=LONGEST, d_model=32, n_layers=2, n_heads=4, init_std=0.3)
NEAR = {  # of the largest logit: how far two ways of computing the same may lie apart
    torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1,
}  # fmt: skip
KINDS = [
    {}, {"window": 5}, {"window": 3, "n_kv_heads": 2}, {"window": 1}, {"position": "learned"}, {"position": "none"}, {"logit_cap": 5.0},
    {"qk_norm": True, "norm_position": "post"}, {"rope_layout": "interleaved"}, {"n_kv_heads": 1, "mlp": "gelu", "norm": "layernorm"},
]  # fmt: skip
SCALINGS = [None, {"rope_type": "linear", "factor": 2.0}, {"rope_type": "ntk", "factor": 3.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10}]  # fmt: skip


def build(kind: dict, dtype=torch.float32, seed=0, **changes) -> GPT:
    torch.manual_seed(seed)
    return GPT(GPTConfig(**SHAPE | kind | changes)).to(dtype).eval()


def assert_near(new: torch.Tensor, old: torch.Tensor) -> None:
    assert new.shape == old.shape and new.dtype == old.dtype
    worst = (new.double() - old.double()).abs().max() / old.double().abs().max()
    assert worst < NEAR[old.dtype], f"{worst:.1e} of the largest logit, in {old.dtype}"


def storage(cache: KVCache) -> list[int]:
    return [x.data_ptr() for x in cache.k + cache.v]


@st.composite
def models(draw) -> dict:
    position = draw(st.sampled_from(["rope", "rope", "learned", "none"]))
    kind = dict(
        position=position,
        n_kv_heads=draw(st.sampled_from([4, 2, 1])),
        window=draw(st.sampled_from([0, 1, 2, 5, 9])),
        qk_norm=draw(st.booleans()),
        logit_cap=draw(st.sampled_from([0.0, 0.0, 5.0])),
        bias=draw(st.booleans()),
        norm_position=draw(st.sampled_from(["pre", "post"])),
    )
    if position == "rope":
        kind |= dict(rope_layout=draw(st.sampled_from(["half", "interleaved"])), rope_scaling=draw(st.sampled_from(SCALINGS)))
    return kind


class Texts:
    "Rows that are read by a cache and, for comparison, anew: each text alone, from its first token."

    def __init__(self, model: GPT, B: int, pads: list[int] | None, **options):
        self.model, self.shift, self.texts = model, pads or [0] * B, [[] for _ in range(B)]
        dtype = next(model.parameters()).dtype
        self.cache = KVCache(model.cfg, B, dtype=dtype, pads=pads, **options)

    def read(self, n: int) -> None:
        "n more slots of each row, pads first; their logits are those of each text alone."
        start, new = self.cache.length, torch.randint(V, (len(self.texts), n))
        for text, shift, row in zip(self.texts, self.shift, new.tolist()):
            text += row[max(shift - start, 0) :]
        logits = self.model(new, cache=self.cache)
        assert self.cache.length == start + n and logits.isfinite().all()
        for text, row in zip(self.texts, logits):
            if fresh := min(n, len(text)):
                assert_near(row[-fresh:], self.model(torch.tensor([text]))[0, -fresh:])

    def truncate(self, n: int) -> None:
        self.cache.truncate(n)
        for text, shift in zip(self.texts, self.shift):
            del text[max(n - shift, 0) :]

    def select(self, rows: list[int]) -> None:
        self.cache.select(rows)
        self.texts, self.shift = [list(self.texts[row]) for row in rows], [self.shift[row] for row in rows]


@settings(max_examples=100)
@given(models(), st.sampled_from([torch.float64, torch.float64, torch.float32, torch.float16, torch.bfloat16]), st.data())
@torch.no_grad()
def test_cached_equals_uncached(kind, dtype, data):
    "Any model, any batch, pads or none, any chunks, truncations and selections in between."
    B = data.draw(st.integers(1, 3), "rows")
    pads = data.draw(st.none() | st.lists(st.integers(0, 7), min_size=B, max_size=B), "pads")
    slack = data.draw(st.sampled_from([0, 1, 3, LONGEST]), "slack")
    texts = Texts(build(kind, dtype), B, pads, slack=slack)
    cache, before = texts.cache, storage(texts.cache)
    assert cache.is_rolling == (0 < kind["window"] and kind["window"] + slack < LONGEST)
    while cache.length < LONGEST:
        deed = data.draw(st.sampled_from(["read", "read", "read", "truncate", "select"]), "deed")
        if deed == "read":
            n = data.draw(st.sampled_from([1, 1, 2, 3, 4, 8, 13, 26]), "tokens")
            texts.read(min(n, LONGEST - cache.length))
        elif deed == "truncate":
            reached = max(cache.length, cache.reached)
            low = 0 if reached <= cache.n_slots else max(reached - slack, 0)
            texts.truncate(data.draw(st.sampled_from([0, low]) | st.integers(min(low, cache.length), cache.length), "length"))
            if data.draw(st.booleans(), "stop"):
                break
        elif len(texts.texts) > 1:
            rows = data.draw(st.lists(st.integers(0, len(texts.texts) - 1), min_size=1, max_size=3), "rows")
            texts.select(rows)
            before = storage(cache)
    assert storage(cache) == before, "a buffer was made anew"


@pytest.mark.parametrize("kind", KINDS, ids=str)
@torch.no_grad()
def test_token_by_token_equals_at_once(kind):
    model = build(kind)
    ids = torch.randint(V, (2, LONGEST))
    cache = KVCache(model.cfg, 2)
    assert_near(torch.cat([model(ids[:, t : t + 1], cache=cache) for t in range(LONGEST)], 1), model(ids))


@pytest.mark.parametrize("window", [1, 2, 7])
@pytest.mark.parametrize("slack", [0, 2, 5])
@torch.no_grad()
def test_a_rolling_cache_equals_a_full_one(window, slack):
    "The same steps into window + slack slots and into one slot for each token: the same logits."
    model = build({"window": window}, torch.float64)
    ids = torch.randint(V, (1, LONGEST))
    rolling, full = (KVCache(model.cfg, 1, dtype=torch.float64, slack=s) for s in (slack, LONGEST))
    assert rolling.is_rolling and rolling.n_slots == window + slack and not full.is_rolling and full.n_slots == LONGEST
    start = 0
    for n in [1, 3, slack + 1, window + slack, 1, 1, slack + 1, 2, window + slack + 3, 1]:
        end = min(start + n, LONGEST)
        assert_near(*(model(ids[:, start:end], cache=cache) for cache in (rolling, full)))
        back = min(slack, end - start - 1)  # the last ones were a wrong guess
        for cache in (rolling, full):
            cache.truncate(end - back)
        start = end - back
        if start == LONGEST:
            break


def test_ages_make_the_mask_of_chapter_05():
    from tinygpt.attention import attention_mask

    for T, w in [(1, 0), (6, 0), (6, 1), (6, 3), (6, 9)]:
        assert torch.equal(may_see(torch.arange(T - 1, -1, -1), T, w), attention_mask(T, w))


@given(st.integers(0, 4), st.integers(0, 3), st.lists(st.integers(0, 6), min_size=1, max_size=3), st.lists(st.integers(1, 5), max_size=6))
def test_every_token_may_look_at_something(window, slack, pads, chunks):
    "An empty row of a mask is 0/0 in some kernels: even a pad sees itself."
    slots = Slots(GPTConfig(**SHAPE | {"window": window}), slack=slack, pads=pads)
    for T in chunks:
        mask = slots.mask(slots.positions(T))
        assert mask is None or mask.any(-1).all()
        slots.length += T


@given(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_slots_hold_the_latest(n_slots, chunks):
    buffer, end = torch.full((2, 3, n_slots, 1), -1.0), 0
    for T in chunks:
        x = torch.arange(end, end + T).float().view(1, 1, T, 1).expand(2, 3, T, 1)
        write_slots(buffer, x, end)
        end += T
        first = max(end - n_slots, 0)
        assert read_slots(buffer, first, end)[1, 2, :, 0].tolist() == list(range(first, end))
        assert all(buffer[0, 0, t % n_slots, 0] == t for t in range(first, end))


@torch.no_grad()
def test_a_window_bounds_memory_and_work():
    "3,000 tokens through a window of 16: the buffers stay where they are, and no token looks at more than 16 keys."
    model = build({"window": 16}, context_length=3001, n_layers=1)
    cache, looked, attend = KVCache(model.cfg, 1), [], Attention.attend
    before, n_bytes = storage(cache), cache.n_bytes
    assert n_bytes == 2 * 4 * 16 * 8 * 4  # k and v, heads, slots, head width, bytes of a float32

    layer = model.blocks[0].attention
    layer.attend = lambda q, k, v, plan: looked.append(k.shape[2]) or attend(layer, q, k, v, plan)
    ids = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(3000):
        ids = model(ids, cache=cache).argmax(-1)
    assert looked == [min(t + 1, 16) for t in range(3000)]
    assert storage(cache) == before and cache.n_bytes == n_bytes and cache.length == 3000


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 8])
def test_bytes_are_those_of_the_profile(kv_heads, dtype, window):
    cfg = GPTConfig(**SHAPE | dict(n_kv_heads=kv_heads, window=window))
    cache = KVCache(cfg, 3, dtype=dtype)
    assert cache.n_bytes == profile(cfg, batch_size=3, dtype=dtype).memory["kv_cache"]
    assert cache.n_bytes == 2 * 2 * kv_heads * 8 * 3 * (window or LONGEST) * dtype.itemsize
    assert KVCache(cfg, 3, max_len=6, dtype=dtype).n_bytes == 2 * 2 * kv_heads * 8 * 3 * 6 * dtype.itemsize


PROMPTS = [[[1]] * 5, [list(range(1, 10))] * 4, [[1, 2, 3, 4], [3], [5, 6]], [[4], list(range(1, 15)), [2, 2]]]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("prompts", PROMPTS, ids=["short", "long", "unequal", "very unequal"])
def test_remembering_is_reading_anew(kind, prompts):
    "Texts that end at different steps; chunks shorter than a prompt; past the context; greedy and sampled."
    model = build(kind, torch.float64)
    readers = [
        reread,
        remember,
        lambda model, limit: remember(model, limit, chunk_len=3),
        lambda model, limit: remember(model, limit, make_step=lambda model, cache: lambda ids: model(ids, cache=cache)),
    ]
    for options in ({}, {"sliding": True, "temperature": 0}):
        n_new = (20 if options.get("sliding") else 0) + LONGEST - max(map(len, prompts))
        texts = [
            generate(model, prompts, n_new, stop=[7], generator=torch.Generator().manual_seed(1), reader=reader, **options)
            for reader in readers
        ]
        assert all(text == texts[0] for text in texts)


@torch.no_grad()
def test_the_reader_gives_the_logits_of_reading_anew():
    "Also where the view is shorter than the context, and where the longest text has ended."
    model = build({}, torch.float64)
    ids = torch.randint(V, (3, 60))
    old, new = reread(model, 20), remember(model, 20)
    for step in range(30):
        rows = [0, 1, 2] if step < 9 else [1, 2] if step < 15 else [2]
        lengths = [[8, 2, 5][row] + step for row in rows]
        assert_near(new(ids[rows], lengths, rows), old(ids[rows], lengths, rows))
        if not step % 4:  # asked twice
            assert_near(new(ids[rows], lengths, rows), old(ids[rows], lengths, rows))


@torch.no_grad()
def test_prompts_that_share_a_beginning():
    model = build({}, torch.float64)
    a, b = torch.randint(V, (2, 1, 30))
    b[:, :20] = a[:, :20]
    cache = KVCache(model.cfg, 1, dtype=torch.float64)
    model(a, cache=cache)
    cache.truncate(20)
    assert_near(model(b[:, 20:], cache=cache), model(b)[:, 20:])


@pytest.mark.parametrize("kind", [{}, {"window": 3}])
def test_a_failed_forward_adds_nothing(kind):
    "Where slots are used again it may have written over what is held: then everything is read anew."
    model = build(kind, n_layers=3)
    ids = torch.randint(V, (1, 12))
    cache = KVCache(model.cfg, 1)
    with torch.no_grad():
        model(ids[:, :5], cache=cache)
        model.blocks[1].mlp.forward = lambda x: 1 / 0
        with pytest.raises(ZeroDivisionError):
            model(ids[:, 5:9], cache=cache)
        del model.blocks[1].mlp.forward
        assert cache.length == 5
        if cache.is_rolling:
            cache.truncate(0)
        at = cache.length
        assert_near(model(ids[:, at:], cache=cache), model(ids)[:, at:])


def test_no_gradient_flows_through_a_cache():
    model = build({})
    cache = KVCache(model.cfg, 1)
    for _ in range(2):
        model(torch.zeros(1, 4, dtype=torch.long), cache=cache).sum().backward()
    assert not any(x.requires_grad for x in cache.k + cache.v)


def test_inference_mode_leaves_ordinary_tensors():
    model = build({})
    with torch.inference_mode():
        cache = KVCache(model.cfg, 2, pads=[0, 1])
        model(torch.zeros(2, 4, dtype=torch.long), cache=cache)
        cache.select([0, 1, 1])
    with torch.no_grad():
        model(torch.zeros(3, 4, dtype=torch.long), cache=cache)
    assert cache.length == 8


CFG = GPTConfig(**SHAPE)
ROLLING = GPTConfig(**SHAPE | {"window": 5})
REFUSED = {
    "too long for the model": (lambda: KVCache(CFG, 1, max_len=LONGEST + 1), "max_len=41", "is not in 1..40"),
    "no slots": (lambda: KVCache(CFG, 1, max_len=0), "max_len=0", "context_length"),
    "no rows": (lambda: KVCache(CFG, 0), "batch_size=0", "give the number of rows"),
    "negative slack": (lambda: KVCache(CFG, 1, slack=-1), "slack=-1", "give"),
    "pads for other rows": (lambda: KVCache(CFG, 2, pads=[1]), "pads=[1]", "2 numbers"),
    "negative pads": (lambda: KVCache(CFG, 2, pads=[1, -1]), "pads=[1, -1]", "2 numbers"),
    "too many tokens": (lambda: filled(CFG, 1, 8, max_len=7), "8 tokens exceed max_len=7", "longer cache"),
    "past the context": (lambda: filled(CFG, 1, LONGEST, 1), "41 tokens exceed context_length=40", "longer context"),
    "other rows": (lambda: filled(CFG, 2, 3, B=1), "a batch of 1 is not the cache's 2", "select"),
    "another model": (lambda: filled(CFG, 1, 3, model=GPT(CFG.replace(n_heads=2))), "2 heads of 16", "this model's cfg"),
    "another dtype": (lambda: filled(CFG, 1, 3, dtype=torch.float16), "torch.float32", "build the cache with the model's dtype"),
    "truncate forwards": (lambda: filled(CFG, 1, 3).truncate(4), "truncate(4)", "0..3"),
    "truncate below 0": (lambda: filled(CFG, 1, 3).truncate(-1), "truncate(-1)", "0..3"),
    "too far back": (lambda: filled(ROLLING, 1, 9, slack=2).truncate(6), "goes back 3 of 9", "more slack"),
    "further and further back": (lambda: back_and_back(), "goes back 3 of 9", "more slack"),
    "no such row": (lambda: filled(CFG, 2, 3).select([0, 2]), "select([0, 2])", "0..1"),
    "no row at all": (lambda: filled(CFG, 2, 3).select([]), "select([])", "0..1"),
    "documents": (lambda: filled(CFG, 1, 3, 3, doc_ids=torch.zeros(3)), "doc_ids", "cache"),
    "chunks of nothing": (lambda: remember(GPT(CFG), None, chunk_len=0), "chunk_len=0", "1"),
}  # fmt: skip


@torch.no_grad()
def filled(cfg: GPTConfig, rows: int, *chunks: int, B: int | None = None, doc_ids=None, model=None, **options) -> KVCache:
    cache, model = KVCache(cfg, rows, **options), model or GPT(cfg)
    for i, T in enumerate(chunks):
        model(torch.zeros(B or rows, T, dtype=torch.long), cache=cache, doc_ids=doc_ids if i else None)
    return cache


def back_and_back() -> None:
    cache = filled(ROLLING, 1, 9, slack=2)
    cache.truncate(8)
    cache.truncate(6)


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_that_says_what_to_do(case):
    deed, *parts = REFUSED[case]
    with pytest.raises(ValueError) as error:
        deed()
    text = str(error.value)
    assert "\n" not in text and ";" in text and all(part in text for part in parts), text
