"The log of what the API was asked: to the bit, whole files or none, bounded, and nobody waits for it or is named in it."
import itertools, json, os, re, shutil, subprocess, sys, textwrap, threading, time
from pathlib import Path
from types import SimpleNamespace
import httpx, numpy as np, pandas as pd, pyarrow.parquet as pq, pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families as parse
import churn_nb.monitoring.request_log
from churn_nb.core.manifest import Feature, SelfTest
from churn_nb.registry.bundle import switch_current, switch_shadow, write_bundle
from churn_nb.monitoring.logged_traffic import read_requests, read_shadow
from churn_nb.monitoring.request_log import AnsweredRows, DriftGauges, RequestLog, RequestLogOptions, add_file, columns_of, delete_oldest
from churn_nb.serve import create_app
from churn_nb.core.settings import load_settings
from churn_nb.serving.http.telemetry import Metrics
from deadlines import allow
from serving import Server, manifest, onnx_model, probability, put_live, rss_mb, serving, settings_for, wait_for

FIXED = ["at", "customer_id", "model_version", "probability"]
ROW = {"age": 42, "usage_minutes": 310.5, "gap": None}
row = lambda x: dict(zip(ROW, x, strict=True))
bits = lambda x: np.ascontiguousarray(x, np.float32).view(np.uint32).tolist()
DAY = 86_400_000
model = lambda version="1", names=("a", "b"): SimpleNamespace(manifest=SimpleNamespace(version=version, names=[*names]))
asked = lambda at=0, n=1, names=("a", "b"): AnsweredRows(1772323200000 + at, model(names=names).manifest, np.ones((n, len(names)), np.float32), [.5] * n, [*range(n)])

def files(folder): return sorted(folder.glob("*/*.parquet"))
def counted(metrics, name): return {tuple(s.labels.values()): s.value for f in parse(metrics.text().decode()) for s in f.samples if s.name == name}
def dropped(requests): return {k[0]: v for k, v in counted(requests.metrics, "churn_request_log_dropped_total").items()}
def written(requests): return counted(requests.metrics, "churn_request_log_rows_total")[()]
def quiet(folder, **kw):
    "A log whose thread writes when it is told to."
    clock = kw.pop("clock", time.time)
    return RequestLog(folder, RequestLogOptions(**{"seconds": 3600, **kw}), Metrics(), clock)

# --- a running server ---

SENT = [("/predict", ROW), ("/predict", row([20.1, 5e-42, -0.0])), ("/predict/batch", [ROW, row([70, .1, 0]), row([1, 2e30, None])]), ("/predict?explain=true", row([1, 2, 3])),
        ("/predict", {"age": 1}), ("/predict", {"customer_id": 5}), ("/predict/batch", []), ("/predict/batch", [row([i / 7, 30, None]) for i in range(200)])]

def test_only_answered_rows_are_logged_bit_for_bit(tmp_path):
    put_live(tmp_path)
    began = pd.Timestamp.now("UTC").floor("ms")
    with serving(tmp_path, request_log_seconds=.3) as s, httpx.Client(base_url=s.url, timeout=allow(90)) as c:
        answers = [(body, r.json()) for path, body in SENT if (r := c.post(path, json=body, headers={"X-Request-Id": "findme"})).status_code == 200]
        assert wait_for(lambda: "churn_request_log_rows_total 206.0" in c.get("/metrics").text)
        assert wait_for(lambda: len(read_requests(tmp_path/"requests")) == 206)
    rows = [r for body, _ in answers for r in (body if isinstance(body, list) else [body])]
    p = [a["probability"] for _, got in answers for a in (got if isinstance(got, list) else [got])]
    log = read_requests(tmp_path/"requests")
    assert log.columns.tolist() == [*FIXED, *ROW] and log.dtypes.astype(str).tolist() == ["datetime64[ns, UTC]", "Int64", "object", "float64", *["float32"] * 3]
    assert log.probability.tolist() == p
    X = log[[*ROW]].to_numpy()
    want = np.array([[*r.values()] for r in rows], np.float32)
    assert np.array_equal(np.isnan(X), np.isnan(want)) and bits(np.nan_to_num(X)) == bits(np.nan_to_num(want))
    assert log.customer_id.isna().all() and set(log.model_version) == {"1"} and log.attrs["broken"] == []
    assert log["at"].is_monotonic_increasing and began <= log["at"].iloc[0] and log["at"].iloc[-1] <= pd.Timestamp.now("UTC")
    assert log["at"].iloc[-200:].nunique() == 1 # a batch has one time

def test_a_file_holds_nothing_about_the_caller(tmp_path):
    put_live(tmp_path)
    with serving(tmp_path, request_log_seconds=3600) as s:
        httpx.post(s.url + "/predict", json=ROW, headers={"X-Request-Id": "find-me", "User-Agent": "find-me", "Authorization": "find-me"}, timeout=allow(90))
    (f,) = files(tmp_path/"requests") # written at SIGTERM
    table = pq.read_table(f)
    assert table.schema.names == [*FIXED, *ROW] and [str(t) for t in table.schema.types] == ["timestamp[us, tz=UTC]", "int64", "string", "double", *["float"] * 3]
    meta = pq.ParquetFile(f).metadata
    assert meta.row_group(0).column(0).compression == "ZSTD" and table.column("gap").null_count == 1 and table.column("customer_id").null_count == 1
    assert b"find-me" not in f.read_bytes() and "127.0.0.1" not in str(table.to_pydict()) and f.stat().st_mode & 0o777 == 0o644
    assert re.fullmatch(rf"\d{{6}}-{s.pid}-0\.parquet", f.name) and re.fullmatch(r"\d{4}-\d\d-\d\d", f.parent.name)

def test_sigterm_writes_the_waiting_rows(tmp_path, capsys):
    "The process loads neither pandas nor pyarrow."
    put_live(tmp_path)
    loaded = lambda pid: {m for m in ("pandas", "pyarrow", "duckdb") if m in Path(f"/proc/{pid}/maps").read_text()}
    with serving(tmp_path, python=sys.executable, request_log_seconds=1.5) as s, httpx.Client(base_url=s.url, timeout=allow(90)) as c:
        for _ in range(5): assert c.post("/predict/batch", json=[ROW] * 500).status_code == 200
        before, mb = loaded(s.pid), rss_mb(s.pid)
        assert wait_for(lambda: files(tmp_path/"requests"))
        assert wait_for(lambda: "churn_request_log_rows_total 2500.0" in c.get("/metrics").text)
        after, mb_after = loaded(s.pid), rss_mb(s.pid)
        for _ in range(5): assert c.post("/predict/batch", json=[ROW] * 500).status_code == 200
    assert len(read_requests(tmp_path/"requests")) == 5000
    assert before == after == {"duckdb"} # from the start, when nobody waits for it
    assert mb < 250 and mb_after < 300
    with capsys.disabled(): print(f"\nAPI: RSS {mb:.0f} MB before the log's first file, {mb_after:.0f} MB after it")

def test_kill_9_leaves_what_was_written_and_loses_what_waits(tmp_path):
    put_live(tmp_path)
    s = Server(tmp_path, request_log_seconds=.4)
    assert httpx.post(s.url + "/predict/batch", json=[ROW] * 10, timeout=allow(90)).status_code == 200
    assert wait_for(lambda: files(tmp_path/"requests"))
    s.process.kill(); s.process.wait(); s.process.stdout.close()
    log = read_requests(tmp_path/"requests")
    assert len(log) == 10 and log.attrs["broken"] == []

WRITER = textwrap.dedent("""
    import sys, time
    from types import SimpleNamespace
    import numpy as np
    from churn_nb.monitoring.request_log import RequestLog, RequestLogOptions
    folder, version, most_mb, rounds = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    m, rng = SimpleNamespace(manifest=SimpleNamespace(version=version, names=["a", "b"])), np.random.default_rng(0)
    log = RequestLog(folder, RequestLogOptions(seconds=3600, most_mb=most_mb))
    log.start = lambda: None
    for i in range(rounds):
        log.put(m, rng.random((2000, 2), np.float32), [.5] * 2000, [i] * 2000)
        log.flush()
        print(i, flush=True)
""")
def writer(folder, version, most_mb=1000, rounds=10**6): return subprocess.Popen([sys.executable, "-c", WRITER, folder, version, str(most_mb), str(rounds)], stdout=subprocess.PIPE, text=True)

def test_a_writer_killed_at_any_moment_leaves_only_readable_files(tmp_path):
    rng, said = np.random.default_rng(0), 0
    for k in range(4):
        w = writer(tmp_path, str(k))
        for _ in range(2): w.stdout.readline()
        time.sleep(rng.uniform(0, .03))
        w.kill(); said += len(w.stdout.readlines()) + 2; w.wait(); w.stdout.close()
    log = read_requests(tmp_path)
    assert log.attrs["broken"] == [] and set(log.groupby(["model_version", "customer_id"]).size()) == {2000} and len(log) / 2000 >= said

def test_two_processes_write_and_prune_one_folder(tmp_path):
    writers = [writer(tmp_path, v, .1, 15) for v in "ab"]
    outs = [w.communicate(timeout=allow(300))[0] for w in writers]
    assert [w.returncode for w in writers] == [0, 0] and [len(o.split()) for o in outs] == [15, 15]
    size = sum(f.stat().st_size for f in files(tmp_path))
    one = max(f.stat().st_size for f in files(tmp_path))
    assert size <= .1e6 + one and len(files(tmp_path)) > 1 and not [*tmp_path.glob("*/.*")]
    whole = tmp_path/"whole"
    writers = [writer(whole, v, 100, 5) for v in "ab"]
    for w in writers: w.communicate(timeout=allow(300))
    log = read_requests(whole)
    assert log.attrs["broken"] == [] and log.groupby(["model_version", "customer_id"]).size().to_dict() == {(v, i): 2000 for v in "ab" for i in range(5)}

FULL = textwrap.dedent("""
    import json, sys, threading
    from pathlib import Path
    from types import SimpleNamespace
    import logging, numpy as np
    from churn_nb.monitoring.request_log import RequestLog, RequestLogOptions
    from churn_nb.serving.http.telemetry import Metrics
    said = []
    logging.getLogger("churn_nb.monitoring.request_log").addFilter(lambda r: said.append(r.getMessage()))
    log, rng = RequestLog(sys.argv[1] + "/requests", RequestLogOptions(seconds=3600), Metrics()), np.random.default_rng(0)
    m = SimpleNamespace(manifest=SimpleNamespace(version="1", names=[f"f{i}" for i in range(20)]))
    log.start = lambda: None
    def ask(n, times=1):
        for _ in range(times):
            log.put(m, rng.random((n, 20), np.float32), [.5] * n, [1] * n)
            log.flush()
    ask(10); ask(20_000, 3); ask(10) # 1.6 MB do not fit on it, the rest does
    names = sorted(f.name[-8:] for f in Path(sys.argv[1]).glob("requests/*/*"))
    text = [t for t in log.metrics.text().decode().splitlines() if t.startswith("churn_request_log") and "created" not in t]
    print(json.dumps([names, text, said]))
""")

def test_a_full_disk_is_counted_and_reported_once(tmp_path):
    "No half-written file remains."
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$1"', "sh", tmp_path], check=False, capture_output=True).returncode:
        pytest.skip("NOT TESTED: a full disk. This machine lets nobody mount a small tmpfs (unshare -rm, mount -t tmpfs)")
    p = subprocess.run(["unshare", "-rm", "sh", "-c", mount, "sh", tmp_path, sys.executable, FULL], check=True, capture_output=True, text=True, timeout=allow(300))
    names, text, said = json.loads(p.stdout)
    assert names == [".parquet"] * 2
    assert text == ["churn_request_log_rows_total 20.0", 'churn_request_log_dropped_total{reason="unwritten"} 60000.0']
    assert len(said) == 1 and "No space left on device" in said[0], said

# --- in process ---

@pytest.fixture
def app(tmp_path):
    "An app that logs, with both shadow and request log; not started by a lifespan."
    put_live(tmp_path)
    write_bundle(tmp_path/"bundle", onnx_model(1.), manifest("2", 1.)); switch_shadow(tmp_path/"bundle", "2")
    app = create_app(settings_for(tmp_path, shadow="yes", request_log_seconds=3600))
    app.state.shadow.challenger.refresh()
    yield app
    app.state.shadow.close(); app.state.request_log.close()

def test_sent_ids_are_logged_and_shadow_gets_equal_rows(app, tmp_path):
    async def lookup(where, names, ids): return [(30., 100., None) for _ in ids]
    app.state.store.lookup, c = lookup, TestClient(app)
    got = c.post("/predict/batch", json=[{"customer_id": 2**40 + 1}, ROW, {"customer_id": -3}]).json() + [c.post("/predict", json={"customer_id": 7}).json()]
    app.state.shadow.close(); app.state.request_log.close()
    log, shadow = read_requests(tmp_path/"requests"), read_shadow(tmp_path/"shadow")
    assert log.customer_id.fillna(0).tolist() == shadow.customer_id.fillna(0).tolist() == [2**40 + 1, 0, -3, 7]
    assert log.probability.tolist() == shadow.p_champion.tolist() == [a["probability"] for a in got]
    assert log.age.tolist() == [30, 42, 30, 30]

def test_a_share_of_zero_disables_the_request_log(tmp_path):
    "Otherwise the log is made as the settings define it."
    put_live(tmp_path)
    app = create_app(settings_for(tmp_path, request_log=0))
    assert app.state.request_log is None and TestClient(app).post("/predict", json=ROW).status_code == 200 and not (tmp_path/"requests").exists()
    log = create_app(settings_for(tmp_path, request_log=.25, request_log_mb=7, request_log_seconds=9)).state.request_log
    assert (log.folder, log.options, log.writer.thread) == (tmp_path/"requests", RequestLogOptions(share=.25, most_mb=7, seconds=9), None)

def test_a_log_that_cannot_be_written_changes_no_answer(app, tmp_path, caplog):
    want = TestClient(app).post("/predict", json=ROW).content
    (tmp_path/"requests").write_text("a file")
    for _ in range(3):
        assert TestClient(app).post("/predict", json=ROW).content == want
        app.state.request_log.flush()
    assert 'churn_request_log_dropped_total{reason="unwritten"} 4.0' in TestClient(app).get("/metrics").text
    assert len([r for r in caplog.records if r.name == "churn_nb.monitoring.request_log"]) == 1
    (tmp_path/"requests").unlink()
    TestClient(app).post("/predict", json=ROW); app.state.request_log.flush()
    assert len(read_requests(tmp_path/"requests")) == 1

def test_rows_of_v2_are_logged_without_a_customer(app, tmp_path):
    body = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}]}
    answer = TestClient(app).post("/v2/models/churn/infer", json=body)
    refused = TestClient(app).post("/v2/models/churn/infer", json={"inputs": []})
    app.state.request_log.close()
    seen = read_requests(tmp_path/"requests")
    assert (answer.status_code, refused.status_code // 100) == (200, 4)
    assert np.float32(seen.probability).tolist() == np.float32(answer.json()["outputs"][0]["data"]).tolist()
    assert seen.customer_id.isna().all() and seen.iloc[:, 4:].to_numpy().tolist() == [[1, 2, 3], [4, 5, 6]]

def test_a_feature_named_like_a_log_column_prevents_logging(tmp_path, caplog):
    "The model is served all the same."
    names = ["age", "Probability", "at"]
    m = manifest(features=[Feature(name=n) for n in names], example=dict(zip(names, [1., 2., 3.], strict=True)), reference=None,
                 self_test=SelfTest(rows=[[1., 2., 3.]], probability=probability([[1, 2, 3]]).tolist()))
    write_bundle(tmp_path/"bundle", onnx_model(), m); switch_current(tmp_path/"bundle", "1")
    app = create_app(settings_for(tmp_path, request_log_seconds=3600))
    for _ in range(3):
        assert TestClient(app).post("/predict", json=m.example).status_code == 200
        app.state.request_log.flush()
    app.state.request_log.close()
    assert not files(tmp_path/"requests") and 'reason="names"} 3.0' in app.state.current.metrics.text().decode()
    told = [r.getMessage() for r in caplog.records if r.name == "churn_nb.monitoring.request_log"]
    assert len(told) == 1 and "'Probability'" in told[0] and "rename the feature" in told[0]

def test_feature_names_and_folders_may_be_any_other_text(tmp_path):
    names = ["Day Mins", "class", "f0", 'a"b - at `$.c<', "é", "c0", "rows", "'; DROP TABLE x; --", "select", "漢"]
    log = quiet(tmp_path/"it's a \"log\" %41 {b} [c]*")
    X = np.random.default_rng(0).random((3, len(names)), np.float32)
    log.put(model("v'1\"é", names), X, [.1, .2, .3], [1, None, 3]); log.close()
    back = read_requests(log.folder)
    assert back.columns.tolist() == [*FIXED, *names] and bits(back[names]) == bits(X) and set(back.model_version) == {"v'1\"é"}

def test_every_float32_comes_back_to_the_bit(tmp_path):
    X = np.random.default_rng(0).integers(0, 2**32, (20_000, 3), np.uint64).astype(np.uint32).view(np.float32)
    p = np.random.default_rng(1).random(len(X)).tolist()
    log = quiet(tmp_path)
    for i in range(0, len(X), 1000): log.put(model(names="abc"), X[i:i + 1000], p[i:i + 1000], [*range(i, i + 1000)])
    log.close()
    back = read_requests(tmp_path).sort_values("customer_id")
    got, gap = back[[*"abc"]].to_numpy(), np.isnan(X)
    assert np.array_equal(gap, np.isnan(got)) and np.array_equal(X.view(np.uint32)[~gap], got.view(np.uint32)[~gap]) and back.probability.tolist() == p and gap.sum() > 50

@pytest.mark.parametrize("share", [0., .01, .5, 1.])
def test_whole_requests_are_sampled_by_share_and_seed(tmp_path, share):
    n, sizes = 20_000, np.random.default_rng(0).integers(1, 4, 20_000)
    def kept(seed):
        log = quiet(tmp_path, share=share, seed=seed, most_rows=10**6)
        log.start = lambda: None
        for i, b in enumerate(sizes.tolist()): log.put(model(), np.ones((b, 2), np.float32), [.5] * b, [i] * b)
        assert log.waiting == sum(len(a.p) for a in log.answered) and not dropped(log)
        return [(i, len([*rows])) for a in log.answered for i, rows in itertools.groupby(a.ids)]
    first = kept(1)
    assert all(b == sizes[i] for i, b in first) and abs(len(first) - n * share) <= 4.5 * (n * share * (1 - share))**.5
    assert first == kept(1) and (share in (0, 1) or first != kept(2))

def test_rows_over_the_limit_are_dropped_and_counted(tmp_path, caplog):
    "Requests are dropped whole, and a buffer that is half full wakes the writer."
    log = quiet(tmp_path, most_rows=10)
    log.start = lambda: None
    put = lambda n: log.put(model(), np.ones((n, 2), np.float32), [.5] * n, [1] * n)
    put(4); assert not log.writer.wake.is_set()
    put(4); assert log.writer.wake.is_set() and log.waiting == 8
    put(3); put(100); assert dropped(log) == {"full": 103}
    put(2); assert log.waiting == 10 and len(caplog.records) == 1
    log.flush(); assert log.waiting == 0 and written(log) == 10
    put(10); put(1); assert log.waiting == 10 and len(caplog.records) == 2 # a new state
    log.close()
    assert len(read_requests(tmp_path)) == 20
    live = quiet(tmp_path/"live", most_rows=10) # seconds=3600: only the half wakes it
    live.put(model(), np.ones((6, 2), np.float32), [.5] * 6, [1] * 6)
    assert wait_for(lambda: files(tmp_path/"live"))
    live.close()

def test_concurrent_puts_lose_and_duplicate_no_row(tmp_path):
    log, m = quiet(tmp_path, seconds=.01), model()
    def put(t):
        for i in range(300): log.put(m, np.full((2, 2), i, np.float32), [.5, .5], [t * 1000 + i] * 2)
    threads = [threading.Thread(target=put, args=[t]) for t in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    log.close()
    assert read_requests(tmp_path).customer_id.value_counts().to_dict() == {t * 1000 + i: 2 for t in range(4) for i in range(300)}
    assert (log.waiting, written(log), log.writer.thread) == (0, 2400, None)

def test_a_hanging_disk_blocks_neither_requests_nor_shutdown(tmp_path, monkeypatch, caplog):
    gate, log = threading.Event(), quiet(tmp_path, seconds=.01)
    real = churn_nb.monitoring.request_log.write_rows
    monkeypatch.setattr(churn_nb.monitoring.request_log, "write_rows", lambda *a: gate.wait(allow(30)) and real(*a))
    log.put(model(), np.ones((1, 2), np.float32), [.5], [1])
    time.sleep(.1)
    began = time.perf_counter()
    for i in range(100): log.put(model(), np.ones((1, 2), np.float32), [.5], [i])
    assert time.perf_counter() - began < 1 and log.waiting == 101
    thread = log.writer.thread
    log.close(.1)
    assert "the disk hangs; 101 rows are not in the log" in caplog.text
    gate.set()
    thread.join(allow(300)) # a thread in the midst of DuckDB would abort the end of these tests
    assert not thread.is_alive()

def test_a_machine_without_a_thread_left_loses_nothing(tmp_path, monkeypatch):
    log = quiet(tmp_path)
    with monkeypatch.context() as m:
        def none(self): raise RuntimeError("can't start new thread")
        m.setattr(threading.Thread, "start", none)
        log.put(model(), np.ones((1, 2), np.float32), [.5], [1])
    log.put(model(), np.ones((1, 2), np.float32), [.5], [2])
    log.close()
    assert read_requests(tmp_path).customer_id.tolist() == [1, 2]

ENDS = textwrap.dedent("""
    import sys, time
    from types import SimpleNamespace
    import numpy as np
    from churn_nb.monitoring.request_log import RequestLog, RequestLogOptions
    log, m = RequestLog(sys.argv[1], RequestLogOptions(seconds=.001)), SimpleNamespace(manifest=SimpleNamespace(version="1", names=["a"]))
    end = time.monotonic() + .5
    while time.monotonic() < end:
        if log.waiting < 20_000: log.put(m, np.ones((1000, 1), np.float32), [.5] * 1000, [1] * 1000)
        time.sleep(.001)
    log.put(m, np.ones((1, 1), np.float32), [.5], [2])
""")

def test_a_process_ending_during_a_write_exits_cleanly(tmp_path):
    p = subprocess.run([sys.executable, "-c", ENDS, tmp_path], check=False, capture_output=True, text=True, timeout=allow(300))
    assert (p.returncode, p.stderr) == (0, "") and read_requests(tmp_path).customer_id.eq(2).sum() == 1

def test_without_duckdb_the_message_names_what_to_install(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    log = quiet(tmp_path)
    log.put(model(), np.ones((1, 2), np.float32), [.5], [1]); log.close()
    assert dropped(log) == {"unwritten": 1} and "install churn-nb[serve]" in caplog.text and not [*tmp_path.glob("*/*")]

def test_an_unexpected_error_is_logged_by_its_type_alone(tmp_path, monkeypatch, caplog):
    def fail(*a): raise ArithmeticError("customer 8675309")
    monkeypatch.setattr(churn_nb.monitoring.request_log, "write_rows", fail)
    log = quiet(tmp_path)
    log.put(model(), np.ones((1, 2), np.float32), [.5], [1]); log.close()
    assert dropped(log) == {"unwritten": 1} and "ArithmeticError" in caplog.text and "8675309" not in caplog.text and not [*tmp_path.glob("*/*")]

# --- files ---

def test_files_of_one_second_and_process_never_overwrite_each_other(tmp_path):
    threads = [threading.Thread(target=lambda: [add_file(tmp_path, columns_of([asked()])) for _ in range(10)]) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert [len(files(tmp_path)), len(read_requests(tmp_path)), len([*tmp_path.glob("*/.*")])] == [40, 40, 0]

def test_each_day_and_model_has_its_own_files(tmp_path):
    "Late rows are sorted in by their time."
    at = iter([1772409600.5, 1772409599.9996, 1772409600.0, 1772409601.0])
    log = quiet(tmp_path, clock=lambda: next(at))
    first, second = model("1", "ab"), model("2", "bc")
    for i, m in enumerate([first, first, first, second]): log.put(m, np.full((1, 2), i, np.float32), [.5], [i])
    log.close()
    assert [f"{f.parent.name}/{f.name[:6]}" for f in files(tmp_path)] == ["2026-03-01/235959", "2026-03-02/000000", "2026-03-02/000001"]
    back = read_requests(tmp_path)
    assert back.customer_id.tolist() == [1, 2, 0, 3] and back.columns.tolist() == [*FIXED, *"abc"]
    np.testing.assert_array_equal(back[[*"abc"]].to_numpy(), np.array([[1, 1, np.nan], [2, 2, np.nan], [0, 0, np.nan], [np.nan, 3, 3]], np.float32))
    assert back.dtypes.astype(str).tolist()[4:] == ["float32"] * 3

def test_the_oldest_files_go_and_never_the_one_just_written(tmp_path):
    made = [add_file(tmp_path, columns_of([asked(d * DAY)])) for d in range(6)]
    one, foreign = made[0].stat().st_size, tmp_path/"README"
    foreign.write_text("mine")
    delete_oldest(tmp_path, 100 * one, made[-1]); assert files(tmp_path) == made
    delete_oldest(tmp_path, 4 * one + 9, made[0]); assert files(tmp_path) == [made[0], *made[3:]] # the one just written may be the oldest
    assert not made[1].parent.exists() and foreign.exists()
    delete_oldest(tmp_path, 1, made[0]); assert files(tmp_path) == made[:1]
    old, new = (made[0].parent/f".{n}.parquet.part" for n in "ab")
    old.touch(); new.touch(); os.utime(old, (0, 0))
    delete_oldest(tmp_path, 1, made[0]); assert new.exists() and not old.exists()
    log = quiet(tmp_path/"b", most_mb=.005) # five files of about a kB
    for i in range(20): log.put(model(), np.ones((1, 2), np.float32), [.5], [i]); log.flush()
    log.close()
    kept = read_requests(log.folder).customer_id.tolist()
    assert kept == [*range(20 - len(kept), 20)] and 1 < len(kept) < 10 and sum(f.stat().st_size for f in files(log.folder)) <= 5000

def test_a_file_that_another_deleted_is_fine(tmp_path, monkeypatch):
    made = [add_file(tmp_path, columns_of([asked(d * DAY)])) for d in range(4)]
    real = churn_nb.monitoring.request_log.Path.stat
    def stat(self, **kw):
        s = real(self, **kw)
        if self == made[1]: shutil.rmtree(self.parent, ignore_errors=True) # between two looks
        return s
    monkeypatch.setattr(churn_nb.monitoring.request_log.Path, "stat", stat)
    delete_oldest(tmp_path, 1, made[3])
    monkeypatch.undo()
    assert files(tmp_path) == made[3:]

# --- gauges ---

FEATURE = {"name": "age", "n_reference": 100, "n_current": 50, "missing_reference": 0., "missing_current": .1, "statistic": .25, "pvalue": .5, "psi": .125,
           "level": "warn", "note": ""}
REPORT = {"level": "warn", "at": "2026-01-01T00:00:00+00:00", "bins": 10, "features": [FEATURE, FEATURE | {"name": 'é "x"\n', "statistic": None, "pvalue": None, "psi": None}]}

def gauges(text): return {(s.name.removeprefix("churn_drift_"), *s.labels.values()): s.value for f in parse(text) for s in f.samples if s.name.startswith("churn_drift")}
FOUND = {("report_broken",): 0, ("level",): 1, ("report_timestamp_seconds",): 1767225600, ("psi", "age"): .125, ("ks", "age"): .25, ("pvalue", "age"): .5,
         ("rows", "reference"): 100, ("rows", "current"): 50}

def test_the_api_shows_the_drift_report_beside_its_metrics(tiny_bundle, server):
    report = tiny_bundle/"reports"/"drift.json"
    get = lambda: gauges(httpx.get(server.url + "/metrics", timeout=allow(90)).text)
    assert get() == {("report_broken",): 0}
    report.parent.mkdir(exist_ok=True)
    try:
        report.write_text(json.dumps(REPORT))
        assert get() == FOUND
        report.write_text(json.dumps(REPORT)[:50])
        assert get() == FOUND | {("report_broken",): 1}
    finally: shutil.rmtree(report.parent)
    assert get() == {("report_broken",): 0}

def test_reports_are_read_once_and_a_bad_one_changes_nothing(tmp_path, caplog, monkeypatch):
    f, metrics = tmp_path/"drift.json", Metrics()
    g = DriftGauges(f)
    metrics.registry.register(g)
    get = lambda: gauges(metrics.text().decode())
    f.write_text(json.dumps(REPORT)); assert get() == FOUND
    first = g.report
    assert get() == FOUND and g.report is first # not read again
    for bad in ("", "{", "[]", "null", json.dumps(REPORT | {"level": "ok"}), json.dumps({"level": "warn"}), json.dumps(REPORT | {"features": [{"name": "x"}]}),
                json.dumps(REPORT | {"at": "soon"}), json.dumps(REPORT | {"features": [FEATURE | {"psi": float("nan")}]}), b"\xff\xfe"):
        f.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
        assert get() == FOUND | {("report_broken",): 1}, bad
    assert len(caplog.records) == 1
    f.write_text(json.dumps(REPORT | {"level": "retrain"})); assert get() == FOUND | {("level",): 2}
    new = tmp_path/"new"
    new.write_text(json.dumps(REPORT | {"level": "none", "at": None, "features": []})); os.utime(new, (5, 7)); os.replace(new, f)
    assert get() == {("report_broken",): 0, ("level",): 0, ("report_timestamp_seconds",): 7} # without a time its own: the file's
    f.write_text(json.dumps(REPORT | {"at": "2026-01-01T00:00:00"})); assert get() == FOUND # without an offset UTC
    f.unlink(); assert get() == {("report_broken",): 0}

def test_what_drift_writes_is_what_the_gauges_read(tmp_path):
    from churn_nb.drift import drift_report
    rng, drift = np.random.default_rng(0), load_settings().drift
    old, new = (pd.DataFrame({"a": rng.normal(s, 1, 200), "b": np.nan}, dtype="float32") for s in (0, 3))
    (tmp_path/"drift.json").write_text(json.dumps(drift_report(old, new, drift).to_dict()))
    metrics = Metrics(); metrics.registry.register(DriftGauges(tmp_path/"drift.json"))
    got = gauges(metrics.text().decode())
    assert got["level",] == 2 and got["psi", "a"] > .25 and ("psi", "b") not in got and got["rows", "current"] == 200 and got["report_broken",] == 0
