"""The site without Quarto: its pages, their links and anchors, what is written from the code, themes and sizes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import lint_notebooks as lint
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "site"
sys.path.insert(0, str(SITE))

import book  # noqa: E402
import check_site  # noqa: E402
import make_pages  # noqa: E402
import measure  # noqa: E402
import pages_code  # noqa: E402

BOOK = [lint.Notebook(path) for path in lint.Book().paths]
PAGES = ["index.qmd", *sorted(p.relative_to(ROOT).as_posix() for p in SITE.glob("*.md")), "CONTRIBUTING.md", "CHANGELOG.md"]
RECIPES = {path.stem: path for path in sorted((ROOT / "tinygpt/recipes").glob("*.yaml"))}
CONFIG = yaml.safe_load((ROOT / "_quarto.yml").read_text())


def source(page: str) -> str:
    "A page's Markdown, with what it includes in its place."
    include = r"\{\{< include (\S+) >\}\}"
    return re.sub(include, lambda match: (ROOT / match[1]).read_text(), (ROOT / page).read_text(encoding="utf-8"))


# --- what the site consists of -------------------------------------------------------------------------------


def test_the_site_has_every_chapter_and_page():
    listed = re.findall(r'"([\w./]+\.(?:ipynb|md|qmd))"', json.dumps(CONFIG["website"]["sidebar"]))
    assert [name for name in listed if name.startswith("nbs/")] == [nb.name for nb in BOOK]
    assert sorted(name for name in listed if not name.startswith("nbs/")) == sorted(PAGES)
    assert CONFIG["project"]["render"] == ["index.qmd", "site/*.md", "CONTRIBUTING.md", "CHANGELOG.md", "nbs/*.ipynb"]
    for place in re.findall(r"\bsite/[\w.]+\b", (ROOT / "_quarto.yml").read_text()):
        assert (ROOT / place).exists(), f"_quarto.yml names {place}"


def test_rendering_runs_nothing_and_filters_once():
    assert CONFIG["execute"]["enabled"] is False
    assert yaml.safe_load((ROOT / "nbs/_metadata.yml").read_text())["ipynb-filters"] == ["nbdev_filter"]
    assert "ipynb-filters" not in CONFIG


def test_pages_can_be_searched_and_turned():
    site, html = CONFIG["website"], CONFIG["format"]["html"]
    assert site["search"] and site["page-navigation"] and html["html-math-method"] == "mathml"
    assert set(html["theme"]) == {"light", "dark"}


def test_every_page_says_what_it_is():
    for page in PAGES[:-2]:
        front = yaml.safe_load(source(page).split("---")[1])
        assert front.get("title") or front.get("pagetitle"), page
        assert front["description"], page


def test_the_home_page_says_what_the_readme_says():
    home = (ROOT / "index.qmd").read_text()
    for part in ("what", "home", "explorer", "commands", "figures"):
        assert home.count(f"{{{{< include site/_parts/{part}.md >}}}}") == 1
    readme = (ROOT / "README.md").read_text()
    assert make_pages.readme("") in readme and make_pages.readme("Two commands").partition("![")[0] in readme
    assert "make demo\nmake test" in make_pages.commands_part()


def test_the_home_page_shows_the_shipped_model_and_the_present_explorer():
    "Its figures are the model's, to rounding; its script is that of the package."
    import home
    from tinygpt.pictures import script, style
    from tinygpt.runs import load

    model, tokenizer = load("tales")
    weights, chances = home.look(model, [tokenizer.eot_id, *tokenizer.encode(home.SENTENCE)])
    page = (SITE / "_parts/home.md").read_text()
    shown = re.findall(r"<li><span>(\w+)</span>.*?<span>([\d.]+)%</span></li>", page)
    assert len(shown) == 4
    for word, percent in shown:
        (id,) = tokenizer.encode(f" {word}")
        assert abs(100 * chances[id].item() - float(percent)) < 0.15, word
    assert home.SENTENCE == " ".join(re.sub(r"<[^>]+>", "", re.search(r'<p class="tokens">(.*?)</p>', page)[1]).split())
    explorer = (SITE / "_parts/explorer.md").read_text()
    assert script("sampling") in explorer and style("sampling") in explorer, "the explorers have changed: run python site/home.py"


# --- what is written from the code ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["site/_parts/what.md", "site/_parts/commands.md", "site/_parts/figures.md", "site/start.md", "site/names.md", "site/recipes.md",
                                  "site/measurements.md", "site/times.md", "site/cards.json"])  # fmt: skip
def test_written_pages_are_up_to_date(name: str):
    text = make_pages.PAGES[name]()
    assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name} is behind: run python site/make_pages.py"


def test_all_written_pages_are_tested():
    marked = [p.relative_to(ROOT).as_posix() for p in SITE.rglob("*.md") if book.MARK in p.read_text()]
    assert sorted(make_pages.PAGES) == sorted([*marked, "site/cards.json"])


def test_every_exported_name_is_listed_with_what_it_is():
    page = (SITE / "names.md").read_text()
    for nb in BOOK:
        if nb.module:
            names = pages_code.exported(nb.module)
            tail = page.partition(f"\n## tinygpt.{nb.module}\n")[2].partition("\n## ")[0]
            assert tail, f"{nb.module} has no section"
            for name, kind, says in names:
                assert re.search(rf"\[`{name}(?:\(\))?`\]", tail), f"{nb.module}.{name} is not listed"
                assert says or kind == "value", f"{nb.module}.{name} has no docstring"


def test_every_setting_and_recipe_is_listed():
    from tinygpt.runs import config_fields

    page = (SITE / "recipes.md").read_text()
    for name in config_fields():
        assert f"| `{name}` |" in page
    for name, path in RECIPES.items():
        assert f"### {name}\n" in page and path.read_text().strip() in page


def test_plain_text_means_nothing_to_markdown():
    assert book.plain("a|b *c* [0, 1) `<|x|>` <y> arXiv:1706.03762") == (
        "a\\|b \\*c\\* \\[0, 1) <code>&lt;&#124;x&#124;&gt;</code> \\<y\\> [arXiv:1706.03762](https://arxiv.org/abs/1706.03762)"
    )
    assert make_pages.from_below("[a](data/x.md) [b](https://c.d) [e](#f) ![g](site/h.png)") == "[a](../data/x.md) [b](https://c.d) [e](#f) ![g](h.png)"
    with pytest.raises(ValueError, match="has no section 'Nothing'"):
        make_pages.readme("Nothing")


def test_measurements_say_where_they_come_from():
    kept = sorted((SITE / "measured").glob("*.json"))
    assert kept
    for path in kept:
        found = json.loads(path.read_text())
        for run in found["chapters"].values() if path.stem == "chapters" else [found]:
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", run["date"]) and "Python" in run["machine"], path.name
        if path.stem != "chapters":
            assert found["command"] == measure.COMMANDS[path.stem] and found["output"], path.name
    for old in yaml.safe_load((SITE / "measured/earlier.yaml").read_text())["runs"]:
        program = re.search(r"(bench|tests)/\w+\.py", old["command"])
        assert program is None or (ROOT / program[0]).exists(), old["command"]
        assert old["title"] and old["conditions"] and old["says"]


def test_measuring_keeps_what_a_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(measure, "MEASURED", tmp_path)
    monkeypatch.setitem(measure.COMMANDS, "one", "python -c 'print(40 + 2)'")
    assert measure.main(["one", "--note", "a quiet day"]) == 0
    found = json.loads((tmp_path / "one.json").read_text())
    assert found["output"] == "42" and found["note"] == "a quiet day" and found["exit"] == 0
    monkeypatch.setitem(measure.COMMANDS, "one", "python -c 'raise SystemExit(3)'")
    assert measure.main(["one"]) == 1 and json.loads((tmp_path / "one.json").read_text()) == found
    assert measure.main(["nothing"]) == 2 and "'nothing' is not measured here" in capsys.readouterr().err
    assert measure.main([]) == 0 and "python bench/parity.py" in capsys.readouterr().out


# --- links and anchors ---------------------------------------------------------------------------------------

PROCESS = """
import contextlib, io, json, os, sys
from pathlib import Path
from nbdev.cli import nbdev_filter
os.chdir("nbs")  # where Quarto runs the filter
for name in sys.argv[1:]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            page = json.loads(nbdev_filter(nb_txt=Path(name).read_text(encoding="utf-8"), printit=False))
    except Exception as error:
        cause = error.__cause__ or error
        page = f"nbs/{name}: {error}\\n{type(cause).__name__}: {cause}"
    print(json.dumps([name, page]))
"""


@pytest.fixture(scope="module")
def processed() -> dict[str, dict]:
    "Every notebook, after nbdev has processed it as it does for the site."
    env = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    call = [sys.executable, "-c", PROCESS, *(nb.path.name for nb in BOOK)]
    done = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = dict(json.loads(line) for line in done.stdout.splitlines())
    failed = [page for page in pages.values() if isinstance(page, str)]
    assert not failed, "nbdev cannot document these chapters for the site:\n" + "\n".join(failed)
    return {f"nbs/{name}": page for name, page in pages.items()}


def markdown(page: dict) -> str:
    "The Markdown of a processed notebook: its prose, and the documentation that nbdev has written."
    parts = []
    for cell in page["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append("".join(cell["source"]))
        parts += ["".join(o["data"]["text/markdown"]) for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {})]
    return "\n\n".join(parts)


def without_code(text: str) -> str:
    return re.sub(r"(?ms)^ *```.*?^ *```|\A---\n.*?^---\n", "", text)


def slug(heading: str) -> str:
    "The anchor that pandoc makes of a heading."
    text = re.sub(r"\{[^}]*\}\s*$", "", heading)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "").replace("*", "")
    text = re.sub(r"[^\w\-. ]", "", text.lower())
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", text.strip())) or "section"


def anchors(text: str) -> set[str]:
    "All anchors of a page; a chapter's first heading has none, for site/pages.lua takes it away."
    found, first = [], True
    for level, heading in re.findall(r"(?m)^(#+) +(.*?) *$", without_code(text)):
        if level == "#" and first:
            first = False
            continue
        own = re.search(r"\{#([\w.-]+)", heading)
        name = own[1] if own else slug(heading)
        found.append(name if name not in found else f"{name}-{found.count(name)}")
    return set(found)


@pytest.fixture(scope="module")
def texts(processed: dict[str, dict]) -> dict[str, str]:
    return {page: source(page) for page in PAGES} | {name: markdown(page) for name, page in processed.items()}


def test_every_link_leads_to_a_page_and_a_heading(texts: dict[str, str]):
    there = {page: anchors(text) for page, text in texts.items()}
    by_output = {f"nbs/{Path(name).stem.partition('_')[2]}.html": name for name in texts if name.endswith(".ipynb")}
    wrong, followed = [], 0
    for page, text in texts.items():
        prose = re.sub(r"`[^`\n]*`(?!\])", "", without_code(text))  # a link's own text may be code
        for link in re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", prose):
            if re.match(r"[a-z]+:|/blob/", link):
                continue
            path, _, anchor = link.partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path and not path.startswith("/") else path.lstrip("/") or page
            target = by_output.get(target, target)
            if target not in texts and not (ROOT / target).exists():
                wrong.append(f"{page} links to {link}: there is no such page")
            elif target not in texts and target.endswith((".md", ".ipynb")) and not served(target):
                wrong.append(f"{page} links to {link}, which is no page of the site; add it to project.resources in _quarto.yml")
            elif anchor and target in texts and "." not in anchor and not anchor.startswith("_") and anchor not in there[target]:
                wrong.append(f"{page} links to {link}: {target} has no such heading")  # methods and private names have none
            followed += 1
    assert not wrong, "\n".join(wrong)
    assert followed > 100, "nbdev made no links: is the package installed with its entry point?"


def served(name: str) -> bool:
    "Whether Quarto copies a file as it is."
    return any(Path(name).match(pattern) for pattern in CONFIG["project"]["resources"])


def test_pictures_have_words(texts: dict[str, str]):
    "Pictures that a chapter draws have theirs by the lint; these stand in the prose, or in HTML that a cell has stored."
    for page, text in texts.items():
        prose = without_code(text)
        assert not re.findall(r"!\[\s*\]\([^)]*\)(?!\{[^}]*fig-alt)", prose), f"{page} has a picture without words"
    for nb in BOOK:
        for cell in nb.code():
            for output in cell.outputs:
                html = "".join(output.get("data", {}).get("text/html", ""))
                for tag in re.findall(r"<img\b[^>]*>", html):
                    told = 'alt=""' in tag and "tgx-still" in html  # an explorer's still: its sentence stands beside it
                    assert told or re.search(r'\balt="[^"]', tag), f"{nb.name}, cell {cell.index}: a picture without alt"


def test_pages_ask_no_other_server(texts: dict[str, str]):
    loads = r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>|@import\s+url\(\s*[\"']?http|!\[[^\]]*\]\(http"
    for page, text in texts.items():
        assert not re.findall(loads, text), page
    for nb in BOOK:
        for cell in nb.code():
            for output in cell.outputs:
                html = "".join(output.get("data", {}).get("text/html", ""))
                assert not re.findall(loads, html), f"{nb.name}, cell {cell.index} loads something from elsewhere"
    assert "http" not in (SITE / "book.scss").read_text() + (SITE / "dark.scss").read_text()


def test_pages_stay_under_three_megabytes(processed: dict[str, dict]):
    "A page is its notebook's text, code and outputs, its pictures as files; a notebook in JSON is larger than that."
    for name, page in processed.items():
        size = len(json.dumps(page, ensure_ascii=False).encode())
        assert size < 2_500_000, f"{name} makes a page of {size / 1e6:.1f} MB; fewer or smaller pictures"
    for page in PAGES:
        assert len(source(page).encode()) < 1_000_000, page


def test_rendered_pages_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs/b.html").write_text('<h2 id="here">x</h2><a href="../index.html#top">up</a><img src="data:image/png;base64,AA" alt="">')
    good = '<details class="solution"><summary>Solution</summary>x<p>4</p></details><h1 id="top">x</h1><a href="nbs/b.html#here">b</a><a href="https://a.b">out</a><a href="nbs/b.html#a.method">m</a>'
    (tmp_path / "index.html").write_text(good)
    assert check_site.faults(tmp_path) == [] and check_site.main([str(tmp_path)]) == 0
    planted = {
        '<a href="nbs/c.html">c</a>': "nbs/c.html is not there",
        '<a href="nbs/b.html#there">b</a>': "leads to no heading",
        '<img src="data:image/png;base64,AA">': "a picture without words",
        '<script src="https://cdn.b/x.js"></script>': "asks another server",
        '<details class="code-fold"><summary>Solution</summary>x</details><p>4</p>': "1 solutions show",
        "<p>" + "x" * 3_000_000: "3.0 MB",
    }
    for fault, says in planted.items():
        (tmp_path / "index.html").write_text(good + fault)
        (line,) = check_site.faults(tmp_path)
        assert says in line and line.startswith("index.html: ")
    assert check_site.main([str(tmp_path)]) == 1 and "faults: 1" in capsys.readouterr().out
    assert check_site.faults(tmp_path / "nothing")[0].endswith("no pages; run make site")


# --- the pages written by hand -------------------------------------------------------------------------------


def test_glossary():
    text = (SITE / "glossary.md").read_text()
    entries = re.findall(r"(?ms)^### (.*?)\n\n(.*?)\n(?=\n#|\Z)", text)
    terms = [term for term, _ in entries]
    assert len(terms) >= 120 and len(set(terms)) == len(terms)
    order = [re.sub(r"[^a-z0-9 ]", "", term.lower()) for term in terms]
    assert order == sorted(order)
    numbers = {nb.number for nb in BOOK}
    for term, body in entries:
        assert len(body.split()) <= 60, f"{term}: {len(body.split())} words"
        coming = re.search(r"\(Chapter (\w+), to come\)", body)
        assert coming or "](../nbs/" in body, f"{term} leads nowhere"
        assert not coming or coming[1] not in numbers, f"{term}: chapter {coming[1]} is there now; link to it"


def test_exercises_that_the_course_sets_exist():
    by_name = {nb.path.name: "\n".join(c.source for c in nb.cells if c.kind == "markdown") for nb in BOOK}
    course = (SITE / "paths.md").read_text().partition("### A course in twelve weeks")[2].partition("\n### ")[0]
    rows = re.findall(r"(?m)^\| \d+ \|.*$", course)
    assert len(rows) == 12
    for row in rows:
        read = "".join(by_name[name] for name in re.findall(r"\.\./nbs/([\w.]+)\)", row))
        for title in re.findall(r'"([^"]+?)"', row.rpartition("|")[0].rpartition("|")[2]):
            assert re.search(rf"\*\*(?:\d\. )?{re.escape(title)}\.?\*\*", read), f"the exercise {title!r} is in none of the chapters of its week"


def test_commands_and_settings_that_pages_name_exist():
    from tinygpt.cli import main
    from tinygpt.runs import config_fields

    @cache
    def help_of(command: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            main([command, "--help"])
        return out.getvalue()

    for page in PAGES:
        spans = re.findall(r"`([^`\n]+)`", source(page)) + re.findall(r"(?m)^(?:tinygpt|make) .*$", source(page))
        for span in spans:
            for setting in re.findall(r"--((?:data|model|optim|run)\.\w+)", span):
                assert setting in config_fields(), f"{page} names --{setting}"
            for recipe in re.findall(r"--recipe ([a-z][\w-]*)(?![\w.])", span):
                assert recipe in RECIPES or recipe == "mine", f"{page} names the recipe {recipe}"
            call = re.match(r"(?:python -m )?tinygpt ([a-z]+)\b", span)
            if call:
                assert help_of(call[1]), f"{page} names tinygpt {call[1]}, and there is no such command"
                for option in re.findall(r"(--\w+)\b(?!\.)", span):
                    assert option in help_of(call[1]), f"{page} names tinygpt {call[1]} {option}"


# --- colours and the filter ----------------------------------------------------------------------------------


def variables(name: str) -> dict[str, str]:
    text = (SITE / name).read_text()
    return dict(re.findall(r"(?m)^\$([\w-]+): ([^;]+?)(?: !default)?;", text.partition("/*-- scss:rules --*/")[0]))


def contrast(a: str, b: str) -> float:
    "How well one colour is read on another: WCAG 2, 1 to 21."

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(theme: str):
    colours = variables("book.scss") | (variables("dark.scss") if theme == "dark" else {})
    for ink in ("body-color", "link-color", "code-color", "book-quiet"):
        for ground in ("body-bg", "book-card", "code-bg"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, f"{theme}: ${ink} on ${ground}"


def test_dark_pages_change_every_colour():
    light, dark = variables("book.scss"), variables("dark.scss")
    coloured = {name for name, value in light.items() if value.startswith("#")}
    assert coloured <= dark.keys() and "!default" not in (SITE / "dark.scss").read_text().partition("defaults --*/")[2].replace("!default, so", "")
    text = (SITE / "book.scss").read_text()
    defaults, _, rules = text.partition("/*-- scss:rules --*/")
    assert defaults.startswith("/*-- scss:defaults --*/") and rules
    assert {name for name in re.findall(r"\$([\w-]+)", rules)} <= light.keys(), "a rule uses a variable that is not set here"
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b", rules), "a rule has a colour of its own, which dark pages would keep"
    assert text.count("{") == text.count("}")


PANDOC = shutil.which("pandoc") or shutil.which("quarto")


@pytest.mark.skipif(PANDOC is None, reason="needs pandoc, or Quarto, which brings it")
@pytest.mark.parametrize("address", ["", "https://github.com/somebody/tinygpt"])
def test_the_filter(tmp_path: Path, address: str):
    "One title, its anchor given back, the card, tables in boxes; links to the source only with an address."
    (tmp_path / "site").mkdir()
    for name in ("pages.lua", "cards.json"):
        shutil.copy(SITE / name, tmp_path / "site")
    settings = re.sub(r"(?m)^git_url =.*$", f"git_url = {address}", (ROOT / "settings.ini").read_text())
    (tmp_path / "settings.ini").write_text(settings)
    text = '---\ntitle: "05 · Attention"\n---\n\n# Attention\n> How.\n\n[source](/blob/main/x.py)\n\n### Attention\n\n|a|b|\n|-|-|\n|1|2|\n'
    call = [PANDOC, *(["pandoc"] if Path(PANDOC).stem == "quarto" else []), "--lua-filter", "site/pages.lua", "-t", "html"]
    done = subprocess.run(call, input=text, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "<h1" not in done.stdout and '<h3 id="attention">' in done.stdout and '<div class="wide">' in done.stdout
    card = re.search(r'(?s)<div class="chapter-card">(.*?)</div>', done.stdout)[1]
    assert "minutes to read" in card and "tinygpt.attention" in card
    assert done.stdout.index("</blockquote>") < done.stdout.index("chapter-card")
    links = re.findall(r'href="(https:[^"]+)"', card)
    place = "somebody/tinygpt/blob/main/nbs/05_attention.ipynb"
    assert links == ([f"https://github.com/{place}", f"https://colab.research.google.com/github/{place}",
                      "https://mybinder.org/v2/gh/somebody/tinygpt/main?urlpath=lab/tree/nbs/05_attention.ipynb"] if address else [])  # fmt: skip
    assert ("/blob/main/x.py" in done.stdout) == bool(address)


CELL = """::: {{#cell-9 .cell}}
``` {{.python .cell-code code-fold="true" code-summary="{}"}}
print(2 + 2)
```

::: {{.cell-output .cell-output-stdout}}
```
4
```
:::
:::
"""


@pytest.mark.skipif(PANDOC is None, reason="needs pandoc, or Quarto, which brings it")
def test_solutions_are_closed_with_what_they_print():
    "Another folded cell is left to Quarto, which folds its code and shows the picture it makes."
    call = [PANDOC, *(["pandoc"] if Path(PANDOC).stem == "quarto" else []), "--lua-filter", "site/pages.lua", "-t", "html"]
    pages = [subprocess.run(call, input=CELL.format(name), cwd=ROOT, capture_output=True, text=True, check=True).stdout
             for name in ("Solution", "The drawing")]  # fmt: skip
    inside = re.search(r'(?s)<details class="solution"><summary>Solution</summary>(.*)</details>', pages[0])[1]
    assert "print" in inside and re.search(r"<code>4\s*</code>", inside) and "code-fold" not in pages[0]
    assert "<details" not in pages[1] and 'data-code-fold="true"' in pages[1]


@pytest.mark.skipif(shutil.which("make") is None or shutil.which("quarto") is not None, reason="needs make, and no Quarto")
def test_make_site_without_quarto(tmp_path: Path):
    "One line that says where to get it, and exit code 2; nbdev would start an installer of its own."
    venv = tmp_path / "venv"
    venv.mkdir()
    env = os.environ | {"VENV": str(venv)}
    done = subprocess.run(["make", "-o", f"{venv}/.installed", "site", f"VENV={venv}"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("make site: Quarto is not installed; get it from"), done
