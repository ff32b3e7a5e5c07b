"""The house around the book: packaging, pages, links, commands and workflows."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import lint_notebooks as lint
import pytest
import tinygpt
import type_stub
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]  # tests/test_site.py looks at those of the site
BOOK = [lint.Notebook(path) for path in lint.Book().paths]


def settings() -> dict[str, str]:
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def requirements(name: str) -> list[Requirement]:
    return [Requirement(line) for line in settings()[name].splitlines() if line.strip()]


def python(code: str, **env: str) -> str:
    "What a fresh Python prints for `code`, in a folder that is not the repository."
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.anchor, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the package ---------------------------------------------------------------------------------------------


def test_versions_agree():
    version = settings()["version"]
    init = (ROOT / "tinygpt/__init__.py").read_text()
    assert f'__version__ = "{version}"' in init
    assert metadata.version("tinygpt") == version, "the installed package is older than the tree: make install"
    newest = re.search(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text())
    assert newest and newest[1] == version


@pytest.mark.parametrize("path", sorted((ROOT / "tinygpt").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_modules_use_what_they_import(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {(name.asname or name.name).partition(".")[0] for node in imports for name in node.names}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    listed = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not imported - used - listed - {"annotations"}


def test_importing_tinygpt_is_light():
    heavy = sorted(lint.HEAVY)
    assert python(f"import tinygpt, sys; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"
    chapters = [f"tinygpt.{nb.module}" for nb in BOOK if nb.module and nb.module not in lint.HEAVY_CHAPTERS]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {chapters}]; print([m for m in {heavy} if m in sys.modules])"
    assert python(code).strip() == "[]", "a chapter's module imports a large library when it is imported"


def test_editors_are_told_the_names_that_are_looked_up_late():
    "tinygpt/__init__.pyi names what `tinygpt.__getattr__` finds, and all of it is there."
    assert type_stub.STUB.read_text(encoding="utf-8") == type_stub.stub(), "run python tests/type_stub.py"
    imports = [node for node in ast.parse(type_stub.stub()).body if isinstance(node, ast.ImportFrom)]
    told = [alias.asname for node in imports for alias in node.names]
    assert sorted(told) == sorted([*tinygpt._MODULES, *tinygpt.__all__]) and all(hasattr(tinygpt, name) for name in told)


def test_the_command_is_installed():
    (command,) = metadata.entry_points(group="console_scripts", name="tinygpt")
    assert command.value == "tinygpt.cli:main" and callable(command.load())


def test_nbdev_knows_the_index():
    (index,) = metadata.entry_points(group="nbdev", name="tinygpt")
    assert set(index.load()["syms"]) >= {f"tinygpt.{nb.module}" for nb in BOOK if nb.module}


def test_wheel_and_source_archive(tmp_path: Path):
    "The wheel carries data/ as tinygpt/shipped, recipes, static files and py.typed; the source archive builds the same wheel."
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("tinygpt", "data"):
        shutil.copytree(ROOT / name, tree / name, ignore=skip)
    for name in ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tree)
    build = "import setuptools.build_meta as b; print(b.build_{}(r'{}'))"
    env = os.environ | {"PYTHONWARNINGS": "ignore"}

    def make(kind: str, where: Path) -> Path:
        done = subprocess.run([sys.executable, "-c", build.format(kind, tmp_path)], cwd=where, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return tmp_path / done.stdout.split()[-1]

    wheel = make("wheel", tree)
    with zipfile.ZipFile(wheel) as z:
        inside = set(z.namelist())
        facts = z.read(next(n for n in inside if n.endswith("METADATA"))).decode()
    files = lambda folder: {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}  # noqa: E731
    for folder, place in (("data", "tinygpt/shipped"), ("tinygpt", "tinygpt")):
        missing = {f"{place}/{name}" for name in files(tree / folder)} - inside
        assert not missing, f"not in the wheel: {sorted(missing)}"
    assert "tinygpt/py.typed" in inside and any(n.startswith("tinygpt/shipped/") for n in inside)
    assert any(n.endswith("licenses/LICENSE") for n in inside)
    assert not [n for n in inside if n.startswith(("nbs/", "tests/", "data/"))]
    assert "License-Expression: Apache-2.0" in facts and "Requires-Python: >=3.11" in facts
    for minor in (11, 12, 13):
        assert f"Classifier: Programming Language :: Python :: 3.{minor}" in facts

    shutil.unpack_archive(make("sdist", tree), tmp_path / "source")
    (source,) = (tmp_path / "source").iterdir()
    wheel.unlink()
    with zipfile.ZipFile(make("wheel", source)) as z:
        assert set(z.namelist()) == inside


def test_constraints_pin_what_we_ask_for():
    "Every direct requirement has an exact pin, within its bounds."
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    for extra in ("requirements", "read_requirements", "dev_requirements", "scale_requirements", "tensorboard_requirements", "bench_requirements"):
        for requirement in requirements(extra):
            version = pins.get(canonicalize_name(requirement.name))
            assert version, f"constraints.txt has no pin for {requirement.name}"
            assert requirement.specifier.contains(version), f"{requirement.name}=={version} is outside {requirement.specifier}"
    bounds = {str(r) for r in requirements("dev_requirements")}
    assert {"nbdev==2.4.14", "execnb<0.2", "fastcore<1.13", "ghapi<2"} <= bounds


# --- pages and links -----------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    "The anchor that GitHub makes of a heading."
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_exist(page: str):
    text = (ROOT / page).read_text()
    for link in lint.relative_links(text):
        assert (ROOT / page).parent.joinpath(link).exists(), f"{page} links to {link}, which is not there"
    headings = {slug(h) for h in re.findall(r"(?m)^#+ (.*)", text)}
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in headings, f"{page} links to #{anchor}, and has no such heading"


def test_readme_lists_the_chapters():
    "The table has one linked row for each notebook, in order, named as its front matter names it."
    rows = re.findall(r"(?m)^\| \[([^\]]+)\]\((nbs/[^)]+)\) \|", (ROOT / "README.md").read_text())
    titles = []
    for nb in BOOK:
        front = re.search(r"(?m)^title:\s*\"?(.*?)\"?\s*$", nb.cells[0].source)
        titles.append((front[1] if front else nb.path.stem, nb.name))
    assert rows == titles


def test_readme_examples_run():
    tale, quick, parts = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / "README.md").read_text())
    assert " Mia was at the " in python(tale)
    assert " calls of the model" in python(f"{tale}\n{quick}\nprint(stats)")
    shape = python(f"{parts}\nprint(logits.shape == (1, 16, tokenizer.vocab_size))")
    assert shape.strip() == "True"


def test_readme_and_makefile_agree():
    make = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?m)^([a-z]+):.*## ", make))
    for page in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"\bmake ([a-z]+)\b(?=[`\s;:,.)]|$)", " ".join(re.findall(r"`[^`]+`|(?m:^make .*$)", (ROOT / page).read_text()))))
        assert named <= targets, f"{page} names {sorted(named - targets)}, which the Makefile lacks"
    readme = (ROOT / "README.md").read_text()
    assert {"demo", "test", "lab"} <= targets
    assert "make demo" in readme and "make test" in readme and "make lab" in readme
    assert "pip install -c constraints.txt -e '.[dev]'" in readme and "pip install -c constraints.txt -e '.[dev]'" in (ROOT / ".ci/install").read_text()
    assert "https://download.pytorch.org/whl/cpu" in readme


def test_nothing_of_this_machine_is_named():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = files.stdout.split("\0") if files.returncode == 0 else []
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 3_000_000 and path.suffix not in {".png", ".safetensors", ".bin"}:
            assert str(ROOT) + "/" not in path.read_text(encoding="utf-8", errors="ignore"), f"{name} names {ROOT}"


# --- commands and workflows ----------------------------------------------------------------------------------


def test_workflows():
    flows = {p.name: yaml.safe_load(p.read_text()) for p in (ROOT / ".github/workflows").glob("*.yml")}
    assert set(flows) == {"test.yml", "site.yml"}
    matrix = flows["test.yml"]["jobs"]["test"]["strategy"]["matrix"]
    facts = settings()
    first, last = (int(facts[k].split(".")[1]) for k in ("min_python", "max_python"))
    assert matrix["python"] == [f"3.{n}" for n in range(first, last + 1)]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest"]
    steps = lambda flow: [s for job in flow["jobs"].values() for s in job["steps"]]  # noqa: E731
    assert any(s.get("run") == "make test" for s in steps(flows["test.yml"]))
    assert any(s.get("uses", "").startswith("quarto-dev/quarto-actions/") for s in steps(flows["site.yml"]))
    for name, flow in flows.items():
        assert flow[True], f"{name} runs on nothing"  # YAML reads the key `on` as true


def shell(*command: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True)


def test_scripts_are_executable_bash():
    for name in ("install", "test", "run"):
        path = ROOT / ".ci" / name
        assert os.access(path, os.X_OK) and shell("bash", "-n", str(path)).returncode == 0


def test_an_old_python_is_named(tmp_path: Path):
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n")
    old.chmod(0o755)
    venv = tmp_path / "venv"
    done = shell(".ci/install", PYTHON=str(old), VENV=str(venv))
    assert done.returncode == 2 and not venv.exists()
    assert "is Python 3.9.2, and tinygpt needs Python 3.11 to 3.13" in done.stderr
    done = shell(".ci/install", PYTHON="python-that-is-missing", VENV=str(venv))
    assert done.returncode == 2 and "'python-that-is-missing' is not there" in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make():
    listed = shell("make").stdout
    for target in ("demo", "test", "lab", "chapters", "handout", "site", "bench", "clean", "help"):
        assert re.search(rf"(?m)^  make {target}  +\S", listed), f"make help does not list {target}"


def handout(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / "site/handout.py", *map(str, arguments)], capture_output=True, text=True)


def test_a_handout_has_no_solutions(tmp_path: Path):
    done = handout("05", "--out", tmp_path)
    assert done.returncode == 0 and f"jupyter trust {tmp_path}" in done.stdout, done.stderr
    before, after = (json.loads(path.read_text()) for path in (ROOT / "nbs/05_attention.ipynb", tmp_path / "05_attention.ipynb"))
    texts = ["".join(cell["source"]) for cell in after["cells"]]
    solved = sum('code-summary: "Solution"' in "".join(cell["source"]) for cell in before["cells"])
    assert len(before["cells"]) == len(after["cells"]) and texts.count("# your solution\n") == solved >= 3
    assert not any("Solution" in text for text in texts)
    for wrong, said in {"99": "there is no chapter 99", "5": "did you mean 05?", "05#loop": "there is no section 'loop'"}.items():
        done = handout(wrong, "--out", tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr


def test_a_handout_of_a_part_runs_and_keeps_what_was_written_in_it(tmp_path: Path):
    target = tmp_path / "05_attention.ipynb"
    done = handout("05#two-matrix-products-and-a-mask", "--no-outputs", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    cells = json.loads(target.read_text())["cells"]
    text, code = ("\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == kind) for kind in ("markdown", "code"))
    assert "## Two matrix products" in text and "## What breaks" not in text
    assert "](#a-window" not in text and "A window at linear cost" in text, "links to what is cut off are plain words"
    assert not any(cell.get("outputs") for cell in cells) and "#|" not in code
    done = subprocess.run([sys.executable, "-"], input=code, cwd=ROOT, env=os.environ | {"MPLBACKEND": "agg"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert handout("05#two-matrix-products-and-a-mask", "--no-outputs", "--out", tmp_path).returncode == 0, "nothing was changed in it"
    target.write_text(target.read_text() + "\n")
    done = handout("05", "--out", tmp_path)
    assert done.returncode == 2 and "--force" in done.stderr and target.read_text().endswith("\n\n")
    assert handout("05", "--out", tmp_path, "--force").returncode == 0 and not target.read_text().endswith("\n\n")