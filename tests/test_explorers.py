"""What chapters 21b and 22 cannot test in passing: hostile tokens, odd models, sizes. The browser's part is in test_browser.py."""

from __future__ import annotations

import json
import math
import unicodedata
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from ipywidgets import DOMWidget
from hostile import hostile_texts
from small_model import model, tokenizer  # noqa: F401
from reach import led, reach, stored
from small_model import make
from strip_widgets import VIEW, present, renew, strip

from tinygpt import explorers, pictures
from tinygpt.explorers import (
    AttentionExplorer, CacheExplorer, LossMaskView, RopeExplorer, SamplingExplorer, SpeculationStrip, TokenizerExplorer, TrainingMonitor,
)
from tinygpt.pictures import attention_data, attention_weights_in, bake, capture_scores, script, style, to_html, token_text, visible
from tinygpt.attention import capture_attention
from tinygpt.rope import Rope
from tinygpt.runs import load
from tinygpt.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer
from tinygpt.widgets import js_pattern
from tinygpt.worlds import shipped

KINDS = ["attention", "sampling", "tokenizer", "rope", "cache", "monitor", "speculation", "mask"]


def tags(page: str) -> list[tuple]:
    "Elements and the names of their attributes, as a browser would find them."
    found, parser = [], HTMLParser(convert_charrefs=True)
    parser.handle_starttag = lambda tag, attributes: found.append((tag, *(name for name, _ in attributes)))
    parser.feed(page)
    return found


def test_nothing_invisible_is_left():
    for code in [*range(0x3100), *range(0xE000, 0x10200), *range(0x1F000, 0x1F700), *range(0xE0000, 0xE0200)]:
        char = chr(code)
        shown = visible(char)
        assert shown and all(unicodedata.category(c)[0] not in "CZ" for c in shown), hex(code)


def test_different_texts_look_different():
    texts = hostile_texts()
    assert len({visible(text) for text in texts}) == len(texts)


def test_a_page_has_the_same_elements_whatever_the_texts_say():
    wanted = tags(to_html("mask", {"title": "x", "tokens": ["a"]}, {}, "a"))
    for text in hostile_texts():
        assert tags(to_html("mask", {"title": text, "tokens": [text]}, {"x": text}, text)) == wanted
    page = to_html("mask", {"tokens": hostile_texts()}, {}, "")
    inside = page.split('<script type="application/json">')[1].split("</script>")[0]
    assert json.loads(inside)["data"]["tokens"] == hostile_texts() and inside.isascii()


@pytest.mark.parametrize("kind", KINDS)
def test_every_script_is_small_and_asks_nobody(kind):
    text = script(kind) + style(kind)
    assert len(text) < 32_000
    for word in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest", "import(", "@import", "url("):
        assert word not in text, word
    assert text.replace("http://www.w3.org/2000/svg", "").count("http") == 0


@pytest.mark.parametrize("changes", [{"n_heads": 4, "n_kv_heads": 2}, {"logit_cap": 5.0}, {"window": 4}, {"qk_norm": True}, {"position": "learned"}])
def test_attention_of_every_kind_of_model(changes):
    model = make(300, **changes)
    ids = torch.arange(20) * 7 % 300
    explorer = AttentionExplorer(model, None, ids)
    with capture_attention(model) as maps, torch.inference_mode():
        model(ids[None])
    for layer, heads in enumerate(maps):
        for head, weights in enumerate(heads[0]):
            torch.testing.assert_close(attention_weights_in(explorer.data, layer, head), weights, atol=1e-3, rtol=0)


def test_capturing_leaves_no_trace_and_stands_beside_another():
    model = make(300)
    with pytest.raises(RuntimeError), capture_scores(model) as scores, capture_attention(model) as maps:
        model(torch.zeros(2, 5, dtype=torch.long))
        raise RuntimeError
    assert [s.shape for s in scores] == [(2, 2, 5, 5)] * 2 and len(maps) == 2
    assert all("attend" not in vars(m) for m in model.modules())


def test_what_is_refused(model, tokenizer):  # noqa: F811
    for make_one, word in [
        (lambda: AttentionExplorer(model, tokenizer, []), "0 tokens"),
        (lambda: AttentionExplorer(model, tokenizer, [1] * 129), "129 tokens"),
        (lambda: AttentionExplorer(model, None, "text"), "needs a tokenizer"),
        (lambda: AttentionExplorer(model, tokenizer, [1, 2], head=2), "head=2 is not in 0..1"),
        (lambda: AttentionExplorer(model, tokenizer, [1, 2], heads=1), "heads is not in its state"),
        (lambda: SamplingExplorer(model, tokenizer, []), "0 prompt tokens"),
        (lambda: SamplingExplorer(model, tokenizer, [1] * 40), "40 prompt tokens"),
        (lambda: SamplingExplorer(model, tokenizer, [1], top_p=0.0), "top_p=0.0"),
        (lambda: TokenizerExplorer(tokenizer, step=-1), "step=-1 is below 0"),
        (lambda: RopeExplorer(Rope(8, 16), key=16), "key=16 is not in 0..15"),
        (lambda: CacheExplorer(model.cfg, kv_heads=3), "kv_heads=3"),
        (lambda: CacheExplorer(model.cfg, machine="moon"), "machine='moon'"),
        (lambda: CacheExplorer(model.cfg, length=0), "length=0 is below 1"),
        (lambda: CacheExplorer(model.cfg, batch=0), "batch=0 is below 1"),
        (lambda: CacheExplorer(model.cfg, length=-1), "length=-1 is below 0"),
        (lambda: LossMaskView([], [], None), "0 ids"),
        (lambda: SpeculationStrip(model, "lookup", tokenizer, [1], n_new=400), "context_length=40"),
        (lambda: TrainingMonitor("nowhere"), "nowhere"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=word) as caught:
            make_one()
        assert "\n" not in str(caught.value)


def test_sampling_goes_on_to_the_end_of_the_context(model, tokenizer):  # noqa: F811
    explorer = SamplingExplorer(model, tokenizer, [1] * 38, n_baked=3)
    explorer.new = [5]
    assert list(explorer.tree) == ["5"]
    explorer.new = [5, 6]
    assert list(explorer.tree) == ["5,6"] and len(explorer.ids) == 40
    explorer.new = [5, 6, 7]
    assert explorer.tree == {}


def test_a_tree_of_a_large_vocabulary_stays_small():
    explorer = SamplingExplorer(make(60_000), None, [1, 2, 3])
    assert len(explorer.to_html()) < 3_000_000 and len(explorer.baked) == 6


def test_a_tree_branches_at_its_likeliest_places_and_a_tale_goes_on_from_each_end():
    torch.manual_seed(0)
    table = torch.randn(4, 4, dtype=torch.float64).log_softmax(-1)
    tree = bake(lambda new: table[new[-1] if new else 0], 60, deep=20)
    paths = [tuple(int(i) for i in key.split(",") if i) for key in tree]
    ends_of = lambda some: set(some) - {path[:-1] for path in some}
    n = next(n for n in range(1, 61) if len(ends_of(paths[:n])) == 3)
    chances = [math.exp(sum(table[a, b] for a, b in zip((0, *path), path))) for path in paths[:n]]
    assert chances == sorted(chances, reverse=True)
    for path in paths[n:]:  # drawn, but for what min-p cuts
        scores = table[path[-2] if path[1:] else 0]
        assert scores[path[-1]] >= scores.max() + math.log(0.1)
    lengths = [len(path) for path in ends_of(paths)]
    assert len(lengths) == 3 and max(lengths) - min(lengths) <= 1 and len(tree) == 60


def test_a_step_may_wait_for_a_longer_text():
    explorer = TokenizerExplorer(ByteTokenizer(), "", step=7)
    assert explorer.ids == [] and explorer.step == 7 and explorer.summary == "Tokenizer, 0 tokens: "


def test_summaries_hold_for_every_kind_of_tokenizer():
    for tokenizer in (ByteTokenizer(), CharTokenizer.train("abc é"), BPETokenizer.train("abc abc é", 260)):  # noqa: F811
        explorer = TokenizerExplorer(tokenizer, "abc é")
        assert explorer.summary.startswith(f"Tokenizer, {len(explorer.ids)} tokens")
    assert "'z'" in TokenizerExplorer(CharTokenizer.train("abc"), "z").summary


def test_the_monitor_waits_between_pictures_and_ends_whole():
    monitor = TrainingMonitor(every_s=1000)
    monitor.say("reading")
    monitor.metrics({"step": 1, "loss": 2.0, "bits_per_byte": 1.0})
    assert monitor.data["rows"] == []
    monitor.metrics({"step": 2, "loss": math.nan, "bits_per_byte": None})
    monitor.metrics({"step": 2, "val_loss": 2.0, "val_bits_per_byte": 0.9})
    monitor.end()
    assert [row["step"] for row in monitor.data["rows"]] == [1, 2, 2] and "0.900" in monitor.summary
    monitor.to_html()


def test_a_replayed_run_is_the_shipped_one():
    monitor = TrainingMonitor(shipped("models/tales"))
    assert monitor.total == 10_000 and monitor.data["rungs"]["floor"] < 0.2 and len(monitor.to_html()) < 60_000


def test_a_run_of_fine_tuning_is_replayed_without_rungs():
    monitor = TrainingMonitor(shipped("models/tales-chat"))
    assert monitor.rungs is None and monitor.total == 3600 and monitor.summary.startswith("Training: 0.0")
    assert "<polyline" in monitor.still and monitor.data["rungs"] is None


def test_every_still_picture_is_whole_and_holds_texts_alone(model, tokenizer):  # noqa: F811
    "SVG that a parser accepts, without scripts, links and elements of others, whatever the tokens say."
    texts = hostile_texts(120)
    stills = [
        pictures.still_tokens([(text, pictures.BLUE) for text in texts]),
        pictures.still_bars([(text, 0.5 / (1 + i)) for i, text in enumerate(texts[:12])]),
        pictures.still_matrix(torch.eye(120), texts, 3),
        AttentionExplorer(make(300, context_length=128), None, [1] * 128).still, SamplingExplorer(model, tokenizer, [1]).still, TokenizerExplorer(tokenizer, "".join(texts)).still,
        RopeExplorer(Rope(8, 2)).still, CacheExplorer(model.cfg, max_len=1).still, CacheExplorer(model.cfg, window=16).still,
        SpeculationStrip(model, "lookup", tokenizer, [1, 2, 1, 2], n_new=4).still, LossMaskView([1, 2], [True, False], tokenizer).still,
    ]
    for still in stills:
        parts = list(ElementTree.fromstring(still).iter())
        assert {part.tag.removeprefix("{http://www.w3.org/2000/svg}") for part in parts} <= {"svg", "rect", "text", "path", "polyline", "line"}
        assert not [name for part in parts for name in part.attrib if "href" in name or name.startswith("on")] and len(still) < 40_000
    assert TokenizerExplorer(CharTokenizer.train("abc"), "z").still == "" and TrainingMonitor().still == ""


def test_js_patterns_keep_what_they_do_not_know():
    assert js_pattern(r"a\\sb|[\]\s]+") .endswith("]+")
    assert js_pattern("(?i:don't)").count("[") == 4


def test_explorers_stripped_for_storing():
    output = {"output_type": "display_data", "data": {VIEW: {}, "text/html": "<div>"}}
    lonely = {"output_type": "display_data", "data": {VIEW: {}}}
    notebook = {"metadata": {"widgets": {}}, "cells": [{"outputs": [output, lonely]}, {"source": ""}]}
    assert strip(notebook) == 2 and strip(notebook) == 0
    assert output["data"] == {"text/html": "<div>"} and VIEW in lonely["data"] and notebook["metadata"] == {}


def test_a_stored_explorer_gets_the_present_script():
    html = LossMaskView([1, 2], [True, False], None).to_html()
    old = html.replace(style("mask"), ".tgx { color: red; }").replace(script("mask"), "let old;\nold();")
    assert old != html and present(old) == html == present(html)
    notebook = {"cells": [{"outputs": [{"data": {"text/html": old.splitlines(keepends=True)}}, {"data": {"text/html": "<b>"}}]}, {}]}
    assert renew(notebook) == 1 and renew(notebook) == 0
    assert "".join(notebook["cells"][0]["outputs"][0]["data"]["text/html"]) == html


def test_stored_chapters_are_stripped(root):
    for path in sorted((root / "nbs").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        if VIEW in text or "data-tgx" in text:
            notebook = json.loads(text)
            assert strip(notebook) + renew(notebook) == 0, f"{path.name}: run tests/strip_widgets.py"
        assert len(text) < 3_000_000


def test_readers_of_a_page_come_far(root):
    "`python tests/reach.py` prints the same."
    pages = [root / "nbs" / "12_sampling.ipynb", root / "nbs" / "22_explorers.ipynb", root / "site" / "_parts" / "explorer.md"]
    for html, told in [found for page in pages for found in stored(page)]:
        draws, far = reach(told["state"]["tree"], told["data"]["end"])
        assert draws > 15 and far > 0.9 and len(html) < 450_000


def test_readers_of_an_open_prompt_come_far_where_they_are_led_back():
    model, tokenizer = load("tales")
    for prompt in ("", "Once", "One sunny day,"):
        explorer = SamplingExplorer(model, tokenizer, prompt)
        assert len(explorer.to_html()) < 450_000 and led(explorer.baked, tokenizer.eot_id)[0] > 15


def test_reach_by_hand():
    coin = pictures.pack_logits(torch.zeros(2))
    assert reach({"": coin, "0": coin, "0,0": coin}, None, 3) == (1.75, 0.25)  # 1 + 1/2 + 1/4; only 0,0 can be drawn from
    assert reach({"": coin, "0": coin, "0,0": coin}, 1, 3) == (1.75, 1.0)  # 1 ends the text: every reader has three draws or a tale
    assert led({"": coin, "0": coin, "0,0": coin}, None) == (3.0, 1.0)  # who draws 1 takes 0 in its place, half the readers at two places
    assert led({"": coin, "0": coin, "0,0": coin}, 1) == (1.75, 0.0)


def test_a_saved_page_speaks_for_itself(tmp_path):
    view = LossMaskView([1, 2], [True, False], None)
    page = view.save(tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "<h1>Where the loss counts, token by token</h1>" in page and "JupyterLab" not in page and "notebook" not in page.lower() and "open this file in a browser" in page
    for text in hostile_texts(60):
        assert tags(view.save(tmp_path / "page.html", title=text).read_text(encoding="utf-8")) == tags(page)
        told = view.save(tmp_path / "page.html", title=text, note=text).read_text(encoding="utf-8")
        assert tags(told.replace("<p>", "", 1)) == tags(page) and told.count("<p>") == page.count("<p>") + 1


def test_no_trait_takes_a_name_of_the_widgets():
    for name in explorers.__all__:
        kind = getattr(explorers, name)
        if isinstance(kind, type) and issubclass(kind, explorers.Explorer):
            own = set(kind.class_trait_names(state=True)) | {"kind", "data", "names"}
            assert not own & set(DOMWidget.class_trait_names()) and not own & set(dir(DOMWidget)), name


def test_all_names_are_there():
    for name in ("AttentionExplorer", "SamplingExplorer", "TokenizerExplorer", "RopeExplorer", "CacheExplorer", "TrainingMonitor"):
        assert name in explorers.__all__
    assert token_text(None, 3) == "3" and attention_data in vars(pictures).values()
