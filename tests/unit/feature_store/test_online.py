"Features of the moment, wiring - and every value of the online store against history, bit by bit, on SQLite and on a real Valkey server."
import asyncio
import contextlib
import datetime as dt
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hyp
from hypothesis import strategies as st
from online_store import bits, churn, customers

from churn_nb.ops import event_worker as ev
from churn_nb import features as f
from churn_nb.feature_store import online as stores_
from churn_nb.core.manifest import Store
from churn_nb.data.datasets import load_events
from churn_nb.core.workspace import Workspace
from churn_nb.core.errors import StoreUnavailable
from churn_nb.feature_store.online import REQUEST_TIME_FEATURES, FeastOnline, served_values, request_time, stored_values
from churn_nb.core.clock import advance_clock, current_time, utc
from deadlines import allow

WHERE = Store(entity="customer_id", feature_service="churn_v1_stored")
quick = lambda n: hyp(max_examples=n, deadline=None, derandomize=True)

# Features of the moment

seconds = st.integers(-10**9, 2*10**9)
@quick(300)
@given(st.lists(st.tuples(seconds, st.integers(0, 10**9), st.integers(1, 500)), min_size=1, max_size=6), st.integers(0, 10**9), st.floats(0, .999))
def test_request_time_equals_the_loop(people, later, fraction):
    first, last, moments = zip(*((a, a + width if n > 1 else a, n) for a, width, n in people))
    now = max(last) + later
    got = request_time(first, last, moments, [now + fraction]*len(people))
    assert [*got] == REQUEST_TIME_FEATURES
    for i, (a, b, n) in enumerate(zip(first, last, moments)):
        recency, tenure = (now - b)/86400, (now - a)/86400
        gap = (tenure - recency)/(n - 1) if n > 1 else math.nan
        ratio = recency/gap if gap else math.nan if recency == 0 else math.inf
        np.testing.assert_equal([float(got[k][i]) for k in REQUEST_TIME_FEATURES], [recency, tenure, gap, ratio])

def test_unknown_facts_give_unknown_features():
    got = request_time([None, 864000, 864000], [np.nan, 1728000, 864000], [None, 3, 1], [2592000]*3)
    np.testing.assert_equal({k: v.tolist() for k, v in got.items()}, {"recency_days": [np.nan, 10, 20], "tenure_days": [np.nan, 20, 20],
                                                                     "mean_gap_days": [np.nan, 5, np.nan], "gap_ratio": [np.nan, 2, np.nan]})

@quick(150)
@given(st.lists(st.tuples(st.none() | st.integers(1, 9), st.integers(0, 20), st.none() | st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=5), st.integers(10, 30))
def test_as_served_equals_the_loop(rows, now):
    got = {"w": [r[0] for r in rows], "w__ts": [r[1] for r in rows], "total": [r[2] for r in rows], "total__ts": [r[3] for r in rows]}
    want = [None if r[0] is None and r[2] is None else (r[2], r[0] if now - r[1] <= 5 else None) for r in rows]
    assert served_values(got, {"w": 5, "total": 0}, ["total", "w"], now) == want

# Every customer, every feature

@pytest.fixture(scope="module", params=["sqlite", "valkey"])
def everyone(request, tmp_path_factory, fill):
    "The store of all customers, with one as-of date for training, as only the present is asked here."
    more = {"stores__online": f"redis://127.0.0.1:{request.getfixturevalue('valkey').port}"} if request.param == "valkey" else {}
    return fill(tmp_path_factory.mktemp("everyone")/"ws", 0, features__train_as_of="1997-10-01", **more)

def test_online_equals_history_for_every_customer(everyone):
    s, names = everyone, f.feature_names(everyone)
    ids = sorted(set(load_events(s).customer_id))
    asked = pd.DataFrame({"customer_id": ids, "event_timestamp": pd.Timestamp(current_time(s))})
    store = f.apply_store(s)
    historical = f.historical_features(store, asked, s).set_index("customer_id").loc[ids]
    assert len(historical) == 23_570 and historical.recency_days.notna().all() and historical.transactions_90d.sum() > 5_000
    want = bits(historical, names)
    for i in range(0, len(ids), 4000):
        assert (bits(f.online(store, ids[i:i + 4000], s), names) == want[i:i + 4000]).all()
    api = FeastOnline(s)
    for i in range(0, len(ids), 4000):
        rows = api.read(WHERE, names, ids[i:i + 4000])
        assert (bits(pd.DataFrame(rows, columns=names).astype("float32")) == want[i:i + 4000]).all()
    log = load_events(s) # and the loop over all, in one go
    assert (bits(f.point_in_time(log, [current_time(s)], s.features.windows_hours), names) == want).all()
    assert f.parity(s, store) == (23_570, [], 0)

# A store of 500, on both servers

@pytest.fixture(params=["sqlite", "valkey"])
def some(request, copied):
    return copied("some", **({"stores__online": request.getfixturevalue("redis_store")} if request.param == "valkey" else {}))

def test_values_too_old_are_missing_also_for_the_api(some):
    s, names, ids = some, f.feature_names(some), customers(some)
    api = FeastOnline(s)
    fresh = pd.DataFrame(api.read(WHERE, names, ids), columns=names)
    ttl = dt.timedelta(days=s.features.ttl_days)
    start = current_time(s)
    advance_clock(s, start + ttl)
    assert fresh[f.expiring_features(s)].equals(pd.DataFrame(api.read(WHERE, names, ids), columns=names)[f.expiring_features(s)])
    now = advance_clock(s, start + ttl + dt.timedelta(seconds=1))
    old, log = pd.DataFrame(api.read(WHERE, names, ids), columns=names), load_events(s, 500)
    keep = [*f.LIFETIME, *REQUEST_TIME_FEATURES]
    assert old[f.expiring_features(s)].isna().all(axis=None)
    assert (bits(old.astype("float32"), keep) == bits(f.point_in_time(log, [now], s.features.windows_hours), keep)).all()
    assert api.read(WHERE, names, [ids[0], 10**9])[1] is None

def test_request_time_features_follow_the_clock(some):
    s, names, ids = some, f.feature_names(some), customers(some)[:60]
    api, store, rng = FeastOnline(s), f.apply_store(s), np.random.default_rng(5)
    log = load_events(s, 500)
    log = log[log.customer_id.isin(ids)]
    for us in sorted(rng.integers(1, 40*86400*10**6, 6)):
        t = advance_clock(s, utc("1998-07-01") + dt.timedelta(microseconds=int(us)))
        want = bits(f.point_in_time(log, [t], s.features.windows_hours), REQUEST_TIME_FEATURES)
        assert (bits(f.online(store, ids, s), REQUEST_TIME_FEATURES) == want).all()
        assert (bits(pd.DataFrame(api.read(WHERE, names, ids), columns=names).astype("float32"), REQUEST_TIME_FEATURES) == want).all()

# doctor

def features_line(out): return next(line for line in out.splitlines() if line[4:].startswith("features"))

@pytest.fixture
def cli(some, monkeypatch):
    monkeypatch.setenv("CHURN_STORES_ONLINE", some.stores.online)
    return some

def test_doctor_compares_online_with_the_log(cli, capsys):
    s = cli
    code, out, _ = churn(capsys, "doctor", "--workspace", s.paths.workspace)
    n = len(customers(s))
    assert features_line(out).startswith("ok") and f"{n} customers" in features_line(out) and code == 0
    store = f.apply_store(s)
    row = pd.read_parquet(f.offline_folder(s)/"as-of-19980701T000000.parquet").iloc[[7]]
    from feast.data_source import PushMode
    store.push("customer_push", row.assign(spend_total=np.nextafter(row.spend_total, np.float32(np.inf))), to=PushMode.ONLINE) # by the last bit
    code, out, _ = churn(capsys, "doctor", "--workspace", s.paths.workspace)
    assert features_line(out).startswith("!!") and str(row.customer_id.iloc[0]) in features_line(out) and "churn materialize" in features_line(out)
    assert code == 2
    code, out, _ = churn(capsys, "materialize", "--workspace", s.paths.workspace)
    assert code == 0 and out == f"{n} customers as of 1998-07-01T00:00:00Z\n"
    assert churn(capsys, "doctor", "--workspace", s.paths.workspace)[0] == 0

def test_doctor_sees_what_was_logged_and_not_refreshed(cli, capsys):
    s = cli
    c = customers(s)[3]
    assert ev.log_events(s, [ev.parse_event({"event_id": 10**7, "customer_id": c, "event_timestamp": "1998-06-30T12:00:00", "amount": 9})]) == ["new"]
    code, out, _ = churn(capsys, "doctor", "--workspace", s.paths.workspace)
    assert features_line(out).startswith("!!") and code == 2
    assert f.parity(s, f.apply_store(s))[1:] == ([c], 1)
    assert ev.catch_up(s, f.apply_store(s)) == 1
    code, out, _ = churn(capsys, "doctor", "--workspace", s.paths.workspace)
    assert features_line(out).startswith("ok") and code == 0

def test_doctor_reads_and_does_not_write(cli, capsys, monkeypatch):
    ws = Workspace(cli.paths.workspace)
    tree = lambda: {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in ws.feast.rglob("*") if p.is_file()}
    before = tree()
    assert features_line(churn(capsys, "doctor", "--workspace", ws.root)[1]).startswith("ok")
    monkeypatch.setenv("CHURN_STORES_ONLINE", "redis://127.0.0.1:1" if cli.stores.online == "sqlite" else "sqlite") # not what the API uses
    code, out, _ = churn(capsys, "doctor", "--workspace", ws.root)
    assert code == (4 if cli.stores.online == "sqlite" else 2) # at 127.0.0.1:1 nobody answers
    assert features_line(out).startswith("!!") and "churn materialize" in features_line(out)
    assert tree() == before
    (ws.feast/"feature_store.yaml").unlink()
    assert "empty" in features_line(churn(capsys, "doctor", "--workspace", ws.root)[1]) and not (ws.feast/"feature_store.yaml").exists()

# Wiring

def config(s): return json.loads((Workspace(s.paths.workspace).feast/"feature_store.yaml").read_text())

def test_two_workspaces_on_one_server_are_apart(copied, redis_store):
    a, b = (copied("few", to, stores__online=redis_store) for to in "ab")
    assert config(a)["project"] != config(b)["project"]
    c = customers(a)[0]
    assert ev.push_rows(a, lambda: f.apply_store(a), [{"event_id": 10**7, "customer_id": c, "event_timestamp": "1998-06-30T12:00:00", "amount": 9}]) == (["new"], "")
    one, two = (f.online(f.apply_store(s), [c], s).transactions_total.iloc[0] for s in (a, b))
    assert one == two + 1
    assert f.parity(a, f.apply_store(a)) == (40, [], 0) == f.parity(b, f.apply_store(b))

@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_the_small_door_gives_what_get_online_features_gives(copied, redis_store, kind):
    s = copied("few", **({"stores__online": redis_store} if kind == "redis" else {}))
    store, ids = f.apply_store(s), [*customers(s), 0, 10**9, 2**63 - 1, -2**63] # known, and some that nobody knows
    service = store.get_feature_service(WHERE.feature_service)
    theirs = store.get_online_features(features=service, entity_rows=[{"customer_id": i} for i in ids]).to_dict(include_event_timestamps=True)
    ours = {}
    for p in service.feature_view_projections:
        ours |= stored_values(store, store.get_feature_view(p.name), "customer_id", [x.name for x in p.features], ids)
    assert ours == {k: v for k, v in theirs.items() if k in ours} and {*theirs} - {*ours} <= {"customer_id", "customer_id__ts"}
    assert None in ours["spend_total"] and len({*ours["spend_total"]}) > 30 and {type(v) for v in ours["transactions_total"]} == {type(v) for v in theirs["transactions_total"]}
    names = f.feature_names(s)
    twice = FeastOnline(s).read(WHERE, names, [ids[0], 0, ids[0], ids[1]])
    assert twice[0] == twice[2] != twice[3] and twice[1] is None

def test_the_password_stays_in_the_environment(copied, monkeypatch, valkey):
    import redis
    secret = "s3cret-and-nowhere-else"
    admin = redis.Redis(port=valkey.port)
    admin.config_set("requirepass", secret)
    try:
        monkeypatch.setenv("CHURN_REDIS_PASSWORD", secret)
        s = copied("few", stores__online=f"redis://127.0.0.1:{valkey.port}")
        assert f.parity(s, f.apply_store(s)) == (40, [], 0)
        ask = lambda: FeastOnline(s).read(WHERE, f.feature_names(s), customers(s)[:3])
        assert None not in ask()
        for wrong in ("nonsense", ""):
            monkeypatch.setenv("CHURN_REDIS_PASSWORD", wrong)
            with pytest.raises(StoreUnavailable) as e: ask()
            assert "\n" not in str(e.value) and secret not in str(e.value)
        for file in Workspace(s.paths.workspace).root.rglob("*"):
            assert not file.is_file() or secret.encode() not in file.read_bytes(), file
        assert "${CHURN_REDIS_PASSWORD}" in config(s)["online_store"]["connection_string"]
    finally: redis.Redis(port=valkey.port, password=secret).config_set("requirepass", "")

def test_the_config_is_written_only_where_it_changes(tmp_path, configured):
    Workspace(tmp_path).open()
    path = stores_.write_config(s := configured(tmp_path))
    before = path.stat().st_mtime_ns, config(s)
    assert stores_.write_config(s).stat().st_mtime_ns == before[0] and config(s)["online_store"] == {"type": "sqlite", "path": "online.db"}
    other = configured(tmp_path, stores__online="redis://127.0.0.1:7/3")
    stores_.write_config(other)
    text = config(other)["online_store"]["connection_string"]
    assert text.startswith("127.0.0.1:7,") and "db=3" in text and "ssl=false" in text and "password" not in text
    project = config(other)["project"]
    assert re.fullmatch(r"churn_[0-9a-f]{8}", project) and config_again(other)["project"] == project

def config_again(s): stores_.write_config(s); return config(s)

def test_the_api_takes_redis_by_its_own_address(copied, redis_store):
    "Where a model is trained the same server may have another name than where it serves."
    s = copied("few", stores__online=redis_store)
    path, ids, names = Workspace(s.paths.workspace).feast/"feature_store.yaml", customers(s)[:3], f.feature_names(s)
    expected = FeastOnline(s).read(WHERE, names, ids)
    host = redis_store.removeprefix("redis://").partition("/")[0]
    path.write_text(path.read_text().replace(host, "redis.elsewhere.invalid:6379"))
    assert None not in expected and FeastOnline(s).read(WHERE, names, ids) == expected

def test_a_store_may_be_opened_before_the_first_request(copied, tmp_path, configured, caplog):
    api = FeastOnline(s := copied("few"))
    asyncio.run(api.warm(WHERE, f.feature_names(s)))
    assert api.imported and api.store and not caplog.records
    asyncio.run(FeastOnline(configured(tmp_path/"nothing")).warm(WHERE, ["transactions_90d"]))
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == ["no prediction by customer_id yet"], "told, and the API starts"

def test_a_missing_store_and_a_missing_feature_are_distinguished(copied, tmp_path, configured):
    with pytest.raises(StoreUnavailable, match="churn run"): FeastOnline(configured(tmp_path/"nothing")).read(WHERE, ["transactions_90d"], [1])
    s = copied("few")
    with pytest.raises(StoreUnavailable, match="no shoe_size.*churn run"): FeastOnline(s).read(WHERE, ["shoe_size"], customers(s)[:1])
    api = FeastOnline(s)
    got = asyncio.run(api.lookup(WHERE, ["recency_days", "transactions_total"], [customers(s)[0], 10**9]))
    assert got[1] is None and got[0][1] >= 1

def test_only_the_first_opening_may_take_long(copied):
    "It imports; after a failure a store that opens slowly is a store that is away."
    s = copied("few", serve__store_timeout_ms=1000)
    api, ids = FeastOnline(s), customers(s)[:2]
    opened, ask = api._open, lambda: asyncio.run(api.lookup(WHERE, ["transactions_total"], ids))
    def slow(): time.sleep(1.5); return opened()
    api._open = slow
    assert None not in (first := ask())
    api.store, api.services = None, {} # as a failure leaves it
    with pytest.raises(StoreUnavailable, match="within 1000 ms"): ask()
    api.pool.submit(int).result() # what was asked goes on, and opens it
    assert ask() == first

def test_typeguard_skips_feast_and_nothing_else(tmp_path):
    (tmp_path/"guarded.py").write_text("from typeguard import typechecked\n@typechecked\ndef double(n:int): return 2*n\n@typechecked(collection_check_strategy=None)\nclass Other:\n    def __init__(self, n:int): self.n = n\n")
    code = """import typeguard
from churn_nb.feature_store.online import import_feast
feast, again = import_feast(), import_feast()
import guarded
print("typeguard" in str(feast.Entity.__init__.__code__.co_names), end=" ")
for f in (guarded.double, guarded.Other):
    try: f("three")
    except typeguard.TypeCheckError: print("refused", end=" ")"""
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=allow(120))
    assert r.stdout.split() == ["False", "refused", "refused"], r.stdout + r.stderr

def test_times_are_read_in_utc_whatever_another_package_registered():
    "IPython registers a converter of its own for the whole process; Feast's reads must not meet it."
    sqlite3.register_converter("timestamp", lambda text: dt.datetime.fromisoformat(text.decode()))
    stores_.import_feast()
    at = dt.datetime(2024, 3, 31, 1, tzinfo=dt.UTC)
    with contextlib.closing(sqlite3.connect(":memory:", detect_types=sqlite3.PARSE_DECLTYPES)) as db:
        db.execute("CREATE TABLE t (at timestamp)")
        db.execute("INSERT INTO t VALUES (?)", [at])
        assert db.execute("SELECT at FROM t").fetchone() == (at,)
