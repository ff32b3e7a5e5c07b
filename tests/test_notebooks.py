"""The notebook tools catch what they are there for: each rule is shown a fault that was planted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lint_notebooks as lint
import nbformat
import pytest
import run_notebooks
import sync_notebooks
import twice

FRONT = '---\ntitle: "05 · Attention"\noutput-file: attention.html\n---'
TITLE = "# Attention\n> How a token looks back."
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def code(source: str, *outputs: dict, **metadata) -> dict:
    return {"cell_type": "code", "source": source, "outputs": list(outputs), "metadata": metadata, "execution_count": None}


def md(source: str) -> dict:
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def picture() -> dict:
    return {"output_type": "display_data", "data": {"image/png": PNG, "text/plain": "<Figure>"}, "metadata": {}}


GOOD = [
    code("#| default_exp attention"),
    code("#| export\nimport math\nfrom tinygpt import __version__\nfrom tinygpt.rope import turn"),
    code('#| exports\ndef attend(x: float) -> float:\n    "Look back.\\n\\n    #| not a directive"\n    import matplotlib\n    return math.exp(x)'),
    code("assert attend(0) == 1\nprint('a/b/c https://example.org/home/x ./tmp/x')", stream("1 of 2")),
    code('#| fig-cap: "It grows."\n#| fig-alt: "A curve."\nplot()', picture()),
    code("#| hide\nplot()", picture()),
    code("#| code-summary: 'Solution'\n#| code-fold: true\n#| slow\n1 + 1", jupyter={"outputs_hidden": True, "source_hidden": True}),
    code("#| code-summary: How this is made\n#| code-fold: true\n1 + 1", jupyter={"source_hidden": True}),
    md("## Looking back\n\nSee [the layers](04_rope.ipynb)."),
    code("from tinygpt.model import GPT  # a cell that is not exported may look ahead"),
    code("import torch\ntorch.manual_seed(len([i for i in range(3)]))\nlambda y: attend(y) + math.pi"),
]


def write(folder: Path, cells: list[dict], name: str = "05_attention.ipynb", front: str = FRONT, title: str = TITLE) -> Path:
    "A notebook in `folder/nbs` with front matter and title before `cells`; ids are given to cells that have none."
    cells = [{"cell_type": "raw", "source": front, "metadata": {}}, md(title), *cells]
    cells = [{"id": f"cell{i:02d}", **c} for i, c in enumerate(cells)]
    path = folder / "nbs" / name
    path.parent.mkdir(exist_ok=True)
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


@pytest.fixture
def book(tmp_path: Path, root: Path) -> Path:
    "A small repository: our settings, and chapters 04, 05 and 06."
    shutil.copy(root / "settings.ini", tmp_path)
    for name in ("04_rope", "06_model"):
        word = name[3:]
        front = f'---\ntitle: "{name[:2]} · {word.title()}"\noutput-file: {word}.html\n---'
        cells = [code(f"#| default_exp {word}"), code(f"#| export\ndef {'turn' if word == 'rope' else 'GPT'}(x): return x"), code("print(1)", stream("1\n"))]
        write(tmp_path, cells, f"{name}.ipynb", front)
    return tmp_path


def test_a_good_chapter_has_no_findings(book: Path):
    write(book, GOOD)
    assert lint.Book(book).lint() == []


PLANTED = [
    # rule, what the message must say, the faulty cell
    ("directive", "did you mean '#| export'?", code("#| exprot\nx = 1")),
    ("directive", "did you mean '#| exports'?", code("#| Exports\ndef f(): pass")),
    ("directive", "did you mean '#| fig-cap'?", code('#| fig_cap: "x"\n1')),
    ("directive", "did you mean '#| default_exp'?", code("#| default_export attention")),
    ("directive", "did you mean '#| slow'?", code("#| slwo\n1")),
    ("directive", "needs a colon", code("#| code-summary\n1")),
    ("directive", "below the first line of code", code("x = 1\n#| export\ny = 2")),
    ("directive", "did you mean '#| export'?", code("# export\nx = 1")),
    ("directive", "did you mean '#| hide'?", code("#! hide\nx = 1")),
    ("never-run", "is never run", code("#| eval: false\n1")),
    ("cell-id", "has no id", {**code("1"), "id": None}),
    ("cell-id", "of an earlier cell", {**code("1"), "id": "cell00"}),
    ("output", "ValueError: bad", code("1", {"output_type": "error", "ename": "ValueError", "evalue": "bad", "traceback": []})),
    ("output", "UserWarning: careful", code("1", stream("x.py:1: UserWarning: careful\n", "stderr"))),
    ("absolute-path", "/home/ada/x.txt", code('open("/home/ada/x.txt")')),
    ("absolute-path", "/tmp/run/a", code("1", stream("saved to /tmp/run/a\n"))),
    ("absolute-path", "/Users/ada/x", md("Look into `/Users/ada/x`.")),
    ("absolute-path", "C:\\data", code("1", stream("C:\\data\\x\n"))),
    ("absolute-path", str(lint.ROOT), code("1", stream(f"{lint.ROOT}/data\n"))),
    ("backward-import", "which is chapter 06", code("#| export\nfrom tinygpt.model import GPT")),
    ("backward-import", "which is chapter 06", code("#| exports\ndef f():\n    import tinygpt.model")),
    ("backward-import", "which is chapter 06", code("#| exporti\nfrom .model import GPT")),
    ("backward-import", "which is chapter 06", code("#| export\nfrom tinygpt import model")),
    ("backward-import", "which is chapter 05", code("#| export\nfrom tinygpt.attention import attend")),
    ("backward-import", "name the chapter", code("#| export\nfrom tinygpt import generate")),
    ("heavy-import", "imports transformers", code("#| export\nimport transformers")),
    ("heavy-import", "imports matplotlib.pyplot", code("#| export\nimport matplotlib.pyplot as plt")),
    ("import-cell", "and needs tok, which", code("import tempfile\nprint(tempfile.gettempdir(), tok)")),
    ("picture", "#| fig-cap", code('#| fig-alt: "A curve."\nplot()', picture())),
    ("picture", "#| fig-alt", code('#| fig-cap: "It grows."\nplot()', picture())),
    ("picture", "hold no picture", code('#| fig-cap: "It grows."\n#| fig-alt: "A curve."\nplot()', {"output_type": "display_data", "data": {"text/plain": "<Figure>"}, "metadata": {}})),
    ("fold", "open in JupyterLab", code("#| code-fold: true\n1")),
    ("fold", "open on the site", code("1", jupyter={"source_hidden": True})),
    ("fold", "a solution whose outputs", code("#| code-summary: Solution, at last\n#| code-fold: true\n1", jupyter={"source_hidden": True})),
    ("fold", "shows its first line", code("#| code-fold: true\n#| code-summary: How\n1", jupyter={"source_hidden": True})),
    ("fold", "the site shows", code("1", jupyter={"outputs_hidden": True})),
    ("link", "links to training.html, and there is no such file", md("See [training](training.html#loop).")),
    ("link", "links to model.html, and there is no such file; write 06_model.ipynb", md("See [the model](model.html).")),
    ("link", "links to 7_x.ipynb", md('![](7_x.ipynb "title") and `[code](is none)`')),
    ("heading-anchor", "'Attend'", md("## Attend\n\nwords")),
]


@pytest.mark.parametrize("rule, says, cell", PLANTED, ids=[f"{r}-{i}" for i, (r, _, _) in enumerate(PLANTED)])
def test_a_planted_fault_is_found(book: Path, rule: str, says: str, cell: dict):
    path = write(book, [*GOOD, cell])
    found = lint.Book(book).lint([path])
    assert [p.rule for p in found] == [rule], found
    assert says in found[0].message and found[0].where.startswith("nbs/05_attention.ipynb, cell 13")


@pytest.mark.parametrize(
    "kw, says",
    [
        ({"front": "no front matter"}, 'title: "05'),
        ({"front": FRONT.replace("05", "06")}, 'title: "05'),
        ({"front": FRONT.replace("attention.html", "05_attention.html")}, "output-file: attention.html"),
        ({"title": "# Attention"}, "> one sentence"),
        ({"name": "05_looking.ipynb", "front": FRONT.replace("attention", "looking")}, "one chapter, one word"),
    ],
)
def test_front_matter(book: Path, kw: dict, says: str):
    found = lint.Book(book).lint([write(book, GOOD, **kw)])
    assert "front-matter" in {p.rule for p in found} and any(says in p.message for p in found), found


def test_a_chapter_without_outputs(book: Path):
    (found,) = lint.Book(book).lint([write(book, [code("print(1)")])])
    assert found.rule == "output" and "has no stored outputs" in found.message


def test_an_old_or_broken_notebook(book: Path):
    path = write(book, GOOD)
    nb = json.loads(path.read_text())
    path.write_text(json.dumps({**nb, "nbformat_minor": 4}))
    assert [p.rule for p in lint.Book(book).lint([path])] == ["cell-id"]
    path.write_text("<<<<<<< HEAD")
    assert [p.rule for p in lint.Book(book).lint([path])] == ["readable"]


def test_every_rule_is_shown_a_fault():
    assert {rule for rule, _, _ in PLANTED} | {"front-matter"} == set(lint.RULES)


def test_the_lint_says_how_it_ended(capsys: pytest.CaptureFixture, book: Path):
    assert lint.main([str(write(book, [*GOOD, code("#| exprot\n1")]))]) == 1
    assert "findings: 1" in capsys.readouterr().out
    assert lint.main([str(write(book, GOOD))]) == 0
    assert "no findings" in capsys.readouterr().out


def test_the_book_itself():
    assert [str(problem) for problem in lint.Book().lint()] == []


# --- in sync and clean ---------------------------------------------------------------------------------------


@pytest.fixture
def exported(book: Path) -> Path:
    "The small repository, exported."
    (book / "tinygpt").mkdir()
    (book / "tinygpt/__init__.py").write_text('__version__ = "0"\n')
    sync_notebooks._nbdev("nbdev_export", book)
    sync_notebooks._nbdev("nbdev_clean", book)
    assert sync_notebooks.problems(book) == []
    return book


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_module_edited_by_hand(exported: Path):
    module = exported / "tinygpt/rope.py"
    module.write_text(module.read_text().replace("return x", "return -x"))
    before = everything(exported)
    found = sync_notebooks.problems(exported)
    assert len(found) == 1 and found[0].startswith("nbs/04_rope.ipynb: tinygpt/rope.py is not what the notebook exports")
    assert everything(exported) == before, "looking changed the tree"


def test_a_notebook_that_was_not_exported(exported: Path):
    (exported / "tinygpt/rope.py").unlink()
    assert "nbs/04_rope.ipynb: tinygpt/rope.py has not been exported" in sync_notebooks.problems(exported)[0]


def test_a_module_without_its_notebook(exported: Path):
    (exported / "nbs/06_model.ipynb").unlink()
    found = sync_notebooks.problems(exported)
    assert any("tinygpt/model.py: nbs/06_model.ipynb no longer exports it" in line for line in found), found


def test_an_index_that_is_behind(exported: Path):
    (exported / "tinygpt/_modidx.py").write_text("d = {}\n")
    assert sync_notebooks.problems(exported) == ["tinygpt/_modidx.py: is not the index of the exported modules; run make export"]


@pytest.mark.parametrize("dirt", [{"execution_count": 3}, {"metadata": {"scrolled": True}}])
def test_a_notebook_that_is_not_clean(exported: Path, dirt: dict):
    path = exported / "nbs/04_rope.ipynb"
    nb = json.loads(path.read_text())
    nb["cells"][-1].update(dirt)
    path.write_text(json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n")
    found = sync_notebooks.problems(exported)
    assert len(found) == 1 and found[0].startswith("nbs/04_rope.ipynb: is not clean")


def test_a_notebook_that_cannot_be_exported(exported: Path):
    (exported / "nbs/04_rope.ipynb").write_text("<<<<<<< HEAD")
    assert "nbdev_export failed" in sync_notebooks.problems(exported)[0]


# --- running chapters ----------------------------------------------------------------------------------------


def test_running_stores_outputs_and_cleans(book: Path):
    path = write(book, [code("x = 20\nx + 1"), code("#| code-fold: true\nx", jupyter={"source_hidden": True})])
    run_notebooks.run(path)
    cells = nbformat.read(path, as_version=4).cells
    assert cells[2].outputs[0].data["text/plain"] == "21" and cells[2].execution_count is None
    assert cells[3].metadata == {"jupyter": {"source_hidden": True}}
    assert [c.id for c in cells] == ["cell00", "cell01", "cell02", "cell03"]
    before = path.read_bytes()
    run_notebooks.run(path)
    assert path.read_bytes() == before, "a second run changed the file"
    sync_notebooks._nbdev("nbdev_clean", book)
    assert path.read_bytes() == before, "it was not clean"


def test_a_chapter_that_fails_stays_as_it_was(book: Path):
    path = write(book, [code("1"), code("1 / 0")])
    before = path.read_bytes()
    with pytest.raises(run_notebooks.CellExecutionError, match="ZeroDivisionError"):
        run_notebooks.run(path)
    assert path.read_bytes() == before and [p.name for p in path.parent.glob("*draft*")] == []


def test_chapters_are_found_by_number_word_and_path(book: Path):
    nbs = book / "nbs"
    names = [p.name for p in run_notebooks.find([], nbs)]
    assert names == ["04_rope.ipynb", "06_model.ipynb"]
    for name in ("4", "04", "rope", "04_rope", "nbs/04_rope.ipynb"):
        assert run_notebooks.find([name], nbs) == [nbs / "04_rope.ipynb"]
    with pytest.raises(ValueError, match="04_rope, 06_model"):
        run_notebooks.find(["07"], nbs)


# --- twice in one kernel -------------------------------------------------------------------------------------


def test_a_chapter_that_runs_well_twice(book: Path):
    path = write(book, [code("x = 1"), md("words"), code("x += 1\nassert x == 2\nprint('fine')")])
    before = path.read_bytes()
    assert list(twice.run_twice(path)) == [] and path.read_bytes() == before


def test_what_a_reader_would_stumble_on(book: Path):
    "Each fault shows where it should: state left by the first run, a warning, a call to a server, a file left behind."
    faults = [
        code("fine = 'seen' not in globals()\nseen = True"),
        code("import warnings\nwarnings.warn('careful')"),
        code("import socket\ntry: socket.create_connection(('192.0.2.1', 80))\nexcept OSError as error: print(error, file=__import__('sys').stderr)"),
        code("open('left.txt', 'w').close()"),
        code("assert fine, 'the first run is still here'"),
    ]
    found = list(twice.run_twice(write(book, faults)))
    for line, words in zip(found, ("cell 3, first run: ", "cell 4, first run: a call to 192.0.2.1: chapters run offline", "cell 3, second run: ",
                                   "cell 4, second run: a call", "cell 6, second run: AssertionError: the first run is still here",
                                   "left behind: left.txt"), strict=True):
        assert words in line, found
    assert "UserWarning: careful" in found[0]


def test_twice_says_how_it_ended(capsys: pytest.CaptureFixture, book: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(twice, "ROOT", book)
    write(book, [code("import sys; print('oh', file=sys.stderr)")])
    assert twice.main(["04"]) == 0 and capsys.readouterr().out.startswith("04_rope: well, ")
    assert twice.main(["05"]) == 1 and "05_attention: stumbles" in (out := capsys.readouterr().out) and "cell 2, first run: oh" in out
    assert twice.main(["99"]) == 2 and "'99' is no chapter" in capsys.readouterr().err
