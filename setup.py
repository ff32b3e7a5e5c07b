"""Packaging for tinygpt: every fact is read from settings.ini, and data/ travels as tinygpt/shipped."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
facts = config["DEFAULT"]
extras = {name.removesuffix("_requirements"): facts[name].split() for name in facts if name.endswith("_requirements")}
minors = range(int(facts["min_python"].split(".")[1]), int(facts["max_python"].split(".")[1]) + 1)

setup(
    name=facts["lib_name"],
    version=facts["version"],
    description=facts["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=facts["author"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=facts["keywords"].split(),
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        *[f"Programming Language :: Python :: 3.{minor}" for minor in minors],
    ],
    python_requires=f">={facts['min_python']}",
    packages=["tinygpt", "tinygpt.recipes", "tinygpt.static", "tinygpt.shipped"],
    package_dir={"tinygpt.shipped": "data"},
    package_data={
        "tinygpt": ["py.typed"],
        "tinygpt.recipes": ["*.yaml"],
        "tinygpt.static": ["*"],
        "tinygpt.shipped": ["**/*"],
    },
    install_requires=facts["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": facts["console_scripts"].split("\n"),
        "nbdev": ["tinygpt=tinygpt._modidx:d"],
    },
    zip_safe=False,
)
