"""Slides and site in a real browser: what a class and a reader see, without a network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import CHROMIUM, opened, served

from affinity_lib.data.paths import find_root
from affinity_lib.showing.widget import MIME

HERE = find_root() / "notebooks" / "site"
OWN = find_root() / ".site"
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
    pytest.mark.skipif(
        not (OWN / ".ready").is_file(), reason="make site has not been run (needs npm)"
    ),
]
BLOCK = f'<script type="{MIME}">'
"""Before what becomes a walk to be touched."""

SMALLEST = 0.75
"""Of the type that a slide is meant for."""

OUTSIDE = """() => [...document.querySelectorAll("section.present > section.present *")]
  .filter((e) => !e.closest("mjx-assistive-mml") && !e.closest("defs"))
  .filter((e) => {
    const box = e.getBoundingClientRect();
    const out = box.left < -1 || box.top < -1 || box.right > 1281 || box.bottom > 721;
    const style = getComputedStyle(e);
    const cut = style.overflow !== "visible" && style.display !== "inline" &&
      (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1);
    return box.width && (out || (cut && e.clientWidth && !(e instanceof SVGElement)));
  }).map((e) => e.tagName + ": " + e.textContent.trim().slice(0, 40))"""
FORMULAS = """(unset) => {
  const wrong = [...document.querySelectorAll("[data-mml-node=merror], mjx-merror")];
  const bare = [...document.querySelectorAll(unset)].filter((e) => !e.querySelector("mjx-container svg"));
  return [...wrong, ...bare].map((e) => e.textContent);
}"""

REACHABLE = """() => [...document.querySelectorAll("pre, .pst-scrollable-table-container")]
  .every((e) => e.scrollWidth <= e.clientWidth || e.tabIndex === 0)"""
"""What scrolls has become reachable by keys, which the theme sees to a moment after a change."""


def without_network(*command: str | Path) -> None:
    """Run a command in a room without a network, where the system can make one."""
    cut = ["unshare", "--map-root-user", "--net"]
    able = shutil.which("unshare") and not subprocess.run([*cut, "true"], check=False).returncode
    done = subprocess.run(
        [*(cut if able else []), *command], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def decks(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    without_network(sys.executable, HERE / "slides.py", folder)
    return sorted(folder.glob("*.html"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "site"
    without_network(OWN / "bin/python", HERE / "build.py", folder)
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> list[Path]:
    return sorted(set(site.rglob("*.html")) - set(site.glob("_static/**/*")))


def test_every_slide_fits_a_projector_with_formulas_and_without_a_network(decks):
    wrong = {}
    with opened(decks[0].parent.as_uri(), 1280, 720) as watched:
        page = watched.page
        for deck in decks:
            page.goto(deck.as_uri())
            page.wait_for_function("() => window.Reveal && Reveal.isReady()")
            slides = page.evaluate("Reveal.getTotalSlides()")
            assert slides > 8
            for number in range(slides):
                page.evaluate(f"Reveal.slide({number})")
                scale = page.evaluate("+Reveal.getCurrentSlide().dataset.scale")
                found = page.evaluate(OUTSIDE)
                if scale < SMALLEST:
                    found.append(f"type at {scale}")
                if found:
                    wrong[f"{deck.stem} {number + 1}"] = found
            formulas = page.evaluate(FORMULAS, "no-such-element")
            left = page.evaluate(r"() => document.body.innerText.match(/\$[^$\n]+\$/g)")
            assert not formulas and not left and page.locator("mjx-container").count()
            assert watched.faults() == []
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())


def test_decks_are_one_a_lesson_and_leave_out_parameters_and_trainings(decks):
    assert [d.stem for d in decks] == sorted(p.stem for p in HERE.parent.glob("[0-9]*.ipynb"))
    for deck in decks:
        text = re.sub(r"<[^>]+>", "", deck.read_text(encoding="utf-8"))  # code without its colours
        assert "run_dir: str" not in text and not re.search(r"history = \w+\(", text)


@pytest.mark.parametrize(
    ("width", "rules"),
    [(1400, {}), (390, {"runOnly": ["scrollable-region-focusable", "target-size"]})],
    ids=["screen", "phone"],
)
def test_every_page_is_whole_and_readable_and_asks_nobody_else(site, pages, width, rules):
    wrong = {}
    with served(site) as address, opened(address, width, 900) as watched:
        page = watched.page
        for path in pages:
            page.goto(f"{address}/{path.relative_to(site).as_posix()}")
            if page.locator(".math").count():
                page.wait_for_function("() => window.MathJax?.startup?.promise")
                page.evaluate("() => MathJax.startup.promise.then(() => null)")
            if BLOCK in path.read_text(encoding="utf-8"):
                page.locator("canvas").first.wait_for()
            found = page.evaluate(FORMULAS, ".math")
            found += page.locator(
                ".bd-article p", has_text=re.compile(r"^\|.*\|$")
            ).all_inner_texts()
            if page.evaluate("document.scrollingElement.scrollWidth") > width:
                found.append("wider than the window")
            page.add_script_tag(path=OWN / "node_modules/axe-core/axe.min.js")
            page.wait_for_function(REACHABLE)
            # without its preload, which looks for imported styles beside the page
            options = {"preload": False, "resultTypes": ["violations"]} | rules
            report = page.evaluate("(options) => axe.run(options)", options)
            for each in report["violations"]:
                if each["impact"] in ("serious", "critical"):
                    where = [" ".join(map(str, node["target"])) for node in each["nodes"][:3]]
                    found.append(f"{each['id']}: {'; '.join(where)}")
            found += watched.faults()
            if found:
                wrong[path.relative_to(site).as_posix()] = found
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())


class Links(HTMLParser):
    """What a page links to, the places in it that can be linked to, and pictures without words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets, self.ids, self.mute = set(), set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.add(values.get("id"))
        if tag == "img" and len(values.get("alt", "")) < 5:
            self.mute.append(values.get("src"))
        if target := values.get("href") or values.get("src"):
            self.targets.add(target)


def test_no_link_is_dead_and_every_picture_has_words(site, pages):
    read = {path: Links(path) for path in pages}
    dead = []
    for path, links in read.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = read[to].ids if to in read else {None, parts.fragment}
            if not to.is_file() or (parts.fragment and parts.fragment not in known):
                dead.append((path.name, target))
    assert dead == []
    assert {path.name: links.mute for path, links in read.items() if links.mute} == {}


@pytest.mark.parametrize("width", [1400, 390])
def test_the_walk_answers_to_a_click_and_a_key_even_on_a_page_opened_as_a_file(site, width):
    with opened(site.as_uri(), width, 900) as watched:
        watched.page.goto((site / "04_random_walk.html").as_uri())
        canvas = watched.page.locator('canvas[data-panel="steps"]')
        canvas.wait_for()
        assert watched.page.locator("img[alt^='A cell where the walk']").count() == 0

        def shown() -> str:
            script = "canvas => new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(canvas.toDataURL()))))"
            return canvas.evaluate(script)

        seen = [shown()]
        canvas.click(position={"x": 3, "y": 3})
        seen.append(shown())
        watched.page.locator('canvas[data-panel="photograph"]').press("ArrowDown")
        seen.append(shown())
        assert len(set(seen)) == 3 and watched.faults() == []


def test_search_finds_chebyshev(site):
    with served(site) as address, opened(address, 1400, 900) as watched:
        watched.page.goto(f"{address}/search.html?q=Chebyshev")
        watched.page.get_by_role("link", name=re.compile("Random walk")).first.wait_for()
        results = watched.page.locator("#search-results li").all_inner_texts()
    assert len(results) >= 2 and watched.faults() == []


def sources(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def test_the_class_edition_has_no_trace_of_a_solution(tmp_path):
    lessons, blank, solved = (
        [sources(path) for path in sorted(HERE.parent.glob(f"{folder}[0-9]*.ipynb"))]
        for folder in ("", "exercises/", "solutions/")
    )
    if not solved:
        pytest.skip("there are no exercises")
    public = "\n".join(lessons + blank)
    secret = {line.strip() for line in "\n".join(solved).splitlines() if line.strip() not in public}
    site = tmp_path / "site"
    without_network(OWN / "bin/python", HERE / "build.py", site, "--class")
    kinds = {".html", ".js", ".json", ".md", ".ipynb", ".txt"}
    shown = "".join(p.read_text("utf-8") for p in site.rglob("*.*") if p.suffix in kinds)
    words = html.unescape(re.sub("<[^>]*>", "", shown))
    assert "Show a solution" not in words and list(tmp_path.iterdir()) == [site]
    assert not [line for line in secret if len(line) > 20 and line in words]
