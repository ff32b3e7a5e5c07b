"""Packaging: every fact is read from settings.ini, and data/ travels in the wheel as tinygpt/shipped."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
facts = config["DEFAULT"]


def lines(name: str) -> list[str]:
    "The lines of one setting, without the empty ones."
    return [line.strip() for line in facts[name].splitlines() if line.strip()]


extras = {name.removesuffix("_requirements"): lines(name) for name in facts if name.endswith("_requirements")}
first, last = (int(facts[name].split(".")[1]) for name in ("min_python", "max_python"))

setup(
    name=facts["lib_name"],
    version=facts["version"],
    description=facts["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=facts["author"],
    author_email=facts["author_email"] or None,
    url=facts["git_url"] or None,
    license_expression=facts["license_expression"],
    license_files=["LICENSE"],
    keywords=facts["keywords"].split(),
    classifiers=lines("classifiers") + [f"Programming Language :: Python :: 3.{n}" for n in range(first, last + 1)],
    python_requires=f">={facts['min_python']}",
    packages=["tinygpt", "tinygpt.recipes", "tinygpt.static", "tinygpt.shipped"],
    package_dir={"tinygpt.shipped": "data"},
    package_data={
        "tinygpt": ["py.typed", "*.pyi"],
        "tinygpt.recipes": ["*.yaml"],
        "tinygpt.static": ["**/*"],
        "tinygpt.shipped": ["**/*"],
    },
    install_requires=lines("requirements"),
    extras_require=extras,
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": [f"{facts['lib_name']}={facts['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
