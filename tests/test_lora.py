"""Adapters: what they leave alone, merging, several at once, files in and out of PEFT, runs, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tinygpt
from tinygpt import lora
from tinygpt.adapters import fingerprint, grow, load_adapter, open_model, our_path, ready, save_adapter
from tinygpt.decode import decodable
from tinygpt.generation import generate
from tinygpt.interop import LLAMA_NAMES, from_hf
from tinygpt.layers import Linear
from tinygpt.lora import (
    LoraLinear, TokenRows, adapted, adapter_names, add_lora, find_targets, lora_parameters, merge, set_adapter, their_path, unmerge,
)  # fmt: skip
from tinygpt.model import GPT, GPTConfig
from tinygpt.quantization import quantize
from tinygpt.rope import to_interleaved
from tinygpt.runs import OptimConfig, RunConfig, pack_run, save_checkpoint
from tinygpt.sft import ChatConfig, LoraConfig, TuneConfig, finetune
from tinygpt.training import resume

TARGETS = [("q", "v"), ("q_proj", "down_proj"), ("attention",), ("mlp", "o"), ("blocks.0.*",), ("self_attn.k_proj", "up")]


def random_model(seed: int, **changes) -> GPT:
    r = random.Random(seed)
    K, G, D = r.choice([1, 2, 4]), r.choice([1, 2]), 8
    config = dict(
        vocab_size=r.choice([50, 65]), context_length=40, d_model=K * G * D, n_layers=2, n_heads=K * G, n_kv_heads=K,
        d_ff=r.choice([None, 24]), window=r.choice([0, 0, 7]), position=r.choice(["rope", "rope", "learned"]),
        bias=r.random() < 0.5, qk_norm=r.random() < 0.3, norm=r.choice(["rmsnorm", "layernorm"]),
        rope_layout=r.choice(["half", "interleaved"]), mlp=r.choice(["swiglu", "gelu"]),
        tie_embeddings=r.random() < 0.5, init_std=0.15,
    )  # fmt: skip
    torch.manual_seed(seed)
    return GPT(GPTConfig(**config | changes)).eval()


def some_ids(model: GPT, *shape: int) -> torch.Tensor:
    return torch.randint(model.cfg.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def base_weights(model: GPT) -> dict[str, torch.Tensor]:
    return {n.replace(".base.", "."): p.detach().clone() for n, p in model.named_parameters() if ".adapters." not in n}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def shake(model: GPT, name: str | None = None, std: float = 0.2) -> GPT:
    "Adapters that have learned something."
    with torch.no_grad():
        for i, p in enumerate(lora_parameters(model, name).values()):
            p.normal_(std=std, generator=torch.Generator().manual_seed(i))
    return model


def learn(model: GPT, n: int = 3, lr: float = 1e-2) -> float:
    ids, params = some_ids(model, 2, 20), [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=lr)
    for _ in range(n):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


# --- the layers ------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(TARGETS), st.integers(1, 9), st.booleans())
def test_an_adapter_changes_nothing_trains_alone_and_merges(seed, targets, rank, rows):
    model = random_model(seed)
    ids, before = some_ids(model, 2, 15), base_weights(model)
    right = model(ids)
    add_lora(model, LoraConfig(rank=rank, alpha=5, targets=targets), tokens=[3, 48] if rows else [])
    assert torch.equal(model(ids), right)
    assert set(lora_parameters(model)) == {n for n, p in model.named_parameters() if p.requires_grad}
    learn(model)
    learned = model(ids)
    assert not torch.allclose(learned, right, atol=1e-4) and same(base_weights(model), before)
    written = generate(model, ids[:, :5], 12, temperature=0.0)
    merge(model)
    assert not adapted(model) and type(model.blocks[0].attention.q) is Linear
    torch.testing.assert_close(model(ids), learned, atol=1e-5, rtol=1e-5)
    assert torch.equal(generate(model, ids[:, :5], 12, temperature=0.0), written)
    assert all(p.requires_grad for p in model.parameters())
    unmerge(model)
    assert same(base_weights(model), before)  # though generating has laid them out anew: results may round otherwise
    torch.testing.assert_close(model(ids), learned, atol=1e-5, rtol=1e-5)
    assert set(lora_parameters(model)) == {n for n, p in model.named_parameters() if p.requires_grad}
    set_adapter(model, None)
    torch.testing.assert_close(model(ids), right, atol=1e-5, rtol=1e-5)


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_wide_layers_add_to_outputs_and_find_the_same(seed):
    model = shake(add_lora(random_model(seed), LoraConfig(rank=3), tokens=[1])).double()
    ids = some_ids(model, 2, 15)

    def run():
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        grads = {n: p.grad.clone() for n, p in lora_parameters(model).items()}
        model.zero_grad()
        return model(ids), grads

    y, grads = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "NARROW", 0)
        y_wide, grads_wide = run()
    torch.testing.assert_close(y_wide, y)
    for name, grad in grads.items():
        torch.testing.assert_close(grads_wide[name], grad)


def test_the_update_by_hand():
    torch.manual_seed(0)
    for config, scale in ((LoraConfig(rank=4, alpha=6), 1.5), (LoraConfig(rank=4, alpha=6, rslora=True), 3.0)):
        model = shake(add_lora(random_model(3), replace(config, targets=("q",))))
        layer, x = model.blocks[1].attention.q, torch.randn(5, model.cfg.d_model)
        update = layer.adapters["default"]
        y = x @ layer.base.weight.T + scale * (x @ update.A.T) @ update.B.T + (0 if layer.base.bias is None else layer.base.bias)
        torch.testing.assert_close(layer(x), y)


def test_dropout_is_for_training_and_halves_are_added_to():
    model = shake(add_lora(random_model(4), LoraConfig(dropout=0.5)))
    ids = some_ids(model, 1, 12)
    assert torch.equal(model(ids), model(ids))
    right, model = model(ids), model.train()
    assert not torch.equal(model(ids), model(ids))
    with torch.autocast("cpu", torch.bfloat16):
        model.eval().loss(ids[:, :-1], ids[:, 1:]).backward()
        assert (model(ids) - right).norm() < 0.1 * right.norm()
    model.to(torch.bfloat16)
    for p in lora_parameters(model).values():
        p.data = p.float()
    y = model(ids)
    assert (y - right).norm() < 0.1 * right.norm()


def test_names_in_both_vocabularies():
    model = random_model(5, mlp="swiglu", tie_embeddings=False)
    q = [f"blocks.{i}.attention.q" for i in (0, 1)]
    for names in (["q"], ["q_proj"], ["attention.q"], ["self_attn.q_proj"], ["model.layers.*.self_attn.q_proj"], q):
        assert find_targets(model, names) == q
    assert find_targets(model, ["blocks.1"]) == [p for p in find_targets(model, ["attention", "mlp"]) if ".1." in p]
    assert find_targets(model, ["lm_head"]) == find_targets(model, ["head"]) == ["head"]
    assert len(find_targets(model, ["*_proj"])) == 14
    for path in [*find_targets(model, ["blocks", "head"]), "embed"]:
        assert their_path(path) == LLAMA_NAMES[path.replace("0", "#").replace("1", "#")].replace("#", path[7:8])
        assert our_path(their_path(path)) == our_path(path) == path
    with pytest.raises(ValueError, match="'wq' is no linear layer of this model; choose from q, k, v, o, gate, up, down, head"):
        find_targets(model, ["q", "wq"])


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_several_adapters_on_one_base(seed):
    model, ids, alone = random_model(seed), None, {}
    for i, name in enumerate(["red", "blue"]):
        config = LoraConfig(rank=2 + i, targets=[("q", "v"), ("mlp",)][i])
        single = shake(add_lora(copy.deepcopy(random_model(seed)), config, name), std=0.1 + i / 5)
        ids = some_ids(single, 2, 9)
        alone[name] = single(ids)
        add_lora(model, config, name)
        for key, p in lora_parameters(single, name).items():
            dict(model.named_parameters())[key].data.copy_(p)
    assert adapter_names(model) == ["red", "blue"]
    for name in ("red", "blue", "red"):
        set_adapter(model, name)
        torch.testing.assert_close(model(ids), alone[name], atol=1e-5, rtol=1e-5)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == set(lora_parameters(model, name))
        torch.testing.assert_close(merge(model)(ids), alone[name], atol=1e-5, rtol=1e-5)
        unmerge(model)


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_rows_of_the_tokens_change(tied):
    model = random_model(6, tie_embeddings=tied)
    add_lora(model, LoraConfig(rank=1, targets=("q",)), tokens=[7, 2])
    shake(model)
    tables = {"embed": model.embed, **({} if tied else {"head": model.head})}
    before = {path: m.base.weight.clone() for path, m in tables.items()}
    rows = {path: m.update.delta.clone() for path, m in tables.items()}
    merge(model)
    for path, w in before.items():
        change = model.get_submodule(path).weight - w
        torch.testing.assert_close(change[[7, 2]], rows[path])
        change[[7, 2]] = 0
        assert not change.any()


def test_a_copy_of_a_merged_model_is_a_model_of_its_own():
    model = merge(shake(add_lora(random_model(7), LoraConfig())))
    ids, twin = some_ids(model, 1, 9), copy.deepcopy(model)
    y = model(ids)
    unmerge(twin)
    assert torch.equal(model(ids), y) and adapted(twin) and not adapted(model) and decodable(model)


def test_few_bits_of_a_merged_model_keep_no_floats(tmp_path):
    model = merge(shake(add_lora(random_model(8), LoraConfig())))
    small = quantize(model)
    assert small.merged is None and not getattr(small, "under", None) and model.merged["before"]
    unmerge(model).adapter = {"base": "somewhere"}
    with pytest.raises(ValueError, match="merge the float model, quantize it then"):
        save_checkpoint(tmp_path / "both", quantize(model), None, 1)
    assert not list(tmp_path.iterdir())


def test_merged_models_quantize_and_quantized_models_take_adapters():
    model, ids = random_model(8), some_ids(random_model(8), 2, 20)
    plain = quantize(merge(shake(add_lora(copy.deepcopy(model), LoraConfig()))))
    assert not adapted(plain)
    with pytest.raises(ValueError, match="was quantized after it was merged; unmerge the float model"):
        unmerge(plain)
    small = quantize(model)
    before, right = base_weights(small), small(ids)
    add_lora(small, LoraConfig(rank=4, targets=("attention", "mlp")), tokens=[5])
    assert torch.equal(small(ids), right)
    first = small.loss(ids[:, :-1], ids[:, 1:]).item()
    assert learn(small, 20, 2e-2) < first - 0.1
    assert same(base_weights(small), before)
    assert generate(small, ids[:, :5], 5).shape == (2, 10)
    assert ready(small) is small and adapted(small)
    with pytest.raises(ValueError, match="has weights of few bits, which an update would round; merge the float model"):
        merge(small)


def test_a_model_that_torch_compile_has_wrapped(tmp_path):
    "Its parts are called _orig_mod.blocks... from outside; adapters and their files know nothing of it."
    plain = random_model(5)
    wrapped = torch.compile(copy.deepcopy(plain), backend="eager")
    ids = torch.arange(6)[None]
    for model in (plain, wrapped):
        add_lora(model, LoraConfig(rank=2, targets=("q", "v")), tokens=[1])
        for i, p in enumerate(lora_parameters(model).values()):
            p.data.fill_(0.01 * (i + 1))
    assert find_targets(wrapped, ["q"]) == find_targets(plain, ["q"]) and fingerprint(wrapped) == fingerprint(plain)
    torch.testing.assert_close(wrapped(ids), plain(ids))
    for name, model in (("plain", plain), ("wrapped", wrapped)):
        save_adapter(model, tmp_path / name)
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "wrapped"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (tmp_path / "plain/adapter_config.json").read_text() == (tmp_path / "wrapped/adapter_config.json").read_text()
    torch.testing.assert_close(merge(wrapped)(ids), plain(ids))


@pytest.mark.parametrize("case", range(9))
def test_refusals_of_the_layers(case):
    model = add_lora(random_model(9), LoraConfig(targets=("q",)), "one")
    merged = merge(copy.deepcopy(model))
    call, rule = [
        (lambda: add_lora(model, LoraConfig(), "one"), "name='one' is in use; choose another"),
        (lambda: add_lora(model, LoraConfig(), "a.b"), "name='a.b' is no name; take letters, digits and _"),
        (lambda: add_lora(model, LoraConfig(), "two", tokens=[3, 999]), r"tokens=\[999\] leave the vocabulary of \d+; add_tokens"),
        (lambda: set_adapter(model, "two"), "name='two' is no adapter of this model; choose from one"),
        (lambda: set_adapter(random_model(9), "two"), "choose from none: call add_lora first"),
        (lambda: merge(random_model(9)), "the model has no adapter at work"),
        (lambda: merge(merged), "is merged already; call unmerge"),
        (lambda: unmerge(model), "is not merged; call merge"),
        (lambda: add_lora(merged, LoraConfig(), "two"), "is merged; call unmerge"),
    ][case]
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=rule):
        call()
    assert same(before, dict(model.named_parameters()))


# --- PEFT's files ----------------------------------------------------------------------------------------------

SIZES = dict(
    vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
    initializer_range=0.2, bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
FAMILIES = {
    "llama": {}, "llama, grouped": dict(num_key_value_heads=2), "llama, untied": dict(tie_word_embeddings=False),
    "mistral": dict(sliding_window=5, num_key_value_heads=2), "qwen2": dict(num_key_value_heads=1),
    "qwen3": dict(head_dim=10, num_key_value_heads=2),
}  # fmt: skip


@pytest.fixture(scope="module")
def peft():
    library = pytest.importorskip("peft")
    import transformers

    transformers.logging.set_verbosity_error()
    return library


def theirs(family: str):
    import transformers

    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family.partition(",")[0]]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{"tie_word_embeddings": True, **SIZES, **FAMILIES[family]})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", [
    LoraConfig(rank=3, alpha=7), LoraConfig(rank=4, targets=("q", "blocks.0.mlp.down", "blocks.1.attention.o"), rslora=True),
])  # fmt: skip
def test_saved_by_us_and_loaded_by_peft(peft, tmp_path, family, config):
    model = from_hf(theirs(family))
    ids = some_ids(model, 2, 17)
    shake(add_lora(model, config, tokens=[60, 4]))
    save_adapter(model, tmp_path / "a", base="somewhere")
    there = peft.PeftModel.from_pretrained(theirs(family), tmp_path / "a").eval()
    y, right = there(ids).logits, model(ids)
    torch.testing.assert_close(y, right, atol=3e-5, rtol=1e-4)
    assert (right - from_hf(theirs(family))(ids)).abs().max() > 0.5  # the adapter does something
    torch.testing.assert_close(there.merge_and_unload()(ids).logits, merge(model)(ids), atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_by_peft_and_loaded_by_us_and_back(peft, tmp_path, family):
    base = theirs(family)
    tables = ["embed_tokens"] if base.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], rank_pattern={"v_proj": 2}, lora_dropout=0.1,
        alpha_pattern={"layers.1.mlp.down_proj": 9}, use_rslora=family == "llama", trainable_token_indices=dict.fromkeys(tables, [9, 2]),
    )  # fmt: skip
    there = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for p in there.parameters():
            if p.requires_grad:
                p.normal_(std=0.2)
    there.save_pretrained(tmp_path / "theirs")
    model = from_hf(theirs(family))
    ids = some_ids(model, 2, 17)
    load_adapter(model, tmp_path / "theirs", "guest")
    torch.testing.assert_close(model(ids), there(ids).logits, atol=3e-5, rtol=1e-4)
    assert {m.update.dropout for m in adapted(model).values() if not isinstance(m.update, TokenRows)} == {0.1}
    save_adapter(model, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(theirs(family), tmp_path / "ours").eval()
    torch.testing.assert_close(again(ids).logits, model(ids), atol=3e-5, rtol=1e-4)


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), rows=st.booleans())
def test_files_of_any_model_come_back_bit_for_bit(tmp_path_factory, seed, rows):
    folder = tmp_path_factory.mktemp("adapter")
    model, ids = random_model(seed), some_ids(random_model(seed), 2, 9)
    twin = copy.deepcopy(model)
    shake(add_lora(model, LoraConfig(rank=3, alpha=4, targets=("attention", "mlp.up")), "here", [1, 30] if rows else []))
    save_adapter(model, folder / "a", base="b")
    load_adapter(twin, folder / "a", "there")
    torch.testing.assert_close(twin(ids), model(ids), atol=1e-6, rtol=1e-6)
    for (n, p), q in zip(lora_parameters(model).items(), lora_parameters(twin).values()):
        torch.testing.assert_close(p, q, **({"atol": 1e-7, "rtol": 1e-6} if "delta" in n else {"atol": 0, "rtol": 0}))


def test_rotations_are_written_in_the_order_of_halves(tmp_path):
    "The same model in both layouts: an adapter of one works in the other."
    half = random_model(11, rope_layout="half", position="rope", qk_norm=False)
    other = GPT(half.cfg.replace(rope_layout="interleaved")).eval()
    state = half.state_dict()
    for name in state:
        if any(f"attention.{x}." in name for x in "qk"):
            state[name] = to_interleaved(state[name], half.cfg.head_width)
    other.load_state_dict(state)
    ids = some_ids(half, 2, 15)
    torch.testing.assert_close(half(ids), other(ids))
    shake(add_lora(half, LoraConfig(rank=2)))
    save_adapter(half, tmp_path / "a")
    strip_fingerprint(tmp_path / "a")
    torch.testing.assert_close(load_adapter(other, tmp_path / "a")(ids), half(ids), atol=1e-5, rtol=1e-5)


def strip_fingerprint(folder: Path) -> None:
    save_file(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.safetensors", {"format": "pt"})


def test_fingerprints():
    model = random_model(12, tie_embeddings=False)
    mark, rest = fingerprint(model), fingerprint(model, [3, 8])
    add_lora(model, LoraConfig(), tokens=[3, 8])
    assert fingerprint(shake(model)) == mark and fingerprint(model, [3, 8]) == rest
    assert fingerprint(unmerge(merge(model))) == mark
    for row, same_rest in ((3, True), (4, False)):
        other = random_model(12, tie_embeddings=False)
        other.embed.weight.data[row] += 1
        assert fingerprint(other) != mark and (fingerprint(other, [3, 8]) == rest) == same_rest
    grow(other := random_model(12, tie_embeddings=False), model.cfg.vocab_size + 2)
    new = [other.cfg.vocab_size - 2, other.cfg.vocab_size - 1]
    assert fingerprint(model, new) != fingerprint(other)  # shapes without the rows are equal:
    assert fingerprint(random_model(12, tie_embeddings=False), new) == fingerprint(other, new)


@pytest.mark.parametrize("case", range(13))
def test_files_that_are_refused(tmp_path, case):
    model = shake(add_lora(random_model(13, tie_embeddings=True), LoraConfig(targets=("q", "v")), tokens=[45]))
    folder = save_adapter(model, tmp_path / "a", base="a-base")
    weights, config = folder / "adapter_model.safetensors", json.loads((folder / "adapter_config.json").read_text())
    tensors, base, rule = load_file(weights), random_model(13, tie_embeddings=True), None

    def change(**fields):
        (folder / "adapter_config.json").write_text(json.dumps(config | fields))

    def replaced(**changed):
        key = next(k for k in tensors if "lora_A" in k)
        save_file({**tensors, **{changed.get("name", key): changed["t"]}}, weights, {"format": "pt"})

    match case:
        case 0:
            base, rule = random_model(13, tie_embeddings=True, init_std=0.2), r"was made for other weights than these \(a-base\); open the base it was made for"
        case 1:
            weights.unlink()
            rule = "has no adapter_model.safetensors; give a directory that save_adapter or PEFT wrote"
        case 2:
            weights.write_bytes(weights.read_bytes()[:-7])
            rule = "adapter_model.safetensors is damaged"
        case 3:
            (folder / "adapter_config.json").write_text("{")
            rule = "adapter_config.json is damaged"
        case 4:
            change(peft_type="LOHA")
            rule = "peft_type='LOHA' is not LORA; give a LoRA adapter"
        case 5:
            change(use_dora=True)
            rule = "use_dora=True cannot be built here; make an adapter with use_dora=False"
        case 6:
            change(bias="all")
            rule = "bias='all' cannot be built here"
        case 7:
            replaced(t=torch.zeros(8, 3))
            rule = r"does not fit a layer of \("
        case 8:
            replaced(name="base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", t=torch.zeros(2, 2))
            rule = "model.layers.9.self_attn.q_proj is not in this model"
        case 9:
            replaced(name="base_model.model.model.norm.weight", t=torch.zeros(2))
            rule = "base_model.model.model.norm.weight is no part of LoRA that is known here"
        case 10:
            change(trainable_token_indices={"embed_tokens": [999]})
            rule = r"tokens \[999\] are not among the \d+ of this model; make room with add_tokens first"
        case 11:
            change(lora_alpha=None)
            rule = "lora_alpha=None is no number"
        case 12:
            base, rule = merge(model), "the model is merged; call unmerge"
    before = base_weights(base)
    with pytest.raises((ValueError, FileNotFoundError), match=rule) as error:
        load_adapter(base, folder)
    assert "\n" not in str(error.value) and same(base_weights(base), before) and not adapted(base)


def test_writing_is_refused_where_it_would_mislead(tmp_path):
    model = add_lora(random_model(14), LoraConfig())
    with pytest.raises(ValueError, match="name='other' is no adapter of this model; choose from default"):
        save_adapter(model, tmp_path / "a", "other")
    save_adapter(model, tmp_path / "a")
    with pytest.raises(ValueError, match="exists already"):
        save_adapter(model, tmp_path / "a")
    with pytest.raises(ValueError, match="is merged; call unmerge"):
        save_adapter(merge(model), tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# --- runs ------------------------------------------------------------------------------------------------------


def tune(folder: Path, out: str, base: str = "tales", steps: int = 6, template: str = "tales", **run) -> TuneConfig:
    talks = [[{"role": "user", "content": f"hello {i}?"}, {"role": "assistant", "content": f"yes {i}."}] for i in range(40)]
    (folder / "talks.jsonl").write_text("\n".join(json.dumps({"messages": talk}) for talk in talks), encoding="utf-8")
    return TuneConfig(
        base=base, method="lora", chat=ChatConfig(source=str(folder / "talks.jsonl"), template=template, batch_size=4),
        lora=LoraConfig(rank=2, dropout=0.1), optim=OptimConfig(steps=steps, lr=1e-2, schedule="wsd", warmup_steps=2),
        run=RunConfig(out_dir=str(folder / out), eval_every=4, sample_every=0, checkpoint_every=3, n_threads=1, **run),
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return finetune(tune(tmp_path_factory.mktemp("lora"), "run"))


@pytest.mark.parametrize("template", ["tales", "chatml"])
def test_a_run_goes_on_exactly(tmp_path, template):
    whole = finetune(tune(tmp_path, "whole", template=template))
    stopped = finetune(tune(tmp_path, "stopped", template=template, max_minutes=1e-9))
    assert [p.name for p in (stopped / "checkpoints").iterdir()] == ["step_000001"]
    resume(stopped, changes={"run.max_minutes": None})
    for file in ("model.safetensors", "optimizer.safetensors"):
        a, b = ((path / "checkpoints" / "step_000006" / file).read_bytes() for path in (whole, stopped))
        assert a == b and len(a) < 150_000
    model, tokenizer = tinygpt.load(whole)
    assert model.cfg.vocab_size == tokenizer.vocab_size and tokenizer.fingerprint != ""


def test_a_run_opens_on_its_base_and_leaves_it_alone(run):
    base, _ = tinygpt.load("tales")
    model, tokenizer = tinygpt.load(run)
    ids = some_ids(base, 2, 20)
    assert type(model.blocks[0].attention.q) is Linear and decodable(model)
    assert not torch.equal(model(ids), base(ids))
    learned = model(ids)
    unmerge(model)
    assert same(base_weights(model), base_weights(base))
    torch.testing.assert_close(model(ids), learned, atol=1e-5, rtol=1e-5)
    names = load_file(run / "checkpoints" / "step_000006" / "model.safetensors").keys()
    assert names == lora_parameters(model).keys() and "embed.adapters.default.delta" in names
    for y, right in ((open_model(run)[0](ids), learned), (open_model("tales")[0](ids), base(ids))):
        assert torch.equal(y, right)


def test_a_run_packed_as_an_adapter(run, tmp_path):
    packed = pack_run(run, tmp_path / "small", change=unmerge)
    size = sum(p.stat().st_size for p in (packed / "checkpoints").rglob("model.safetensors"))
    ids = some_ids(tinygpt.load("tales")[0], 1, 20)
    assert size < 40_000
    torch.testing.assert_close(tinygpt.load(packed)[0](ids), tinygpt.load(run)[0](ids), atol=2e-2, rtol=1e-2)  # halves


@pytest.mark.parametrize("template", ["tales", "chatml"])
def test_an_adapter_on_an_adapter(run, tmp_path, template):
    above = finetune(tune(tmp_path, "above", base=str(run), steps=2, template=template))
    model, _ = tinygpt.load(above)
    below, _ = tinygpt.load(run)
    grow(below, model.cfg.vocab_size)
    unmerge(model)
    assert same(base_weights(model), dict(below.named_parameters()))


def test_peft_files_of_a_run_open_alike(run, tmp_path):
    model, tokenizer = tinygpt.load(run)
    ids = some_ids(model, 1, 20)
    y = model(ids)
    save_adapter(unmerge(model), tmp_path / "files", base="tales", tokenizer=tokenizer)
    for open_it in (open_model, tinygpt.load):
        again, known = open_it(tmp_path / "files")
        torch.testing.assert_close(again(ids), y, atol=1e-5, rtol=1e-5)
        assert known.fingerprint == tokenizer.fingerprint
    config = tmp_path / "files" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "some/hub-model"}))
    with pytest.raises(FileNotFoundError, match="its base some/hub-model is missing .*load_adapter"):
        tinygpt.load(tmp_path / "files")


def test_an_adapter_taken_from_a_run_knows_its_base(run, tmp_path):
    model, tokenizer = tinygpt.load(run)
    ids = some_ids(model, 2, 20)
    learned = model(ids)
    folder = save_adapter(unmerge(model), tmp_path / "alone", tokenizer=tokenizer)
    assert torch.equal(tinygpt.load(folder)[0](ids), learned)


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_runs_that_are_moved_together_find_their_base(tmp_path, method):
    model, tokenizer = tinygpt.load("tales")
    save_checkpoint(tmp_path / "here/base/checkpoints/step_000001", model, None, 1)
    tokenizer.save(tmp_path / "here/base/tokenizer.json")
    base = str(tmp_path / "here/base/checkpoints/step_000001")
    config = replace(tune(tmp_path, "here/whole", base=base), method=method)
    whole = finetune(config)
    stopped = finetune(replace(config, run=replace(config.run, out_dir=str(tmp_path / "here/stopped"), max_minutes=1e-9)))
    model, _ = tinygpt.load(whole)
    (tmp_path / "here").rename(tmp_path / "there")
    moved, _ = tinygpt.load(tmp_path / "there/whole")
    ids = some_ids(model, 1, 20)
    assert torch.equal(moved(ids), model(ids))
    stopped = tmp_path / "there/stopped"
    resume(stopped, changes={"run.max_minutes": None})
    for file in ("model.safetensors", "optimizer.safetensors"):
        a, b = ((tmp_path / "there" / name / "checkpoints/step_000006" / file).read_bytes() for name in ("whole", "stopped"))
        assert a == b


def test_a_base_that_is_missing_or_another(tmp_path):
    model, tokenizer = tinygpt.load("tales")
    base = tmp_path / "base"
    save_checkpoint(base / "checkpoints" / "step_000001", model, None, 1)
    tokenizer.save(base / "tokenizer.json")
    checkpoint = base / "checkpoints" / "step_000001"
    out = finetune(tune(tmp_path, "run", base=str(checkpoint), steps=1))
    tinygpt.load(out)
    with torch.no_grad():
        model.norm.weight[0] += 1e-3
    save_checkpoint(checkpoint, model, None, 1)
    with pytest.raises(ValueError, match="has other weights than the ones it was trained on; put that base back"):
        tinygpt.load(out)
    shutil.rmtree(base)
    with pytest.raises(FileNotFoundError, match="its base .* is missing .*; put it back") as error:
        tinygpt.load(out)
    assert "\n" not in str(error.value)
    command = [sys.executable, "-m", "tinygpt", "generate", str(out), "--prompt", "One"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and "is missing" in done.stderr
