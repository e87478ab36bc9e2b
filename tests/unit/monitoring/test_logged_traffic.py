"Reading the request log and the shadow log, and champion against challenger once outcomes are known."
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from churn_nb.evaluation.comparison import ComparisonOptions, compare
from churn_nb.monitoring.logged_traffic import judge_live, read_requests, read_shadow, with_labels
from churn_nb.monitoring.request_log import AnsweredRows, add_file, columns_of
from churn_nb.monitoring.shadow import ShadowLine, append_lines

FIXED = ["at", "customer_id", "model_version", "probability"]
DAY = 86_400_000
model = lambda version="1", names=("a", "b"): SimpleNamespace(manifest=SimpleNamespace(version=version, names=[*names]))
asked = lambda at=0, n=1, names=("a", "b"): AnsweredRows(1772323200000 + at, model(names=names).manifest, np.ones((n, len(names)), np.float32), [.5] * n, [*range(n)])

def files(folder): return sorted(folder.glob("*/*.parquet"))
FIELDS = ["at", "customer_id", "champion", "p_champion", "challenger", "p_challenger"]
line = lambda i=0, at="2026-03-01T12:00:00.000+00:00": ShadowLine(at, i, "1", .25, "2", .5)

# --- requests ---

def test_only_files_in_range_are_opened_and_broken_ones_named(tmp_path):
    for d in range(4): add_file(tmp_path, columns_of([asked(d * DAY + 3_600_000), asked(d * DAY + 7_200_000)]))
    for name, data in (("2026-03-01/000000-1-0.parquet", b""), ("2026-03-02/020000-1-0.parquet", b"PAR1 nothing PAR1"), ("2026-03-02/.x.parquet.part", b"half")):
        (tmp_path/name).write_bytes(data)
    whole = files(tmp_path)[-1].read_bytes()
    (tmp_path/"2026-03-04/030000-1-0.parquet").write_bytes(whole[:-9])
    pd.DataFrame({"at": [1]}).to_parquet(tmp_path/"2026-03-03/230000-1-0.parquet") # no log at all
    bad = ["2026-03-01/000000-1-0.parquet", "2026-03-02/020000-1-0.parquet", "2026-03-03/230000-1-0.parquet", "2026-03-04/030000-1-0.parquet"]
    read = lambda *a, **kw: (len(f := read_requests(tmp_path, *a, **kw)), f.attrs["broken"])
    assert read() == (8, bad)
    assert read("2026-03-02") == (6, bad[1:]) and read("2026-03-02", "2026-03-03") == (2, bad[1:2]) and read(until="2026-03-02T01:30") == (3, bad[:1])
    assert read("2026-03-02T01:00Z", "2026-03-02T02:00:00+00:00") == (1, bad[1:2]) # [since, until)
    assert read(pd.Timestamp("2026-03-02T02:00:00.000000001"), pd.Timestamp("2026-03-03T01:00:00.000000001")) == (1, bad[1:2])
    assert read(pd.Timestamp("2026-03-04T03:00", tz="Asia/Kolkata")) == (2, bad[2:]) # 2026-03-03T21:30Z
    assert read(version="2")[0] == 0

def test_an_empty_log_has_its_columns_and_their_kinds(tmp_path):
    for folder in (tmp_path, tmp_path/"nowhere"):
        f = read_requests(folder, since="2026-01-01")
        assert f.columns.tolist() == FIXED and f.dtypes.astype(str).tolist() == ["datetime64[ns, UTC]", "Int64", "object", "float64"] and f.attrs["broken"] == []

# --- shadow ---

def test_torn_and_foreign_lines_are_counted_when_reading(tmp_path):
    "An empty log has its columns."
    assert read_shadow(tmp_path).columns.tolist() == FIELDS and len(read_shadow(tmp_path/"nowhere")) == 0
    append_lines(tmp_path, "a", [line(1)])
    with open(tmp_path/"a.jsonl", "ab") as f: f.write(b'\xff\n{"at": 7}\n{"at": "2026')
    append_lines(tmp_path, "a", [line(2)])
    frame = read_shadow(tmp_path)
    assert frame.customer_id.tolist() == [1, 2] and frame.attrs["broken"] == 3 and str(frame["at"].dtype) == "datetime64[ns, UTC]"

# --- the outcomes ---

def test_each_outcome_gets_the_last_prediction_before_it(tmp_path):
    rng = np.random.default_rng(0)
    days = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 60 * 24, 400), "h")
    asked = pd.DataFrame(dict(at=days, customer_id=pd.array(rng.integers(0, 30, 400), "Int64"), champion="1", p_champion=rng.random(400),
                              challenger="2", p_challenger=rng.random(400)))
    asked.loc[::7, "customer_id"] = pd.NA
    labels = pd.DataFrame([dict(customer_id=i, event_timestamp=d, churn=float(rng.integers(2))) for i in range(35) for d in ("2026-01-20", "2026-02-10")])
    labels.loc[5, "churn"] = np.nan # not known yet
    got, want = with_labels(asked, labels, "5D"), []
    for _, outcome in labels.iterrows():
        a = pd.Timestamp(outcome.event_timestamp, tz="UTC")
        ours = asked[(asked.customer_id == outcome.customer_id).fillna(False) & (asked["at"] <= a) & (asked["at"] >= a - pd.Timedelta("5D"))]
        if len(ours) and outcome.churn == outcome.churn: want.append((a, outcome.customer_id, outcome.churn, ours.sort_values("at")["at"].iloc[-1]))
    assert sorted(want) == [*got[["as_of", "customer_id", "churn", "at"]].itertuples(index=False, name=None)] and len(got) > 20
    assert not got.duplicated(["customer_id", "as_of"]).any() and got.customer_id.dtype == got.churn.dtype == np.int64

def test_two_outcomes_of_one_customer_and_moment_are_refused():
    labels = pd.DataFrame({"customer_id": [1, 1], "as_of": [pd.Timestamp("2026-01-01"), pd.Timestamp("2026-01-01")], "churn": [0, 1]})
    asked = pd.DataFrame(dict(at=pd.to_datetime(["2025-12-31"], utc=True), customer_id=pd.array([1], "Int64")))
    with pytest.raises(ValueError, match="two outcomes for one as_of"): with_labels(asked, labels)

def live(n=400, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.random(n)
    return pd.DataFrame(dict(customer_id=np.arange(n) // 2, champion="1", p_champion=.5, challenger="2", p_challenger=p, churn=(rng.random(n) < p).astype(int)))

def test_the_verdict_is_the_gates_comparison():
    f = live()
    for how in ({}, {"metric": "auc"}, {"metric": "brier", "margin": .01, "alpha": .01}):
        options = ComparisonOptions(**how)
        assert judge_live(f, options=options) == compare(f.churn.to_numpy(), f.p_challenger.to_numpy(), f.p_champion.to_numpy(), f.customer_id.to_numpy(), options)
    assert judge_live(f).better and judge_live(f).difference > 0
    assert judge_live(f, clusters=np.arange(len(f))).se != judge_live(f).se
    assert not judge_live(f.assign(p_champion=f.p_challenger, p_challenger=f.p_champion)).better

def test_one_pair_at_a_time():
    for bad, n in ((live().assign(challenger=["2", "3"] * 200), 2), (live().iloc[:0], 0)):
        with pytest.raises(ValueError, match=f"^{n} pairs of champion and challenger"): judge_live(bad)
