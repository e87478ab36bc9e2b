"The web site of the course: built from the notebooks as they are stored, and read in a real Chromium, from the disk, as a reader would."
import json, re, subprocess, sys
from html.parser import HTMLParser
from urllib.parse import unquote
import pytest, sources
from browser import needs_chromium
from paths import ROOT

PHONE = {"viewport": {"width": 390, "height": 800}}

def build(*options):
    return subprocess.run([sys.executable, ROOT/"docs/build.py", *map(str, options)], capture_output=True, text=True)

@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "With the report of a run that looks like one: its page and one executed notebook."
    folder = tmp_path_factory.mktemp("site")
    (ws := folder/"work").mkdir()
    (ws/"reports").mkdir()
    (ws/"runs/20260101-000000").mkdir(parents=True)
    (ws/"reports/20260101-000000.html").write_text('<!doctype html><style>p{color:red}</style>\n<h1>Run 20260101-000000</h1><p>all steps done</p><a href="../runs/20260101-000000/00_features.ipynb">00_features</a>\n</html>')
    (ws/"runs/20260101-000000/00_features.ipynb").write_text((ROOT/"nbs/00_features.ipynb").read_text())
    done = build("--out", folder/"site", "--workspace", ws)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"; {len(sources.notebook_files(ROOT))} notebooks, {len(sources.notebooks(ROOT))} modules" in done.stdout
    return folder/"site"

class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if "id" in a: self.ids.add(a["id"])
        self.links += [a[k] for k in ("href", "src") if a.get(k)]

@pytest.fixture(scope="module")
def pages(site): return {p: Links(p.read_text()) for p in sorted(site.rglob("*.html"))}

def test_every_link_leads_somewhere(site, pages):
    broken = []
    for page, found in pages.items():
        for link in found.links:
            where, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link): continue
            target = (page.parent/unquote(where)).resolve() if where else page
            if not target.is_relative_to(site.resolve()) or not target.exists() or (anchor and not {anchor, unquote(anchor)} & pages[target].ids): broken.append((page.name, link))
    assert not broken and len(pages) > 60

@pytest.mark.parametrize("name, text", [("thesis.txt", "years"), ("pages.js", "const mine = 1")])
def test_a_folder_that_is_no_site_is_kept(tmp_path, name, text):
    (tmp_path/"out").mkdir()
    (tmp_path/"out"/name).write_text(text)
    done = build("--out", tmp_path/"out")
    assert done.returncode == 2 and "exists and is not a site" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path/"out"/name).read_text() == text and [*(tmp_path/"out").iterdir()] == [tmp_path/"out"/name]

def test_a_broken_link_is_reported(tmp_path):
    (tmp_path/"docs").mkdir()
    for name in ("build.py", "rooms.py", "page.html", "site.css", "site.js"): (tmp_path/"docs"/name).write_text((ROOT/"docs"/name).read_text())
    (tmp_path/"nbs").mkdir()
    cell = {"cell_type": "markdown", "metadata": {}, "id": "a", "source": "# A\n\n[b](b.ipynb)"}
    (tmp_path/"nbs/a.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    done = subprocess.run([sys.executable, tmp_path/"docs/build.py"], capture_output=True, text=True)
    assert done.returncode == 2 and "nbs/a.ipynb: link to b.ipynb: no such file" in done.stdout

def test_nothing_comes_from_elsewhere_and_no_formula_is_left(pages):
    for page, text in ((p, p.read_text()) for p in pages):
        assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//', text), page
        if "/files/" not in str(page): assert "$$" not in re.sub(r"<pre.*?</pre>|<code.*?</code>", "", text, flags=re.S), page
        assert not re.findall(r"<m\w+>[^<]*\\[^<]*</m\w+>", text), page # a command that the converter did not know

def test_each_notebook_has_a_page_and_each_module_its_functions(site):
    for nb in sources.notebook_files(ROOT): assert (site/nb.removeprefix("nbs/")).with_suffix(".html").stat().st_size > 4_000
    for module in sources.notebooks(ROOT): assert (site/"api"/f"{module.replace('.', '/')}.html").stat().st_size > 1_000
    assert 'id="psi"' in (site/"api/drift.html").read_text() and "1-D numeric sample" in (site/"api/drift.html").read_text()
    assert "Benjamini" in (site/"pages.js").read_text() and (site/"bench/RESULTS.html").exists()

def test_the_map_names_every_module_and_draws_every_room(site):
    shown = (site/"map.html").read_text()
    assert [m for m in sources.notebooks(ROOT) if f"{m} (" not in shown] == []
    assert [m for m in sources.notebooks(ROOT) if f">{m.partition('.')[0]}</text>" not in shown] == []

def test_the_same_notebooks_make_the_same_site(site, tmp_path):
    build("--out", tmp_path/"again", "--workspace", site.parent/"work")
    assert {p.relative_to(tmp_path/"again"): p.read_bytes() for p in (tmp_path/"again").rglob("*.html")} == {p.relative_to(site): p.read_bytes() for p in site.rglob("*.html")}

# In the browser

@pytest.fixture
def open_page(chromium, site):
    contexts, complaints = [], []
    def go(url, **kw):
        contexts.append(chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **kw}))
        tab = contexts[-1].new_page()
        tab.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        tab.on("pageerror", lambda e: complaints.append(str(e)))
        tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else complaints.append(r.url))
        tab.goto((site/url).as_uri())
        return tab
    yield go
    for c in contexts: c.close()
    assert complaints == []

@needs_chromium
def test_every_page_loads_without_a_complaint_and_fits_a_phone(open_page, site):
    tab = open_page("index.html", **PHONE)
    for page in sorted(site.rglob("*.html")):
        if page.parent.name != "files" and "files" not in page.parts:
            tab.goto(page.as_uri())
            wide, text, smallest = tab.evaluate("[document.documentElement.scrollWidth, document.querySelector('main').innerText.length, parseFloat(getComputedStyle(document.body).fontSize)]")
            assert wide <= 390 and text > 20 and smallest >= 16, page

@needs_chromium
def test_formulas_are_drawn(open_page):
    tab = open_page("03_drift.html")
    sizes = tab.evaluate("[...document.querySelectorAll('math')].map(m => { const r = m.getBoundingClientRect(); return [r.width, r.height] })")
    assert len(sizes) > 10 and all(w > 2 and h > 5 for w, h in sizes)
    assert tab.evaluate("document.querySelectorAll('math merror').length") == 0
    tall, line = tab.evaluate("[document.querySelector('mfrac').getBoundingClientRect().height, document.querySelector('mi').getBoundingClientRect().height]")
    assert tall > 1.3*line, "a fraction is higher than a letter"

@needs_chromium
def test_the_search_finds_a_page_and_goes_there(open_page):
    tab = open_page("index.html")
    tab.keyboard.press("/")
    tab.keyboard.type("benjamini hoch")
    assert tab.locator("#hits a").first.is_visible()
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/*drift*.html")
    tab.fill("#q", "xyzzyqq")
    assert "Nothing found" in tab.locator("#hits").inner_text()

@needs_chromium
def test_dark_follows_the_system_and_the_button(open_page):
    ground = "getComputedStyle(document.body).backgroundColor"
    assert open_page("index.html", color_scheme="light").evaluate(ground) == "rgb(255, 255, 255)"
    tab = open_page("api/train.html", color_scheme="dark")
    assert (dark := tab.evaluate(ground)) != "rgb(255, 255, 255)"
    tab.click("#theme")
    assert tab.evaluate(ground) == "rgb(255, 255, 255)"
    tab.reload()
    assert tab.evaluate(ground) == "rgb(255, 255, 255)" != dark, "the choice is remembered"

@needs_chromium
def test_the_menu_opens_on_a_phone_and_solutions_are_folded(open_page):
    tab = open_page("03_drift.html", **PHONE)
    assert not tab.locator("nav").is_visible()
    tab.click("#menu")
    assert tab.locator("nav a[aria-current]").inner_text() == tab.locator("h1").inner_text().rstrip("¶")
    folded = tab.locator("details.fold", has_text="Solution 1")
    assert folded.count() == 1 and not folded.evaluate("d => d.open")

@needs_chromium
def test_the_last_run_and_its_notebooks_are_there(open_page):
    tab = open_page("run.html")
    tab.click("main a:has-text('00_features')")
    tab.wait_for_url("**/run/00_features.html")
