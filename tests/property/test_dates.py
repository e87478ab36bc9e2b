"Dates are read as the moments that were written, in whatever spelling a column has."
from datetime import UTC, datetime, timedelta
import pandas as pd, pytest
from hypothesis import HealthCheck, given, settings as rules, strategies as st
from churn_nb.core.errors import DataError
from churn_nb.core.workspace import open_duckdb
from churn_nb.data.dataset_toml import read_description, write_description
from churn_nb.data.schema_inference import DescribeOptions, infer_description as describe
from churn_nb.data.typed_table import prepare_events
from churn_nb.data.value_parsing import DateFormat, find_date_format, time_sql
from churn_nb.ops.event_worker import parse_event

DATES = ["%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%-d.%-m.%Y", "%d-%m-%Y", "%d/%m/%Y", "%-d/%-m/%y", "%m/%d/%Y", "%-m/%-d/%Y", "%m-%d-%y", "%-d-%b-%y", "%d-%b-%Y",
         "%d %B %Y", "%b %d, %Y", "%a, %d %b %Y", "%Y%m%d"]
TIMES = ["", " %H:%M", " %-H:%M:%S", " %I:%M %p", " %-I:%M:%S%p", "T%H:%M:%S", " %H:%M:%SZ", "T%H:%M:%S+02:00", " %H:%M -0530", " %H:%M:%S.%f UTC"]
SPELLINGS = [(d, t) for d in DATES for t in TIMES if d != "%Y%m%d" or not t]
UTC_TABLE = open_duckdb()
OFFSETS = {"+02:00": timedelta(hours=2), "-0530": -timedelta(hours=5, minutes=30)}
moments = st.lists(st.integers(0, 50*365*1440).map(lambda m: datetime(1970, 1, 2) + timedelta(minutes=m)), min_size=3, max_size=25)
many, few = (rules(max_examples=n, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]) for n in (80, 6))

def spell(moment, spelling):
    "The text of a moment, and the moment that it says."
    date, time = spelling
    shift = next((v for k, v in OFFSETS.items() if time.endswith(k)), timedelta(0))
    if "H" not in time and "I" not in time: moment = moment.replace(hour=0, minute=0)
    return (moment + shift).strftime(date + time), moment

def log(folder, texts):
    "A log with these times."
    (file := folder/"orders.csv").write_text("customer;at;amount\n" + "".join(f"{i % 7};{t};{i}\n" for i, t in enumerate(texts)))
    return file

def prepared(d, folder):
    "The times of the prepared log, in the file's order."
    prepare_events(d, folder/"out.parquet")
    return pd.read_parquet(folder/"out.parquet").event_timestamp.to_list()

@many
@given(moments, st.sampled_from(SPELLINGS))
def test_the_format_of_a_column_reads_what_was_written(drawn, spelling):
    drawn = [*drawn, datetime(2012, 8, 31), datetime(1999, 12, 13)]  # days over 12: they tell day from month
    texts, said = zip(*(spell(m, spelling) for m in drawn))
    date = find_date_format(UTC_TABLE, f"(SELECT unnest({list(texts)}) AS t)") or DateFormat("%Y%m%d")
    read = UTC_TABLE.execute(f"SELECT epoch_us({time_sql('t', date.form)}) FROM (SELECT unnest({list(texts)}) AS t)").fetchall()
    assert [datetime.fromtimestamp(us/1e6, UTC).replace(tzinfo=None) for us, in read] == list(said) and not date.alternative

@few
@given(moments, st.sampled_from(SPELLINGS))
def test_a_column_of_dates_is_read_as_it_was_written(tmp_path_factory, drawn, spelling):
    folder = tmp_path_factory.mktemp("dates")
    drawn = [*drawn, datetime(2012, 8, 31), datetime(1999, 12, 13)]  # days over 12: they tell day from month
    texts, said = zip(*(spell(m, spelling) for m in drawn))
    d = describe(log(folder, texts), DescribeOptions(kind="events"))
    assert prepared(d, folder) == list(said)
    write_description(d, folder/"dataset.toml")
    assert prepared(read_description(folder/"dataset.toml"), folder) == list(said)

@few
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=2), st.sampled_from("-/"), st.sampled_from(["%Y", "%y"]))
def test_day_or_month_first_is_asked_where_nothing_tells(tmp_path_factory, drawn, sign, year):
    folder = tmp_path_factory.mktemp("asked")
    days = [datetime(2012, m, d) for d, m in drawn] + [datetime(2012, 3, 4)]
    form = sign.join(["%d", "%m", year])
    file = log(folder, [t.strftime(form) for t in days])
    with pytest.raises(DataError, match="day or month is first; choose --time-format"): describe(file, DescribeOptions(kind="events"))
    assert prepared(describe(file, DescribeOptions(kind="events", time_format=form)), folder) == days

def test_a_late_row_tells_day_from_month(tmp_path):
    "The first 20,000 rows of a log in order of time may be of twelve days."
    days = [datetime(2011, 12, 1 + i//2500) for i in range(25_000)] + [datetime(2011, 12, 13)]
    d = describe(log(tmp_path, [t.strftime("%m/%d/%Y") for t in days]), DescribeOptions(kind="events"))
    assert prepared(d, tmp_path) == days
    assert any(f.rule == "time" and "month first (%m/%d/%Y): 1 values" in f.sentence for f in d.findings)

@pytest.mark.parametrize("stated, said", [("%Q", "--time-format %Q: it is iso, epoch"), ("%m/%d/%Y", "row 1, column at: no time by --time-format")])
def test_a_stated_format_that_does_not_fit_is_an_error(tmp_path, stated, said):
    file = log(tmp_path, ["31/08/2012"]*10)
    with pytest.raises(DataError, match=said): describe(file, DescribeOptions(kind="events", time_format=stated))

def test_a_form_edited_wrong_loses_no_row(tmp_path):
    d = describe(log(tmp_path, ["31/08/2012"]*10), DescribeOptions(kind="events"))
    write_description(d, tmp_path/"dataset.toml")
    text = (tmp_path/"dataset.toml").read_text().replace("%d/%m/%Y", "%m/%d/%Y")
    (tmp_path/"dataset.toml").write_text(text)
    with pytest.raises(DataError, match="row 1, column at: no time by the described form"): prepared(read_description(tmp_path/"dataset.toml"), tmp_path)

@pytest.mark.parametrize("versions", [["1.2.10", "4.11.25", "10.1.3"], ["1-2", "3-4"], ["12/24", "1/2"]])
def test_versions_and_fractions_are_no_dates(tmp_path, versions):
    rows = "".join(f"{versions[i % len(versions)]},{i % 17},{'yes' if i % 4 else 'no'}\n" for i in range(200))
    (file := tmp_path/"f.csv").write_text("app,age,churn\n" + rows)
    assert next(c.use for c in describe(file).columns if c.name == "app") == "category"

@few
@given(moments, st.sampled_from([s for s in SPELLINGS if s[0] not in ("%Y-%m-%d", "%Y%m%d")]))
def test_events_may_be_written_as_the_log_writes_them(drawn, spelling):
    texts, said = zip(*(spell(m, spelling) for m in drawn))
    form = spelling[0].replace("%-", "%")
    event = lambda t: {"event_id": 1, "customer_id": 1, "event_timestamp": t, "amount": 1}
    assert [parse_event(event(t), time_format=form)["event_timestamp"].replace(tzinfo=None) for t in texts] == list(said)
    assert parse_event(event("2012-08-31T10:00:00Z"), time_format=form)["event_timestamp"] == datetime(2012, 8, 31, 10, tzinfo=UTC)

def test_a_time_in_no_known_format_is_refused_with_both():
    said = parse_event({"event_id": 1, "customer_id": 1, "event_timestamp": "31/31/2012", "amount": 1}, time_format="%d/%m/%Y")
    assert said["field"] == "event_timestamp" and "or by %d/%m/%Y, as the log does" in said["message"]
