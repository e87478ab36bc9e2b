"A few times far from all others do not set the calendar, and are named; ids that break training are named by describe."
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings as rules, strategies as st
from churn_nb.core.errors import DataError
from churn_nb.data.dataset_toml import read_description, write_description
from churn_nb.data.leakage_checks import calendar_bounds
from churn_nb.data.schema_inference import DescribeOptions, infer_description as describe
from churn_nb.data.typed_table import prepare, prepare_events
from churn_nb.feature_store.split_planning import plan

TODAY = np.datetime64("2026-01-01")
day = lambda n: np.datetime64("2005-01-01") + n
logs = st.tuples(st.integers(30, 3000), st.integers(1, 9), st.integers(1, 40))  # days of the calendar, every so many days, rows a day

@rules(max_examples=300, deadline=None)
@given(logs, st.lists(st.integers(200, 30_000), max_size=2), st.lists(st.integers(200, 30_000), max_size=2))
def test_single_far_rows_never_move_the_calendar(log, before, after):
    length, step, rows = log
    inner = day(np.arange(0, length, step))
    n = np.full(len(inner), rows)
    if n.sum() < 100*max(len(before), len(after), 1): n = n*100
    far = max(length, 90)
    odd = sorted({int(-b - far) for b in before}) + sorted({int(length + a + far) for a in after})
    table = pd.Series(n, inner).add(pd.Series(1, day(np.array(odd, int))), fill_value=0).sort_index()
    first, last = calendar_bounds(table.index.to_numpy().astype("datetime64[D]"), table.to_numpy().astype(int), TODAY + 100_000)
    assert table.index[first] == inner[0] and table.index[last - 1] == inner[-1]

@rules(max_examples=100, deadline=None)
@given(logs)
def test_a_calendar_without_far_rows_stays_whole(log):
    length, step, rows = log
    inner = day(np.arange(0, length, step))
    assert calendar_bounds(inner, np.full(len(inner), rows), TODAY) == (0, len(inner))

@pytest.fixture
def log(tmp_path):
    "Purchases of 300 customers on each day of 2010 and 2011, one with the time of a default and one far in the future."
    rng = np.random.default_rng(1)
    at = pd.Timestamp("2010-01-01") + pd.to_timedelta(rng.integers(0, 730, 8000), "D")
    rows = pd.DataFrame({"customer": rng.integers(1, 301, 8000), "at": at.strftime("%Y-%m-%d"), "amount": 5})
    rows.loc[17, "at"], rows.loc[4711, "at"] = "1970-01-01", "2099-12-31"
    rows.to_csv(tmp_path/"orders.csv", index=False)
    return tmp_path/"orders.csv"

def test_far_rows_of_a_log_are_named_and_left_out(log, tmp_path):
    write_description(describe(log, DescribeOptions(kind="events")), tmp_path/"dataset.toml")
    d = read_description(tmp_path/"dataset.toml")
    (found,) = [f.sentence for f in d.findings if f.rule == "outlier"]
    assert "row 18 (1970-01-01), 4712 (2099-12-31)" in found and (d.since, d.until) == ("1970-01-02", "2099-12-31")
    assert prepare_events(d, tmp_path/"log.parquet")["rows"] == 7998
    dates = plan(tmp_path/"log.parquet", 30).dates
    assert str(dates["serve_as_of"]) == "2012-01-01" and str(min(dates["train_as_of"])) > "2010"

def test_far_rows_are_kept_where_the_caller_says_so(log, tmp_path):
    d = describe(log, DescribeOptions(kind="events", since="1970-01-01", until="2100-01-01"))
    assert prepare_events(d, tmp_path/"log.parquet")["rows"] == 8000 and not [f for f in d.findings if f.rule == "outlier"]

def test_a_day_that_is_none_is_an_error(log):
    with pytest.raises(DataError, match="since = 'May' is not a time"): describe(log, DescribeOptions(kind="events", since="May"))

@pytest.fixture
def customers(tmp_path):
    "A table with two missing ids, one that occurs twice, and one date far from the others."
    rng = np.random.default_rng(1)
    t = pd.DataFrame({"customer_id": [f"K{i}" for i in range(300)], "as_of": ["2024-01-01", "2024-02-01", "2024-03-01"]*100, "x": rng.normal(size=300),
                      "churn": rng.integers(0, 2, 300)})
    def write(**changes):
        for column, (row, value) in changes.items(): t.loc[row, column] = value
        t.to_csv(tmp_path/"customers.csv", index=False)
        return tmp_path/"customers.csv"
    return write

def test_describe_names_missing_ids(customers):
    d = describe(customers(customer_id=([4, 9], None)))
    assert any(f.rule == "ids" and "2 rows have no id: row 5, 10" in f.sentence for f in d.findings)

def test_describe_names_ids_that_occur_twice(customers):
    d = describe(customers(customer_id=([6], "K3")))
    assert any(f.rule == "ids" and "1 ids occur twice for one time: K3 (rows 4 and 7)" in f.sentence for f in d.findings)

def test_a_far_date_of_a_snapshot_is_left_out(customers, tmp_path):
    d = describe(customers(as_of=([7], "2099-12-31")))
    assert d.until == "2099-12-31" and prepare(d, tmp_path/"out.parquet")["rows"] == 299
