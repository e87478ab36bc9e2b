"The drift report as HTML: our table, and Evidently's page with our numbers."
import os
import numpy as np, pandas as pd, pytest
from churn_nb.core.settings import load_settings
from churn_nb.monitoring import drift_report as d
from churn_nb.monitoring.drift_html import evidently_html

RULES = load_settings(environ={}).drift.model_copy(update={"bins": 10, "alpha": .05, "psi_warn": .1, "psi_retrain": .25, "permutations": 199})

@pytest.fixture
def tables():
    rng = np.random.default_rng(0)
    ref = pd.DataFrame({"age": rng.normal(30, 5, 800), "visits": rng.poisson(2, 800), "member": rng.random(800) < .4})
    cur = pd.DataFrame({"age": rng.normal(35, 5, 500), "visits": rng.poisson(2, 500), "member": rng.random(500) < .4})
    return ref, cur

def test_table_shows_worst_first_and_escapes(tables):
    ref, cur = (t.rename(columns={"visits": "<b>visits"}) for t in tables)
    shown = d.drift_report(ref[["<b>visits", "age"]], cur, RULES, ["<b>visits", "age"])._repr_html_()
    assert shown.count("<svg") == 2 and "<script" not in shown
    assert "&lt;b&gt;visits" in shown and "<b>visits" not in shown and shown.index("<td style='text-align:left'>age") < shown.index("visits")
    assert "800 reference rows, 500 current rows" in shown and "retrain" in shown

def by_name(report): return {r.name: r for r in report.rows}

def test_evidently_shows_our_numbers(tables, tmp_path, recwarn):
    from churn_nb.monitoring.drift_html import _evidently
    ref, cur = (t.assign(gone=np.nan, plan="basic", far=np.inf, flat=1.) for t in tables)
    report = d.drift_report(ref, cur, RULES)
    out = evidently_html(report, ref, cur, tmp_path/"e.html")
    page = out.read_text()
    assert page.lstrip().lower().startswith("<") and all(name in page for name in ("age", "visits", "member", "flat", "PSI, deciles of the reference"))
    assert os.listdir(tmp_path) == ["e.html"]
    metrics = _evidently(report, ref, cur).dict()["metrics"]
    for key, method in (("psi", "psi_of_the_report"), ("qvalue", "pvalue_of_the_report")):
        seen = {m["config"]["column"]: float(m["value"]) for m in metrics if m["config"].get("method") == method}
        assert seen == {n: getattr(by_name(report)[n], key) for n in ("age", "visits", "member", "flat")}
    assert [m["value"]["count"] for m in metrics if m["metric_name"].startswith("DriftedColumnsCount")] == [1, 1]
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]

def test_evidently_with_nothing_to_show_writes_nothing(tables, tmp_path):
    (tmp_path/"e.html").write_text("old")
    ref, cur = tables[0].assign(age=np.nan)[["age"]], tables[1][["age"]]
    assert evidently_html(d.drift_report(ref, cur, RULES), ref, cur, tmp_path/"e.html") is None
    assert (tmp_path/"e.html").read_text() == "old"
