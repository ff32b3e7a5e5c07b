"""The pages that are written from what site/measure.py has kept: measurements, and a card for each chapter."""

from __future__ import annotations

import json
import re

import yaml

from book import MARK, ROOT, SITE, Chapter, chapters, front, plain, table

TITLES = {"tales-chat": "The assistant"}  # of what was measured, where earlier.yaml has none

# --- what was measured ---------------------------------------------------------------------------------------


def measured(name: str) -> dict | None:
    "What site/measure.py has kept under a name."
    path = SITE / "measured" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def where(run: dict) -> str:
    note = f" {run['note'][0].upper()}{run['note'][1:]}." if run.get("note") else ""
    return f"`{run['command']}` on {run['date']}: {plain(run['machine'])}.{note}\n"


def parity_rows(output: str) -> list[tuple[str, str, str, str]]:
    "Component, reference, difference and bound of each line of bench/parity.py."
    return re.findall(r"(?m)^(\w+: .*?)  +(\S.*?)  +(\d\S*)  +(\d\S*)$", output.replace(" ids tiktoken", " ids  tiktoken"))


def parity_section() -> list[str]:
    run = measured("parity")
    if run is None:
        return []
    rows = parity_rows(run["output"])
    worst = max(float(difference) for _, _, difference, _ in rows)
    return [
        "## The same answers\n",
        "Every component beside its reference, with the same random weights or on the same text: the greatest absolute "
        f"difference in float32, or the share of token ids that differ. {len(rows)} rows, {run['output'].splitlines()[-1]}; "
        f"the greatest difference of all is {worst:.1e}.\n",
        where(run),
        table(("component", "reference", "difference", "bound"), (6, 4, 2, 2), [(plain(a), plain(b), "none" if float(d) == 0 else d, c) for a, b, d, c in rows]),
    ]


def measured_models() -> list[str]:
    "The shipped models that were measured on the Tales, the one to begin with first."
    names = sorted(path.name for path in (ROOT / "data/models").iterdir() if path.is_dir())
    return [name for name in names if "times the floor" in (measured(name) or {"output": ""})["output"]]


def tales_section() -> list[str]:
    runs = {name: run for name in measured_models() if (run := measured(name))}
    rows = []
    for name, run in runs.items():
        find = lambda pattern, text=run["output"]: re.search(pattern, text)[1]  # noqa: E731
        rows.append((
            f"[`{name}`](../data/models/{name}/README.md)", find(r"(?m)^([\d.]+ ± [\d.]+) bits per byte"),
            find(r"([\d.]+)  times the floor"), find(r"([\d.]+%)  of the way"), find(r"([\d.]+)  bits above the floor"),
            find(r"(?m)^([\d.]+% of [\d,]+) new tales"),
        ))  # fmt: skip
    if not rows:
        return []
    run = next(iter(runs.values()))
    return [
        "## How far from perfect\n",
        "The models that come with the package, on the 2,000 validation tales, and tales of their own that the world finds "
        "consistent. The floor is what no model can beat on average; the way is that from the trigram to the floor "
        "([00c · Rungs](../nbs/00c_worlds.ipynb#the-rungs)).\n",
        where(run),
        table(("model", "bits per byte", "times the floor", "of the way", "bits above the floor, per tale", "consistent"), (3, 3, 2, 2, 3, 3), rows),
    ]


def measurements_page() -> str:
    parts = [
        front("Measurements", "What was compared with what, how fast it is, and the command that prints each figure."),
        "A figure here was printed by the command beside it. `python site/measure.py NAME` runs one of them and keeps what it "
        "prints, with the machine and the date; this page is written from that. Your machine will give other times, and the "
        "same answers.\n",
        *parity_section(),
        *tales_section(),
    ]
    earlier = yaml.safe_load((SITE / "measured/earlier.yaml").read_text(encoding="utf-8"))
    shown = {"parity", "chapters", *measured_models()}
    again = [path.stem for path in sorted((SITE / "measured").glob("*.json")) if path.stem not in shown]
    if again:
        parts.append("## What else was run\n")
    for name in again:
        run = measured(name)
        title = next((old["title"] for old in earlier["runs"] if old["name"] == name), TITLES.get(name, name))
        parts += [f"### {title}\n", where(run), f"```text\n{run['output']}\n```\n"]
    parts += [
        "## On a quiet machine\n",
        f"Times want a machine that does nothing else. These are copied from the notes of such runs, on {earlier['date']}: "
        f"{earlier['machine']}. An aim is what the project had set itself beforehand; missed ones are shown as well.\n",
    ]
    for old in earlier["runs"]:
        if old["name"] not in again:
            parts += [f"### {old['title']}\n", f"`{old['command']}`; {old['conditions']}.\n", old["says"] + "\n"]
            if "table" in old:
                header, *rows = old["table"]
                widths = tuple([3] * len(header))
                parts.append(table(tuple(map(str, header)), widths, [tuple(plain(str(v)) for v in row) for row in rows]))
    return "\n".join(parts)


def figures_part() -> str:
    "Three figures for the home page."
    rows = parity_rows(measured("parity")["output"])
    within = sum(float(difference) <= float(bound) for _, _, difference, bound in rows)
    tales = measured("tales")["output"]
    floor = re.search(r"([\d.]+)  times the floor", tales)[1]
    share, told = re.search(r"(?m)^([\d.]+)% of ([\d,]+) new tales", tales).groups()
    figures = [
        (f"{within} of {len(rows)}", "comparisons with PyTorch, `transformers` and `tiktoken` give the same answer, to rounding"),
        (f"{floor} ×", "the floor: that close to perfect comes the model in the package, after half an hour of training"),
        (f"{share} %", f"of {told} tales of its own hold together to the last full stop; the world that taught it has checked each"),
    ]
    tiles = "\n".join(f"::: {{.figure-tile}}\n**{figure}**\n\n{says}\n:::\n" for figure, says in figures)
    return f"{MARK}\n\n:::: {{.figure-tiles}}\n{tiles}::::\n"


# --- a card for each chapter ---------------------------------------------------------------------------------

WORDS_A_MINUTE, LINES_A_MINUTE, MINUTES_A_PICTURE = 150, 12, 0.5


def card(chapter: Chapter) -> dict[str, object]:
    "What a reader wants to know before a chapter: how long it takes to read and to run, what is in it."
    cells = json.loads(chapter.path.read_text(encoding="utf-8"))["cells"]
    prose = " ".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    visible = [c for c in cells if c["cell_type"] == "code" and "#| hide" not in "".join(c["source"])]
    folded = [c for c in visible if c["metadata"].get("jupyter", {}).get("source_hidden")]
    lines = sum(len("".join(c["source"]).splitlines()) for c in visible if c not in folded)
    images = sum(any(k.startswith("image/") for k in o.get("data", {})) for c in visible for o in c["outputs"])
    minutes = len(prose.split()) / WORDS_A_MINUTE + lines / LINES_A_MINUTE + images * MINUTES_A_PICTURE
    times = (measured("chapters") or {"chapters": {}})["chapters"].get(chapter.path.stem)
    return {
        "title": chapter.title,
        "notebook": f"nbs/{chapter.path.name}",
        "module": chapter.module or "",
        "read_minutes": max(5, 5 * round(minutes / 5)),
        "run_s": times and max(1, round(times["cpu_s"])),
        "pictures": images,
        "exercises": sum('code-summary: "Solution"' in "".join(c["source"]) for c in folded),
    }


def cards() -> str:
    "The cards, for site/pages.lua, which puts each at the top of its chapter."
    return json.dumps([card(chapter) for chapter in chapters()], indent=1, ensure_ascii=False) + "\n"


def times_page() -> str:
    kept = (measured("chapters") or {"chapters": {}})["chapters"]
    rows = []
    for chapter in chapters():
        facts = card(chapter)
        ran = f"{facts['run_s']} s" if facts["run_s"] else "not measured yet"
        rows.append((chapter.link(), f"{facts['read_minutes']} min", ran, str(facts["pictures"]), str(facts["exercises"])))
    newest = max(kept.values(), key=lambda run: run["date"], default=None)
    measured_on = f" Measured by `python site/measure.py chapters`, last on {newest['date']}: {plain(newest['machine'])}." if newest else ""
    note = f" {newest['note'][0].upper()}{newest['note'][1:]}." if newest and newest["note"] else ""
    return "\n".join([
        front("How long each chapter takes", "Time to read, time to run, pictures and exercises of every chapter."),
        "**To run** is the processor time of all cells from the first to the last, in a fresh kernel, starting it and loading "
        f"PyTorch included.{measured_on}{note} A machine with nothing else to do shows about the same by the clock.\n",
        f"**To read** is an estimate: {WORDS_A_MINUTE} words, {LINES_A_MINUTE} lines of code or two pictures a minute, "
        "to the next five minutes. Exercises come on top.\n",
        table(("chapter", "to read", "to run", "pictures", "solved exercises"), (6, 2, 2, 2, 2), rows),
    ])  # fmt: skip
