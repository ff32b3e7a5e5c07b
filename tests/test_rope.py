"""Chapter 04 against its references: transformers' rotary modules and scaling rules, and the algebra they must obey."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.rope import (LAYOUTS, Rope, cos_sin, frequencies, ntk_aware, rotate, scaled_frequencies, to_half,
                          to_interleaved)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def close(got, want, tol=1e-5):
    torch.testing.assert_close(got, want, atol=tol, rtol=tol)


def config(family, D, max_len, **rope):
    "A transformers config whose heads have D features and whose rotary parameters are `rope`."
    from transformers import LlamaConfig, MistralConfig
    make = {"llama": LlamaConfig, "mistral": MistralConfig}[family]
    return make(hidden_size=4 * D, num_attention_heads=4, head_dim=D, max_position_embeddings=max_len,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0} | rope)


# --- parity with transformers, float32 ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("D, theta", [(2, 10000.0), (24, 10000.0), (64, 500000.0), (128, 1000000.0)])
@pytest.mark.parametrize("packed", [False, True])
def test_half_layout_equals_transformers(family, D, theta, packed):
    if family == "llama":
        from transformers.models.llama import modeling_llama as m
        Rotary = m.LlamaRotaryEmbedding
    else:
        from transformers.models.mistral import modeling_mistral as m
        Rotary = m.MistralRotaryEmbedding
    B, H, K, T = 2, 4, 2, 300
    q, k = torch.randn(B, H, T, D), torch.randn(B, K, T, D)
    positions = torch.randint(0, 4000, (B, T)) if packed else torch.arange(T).expand(B, T)
    cos, sin = Rotary(config(family, D, 4096, rope_theta=theta))(q, positions)
    want_q, want_k = m.apply_rotary_pos_emb(q, k, cos, sin)
    rope = Rope(D, 4096, theta)
    close(rope(q, positions), want_q, 1e-5)
    close(rope(k, positions), want_k, 1e-5)
    tables = rope.tables(positions)
    assert torch.equal(rotate(q, *tables), rope(q, positions))
    if not packed:
        assert torch.equal(rope(q), rope(q, positions)) and torch.equal(rope(q, positions[0]), rope(q))


@pytest.mark.parametrize("D", [2, 8, 64])
def test_interleaved_layout_equals_transformers(D):
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb, create_sinusoidal_positions
    B, H, T = 2, 3, 50
    x = torch.randn(B, H, T, D)
    sin, cos = create_sinusoidal_positions(T, D).chunk(2, -1)
    want = apply_rotary_pos_emb(x.transpose(1, 2), sin[None], cos[None]).transpose(1, 2)
    close(Rope(D, T, layout="interleaved")(x), want)


GRID = [(D, theta, factor, trained) for D in (16, 24, 64, 128) for theta in (10000.0, 500000.0)
        for factor in (1.0, 2.0, 8.0, 32.0) for trained in (128, 2048, 8192)]


def reference(kind, D, theta, max_len, **rope):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    seq_len = rope.pop("seq_len", None)
    cfg = config("llama", D, max_len, rope_type=kind, rope_theta=theta, **rope)
    return ROPE_INIT_FUNCTIONS[kind](cfg, torch.device("cpu"), seq_len=seq_len)


@pytest.mark.parametrize("kind, options", [
    ("linear", {}),
    ("yarn", {}),
    ("yarn", {"beta_fast": 16.0, "beta_slow": 2.0}),
    ("yarn", {"truncate": False}),
    ("yarn", {"attention_factor": 1.25}),
    ("llama3", {"low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    ("llama3", {"low_freq_factor": 2.0, "high_freq_factor": 8.0}),
])
def test_scaling_rules_equal_transformers(kind, options):
    worst = 0.0
    for D, theta, factor, trained in GRID:
        given_ = {"rope_type": kind, "factor": factor} | options
        if kind != "linear":
            given_["original_max_position_embeddings"] = trained
        rest = {k: v for k, v in given_.items() if k != "rope_type"}
        want, gain = reference(kind, D, theta, int(factor * trained), **rest)
        got, our_gain = scaled_frequencies(D, theta, given_)
        worst = max(worst, (got - want).abs().max().item(), abs(our_gain - gain))
        torch.testing.assert_close(got, want, atol=1e-7, rtol=1e-5)
    assert worst < 1e-6, worst


def test_ntk_equals_transformers_dynamic_rule_at_one_length():
    "`dynamic` is NTK-aware with a factor that grows with the text; at a fixed length the two are one."
    for D, theta, factor, trained in GRID:
        for seq_len in (trained, int(1.5 * trained), int(4 * trained)):
            want, _ = reference("dynamic", D, theta, trained, factor=factor, seq_len=seq_len)
            now = factor * seq_len / trained - (factor - 1)
            close(ntk_aware(frequencies(D, theta), now), want, 1e-6)


@pytest.mark.parametrize("kind, options", [
    ("linear", {"factor": 4.0}),
    ("yarn", {"factor": 4.0, "original_max_position_embeddings": 64}),
    ("llama3", {"factor": 8.0, "original_max_position_embeddings": 64,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
])
def test_scaled_module_equals_transformers(kind, options):
    from transformers.models.llama import modeling_llama as m
    D, T = 32, 128  # further on, the float32 angles of both sides are off by more than 1e-5
    q, k = torch.randn(1, 2, T, D), torch.randn(1, 2, T, D)
    cos, sin = m.LlamaRotaryEmbedding(config("llama", D, T, rope_type=kind, **options))(q, torch.arange(T)[None])
    rope = Rope(D, T, scaling={"rope_type": kind} | options)
    for x, want in zip((q, k), m.apply_rotary_pos_emb(q, k, cos, sin)):
        close(rope(x), want)


# --- the algebra -------------------------------------------------------------------------------------------------

heads = st.integers(1, 16).map(lambda n: 2 * n)
layouts = st.sampled_from(LAYOUTS)


@given(heads, layouts, st.integers(0, 200), st.integers(0, 200), st.integers(0, 300), st.integers(0, 999))
def test_scores_depend_on_the_distance_alone(D, layout, m, n, shift, seed):
    torch.manual_seed(seed)
    rope = Rope(D, 512, layout=layout)
    q, k = torch.randn(2, 1, D, dtype=torch.float64)

    def score(m, n):
        return rope(q, torch.tensor([m])) @ rope(k, torch.tensor([n])).T

    torch.testing.assert_close(score(m + shift, n + shift), score(m, n), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(rope(q, torch.tensor([m])).norm(), q.norm(), atol=1e-5, rtol=1e-6)


@given(heads, st.integers(1, 5), st.integers(1, 9), st.integers(0, 999))
def test_permuted_weights_give_equal_scores_in_the_other_layout(D, H, T, seed):
    torch.manual_seed(seed)
    x, w_q, w_k = torch.randn(T, 7), torch.randn(H * D, 7), torch.randn(H * D, 7)

    def scores(w_q, w_k, layout):
        q, k = ((x @ w.T).view(T, H, D).transpose(0, 1) for w in (w_q, w_k))
        rope = Rope(D, T, layout=layout)
        return rope(q) @ rope(k).transpose(-1, -2)

    want = scores(w_q, w_k, "interleaved")
    torch.testing.assert_close(scores(to_half(w_q, D), to_half(w_k, D), "half"), want, atol=1e-4, rtol=1e-4)
    assert torch.equal(to_interleaved(to_half(w_q, D), D), w_q) and torch.equal(to_half(to_interleaved(w_q, D), D), w_q)
    bias = torch.arange(H * D)
    assert torch.equal(to_half(bias, D).sort().values, bias)


def test_permutation_is_the_one_of_transformers_own_converter():
    "The reordering that Meta's Llama weights need, as transformers' conversion script writes it."
    H, D, C = 4, 8, 32
    w = torch.randn(H * D, C)
    theirs = w.view(H, D // 2, 2, C).transpose(1, 2).reshape(H * D, C)
    assert torch.equal(to_half(w, D), theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotation_is_undone_by_the_opposite_sine(layout):
    cos, sin = cos_sin(torch.arange(9), frequencies(6), layout)
    x = torch.randn(2, 9, 6)
    close(rotate(rotate(x, cos, sin, layout), cos, -sin, layout), x, 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients(layout):
    rope = Rope(6, 9, layout=layout)
    assert torch.autograd.gradcheck(rope, torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True))


# --- the module --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tables_stay_in_float32(dtype):
    rope, fresh = Rope(16, 2048), Rope(16, 2048)
    for cast in (rope.to(dtype), copy.deepcopy(rope).half(), torch.nn.Sequential(rope).bfloat16()[0]):
        assert cast.cos.dtype == torch.float32 and torch.equal(cast.cos, fresh.cos) and torch.equal(cast.sin, fresh.sin)
    x = torch.randn(1, 2, 2048, 16)
    assert rope(x.to(dtype)).dtype == dtype
    close(rope(x.to(dtype)).float(), fresh(x), 0.02)


def test_tables_survive_the_meta_device():
    with torch.device("meta"):
        rope = Rope(8, 32)
    assert rope.cos.is_meta
    rope = rope.to_empty(device="cpu")
    assert torch.equal(rope.cos, Rope(8, 32).cos) and not rope.state_dict()


def test_positions_of_every_shape():
    B, H, T, D = 2, 3, 5, 8
    rope, x = Rope(D, 16), torch.randn(B, H, T, D)
    rows = torch.tensor([[0, 1, 2, 0, 1], [7, 8, 9, 10, 11]])
    packed = rope(x, rows)
    for b in range(B):
        for t in range(T):
            close(packed[b, :, t:t + 1], rope(x[b, :, t:t + 1], rows[b, t:t + 1]), 1e-6)
    assert torch.equal(rope(x[:, 0], rows), packed[:, 0])
    assert torch.equal(rope(x[0, 0]), rope(x)[0, 0])
    cos, sin = rope.tables(rows)
    assert cos.shape == sin.shape == (B, 1, T, D) and rope.tables(T)[0].shape == (T, D)


@pytest.mark.parametrize("call, says", [
    (lambda: Rope(7, 8), "even"),
    (lambda: Rope(0, 8), "even"),
    (lambda: Rope(8, 0), "max_len=0"),
    (lambda: Rope(8, 8, layout="hf"), "layout='hf'"),
    (lambda: Rope(8, 8, theta=0.0), "theta=0.0"),
    (lambda: Rope(8, 8)(torch.randn(1, 9, 8)), "9 tokens exceed max_len=8"),
    (lambda: Rope(8, 8)(torch.randn(1, 2, 8), torch.tensor([7, 8])), "positions 7 to 8 leave 0..7"),
    (lambda: Rope(8, 8)(torch.randn(1, 2, 8), torch.tensor([-1, 0])), "positions -1 to 0"),
    (lambda: Rope(8, 8, scaling={"rope_type": "lengthen"}), "rope_type='lengthen'"),
    (lambda: Rope(8, 8, scaling={"rope_type": "dynamic", "factor": 2.0}), "use 'ntk'"),
    (lambda: Rope(8, 8, scaling={"rope_type": "linear"}), "factor"),
    (lambda: Rope(8, 8, scaling={"rope_type": "linear", "factor": 0.5}), "factor=0.5"),
    (lambda: Rope(8, 8, scaling={"rope_type": "linear", "factor": 2.0, "fator": 1}), "fator"),
    (lambda: Rope(8, 8, scaling={"rope_type": "yarn", "factor": 2.0}), "original_max_position_embeddings"),
    (lambda: Rope(8, 8, scaling={"rope_type": "linear", "factor": 2.0, "rope_theta": 1.0}), "disagree"),
])
def test_errors_say_what_is_wrong(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_compiles_into_one_graph():
    rope, x, positions = Rope(8, 16), torch.randn(2, 3, 5, 8), torch.arange(5).expand(2, 5)
    for p in (None, positions):
        compiled = torch.compile(lambda x: rope(x, p), backend="aot_eager", fullgraph=True)
        close(compiled(x), rope(x, p), 1e-6)


def test_frequencies_by_hand():
    close(frequencies(8), torch.tensor([1.0, 0.1, 0.01, 0.001]), 1e-7)
    assert math.isclose(frequencies(64)[-1].item(), 10000 ** (-62 / 64), rel_tol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    rope, x = Rope(16, 64), torch.randn(2, 3, 20, 16)
    here = rope(x)
    there = rope.cuda()(x.cuda(), torch.arange(20, device="cuda"))
    close(there.cpu(), here)
