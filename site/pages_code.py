"""The pages that are written from the package: every name, and recipes with every setting."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import typing

from book import ROOT, chapters, code, front, plain, table

# --- every name ----------------------------------------------------------------------------------------------


def first_words(doc: str | None) -> str:
    "What a docstring says before its first empty line, without what it raises."
    text = " ".join((doc or "").strip().partition("\n\n")[0].split())
    kept = [s for s in re.split(r"(?<=[.!?]) (?=[A-Z`])", text) if not s.startswith("Raises ")]
    return " ".join(kept)


def brief(value: ast.expr | None) -> str:
    "A constant in a few words: itself if it is short, else what it holds."
    said = ast.unparse(value) if value else ""
    if len(said) <= 60:
        return f"`{said}`" if said else ""
    if isinstance(value, ast.Dict):
        keys = [key.value for key in value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
        shown = ", ".join(keys[:6]) + (", ..." if len(value.keys) > 6 else "")
        return f"A dict: {shown}." if keys else f"A dict of {len(value.keys)}."
    if isinstance(value, (ast.List, ast.Tuple, ast.Set)):
        return f"A {type(value).__name__.lower()} of {len(value.elts)}."
    return ""


def exported(module: str) -> list[tuple[str, str, str]]:
    "The names of a module in the order of its chapter, each with its kind and its first words."
    source = (ROOT / "tinygpt" / f"{module}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    kinds, values, names = {}, {}, []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            kinds[node.name] = ("function" if isinstance(node, ast.FunctionDef) else "class", ast.get_docstring(node), node.lineno)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and target.id == "__all__":
                    names = ast.literal_eval(node.value)
                elif isinstance(target, ast.Name):
                    values[target.id] = node
    lines, found = source.splitlines(), []
    for name in names:
        if name in kinds:
            kind, doc, at = kinds[name]
            found.append((at, name, kind, first_words(doc)))
        elif name in values:
            node = values[name]
            said = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            comment = re.search(r"(?m)\s#\s(.*)$", said)
            found.append((node.lineno, name, "value", comment[1] if comment else brief(node.value)))
        if name in kinds and not found[-1][3] and name.startswith("check_"):  # its name says what; it gives nothing back
            found[-1] = (*found[-1][:3], "Raises ValueError, in one line, for what does not fit.")
    return [entry[1:] for entry in sorted(found)]


def names_page() -> str:
    from tinygpt import _HOMES
    from tinygpt._modidx import d as index

    by_module = {chapter.module: chapter for chapter in chapters() if chapter.module}
    main = [
        (f"`tinygpt.{module}`", ", ".join(by_module[module].link(f"`{name}`", anchor_of(index, module, name)) for name in names))
        for module, names in _HOMES.items()
        if module in by_module
    ]
    parts = [
        front("Every name", "What the package exports, module by module, and the chapter that builds it."),
        "Each name leads to the place in the book where it is built, explained and tested: its documentation, its source "
        "and its tests stand there together.\n",
        "## The main ones\n",
        "These can be had from the package itself: `from tinygpt import generate`.\n",
        table(("module", "names"), (3, 9), main),
    ]
    for chapter in chapters():
        if not chapter.module:
            continue
        rows = []
        for name, kind, says in exported(chapter.module):
            shown = f"`{name}()`" if kind == "function" else f"`{name}`"
            rows.append((chapter.link(shown, anchor_of(index, chapter.module, name)), kind, plain(says)))
        parts += [f"## tinygpt.{chapter.module}\n", f"{plain(chapter.sentence)} Chapter {chapter.link()}.\n"]
        parts += [table(("name", "kind", "what it is"), (4, 1, 7), rows)] if rows else []
    return "\n".join(parts)


def anchor_of(index: dict, module: str, name: str) -> str:
    "The anchor that nbdev gives a name, none for constants: they have no heading of their own."
    place = index["syms"].get(f"tinygpt.{module}", {}).get(f"tinygpt.{module}.{name}", ("", ""))[0]
    return place.partition("#")[2]


# --- recipes and settings ------------------------------------------------------------------------------------


def comments(kind: type) -> dict[str, str]:
    "What the comment beside each field says, base classes first."
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            said |= dict(re.findall(r"(?m)^    (\w+): .*?# (.*)$", inspect.getsource(base)))
    return said


def written(value: object) -> str:
    "A value as YAML writes it."
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(written(v) for v in value) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value):
        return f'"{value}"'
    return str(value)


def settings_rows(holder: object, items: list[dataclasses.Field], prefix: str = "") -> list[tuple[str, ...]]:
    "A row for each field of a configuration or of one of its sections: name, type, default, comment."
    from tinygpt.runs import type_in_words

    hints, said = typing.get_type_hints(type(holder)), comments(type(holder))
    return [
        (f"`{prefix}{f.name}`", plain(type_in_words(hints[f.name])), code(written(getattr(holder, f.name))), plain(said.get(f.name, "")))
        for f in items
    ]


def settings_tables(config: type) -> list[str]:
    "A table of the fields that belong to no section, if there are any, and one for each section."
    header, widths = ("setting", "type", "default", "what it does"), (4, 3, 2, 6)
    default, fields = config(), dataclasses.fields(config)
    sections = [f for f in fields if dataclasses.is_dataclass(getattr(default, f.name))]
    loose = [f for f in fields if f not in sections]
    parts = [table(header, widths, settings_rows(default, loose))] if loose else []
    for section in sections:
        value = getattr(default, section.name)
        parts += [f"### {section.name}\n", plain(first_words(value.__doc__)) + "\n"]
        parts += [table(header, widths, settings_rows(value, list(dataclasses.fields(value)), f"{section.name}."))]
    return parts


def configurations() -> list[tuple[str, type, str]]:
    "The configurations that a recipe can hold: title, class, command."
    found = [("Settings of a training", "tinygpt.config", "TrainConfig", "tinygpt train"),
             ("Settings of a fine-tuning", "tinygpt.sft", "TuneConfig", "tinygpt finetune")]  # fmt: skip
    there = []
    for title, module, name, command in found:
        if (ROOT / "tinygpt" / f"{module.partition('.')[2]}.py").exists():
            kind = getattr(importlib.import_module(module), name, None)
            there += [(title, kind, command)] if kind else []
    return there


def recipes_page() -> str:
    parts = [
        front("Recipes and settings", "Every recipe that comes with the package, and every setting of one: type, default, meaning."),
        "A run is described by one YAML file, its recipe. It names only what differs from the defaults, and any setting can "
        "be given on the command line instead:\n",
        "```bash\ntinygpt train --recipe tales --model.n_layers 4 --optim.steps 8000\ntinygpt train --recipe mine.yaml\n```\n",
        "The file that a run has used lies in its folder as `config.yaml` and is a recipe itself. A misspelt name or a value "
        "out of its range is refused in one line, before anything is written "
        "([07a · Configuration](../nbs/07a_config.ipynb) shows how).\n",
        "## Recipes\n",
    ]
    for path in sorted((ROOT / "tinygpt/recipes").glob("*.yaml")):
        text = path.read_text(encoding="utf-8").strip()
        head = re.match(r"(?:#.*\n)+", text)
        says = " ".join(line.lstrip("# ") for line in head[0].splitlines()) if head else ""
        summary = re.split(r"(?<=\.) (?=[A-Z])", says)[0]
        command = "finetune" if re.search(r"(?m)^kind: finetune", text) else "train"
        parts += [f"### {path.stem}\n", f"{plain(summary)} `tinygpt {command} --recipe {path.stem}`\n", f"```yaml\n{text}\n```\n"]
    for title, kind, command in configurations():
        parts += [f"## {title}\n", f"The fields of `{kind.__module__}.{kind.__name__}`. Each is an option of `{command}`, two dashes before its name.\n"]
        parts += settings_tables(kind)
    return "\n".join(parts)
