"The fast decode step against the model it stands for, over random configurations."
import copy, random
import pytest
import torch
from safetensors.torch import load_model, save_model
from tinygpt.cache import KVCache, remember
from tinygpt.decode import DecodeStep, decodable, fast_reader, join
from tinygpt.model import GPT, GPTConfig

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
