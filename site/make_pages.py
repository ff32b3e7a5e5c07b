"""Writes the pages that say again what the code says: names, recipes and settings, measurements, running times.

    python site/make_pages.py            # writes what has changed
    python site/make_pages.py --check    # changes nothing; exit code 1 and a line for each page that is behind

`make site` calls it; tests/test_site.py holds that the pages in the repository are what it writes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from book import MARK, ROOT, front
from pages_code import names_page, recipes_page
from pages_measured import cards, figures_part, measurements_page, times_page

# --- what the README says, for the site ----------------------------------------------------------------------


def readme(section: str) -> str:
    "A section of the README without its heading; the lines before the first section for an empty name."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    title, _, rest = text.partition("\n")
    found = dict([("", rest.partition("\n## ")[0]), *re.findall(r"(?ms)^## (.*?)\n(.*?)(?=^## |\Z)", text)])
    if section not in found:
        raise ValueError(f"make_pages: README.md has no section {section!r}; it has {', '.join(filter(None, found))}")
    return found[section].strip() + "\n"


def from_below(text: str) -> str:
    "The same text on a page in site/: its relative links go up first."
    return re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", r"](../\1)", text).replace("](../site/", "](")


def what_part() -> str:
    "The first words of the home page: the README's."
    return f"{MARK}\n\n{readme('')}"


def commands_part() -> str:
    "The two commands with the README's words, up to the picture."
    return f"{MARK}\n\n{readme('Two commands').partition('![')[0].strip()}\n"


def start_page() -> str:
    "How to install, and the first things to try, as the README says it."
    parts = [front("Install, and first steps", "Two commands, the tinygpt command, and how to install by hand.")]
    for section in ("Two commands", "The command", "Installing by hand", "Where it stands"):
        parts.append(f"## {section}\n\n{from_below(readme(section))}")
    return "\n".join(parts)


# --- all pages -----------------------------------------------------------------------------------------------


PAGES: dict[str, Callable[[], str]] = {  # what each written page holds, by its path in the repository
    "site/_parts/what.md": what_part,
    "site/_parts/commands.md": commands_part,
    "site/_parts/figures.md": figures_part,
    "site/start.md": start_page,
    "site/names.md": names_page,
    "site/recipes.md": recipes_page,
    "site/measurements.md": measurements_page,
    "site/times.md": times_page,
    "site/cards.json": cards,
}


def main(arguments: list[str]) -> int:
    behind = []
    for name, write in PAGES.items():
        path, text = ROOT / name, write()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            behind.append(name)
            if "--check" not in arguments:
                path.write_text(text, encoding="utf-8")
    for name in behind:
        print(f"{name}: is behind; run python site/make_pages.py" if "--check" in arguments else f"wrote {name}")
    return int(bool(behind) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
