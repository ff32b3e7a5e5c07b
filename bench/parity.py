"""Every component beside its reference, with the same random weights, in one table.

    python bench/parity.py            # exit code 1 if any row is over its bound

Figures are the greatest absolute difference in float32, or the share of token ids that differ. The tests hold each
part over grids of shapes (tests/test_layers.py, test_rope.py, test_attention.py, test_model.py, test_tokenizer.py);
this table is the one page to look at. The two rows on real text read the folder of TINYGPT_TEST_DATA, else
../shared/data, and say so where neither is there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import tiktoken
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from test_model import FAMILIES, parity  # noqa: E402  transformers' models, and ours by from_hf

from tinygpt import layers  # noqa: E402
from tinygpt.attention import Attention, AttentionConfig, scaled_dot_product_attention  # noqa: E402
from tinygpt.rope import Rope, scaled_frequencies  # noqa: E402
from tinygpt.tokenizer import BPETokenizer, load_tokenizer  # noqa: E402
from tinygpt.worlds import read_texts, shipped  # noqa: E402

BOUND = 1e-5
Row = tuple[str, str, float, float]  # what, reference, difference, bound


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return (a - b).abs().max().item()


def copy_weights(theirs: nn.Module, ours: nn.Module) -> None:
    "Random weights, the same in both: parameters are matched in order, Conv1D matrices turned."
    with torch.no_grad():
        for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
            nn.init.normal_(a, 1.0 if a.ndim == 1 else 0.0, 0.2)
            b.copy_(a.T if a.shape != b.shape else a)


def layer_rows() -> Iterator[Row]:
    from transformers import GPT2Config, LlamaConfig
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    x = torch.randn(4, 33, 96)
    llama = LlamaConfig(hidden_size=96, intermediate_size=256)
    pairs = [
        ("RMSNorm", "transformers Llama", LlamaRMSNorm(96, 1e-5), layers.RMSNorm(96, 1e-5)),
        ("LayerNorm", "torch", nn.LayerNorm(96), layers.LayerNorm(96)),
        ("Linear with bias", "torch", nn.Linear(96, 50), layers.Linear(96, 50, bias=True)),
    ]
    for name, reference, theirs, ours in pairs:
        copy_weights(theirs, ours)
        yield f"layers: {name}", reference, apart(theirs(x), ours(x)), BOUND
    theirs, ours = LlamaMLP(llama), layers.SwiGLU(96, 256)
    ours.load_state_dict({k.replace("_proj", ""): w for k, w in theirs.state_dict().items()})
    yield "layers: SwiGLU", "transformers Llama", apart(theirs(x), ours(x)), BOUND
    theirs, ours = GPT2MLP(384, GPT2Config(n_embd=96, resid_pdrop=0.0)), layers.GeluMLP(96, 384)
    copy_weights(theirs, ours)
    yield "layers: GeluMLP", "transformers GPT-2", apart(theirs(x), ours(x)), BOUND
    logits, targets = torch.randn(4, 33, 50, requires_grad=True), torch.randint(0, 50, (4, 33))
    targets[0, :7] = -100
    yield "layers: softmax", "torch", apart(torch.softmax(logits, -1), layers.softmax(logits, -1)), BOUND
    want = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    got = layers.cross_entropy(logits, targets)
    yield "layers: cross_entropy", "torch", apart(want, got), BOUND
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (want, got)]
    yield "layers: its gradient", "torch", apart(*gradients), BOUND


def rope_rows() -> Iterator[Row]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.gptj import modeling_gptj
    from transformers.models.llama import modeling_llama

    x = torch.randn(2, 4, 300, 32)
    config = LlamaConfig(hidden_size=128, num_attention_heads=4, max_position_embeddings=300)
    cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(x, torch.arange(300)[None])
    want = modeling_llama.apply_rotary_pos_emb(x, x, cos, sin)[0]
    yield "rope: half layout", "transformers Llama", apart(want, Rope(32, 300, 10000.0)(x)), BOUND
    sin, cos = modeling_gptj.create_sinusoidal_positions(300, 32).chunk(2, -1)
    want = modeling_gptj.apply_rotary_pos_emb(x.transpose(1, 2), sin[None], cos[None]).transpose(1, 2)
    yield "rope: interleaved layout", "transformers GPT-J", apart(want, Rope(32, 300, 10000.0, layout="interleaved")(x)), BOUND
    for kind, options in (
        ("linear", {"factor": 4.0}),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 512}),
        ("llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}),
    ):
        config = LlamaConfig(hidden_size=128, num_attention_heads=4, max_position_embeddings=int(512 * options["factor"]),
                             rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **options})  # fmt: skip
        want, gain = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        got, our_gain = scaled_frequencies(32, 10000.0, {"rope_type": kind, **options})
        yield f"rope: {kind} scaling", "transformers", max(apart(want, got), abs(gain - our_gain)), BOUND


def attention_rows() -> Iterator[Row]:
    from transformers import LlamaConfig, MistralConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
    from transformers.models.mistral.modeling_mistral import MistralAttention

    q, k, v = torch.randn(3, 2, 4, 50, 16)
    mask = torch.rand(50, 50) < 0.5
    mask.fill_diagonal_(True)
    want = F.scaled_dot_product_attention(q, k, v, mask)
    yield "attention: written out", "torch", apart(want, scaled_dot_product_attention(q, k, v, mask)), BOUND
    T, x = 50, torch.randn(2, 50, 96)
    ages = torch.arange(T)[:, None] - torch.arange(T)
    for name, window, Config, Theirs, kv in (
        ("all heads", 0, LlamaConfig, LlamaAttention, 6), ("GQA", 0, LlamaConfig, LlamaAttention, 2),
        ("MQA", 0, LlamaConfig, LlamaAttention, 1), ("GQA with a window of 9", 9, MistralConfig, MistralAttention, 2),
    ):  # fmt: skip
        config = Config(hidden_size=96, num_attention_heads=6, num_key_value_heads=kv, max_position_embeddings=64,
                        attn_implementation="eager", head_dim=16)  # fmt: skip
        theirs = Theirs(config, 0)
        ours = Attention(AttentionConfig(d_model=96, n_heads=6, n_kv_heads=kv, context_length=64, window=window))
        ours.load_state_dict({k.replace("_proj", ""): w for k, w in theirs.state_dict().items()})
        allowed = (ages >= 0) & ((ages < window) if window else True)
        hidden = torch.zeros(T, T).masked_fill(~allowed, float("-inf"))[None, None]
        cos_sin = LlamaRotaryEmbedding(config)(x, torch.arange(T)[None])
        want = theirs(x, position_embeddings=cos_sin, attention_mask=hidden)[0]
        yield f"attention: {name}", f"transformers {Config.__name__.removesuffix('Config')}", apart(want, ours(x)), BOUND


def model_rows() -> Iterator[Row]:
    for name in FAMILIES:
        for part, figure in parity(name).items():
            yield f"model: {name}, {part}", "transformers", figure, BOUND


def differing(a: list[int], b: list[int]) -> float:
    return (abs(len(a) - len(b)) + sum(x != y for x, y in zip(a, b))) / max(len(a), 1)


def tokenizer_rows() -> Iterator[Row]:
    texts = read_texts(shipped("tales/train.txt"))[:2000]
    ours = BPETokenizer.train(texts, 1024)
    text = "\n".join(texts)
    ranks = {token: i for i, token in ours.vocab.items() if i not in ours.special_tokens.values()}
    theirs = tiktoken.Encoding("ours", pat_str=ours.pattern, mergeable_ranks=ranks, special_tokens=ours.special_tokens)
    ids = ours.encode(text)
    yield f"BPE: our vocabulary, {len(ids):,} ids", "tiktoken", differing(ids, theirs.encode_ordinary(text)), 0
    yield f"BPE: our vocabulary, {len(ids):,} ids", "tokenizers (to_hf)", differing(ids, ours.to_hf()(text)["input_ids"]), 0
    folder = Path(os.environ.get("TINYGPT_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "gpt2").is_dir():
        print("GPT-2's vocabulary is not here: set TINYGPT_TEST_DATA to a folder with gpt2/vocab.json to see its rows")
        return
    with tempfile.TemporaryDirectory() as cache:  # where tiktoken looks for what it would download
        for name, here in (("vocab.bpe", "merges.txt"), ("encoder.json", "vocab.json")):
            address = f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}"
            shutil.copy(folder / "gpt2" / here, Path(cache) / hashlib.sha1(address.encode()).hexdigest())
        os.environ["TIKTOKEN_CACHE_DIR"] = cache
        theirs = tiktoken.get_encoding("gpt2")
    ours = load_tokenizer(folder / "gpt2")
    for name in ("tinyshakespeare.txt", "gsm8k/test.jsonl"):
        text = (folder / name).read_text(encoding="utf-8")
        ids = ours.encode(text)
        yield f"BPE: GPT-2 on {Path(name).name}, {len(ids):,} ids", "tiktoken", differing(ids, theirs.encode_ordinary(text)), 0


PARTS: tuple[Callable[[], Iterator[Row]], ...] = (layer_rows, rope_rows, attention_rows, model_rows, tokenizer_rows)


def rows() -> Iterator[Row]:
    for part in PARTS:
        torch.manual_seed(0)
        yield from part()


def main() -> int:
    failed = 0
    print(f"{'component':44} {'reference':22} {'difference':>10}   bound")
    for what, reference, difference, bound in rows():
        over = not difference <= bound  # NaN is over
        failed += over
        print(f"{what:44} {reference:22} {difference:10.1e}   {bound:g}{'   OVER' if over else ''}", flush=True)
    print("all within their bounds" if not failed else f"{failed} over their bounds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
