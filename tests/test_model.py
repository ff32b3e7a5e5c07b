"""The whole model beside transformers', and what must hold for every configuration.

    python tests/test_model.py      # the parity figures as a table
"""

import dataclasses
import json
import math

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.attention import capture_attention, set_dropout
from tinygpt.interop import from_hf
from tinygpt.model import GPT, PRESETS, GPTConfig, init_weights, profile

close = torch.testing.assert_close
V, T, C = 101, 40, 48  # no two sizes alike, so that a swapped axis is noticed
HF = dict(
    vocab_size=V, hidden_size=C, num_hidden_layers=3, num_attention_heads=6, intermediate_size=136,
    max_position_embeddings=64, rms_norm_eps=1e-5, attn_implementation="eager",
    bos_token_id=None, eos_token_id=None, pad_token_id=None,
)


# --- the same weights in both -----------------------------------------------------------------------------------

def family(name: str):
    "A transformers model with random weights (norms and biases too), and ours with the same ones, by `from_hf`."
    import transformers as hf

    torch.manual_seed(0)
    kv = dict(num_key_value_heads=2)
    if name == "llama":
        theirs = hf.LlamaForCausalLM(hf.LlamaConfig(**HF, **kv, tie_word_embeddings=False))
    elif name == "llama-tied":
        theirs = hf.LlamaForCausalLM(hf.LlamaConfig(**HF, tie_word_embeddings=True))
    elif name == "mistral":
        theirs = hf.MistralForCausalLM(hf.MistralConfig(**HF, **kv, sliding_window=7, tie_word_embeddings=False))
    elif name == "qwen2":
        theirs = hf.Qwen2ForCausalLM(hf.Qwen2Config(**HF, **kv, tie_word_embeddings=True))
    elif name == "qwen3":
        theirs = hf.Qwen3ForCausalLM(hf.Qwen3Config(**HF, **kv, head_dim=12, tie_word_embeddings=True))
    elif name == "gpt2":
        theirs = hf.GPT2LMHeadModel(hf.GPT2Config(
            vocab_size=V, n_embd=C, n_layer=3, n_head=6, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
            attn_implementation="eager", bos_token_id=None, eos_token_id=None))  # fmt: skip
    for p in theirs.parameters():  # larger than at a start: norms, biases and attention all matter
        torch.nn.init.normal_(p, std=0.15) if p.ndim > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    return theirs.eval(), from_hf(theirs)


FAMILIES = ["llama", "llama-tied", "mistral", "qwen2", "qwen3", "gpt2"]


def parity(name: str) -> dict[str, float]:
    "The greatest difference between transformers' model and ours: logits, loss, and gradients by the greatest gradient."
    theirs, ours = family(name)
    ids = torch.randint(0, V, (3, T), generator=torch.Generator().manual_seed(1))
    a, b = theirs(ids).logits, ours(ids)
    loss = torch.nn.functional.cross_entropy(a[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    ours_loss = ours.loss(ids[:, :-1], ids[:, 1:])
    loss.backward(), ours_loss.backward()
    pairs = [
        (theirs.get_input_embeddings().weight.grad, ours.embed.weight.grad),
        (dict(theirs.named_parameters())[LAST_NORM[name == "gpt2"]].grad, ours.blocks[0].attention_norm.weight.grad),
    ]
    gradients = max(((x - y).abs().max() / x.abs().max()).item() for x, y in pairs)
    return {"logits": (a - b).abs().max().item(), "loss": abs(loss.item() - ours_loss.item()), "gradients": gradients}


LAST_NORM = ["model.layers.0.input_layernorm.weight", "transformer.h.0.ln_1.weight"]


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_transformers(name):
    figures = parity(name)
    assert max(figures.values()) < 1e-5, figures


# --- every configuration ----------------------------------------------------------------------------------------

options = st.fixed_dictionaries(dict(
    norm=st.sampled_from(["rmsnorm", "layernorm", "none"]), norm_position=st.sampled_from(["pre", "post"]),
    position=st.sampled_from(["rope", "learned", "none"]), mlp=st.sampled_from(["swiglu", "gelu"]), bias=st.booleans(),
    tie_embeddings=st.booleans(), n_kv_heads=st.sampled_from([None, 1, 2]), window=st.sampled_from([0, 1, 5, 30]),
    qk_norm=st.booleans(), logit_cap=st.sampled_from([0.0, 8.0]), d_head=st.sampled_from([None, 6]),
    dropout=st.sampled_from([0.0, 0.2]), d_ff=st.sampled_from([None, 33]), qkv_bias=st.sampled_from([None, True]),
    rope_layout=st.sampled_from(["half", "interleaved"]),
))  # fmt: skip


def build(changes: dict) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**dict(vocab_size=19, context_length=48, d_model=16, n_layers=2, n_heads=4), **changes})).eval()


@given(options)
def test_every_configuration_is_causal_and_lets_every_parameter_learn(changes):
    model = build(changes)
    ids = torch.randint(0, 19, (2, 40))
    with torch.no_grad():
        logits = model(ids)
        assert logits.shape == (2, 40, 19) and logits.isfinite().all()
        later = ids.clone()
        later[:, 25:] = torch.randint(0, 19, (2, 15))
        assert torch.equal(model(later)[:, :25], logits[:, :25])
    model.train().loss(ids[:, :-1], ids[:, 1:]).backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    if changes["window"] == 1:  # each token sees itself alone: nothing depends on queries and keys
        still = {n for n in still if not any(s in n for s in (".q", ".k"))}
    assert not {n for n in still if not n.endswith("attention.k.bias")}  # a constant added to all scores changes nothing


@given(options)
def test_configs_survive_yaml_and_json(changes):
    cfg = build(changes).cfg
    assert GPTConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    assert GPTConfig.from_dict(yaml.safe_load(yaml.safe_dump(cfg.to_dict()))) == cfg
    assert dataclasses.replace(cfg, dropout=0.1) == cfg.replace(dropout=0.1)


@given(options, st.integers(0, 9))
def test_packed_documents_equal_documents_alone(changes, seed):
    model = build(changes)
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randint(0, 19, (1, int(n)), generator=g) for n in torch.randint(1, 14, (3,), generator=g)]
    doc_ids = torch.cat([torch.full_like(p, i) for i, p in enumerate(parts)], 1)
    positions = torch.cat([torch.arange(p.shape[1]) for p in parts])[None]
    with torch.no_grad():
        close(model(torch.cat(parts, 1), positions, doc_ids), torch.cat([model(p) for p in parts], 1), atol=1e-5, rtol=1e-5)


@given(options)
def test_padding_changes_nothing(changes):
    model = build(changes)
    ids, targets = torch.randint(0, 19, (3, 20)), torch.randint(0, 19, (3, 20))
    lengths = (20, 3, 11)
    for row, n in enumerate(lengths):
        targets[row, n:] = -100
    with torch.no_grad():
        total = sum(model.loss(ids[r : r + 1, :n], targets[r : r + 1, :n]) * n for r, n in enumerate(lengths))
        close(model.loss(ids, targets), total / sum(lengths), atol=1e-5, rtol=1e-5)


@given(options)
def test_a_copy_by_state_dict_is_the_same_model(changes):
    model = build(changes)
    names = list(model.state_dict())
    assert len(names) == len(set(names)) and not any("rope" in n for n in names)
    assert ("head.weight" in names) != model.cfg.tie_embeddings
    copy = GPT(model.cfg)
    copy.load_state_dict(model.state_dict())
    ids = torch.randint(0, 19, (1, 30))
    with torch.no_grad():
        assert torch.equal(model(ids), copy.eval()(ids))


@given(options)
def test_checkpointing_gives_the_same_gradients(changes):
    model = build({**changes, "dropout": 0.0}).train()
    ids = torch.randint(0, 19, (2, 30))

    def gradients():
        model.zero_grad()
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.checkpointing = True
    close(gradients(), plain)


# --- the beginning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "small", "medium"])
def test_initial_loss_is_ln_v(name):
    cfg = PRESETS[name]
    torch.manual_seed(0)
    model, ids = GPT(cfg), torch.randint(0, cfg.vocab_size, (2, 65))
    with torch.no_grad():
        loss = model.loss(ids[:, :-1], ids[:, 1:]).item()
    assert abs(loss - math.log(cfg.vocab_size)) < 0.02 * math.log(cfg.vocab_size)


def test_initialisation_follows_gpt2():
    model = build(dict(d_model=64, n_layers=8, bias=True))
    for name, p in model.named_parameters():
        if p.ndim > 1:
            std = 0.02 / 4 if name.endswith(("attention.o.weight", "mlp.down.weight")) else 0.02
            assert abs(p.std() / std - 1) < 0.1 and abs(p.mean()) < std / 4, name
        else:
            assert (p == (0.0 if name.endswith("bias") else 1.0)).all(), name


def test_initialisation_can_be_drawn_from_a_generator():
    model = build({})
    init_weights(model, torch.Generator().manual_seed(7))
    first = [p.clone() for p in model.parameters()]
    init_weights(model, torch.Generator().manual_seed(7))
    close(list(model.parameters()), first, atol=0, rtol=0)


def test_overfits_one_batch():
    model = build(dict(vocab_size=32, d_model=32)).train()
    ids = torch.randint(0, 32, (4, 33))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss < 0.05


# --- errors, dropout, precision -----------------------------------------------------------------------------------

BAD = [
    (dict(n_layers=0), "GPTConfig: n_layers=0 must be finite and at least 1; "),
    (dict(vocab_size=-1), "GPTConfig: vocab_size=-1 must be finite and at least 0; "),
    (dict(norm="batchnorm"), "GPTConfig: norm='batchnorm' must be rmsnorm or layernorm or none; "),
    (dict(mlp="relu"), "GPTConfig: mlp='relu' must be swiglu or gelu; "),
    (dict(init_std=-0.1), "GPTConfig: init_std=-0.1 must be finite and at least 0; "),
    (dict(n_heads=5), "GPTConfig: n_heads=5 does not divide d_model=16; "),
]


@pytest.mark.parametrize("changes,message", BAD, ids=[str(b[0]) for b in BAD])
def test_configs_that_cannot_be_built(changes, message):
    with pytest.raises(ValueError) as e:
        build(changes)
    assert str(e.value).startswith(message)


def test_unknown_and_missing_keys_are_named():
    good = PRESETS["tiny"].to_dict()
    with pytest.raises(ValueError, match="GPTConfig: n_layer=2 is no field; did you mean n_layers?"):
        GPTConfig.from_dict({**good, "n_layer": 2})
    with pytest.raises(ValueError, match="GPTConfig: n_layers is missing; "):
        GPTConfig.from_dict({k: v for k, v in good.items() if k != "n_layers"})


def test_errors_of_the_model():
    with pytest.raises(ValueError, match="GPT: vocab_size=0 .*tokenizer"):
        build(dict(vocab_size=0))
    model = build({})
    for bad, message in (
        (torch.zeros(1, 49), "49 tokens exceed context_length=48"),
        (torch.zeros(5), r"ids of shape \(5,\) are not \(B, T\)"),
        (torch.full((1, 3), 19), "vocab_size=19"),
    ):
        with pytest.raises(ValueError, match=message):
            model(bad.long())
    with pytest.raises(ValueError, match="-100"):
        model.loss(torch.zeros(1, 3).long(), torch.full((1, 3), -100))


def test_dropout_is_off_in_evaluation_and_can_be_annealed():
    model, ids = build(dict(dropout=0.3)), torch.randint(0, 19, (2, 30))
    still = model(ids)
    assert torch.equal(model(ids), still)
    assert not torch.equal(model.train()(ids), model(ids))
    set_dropout(model, 0.0)
    close(model(ids), still)


def test_capture_sees_every_layer():
    model, ids = build(dict(window=4, n_kv_heads=2)), torch.randint(0, 19, (2, 30))
    with capture_attention(model) as maps:
        model(ids)
    assert [m.shape for m in maps] == [(2, 4, 30, 30)] * 2
    close(torch.stack(maps).sum(-1), torch.ones(2, 2, 4, 30))


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_bf16_autocast_follows_float32(norm):
    model, ids = build(dict(d_model=64, norm=norm)).train(), torch.randint(0, 19, (2, 31))
    full = model.loss(ids[:, :-1], ids[:, 1:])
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(ids[:, :-1], ids[:, 1:])
    assert half.dtype == torch.float32
    close(half, full, atol=0.01, rtol=0.01)
    half.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_gpt2_has_its_known_size():
    with torch.device("meta"):
        model = GPT(PRESETS["gpt2-124m"])
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


if __name__ == "__main__":
    print(f"{'family':12}" + "".join(f"{k:>12}" for k in ("logits", "loss", "gradients")))
    for name in FAMILIES:
        print(f"{name:12}" + "".join(f"{v:12.1e}" for v in parity(name).values()))


def test_what_is_no_model_and_what_are_no_ids():
    cfg = GPTConfig(vocab_size=20, context_length=8, d_model=16, n_layers=1, n_heads=2)
    model = GPT(cfg)
    ids = torch.arange(8)[None]
    assert torch.equal(model.loss(ids.int(), ids.int()), model.loss(ids, ids))
    refused = [
        (lambda: model(ids.float()), "ids of torch.float32 are no whole numbers"),
        (lambda: model(ids[:, :0]), "hold nothing"),
        (lambda: model.loss(ids, ids.float()), "targets are torch.float32"),
        (lambda: GPT("tiny"), "give one: PRESETS['tiny'], or model.cfg"),
        (lambda: profile("tiny"), "is no GPTConfig"),
        (lambda: profile(model), "is no GPTConfig"),
        (lambda: cfg.replace(rope_scaling={"rope_type": "foo"}), "rope_type='foo' is not one of"),
    ]
    for call, said in refused:
        with pytest.raises(ValueError) as error:
            call()
        assert said in str(error.value) and "\n" not in str(error.value)
