"""Chapter 03 against its references: transformers' own modules, torch's functions in float64, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinygpt.layers import (Embedding, GeluMLP, LayerNorm, Linear, RMSNorm, SwiGLU, cross_entropy, gelu, silu,
                            softmax)

SHAPES = [(4,), (2, 3, 8), (2, 5, 64), (1, 1, 96), (3, 2, 4, 33)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def close(got, want, tol=1e-5):
    torch.testing.assert_close(got, want, atol=tol, rtol=tol)


def grads(out, inputs, g):
    return torch.autograd.grad(out, inputs, g)


# --- parity with transformers, random weights, float32 ---------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_rms_norm_equals_transformers(family, shape, eps):
    if family == "llama":
        from transformers.models.llama.modeling_llama import LlamaRMSNorm as Theirs
    else:
        from transformers.models.mistral.modeling_mistral import MistralRMSNorm as Theirs
    C = shape[-1]
    theirs, ours = Theirs(C, eps=eps), RMSNorm(C, eps)
    with torch.no_grad():
        theirs.weight.normal_()
        ours.weight.copy_(theirs.weight)
    x, g = torch.randn(shape, requires_grad=True), torch.randn(shape)
    close(ours(x), theirs(x))
    for a, b in zip(grads(ours(x), (x, ours.weight), g), grads(theirs(x), (x, theirs.weight), g)):
        close(a, b)
    with torch.no_grad():  # the path without gradients is another one
        close(ours(x), theirs(x))


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("C, M", [(8, 16), (32, 88), (96, 256)])
def test_swiglu_equals_transformers(family, C, M):
    if family == "llama":
        from transformers.models.llama.modeling_llama import LlamaConfig as Config
        from transformers.models.llama.modeling_llama import LlamaMLP as Theirs
    else:
        from transformers.models.mistral.modeling_mistral import MistralConfig as Config
        from transformers.models.mistral.modeling_mistral import MistralMLP as Theirs
    theirs, ours = Theirs(Config(hidden_size=C, intermediate_size=M, num_attention_heads=2)), SwiGLU(C, M)
    ours.gate.weight, ours.up.weight, ours.down.weight = (
        theirs.gate_proj.weight, theirs.up_proj.weight, theirs.down_proj.weight)
    x = torch.randn(2, 7, C)
    close(ours(x), theirs(x))


@pytest.mark.parametrize("C, M", [(8, 32), (48, 192)])
def test_gelu_mlp_and_layer_norm_equal_gpt2(C, M):
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Config
    theirs, ours = GPT2MLP(M, GPT2Config(n_embd=C, n_head=2)).eval(), GeluMLP(C, M)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.2)
        for mine, conv in ((ours.up, theirs.c_fc), (ours.down, theirs.c_proj)):
            mine.weight.copy_(conv.weight.T)  # GPT-2 stores its matrices the other way round
            mine.bias.copy_(conv.bias)
    x = torch.randn(2, 7, C)
    close(ours(x), theirs(x))

    norm, reference = LayerNorm(C), nn.LayerNorm(C)
    with torch.no_grad():
        for p in reference.parameters():
            p.normal_()
    norm.load_state_dict(reference.state_dict())  # the same names, too
    close(norm(x), reference(x))


def test_activations_equal_transformers():
    from transformers.activations import ACT2FN
    x = torch.linspace(-12, 12, 1001)
    close(gelu(x), ACT2FN["gelu_new"](x), 1e-6)
    close(silu(x), ACT2FN["silu"](x), 1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_equals_torch(bias):
    ours, theirs = Linear(7, 5, bias=bias), nn.Linear(7, 5, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 4, 7)
    close(ours(x), theirs(x), 1e-6)


# --- RMSNorm's gradient, written by hand ------------------------------------------------------------------------


def written(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@given(rows=st.integers(0, 5), C=st.integers(1, 40), scale=st.sampled_from([1e-3, 1.0, 1e3]), seed=st.integers(0, 999))
def test_rms_norm_gradient_is_exact(rows, C, scale, seed):
    torch.manual_seed(seed)
    norm = RMSNorm(C, 1e-5).double()
    nn.init.normal_(norm.weight)
    x = (scale * torch.randn(rows, 2, C, dtype=torch.float64)).requires_grad_()
    g = torch.randn(rows, 2, C, dtype=torch.float64)
    want = written(x, norm.weight, 1e-5)
    close(norm(x), want, 1e-12)
    for a, b in zip(grads(norm(x), (x, norm.weight), g), grads(want, (x, norm.weight), g)):
        close(a, b, 1e-10)


@pytest.mark.parametrize("view", ["transposed", "sliced", "expanded"])
def test_rms_norm_takes_any_memory_layout(view):
    norm, base = RMSNorm(8), torch.randn(3, 8, 16, requires_grad=True)
    x = {"transposed": base[:, :, :4].transpose(1, 2), "sliced": base[:, ::2, ::2],
         "expanded": base[:, 0, :8][:, None].expand(3, 5, 8)}[view]
    g = torch.randn_like(x).transpose(0, 1).contiguous().transpose(0, 1)
    for a, b in zip(grads(norm(x), (base, norm.weight), g), grads(written(x, norm.weight, 1e-5), (base, norm.weight), g)):
        close(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("train", [True, False])
def test_rms_norm_counts_in_float32(dtype, train):
    "Values whose squares overflow a half, and the result of float32 rounded once or twice."
    norm = RMSNorm(32).to(dtype)
    x = (500 * torch.randn(4, 32)).to(dtype).requires_grad_(train)
    with torch.set_grad_enabled(train):
        y = norm(x)
    assert y.dtype == dtype and y.isfinite().all()
    torch.testing.assert_close(y.float(), written(x.float(), 1.0, 1e-5), atol=0.02, rtol=0.01)
    if train:
        dx, dw = grads(y, (x, norm.weight), torch.ones_like(y))
        assert dx.dtype == dtype and dw.dtype == dtype and dx.isfinite().all() and dw.isfinite().all()


def test_rms_norm_has_second_derivatives():
    "A penalty on a gradient's size, where only x leads back to the norm."
    def penalty(norm):
        x = torch.arange(16.0, dtype=torch.float64).sin().view(2, 8).requires_grad_()
        dx, = torch.autograd.grad((norm(x) * torch.arange(8)).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    norm = RMSNorm(8, 1e-3).double()
    close(penalty(norm), penalty(lambda x: written(x, norm.weight, 1e-3)), 1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_layers_on_a_gpu():
    x = torch.randn(4, 16, 96)
    g = torch.randn_like(x)
    for part in (RMSNorm(96), LayerNorm(96), SwiGLU(96, 256), GeluMLP(96, 384)):
        here = x.clone().requires_grad_()
        there = x.cuda().requires_grad_()
        a, = grads(part(here), here, g)
        b, = grads(part.cuda()(there), there, g.cuda())
        close(b.cpu(), a, 1e-4)


# --- softmax and cross-entropy ----------------------------------------------------------------------------------

scores = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12)


@given(scores, st.floats(-1e3, 1e3, width=32))
def test_softmax_is_a_distribution_and_ignores_a_common_shift(z, shift):
    z = torch.tensor(z, dtype=torch.float64)
    p = softmax(z)
    assert (p >= 0).all() and math.isclose(p.sum(), 1, rel_tol=1e-12)
    close(p, torch.softmax(z, -1), 1e-12)
    close(softmax(z + shift), p, 1e-9)


def test_softmax_along_every_axis_and_behind_masks():
    x = torch.randn(3, 4, 5).masked_fill(torch.rand(3, 4, 5) < 0.4, -math.inf)
    x[..., 0] = 1.0
    x[0], x[:, 0] = x[0].nan_to_num(neginf=-9.0), x[:, 0].nan_to_num(neginf=-9.0)  # no line is masked as a whole
    for dim in (0, 1, 2, -1, -3):
        close(softmax(x, dim), torch.softmax(x, dim), 1e-6)


@given(st.lists(st.integers(1, 4), min_size=0, max_size=3), st.integers(1, 9), st.floats(0, 1), st.integers(0, 999))
def test_cross_entropy_equals_the_formula(lead, V, ignored, seed):
    torch.manual_seed(seed)
    logits = (5 * torch.randn(*lead, V, dtype=torch.float64)).requires_grad_()
    targets = torch.where(torch.rand(lead) < ignored, -100, torch.randint(0, V, lead))
    keep = targets != -100
    if not keep.any():
        with pytest.raises(ValueError, match="ignored"):
            cross_entropy(logits, targets)
        assert cross_entropy(logits, targets, reduction="sum") == 0
        return
    p = torch.softmax(logits, -1)
    one_hot = F.one_hot(targets.clamp(min=0), V)
    each = -torch.log((p * one_hot).sum(-1)) * keep
    close(cross_entropy(logits, targets), each.sum() / keep.sum(), 1e-10)
    close(cross_entropy(logits, targets, reduction="sum"), each.sum(), 1e-10)
    close(cross_entropy(logits, targets, reduction="none"), each, 1e-10)
    got, = torch.autograd.grad(cross_entropy(logits, targets), logits)
    close(got, ((p - one_hot) * keep[..., None] / keep.sum()).detach(), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_entropy_of_halves_is_taken_in_float32(dtype):
    logits, targets = torch.randn(6, 50).to(dtype), torch.randint(0, 50, (6,))
    loss = cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    close(loss, cross_entropy(logits.float(), targets), 1e-6)


def test_cross_entropy_is_safe_for_huge_scores():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1]))
    loss.backward()
    close(loss, torch.tensor(2e4))
    close(logits.grad, torch.tensor([[1.0, -1.0, 0.0]]))


@pytest.mark.parametrize("targets, says", [
    (torch.zeros(2, 4, dtype=torch.long), "shape"),
    (torch.zeros(6, dtype=torch.long), "shape"),
    (torch.full((2, 3), -100), "ignored"),
    (torch.full((2, 3), 5), "leave 0..4"),
    (torch.full((2, 3), -1), "leave 0..4"),
])
def test_cross_entropy_says_what_is_wrong(targets, says):
    with pytest.raises(ValueError, match=says):
        cross_entropy(torch.randn(2, 3, 5), targets)


# --- the rest ----------------------------------------------------------------------------------------------------


def test_embedding_looks_up_and_refuses():
    table = Embedding(5, 3)
    ids = torch.tensor([[4, 0], [2, 2]])
    torch.testing.assert_close(table(ids), table.weight[ids])
    for bad in (5, -1):
        with pytest.raises(ValueError, match="vocab_size=5"):
            table(torch.tensor([0, bad]))


@pytest.mark.parametrize("make", [lambda: Linear(0, 3), lambda: Linear(3, -1), lambda: Embedding(0, 4)])
def test_sizes_are_checked(make):
    with pytest.raises(ValueError, match="at least 1"):
        make()


@pytest.mark.parametrize("d_in", [4, 64, 1024])
def test_a_fresh_linear_keeps_the_size_of_its_input(d_in):
    x = torch.randn(500, d_in)
    assert 0.9 < Linear(d_in, 256)(x).std() < 1.1


def test_everything_compiles_into_one_graph():
    model = nn.Sequential(Embedding(11, 16), RMSNorm(16), SwiGLU(16, 24), LayerNorm(16), GeluMLP(16, 32), Linear(16, 11))
    ids, targets = torch.randint(0, 11, (2, 5)), torch.randint(0, 11, (2, 5))

    def loss():
        return cross_entropy(model(ids), targets)

    want = grads(loss(), list(model.parameters()), None)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for a, b in zip(grads(compiled(), list(model.parameters()), None), want):
        close(a, b)
