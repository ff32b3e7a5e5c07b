"""The explorers in a real browser: a saved page with no network, and chapters in JupyterLab.

Skipped where there is no Playwright for Python, or no chromium (`CHROMIUM` names one, else /usr/bin/chromium).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
import torch
from hostile import hostile_texts
from small_model import make

from tinygpt.explorers import (
    KNOBS, AttentionExplorer, CacheExplorer, LossMaskView, RopeExplorer, SamplingExplorer, SpeculationStrip, TokenizerExplorer, TrainingMonitor,
)
from tinygpt.pictures import attention_data, pack_logits, script, to_html, training_data, visible
from tinygpt.rope import Rope
from tinygpt.runs import load
from tinygpt.sampling import Sampling, distribution, next_token_probs, penalize
from tinygpt.tokenizer import EOT, GPT4_PATTERN, BPETokenizer, ByteTokenizer, CharTokenizer
from tinygpt.widgets import tokenizer_data
from tinygpt.worlds import Tales, shipped

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
ARGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        " --disable-component-update --disable-sync").split()


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium here: install one, or let CHROMIUM name it")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    "A page that may ask no server for anything, and whose errors are ours."
    page, asked, errors = browser.new_page(viewport={"width": 1000, "height": 900}), [], []
    page.set_default_timeout(120_000)  # a busy machine is no fault
    page.route(re.compile("^(?!file:|data:|blob:|about:)"), lambda route: (asked.append(route.request.url), route.abort()))
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not asked and not errors


@pytest.fixture(scope="module")
def shipped_model():
    return load("tales")


@pytest.fixture(scope="module")
def every(shipped_model):
    "One explorer of each kind, as chapters show them."
    model, tokenizer = shipped_model
    ids = [tokenizer.eot_id] + tokenizer.encode(shipped("tales/val.txt").read_text(encoding="utf-8").partition("\n")[0])
    return {
        "attention": AttentionExplorer(model, tokenizer, ids[:40], layer=2),
        "sampling": SamplingExplorer(model, tokenizer, ids[:12]),
        "tokenizer": TokenizerExplorer(tokenizer, "One sunny day, the tailor was at the bakery."),
        "rope": RopeExplorer(Rope(16, 256)),
        "cache": CacheExplorer(model.cfg),
        "monitor": TrainingMonitor(shipped("models/tales")),
        "speculation": SpeculationStrip(model, "lookup", tokenizer, ids[:30], n_new=20),
        "mask": LossMaskView(ids[:20], [i > 9 for i in range(20)], tokenizer),
    }


def opened(page, explorer, path: Path):
    page.goto(explorer.save(path / "page.html").as_uri())
    return page


def core(page, kind: str, *names: str):
    "A page on which functions of a script can be called."
    page.goto("about:blank")
    page.evaluate(f"() => {{ {script(kind)}\nObject.assign(globalThis, {{{', '.join(names)}}}); }}")
    return page


# What each explorer does for a key: where the focus is, the key, and what is another afterwards.
KEYS = {
    "attention": ("input[data-name=token]", "ArrowLeft", ".tgx-say"),
    "sampling": ("input[data-name=top_k]", "ArrowRight", ".tgx-facts"),
    "tokenizer": ("input[data-name=step]", "ArrowLeft", ".tgx-rule-line"),
    "rope": ("input[data-name=key]", "ArrowRight", ".tgx-say"),
    "cache": ("input[data-name=length]", "ArrowRight", ".tgx-say"),
    "monitor": ("input[data-name=at]", "ArrowLeft", ".tgx-say"),
    "speculation": ("input[data-name=round]", "ArrowLeft", ".tgx-say"),
    "mask": ("input[data-name=token]", "ArrowRight", ".tgx-say"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_saved_page_answers_to_keys_in_light_and_dark_wide_and_narrow(page, every, tmp_path, kind):
    opened(page, every[kind], tmp_path)
    where, key, what = KEYS[kind]
    before = page.inner_text(what)
    page.focus(where)
    page.keyboard.press(key)
    assert page.inner_text(what) != before
    assert page.locator(where).evaluate("(el) => el === document.activeElement")  # redrawn, and the focus is where it was
    for input in page.locator(".tgx input, .tgx textarea").all():
        assert input.get_attribute("data-lm-suppress-shortcuts") == "true"
    named = "(el) => el.getAttribute('aria-label') || el.textContent.trim()"
    for element in page.locator(".tgx button, .tgx input:not([type=radio]), .tgx [role=img], .tgx [role=radiogroup]").all():
        assert element.evaluate(named), element.evaluate("(el) => el.outerHTML")
    assert page.locator(".tgx").get_attribute("data-theme") == "light"
    page.emulate_media(color_scheme="dark")
    for light, sign in ((False, ""), (True, "document.body.dataset.jpThemeLight = 'true'"), (False, "document.body.dataset.jpThemeLight = 'false'"),
                        (False, "delete document.body.dataset.jpThemeLight; document.body.className = 'quarto-dark'"),
                        (True, "document.body.className = 'quarto-light'"),
                        (False, "document.body.className = ''; document.documentElement.dataset.bsTheme = 'dark'"),
                        (True, "document.documentElement.dataset.bsTheme = 'light'")):
        page.evaluate(f"() => {{ {sign}; }}")
        page.wait_for_function(f"document.querySelector('.tgx').dataset.theme === '{'light' if light else 'dark'}'")
    page.set_viewport_size({"width": 360, "height": 700})
    page.wait_for_timeout(50)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    root = "document.querySelector('.tgx')"
    assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")  # nothing is cut off either


def test_what_changes_out_of_sight_is_drawn_when_it_is_seen_again(page, every, tmp_path):
    "JupyterLab takes cells out of the page while they are not in view."
    opened(page, every["sampling"], tmp_path)
    page.evaluate("() => { document.body.style.display = 'none'; document.body.dataset.jpThemeLight = 'false'; }")
    page.wait_for_function("document.querySelector('.tgx').dataset.theme === 'dark'")
    page.set_viewport_size({"width": 400, "height": 700})
    page.evaluate("document.body.style.display = ''")
    page.wait_for_selector(".tgx-narrow")
    page.set_viewport_size({"width": 1000, "height": 700})
    page.wait_for_selector(".tgx:not(.tgx-narrow)")


def test_heads_are_chosen_with_arrows_and_tokens_with_the_mouse(page, every, tmp_path):
    opened(page, every["attention"], tmp_path)
    page.focus(".tgx-thumb[aria-pressed=true]")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".tgx-name") == "Layer 3, head 1"
    box = page.locator(".tgx-arcs").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 30, box["y"] + box["height"] * 10.5 / 40)
    assert page.inner_text(".tgx-say").split(" looks")[0].endswith("at 10")
    page.mouse.move(box["x"] + box["width"] + 14, box["y"] + box["height"] * 20.5 / 40)
    assert "score" in page.inner_text(".tgx-say")


def test_a_click_keeps_a_token_and_the_mouse_only_looks(page, every, tmp_path):
    opened(page, every["attention"], tmp_path)
    box, token = page.locator(".tgx-arcs").bounding_box(), page.locator("input[data-name=token]")
    place = lambda i, right=-30: (box["x"] + box["width"] + right, box["y"] + box["height"] * (i + 0.5) / 40)
    page.mouse.move(*place(10))
    assert token.input_value() == "10"
    page.locator(".tgx-thumb").nth(5).click()  # on the way there the mouse leaves the drawing
    assert token.input_value() == "39"
    page.mouse.click(*place(12))
    page.mouse.move(*place(30))
    page.mouse.move(*place(31, 20))
    assert token.input_value() == "31"
    page.locator(".tgx-thumb").nth(6).click()
    assert token.input_value() == "12" and page.inner_text(".tgx-name") == "Layer 1, head 2"
    page.mouse.move(*place(30))
    token.focus()
    page.keyboard.press("ArrowLeft")  # a knob chooses too
    page.mouse.move(1, 1)
    assert token.input_value() == "29"


def test_the_focus_is_never_lost_to_a_button_that_is_done(page, every, tmp_path):
    opened(page, every["sampling"], tmp_path)
    draw, back, anew, calm = (page.get_by_role("button", name=name) for name in ("Draw a token", "Back", "Start again", "Reset"))
    focused = lambda element: element.evaluate("(el) => el === document.activeElement")
    for button in (back, anew):
        draw.press("Enter")
        button.press("Enter")
        assert focused(draw) and not page.locator(".tgx-made").count()
    for explorer in ("sampling", "cache"):
        opened(page, every[explorer], tmp_path)
        page.locator("input[type=range]").first.press("ArrowRight")
        calm.press("Enter")
        assert focused(page.locator("input[type=range]").first)


@pytest.fixture
def phone(browser):
    context = browser.new_context(viewport={"width": 390, "height": 600}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.set_default_timeout(120_000)
    yield page
    context.close()


def swiped(page, x: float, y: float, dx: int, dy: int):
    "A finger goes down at a place, wanders, and leaves."
    finger = page.context.new_cdp_session(page)
    tell = lambda kind, *points: finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})
    tell("touchStart", {"x": x, "y": y})
    for step in range(1, 9):
        tell("touchMove", {"x": x + dx * step / 8, "y": y + dy * step / 8})
        page.wait_for_timeout(16)
    tell("touchEnd")
    page.wait_for_timeout(100)


@pytest.mark.parametrize("kind, name", [("sampling", "temperature"), ("attention", "token"), ("rope", "distance")])
def test_a_finger_that_scrolls_turns_no_knob(phone, every, tmp_path, kind, name):
    opened(phone, every[kind], tmp_path)
    phone.evaluate("document.body.style.paddingBottom = '600px'")  # there is room to scroll
    slider = phone.locator(f"input[data-name={name}]")
    phone.evaluate("(el) => scrollTo(0, el.getBoundingClientRect().top - 300)", slider.element_handle())
    box, before, top = slider.bounding_box(), slider.input_value(), phone.evaluate("scrollY")
    swiped(phone, box["x"] + 30, box["y"] + 10, 0, -100)
    assert slider.input_value() == before and phone.evaluate("scrollY") > top + 50
    box = slider.bounding_box()
    swiped(phone, box["x"] + 20, box["y"] + 10, 60, 0)  # sideways it is moved
    low = float(slider.get_attribute("min")) + (float(slider.get_attribute("max")) - float(slider.get_attribute("min"))) / 4
    assert slider.input_value() != before
    phone.touchscreen.tap(box["x"] + 12, box["y"] + 10)
    assert float(slider.input_value()) < low
    after = float(slider.input_value())
    more = phone.locator(f".tgx-slider:has(input[data-name={name}]) .tgx-nudge").last
    assert min(more.bounding_box()["width"], more.bounding_box()["height"]) >= 40
    more.tap()
    assert float(slider.input_value()) == pytest.approx(after + float(slider.get_attribute("step")))


@pytest.mark.parametrize("where", [".tgx-matrix", ".tgx-arcs"])
def test_a_finger_that_scrolls_keeps_the_focus_and_a_tap_moves_it(phone, every, tmp_path, where):
    opened(phone, every["attention"], tmp_path)
    place, slider = phone.locator(where), phone.locator("input[data-name=token]")
    phone.evaluate("(el) => scrollTo(0, el.getBoundingClientRect().top - 250)", place.element_handle())
    before, top, x = slider.input_value(), phone.evaluate("scrollY"), place.bounding_box()["x"] + 20
    swiped(phone, x, 400, 0, -100)
    assert slider.input_value() == before and phone.evaluate("scrollY") > top + 50
    phone.wait_for_timeout(600)  # until the page stands: a tap on one that glides only stops it
    box = place.bounding_box()
    phone.touchscreen.tap(x, box["y"] + box["height"] / 2)
    assert slider.input_value() != before


def test_explorers_fit_on_a_screen(page, every, tmp_path):
    "A projector shows 700 pixels or so."
    page.set_viewport_size({"width": 1280, "height": 800})
    for kind, explorer in every.items():
        height = opened(page, explorer, tmp_path).locator(".tgx").bounding_box()["height"]
        assert height <= 700, (kind, height)
    page.set_viewport_size({"width": 853, "height": 480})  # a low window
    assert opened(page, every["attention"], tmp_path).locator(".tgx").bounding_box()["height"] <= 480


def test_the_start_of_a_text_has_a_name_and_the_colours_are_told(page, every, tmp_path):
    opened(page, every["attention"], tmp_path)
    assert page.locator(".tgx-arcs text").first.text_content() == "(start)" and "“(start)”: the token <|endoftext|>" in page.inner_text(".tgx-legend")
    page.locator("input[data-name=token]").fill("0")
    assert page.inner_text(".tgx-say").startswith("The start of the text at 0 looks at the start of the text at 0 (100\u00a0%).")
    page.locator(".tgx-legend summary").press("Enter")
    assert not page.locator(".tgx-legend .tgx-key").first.is_visible()


def test_sampling_fits_on_a_phone(phone, every, tmp_path):
    opened(phone, every["sampling"], tmp_path)
    phone.locator(".tgx-button").first.tap()
    assert phone.locator(".tgx").bounding_box()["height"] <= 860
    assert phone.locator(".tgx-facts").bounding_box()["y"] < phone.locator("input[data-name=temperature]").bounding_box()["y"]
    for width in (390, 360):
        phone.set_viewport_size({"width": width, "height": 700})
        assert phone.locator(".tgx").evaluate("(el) => [...el.querySelectorAll('.tgx-facts b')].every((b) => b.getBoundingClientRect().right <= el.getBoundingClientRect().right - 10)")
    penalty = phone.locator("input[data-name=presence_penalty]")
    assert not penalty.is_visible()
    phone.locator("summary").first.tap()
    assert penalty.is_visible()


def test_a_head_says_on_the_page_what_python_says(page, every, tmp_path):
    explorer = every["attention"]
    opened(page, explorer, tmp_path)
    for token in (1, 20, 39):
        page.locator("input[data-name=token]").fill(str(token))
        best = explorer.weights[token].max().item()
        shown = re.search(r"\(([\d.]+)\s%\)", page.inner_text(".tgx-say"))[1]
        assert float(shown) == pytest.approx(100 * best, abs=0.51)


def test_a_baked_tree_can_be_walked_and_its_end_is_said(page, every, tmp_path):
    opened(page, every["sampling"], tmp_path)
    page.locator(".tgx-bet:visible").first.click()
    assert page.locator(".tgx-made").count() == 1
    page.keyboard.press("Enter")  # the row keeps the focus
    assert page.locator(".tgx-made").count() == 2
    page.set_viewport_size({"width": 360, "height": 700})
    near = page.locator(".tgx-bet:not(.tgx-far):visible")
    while near.count():
        near.first.click()
    assert page.locator(".tgx-text").evaluate("(el) => el.scrollTop + el.clientHeight >= el.scrollHeight - 1")  # its end is in view
    page.get_by_role("button", name="Start again").click()
    page.locator(".tgx-bet.tgx-far:visible").last.click()
    assert page.locator(".tgx-lost").is_visible() and not page.locator(".tgx-bet").first.is_visible()
    assert page.inner_text(".tgx").count("stored beginnings") == 1
    far, draw = page.inner_text(".tgx-made"), page.get_by_role("button", name="A stored word")
    assert draw.evaluate("(el) => el === document.activeElement")
    page.keyboard.press("Enter")  # one that is stored comes in its place, drawn among those alone
    assert page.locator(".tgx-made").count() == 1 and page.inner_text(".tgx-made") != far and re.search("among the .* stored words|only one word is stored here", page.inner_text(".tgx-wheel + .tgx-note"))
    draw = page.get_by_role("button", name=re.compile("Draw a token|A stored word"))
    while draw.get_attribute("aria-disabled") == "false":  # until nothing is stored any more
        draw.click()
    assert page.locator(".tgx-made").count() >= 5
    page.get_by_role("button", name="Back").click()
    assert page.locator(".tgx-bet").first.is_visible() or page.get_by_role("button", name="A stored word").is_visible()


def test_a_draw_shows_its_number_and_where_it_fell(page, every, tmp_path):
    opened(page, every["sampling"], tmp_path)
    probs, tokens = every["sampling"].probs, every["sampling"].data["tokens"]
    order = sorted(range(len(probs)), key=lambda i: -probs[i].item())
    for u in (0.001, 0.4, 0.7, 0.98):
        page.evaluate(f"Math.random = () => {u}")
        page.get_by_role("button", name="Draw a token").click()
        said, high = page.inner_text(".tgx-wheel + .tgx-note"), probs[order].cumsum(0)
        at = int((high <= u).sum())
        assert f"fell on “{visible(tokens[order[at]])}”" in said
        shown = [float(number) for number in re.findall(r"\d\.\d+", said)]
        assert shown == pytest.approx([u, (high[at] - probs[order[at]]).item(), high[at].item()], abs=0.002)
        assert page.locator(".tgx-wheel b").evaluate("(el) => parseFloat(el.style.left)") == pytest.approx(100 * u)
        page.locator("input[data-name=top_k]").press("ArrowRight")  # whoever turns a knob sees where a draw can fall now
        assert "The next draw:" in page.inner_text(".tgx-wheel + .tgx-note")
        page.get_by_role("button", name="Reset").click()
        page.get_by_role("button", name="Start again").click()


def test_hints_are_there_for_keys_fingers_and_readers_of_screens(page, every, tmp_path):
    opened(page, every["sampling"], tmp_path)
    assert page.locator(".tgx-ask").count() == 7
    for row in page.locator(".tgx-slider").all():
        hint, ask = row.locator(".tgx-hint"), row.locator(".tgx-ask")
        assert not hint.is_visible() and row.locator("input").get_attribute("aria-describedby") == hint.get_attribute("id") == ask.get_attribute("aria-controls")
        ask.press("Enter")
        assert hint.is_visible() and len(hint.inner_text()) > 20 and ask.get_attribute("aria-expanded") == "true"
        ask.click()
        assert not hint.is_visible() and ask.get_attribute("aria-expanded") == "false"


def test_a_tale_that_is_told_says_so(page, every, tmp_path):
    explorer = every["sampling"]
    state = explorer.state | {"new": [explorer.data["end"]], "tree": explorer.tree}
    (tmp_path / "page.html").write_text(to_html("sampling", explorer.data, state, "told"), encoding="utf-8")
    page.goto((tmp_path / "page.html").as_uri())
    assert "The tale ends here" in page.inner_text(".tgx-lost") and page.get_by_role("button", name="Draw a token").get_attribute("aria-disabled") == "true"


@pytest.mark.parametrize("share", [0.001, 0.3])
def test_a_page_ends_no_tale_that_the_model_would_not_end(page, tmp_path, share):
    data = {"title": "x", "tokens": ["a", "b", EOT], "prompt": [0], "limit": 9, "end": 2}
    logits = torch.tensor([0.6 * (1 - share), 0.4 * (1 - share), share]).log()
    state = dict.fromkeys(KNOBS, 0) | {"temperature": 1, "top_p": 1, "repetition_penalty": 1, "new": [], "tree": {"": pack_logits(logits)}}
    (tmp_path / "page.html").write_text(to_html("sampling", data, state, "told"), encoding="utf-8")
    page.goto((tmp_path / "page.html").as_uri())
    page.evaluate(f"Math.random = () => {0.9999 if share < 0.01 else 0.5}")  # where the end lies
    page.get_by_role("button", name=re.compile("^b:")).click()
    again = page.get_by_role("button", name=re.compile("Draw a token|A stored word"))
    if share < 0.01:  # it is no word to lead anybody to
        assert again.get_attribute("aria-disabled") == "true"
        assert "The page is over here" in page.inner_text(".tgx-lost") and "“a” (60\u00a0%), “b” (40\u00a0%)" in page.inner_text(".tgx-lost")
    else:
        again.click()
        assert "The tale ends here, with “<|endoftext|>”. The model gave it 30\u00a0%" in page.inner_text(".tgx-lost")
    page.get_by_role("button", name="Start again").click()
    page.get_by_role("button", name="Draw a token").click()
    assert "the model ended it" in page.inner_text(".tgx-lost")


def test_the_strip_fills_its_frame_and_no_more(page, every, tmp_path):
    opened(page, every["sampling"], tmp_path)
    for width in (1000, 390):
        page.set_viewport_size({"width": width, "height": 800})
        for heat in ("0.2", "1", "2"):
            page.locator("input[data-name=temperature]").fill(heat)
            right, *slots = page.evaluate("""() => [".tgx-wheel", ".tgx-wheel i"].flatMap((which) =>
                [...document.querySelectorAll(which)].map((box) => box.getBoundingClientRect().right))""")
            assert max(slots) == pytest.approx(right, abs=1)


def test_a_tale_can_be_handed_in(page, every, tmp_path):
    opened(page, every["sampling"], tmp_path)
    page.evaluate("() => { navigator.clipboard.writeText = (text) => Promise.resolve((globalThis.copied = text)); }")
    page.get_by_role("button", name="Copy the text").click()
    page.get_by_role("button", name="Copied").wait_for()
    data = every["sampling"].data
    assert page.evaluate("copied") == "".join(data["tokens"][id] for id in data["prompt"] if data["tokens"][id] != EOT).strip()
    page.get_by_role("button", name="Draw a token").click()
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    page.get_by_role("button", name="Copy the text").click()
    page.get_by_role("button", name=re.compile("Copied|Now press Ctrl")).wait_for()
    assert page.evaluate("String(getSelection()).length") > 10


def test_the_knobs_go_back_to_rest_and_greed_is_honest(page, every, tmp_path):
    opened(page, every["sampling"], tmp_path)
    assert page.get_by_role("button", name="Reset").is_disabled()
    first = page.inner_text(".tgx-bet .tgx-value >> nth=0")
    page.locator("input[data-name=temperature]").fill("0")
    assert re.search(r"likeliest has\s+" + re.escape(first), page.inner_text(".tgx-facts"))  # and not 100 %
    page.locator("input[data-name=presence_penalty]").fill("1")
    page.get_by_role("button", name="Reset").click()
    assert page.inner_text(".tgx-bet .tgx-value >> nth=0") == first and "100\u00a0%" in page.inner_text(".tgx-facts")


def test_the_page_draws_from_the_distribution_of_chapter_12(page):
    core(page, "sampling", "filtered", "unpack")
    draw, torch_draw = random.Random(0), torch.Generator().manual_seed(0)
    cases = []
    for n in range(300):
        V = draw.choice([3, 20, 80])
        logits = torch.randn(V, generator=torch_draw) * draw.choice([0.5, 3, 10])
        if n % 4 == 0:
            logits = logits.round()  # many are equal
        cases.append({
            "logits": logits.tolist(), "seen": draw.sample(range(V), 3) if n % 3 == 0 else [],
            "made": [draw.randrange(V) for _ in range(draw.choice([0, 1, 6]))] if n % 5 < 2 else [], "temperature": draw.choice([0, 0.05, 0.7, 1, 1.5, 2]),
            "top_k": draw.choice([0, 0, 1, 2, 5, 50]), "top_p": draw.choice([1, 1, 0.05, 0.5, 0.9, 0.99]), "min_p": draw.choice([0, 0, 0.01, 0.1, 0.5]),
            "repetition_penalty": draw.choice([1, 1.05, 1.3, 2]), "frequency_penalty": draw.choice([0, 0.3, 2, -1]),
            "presence_penalty": draw.choice([0, 0.5, -2]),
        })
    answers = page.evaluate("(cases) => cases.map((c) => [...filtered(Float32Array.from(c.logits), c.seen, c.made, c).probs])", cases)
    for case, answer in zip(cases, answers):
        settings = Sampling(**{name: case[name] or None if name == "top_k" else case[name] for name in KNOBS})
        logits = torch.tensor([case["logits"]], dtype=torch.float64)
        seen, made = torch.zeros_like(logits), torch.zeros_like(logits)
        seen[0, case["seen"]] = 1
        for id in case["made"]:
            made[0, id] += 1
        wanted = distribution(penalize(logits, seen, made, settings), settings)[0]
        torch.testing.assert_close(torch.tensor(answer, dtype=torch.float64), wanted, atol=1e-9, rtol=1e-9)
    plain = next((case, answer) for case, answer in zip(cases, answers) if not case["seen"] and not case["made"])
    probs = next_token_probs(torch.tensor(plain[0]["logits"]), plain[0]["temperature"], plain[0]["top_k"] or None, plain[0]["top_p"], plain[0]["min_p"])
    torch.testing.assert_close(torch.tensor(plain[1], dtype=torch.float32), probs, atol=1e-5, rtol=1e-4)


def texts_to_cut() -> list[str]:
    "Tales, white space and letters of all kinds, special tokens, hostile texts."
    draw = random.Random(1)
    kinds = ["abcdefgh", "  \t\n\r\x0b\x0c", "\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\ufeff\u200b", "0123٣²", ".,;!?'\"<|>", "éßſK日本🦊👩\u0301", "'s'RE'Ll don't"]
    return [tale.text[:200] for tale in Tales(4).tales(5)] + [EOT, f"a{EOT}{EOT}b {EOT[:-1]}", "", "'S 'ſ"] + \
        ["".join(draw.choice(draw.choice(kinds)) for _ in range(draw.randint(1, 30))) for _ in range(250)] + hostile_texts(200)


def test_the_page_cuts_text_as_chapter_01_does(page, shipped_model):
    core(page, "tokenizer", "codec")
    texts = texts_to_cut()
    for tokenizer in (shipped_model[1], BPETokenizer.train([t.text for t in Tales(2).tales(30)], 500, pattern=GPT4_PATTERN), ByteTokenizer(),
                      CharTokenizer.train("".join(texts))):
        answers = page.evaluate("""([data, texts]) => { const code = codec(data);
            return texts.map((text) => [false, true].map((special) => code.encode(text, special).tokens.map((t) => t.id))); }""", [tokenizer_data(tokenizer), texts])
        for text, (plain, special) in zip(texts, answers):
            assert plain == tokenizer.encode(text), (tokenizer, text)
            assert special == tokenizer.encode(text, "all"), (tokenizer, text)


def test_rules_applied_one_by_one_end_in_the_tokens(page, shipped_model):
    core(page, "tokenizer", "codec")
    steps = page.evaluate("""([data, text]) => { const code = codec(data), {fired} = code.encode(text);
        return [...fired, Infinity].map((limit) => code.encode(text, false, limit).tokens.map((t) => t.id)); }""",
        [tokenizer_data(shipped_model[1]), "the tailor was at the bakery"])
    assert steps[0] == list(b"the tailor was at the bakery") and steps[-1] == shipped_model[1].encode("the tailor was at the bakery")
    assert all(len(a) > len(b) for a, b in zip(steps, steps[1:]))


def test_hidden_characters_show_alike_on_both_sides(page):
    core(page, "mask", "visible")
    texts = hostile_texts() + [chr(c) for c in range(0x3000)]
    texts = [t for t in texts if not any(unicodedata.category(c) == "Cn" for c in t)]  # what is assigned depends on the year
    assert page.evaluate("(texts) => texts.map(visible)", texts) == [visible(text) for text in texts]


def test_bytes_of_a_cache_are_the_same_on_the_page(page):
    core(page, "cache", "cacheBytes")
    explorer = CacheExplorer(make(300, n_heads=4).cfg)
    for explorer.length in (1, 100, 5000):
        for explorer.window, explorer.kv_heads, explorer.batch, explorer.bytes in ((0, 4, 1, "4"), (64, 2, 8, "2")):
            state = explorer.state | {"bytes": int(explorer.bytes)}
            assert page.evaluate("([d, s]) => cacheBytes(d, s, s.length)", [explorer.data, state]) == explorer.n_bytes


LOOK = """() => { const host = document.querySelector('[data-tgx]'), found = new Set();
    for (const el of [host, ...host.querySelectorAll('*')]) { found.add(el.tagName); for (const name of el.getAttributeNames()) found.add(el.tagName + ' ' + name); }
    return {kinds: [...found].sort(), n: host.querySelectorAll('*').length, pwned: globalThis.pwned ?? null}; }"""


def with_texts(kind: str, texts: list[str]) -> tuple[dict, dict]:
    "Data and state of an explorer in which every text from outside is one of these."
    T = len(texts)
    mask = [i % 2 == 0 for i in range(T)]
    if kind == "attention":
        return attention_data(torch.randn(1, 1, T, T), texts), {"layer": 0, "head": 0, "token": T - 1, "show": "weights"}
    if kind == "sampling":
        explorer = SamplingExplorer(make(T, context_length=T + 2), None, list(range(T)), n_baked=2)
        return explorer.data | {"tokens": texts}, explorer.state | {"tree": {"": explorer.tree[""]}, "new": []}
    if kind == "tokenizer":
        special = {text: 300 + i for i, text in enumerate(texts)}
        data = tokenizer_data(ByteTokenizer()) | {"special": special}
        return data, {"text": "".join(texts), "step": None, "below": "ids", "special": "token"}
    if kind == "monitor":
        samples = [(i, text) for i, text in enumerate(texts)]
        return training_data([{"step": T, "loss": 1.0, "bits_per_byte": 1.0}], None, T, samples, "".join(texts)), {"at": None}
    if kind == "speculation":
        rounds = [{"drafted": [i, i], "kept": 1, "token": i} for i in range(T)]
        return {"title": texts[0], "tokens": texts, "prompt": list(range(T)), "rounds": rounds}, {"round": None}
    return {"title": texts[0], "tokens": texts, "ids": list(range(T)), "mask": mask}, {"token": T - 1}


@pytest.mark.parametrize("kind", ["attention", "sampling", "tokenizer", "monitor", "speculation", "mask"])
def test_hostile_tokens_add_no_element_and_no_attribute(page, tmp_path, kind):
    "Rope and cache show no text from outside."
    size = 125 if kind == "attention" else 500
    hostile, looks = hostile_texts(500), {}
    page.set_viewport_size({"width": 500, "height": 400})
    for start in range(0, 500, size):
        looks = []
        texts = hostile[start : start + size]
        for name, tokens in (("plain", [f"w{i}" + "\n" * text.endswith("\n") for i, text in enumerate(texts)]), ("hostile", texts)):
            torch.manual_seed(0)
            data, state = with_texts(kind, tokens)
            (tmp_path / name).write_text(f'<!doctype html><meta charset="utf-8">{to_html(kind, data, state, "".join(tokens))}', encoding="utf-8")
            page.goto((tmp_path / name).rename(tmp_path / f"{name}.html").as_uri())
            for where in ("input[type=range]:visible", "input[data-name=token]"):
                if page.locator(where).count():
                    page.locator(where).first.fill("0")
            page.mouse.move(200, 300)
            looks.append(page.evaluate(LOOK))
        plain, hurt = looks
        assert hurt["pwned"] is None and hurt["kinds"] == plain["kinds"]
        assert kind == "tokenizer" or hurt["n"] == plain["n"]  # what is typed is cut anew


class Lab:
    "JupyterLab on a copy of some chapters, and a page that looks at it."

    def __init__(self, browser, folder: Path, *chapters: Path):
        for chapter in chapters:
            shutil.copy(chapter, folder)
        env = {**os.environ, "JUPYTER_CONFIG_DIR": str(folder / ".config"), "JUPYTER_DATA_DIR": str(folder / ".data"),
               "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"), "OMP_NUM_THREADS": "1"}
        quiet = folder / ".settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
        quiet.parent.mkdir(parents=True)
        quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # no question in front of what is clicked
        self.log = folder / "lab.log"
        options = ["--no-browser", "--port=0", "--IdentityProvider.token=", "--ServerApp.password=", "--allow-root",
                   "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}", "--ServerApp.disable_check_xsrf=True"]
        with open(self.log, "w") as log:
            self.server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=folder, env=env, stdout=log, stderr=log)
        self.browser, self.page, self.errors = browser, None, []
        end = time.time() + 60
        while not (found := re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/", self.log.read_text())):
            assert time.time() < end and self.server.poll() is None, self.log.read_text()
            time.sleep(0.2)
        self.url = f"http://127.0.0.1:{found[1]}/lab"

    def open(self, name: str):
        self.page = self.browser.new_page(viewport={"width": 1300, "height": 1000})
        self.page.set_default_timeout(120_000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{self.url}/tree/{name}")
        self.page.wait_for_function("globalThis.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
        return self.page

    def run_all(self):
        "Run all cells, and go back to the first picture: JupyterLab draws only what is in view."
        self.page.evaluate("""async () => {
            const {content} = jupyterapp.shell.currentWidget;
            const pictured = (cell) => JSON.stringify(cell.outputs?.toJSON() ?? []).includes("tgx-still");
            const first = [...content.model.cells].findIndex(pictured);
            await jupyterapp.commands.execute('notebook:run-all-cells');
            if (first >= 0) await content.scrollToItem(first, "start");
        }""")

    def look_at(self, name: str):
        "Go to the first cell whose output has elements of a class, and give the first of them that is in view."
        found, end = self.page.locator(f".jp-OutputArea-output .{name}:visible").first, time.time() + 120
        while not found.count():  # JupyterLab draws what is in view, and learns only then how tall it is
            assert time.time() < end, f"no .{name} is in view"
            self.page.evaluate("""(name) => {
                const {content} = jupyterapp.shell.currentWidget;
                const holds = (cell) => JSON.stringify(cell.outputs?.toJSON() ?? []).includes(name);
                return content.scrollToItem([...content.model.cells].findIndex(holds), "start");
            }""", name)
            self.page.wait_for_timeout(1000)
        found.scroll_into_view_if_needed()
        return found

    def stumbles(self) -> list[str]:
        "Errors and warnings among the outputs."
        return self.page.evaluate("""() => [...jupyterapp.shell.currentWidget.content.model.cells]
            .flatMap((cell) => cell.outputs?.toJSON() ?? [])
            .filter((output) => output.output_type === "error" || output.name === "stderr")
            .map((output) => output.evalue ?? String(output.text))""")

    def python(self, code: str) -> str:
        "What some code prints in the notebook's kernel."
        return self.page.evaluate("""async (code) => {
            const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const future = kernel.requestExecute({code, store_history: false});
            let text = "";
            future.onIOPub = (m) => { text += m.content.text ?? m.content.evalue ?? ""; };
            await future.done;
            return text.trim();
        }""", code)

    def becomes(self, code: str, wanted: str, seconds: float = 5):
        end = time.time() + seconds
        while (value := self.python(f"print({code})")) != wanted:
            assert time.time() < end, f"{code}: {value}, not {wanted}"
            time.sleep(0.1)

    def leave(self):
        "The chapter ends, and its kernel with it."
        self.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.page.close()

    def close(self):
        self.server.terminate()
        self.server.wait(60)  # it ends its kernels first


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory, root):
    chapters = [root / "nbs" / f"{name}.ipynb" for name in LIVE]
    lab = Lab(browser, tmp_path_factory.mktemp("lab"), *chapters)
    yield lab
    lab.close()


def slid(page, slider, part: float):
    "Take the slider's thumb with the mouse to a part of its way."
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * part, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()


def attention_lives(lab, shown, name: str):
    page, picture = lab.page, shown("attention")
    slider, said = picture.locator("input[data-name=token]"), picture.locator(".tgx-say")
    slider.scroll_into_view_if_needed()
    lab.python(f"{name}.token = 20")
    sync_api.expect(slider).to_have_value("20")  # Python moves the picture
    before = said.inner_text()
    slider.focus()
    page.keyboard.press("ArrowLeft")  # the reader moves Python
    lab.becomes(f"{name}.token", "19")
    assert said.inner_text() != before and slider.evaluate("(el) => el === document.activeElement")
    slid(page, slider, 0)
    lab.becomes(f"{name}.token", "0")
    rows, list = int(lab.python(f"print(len({name}.data['tokens']))")), picture.locator(".tgx-arcs")
    list.scroll_into_view_if_needed()
    box = list.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 30, box["y"] + box["height"] * 5.5 / rows)  # hover
    lab.becomes(f"{name}.token", "5")
    page.mouse.down()  # and a click keeps it
    page.mouse.up()
    lab.python(f"{name}.layer, {name}.head = 2, 0")
    sync_api.expect(picture.locator(".tgx-name")).to_have_text("Layer 2, head 0")
    drawn = picture.locator("canvas.tgx-matrix").evaluate("(canvas) => canvas.toDataURL()")
    picture.locator(".tgx-thumb[aria-pressed=true]").focus()
    page.keyboard.press("ArrowRight")
    lab.becomes(f"({name}.layer, {name}.head)", "(2, 1)")
    assert picture.locator(".tgx-name").inner_text() == "Layer 2, head 1"
    assert picture.locator("canvas.tgx-matrix").evaluate("(canvas) => canvas.toDataURL()") != drawn
    best = float(lab.python(f"print({name}.weights[5].max().item())"))
    assert float(re.search(r"\(([\d.]+)\s%\)", said.inner_text())[1]) == pytest.approx(100 * best, abs=0.51)


def sampling_lives(lab, shown, name: str):
    page, picture = lab.page, shown("sampling")
    lab.python(f"{name}.new, {name}.temperature, {name}.top_k = [], 1.0, 0")
    row = picture.locator(".tgx-bet").nth(8)  # far from the baked tree: the kernel reads on
    row.scroll_into_view_if_needed()
    row.click()
    lab.becomes(f"len({name}.new), list({name}.tree) == [str({name}.new[0])]", "1 True")
    sync_api.expect(picture.locator(".tgx-bet").first).to_be_visible()
    for knob in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"):
        slider = picture.locator(f"input[data-name={knob}]")
        before = picture.locator(".tgx-value").all_inner_texts()
        slider.focus()
        page.keyboard.press("Home" if knob == "top_p" else "End")
        lab.becomes(f"{name}.{knob}", str(float(slider.input_value())) if knob != "top_k" else slider.input_value())
        assert picture.locator(".tgx-value").all_inner_texts() != before, knob
        likeliest = float(lab.python(f"print({name}.probs.max().item())"))  # chapter 12's code, and the page's
        shares = [float(text.strip("<% ")) for text in picture.locator(".tgx-bet:visible .tgx-value").all_inner_texts() if text != "cut"]
        assert max(shares) == pytest.approx(100 * likeliest, abs=0.51), knob
        lab.python(f"{name}.set_trait('{knob}', type({name}).{knob}.default_value)")
        sync_api.expect(slider).to_have_value({"temperature": "1", "top_p": "1", "repetition_penalty": "1"}.get(knob, "0"))
    slid(page, picture.locator("input[data-name=temperature]"), 0.95)
    lab.becomes(f"{name}.temperature > 1.6", "True")


def monitor_lives(lab, picture, name: str):
    "A run that was drawn while it went on; its last step is known, and the reader can go back."
    total = lab.python(f"{name}.at = None; print({name}.total)")
    picture.scroll_into_view_if_needed()
    sync_api.expect(picture.locator(".tgx-sum")).to_contain_text(f"step {total} of {total}")
    slider = picture.locator("input[data-name=at]")
    slider.focus()
    lab.page.keyboard.press("Home")
    lab.becomes(f"{name}.at", "0")
    picture.get_by_role("button", name="Replay").click()
    sync_api.expect(picture.locator(".tgx-sum")).to_contain_text(f"step {total} of {total}", timeout=30_000)
    lab.becomes(f"{name}.at", "None")


def chapter_22_lives(lab, shown):
    attention_lives(lab, shown, "explorer")
    sampling_lives(lab, shown, "sampling")
    monitor_lives(lab, lab.page.locator(".jp-OutputArea-output .tgx-monitor").nth(1), "live")


def chapter_21c_lives(lab, shown):
    text = shown("tokenizer").locator("textarea")
    text.scroll_into_view_if_needed()
    text.fill("")
    text.press_sequentially("add a")  # letters that are commands of JupyterLab
    lab.becomes("cutter.text, cutter.ids == tokenizer.encode('add a')", "add a True")
    slider = shown("rope").locator("input[data-name=distance]")
    slider.scroll_into_view_if_needed()
    slider.focus()
    lab.page.keyboard.press("ArrowRight")
    lab.becomes("rope.distance", slider.input_value())


# Chapters that hold explorers, and what is tried in each.
LIVE = {
    "05_attention": lambda lab, shown: attention_lives(lab, shown, "heads"),
    "12_sampling": lambda lab, shown: sampling_lives(lab, shown, "knobs"),
    "21c_widgets": chapter_21c_lives,
    "22_explorers": chapter_22_lives,
}


@pytest.mark.parametrize("chapter", LIVE)
def test_a_chapter_lives_in_jupyterlab(lab, chapter):
    page = lab.open(f"{chapter}.ipynb")
    still = lab.look_at("tgx-still")  # nobody has trusted this copy yet
    page.wait_for_function("(img) => img.complete && img.naturalWidth > 100", arg=still.locator("img").element_handle())
    sync_api.expect(still).to_contain_text("Trust Notebook", use_inner_text=True)
    assert not page.locator(".tgx").count()
    lab.run_all()
    LIVE[chapter](lab, lambda kind: page.locator(f".jp-OutputArea-output .tgx-{kind}").first)
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_selector(".tgx[data-theme=dark]")
    splash_gone = "!document.getElementById('jupyterlab-splash')"  # JupyterLab takes it away twice if themes change too soon
    page.wait_for_function(splash_gone)
    page.wait_for_timeout(500)
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    page.wait_for_selector(".tgx[data-theme=light]")
    page.wait_for_function(splash_gone)
    assert not lab.stumbles() and not lab.errors
    lab.leave()
