"""Attention over a grid of shapes: every fast path against the written-out formula, and what must not leak.

    python tests/test_attention.py      # the parity figures as a table
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.attention import (
    Attention,
    AttentionConfig,
    attention_mask,
    attention_weights,
    capture_attention,
    plan_attention,
    repeat_heads,
    scaled_dot_product_attention,
    set_dropout,
)

close = torch.testing.assert_close


def config(**changes) -> AttentionConfig:
    return AttentionConfig(**{**dict(d_model=32, n_heads=4, context_length=160), **changes})


def layer(seed=0, **changes) -> Attention:
    torch.manual_seed(seed)
    return Attention(config(**changes)).eval()


def documents(seed: int, B: int, T: int) -> torch.Tensor:
    "Documents of random lengths, (B, T)."
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(B, T, generator=g) < 0.15).cumsum(1)


@given(
    st.lists(st.integers(1, 3), max_size=3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 8),
    st.booleans(),
    st.integers(0, 99),
)
def test_written_out_equals_torch(lead, T, S, D, masked, seed):
    torch.manual_seed(seed)
    q, k, v = torch.randn(*lead, T, D), torch.randn(*lead, S, D), torch.randn(*lead, S, D)
    mask = torch.rand(*lead, T, S) < 0.6 if masked else None
    if masked:
        mask[..., 0] = True  # torch promises nothing for an empty row
    close(scaled_dot_product_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e15])
def test_empty_rows_are_zeros_even_for_great_scores(size):
    q = torch.randn(2, 3, 4) * size
    q.requires_grad_()
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    y = scaled_dot_product_attention(q, q, torch.randn(2, 3, 4), mask)
    assert y.isfinite().all() and (y[:, 1] == 0).all()
    y.sum().backward()
    assert not q.grad.isnan().any()


@given(
    st.sampled_from([(4, 4), (4, 2), (4, 1), (6, 3), (1, 1)]),
    st.integers(0, 20),
    st.integers(1, 70),
    st.sampled_from([None, "one", "batch"]),
    st.sampled_from([0.0, 5.0]),
    st.integers(0, 99),
)
def test_every_path_equals_the_masked_formula(heads, window, T, docs, cap, seed):
    H, K = heads
    B, D = 2, 6
    cfg = config(d_model=H * D, n_heads=H, n_kv_heads=K, window=window, position="none", logit_cap=cap)
    torch.manual_seed(seed)
    attn = Attention(cfg)
    q, k, v = (torch.randn(B, n, T, D) for n in (H, K, K))
    doc_ids = None if docs is None else documents(seed, B, T) if docs == "batch" else documents(seed, 1, T)[0]
    plan = plan_attention(cfg, None, B, T, doc_ids=doc_ids)
    mask = attention_mask(T, window, doc_ids)
    close(plan.dense_mask().expand(B, 1, T, T), mask.expand(B, 1, T, T))
    wanted = attention_weights(q, repeat_heads(k, H), mask, cap) @ repeat_heads(v, H)
    close(attn.attend(q, k, v, plan), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window,docs", list(itertools.product([0, 3, 16, 40, 96], [False, True])))
def test_gradients_of_every_path_equal_the_masked_formula(window, docs):
    T, doc_ids = 100, documents(1, 2, 100) if docs else None
    attn = layer(n_kv_heads=2, window=window)
    x = torch.randn(2, T, 32, requires_grad=True)
    (fast,) = torch.autograd.grad(attn(x, doc_ids=doc_ids).square().sum(), x)
    plan = plan_attention(attn.cfg, attn.rope, 2, T)._replace(
        causal=False, blocks=None, mask=attention_mask(T, window, doc_ids)
    )
    (slow,) = torch.autograd.grad(attn(x, plan=plan).square().sum(), x)
    close(fast, slow, atol=1e-4, rtol=1e-4)


@given(st.integers(0, 40), st.integers(2, 90), st.booleans(), st.sampled_from(["rope", "none"]), st.integers(0, 99))
def test_influence_goes_where_the_mask_says_and_nowhere_else(window, T, docs, position, seed):
    attn = layer(window=window, n_kv_heads=2, position=position)
    doc_ids = documents(seed, 1, T) if docs else None
    g = torch.Generator().manual_seed(seed)
    x, j = torch.randn(1, T, 32, generator=g), int(torch.randint(T, (1,), generator=g))
    moved = x.clone()
    moved[0, j] += 1.0
    with torch.no_grad():
        change = (attn(moved, doc_ids=doc_ids) - attn(x, doc_ids=doc_ids)).abs().amax(-1)[0]  # (T,)
    may = attention_mask(T, window, doc_ids).expand(1, 1, T, T)[0, 0, :, j]
    assert (change[~may] == 0).all()
    assert (change[may] > 0).all()


@pytest.mark.parametrize("window", [0, 5])
def test_packed_documents_equal_documents_alone(window):
    attn = layer(window=window, n_kv_heads=1)
    parts = [torch.randn(1, n, 32) for n in (7, 1, 30, 12)]
    doc_ids = torch.cat([torch.full((1, p.shape[1]), i) for i, p in enumerate(parts)], 1)
    positions = torch.cat([torch.arange(p.shape[1]) for p in parts])[None]
    packed = attn(torch.cat(parts, 1), positions=positions, doc_ids=doc_ids)
    close(packed, torch.cat([attn(p) for p in parts], 1), atol=1e-5, rtol=1e-5)
    # positions are relative: without restarting them the answer is the same, up to rounding
    close(attn(torch.cat(parts, 1), doc_ids=doc_ids), packed, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("H,K", [(4, 2), (4, 1), (8, 2)])
def test_grouped_heads_equal_repeated_heads(H, K):
    grouped = layer(n_heads=H, n_kv_heads=K)
    full = layer(n_heads=H)
    D = grouped.cfg.head_width
    weights = grouped.state_dict()
    for name in ("k", "v"):  # every group's rows, once per query head
        w = weights[f"{name}.weight"].unflatten(0, (K, D))
        weights[f"{name}.weight"] = w.repeat_interleave(H // K, 0).flatten(0, 1)
    full.load_state_dict(weights)
    x = torch.randn(2, 33, 32)
    close(grouped(x), full(x), atol=1e-5, rtol=1e-5)


class ListCache:
    "The smallest thing that keeps the promise in Attention's docstring."

    def __init__(self):
        self.kv, self.length = {}, 0

    def positions(self, n_tokens):
        return torch.arange(self.length, self.length + n_tokens) if self.length else None

    def mask(self, positions, window):
        s = torch.arange(int(positions.max()) + 1)
        back = positions[:, None] - s
        return (back >= 0) & (back < (window or len(s)))

    def update(self, layer, k, v, positions):
        if layer in self.kv:
            k, v = torch.cat([self.kv[layer][0], k], 2), torch.cat([self.kv[layer][1], v], 2)
        self.kv[layer] = k, v
        self.length = k.shape[2]
        return k, v


@pytest.mark.parametrize("window,cap,chunks", list(itertools.product([0, 4], [0.0, 10.0], [(1,) * 20, (7, 7, 6), (19, 1)])))
def test_a_cache_gives_what_one_pass_gives(window, cap, chunks):
    attn, x, cache = layer(window=window, n_kv_heads=2, logit_cap=cap), torch.randn(2, 20, 32), ListCache()
    parts = [attn(part, cache=cache) for part in x.split(chunks, 1)]
    close(torch.cat(parts, 1), attn(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window,docs,cap", list(itertools.product([0, 3], [False, True], [0.0, 2.0])))
def test_captured_weights_are_the_ones_that_were_used(window, docs, cap):
    attn = layer(window=window, n_kv_heads=2, logit_cap=cap, qk_norm=True)
    x, doc_ids = torch.randn(2, 24, 32), documents(3, 2, 24) if docs else None
    plain = attn(x, doc_ids=doc_ids)
    with capture_attention(attn) as maps:
        assert torch.equal(attn(x, doc_ids=doc_ids), plain)
        with capture_attention(attn) as inner:
            attn(x, doc_ids=doc_ids)
        attn(x, doc_ids=doc_ids)
    attn(x, doc_ids=doc_ids)
    assert len(maps) == 3 and len(inner) == 1
    assert "attend" not in vars(attn)  # nothing stays behind
    v = repeat_heads(attn.v(x).view(2, 24, 2, 8).transpose(1, 2), 4)
    close(attn.o((maps[0] @ v).transpose(1, 2).flatten(2)), plain, atol=1e-5, rtol=1e-5)


def test_capture_cleans_up_after_an_error():
    attn = layer()
    with pytest.raises(RuntimeError), capture_attention(attn):
        raise RuntimeError
    assert "attend" not in vars(attn)


@pytest.mark.parametrize("window,cap", [(0, 0.0), (4, 0.0), (0, 5.0)])
def test_dropout_drops_in_training_only_and_can_be_annealed(window, cap):
    attn, x = layer(dropout=0.5, window=window, logit_cap=cap), torch.randn(1, 30, 32)
    assert torch.equal(attn(x), attn(x))
    attn.train()
    torch.manual_seed(0)
    outs = torch.stack([attn(x) for _ in range(600)])
    assert not torch.equal(outs[0], outs[1])
    still = attn.eval()(x)
    close(outs.mean(0), still, atol=0.2, rtol=0)  # unbiased
    set_dropout(attn.train(), 0.0)
    close(attn(x), still)


def test_bf16_follows_float32():
    attn, x = layer(n_kv_heads=2, qk_norm=True), torch.randn(2, 40, 32)
    for window in (0, 4):
        half = layer(n_kv_heads=2, qk_norm=True, window=window).bfloat16()
        full = layer(n_kv_heads=2, qk_norm=True, window=window)
        y = half(x.bfloat16())
        assert y.dtype == torch.bfloat16
        close(y.float(), full(x), atol=0.05, rtol=0.05)
        with torch.autocast("cpu", torch.bfloat16):
            close(full(x).float(), full(x.float()).float(), atol=0.05, rtol=0.05)


BAD = [
    (dict(d_model=30), "n_heads=4 does not divide d_model=30"),
    (dict(n_kv_heads=3), "n_kv_heads=3 does not divide n_heads=4"),
    (dict(n_kv_heads=0), "n_kv_heads=0 must be finite and at least 1"),
    (dict(window=-1), "window=-1 must be finite and at least 0"),
    (dict(d_head=5), "d_head=5 is odd"),
    (dict(dropout=1.0), "dropout=1.0 is outside"),
    (dict(position="rotary"), "position='rotary' must be rope or learned or none"),
    (dict(n_heads="4"), "n_heads='4' must be int"),
    (dict(n_heads=True), "n_heads=True must be int"),
    (dict(context_length=0), "context_length=0 must be"),
    (dict(rope_theta=float("nan")), "rope_theta=nan is not a positive number"),
    (dict(norm_eps=0), "norm_eps=0 is not a positive number"),
    (dict(bias=None), "bias=None must be bool"),
    (dict(rope_scaling=2), "rope_scaling=2 must be dict or None"),
]


@pytest.mark.parametrize("changes,message", BAD, ids=[str(b[0]) for b in BAD])
def test_configs_that_cannot_be_built(changes, message):
    with pytest.raises(ValueError) as e:
        config(**changes)
    assert message in str(e.value) and str(e.value).startswith("AttentionConfig: ") and ";" in str(e.value)


def test_more_tokens_than_the_context_holds():
    with pytest.raises(ValueError, match="9 tokens exceed context_length=8; shorten"):
        layer(context_length=8)(torch.randn(1, 9, 32))


# --- beside transformers ------------------------------------------------------------------------------------------


def hf_attention(name: str):
    "One attention layer of transformers with random weights: (run(x) -> y, ours with the same weights)."
    import transformers as hf
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
    from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

    torch.manual_seed(0)
    shape = dict(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=1e-5)
    shape |= dict(max_position_embeddings=64, attn_implementation="eager")
    common = dict(d_model=48, n_heads=6, n_kv_heads=2, context_length=64)
    if name == "gpt2":
        theirs = GPT2Attention(
            hf.GPT2Config(n_embd=48, n_head=6, n_positions=64, attn_pdrop=0, resid_pdrop=0, attn_implementation="eager"), layer_idx=0
        )
        ours = Attention(AttentionConfig(d_model=48, n_heads=6, context_length=64, position="none", bias=True))
        rotary = None
    else:
        kind, layer_kind, rotary_kind, extra = {
            "llama": (hf.LlamaConfig, LlamaAttention, LlamaRotaryEmbedding, {}),
            "mistral": (hf.MistralConfig, MistralAttention, MistralRotaryEmbedding, dict(window=7)),
            "qwen3": (hf.Qwen3Config, Qwen3Attention, Qwen3RotaryEmbedding, dict(qk_norm=True)),
        }[name]
        options = dict(sliding_window=7) if name == "mistral" else dict(head_dim=8) if name == "qwen3" else {}
        config = kind(**shape, **options)
        theirs, rotary, ours = layer_kind(config, layer_idx=0), rotary_kind(config), Attention(AttentionConfig(**common, **extra))
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    weights = {}
    for key, w in theirs.state_dict().items():
        if key.startswith("c_attn"):
            weights |= {key.replace("c_attn", n): part.T if part.ndim > 1 else part for n, part in zip("qkv", w.chunk(3, -1))}
        elif key.startswith("c_proj"):
            weights[key.replace("c_proj", "o")] = w.T if w.ndim > 1 else w
        elif "proj" in key or "norm" in key:
            weights[key.replace("_proj", "")] = w
    ours.load_state_dict(weights)

    def run(x):
        T = x.shape[1]
        mask = attention_mask(T, ours.cfg.window)
        mask = torch.zeros(1, 1, T, T).masked_fill(~mask, torch.finfo(torch.float32).min)
        if rotary is None:
            return theirs(x, attention_mask=mask)[0]
        return theirs(hidden_states=x, position_embeddings=rotary(x, torch.arange(T)[None]), attention_mask=mask)[0]

    return run, ours


def parity(name: str) -> float:
    "The greatest difference between transformers' attention layer and ours."
    run, ours = hf_attention(name)
    x = torch.randn(2, 40, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (run(x) - ours(x)).abs().max().item()


FAMILIES = ["llama", "mistral", "qwen3", "gpt2"]


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_transformers(name):
    assert parity(name) < 1e-5


if __name__ == "__main__":
    for name in FAMILIES:
        print(f"attention {name:10} {parity(name):.1e}")
