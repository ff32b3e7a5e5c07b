"""The notebook lint: what nbdev, Quarto and Jupyter would let pass in silence.

    python tests/lint_notebooks.py                         # every chapter
    python tests/lint_notebooks.py nbs/05_attention.ipynb  # these

Each rule is one function below that yields `(cell, message)` pairs; its docstring says why the rule is there.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What nbdev 2.4 acts on, and the cell options that Quarto knows (these need a colon and a value).
NBDEV = {"default_exp", "export", "exports", "exporti", "exec_doc", "hide", "hide_line", "filter_stream"}
QUARTO = set(
    "eval echo output include warning error label classes column layout layout-ncol layout-nrow layout-valign"
    " code-fold code-summary code-line-numbers code-overflow cap-location"
    " fig-cap fig-subcap fig-alt fig-align fig-link fig-width fig-height fig-format fig-cap-location fig-column"
    " tbl-cap tbl-subcap tbl-colwidths tbl-cap-location tbl-column lst-label lst-cap".split()
)
HEAVY = {"transformers", "datasets", "matplotlib", "ipywidgets", "anywidget", "lightning"}
HEAVY_CHAPTERS = {"widgets", "explorers", "scaling"}  # loaded only by who asks for them
EXPORTS = {"export", "exports", "exporti"}

Found = Iterator[tuple["Cell | None", str]]


@dataclass(frozen=True)
class Problem:
    "One finding: where it is, the rule's name, and what to do."

    where: str
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}: {self.message}"


class Cell:
    "A cell with its directives taken apart, as nbdev reads them: comment lines before the first line of code."

    def __init__(self, index: int, raw: dict):
        self.index, self.raw, self.kind = index, raw, raw.get("cell_type")
        self.id, self.metadata, self.outputs = raw.get("id"), raw.get("metadata", {}), raw.get("outputs", [])
        self.source = "".join(raw.get("source", []))
        self.directives: dict[str, str | None] = {}  # name -> value after a colon, None without a colon
        self.late: list[str] = []  # directives below the first line of code, which nothing reads
        if self.kind == "code":
            self._read_directives()

    def _read_directives(self) -> None:
        code_seen, inside = False, self._inside_strings()
        for number, line in enumerate(self.source.splitlines(), 1):
            match = re.match(r"\s*#\s*\|\s*(\S.*)?$", line)
            if match is None or number in inside:
                code_seen = code_seen or bool(line.strip() and not re.match(r"\s*%%\w+", line))
            elif match[1] and not (self.directives and re.match(r"\s*#\s*\|\s{2,}", line)):  # else a value goes on
                name, colon, value = match[1].partition(":")
                name = name if colon and " " not in name.strip() else match[1].split()[0]
                name = name.strip().rstrip(":")
                if code_seen:
                    self.late.append(name)
                else:
                    self.directives[name] = value.strip().strip("\"'") if colon else None

    def _inside_strings(self) -> set[int]:
        "Numbers of the lines that begin inside a string, where `#|` is text."
        tree = self.tree()
        strings = [n for n in ast.walk(tree) if isinstance(n, (ast.Constant, ast.JoinedStr))] if tree else []
        return {line for n in strings for line in range(n.lineno + 1, (n.end_lineno or n.lineno) + 1)}

    def tree(self) -> ast.Module | None:
        "The cell as Python, `None` where it is not: IPython's own lines (`%time`, `!ls`) count as `pass`."
        if self.kind != "code":
            return None
        plain = re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", self.source)
        try:
            return ast.parse(plain)
        except SyntaxError:
            return None

    @property
    def exported(self) -> bool:
        return bool(EXPORTS & self.directives.keys())

    @property
    def on_site(self) -> bool:
        return "hide" not in self.directives and "false" not in {self.directives.get(k) for k in ("include", "output")}


class Notebook:
    "A notebook and what the rules want to know about it."

    def __init__(self, path: Path, root: Path = ROOT):
        self.path = path
        self.name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        self.raw = json.loads(path.read_text(encoding="utf-8"))
        self.cells = [Cell(i, raw) for i, raw in enumerate(self.raw["cells"])]
        found = (re.search(r"(?m)^#\|\s*default_exp\s+(\S+)", c.source) for c in self.cells if c.kind == "code")
        self.module = next((match[1] for match in found if match), None)
        number = re.match(r"(\d+[a-z]?)_", path.name)
        self.number = number[1] if number else None  # "07", "07b": in the order of the letters

    def code(self) -> list[Cell]:
        return [c for c in self.cells if c.kind == "code"]


def known_directives(root: Path = ROOT) -> set[str]:
    "All directives that something acts on, with the test flags of settings.ini."
    config = ConfigParser(delimiters=["="])
    config.read(root / "settings.ini", encoding="utf-8")
    return NBDEV | QUARTO | set(config["DEFAULT"].get("tst_flags", "").split())


# --- the rules -----------------------------------------------------------------------------------------------


def directives(nb: Notebook, book: Book) -> Found:
    "A misspelt directive, or one below the first line of code, is ignored in silence: the cell would not be exported."
    for c in nb.code():
        for name, value in c.directives.items():
            if name not in book.known:
                near = get_close_matches(name.lower().replace("_", "-"), book.known, n=1, cutoff=0.5)
                near = near or get_close_matches(name.lower(), book.known, n=1, cutoff=0.5)
                yield c, f"'#| {name}' is not a directive" + (f"; did you mean '#| {near[0]}'?" if near else "")
            elif name in QUARTO and not value:
                yield c, f"'#| {name}' needs a colon and a value: '#| {name}: ...'"
        for name in c.late:
            if name != "hide_line":
                yield c, f"'#| {name}' stands below the first line of code, where nothing reads it; move it to the top"
        if match := re.match(r"\s*#\s*!?\s*(default_exp|exports?|exporti|hide)\b[ \w.]*$", c.source.partition("\n")[0]):
            yield c, f"'{match[0].strip()}' is only a comment; did you mean '#| {match[1]}'?"


def never_run(nb: Notebook, book: Book) -> Found:
    "A cell with `eval: false` is run by nothing and rots; a slow one is marked `#| slow` and run by its flag."
    for c in nb.code():
        if (c.directives.get("eval") or "").lower() == "false":
            yield c, "'#| eval: false' is never run by anything; mark it '#| slow', or make it quick"


def cell_ids(nb: Notebook, book: Book) -> Found:
    "The exported module names each cell by its id: without one, every export gives it a new one."
    if (nb.raw.get("nbformat", 0), nb.raw.get("nbformat_minor", 0)) < (4, 5):
        yield None, "is older than notebook format 4.5, which has no cell ids; run make export"
    seen: set[str] = set()
    for c in nb.cells:
        if not c.id:
            yield c, "has no id; run make export, which gives it one"
        elif c.id in seen:
            yield c, f"has the id {c.id} of an earlier cell; delete the id and run make export"
        seen.add(c.id)


def outputs(nb: Notebook, book: Book) -> Found:
    "Stored outputs are what readers see: no tracebacks, no warnings, no progress bars."
    if nb.code() and not any(c.outputs for c in nb.code()):
        yield None, "has no stored outputs, and readers would see none; run make chapters"
    for c in nb.code():
        for o in c.outputs:
            if o.get("output_type") == "error":
                yield c, f"its output is an error ({o.get('ename')}: {o.get('evalue')}); catch it and show the message, or mend it"
            elif o.get("output_type") == "stream" and o.get("name") == "stderr":
                first = ("".join(o.get("text", "")).strip().splitlines() or [""])[0]
                yield c, f"its output has text on stderr ({first[:80]!r}): a warning to mend, or a progress bar to turn off"


def absolute_paths(nb: Notebook, book: Book) -> Found:
    "A path of one machine means nothing on another."
    places = r"home|Users|root|tmp|var|private|mnt|opt|usr|srv|workspace|content"
    own = "|".join(re.escape(p.as_posix()) for p in {ROOT, Path.home()} if len(p.parts) > 1)
    pattern = re.compile(rf"(?<![\w.:/~<>-])(?:/(?:{places})/[\w.@-]+|(?:{own})\b|[A-Z]:\\\\?\w+)[^\s\"'`)]*")
    for c in nb.cells:
        texts = [c.source]
        for o in c.outputs:
            texts += ["".join(o.get("text", ""))]
            texts += ["".join(v) for k, v in o.get("data", {}).items() if k.startswith("text/")]
        for text in texts:
            if match := pattern.search(text):
                yield c, f"names a path of one machine ({match[0]}); find files through the package, write into a temporary folder"
                break


def _imports(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    "Every import as `(module, names)`, with relative ones made absolute."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"tinygpt.{node.module}" if node.level and node.module else "tinygpt" if node.level else node.module or ""
            yield module, [alias.name for alias in node.names]


def backward_imports(nb: Notebook, book: Book) -> Found:
    "Reading order is dependency order: a chapter's exported cells import from earlier chapters only."
    if nb.number is None:
        return
    for c in nb.code():
        tree = c.tree() if c.exported else None
        for module, names in _imports(tree) if tree else ():
            package, _, rest = module.partition(".")
            if package != "tinygpt":
                continue
            for target in [rest.partition(".")[0]] if rest else names:
                chapter = book.chapters.get(target)
                if chapter is None and not rest and names and not target.startswith("__"):
                    yield c, f"imports {target} from the package itself; name the chapter: from tinygpt.<chapter> import {target}"
                elif chapter is not None and chapter >= nb.number:
                    yield c, f"imports tinygpt.{target}, which is chapter {chapter}: exported cells of chapter {nb.number} may import earlier chapters only"


def heavy_imports(nb: Notebook, book: Book) -> Found:
    "`import tinygpt` stays quick: large optional libraries are imported inside the function that needs them."
    for c in nb.code():
        tree = c.tree() if c.exported and nb.module not in HEAVY_CHAPTERS else None
        for node in tree.body if tree else ():
            for module, _ in _imports(node) if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
                if module.partition(".")[0] in HEAVY:
                    yield c, f"imports {module} when the module is imported; move it into the function that needs it"


def _names(tree: ast.AST) -> tuple[set[str], set[str]]:
    "The names that a cell binds anywhere, and those that it reads."
    bound, read = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return bound, read


def import_cells(nb: Notebook, book: Book) -> Found:
    "To document a chapter nbdev runs its exported cells and every cell that imports, and no other: such a cell must run by itself."
    there = set(dir(builtins)) | {"display", "get_ipython", "__file__", "__name__"}
    for c in nb.code():
        tree = c.tree()
        imports = tree and any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(tree))
        if tree and (imports or c.exported):
            bound, read = _names(tree)
            missing = sorted(read - bound - there)
            if missing and not c.exported:
                yield c, f"imports, so nbdev runs it for the site, and needs {', '.join(missing)}, which is not there then; give the imports a cell of their own"
            there |= bound


def pictures(nb: Notebook, book: Book) -> Found:
    "A picture carries its conclusion as a caption, and words for readers who do not see it; a caption needs its picture."
    for c in nb.code():
        shown = any(k.startswith("image/") for o in c.outputs for k in o.get("data", {}))
        if "fig-cap" in c.directives and not shown:
            yield c, "has a caption, and its stored outputs hold no picture; let it end in plt.show() and run the chapter again"
        if c.on_site and shown:
            for name, what in (("fig-cap", "the conclusion"), ("fig-alt", "what is seen")):
                if not c.directives.get(name):
                    yield c, f"shows a picture without '#| {name}: \"...\"' ({what})"


def folds(nb: Notebook, book: Book) -> Found:
    "`code-fold` folds a cell on the site; JupyterLab folds it by the cell's own metadata: a solution needs both, for its outputs, too."
    for c in nb.code():
        hidden = c.metadata.get("jupyter", {})
        folded, solution = bool(hidden.get("source_hidden")), (c.directives.get("code-summary") or "").startswith("Solution")
        if (c.directives.get("code-fold") or "").lower() == "true" and not folded:
            yield c, "is folded on the site and open in JupyterLab; set its metadata to {\"jupyter\": {\"source_hidden\": true}}"
        elif folded and c.on_site and "code-fold" not in c.directives:
            yield c, "is folded in JupyterLab and open on the site; add '#| code-fold: true', or unfold it"
        if folded and "code-summary" in c.directives and next(iter(c.directives)) != "code-summary":
            yield c, "is folded in JupyterLab, which shows its first line: begin with '#| code-summary: ...', so that it says what is folded"
        if solution and not hidden.get("outputs_hidden"):
            yield c, "is a solution whose outputs JupyterLab shows; set its metadata to {\"jupyter\": {\"outputs_hidden\": true, \"source_hidden\": true}}"
        elif hidden.get("outputs_hidden") and not solution:
            yield c, "has outputs that JupyterLab hides and the site shows; take outputs_hidden out of its metadata, or call it '#| code-summary: \"Solution\"'"


def front_matter(nb: Notebook, book: Book) -> Found:
    "nbdev and Quarto name a page differently; `output-file` in the first cell makes the links of both agree."
    if nb.number is None:
        return
    first = nb.cells[0] if nb.cells else None
    front = dict(re.findall(r"(?m)^([\w-]+):\s*\"?(.*?)\"?\s*$", first.source)) if first and first.kind == "raw" else {}
    word = nb.path.stem.partition("_")[2]
    if not front.get("title", "").startswith(f"{nb.number} "):
        yield first, f"the first cell is raw front matter with title: \"{nb.number} · ...\""
    if front.get("output-file") != f"{word}.html":
        yield first, f"the front matter has output-file: {word}.html (not {front.get('output-file')!r})"
    if nb.module not in (None, word):
        yield first, f"the chapter is called {word} and its module {nb.module}: one chapter, one word"
    second = nb.cells[1] if len(nb.cells) > 1 else None
    if second is None or second.kind != "markdown" or not re.match(r"# .+\n+> .+", second.source):
        yield second, "the second cell is '# Title' and '> one sentence': it becomes the module's docstring"


def heading_anchors(nb: Notebook, book: Book) -> Found:
    "A heading that reads like an exported name takes the anchor that links to the name would jump to."
    names = {n.name.lower() for c in nb.code() if c.exported and (t := c.tree()) for n in t.body if hasattr(n, "name")}
    for c in nb.cells:
        if c.kind == "markdown":
            text = re.sub(r"(?ms)^```.*?^```", "", c.source)
            for level, heading in re.findall(r"(?m)^(#+)\s+(.*?)\s*$", text):
                anchor = re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")
                if anchor in names and len(level) > 1:
                    yield c, f"the heading '{heading}' takes the anchor of the exported name {anchor}; word it differently"


def relative_links(text: str) -> list[str]:
    "The links and pictures of a Markdown text that lead to files beside it, without anchors; code is no link."
    text = re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "", text)
    found = re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", text) + re.findall(r"(?:href|src)=\"([^\"]+)\"", text)
    return [link.partition("#")[0] for link in found if not re.match(r"[a-z]+:|#", link)]


def links(nb: Notebook, book: Book) -> Found:
    "A link to a notebook works in JupyterLab, and Quarto turns it into a link to the page; a link to a page works on the site only."
    for c in nb.cells:
        for link in relative_links(c.source) if c.kind == "markdown" else ():
            if not (nb.path.parent / link).exists():
                near = book.chapters.get(Path(link).stem) if link.endswith(".html") else None
                instead = f"; write {near}_{Path(link).stem}.ipynb" if near is not None else ""
                yield c, f"links to {link}, and there is no such file{instead}"


RULES: dict[str, Callable[[Notebook, "Book"], Found]] = {
    "directive": directives,
    "never-run": never_run,
    "cell-id": cell_ids,
    "output": outputs,
    "absolute-path": absolute_paths,
    "backward-import": backward_imports,
    "heavy-import": heavy_imports,
    "import-cell": import_cells,
    "picture": pictures,
    "fold": folds,
    "front-matter": front_matter,
    "heading-anchor": heading_anchors,
    "link": links,
}


# --- running them --------------------------------------------------------------------------------------------


class Book:
    "All chapters of a folder: which module belongs to which number, and the directives that count."

    def __init__(self, root: Path = ROOT):
        self.root, self.known = root, known_directives(root)
        self.paths = sorted(p for p in (root / "nbs").rglob("*.ipynb") if not re.search(r"/[._]", p.as_posix()[len(str(root)) :]))
        self.chapters: dict[str, str] = {}
        for path in self.paths:
            number, _, word = path.stem.partition("_")
            if re.fullmatch(r"\d+[a-z]?", number):
                self.chapters[word] = number

    def lint(self, paths: list[Path] | None = None) -> list[Problem]:
        "All findings in `paths`, or in every chapter."
        found = []
        for path in paths or self.paths:
            try:
                nb = Notebook(path.resolve(), self.root)
            except (OSError, ValueError, KeyError) as error:
                found.append(Problem(str(path), "readable", f"is not a notebook: {error}"))
                continue
            for rule, check in RULES.items():
                for cell, message in check(nb, self):
                    where = nb.name + (f", cell {cell.index}" + (f" (id {cell.id})" if cell.id else "") if cell else "")
                    found.append(Problem(where, rule, message))
        return found


def main(arguments: list[str]) -> int:
    book = Book()
    found = book.lint([Path(a) for a in arguments])
    for problem in found:
        print(problem)
    n = len(arguments) or len(book.paths)
    print(f"lint: {n} notebooks, {len(RULES)} rules, " + (f"findings: {len(found)}" if found else "no findings"))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
