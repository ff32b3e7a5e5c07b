"""Models of transformers read by `from_hf`: every family, every field, and what must be refused. Nothing is fetched."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt import interop
from tinygpt.generation import generate
from tinygpt.interop import ROPE_KEYS, config_from_hf, from_hf
from tinygpt.rope import SCALINGS

hf = pytest.importorskip("transformers")
hf.logging.set_verbosity_error()
hf.logging.disable_progress_bar()

V, C = 101, 48  # no two sizes alike, so that a swapped axis is noticed
LLAMA = dict(
    vocab_size=V, hidden_size=C, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, intermediate_size=136,
    max_position_embeddings=64, rms_norm_eps=3e-5, bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
GPT2 = dict(vocab_size=V, n_embd=C, n_layer=3, n_head=6, n_positions=64, bos_token_id=None, eos_token_id=None)
ROPES = {
    "default": {},
    "linear": dict(factor=4.0),
    "llama3": dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    "yarn": dict(factor=4.0, original_max_position_embeddings=16),
    "yarn, every option": dict(factor=4.0, original_max_position_embeddings=16, beta_fast=8.0, beta_slow=2.0, truncate=False,
                               attention_factor=1.3),
    "yarn, mscale": dict(factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=0.3),
}  # fmt: skip


def rope(name: str, theta: float = 10000.0) -> dict:
    return dict(rope_type=name.partition(",")[0], rope_theta=theta, **ROPES[name])


def make(family: str, **changes):
    "A small model of a family; norms and biases are random too."
    torch.manual_seed(0)
    if family == "gpt2":
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**{**GPT2, **changes}))
    else:
        name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
        if family == "qwen3":
            changes = {"head_dim": 10, **changes}
        model = getattr(hf, f"{name}ForCausalLM")(getattr(hf, f"{name}Config")(**{**LLAMA, **changes}))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15) if p.ndim > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    return model.eval()


@torch.no_grad()
def apart(theirs, ours, n_tokens: int = 64) -> float:
    "The greatest difference of logits, by the greatest logit."
    ids = torch.randint(0, V, (2, n_tokens), generator=torch.Generator().manual_seed(1))
    want, got = theirs(ids).logits, ours(ids)
    assert got.shape == want.shape and got.dtype == want.dtype
    return ((want - got).abs().max() / want.abs().max()).item()


FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gpt2"]
ROUNDING = 5e-6
VARIANTS = [
    *[(family, dict(tie_word_embeddings=tied)) for family in FAMILIES for tied in (True, False)],
    *[(family, dict(rope_parameters=rope(name, 500.0))) for family in FAMILIES[:4] for name in ROPES],
    *[("mistral", dict(sliding_window=w)) for w in (None, 1, 7, 40, 4096)],
    *[(family, dict(use_sliding_window=True, sliding_window=7, max_window_layers=n)) for family in ("qwen2", "qwen3") for n in (0, 3)],
    *[("llama", dict(num_key_value_heads=kv)) for kv in (1, 3, 6, None)],
    ("llama", dict(attention_bias=True, mlp_bias=True)),
    ("llama", dict(head_dim=14)),
    ("gpt2", dict(n_inner=100, activation_function="gelu_pytorch_tanh", layer_norm_epsilon=1e-3)),
]


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=str)
def test_logits_equal_transformers(family, changes):
    theirs = make(family, **changes)
    ours = from_hf(theirs)
    assert apart(theirs, ours) < ROUNDING
    tied = changes.get("tie_word_embeddings", theirs.config.tie_word_embeddings)
    assert ours.cfg.tie_embeddings == tied and hasattr(ours, "head") != tied
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@settings(max_examples=40)
@given(st.sampled_from(FAMILIES[:4]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 3]), st.sampled_from([None, 6, 20]),
       st.sampled_from(list(ROPES)), st.sampled_from([100.0, 1e6]), st.booleans())  # fmt: skip
def test_any_shape_of_the_llama_family(family, kv, per_kv, head_dim, scaling, theta, tied):
    theirs = make(family, num_attention_heads=kv * per_kv, num_key_value_heads=kv, head_dim=head_dim or C // (kv * per_kv),
                  rope_parameters=rope(scaling, theta), tie_word_embeddings=tied)  # fmt: skip
    assert apart(theirs, from_hf(theirs)) < ROUNDING


CONFIGS = {  # what the configurations of `make` are in our words, by hand
    "llama": dict(norm="rmsnorm", mlp="swiglu", position="rope", bias=False, qkv_bias=None, window=0, norm_eps=3e-5, n_kv_heads=2),
    "mistral": dict(norm="rmsnorm", mlp="swiglu", position="rope", bias=False, qkv_bias=None, window=4096, norm_eps=3e-5),
    "qwen2": dict(bias=False, qkv_bias=True, qk_norm=False, window=0, d_head=None),
    "qwen3": dict(bias=False, qkv_bias=None, qk_norm=True, window=0, d_head=10),
    "gpt2": dict(norm="layernorm", mlp="gelu", position="learned", bias=True, norm_eps=1e-5, d_ff=None, mlp_width=192, dropout=0.0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_configuration_field_by_field(family):
    cfg = config_from_hf(make(family).config)
    common = dict(vocab_size=V, d_model=C, n_layers=3, n_heads=6, context_length=64, norm_position="pre", rope_layout="half",
                  rope_scaling=None, logit_cap=0.0, init_std=0.02)  # fmt: skip
    for name, value in {**common, **CONFIGS[family]}.items():
        assert getattr(cfg, name) == value, name


def test_every_rule_of_chapter_04_but_ntk_is_read():
    assert set(ROPE_KEYS) == set(SCALINGS) - {"ntk"}  # transformers has no rule of that name


# --- from the disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_directory(family, tmp_path):
    theirs = make(family)
    theirs.save_pretrained(tmp_path)
    assert apart(theirs, from_hf(tmp_path)) < ROUNDING
    assert apart(theirs, from_hf(str(tmp_path))) < ROUNDING


def test_shards_and_half_precision(tmp_path):
    theirs = make("llama").bfloat16()
    theirs.save_pretrained(tmp_path, max_shard_size="50kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = from_hf(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16} and ours.rope.cos.dtype == torch.float32
    assert apart(theirs, ours) < 0.05


def test_an_old_configuration_file(tmp_path):
    "Files from before transformers 5 keep rope_theta beside rope_scaling, whose kind is called type."
    theirs = make("llama", rope_parameters=rope("linear", 500.0))
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | dict(rope_theta=500.0, rope_scaling=dict(type="linear", factor=4.0))))
    ours = from_hf(tmp_path)
    assert ours.cfg.rope_theta == 500 and ours.cfg.rope_scaling == dict(rope_type="linear", factor=4.0)
    assert apart(theirs, ours) < ROUNDING


# --- what comes back is a model like any other ------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_it_shares_nothing_with_the_model_given_and_learns(family):
    theirs = make(family)
    before, ours = {k: w.clone() for k, w in theirs.state_dict().items()}, from_hf(theirs)
    assert not ours.training and all(p.requires_grad and p.is_contiguous() and p.is_leaf for p in ours.parameters())
    ids = torch.randint(0, V, (2, 20))
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    first = ours.train().loss(ids[:, :-1], ids[:, 1:])
    first.backward()
    optimizer.step()
    assert ours.loss(ids[:, :-1], ids[:, 1:]) < first
    assert all(torch.equal(w, before[k]) for k, w in theirs.state_dict().items())


def test_a_model_from_the_disk_is_not_held_twice(monkeypatch):
    theirs = make("llama")
    monkeypatch.setattr(interop, "open_hf", lambda source: theirs)
    places = {w.data_ptr() for w in theirs.parameters()}
    assert all(p.data_ptr() in places for p in from_hf("a-name").parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_texts_equal_transformers(family):
    theirs = make(family)
    ids = torch.randint(1, V, (3, 9), generator=torch.Generator().manual_seed(2))
    want = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0)
    assert torch.equal(generate(from_hf(theirs), ids, 40, temperature=0), want)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_shorter_context(family):
    theirs = make(family)
    ours = from_hf(theirs, context_length=20)
    assert ours.cfg.context_length == 20 and apart(theirs, ours, 20) < ROUNDING
    for wrong in (0, 65):
        with pytest.raises(ValueError, match=r"context_length=\d+ must lie in 1..64; "):
            from_hf(theirs, context_length=wrong)


def test_nothing_is_drawn():
    theirs = make("llama")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    from_hf(theirs)
    assert torch.equal(torch.get_rng_state(), state)


# --- what is refused --------------------------------------------------------------------------------------------

REFUSED = [
    ("llama", dict(rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4)), "rope_type='dynamic'"),
    ("llama", dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)), "partial_rotary_factor=0.5"),
    ("llama", dict(attention_bias=True), "attention_bias=True with mlp_bias=False"),
    ("qwen3", dict(attention_bias=True), "attention_bias=True with mlp_bias=False"),
    ("llama", dict(hidden_act="relu"), "hidden_act='relu'"),
    ("qwen2", dict(use_sliding_window=True, sliding_window=7, max_window_layers=2), "layer_types="),
    ("gpt2", dict(activation_function="relu"), "activation_function='relu'"),
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", dict(scale_attn_weights=False), "scale_attn_weights=False"),
]


@pytest.mark.parametrize(("family", "changes", "fact"), REFUSED, ids=str)
def test_what_cannot_be_built_is_refused_in_one_line(family, changes, fact, tmp_path):
    theirs = make(family, **changes)
    theirs.save_pretrained(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()  # the configuration is enough to refuse: no weights are read or fetched
    for source in (theirs, tmp_path):
        with pytest.raises(ValueError) as error:
            from_hf(source)
        message = str(error.value)
        assert message.startswith("from_hf: ") and fact in message and "; " in message and "\n" not in message


def test_without_a_network_the_hub_is_not_waited_for(monkeypatch):
    asked = {}

    def refuse(source, **how):
        asked.update(how)
        raise OSError("not stored here")

    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", refuse)
    for known in (False, True):
        monkeypatch.setattr(interop, "hub_is_known", lambda: known)
        with pytest.raises(FileNotFoundError, match="from_hf: no/such-model cannot be read .* a network .not stored here"):
            from_hf("no/such-model")
        assert asked["local_files_only"] is not known


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="model_type='gpt_neox' is not known; .*gpt2, llama, mistral, qwen2, qwen3"):
        from_hf(hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)))
    with pytest.raises(ValueError, match="model.embed_tokens.weight is missing.*AutoModelForCausalLM"):
        from_hf(hf.LlamaModel(hf.LlamaConfig(**LLAMA)))
    with pytest.raises(ValueError, match="a Linear is no transformers model"):
        from_hf(torch.nn.Linear(2, 2))
    adapted = make("llama")
    adapted.model.layers[0].self_attn.q_proj.lora_A = torch.nn.Linear(C, 2, bias=False)
    with pytest.raises(ValueError, match="lora_A.weight is no part of the model"):
        from_hf(adapted)
    packed = make("llama")
    packed.config.quantization_config = dict(quant_method="int8")
    with pytest.raises(ValueError, match="quantization_config"):
        from_hf(packed)


def test_paths_that_hold_no_model(tmp_path):
    one_line = r"^from_hf: [^\n]*; [^\n]*$"
    with pytest.raises(FileNotFoundError, match=one_line):
        from_hf(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=one_line):
        from_hf(tmp_path)
    with pytest.raises(FileNotFoundError, match=one_line):
        from_hf("nobody/has-such-a-model")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(FileNotFoundError, match="tinygpt.load reads our own runs"):
        from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=one_line):
        from_hf(tmp_path)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    theirs = make("llama")
    theirs.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    whole = load_file(file)
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({k: w for k, w in whole.items() if k != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{lost} is in no file and would be random"):
        from_hf(tmp_path)
    save_file(whole | {lost: whole[lost][:5].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^from_hf: [^\n]*$"):
        from_hf(tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"^from_hf: [^\n]*$"):
        from_hf(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"^from_hf: [^\n]*$"):
        from_hf(tmp_path)
    shutil.rmtree(tmp_path)


# --- bench/generation.py ----------------------------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch):
    "The benchmark with a model so small that it runs in no time."
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
    import generation

    tiny = dict(vocab_size=67, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
    monkeypatch.setitem(generation.SIZES, "small", tiny)
    monkeypatch.setattr(generation, "read_speed", lambda: 1e9)
    yield generation
    sys.path.pop(0)


SHORT = ["--sizes", "small", "--batches", "1", "3", "--prompts", "5", "--new", "9", "--repeats", "1", "--threads", "1"]


def test_the_benchmark_compares_equal_texts(bench, capsys):
    assert bench.main(SHORT) == 0
    page = capsys.readouterr().out
    assert page.count("hf dynamic") == page.count("hf static") == 2 and "all texts equal" in page
    assert "3 of 9 tokens" in page and "times transformers' best eager" in page


def test_the_benchmark_notices_another_text(bench, capsys, monkeypatch):
    def wrong(model):
        right = bench.theirs_with(bench.make_theirs("small"), None)

        def write(ids, n_new):
            out = right(ids, n_new).clone()
            out[0, -1] = (out[0, -1] + 1) % 67
            return out

        return write

    monkeypatch.setattr(bench, "ours_with", wrong)
    assert bench.main(SHORT) == 1
    assert "1 of 3 texts part" in (page := capsys.readouterr().out) and "NOT EQUAL" in page


@pytest.mark.parametrize("wrong", ["--prompts 0", "--new 0", "--prompts 1000", "--sizes large", "--threads -1"])
def test_the_benchmark_refuses_what_it_cannot_run(bench, wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(wrong.split())
    assert stopped.value.code == 2 and "error" in capsys.readouterr().err
