"""The feature SQL on Spark: transpiled by sqlglot, it gives what DuckDB gives, to the last digit of every column.
Spark is 450 MB and needs Java, so it lives in an environment of its own, `.bench/spark`, and runs as a process of its own: support/spark_features.py."""
import os, re, subprocess, sys, warnings
from datetime import datetime
import duckdb, pytest
from churn_nb.data.datasets import load_events
from churn_nb.features import known_sql, split_dates, windows_sql
from churn_nb.core.settings import load_settings
from churn_nb.core.clock import utc
from deadlines import allow
from paths import ROOT, SUPPORT

sys.path.insert(0, str(ROOT/"bench"))
from peers import events_sql, no_spark, spark_python # noqa: E402

WINDOWS = [24, 168, 720, 2160]

@pytest.fixture(scope="module")
def python():
    if why := no_spark():
        warnings.warn(f"THE FEATURE SQL WAS NOT TRIED ON SPARK: {why}", stacklevel=1)
        pytest.skip(why)
    return spark_python()

def cdnow(con):
    "69,659 purchases and the as-of dates of the settings; days only, so many events share their second."
    s = load_settings()
    con.register("log", load_events(s))
    return "SELECT event_id, customer_id, event_timestamp, created_timestamp, amount FROM log", [d for dates in split_dates(s).values() for d in dates]

def two_million(con):
    "Late events, events stamped before they happened, shared seconds, and an as-of moment within a second."
    return events_sql(2_000_000), [datetime(2024, 7, 1), datetime(2024, 12, 1, 0, 0, 0, 500_000)]

def test_spark_adds_two_packages_to_the_lock():
    assert sorted(re.findall(r"^(\S+)==", (ROOT/"requirements-spark.lock").read_text(), re.M)) == ["py4j", "pyspark"]

@pytest.mark.parametrize("data", [cdnow, two_million])
def test_spark_equals_duckdb(python, data, tmp_path):
    con = duckdb.connect(config={"temp_directory": str(tmp_path/"spill")})
    con.execute("SET TimeZone = 'UTC'")
    events, as_of = data(con)
    con.execute(f"COPY ({events}) TO '{tmp_path}/events.parquet'")
    con.execute(f"CREATE VIEW events AS FROM '{tmp_path}/events.parquet'")
    con.execute(f"CREATE TABLE known AS {known_sql()}")
    env = {k: os.environ[k] for k in ("PATH", "HOME", "JAVA_HOME") if k in os.environ} | {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": str(tmp_path/"scratch")}
    subprocess.run([python, SUPPORT/"spark_features.py", tmp_path/"events.parquet", tmp_path, *(utc(a).isoformat() for a in as_of)], check=True, env=env, timeout=allow(1800))
    columns = lambda table: [(name, kind.removesuffix(" WITH TIME ZONE")) for name, kind, *_ in con.execute(f"DESCRIBE {table}").fetchall()]
    rows = shared = 0
    for i, a in enumerate(as_of):
        con.execute(f"CREATE OR REPLACE TABLE ours AS {windows_sql(WINDOWS, a)}")
        con.execute(f"CREATE OR REPLACE TABLE theirs AS FROM '{tmp_path}/spark{i}/*.parquet'")
        n, s = con.execute("SELECT count(*), sum(transactions_total - transaction_moments) FROM ours").fetchone()
        assert columns("ours") == columns("theirs") and con.execute("SELECT count(*) FROM theirs").fetchone() == (n,)
        assert con.execute("SELECT * FROM ours EXCEPT ALL SELECT * FROM theirs LIMIT 3").fetchall() == []
        rows, shared = rows + n, shared + s
    print(f"{data.__name__}: {rows:,} rows equal; {shared:,} events shared their second with one before")
    assert rows > 50_000 and shared > 5_000
    assert con.execute("SELECT count(*) FROM events WHERE created_timestamp <> event_timestamp").fetchone()[0] > 30_000 or data is cdnow
