"""Writes the pictures of the home page: one sentence on its way through the shipped model, a tale that it told, and
an explorer to go on with.

    python site/home.py        # writes site/_parts/home.md and site/_parts/explorer.md

Everything in it is computed: the tokens, where one head looks, the chances of the next word, and how many bits each
word of the tale cost. The first needs no script: site/book.scss shades what has a class `tok` by its --w, from 0 to 1.
The second carries the explorers' script (tinygpt/static): run this again when that has changed.
"""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

import torch

from tinygpt.attention import capture_attention
from tinygpt.explorers import SamplingExplorer
from tinygpt.generation import generate_text
from tinygpt.model import GPT
from tinygpt.runs import load
from tinygpt.tokenizer import Tokenizer
from tinygpt.worlds import consistency

SENTENCE = (
    "One rainy day, Mia the baker was at the garden with a young cow called Patch. She had three coins. "
    "Tom the cook was at the river with a red kite. Mia went to meet Tom at the"
)
LAYER, HEAD = 2, 1  # of those that look for a place, the one that is surest here
TALE = {"prompt": "One rainy day, Mia the baker", "seed": 12, "min_p": 0.1}
MOST_BITS = 4.0  # a word that costs so much, or more, is shaded full


def token(text: str, weight: float = 0.0, tip: str = "") -> str:
    "One token as a span; its own space stays outside, so that lines break where words do."
    space = " " if text.startswith(" ") else ""
    shade = f' style="--w:{weight:.2f}"' if weight >= 0.005 else ""
    title = f' title="{escape(tip)}"' if tip else ""
    return f'{space}<span class="tok"{shade}{title}>{escape(text.strip())}</span>'


@torch.no_grad()
def look(model: GPT, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    "Where the chosen head looks from the last token, (T,), and the chances of the next one, (V,)."
    with capture_attention(model) as maps:
        logits = model(torch.tensor([ids]))
    return maps[LAYER][0, HEAD, -1], logits[0, -1].softmax(-1)


@torch.no_grad()
def surprises(model: GPT, ids: list[int]) -> list[float]:
    "How many bits each token cost the model, but for the first, which nobody predicts."
    chances = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)  # (T - 1, V)
    return [-chances[i, id].item() / math.log(2) for i, id in enumerate(ids[1:])]


def sentence_panels(model: GPT, tokenizer: Tokenizer) -> list[str]:
    ids = [tokenizer.eot_id, *tokenizer.encode(SENTENCE)]
    weights, chances = look(model, ids)
    texts = [tokenizer.decode([id]) for id in ids]
    cut = "".join(token(text, 0, f"token {id}") for id, text in zip(ids[1:], texts[1:]))
    seen = "".join(token(t, w, f"{w:.0%}" if w >= 0.005 else "") for t, w in zip(texts[1:], weights[1:].tolist()))
    best = chances.topk(4)
    bars = "".join(
        f'<li><span>{escape(tokenizer.decode([int(id)]).strip())}</span>'
        f'<span class="bar" style="--w:{p:.3f}"></span><span>{p:.1%}</span></li>'
        for p, id in zip(best.values.tolist(), best.indices.tolist())
    )
    n = len(ids) - 1
    return [
        panel("Text becomes tokens", f'<p class="tokens cut">{cut}</p>', f"{n} tokens, from the {tokenizer.vocab_size:,} that the book's own tokenizer has learned."),
        panel("A token looks back", f'<p class="tokens">{seen}</p>', f"Where head {HEAD + 1} of layer {LAYER + 1} looks from the last word, “the”: the stronger the shade, the more."),
        panel("And says what comes next", f'<ol class="bars">{bars}</ol>', "The chances of the next word. Tom is at the river; the garden is where Mia stands."),
    ]  # fmt: skip


def panel(title: str, inside: str, caption: str) -> str:
    return f"<section>\n<h3>{title}</h3>\n{inside}\n<p class=\"says\">{caption}</p>\n</section>"


def tale_panel(model: GPT, tokenizer: Tokenizer) -> str:
    prompt = TALE["prompt"]
    text = prompt + generate_text(model, tokenizer, prompt, seed=TALE["seed"], min_p=TALE["min_p"])
    assert consistency([text]).share == 1, "home.py: this tale does not hold together; take another seed"
    ids = [tokenizer.eot_id, *tokenizer.encode(text)]
    bits, n = surprises(model, ids), len(tokenizer.encode(prompt))
    told = "".join(
        token(tokenizer.decode([id]), min(b / MOST_BITS, 1) if i >= n else 0, f"{b:.1f} bits" if i >= n else "given")
        for i, (id, b) in enumerate(zip(ids[1:], bits))
    )
    caption = (
        f"Told by the model that comes with the package, from the words “{prompt}”; the {len(ids) - 1 - n} tokens after them "
        f"cost {sum(bits[n:]):.0f} bits. Shaded words were a choice, the others follow: candles stay candles, and three stay three."
    )
    return f"<section class=\"tale\">\n<h3>Again and again: a tale</h3>\n<p class=\"tokens\">{told}</p>\n<p class=\"says\">{caption}</p>\n</section>"


def raw(html: str) -> str:
    "HTML that pandoc passes on as it is."
    return f"<!-- Written by site/home.py from the shipped model. -->\n\n``````{{=html}}\n{html}\n``````\n"


def main() -> None:
    torch.set_num_threads(1)
    model, tokenizer = load("tales")
    panels = "\n".join([*sentence_panels(model, tokenizer), tale_panel(model, tokenizer)])
    parts = Path(__file__).with_name("_parts")
    (parts / "home.md").write_text(raw(f'<div class="journey">\n{panels}\n</div>'), encoding="utf-8")
    explorer = SamplingExplorer(model, tokenizer, f"{SENTENCE} river. Mia gave Tom").to_html()
    (parts / "explorer.md").write_text(raw(explorer), encoding="utf-8")


if __name__ == "__main__":
    main()
