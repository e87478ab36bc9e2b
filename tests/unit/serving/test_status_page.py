"The pages at `/` and `/docs` in a real Chromium, against a real server."
import json, re
import httpx, msgspec, pytest
from churn_nb.serving import status_page as page_module
from churn_nb.core.manifest import ModelCard, Feature, GateRow, Group, Interval, SelfTest
from churn_nb.serving.http import docs_page as docs_module
from churn_nb.serving.http.docs_page import docs_page, swagger_ui
from deadlines import allow
from browser import needs_chromium
from own_columns import EXAMPLE, FEATURES, own_manifest, put_own
from serving import Server, probability, put_live, serving, wait_for

pytestmark = pytest.mark.usefixtures("measured")

BAD = "<script>alert(1)</script>"
CARD = ModelCard(kind="hist_gradient_boosting", decided="2026-02-03T06:12:00+00:00",
            intervals={"log_loss": Interval(value=.412, low=.401, high=.424), "auc": Interval(value=.8, low=.78, high=.82)},
            reliability=[Group(predicted=p, observed=o, low=p - .03, high=p + .03, n=400) for p, o in [(.1, .09), (.4, .48), (.8, .81)]],
            gate=[GateRow(criterion="average_precision_stayers against champion (version 12)", required="better, p < 0.05",
                          measured="0.52512 against 0.51907, p = 0.0021", verdict="pass"),
                  GateRow(criterion="drift", required="-", measured="warn", verdict="note")])
REPORT = {"level": "warn", "at": "2026-02-10T06:00:00+00:00", "features": [
    {"name": BAD, "level": "warn", "psi": .14, "statistic": .11, "pvalue": 2e-9, "n_reference": 5000, "n_current": 800},
    {"name": "age", "level": "none", "psi": .01, "statistic": .02, "pvalue": .6, "n_reference": 5000, "n_current": 800}]}

def live(workspace, **kw):
    "A workspace whose page has something in every part."
    put_live(workspace, metrics={"auc": .8, "log_loss": .412, "brier": .13, "baseline_log_loss": .431}, card=CARD, **kw)
    (workspace/"reports").mkdir(exist_ok=True)
    (workspace/"reports"/"drift.json").write_text(json.dumps(REPORT))
    return workspace

@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with serving(live(tmp_path_factory.mktemp("page"))) as s: yield s

@pytest.fixture
def visit(chromium):
    "Open an address; the tab. Afterwards: nothing on the console but what the test expects, and no request to elsewhere."
    contexts, said, asked, expected = [], [], [], []
    def opened(url, status=200, expect=(), **kw):
        contexts.append(chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **kw}))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(15_000)
        tab.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        tab.on("pageerror", lambda e: said.append(str(e)))
        tab.on("request", lambda r: asked.append(r.url))
        expected.extend(expect)
        tab.add_init_script("window.broken = []; document.addEventListener('securitypolicyviolation', e => broken.push(e.violatedDirective + ' ' + e.blockedURI))")
        assert tab.goto(url).status == status
        opened.origin, opened.asked = "/".join(url.split("/")[:3]) + "/", asked
        return tab
    yield opened
    assert [s for s in said if not any(e in s for e in expected)] == []
    assert [u for u in asked if not u.startswith((opened.origin, "data:"))] == []
    for c in contexts:
        for tab in c.pages: assert tab.evaluate("window.broken") == []
        c.close()

def tab_to(tab, selector, most=60):
    "Press Tab until `selector` has the focus."
    for _ in range(most):
        tab.keyboard.press("Tab")
        if tab.evaluate("s => document.activeElement.matches(s)", selector): return
    raise AssertionError(f"{selector} can't be reached by the keyboard")

def answered(tab):
    assert wait_for(lambda: tab.text_content("#answer")) # Playwright's own wait_for_function is an eval, which the policy forbids
    return tab.text_content("#answer")

def type_over(tab, text):
    tab.keyboard.press("Control+A")
    tab.keyboard.type(text) if text else tab.keyboard.press("Delete")

# --- what it shows ---

def test_every_part_has_what_the_server_knows(site):
    text = httpx.get(site.url + "/", timeout=allow(90)).text.replace("<wbr>", "")
    for w in ("version 1", "ONNX Runtime", "none was refused", "level <strong>warn</strong>", "1 of 2 features moved", "2026-02-10 06:00 UTC", "0.401 to 0.424",
              "0.431", "not recorded", "2 of 3 groups", "average_precision_stayers against champion (version 12)", "better, p &lt; 0.05", "✓ pass",
              "2026-02-03T06:12:00+00:00", "hist_gradient_boosting", "md5:0", "abc1234", "run1"): assert w in text, w
    assert text.count("<script>") == 1 and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert httpx.get(site.url + "/model", timeout=allow(90)).json()["card"]["gate"][0]["verdict"] == "pass"

def test_a_refused_bundle_and_a_broken_report_are_shown(tmp_path):
    live(tmp_path)
    with serving(tmp_path) as s:
        put_live(tmp_path, "2", .5)
        assert wait_for(lambda: "version 2" in httpx.get(s.url + "/", timeout=allow(90)).text)
        f = tmp_path/"bundle"/"current"/"model.onnx"
        f.write_bytes(f.read_bytes()[:-1])
        assert wait_for(lambda: "A newer bundle was refused" in httpx.get(s.url + "/", timeout=allow(90)).text)
        (tmp_path/"reports"/"drift.json").write_text("{")
        text = httpx.get(s.url + "/", timeout=allow(90)).text
        assert "bytes, the manifest says" in text and "version 2 goes on" in text
        assert "The report on disk can't be read" in text and "level <strong>warn</strong>" in text
        (tmp_path/"reports"/"drift.json").unlink()
        assert "no report yet" in httpx.get(s.url + "/", timeout=allow(90)).text

def test_after_a_run_the_page_has_its_drift(tmp_path):
    "The gate's row on the same page is from the step's result, which a run writes; the report on requests is written by `churn drift`."
    put_live(tmp_path, card=CARD)
    (tmp_path/"results").mkdir(exist_ok=True)
    (tmp_path/"results"/"03_drift.json").write_text(json.dumps(REPORT | {"level": "retrain"}))
    with serving(tmp_path) as s:
        text, metrics = (httpx.get(s.url + path, timeout=allow(90)).text for path in ("/", "/metrics"))
    assert "by step 03_drift: level <strong>retrain</strong>" in text and "data of the last run: retrain" in text
    assert "no report yet. Make one with <code>churn drift</code>" in text and "drift_level" not in metrics

def test_without_a_model_the_page_shows_what_to_do(tmp_path):
    with serving(tmp_path) as s:
        r = httpx.get(s.url + "/", timeout=allow(90))
        assert r.status_code == 503 and "churn run" in r.text and "default-src 'none'" in r.headers["content-security-policy"] and "<form" not in r.text

def test_every_text_of_a_manifest_is_escaped(tmp_path):
    f = Feature(name=BAD, nullable=True, description=BAD)
    put_live(tmp_path, dataset=BAD, name=BAD, git_sha=BAD, run_id=BAD, data_hash=BAD, created=BAD, calibration=BAD, metrics={BAD: .5}, decision={BAD: 1},
             features=[Feature(name="age"), f, Feature(name="x")], example={"age": 1, BAD: None, "x": 1}, reference=None,
             card=ModelCard(kind=BAD, decided=BAD, intervals={BAD: Interval(value=.5, low=.4, high=.6)}, gate=[GateRow(criterion=BAD, required=BAD, measured=BAD, verdict=BAD)]),
             self_test=SelfTest(rows=[[1, 1, 1]], probability=probability([[1, 1, 1]]).tolist()))
    with serving(tmp_path) as s: text = httpx.get(s.url + "/", timeout=allow(90)).text
    assert text.count("<script") == 1 and "alert(1)</script" not in text and text.count("&lt;script&gt;alert(1)") > 12

# --- in a browser ---

@needs_chromium
def test_the_form_works_by_keyboard_and_matches_the_api(site, visit):
    "The explanation matches the API's as well."
    tab = visit(site.url + "/")
    tab_to(tab, "input[name=age]"); type_over(tab, "55")
    tab_to(tab, "input[name=gap]"); type_over(tab, "2.5")
    assert '"age":55' in tab.text_content("#curl") and '"gap":2.5' in tab.text_content("#curl")
    tab.keyboard.press("Enter")
    want = httpx.post(site.url + "/predict?explain=true", json={"age": 55, "usage_minutes": 310.5, "gap": 2.5}, timeout=allow(90)).json()
    says = answered(tab)
    assert json.loads(tab.text_content("#json")) == want
    assert f"{100 * want['probability']:.1f} % likely to churn: churn_risk {want['churn_risk']} at the threshold of 0.5, says version 1" == says
    shown = dict(tab.eval_on_selector_all("#why tbody tr", "all => all.map(r => [r.cells[0].textContent, r.cells[2].textContent])"))
    reference, this = (float(shown.pop(k).rstrip(" %")) for k in ("reference customer", "this customer"))
    parts = {k: float(v.replace("\u2212", "-")) for k, v in shown.items()}
    assert set(parts) == set(want["contributions"]) and abs(reference + sum(parts.values()) - this) < .05 * 5
    for k, v in parts.items(): assert abs(v - 100 * want["contributions"][k]) < .051
    bars = tab.eval_on_selector_all("#why rect", "all => all.map(e => [e.getAttribute('class'), +e.getAttribute('width')])")
    assert [b[0] for b in bars] == ["down" if v < 0 else "up" for v in parts.values()] and max(b[1] for b in bars) == 98
    assert "ms in the server" in tab.text_content("#time") and tab.text_content("#note") == ""

@needs_chromium
def test_an_error_is_shown_at_its_field_with_focus(site, visit):
    tab = visit(site.url + "/", expect=["422", "404", "503"])
    tab_to(tab, "input[name=usage_minutes]"); type_over(tab, "4O"); tab.keyboard.press("Enter")
    assert "usage_minutes" in answered(tab)
    field = tab.locator("input[name=usage_minutes]")
    assert field.get_attribute("aria-invalid") == "true" and tab.evaluate("document.activeElement.name") == "usage_minutes"
    described = [tab.text_content("#" + i) for i in field.get_attribute("aria-describedby").split()]
    assert "a number" in described[1] and "0 to 900" in described[0]
    assert tab.get_by_label("usage_minutes", exact=True).count() == 1
    type_over(tab, "10"); tab.keyboard.press("Enter")
    assert wait_for(lambda: "likely" in tab.text_content("#answer") and tab.locator("[aria-invalid]").count() == 0)
    tab_to(tab, "input[name=customer_id]"); tab.keyboard.type("x"); tab.keyboard.press("Enter")
    tab.wait_for_selector("input[name=customer_id][aria-invalid]")
    assert tab.evaluate("document.activeElement.name") == "customer_id" and tab.inner_text("#why") == ""

@needs_chromium
def test_what_cannot_be_explained_is_answered_all_the_same(tmp_path, visit):
    put_live(tmp_path, reference=None)
    with serving(tmp_path) as s:
        tab = visit(s.url + "/", expect=["409"])
        tab.click("#features button")
        assert "likely to churn" in answered(tab) and "no reference" in tab.text_content("#note") and tab.inner_text("#why") == ""

@needs_chromium
def test_an_unavailable_server_is_shown(tmp_path, visit):
    put_live(tmp_path)
    s = Server(tmp_path)
    try: tab = visit(s.url + "/", expect=["ERR_CONNECTION_REFUSED", "Failed to load"])
    finally: s.stop()
    tab.click("#features button")
    assert "No answer from the server" in answered(tab)

@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_text_has_contrast(site, visit, scheme):
    tab = visit(site.url + "/", viewport={"width": 375, "height": 667}, color_scheme=scheme, is_mobile=True, has_touch=True)
    tab.tap("#features button"); answered(tab)
    for d in tab.locator("summary").all(): d.tap()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 375
    assert tab.evaluate("[...document.querySelectorAll('main *')].filter(e => !e.closest('.wide') && e.getBoundingClientRect().right > 375.5).map(e => e.outerHTML.slice(0, 80))") == []
    for about in ("Criteria of the gate", "Metrics of the test rows"):
        assert tab.get_by_role("region", name=about).evaluate("e => e.scrollWidth - e.clientWidth") <= 0, about
    low = tab.evaluate("""() => {
      const rgb = c => c.match(/[\\d.]+/g).map(Number), lum = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        return .2126 * r + .7152 * g + .0722 * b }
      const under = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if ((c[3] ?? 1) === 1) return c } return [255, 255, 255] }
      return [...document.querySelectorAll('h1, h2, p, a, dt, dd, th, td, caption, figcaption, label, small, input, button, output, pre, summary, code, strong, svg text')].filter(e => e.textContent || e.value).map(e => {
        const s = getComputedStyle(e), a = lum(rgb(e.matches('svg text') ? s.fill : s.color).slice(0, 3)), b = lum(under(e).slice(0, 3))
        return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 60)] }).filter(x => x[0] < 4.5) }""")
    assert low == []
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")

@needs_chromium
def test_nothing_moves_and_everything_has_a_name(site, visit):
    tab = visit(site.url + "/", reduced_motion="reduce")
    assert tab.evaluate("document.getAnimations().length") == 0 and "transition" not in page_module._style and "animation" not in page_module._style
    assert tab.evaluate("[...document.querySelectorAll('input')].every(e => e.labels.length === 1) && [...document.querySelectorAll('section')].every(e => document.getElementById(e.getAttribute('aria-labelledby')))")
    assert tab.get_attribute(".wide >> nth=0", "tabindex") == "0" and tab.locator("[aria-live=polite] #answer").count() == 1
    assert "lie in the band" in tab.get_attribute("figure svg", "aria-label")

@needs_chromium
def test_a_script_from_elsewhere_would_not_run(site, chromium):
    tab = chromium.new_page()
    tab.goto(site.url + "/")
    tab.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'})); "
                 "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    tab.wait_for_timeout(300)
    assert tab.evaluate("window.ran") is None
    tab.close()

# --- a model with categories ---

@pytest.fixture(scope="module")
def own(tmp_path_factory):
    "Categories, names that are not ASCII, customers by text, no gate, no card, no drift report."
    ws = tmp_path_factory.mktemp("own")
    put_own(ws)
    with serving(ws) as s: yield s

@needs_chromium
def test_a_category_can_be_chosen_or_typed_by_keyboard(own, visit):
    "The answer reports a missing category."
    tab = visit(own.url + "/", expect=["503"])
    assert tab.locator("#features select").count() == 2 and tab.locator("input[name=Größe]").count() == 1
    field = tab.get_by_label("Vertragsart", exact=True)
    assert field.locator("option").all_inner_texts() == ["jährlich", "monatlich", "missing", "another text: …"]
    assert tab.get_by_label("Vorwahl", exact=True).locator("option").all_inner_texts() == ["408", "415", "True", "another text: …"]
    assert field.input_value() == "monatlich" and tab.get_by_label("Vertragsart: another text").is_hidden()
    body = lambda **changes: EXAMPLE | changes
    for keys, want in ((["Home"], body(Vertragsart="jährlich")), (["ArrowDown", "ArrowDown"], body(Vertragsart=None))):
        tab_to(tab, "select[name=Vertragsart]")
        for k in keys: tab.keyboard.press(k)
        tab_to(tab, "#features button"); tab.keyboard.press("Enter")
        assert wait_for(lambda: json.loads(tab.text_content("#json") or "{}") == httpx.post(own.url + "/predict?explain=true", json=want, timeout=allow(90)).json())
        assert json.loads(tab.text_content("#curl").split(" -d ")[1].strip("'")) == want
    assert "Missing: Vertragsart" in answered(tab)
    tab_to(tab, "select[name=Vertragsart]"); tab.keyboard.press("End"); tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Vertragsart: another text"
    tab.keyboard.type("wöchentlich"); tab.keyboard.press("Enter")
    assert wait_for(lambda: "Not seen in training: Vertragsart" in tab.text_content("#answer"))
    tab_to(tab, "input[name=customer_id]"); tab.keyboard.type("7"); tab.keyboard.press("Enter")
    assert wait_for(lambda: "no feature store" in tab.text_content("#answer")) and '"customer_id":"7"' in tab.text_content("#curl")

@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_category_field_fits_a_phone_and_has_contrast(own, visit, scheme):
    tab = visit(own.url + "/", viewport={"width": 375, "height": 667}, color_scheme=scheme, is_mobile=True, has_touch=True)
    tab.get_by_label("Vertragsart", exact=True).select_option("another text: …")
    assert tab.get_by_label("Vertragsart: another text").is_visible() and tab.evaluate("document.documentElement.scrollWidth") <= 375
    color, under, width = tab.get_by_label("Vertragsart", exact=True).evaluate(
        "e => { const s = getComputedStyle(e); return [s.color, s.backgroundColor, e.getBoundingClientRect().width] }")
    light = lambda c: sum(map(int, re.findall(r"\d+", c)[:3]))
    assert width > 200 and abs(light(color) - light(under)) > 400 and (light(under) < 300) == (scheme == "dark")
    assert "Not recorded" in tab.text_content("main") and "no report yet" in tab.text_content("main")

def test_values_are_escaped_in_a_select(tmp_path):
    from churn_nb.serving.status_page import fields
    features = [msgspec.structs.replace(FEATURES[0], values=[BAD, 'a"b'], name="x<y")]
    text = fields(own_manifest(features=features, example={"x<y": BAD}))
    assert BAD not in text and text.count("&lt;script&gt;") == 2 and 'a"b' not in text and 'name="x&lt;y"' in text

# --- /docs ---

def test_docs_are_served_locally_or_name_the_missing_package(site):
    assert swagger_ui() is not None
    for name, kind in docs_module._UI_FILES.items():
        r = httpx.get(f"{site.url}/docs/{name}", timeout=allow(90))
        assert r.status_code == 200 and r.headers["content-type"].startswith(kind) and len(r.content) > 100_000
    assert httpx.get(site.url + "/docs/other.js", timeout=allow(90)).status_code == httpx.get(site.url + "/docs/..%2f__init__.py", timeout=allow(90)).status_code == 404
    assert "://" not in httpx.get(site.url + "/docs", timeout=allow(90)).text and "unsafe" not in httpx.get(site.url + "/docs", timeout=allow(90)).headers["content-security-policy"]
    assert "fastapi-swagger" in docs_page(None) and "<script" not in docs_page(None)

@needs_chromium
def test_docs_try_out_predict_under_the_policy(site, visit):
    tab = visit(site.url + "/docs")
    tab.click("#operations-Predict-post_predict .opblock-summary-control")
    tab.click("#operations-Predict-post_predict .execute")
    status = tab.locator("#operations-Predict-post_predict .live-responses-table tbody .response-col_status").first
    assert status.inner_text().startswith("200")
    assert tab.locator("text=Failed to load").count() == 0

# --- keys ---

@needs_chromium
def test_the_page_works_with_an_api_key_as_password(tmp_path, visit, monkeypatch):
    key = "a-key-for-the-page-2026"
    monkeypatch.setenv("CHURN_SERVE_API_KEYS", key)
    with serving(live(tmp_path)) as s:
        assert httpx.get(s.url, headers={"Accept": "text/html"}, timeout=allow(90)).status_code == 401
        tab = visit(s.url, http_credentials={"username": "ann", "password": key}, expect=["401"]) # the browser tries without first
        tab.click("#features button")
        assert "%" in answered(tab)
        assert visit(s.url + "/docs", http_credentials={"username": "ann", "password": key}, expect=["401"]).title()
