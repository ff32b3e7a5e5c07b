"""Runs the commands whose figures the site shows, and keeps what they print, with the machine and the date.

    python site/measure.py                      # lists them
    python site/measure.py parity tales         # runs these and writes site/measured/NAME.json
    python site/measure.py chapters             # runs every chapter, as JupyterLab would, and keeps its times
    python site/measure.py chapters 05 12       # these only; the others keep theirs
    python site/measure.py --note "..." tales   # says beside the figures what else was going on

Then `python site/make_pages.py` writes the pages. A command that fails leaves the file as it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "site/measured"
COMMANDS = {
    "parity": "python bench/parity.py",
    "tales": "tinygpt evaluate tales --tales 1000",
    "tales-deep": "tinygpt evaluate tales-deep --tales 1000",
    "tales-two": "tinygpt evaluate tales-two --tales 1000",
    "tales-chat": "tinygpt evaluate tales-chat --questions",
    "quantization": "python bench/quantization.py --parts tales shakespeare --docs 300",
    "quantization-speed": "python bench/quantization.py --parts speed --tokens 100",
    "generation": "python bench/generation.py --sizes small --repeats 3",
    "generation-gpt2": "python bench/generation.py --sizes gpt2 --batches 1 --repeats 2",
    "long-generation": "python bench/long_generation.py",
    "speculation": "python bench/speculation.py --rounds 2",
    "loop": "python bench/loop_overhead.py",
    "time-to-loss": "python bench/time_to_loss.py",
}


def machine() -> str:
    "The machine in words: nothing that names it."
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (name := re.search(r"(?m)^model name\s*:\s*(.*)$", info.read_text())):
        cpu = name[1]
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return f"{os.cpu_count()} cores ({cpu}){memory}, {platform.system()}, Python {platform.python_version()}"


def facts(note: str) -> dict[str, str]:
    from importlib.metadata import version

    threads = os.environ.get("OMP_NUM_THREADS")
    return {
        "date": date.today().isoformat(),
        "machine": f"{machine()}, torch {version('torch')}" + (f", {threads} thread" + "s" * (threads != "1") if threads else ""),
        "note": note,
    }


def keep(name: str, found: dict) -> None:
    MEASURED.mkdir(exist_ok=True)
    (MEASURED / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote site/measured/{name}.json")


def measure(name: str, note: str) -> int:
    "Run one command and keep what it prints."
    command = COMMANDS[name]
    words = shlex.split(command)
    here = Path(sys.executable).parent
    words[0] = str(sys.executable if words[0] == "python" else here / words[0])
    env = os.environ | {"COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode not in (0, 1) or not done.stdout.strip():  # 1: it ran, and an aim was missed
        print(f"measure: {command} failed\n{done.stderr[-2000:]}", file=sys.stderr)
        return 1
    keep(name, {"command": command, **facts(note), "exit": done.returncode, "output": done.stdout.rstrip()})
    return 0


def run_chapter(path: Path) -> dict[str, float]:
    "Seconds that a chapter takes from its first cell to its last in a fresh kernel: by the clock, and of the processor."
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    client.extra_arguments = ["--log-level=ERROR"]
    clock, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    client.execute()  # ends the kernel, so that its processor time has been counted
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.perf_counter() - clock, 1), "cpu_s": round(spent, 1)}


def measure_chapters(names: list[str], note: str) -> int:
    "Time the chapters that the numbers name, all of them for none; writes after each, so that nothing is lost."
    path = MEASURED / "chapters.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["chapters"] if path.exists() else {}
    there = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    failed = 0
    for notebook in there:
        if names and notebook.stem.partition("_")[0] not in names:
            continue
        try:
            kept[notebook.stem] = run_chapter(notebook) | facts(note)
            print(f"{notebook.stem}: {kept[notebook.stem]['cpu_s']} s of processor time")
        except Exception as error:  # noqa: BLE001  a chapter that fails is told and keeps its older time
            print(f"measure: {notebook.stem} failed: {str(error)[-500:]}", file=sys.stderr)
            failed = 1
        keep("chapters", {"chapters": {p.stem: kept[p.stem] for p in there if p.stem in kept}})
    return failed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="what to measure; chapters takes numbers behind it")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    args = parser.parse_args(arguments)
    if not args.names:
        for name, command in COMMANDS.items():
            print(f"{name:20} {command}")
        print(f"{'chapters':20} every notebook, from its first cell to its last")
        return 0
    if args.names[0] == "chapters":
        return measure_chapters(args.names[1:], args.note)
    if unknown := [name for name in args.names if name not in COMMANDS]:
        print(f"measure: {unknown[0]!r} is not measured here; choose from {', '.join([*COMMANDS, 'chapters'])}", file=sys.stderr)
        return 2
    return max(measure(name, args.note) for name in args.names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
