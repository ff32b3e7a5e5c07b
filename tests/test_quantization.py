"Weights in few bits: the grids, the kernels beside what they stand for, whole models, files, other processors."

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tinygpt
from tinygpt.cache import KVCache, remember
from tinygpt.decode import DecodeStep, decodable
from tinygpt.evaluation import evaluate_text
from tinygpt.few_bits import (
    EVEN, from_int4, from_int8, int4_block, int8_digit, int8_product, one_row, pack_int4, to_int4, to_int8, unpack_int4,
)  # fmt: skip
from tinygpt.generation import generate
from tinygpt.model import GPT, GPTConfig
from tinygpt.quantization import (
    Int4Matrix, Int8Matrix, Quantized, QuantEmbedding, QuantLinear, hollow, quantize, settle, weight_bytes,
)  # fmt: skip
from tinygpt.runs import load_checkpoint, pack_run, save_checkpoint, shipped_models


def random_model(seed: int, **changes) -> GPT:
    r = random.Random(seed)
    K, G, D = r.choice([1, 2, 4]), r.choice([1, 2]), 16
    config = dict(
        vocab_size=r.choice([50, 65, 1024]), context_length=48, d_model=K * G * D, n_layers=2, n_heads=K * G, n_kv_heads=K,
        d_ff=r.choice([None, 48, 80]), window=r.choice([0, 0, 9]), position=r.choice(["rope", "learned", "none"]),
        bias=r.random() < 0.5, qk_norm=r.random() < 0.3, norm=r.choice(["rmsnorm", "layernorm"]),
        mlp=r.choice(["swiglu", "gelu"]), tie_embeddings=r.random() < 0.5, init_std=0.15,
    )  # fmt: skip
    torch.manual_seed(seed)
    return GPT(GPTConfig(**config | changes)).eval()


def written_out(small: GPT, model: GPT) -> GPT:
    "A float model with the weights that the levels stand for."
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, m in small.named_modules():
            if isinstance(m, Quantized):
                made.get_submodule(name).weight.copy_(m.weight)
    return made


def close(y: torch.Tensor, right: torch.Tensor, share: float) -> bool:
    return (y.double() - right.double()).norm() <= share * right.double().norm()


@given(st.integers(1, 20), st.integers(1, 70), st.sampled_from([1e-8, 1e-3, 1.0, 1e6]), st.integers(0, 99))
def test_int8_is_off_by_half_a_step(n_rows, n_columns, size, seed):
    w = torch.randn(n_rows, n_columns, generator=torch.Generator().manual_seed(seed)) * size
    levels, scale = to_int8(w)
    ends = w.abs() - 127 * scale.float()[:, None]  # a scale that was rounded down cuts the end of its row
    assert (from_int8(levels, scale) - w).abs().le(torch.maximum(scale.float()[:, None] / 2, ends) * 1.001).all()
    assert levels.dtype == torch.int8 and levels.abs().max() <= 127 and scale.shape == (n_rows,)


@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from([2, 8, 16, 64]), st.integers(0, 99))
def test_a_fitted_grid_is_no_worse(n_rows, n_groups, group_size, seed):
    w = torch.randn(n_rows, n_groups * group_size, generator=torch.Generator().manual_seed(seed))
    plain, fitted = ((from_int4(*to_int4(w, group_size, rounds)) - w).norm() for rounds in (0, 4))
    assert fitted <= plain * 1.01 + 0.004 * w.norm()  # the last term: scale and zero have eight bits
    levels, grid = to_int4(w, group_size)
    assert levels.max() <= 15 and grid.shape == (n_groups, n_rows, 2) and grid.is_contiguous()


@pytest.mark.parametrize("w", [torch.zeros(4, 16), torch.full((4, 16), -3.0), torch.eye(4, 16) * 1e-20, torch.eye(4, 16) * 1e20])
def test_odd_weights_stay_finite(w):
    for back in (from_int8(*to_int8(w)), from_int4(*to_int4(w, 8))):
        assert back.isfinite().all() and close(back, w, 0.11)


@pytest.mark.parametrize("n_rows", [16, 48, 64, 80, 128, 192, 1040])
def test_the_order_of_nibbles_is_that_of_torch(n_rows):
    levels = torch.randint(0, 16, (n_rows, 64), dtype=torch.uint8)
    for block in (32, 64):
        assert torch.equal(unpack_int4(pack_int4(levels, block), block), levels)
    if int4_block() is None:
        pytest.skip("torch has no int4 kernel for this processor")
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.int(), 1)
    assert torch.equal(pack_int4(levels, int4_block()), theirs.view(torch.uint8).view(n_rows, 32))


def as_digits(x: torch.Tensor, digit: int) -> torch.Tensor:
    "Each row of x as the product sees it: in one digit if it is even, else in two."
    rows = []
    for row in x.double():
        step = row.abs().max().clamp_min(1e-30) / digit
        first = (row / step + 0.5).floor()
        spiky = row.square().mean().sqrt() < EVEN * step
        second = ((row / step - first) * 2 * digit).round() / (2 * digit) if spiky else 0
        rows.append((first + second) * step)
    return torch.stack(rows)


@pytest.mark.parametrize("digit", [127, 63])
@pytest.mark.parametrize("n_rows, n_columns, n", [(1, 8, 1), (300, 256, 1), (65, 40, 7), (1000, 768, 33), (768, 3072, 2)])
def test_a_product_of_digits_is_the_one_written_out(digit, n_rows, n_columns, n):
    if int8_digit() < digit:
        pytest.skip("this processor multiplies bytes exactly only with smaller digits")
    torch.manual_seed(n)
    levels, scale = to_int8(torch.randn(n_rows, n_columns))
    sums = levels.sum(-1, dtype=torch.int32)
    for spike in (1, 30, 3000):
        x = torch.randn(n, n_columns) * torch.logspace(-6, 6, n)[:, None]  # every row has its own size
        x[::2, 1] *= spike
        y, seen = int8_product(x, levels, scale, sums, digit), as_digits(x, digit)
        right = seen @ (levels.double() * scale.double()[:, None]).T
        for one, wanted, row in zip(y, right, seen):  # a number in the middle may take the neighbouring digit
            middle = row.abs().max() / digit * levels.abs().max() * scale.max() * 2
            assert (one - wanted).abs().max() <= 1e-5 * wanted.abs().max() + middle
    x[:] = torch.where(torch.randn(n, n_columns) > 0, 1.0, -1.0)  # the largest sums of all
    extreme = torch.where(torch.randn(n_rows, n_columns) > 0, 127, -127).to(torch.int8)
    y = int8_product(x, extreme, torch.ones(n_rows), extreme.sum(-1, dtype=torch.int32), digit)
    torch.testing.assert_close(y, x @ extreme.float().T, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("n_rows, n_columns", [(600, 256), (65, 40), (768, 3072)])
def test_the_bound_product_of_one_row(n_rows, n_columns):
    if not int8_digit():
        pytest.skip("no kernel for bytes here")
    levels, scale = to_int8(torch.randn(n_rows, n_columns))
    sums, x, y = levels.sum(-1, dtype=torch.int32), torch.empty(1, n_columns), torch.empty(1, n_rows)
    bias, z = torch.randn(n_rows), torch.empty(1, n_rows)
    with torch.inference_mode():
        call = one_row(x, y, levels, scale, sums, int8_digit())
        call_too = one_row(x, z, levels, scale, sums, int8_digit(), bias)
        call_more = one_row(x, z, levels, scale, sums, int8_digit(), bias, add=True)
    for size, spike in ((1, 1), (1e-9, 1), (1e9, 1), (1, 3000), (0, 1)):  # the same call, on other numbers
        x.normal_().mul_(size)[0, 1] *= spike
        wanted = int8_product(x, levels, scale, sums, int8_digit())
        assert call() is y and close(y, wanted, 0.01)
        torch.testing.assert_close(call_too(), y + bias)
        torch.testing.assert_close(call_more(), 2 * (y + bias))
    x[0, 0] = torch.nan
    assert call().isnan().all()


def test_a_row_is_the_same_alone_and_in_a_batch():
    if not int8_digit():
        pytest.skip("no kernel for bytes here")
    levels, scale = to_int8(torch.randn(2**16, 8))
    x, sums = torch.randn(150, 8), levels.sum(-1, dtype=torch.int32)  # 128 rows at a time
    x[7] = 0
    x[9, 2] = 99
    together = int8_product(x, levels, scale, sums, int8_digit())
    for i in (0, 7, 9, 128, 149):
        alone = int8_product(x[i : i + 1], levels, scale, sums, int8_digit())[0]
        torch.testing.assert_close(alone, together[i], rtol=1e-4, atol=0.03)
    right = x @ from_int8(levels, scale).T
    assert all(close(together[i], right[i], 0.02) for i in range(len(x)))


def test_what_is_not_finite_is_not_hidden():
    matrix = Int8Matrix(1024, 256)
    matrix.fill(torch.randn(1024, 256))
    x = torch.ones(3, 256)
    x[1, 5] = float("nan")
    x[2, 5] = float("inf")
    y = matrix.product(x)
    for i in (1, 2):
        assert not matrix.product(x[i : i + 1]).isfinite().any()
    assert y[0].isfinite().all() and not y[1].isfinite().any() and not y[2].isfinite().any()


@pytest.mark.parametrize("group_size", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("n_rows", [10, 64, 1000])
def test_int4_products_and_rows(n_rows, group_size):
    torch.manual_seed(0)
    matrix = Int4Matrix(n_rows, 256, group_size, int4_block() or 64)
    matrix.fill(torch.randn(n_rows, 256))
    x = torch.randn(5, 256)
    assert close(matrix.product(x), x @ matrix.dequantize().T, 0.01)
    ids = torch.randint(n_rows, (2, 3))
    assert torch.equal(matrix.rows(ids), matrix.dequantize()[ids])
    for wrong in (n_rows, -1):
        with pytest.raises((IndexError, RuntimeError)):
            matrix.rows(torch.tensor([wrong]))


@pytest.mark.parametrize("bits, share", [(8, 0.03), (4, 0.03)])
@pytest.mark.parametrize("seed", range(16))
def test_a_model_is_its_written_out_self(seed, bits, share):
    model = random_model(seed)
    before = copy.deepcopy(model.state_dict())
    small = quantize(model, bits)
    ids = torch.randint(model.cfg.vocab_size, (2, 30))
    right = written_out(small, model)(ids)
    assert close(small(ids), right, share)
    assert not close(right, model(ids), 1e-4)  # something was rounded
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in small.parameters())
    for dtype in (torch.bfloat16, torch.float16):  # before and after
        for half in (quantize(copy.deepcopy(model).to(dtype), bits), copy.deepcopy(small).to(dtype)):
            assert half(ids).dtype == dtype and close(half(ids), written_out(half, model)(ids), 0.05)
    again = copy.deepcopy(small).half().float()  # levels and scales are not touched by what rounds floats
    assert all(torch.equal(m.weight, n.weight) for m, n in zip(small.modules(), again.modules()) if isinstance(m, Quantized))


@pytest.mark.parametrize("bits, share", [(8, 1e-3), (4, 0.03)])
@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_cached_and_fast_equal_uncached(seed, bits, share):
    wide = {} if seed % 3 else dict(d_model=384, n_heads=6, n_kv_heads=3)  # wide enough for whole numbers
    model = random_model(seed, **wide)
    small = quantize(model, bits)
    assert decodable(small)
    ids = torch.randint(model.cfg.vocab_size, (2, 40))
    right = small(ids)
    share = 0.1 if wide and bits == 8 else share  # x is rounded, too, and its last bits can tip a digit
    steps = [DecodeStep(small, KVCache(model.cfg, 2)) for _ in range(2)]  # two at a time, in turns
    for step in steps:
        step(ids[:, :20])
    for t in range(20, 40):
        for step in steps:
            assert close(step(ids[:, t : t + 1])[:, 0], right[:, t], share)
    assert close(small(ids), right, share)  # joined or not


@pytest.mark.parametrize("bits", [8, 4])
def test_joining_holds_nothing_twice_and_once_is_enough(bits):
    model = random_model(0, d_model=64, n_heads=4, n_kv_heads=4, d_ff=128, bias=True, mlp="swiglu", window=0, qk_norm=False)
    small = quantize(model, bits)
    size, layers = weight_bytes(small), [getattr(small.blocks[0].attention, name) for name in "qkv"]
    whole = QuantLinear.join(layers)
    places = [p.data_ptr() for p in small.parameters()]
    again = QuantLinear.join(layers)
    assert [p.data_ptr() for p in small.parameters()] == places and weight_bytes(small) == size
    x = torch.randn(3, 64)
    for joined in (whole, again):
        assert close(joined(x), torch.cat([layer(x) for layer in layers], -1), 1e-4)
        assert joined.matrix.levels.data_ptr() == layers[0].matrix.levels.data_ptr()
    layers[0].bias = None
    with pytest.raises(ValueError, match="some layers have a bias"):
        QuantLinear.join(layers)


@pytest.mark.parametrize("bits", [8, 4])
def test_texts(bits):
    model, tokenizer = tinygpt.load("tales")
    small = quantize(model, bits)
    ids = torch.tensor([[tokenizer.eot_id, *tokenizer.encode("One sunny day, ")]])
    plain = generate(small, ids, 40, temperature=0, reader=remember)
    assert torch.equal(plain, generate(small, ids, 40, temperature=0)) or bits == 4
    assert plain.shape == (1, ids.shape[1] + 40)


@pytest.mark.parametrize("bits, most_bytes, most_loss", [(8, 0.26, 0.01), (4, 0.16, 0.05)])
def test_the_shipped_model_on_its_tales(bits, most_bytes, most_loss):
    model, tokenizer = tinygpt.load("tales")
    small = quantize(model, bits)
    assert weight_bytes(small) <= most_bytes * weight_bytes(model)
    before, after = (evaluate_text(m, tokenizer, "tales", max_docs=60).bits_per_byte for m in (model, small))
    assert after <= before * (1 + most_loss)


@pytest.mark.parametrize("bits, group_size", [(8, None), (4, None), (4, 16)])
def test_files(tmp_path, bits, group_size):
    run = shipped_models()["tales"]
    model, _ = tinygpt.load(run)
    packed = pack_run(run, tmp_path / "small", change=lambda m: quantize(m, bits, group_size))
    small, tokenizer = tinygpt.load(packed)
    ids = torch.randint(tokenizer.vocab_size, (2, 20))
    assert torch.equal(small(ids), quantize(model, bits, group_size)(ids))
    file = next(packed.rglob("model.safetensors"))
    assert file.stat().st_size < weight_bytes(small) + 10_000 < 0.3 * weight_bytes(model)
    state = json.loads((file.parent / "state.json").read_text())
    assert state["quantization"]["bits"] == bits
    with pytest.raises(ValueError, match="few bits"):  # it cannot be gone on with
        load_checkpoint(file.parent, model)


def test_a_file_from_another_processor(tmp_path):
    model = random_model(1, vocab_size=300, d_model=64, n_heads=4, n_kv_heads=2)
    other = quantize(model, bits=4)
    theirs = 32 if int4_block() != 32 else 64
    for m in other.modules():
        if isinstance(m, Int4Matrix):
            m.repack(theirs)
    other.quantization["block"] = theirs
    save_checkpoint(tmp_path / "c", other, None, 1)
    state = json.loads((tmp_path / "c" / "state.json").read_text())
    mine = hollow(model, **state["quantization"])
    load_checkpoint(tmp_path / "c", mine)
    ids = torch.randint(300, (1, 9))
    assert close(mine(ids), written_out(other, model)(ids), 0.03)  # slow, but right
    settle(mine)
    assert mine.quantization["block"] == (int4_block() or theirs)
    assert torch.equal(mine(ids), quantize(model, bits=4)(ids)) or int4_block() is None


CHECK = """
import torch
from tinygpt.few_bits import int4_block, int8_digit
from tinygpt.quantization import Int4Matrix, Int8Matrix
torch.manual_seed(0)
x, w = torch.randn(3, 256), torch.randn(1000, 256)
for matrix in (Int8Matrix(1000, 256), Int4Matrix(1000, 256, 64, int4_block() or 64)):
    matrix.fill(w)
    right = x @ matrix.dequantize().T
    assert (matrix.product(x) - right).norm() < 0.02 * right.norm()
print(int8_digit(), int4_block())
"""


@pytest.mark.parametrize("torch_as, onednn_as", [("avx2", "AVX2"), ("default", "SSE41"), ("avx512", "AVX512_CORE")])
def test_other_processors(torch_as, onednn_as):
    "torch and oneDNN can be told to believe that the processor is an older one."
    env = os.environ | {"ATEN_CPU_CAPABILITY": torch_as, "ONEDNN_MAX_CPU_ISA": onednn_as}
    found = subprocess.run([sys.executable, "-c", CHECK], env=env, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split()[0] in ("0", "63", "127") and found.stdout.split()[1] in ("None", "32", "64")


def test_refusals():
    model = random_model(0, d_model=48, n_heads=3, n_kv_heads=3, d_ff=40)
    small = quantize(model, bits=4)
    broken = copy.deepcopy(model)
    broken.blocks[1].mlp.up.weight.data[0, 0] = float("nan")
    for act, words in (
        (lambda: quantize(model, bits=3), "bits=3 is neither 8 nor 4"),
        (lambda: quantize(model, bits="int8"), "neither 8 nor 4"),
        (lambda: quantize(model, bits=4, group_size=32), "group_size=32 does not divide the 48 columns of embed; give 16"),
        (lambda: quantize(model, bits=4, group_size=0), "group_size=0 does not divide"),
        (lambda: quantize(model, bits=8, group_size=16), "leave it out"),
        (lambda: quantize(small), "quantized already"),
        (lambda: quantize(torch.nn.Linear(4, 4)), "give it a GPT"),
        (lambda: quantize(broken), "blocks.1.mlp.up holds weights that are not finite"),
        (lambda: small.train(), "train the float model"),
        (lambda: small(torch.tensor([[model.cfg.vocab_size]])), "leave the table of vocab_size"),
        (lambda: small(torch.tensor([[-1]])), "leave the table of vocab_size"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            act()
        assert "\n" not in str(caught.value)
    assert isinstance(small.embed, QuantEmbedding) and small.eval() is small
