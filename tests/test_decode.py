"The fast decode step against the model it stands for, over random configurations."
import copy, random
import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from tinygpt.cache import KVCache
from tinygpt.decode import DecodeStep, decodable, fast_reader, unjoin
from tinygpt.model import GPT, GPTConfig
from tinygpt.quantization import quantize
from tinygpt.sampling import reread

def random_config(seed: int) -> GPTConfig:
    r = random.Random(seed)
    K, G, D = r.choice([1, 2, 3]), r.choice([1, 2, 4]), r.choice([4, 8, 16])
    position, T = r.choice(["rope", "rope", "learned", "none"]), r.choice([24, 48])
    scaling = r.choice([None, None, {"rope_type": "linear", "factor": 2.0},
                        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}])
    d_head = r.choice([None, D])
    return GPTConfig(
        vocab_size=r.choice([11, 50, 300]), context_length=T, d_model=K * G * D, n_layers=r.choice([1, 2, 3]),
        n_heads=K * G, n_kv_heads=K, d_head=d_head, d_ff=r.choice([None, 12, 40]), window=r.choice([0, 0, 5, 9]),
        position=position, rope_layout=r.choice(["half", "interleaved"]),
        rope_scaling=scaling if position == "rope" else None, bias=r.random() < 0.4,
        qkv_bias=r.choice([None, True]), qk_norm=r.random() < 0.3, logit_cap=r.choice([0.0, 0.0, 3.0]),
        norm=r.choice(["rmsnorm", "rmsnorm", "layernorm", "none"]), norm_position=r.choice(["pre", "pre", "post"]),
        mlp=r.choice(["swiglu", "gelu"]), tie_embeddings=r.random() < 0.5, init_std=0.2)

def make(seed: int, **changes) -> GPT:
    torch.manual_seed(seed)
    model = GPT(random_config(seed).replace(**changes)).eval()
    for p in model.parameters():
        if p.ndim == 1: p.data.add_(torch.randn_like(p), alpha=0.2) # biases and norms that count
    return model

@pytest.mark.parametrize("seed", range(60))
def test_equals_the_uncached_model(seed):
    model, r = make(seed), random.Random(seed)
    cfg, B = model.cfg, r.choice([1, 1, 3])
    lengths = [r.randint(2, 10) for _ in range(B)] if r.random() < 0.6 else [r.randint(2, 10)] * B
    pads = [max(lengths) - n for n in lengths]
    slack = r.choice([0, 4])
    ids = torch.randint(cfg.vocab_size, (B, cfg.context_length)) # with the pads in front
    expected = [model(ids[b:b + 1, pad:])[0] for b, pad in enumerate(pads)]
    cache = KVCache(cfg, B, slack=slack, pads=pads if any(pads) else None)
    step, at = DecodeStep(model, cache), max(lengths)
    with torch.no_grad():
        got = model(ids[:, :at], cache=cache)
        while at < cfg.context_length:
            T = min(r.choice([1, 1, 1, 2, 3, 5, 7]), cfg.context_length - at)
            got = step(ids[:, at:at + T])
            assert cache.length == at + T
            if slack and r.random() < 0.3: # a draft is taken back
                cache.truncate(at + T - r.randint(1, min(T, slack)))
                at = cache.length
                continue
            for b, pad in enumerate(pads):
                torch.testing.assert_close(got[b], expected[b][at - pad:at + T - pad], atol=2e-4, rtol=2e-4)
            at += T

def fill(model, n_rows=1, n_tokens=6, **options):
    ids = torch.randint(model.cfg.vocab_size, (n_rows, model.cfg.context_length))
    cache = KVCache(model.cfg, n_rows, dtype=next(p for p in model.parameters() if p.is_floating_point()).dtype, **options)
    with torch.no_grad(): model(ids[:, :n_tokens], cache=cache)
    return ids, cache

def next_equals(model, step, ids, n, **close):
    with torch.no_grad(): expected = model(ids[:, :n + 1])[:, -1:]
    torch.testing.assert_close(step(ids[:, n:n + 1]), expected, **(close or dict(atol=2e-4, rtol=2e-4)))

PLAIN = GPTConfig(vocab_size=50, context_length=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, init_std=0.2)

def test_weights_may_change_under_a_live_step():
    torch.manual_seed(0)
    model = GPT(PLAIN)
    ids, cache = fill(model)
    step = DecodeStep(model, cache)
    step(ids[:, 6:7])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.loss(ids[:, :-1], ids[:, 1:]).backward() # the joined parameters train
    optimizer.step()
    others = GPT(PLAIN).state_dict()
    def trained(): pass
    for change in (trained, lambda: model.load_state_dict(others), lambda: model.load_state_dict(GPT(PLAIN).state_dict(), assign=True),
                   lambda: setattr(model.blocks[0].attention.q, "weight", torch.nn.Parameter(torch.randn(16, 16))),
                   lambda: model.double().float()):
        change()
        cache.truncate(0)
        with torch.no_grad(): model(ids[:, :6], cache=cache)
        next_equals(model, step, ids, 6)

def test_nothing_is_stored_twice():
    torch.manual_seed(0)
    model = GPT(PLAIN.replace(bias=True, tie_embeddings=False))
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids, cache = fill(model)
    step = DecodeStep(model, cache)
    step(ids[:, 6:7])
    first = step.where()
    again = DecodeStep(model, cache)
    again(ids[:, 7:8])
    assert first == again.where() # a second step finds them laid out
    memory = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(memory.values()) == sum(p.numel() * 4 for p in model.parameters())
    for name, p in model.named_parameters(): assert torch.equal(p, before[name]) and p.requires_grad and not p.is_inference()

def test_copies_and_files(tmp_path):
    torch.manual_seed(0)
    model = GPT(PLAIN)
    ids, cache = fill(model)
    with torch.inference_mode(): DecodeStep(model, cache)(ids[:, 6:7])
    twin, other = copy.deepcopy(model), GPT(PLAIN)
    contiguous = {name: p.detach().contiguous() for name, p in model.named_parameters()} # as save_checkpoint writes
    save_file(contiguous, str(tmp_path / "ours.safetensors"))
    other.load_state_dict(load_file(str(tmp_path / "ours.safetensors")))
    unjoin(model)
    save_model(model, str(tmp_path / "model.safetensors"))
    load_model(other, str(tmp_path / "model.safetensors"))
    for name, p in model.named_parameters():
        assert torch.equal(p, twin.get_parameter(name)) and torch.equal(p, other.get_parameter(name))
    twin.loss(ids, ids).backward()
    with torch.no_grad(): twin.blocks[0].attention.q.weight.zero_()
    assert model.blocks[0].attention.q.weight.any() # the copy is a copy

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_other_dtypes(dtype, seed):
    model = make(seed, window=0, init_std=0.05).to(dtype)
    ids, cache = fill(model, 2)
    close = dict(atol=1e-9, rtol=1e-7) if dtype == torch.float64 else dict(atol=0.05, rtol=0.05)
    next_equals(model, DecodeStep(model, cache), ids, 6, **close)

def read_all(model, reader, prompts, n_new, drop_at=3):
    "Greedy texts by a reader that is asked as `decode_steps` asks; the first row ends early."
    lengths, rows = [len(p) for p in prompts], list(range(len(prompts)))
    ids = torch.zeros(len(prompts), max(lengths) + n_new, dtype=torch.long)
    for row, p in zip(ids, prompts): row[:len(p)] = torch.tensor(p)
    read, out = reader(model, None), {r: [] for r in rows}
    with torch.inference_mode():
        for i in range(n_new):
            if i == drop_at and len(rows) > 1: ids, lengths, rows = ids[1:], lengths[1:], rows[1:]
            tokens = read(ids, lengths, rows).argmax(-1)
            for j, (r, t) in enumerate(zip(rows, tokens.tolist())):
                ids[j, lengths[j]] = t
                out[r].append(t)
            lengths = [n + 1 for n in lengths]
    return out

@pytest.mark.parametrize("seed", range(12))
def test_reader_writes_what_rereading_writes(seed):
    model, r = make(seed), random.Random(seed)
    prompts = [[r.randrange(model.cfg.vocab_size) for _ in range(r.randint(1, 6))] for _ in range(r.choice([1, 3]))]
    n_new = model.cfg.context_length - 6
    assert read_all(model, fast_reader, prompts, n_new) == read_all(model, reread, prompts, n_new)

def test_what_is_not_covered_is_remembered():
    model = GPT(PLAIN).eval()
    assert decodable(model)
    model.blocks[0].mlp.register_forward_hook(lambda m, i, o: o * 0)
    assert not decodable(model)
    prompts = [[1, 2, 3]]
    assert read_all(model, fast_reader, prompts, 8) == read_all(model, reread, prompts, 8)
    class Other(GPT): pass
    assert not decodable(Other(PLAIN)) and not decodable(lambda ids: ids)
    with torch.autocast("cpu", torch.bfloat16): assert not decodable(GPT(PLAIN))

def test_refusals():
    model = GPT(PLAIN).eval()
    ids, cache = fill(model, n_tokens=32)
    step = DecodeStep(model, cache)
    for wrong, word in ((ids[:, :1], "max_len"), (ids.repeat(2, 1)[:, :1], "batch"), (torch.tensor([[50]]), "vocab_size")):
        if word != "max_len": cache.truncate(6)
        with pytest.raises(ValueError, match=word): step(wrong)
    assert cache.length == 6 # a step that fails changes nothing

def test_a_cache_of_another_model_is_refused():
    cfg = GPTConfig(vocab_size=30, n_layers=2, n_heads=2, d_model=16, context_length=12)
    for n_layers in (1, 3):
        with pytest.raises(ValueError, match=f"cache of {n_layers} layers does not fit a model of 2; build it with"):
            DecodeStep(GPT(cfg).eval(), KVCache(cfg.replace(n_layers=n_layers), 1))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_layers_are_joined_by_their_own_rule(bits):
    torch.manual_seed(0)
    model = GPT(PLAIN.replace(d_model=64, vocab_size=64, d_ff=128, bias=True)).eval()
    model = quantize(model, bits=bits, group_size=32) if bits == 4 else quantize(model, bits=bits)
    prompts = [[1, 2, 3], [4, 5]]
    assert decodable(model)
    ids, cache = fill(model)
    step = DecodeStep(model, cache)
    before = model(ids[:, :7])[:, -1:]
    torch.testing.assert_close(step(ids[:, 6:7]), before, atol=0.05, rtol=0.05) # int4 kernels round to bfloat16
    first = step.where()
    again = DecodeStep(model, cache)
    again(ids[:, 7:8]), step(ids[:, 8:9])
    assert again.where() == first == step.where() # two live steps do not lay the weights out for each other
    assert len(read_all(model, fast_reader, prompts, 8)[1]) == 8
