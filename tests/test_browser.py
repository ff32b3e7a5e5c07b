"""The explorers in a real browser: a saved page with no network, and chapter 22 in JupyterLab.

Skipped where there is no Playwright for Python, or no chromium (`CHROMIUM` names one, else /usr/bin/chromium).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinygpt.explorers import AttentionExplorer
from tinygpt.runs import load

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
ARGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        " --disable-component-update --disable-sync").split()


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium here: install one, or let CHROMIUM name it")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    "A page that may ask no server for anything, and whose errors are ours."
    page, asked, errors = browser.new_page(viewport={"width": 1000, "height": 900}), [], []
    page.route(re.compile("^(?!file:|data:|blob:|about:)"), lambda route: (asked.append(route.request.url), route.abort()))
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not asked and not errors


@pytest.fixture(scope="module")
def shipped():
    return load("tales")


def opened(page, explorer, path: Path):
    page.goto(explorer.save(path / "page.html").as_uri())
    return page


def test_attention_lives_in_a_saved_page(page, shipped, tmp_path):
    model, tokenizer = shipped
    explorer = AttentionExplorer(model, tokenizer, [tokenizer.eot_id] + tokenizer.encode("Tim has a red ball. Tim"))
    opened(page, explorer, tmp_path)
    before = page.inner_text(".tgx-say")
    page.focus("input[data-name=token]")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".tgx-say") != before
    page.focus(".tgx-thumb[aria-pressed=true]")
    page.keyboard.press("ArrowDown")
    assert page.inner_text(".tgx-name") == "Layer 1, head 0"


class Lab:
    "JupyterLab on a copy of some chapters, and a page that looks at it."

    def __init__(self, browser, folder: Path, *chapters: Path):
        for chapter in chapters:
            shutil.copy(chapter, folder)
        env = {**os.environ, "JUPYTER_CONFIG_DIR": str(folder / ".config"), "JUPYTER_DATA_DIR": str(folder / ".data"),
               "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"), "OMP_NUM_THREADS": "1"}
        self.log = folder / "lab.log"
        options = ["--no-browser", "--port=0", "--IdentityProvider.token=", "--ServerApp.password=", "--allow-root",
                   "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}", "--ServerApp.disable_check_xsrf=True"]
        with open(self.log, "w") as log:
            self.server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=folder, env=env, stdout=log, stderr=log)
        self.page = browser.new_page(viewport={"width": 1300, "height": 1000})
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        end = time.time() + 60
        while not (found := re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/", self.log.read_text())):
            assert time.time() < end and self.server.poll() is None, self.log.read_text()
            time.sleep(0.2)
        self.url = f"http://127.0.0.1:{found[1]}/lab"

    def open(self, name: str):
        self.page.goto(f"{self.url}/tree/{name}", timeout=60_000)
        self.page.wait_for_function(
            "globalThis.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=60_000)
        return self.page

    def run_all(self):
        self.page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")

    def python(self, code: str) -> str:
        "What some code prints in the notebook's kernel."
        return self.page.evaluate("""async (code) => {
            const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const future = kernel.requestExecute({code, store_history: false});
            let text = "";
            future.onIOPub = (m) => { text += m.content.text ?? m.content.evalue ?? ""; };
            await future.done;
            return text.trim();
        }""", code)

    def becomes(self, code: str, wanted: str, seconds: float = 5):
        end = time.time() + seconds
        while (value := self.python(code)) != wanted:
            assert time.time() < end, f"{code}: {value}, not {wanted}"
            time.sleep(0.1)

    def close(self):
        self.page.close()
        self.server.terminate()
        self.server.wait(60)  # it ends its kernels first


@pytest.fixture
def lab(browser, tmp_path, root):
    lab = Lab(browser, tmp_path, root / "nbs" / "22_explorers.ipynb")
    yield lab
    lab.close()


def test_chapter_22_lives_in_jupyterlab(lab):
    page = lab.open("22_explorers.ipynb")
    lab.run_all()
    slider = page.locator(".jp-OutputArea-output .tgx-attention input[data-name=token]").first
    slider.scroll_into_view_if_needed()
    slider.focus()
    last = int(lab.python("print(explorer.token)"))
    page.keyboard.press("ArrowLeft")
    lab.becomes("print(explorer.token)", str(last - 1))
    assert slider.evaluate("(el) => el === document.activeElement")
    lab.python("explorer.token = 3")
    sync_api.expect(slider).to_have_value("3")
    assert not lab.errors
