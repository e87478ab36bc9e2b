"The drift report: levels, ranking, repeated customers, and tables that are wrong."
import json, math
import numpy as np, pandas as pd, pytest
from scipy import stats
from churn_nb import drift
from churn_nb.core.settings import load_settings
from churn_nb.monitoring import drift_report as d

RULES = load_settings(environ={}).drift.model_copy(update={"bins": 10, "alpha": .05, "psi_warn": .1, "psi_retrain": .25, "permutations": 199})

def test_bands():
    assert [d.band(v) for v in (0, .1 - 1e-12, .1, .25 - 1e-12, .25, 3)] == ["none", "none", "warn", "warn", "retrain", "retrain"]
    assert [d.band(v, warn=1, retrain=2) for v in (.9, 1, 2)] == ["none", "warn", "retrain"]

@pytest.fixture
def tables():
    rng = np.random.default_rng(0)
    ref = pd.DataFrame({"age": rng.normal(30, 5, 800), "visits": rng.poisson(2, 800), "member": rng.random(800) < .4})
    cur = pd.DataFrame({"age": rng.normal(35, 5, 500), "visits": rng.poisson(2, 500), "member": rng.random(500) < .4})
    return ref, cur

def by_name(report): return {r.name: r for r in report.rows}

def test_report_rows_hold_the_statistics(tables):
    ref, cur = tables
    report = d.drift_report(ref, cur, RULES)
    assert report.level == "retrain" and [r.level for r in report.rows] == ["retrain", "none", "none"]
    for r in report.rows:
        x, y = ref[r.name].to_numpy(), cur[r.name].to_numpy()
        D, pvalue = drift.ks(x, y)
        assert r.statistic == D and (r.pvalue == pvalue if pvalue <= .001 or len(np.unique(y)) == len(y) else r.pvalue < pvalue) and r.psi == drift.psi(x, y, 10) and (r.n_reference, r.n_current) == (800, 500)
        assert [list(c) for c in (r.counts_reference, r.counts_current)] == [c.tolist() for c in drift.bin_counts(x, y, 10)]
    q = stats.false_discovery_control([r.pvalue for r in report.rows])
    assert [r.qvalue for r in report.rows] == pytest.approx(q, abs=1e-15)

def test_a_large_psi_of_few_rows_is_not_drift():
    rng = np.random.default_rng(0)
    x, y = (pd.DataFrame({f"f{i}": rng.normal(size=30) for i in range(13)}) for _ in "xy")
    report = d.drift_report(x, y, RULES)
    assert report.level == "none" and sum(r.psi >= .25 for r in report.rows) > 5 # noise alone would have shouted
    moved = d.drift_report(x, y.assign(f0=y.f0 + 3), RULES)
    assert moved.level == "retrain" and [r.name for r in moved.rows if r.level != "none"] == ["f0"]

def test_false_alarms_of_a_whole_report_are_rare():
    "Ties, missing values, text, a constant: nothing moved, 13 features, 250 reports."
    rng, alarms = np.random.default_rng(3), 0
    def table(n):
        t = pd.DataFrame({f"f{i}": (rng.normal(size=n), rng.poisson(.3, n), rng.gamma(1, 5, n), rng.random(n) < .1)[i % 4] for i in range(10)})
        return t.assign(holed=np.where(rng.random(n) < .3, np.nan, rng.normal(size=n)), plan=rng.choice(["a", "b", "c"], n, p=[.7, .25, .05]), flat=1)
    for i in range(250): alarms += d.drift_report(table(90), table(60), RULES).level != "none"
    assert alarms/250 <= .05 + 3*math.sqrt(.05*.95/250)

def history(rng, n, rows, first=0):
    "Rows of n customers: a rate of their own, sparse counts, text; nothing ever changes."
    i = np.repeat(np.arange(n), rows)
    rate = rng.gamma(1, 1, n)[i]
    return pd.DataFrame({"id": first + i, "spend": rate + rng.normal(size=len(i)), "visits": rng.poisson(rate), "returns": (rng.random(len(i)) < .02)*rng.poisson(2, len(i)),
                         "habit": rng.normal(size=n)[i], "holed": np.where(rng.random(len(i)) < .3, np.nan, rate), "plan": np.array(["a", "b", "c"])[rng.integers(0, 3, n)[i]]})

@pytest.mark.parametrize("whose", ["others", "of the reference", "mixed"])
@pytest.mark.parametrize("rows", [(1, 1), (7, 1), (1, 7)], ids=lambda r: f"{r[0]} and {r[1]}")
@pytest.mark.parametrize("window", [60, 200])
def test_reports_of_requests_raise_few_false_alarms(window, rows, whose):
    "A reference of some rows per customer, a window of requests, no drift: the level of the whole report."
    rng, reports, alarms = np.random.default_rng(window), 40, 0
    for k in range(reports):
        people = history(rng, 300, sum(rows))
        turn = people.groupby("id").cumcount()
        known = people[people.id < {"others": 0, "of the reference": window, "mixed": window//2}[whose]]
        others = history(rng, window, rows[1], first=1000)
        current = pd.concat([known[turn[known.index] >= rows[0]], others])
        current = current[current.id.isin(current.id.unique()[:window])]
        alarms += d.drift_report(people[turn < rows[0]], current, RULES, options=d.ReportOptions(customers="id", seed=k)).level != "none"
    assert alarms/reports <= .05 + 3.3*math.sqrt(.05*.95/reports)

def test_a_report_of_100_requests_sees_five_times_the_buyers():
    "2 % of customers buy, then 10 %."
    rng, warned = np.random.default_rng(1), 0
    def buyers(n, share, first): return pd.DataFrame({"id": first + np.arange(n), "purchases": (rng.random(n) < share)*rng.integers(1, 9, n), "age": rng.normal(size=n)})
    for _ in range(40):
        reference, current = buyers(2000, .02, 0), buyers(100, .1, 10_000)
        warned += d.drift_report(reference, current, RULES, options=d.ReportOptions(customers="id")).rows[0].level != "none"
    assert warned >= .6*40

def test_ranked_by_effect_times_importance(tables):
    ref, cur = (t.assign(noise=np.random.default_rng(9).normal(size=len(t))) for t in tables)
    cur = cur.assign(visits=cur.visits + 1, noise=cur.noise + .5)
    ranks = lambda **gain: [r.name for r in d.drift_report(ref, cur, RULES, options=d.ReportOptions(importance=gain)).rows]
    assert ranks(age=1, visits=.1, member=.1)[0] == "age" and ranks(age=0, visits=1., member=.1, noise=.1)[-1] == "age"
    assert ranks(age=-.5, visits=1., member=.1, noise=.1)[-1] == "age"
    report = d.drift_report(ref, cur.drop(columns="noise"), RULES, options=d.ReportOptions(importance={"age": 3., "visits": 1.}))
    assert report.rows[0].name == "noise" and {r.name: r.importance for r in report.rows} == {"age": .75, "visits": .25, "member": 0, "noise": 0}
    assert report.rows[1].name == "age" and d.drift_report(ref, cur, RULES).rows[0].importance is None

def test_repeated_customers_are_kept_whole():
    rng = np.random.default_rng(5)
    def people(first):
        own = np.repeat(rng.normal(size=40), 50)
        gap = np.repeat(rng.random(40) < .5, 50)
        return pd.DataFrame({"id": np.repeat(np.arange(40) + first, 50), "x": own + .1*rng.normal(size=2000), "y": np.where(gap, np.nan, own)})
    a, b = people(0), people(100)
    rows, whole = (d.drift_report(a, b, RULES, ["x", "y"], d.ReportOptions(c)) for c in (None, "id"))
    assert rows.level == "retrain" and not rows.by_customer and whole.by_customer and whole.level == "none"
    assert by_name(whole)["x"].psi == by_name(rows)["x"].psi and by_name(whole)["x"].pvalue > .05 > by_name(rows)["x"].pvalue
    assert d.drift_report(a, b.assign(x=b.x + 3), RULES, ["x"], d.ReportOptions("id")).level == "retrain"
    once = d.drift_report(a.drop_duplicates("id"), b.drop_duplicates("id"), RULES, ["x"], d.ReportOptions("id"))
    assert not once.by_customer # nobody occurs twice: rows are customers
    assert "id" not in by_name(d.drift_report(a, b, RULES, options=d.ReportOptions("id")))
    named = [t.assign(id=("customer " + t.id.astype(str)).where(t.index % 2 == 0)) for t in (a, b)] # every other row has no id
    assert d.drift_report(*named, RULES, ["x"], d.ReportOptions("id")).by_customer

# Text

def test_text_is_compared_by_category(tables):
    ref, cur = (t.assign(plan=np.random.default_rng(i).choice(["pro", "básico", None], len(t))) for i, t in enumerate(tables))
    r = by_name(d.drift_report(ref, cur, RULES))["plan"]
    assert (r.kind, r.level, r.statistic) == ("category", "none", None) and 0 < r.missing_reference < 1
    moved = by_name(d.drift_report(ref, cur.assign(plan=np.where(np.arange(500) < 200, "new", cur.plan)), RULES))["plan"]
    assert moved.level == "retrain" and moved.remark.startswith("unseen: new") and moved.pvalue < 1e-9
    for dtype in ("category", "string", "string[pyarrow]"):
        assert by_name(d.drift_report(ref.astype({"plan": dtype}), cur, RULES))["plan"] == r

def test_levels_follow_psi_and_settings_not_the_pvalue(tables):
    rng = np.random.default_rng(1)
    x, y = pd.DataFrame({"a": rng.normal(0, 1, 50_000)}), pd.DataFrame({"a": rng.normal(.05, 1, 50_000)})
    report = d.drift_report(x, y, RULES)
    assert report.rows[0].pvalue < 1e-6 and report.level == "none" and "*" in report._repr_html_().split("<table>")[1]
    assert d.drift_report(x, y, RULES.model_copy(update={"psi_warn": 1e-4})).level == "warn"
    assert d.drift_report(x, y, RULES.model_copy(update={"psi_warn": 1e-4, "psi_retrain": 2e-4})).level == "retrain"
    assert d.drift_report(*tables, RULES, columns=["visits"]).level == "none"

def test_the_report_has_the_level_of_its_worst_feature(tables):
    ref, cur = (t.assign(gone=np.nan) for t in tables)
    def levels(*columns):
        report = d.drift_report(ref, cur, RULES, list(columns))
        return [r.level for r in report.rows], report.level
    assert levels("age", "gone", "visits") == (["warn", "retrain", "none"], "retrain") # what can't be compared is first
    assert levels("visits", "gone") == (["warn", "none"], "warn")

def test_to_dict_is_json_without_nan(tables):
    ref, cur = (t.assign(gone=np.nan) for t in tables)
    out = d.drift_report(ref, cur.assign(age=np.nan), RULES).to_dict()
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    age, gone = ({f["name"]: f for f in out["features"]}[n] for n in ("age", "gone"))
    assert (age["statistic"], age["missing_current"]) == (None, 1) and age["psi"] > .25 and age["pvalue"] < 1e-9
    assert (gone["psi"], gone["level"], gone["note"]) == (None, "warn", "all missing in reference and current")

@pytest.mark.parametrize("empty", [np.nan, None, pd.NA, pd.NaT])
def test_an_all_missing_column_is_never_no_drift(tables, empty):
    ref, cur = tables
    gone, came = by_name(d.drift_report(ref, cur.assign(visits=empty), RULES))["visits"], by_name(d.drift_report(ref.assign(visits=empty), cur, RULES))["visits"]
    assert (gone.level, gone.note, came.level, came.note) == ("retrain", "all missing in current", "retrain", "all missing in reference")
    assert by_name(d.drift_report(ref.assign(visits=empty), cur.assign(visits=empty), RULES))["visits"].level == "warn"
    lax = RULES.model_copy(update={"psi_warn": 1e6, "psi_retrain": 1e6})
    assert by_name(d.drift_report(ref, cur.assign(visits=empty), lax))["visits"].level == "warn"

def test_values_that_stop_arriving_are_drift(tables):
    ref, cur = tables
    r = by_name(d.drift_report(ref, cur.assign(visits=cur.visits.where(np.arange(500) >= 100)), RULES))["visits"]
    assert r.level == "retrain" and (r.missing_reference, r.missing_current) == (0, .2) and r.pvalue < 1e-9
    assert drift.ks(ref.visits, cur.visits[np.arange(500) >= 100])[1] > .05

@pytest.mark.parametrize("dtype", ["Int64", "Float64", "int64[pyarrow]", "double[pyarrow]", "float32"])
def test_pandas_column_types(tables, dtype):
    ref, cur = tables
    whole = d.drift_report(ref, cur, RULES, ["visits"]).rows[0]
    assert d.drift_report(ref.astype({"visits": dtype}), cur.astype({"visits": dtype}), RULES, ["visits"]).rows[0] == whole
    holed = ref.visits.astype(dtype).where(np.arange(800) % 4 > 0)
    assert d.drift_report(ref.assign(visits=holed), cur, RULES, ["visits"]).rows[0].missing_reference == .25

@pytest.mark.parametrize("dtype", ["boolean", "bool[pyarrow]"])
def test_booleans_with_gaps(tables, dtype):
    ref, cur = tables
    holed = ref.member.astype(dtype).where(np.arange(800) % 4 > 0)
    r = d.drift_report(ref.assign(member=holed), cur, RULES, ["member"]).rows[0]
    assert r.missing_reference == .25 and r.statistic == drift.ks(ref.member[np.arange(800) % 4 > 0], cur.member)[0]

def test_infinite_values_are_compared(tables):
    ref, cur = tables
    r = by_name(d.drift_report(ref, cur.assign(visits=np.inf), RULES))["visits"]
    assert r.statistic == 1 and r.level == "retrain" and math.isfinite(r.psi) and r.note == "500 infinite in current"
    few = by_name(d.drift_report(ref.assign(visits=np.where(np.arange(800) == 3, -np.inf, ref.visits)), cur, RULES))["visits"]
    assert (few.level, few.note) == ("warn", "1 infinite in reference")

@pytest.mark.parametrize("change, columns, says", [
    (lambda r, c: (r.drop(columns="age"), c), None, "not in the reference table"),
    (lambda r, c: (r, c.drop(columns="age")), None, "not in the current table"),
    (lambda r, c: (r, c), ["age", "height"], "not in the reference table; not in the current table"),
    (lambda r, c: (r.assign(age="x"), c), None, "text in the reference table, numbers in the current"),
    (lambda r, c: (r, c.assign(age=pd.Categorical(["a"]*500))), None, "text in the current table, numbers in the reference"),
    (lambda r, c: (r, c.assign(age=pd.Timestamp("2026-01-01"))), None, "datetime64[us] in the current table, neither number nor text"),
    (lambda r, c: (r, c.assign(age=1+2j)), None, "complex128 in the current table, neither number nor text"),
    (lambda r, c: (r[:0], c), None, "no rows in the reference table"),
    (lambda r, c: (r, c[:0]), None, "no rows in the current table"),
    (lambda r, c: (r[:0], c[:0]), None, "no rows in the reference table; no rows in the current table"),
    (lambda r, c: (r, pd.concat([c, c.age], axis=1)), None, "more than once in the current table"),
])
def test_bad_columns_are_named_in_the_report_and_never_calm(tables, change, columns, says):
    ref, cur = change(*tables)
    for customers in (None, "visits"):
        report = d.drift_report(ref, cur, RULES, columns, d.ReportOptions(customers))
        bad = [r for r in report.rows if r.kind == "unusable"]
        assert bad and all(r.level == "warn" and r.psi is None and r.pvalue is None for r in bad) and report.rows[0] in bad
        assert any(says.replace("[us]", u) == r.note for r in bad for u in ("[us]", "[s]", "[ns]")) and report.level != "none"
        assert report.unusable == [r.name for r in bad] and json.dumps(report.to_dict(), allow_nan=False) and report._repr_html_()
    well = {r.name for r in report.rows} - {*report.unusable}
    assert not len(ref) or not len(cur) or columns or "member" in well # the others are compared all the same

def test_no_columns_at_all_are_refused(tables):
    with pytest.raises(d.DriftInputError, match="no columns"): d.drift_report(*tables, RULES, [])

# Files

@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet", "T.PARQUET"])
def test_read_table(tables, tmp_path, name):
    write = tables[0].to_parquet if name.lower().endswith("parquet") else lambda f: tables[0].to_csv(f, index=False)
    write(tmp_path/name)
    pd.testing.assert_frame_equal(d.read_table(tmp_path/name), tables[0])
    pd.testing.assert_frame_equal(d.read_table(str(tmp_path/name)), tables[0])

@pytest.mark.parametrize("name, content, says", [
    ("no.csv", None, "no such file"), ("t.txt", b"a\n1\n", "neither"), ("empty.csv", b"", "can't be read"), ("head.csv", b"a,b\n", "no rows"),
    ("ragged.csv", b"a\n1\n1,2,3\n", "can't be read"), ("bytes.csv", "a\nübel\nÄrger\n".encode() + b"\xff\n", "can't be read"), ("bad.parquet", b"PAR1 no", "can't be read"), ("bad.csv.gz", b"\x1f\x8b a\n1\n", "can't be read"),
])
def test_bad_files_are_refused_by_name(tmp_path, name, content, says):
    if content is not None: (tmp_path/name).write_bytes(content)
    with pytest.raises(d.DriftInputError) as e: d.read_table(tmp_path/name)
    assert says in str(e.value) and name in str(e.value) and "\n" not in str(e.value)

def test_a_folder_is_not_a_table(tmp_path):
    with pytest.raises(d.DriftInputError, match="it is a folder; name one file in it"): d.read_table(tmp_path)

# Evidently
