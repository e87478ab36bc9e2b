"The API as a client meets it: a real process on a loopback port."
import hashlib, html, json, os, shlex, shutil, signal, socket, subprocess, sys, textwrap, threading, time
import httpx, numpy as np, onnx, pytest
import tritonclient.http as triton
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings as hyp, strategies as st
from tritonclient.utils import InferenceServerException
from churn_nb.core.errors import BundleError, InvalidRequest, ServeError
from churn_nb.core.manifest import Feature, SelfTest
from churn_nb.registry.bundle import switch_current, write_bundle
from churn_nb.serve import FeastOnline, Model, create_app, run_server
from deadlines import allow
from serving import Server, free_port, manifest, onnx_model, probability, put_live, rss_mb, serving, settings_for, wait_for

JSON = {"Content-Type": "application/json"}
ROW = {"age": 42, "usage_minutes": 310.5, "gap": None}
row = lambda x: dict(zip(ROW, x, strict=True))

@pytest.fixture(scope="module")
def api(server):
    with httpx.Client(base_url=server.url, timeout=allow(90)) as c: yield c

def is_problem(r):
    "Whether an answer is problem JSON that agrees with its own status line."
    p = r.json()
    return (r.headers["content-type"] == "application/problem+json" and p["status"] == r.status_code and {"type", "title", "detail"} <= set(p)
            and len(p["detail"]) <= 500)

# --- the process ---

PROBE = textwrap.dedent("""
    import json, os, signal, sys, threading, time, urllib.request
    from churn_nb.serve import run_server
    from churn_nb.core.settings import load_settings
    port, workspace, body = int(sys.argv[1]), sys.argv[2], sys.argv[3].encode()
    def probe():
        for _ in range(2000):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"})
            try: a = urllib.request.urlopen(request); break
            except OSError: time.sleep(.005)
        rss = int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024
        unwanted = {"mlflow", "sklearn", "pandas", "feast", "duckdb", "scipy", "pyarrow", "onnx", "matplotlib", "skl2onnx"}
        loaded = sorted({m.split(".")[0] for m in sys.modules} & unwanted)
        print(json.dumps({"answer": json.load(a), "rss": rss, "loaded": loaded, "at": time.time()}), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=probe).start()
    run_server(load_settings({"paths.workspace": workspace}, environ={}), port=port)
""")

def test_start_needs_only_what_answers_requests(tiny_bundle, capsys):
    began = time.time()
    p = subprocess.run([sys.executable, "-c", PROBE, str(free_port()), str(tiny_bundle), json.dumps(ROW)],
                       check=False, capture_output=True, text=True, timeout=allow(60))
    out = json.loads(p.stdout.splitlines()[-1])
    assert out["answer"]["churn_risk"] == 0
    assert out["loaded"] in ([], ["duckdb"]) # which the request log's thread loads beside
    assert out["rss"] < 250
    with capsys.disabled(): print(f"\nAPI: process start to first answer {out['at'] - began:.2f} s, RSS {out['rss']:.0f} MB")

def test_ctrl_c_ends_it_in_order(tmp_path):
    put_live(tmp_path)
    s = Server(tmp_path)
    assert httpx.get(s.url + "/livez", timeout=allow(90)).status_code == 200
    s.process.send_signal(signal.SIGINT)
    assert s.process.wait(allow(15)) == 0
    s.process.stdout.close()
    assert "Traceback" not in s.logfile.read_text()

def test_a_taken_port_or_open_address_is_refused(tiny_bundle):
    "The error is one line."
    s = settings_for(tiny_bundle)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ServeError, match=f"port {taken.getsockname()[1]}: .*choose another"): run_server(s, port=taken.getsockname()[1])
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):
        with pytest.raises(ServeError, match="reachable from other machines"): run_server(s, host=host, port=0)

def test_the_server_starts_without_a_bundle_and_takes_the_first(tmp_path):
    with serving(tmp_path) as s, httpx.Client(base_url=s.url, timeout=allow(90)) as c:
        assert "churn run" in s.greeting
        for path in ("/livez", "/v2/health/live", "/openapi.json", "/metrics"): assert c.get(path).status_code == 200
        for path in ("/readyz", "/v2/health/ready", "/v2/models/churn/ready", "/model", "/"): assert c.get(path).status_code == 503
        r = c.post("/predict", json=ROW)
        assert is_problem(r) and r.status_code == 503 and "churn run" in r.json()["detail"] and r.headers["retry-after"]
        assert "x-model-version" not in r.headers
        put_live(tmp_path)
        assert wait_for(lambda: c.get("/readyz").status_code == 200)
        assert c.post("/predict", json=ROW).json()["churn_risk"] == 0

# --- answers ---

@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 2, st.none() | st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=40))
@hyp(max_examples=60, deadline=None)
def test_every_answer_is_the_models(api, rows):
    want = probability(np.array(rows, np.float32))
    got = api.post("/predict/batch", json=[row(x) for x in rows]).json()
    np.testing.assert_allclose([a["probability"] for a in got], want, atol=1e-6)
    assert all(a["churn_risk"] == (a["probability"] >= .5) and a["threshold"] == .5 and a["model_version"] == "1" for a in got)
    assert [a["missing_features"] for a in got] == [["gap"] if x[2] is None else [] for x in rows]
    first = api.post("/predict", json=row(rows[0]))
    assert first.headers["x-model-version"] == "1" and first.json() | {"probability": 0} == got[0] | {"probability": 0}
    assert abs(first.json()["probability"] - got[0]["probability"]) < 1e-6

def test_the_threshold_itself_counts_as_churn(api):
    a = api.post("/predict", json=row([0, 0, 0])).json()
    assert (a["probability"], a["churn_risk"]) == (.5, 1)

def test_the_model_card_carries_a_body_that_predict_takes(api, tiny_bundle):
    m = api.get("/model").json()
    assert m["verified"] is False and m["version"] == "1" and m["run_id"] == "run1" and m["data_hash"] == "md5:0" and m["metrics"] == {"auc": .8}
    assert m["sha256"] == {"model.onnx": hashlib.sha256((tiny_bundle/"bundle"/"current"/"model.onnx").read_bytes()).hexdigest()}
    assert [f["name"] for f in m["features"]] == list(ROW)
    assert api.post("/predict", json=m["example"]).status_code == 200

def test_request_ids_are_kept_or_made(api):
    assert api.get("/livez", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = {api.get("/livez").headers["x-request-id"] for _ in range(3)} | {api.get("/livez", headers={"X-Request-Id": "x" * 65}).headers["x-request-id"],
            api.get("/livez", headers={"X-Request-Id": 'a"b {c}'}).headers["x-request-id"], api.get("/nowhere").headers["x-request-id"]}
    assert len(made) == 6 and all(len(i) == 32 for i in made)

# --- bad input ---

ok = json.dumps(ROW).encode()
@pytest.mark.parametrize("path,body,status,field", [
    ("/predict", b'{"age": 42, "usage_minutes": 1, "gap": 1, "plan": 2}', 422, "plan"),
    ("/predict", b'{"age": 42, "usage_minutes": 1, "gap": 1, "Age": 2}', 422, "Age"),
    ("/predict", b'{"age": 42, "usage_minutes": 1}', 422, "gap"),
    ("/predict", b"{}", 422, "age"),
    ("/predict", b'{"age": null, "usage_minutes": 1, "gap": 1}', 422, "age"),
    ("/predict", b'{"age": "42", "usage_minutes": 1, "gap": 1}', 422, "age"),
    ("/predict", b'{"age": true, "usage_minutes": 1, "gap": 1}', 422, "age"),
    ("/predict", b'{"age": [42], "usage_minutes": 1, "gap": 1}', 422, "age"),
    ("/predict", b'{"age": 1e39, "usage_minutes": 1, "gap": 1}', 422, "age"),
    ("/predict", b'{"age": -1e39, "usage_minutes": 1, "gap": 1}', 422, "age"),
    ("/predict", b'{"age": 1e999, "usage_minutes": 1, "gap": 1}', 422, "age"),
    ("/predict", b'{"age": NaN, "usage_minutes": 1, "gap": 1}', 400, "body"),
    ("/predict", b'{"age": Infinity, "usage_minutes": 1, "gap": 1}', 400, "body"),
    ("/predict", b'{"customer_id": 1, "age": 42}', 422, "customer_id"),
    ("/predict", b'{"customer_id": "one"}', 422, "customer_id"),
    ("/predict", b'{"customer_id": 1.5}', 422, "customer_id"),
    ("/predict", b'{"customer_id": true}', 422, "customer_id"),
    ("/predict", b'{"customer_id": null}', 422, "customer_id"),
    ("/predict", b'{"customer_id": 9223372036854775808}', 422, "customer_id"),
    *[("/predict", b, 400, "body") for b in (b"", b"{", ok + b"x", b"\xff\xfe", b'{"\xff": 1}')],
    *[("/predict", b, 422, "body") for b in (b"null", b"[" + ok + b"]", b"[" * 100_000)],
    *[("/predict/batch", b, 422, "body") for b in (ok, b"[]", b"[" + ok + b", 7]")],
    ("/predict/batch", b"[" + ok + b', {"age": 1}]', 422, "usage_minutes"),
    ("/predict/batch", b"[" + ok + b', {"age": 1, "usage_minutes": 1e39, "gap": 1}]', 422, "usage_minutes"),
    ("/predict/batch", b"[" + ok + b', {"age": 1, "usage_minutes": 3e38, "gap": 3e38}]', 200, None)])
def test_bad_input_is_named(api, path, body, status, field):
    r = api.post(path, content=body, headers=JSON)
    assert r.status_code == status, r.text
    if status == 200: return
    assert is_problem(r)
    e = r.json()["errors"][0]
    assert e["field"] == field and e["message"] and field in r.json()["detail"]
    if body.startswith(b"[" + ok + b", "): assert path == "/predict/batch" and e["row"] == 1

def test_a_model_that_overflows_gives_an_error_instead_of_null(tmp_path):
    rows = [[1., 2., 3.]]
    m = manifest(self_test=SelfTest(rows=rows, probability=probability(np.array(rows) * 1000).tolist()))
    write_bundle(tmp_path/"bundle", onnx_model(scale=1000.), m); switch_current(tmp_path/"bundle", "1")
    c = TestClient(create_app(settings_for(tmp_path)))
    inf_minus_inf = row([3e38, 3e38, 0])
    r = c.post("/predict/batch", json=[ROW, inf_minus_inf])
    assert is_problem(r) and r.status_code == 422 and "row 1" in r.json()["detail"] and "no probability" in r.json()["detail"]
    r = c.post("/v2/models/churn/infer", json={"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [*inf_minus_inf.values()]}]})
    assert is_problem(r) and r.status_code == 400 and "no probability" in r.json()["detail"]

@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp"])
def test_a_body_must_be_declared_as_json(api, kind):
    r = api.post("/predict", content=ok, headers={"Content-Type": kind} if kind else {})
    assert is_problem(r) and r.status_code == 415 and "application/json" in r.json()["detail"]

def test_a_charset_is_accepted_and_a_compressed_body_refused(api):
    assert api.post("/predict", content=ok, headers={"Content-Type": "application/json; charset=utf-8"}).status_code == 200
    r = api.post("/predict", content=ok, headers=JSON | {"Content-Encoding": "gzip"})
    assert is_problem(r) and r.status_code == 415

@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/v2/models/churn/infer"])
def test_other_methods_are_405(api, path, method):
    r = api.request(method, path)
    assert is_problem(r) and r.status_code == 405 and r.headers["allow"] == "POST"

@pytest.mark.parametrize("path", ["/nowhere", "/predict/", "/predict/batch/x", "/..%2f..%2fetc/passwd",
                                  "/v2/models/yolo", "/v2/models/churn/versions/2", "/v2/models/churn/versions/2/ready"])
def test_other_paths_are_404(api, path):
    r = api.get(path)
    assert is_problem(r) and r.status_code == 404
    assert ("error" in r.json()) == path.startswith("/v2")

def test_limits_hold_with_and_without_a_length(server, api):
    long = b" " * 1_000_001
    def pieces():
        for i in range(0, len(long), 65536): yield long[i:i + 65536]
    for content in (long, pieces()):
        for path in ("/predict", "/predict/batch", "/v2/models/churn/infer"):
            if content is not long: content = pieces()
            r = httpx.post(server.url + path, content=content, headers=JSON, timeout=allow(90))
            assert is_problem(r) and r.status_code == 413 and "1000000" in r.json()["detail"]
    small = {"age": 1, "usage_minutes": 1, "gap": 1}
    assert len(api.post("/predict/batch", json=[small] * 1000).json()) == 1000
    r = api.post("/predict/batch", json=[small] * 1001)
    assert is_problem(r) and r.status_code == 413 and "1001 rows" in r.json()["detail"]
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as s: # announced and never sent: answered at once
        s.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n")
        s.settimeout(5)
        assert b" 413 " in s.recv(100)

keys = st.sampled_from([*ROW, "customer_id", "inputs", "name", "shape", "data", "datatype", "parameters", "binary_data_size"]) | st.text(max_size=10)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                      lambda s: st.lists(s, max_size=5) | st.dictionaries(keys, s, max_size=5), max_leaves=25)
bodies = st.binary(max_size=300) | (values | st.fixed_dictionaries(dict.fromkeys(ROW, values))).map(lambda v: json.dumps(v).encode())

@given(path=st.sampled_from(["/predict", "/predict/batch", "/v2/models/churn/infer"]), body=bodies,
       kind=st.sampled_from([None, "application/json", "text/plain"]),
       n=st.none() | st.integers(-5, 400) | st.text("0123456789+-.exé", max_size=5).map(lambda t: t.encode()))
@example(path="/predict", body=b'{"a":' * 50_000, kind="application/json", n=None)
@example(path="/v2/models/churn/infer", body=b'{"inputs": [], "x": ' + b"[" * 50_000, kind=None, n=None)
@example(path="/v2/models/churn/infer", body=b'{"inputs": [{"name": "features", "shape": [1, 3], "data": ' + b"[" * 50_000, kind=None, n=None)
@hyp(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_body_is_a_5xx(api, path, body, kind, n):
    headers = ({"Content-Type": kind} if kind else {}) | ({"Inference-Header-Content-Length": n if isinstance(n, bytes) else str(n)} if n is not None else {})
    r = api.post(path, content=body, headers=headers)
    assert r.status_code in (200, 400, 404, 413, 415, 422, 503), r.text # 503: {"customer_id": n} without a store
    if r.status_code == 503: assert b"customer_id" in body
    if r.status_code != 200: assert is_problem(r)
    elif path != "/v2/models/churn/infer": assert all(0 <= a["probability"] <= 1 for a in (r.json() if path == "/predict/batch" else [r.json()]))

# --- by customer id ---

class StandIn(FeastOnline):
    "Answers like a store that knows customers 1 (complete), 2 (no gap) and 3 (no age)."
    calls = 0
    def _read(self, where, names, ids):
        assert (where.entity, where.feature_service, names) == ("customer_id", "churn_v1", list(ROW))
        StandIn.calls += 1
        return [{1: (30., 100., 2.), 2: (30., 100., None), 3: (None, 100., 2.)}.get(i) for i in ids]

@pytest.fixture
def by_id(tiny_bundle, monkeypatch):
    monkeypatch.setattr("churn_nb.serve.FeastOnline", StandIn)
    return TestClient(create_app(settings_for(tiny_bundle)))

def test_ids_and_features_mix_in_a_batch(by_id):
    "The store is called once for the batch."
    StandIn.calls = 0
    got = by_id.post("/predict/batch", json=[{"customer_id": 2}, row([50, 10, 1]), {"customer_id": 1}]).json()
    np.testing.assert_allclose([a["probability"] for a in got], probability([[30, 100, np.nan], [50, 10, 1], [30, 100, 2]]), atol=1e-6)
    assert [a["missing_features"] for a in got] == [["gap"], [], []] and StandIn.calls == 1

@pytest.mark.parametrize("warm, calls", [("no", 0), ("yes", 1)])
def test_the_store_is_opened_before_ready_if_configured(tiny_bundle, monkeypatch, warm, calls):
    monkeypatch.setattr("churn_nb.serve.FeastOnline", StandIn)
    StandIn.calls = 0
    with TestClient(create_app(settings_for(tiny_bundle, warm_store=warm))) as c: assert c.get("/readyz").status_code == 200 and StandIn.calls == calls

def test_an_unknown_customer_is_404_and_named(by_id):
    r = by_id.post("/predict", json={"customer_id": 99})
    assert is_problem(r) and r.status_code == 404 and r.json()["errors"] == [{"field": "customer_id", "message": "no customer 99 in the online store"}]
    r = by_id.post("/predict/batch", json=[{"customer_id": 1}, {"customer_id": 99}])
    assert r.status_code == 404 and r.json()["errors"][0]["row"] == 1

def test_a_required_value_missing_in_the_store_is_503(by_id):
    r = by_id.post("/predict", json={"customer_id": 3})
    assert is_problem(r) and r.status_code == 503 and "no age" in r.json()["detail"] and r.headers["retry-after"]

def test_without_a_store_only_requests_by_id_fail(api):
    r = api.post("/predict", json={"customer_id": 1})
    assert is_problem(r) and r.status_code == 503 and r.headers["retry-after"] and "no feature store" in r.json()["detail"]
    assert api.post("/predict", json=ROW).status_code == 200

def test_without_feast_installed_only_requests_by_id_fail(tmp_path, monkeypatch):
    put_live(tmp_path)
    (tmp_path/"feast").mkdir(); (tmp_path/"feast"/"feature_store.yaml").write_text("project: churn\n")
    monkeypatch.setitem(sys.modules, "feast", None)
    c = TestClient(create_app(settings_for(tmp_path)))
    r = c.post("/predict", json={"customer_id": 1})
    assert is_problem(r) and r.status_code == 503 and "churn-nb[online]" in r.json()["detail"]
    assert c.post("/predict", json=ROW).status_code == 200

FEAST = textwrap.dedent("""
    import sys, pandas as pd
    from datetime import datetime, timezone
    from pathlib import Path
    from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Float32
    repo = Path(sys.argv[1]); repo.mkdir()
    (repo/"feature_store.yaml").write_text("project: churn\\nprovider: local\\nregistry: registry.db\\nonline_store:\\n  type: sqlite\\n  path: online.db\\n"
                                           "entity_key_serialization_version: 3\\n")
    now = datetime.now(timezone.utc)
    df = pd.DataFrame({"customer_id": [1, 2], "age": [30., 40.], "usage_minutes": [100., 5.], "gap": [2., None], "event_timestamp": now})
    df.to_parquet(repo/"f.parquet")
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    view = FeatureView(name="v", entities=[customer], schema=[Field(name=n, dtype=Float32) for n in ("age", "usage_minutes", "gap")], online=True,
                       source=FileSource(path=str(repo/"f.parquet"), timestamp_field="event_timestamp"))
    fs = FeatureStore(repo_path=str(repo))
    fs.apply([customer, view, FeatureService(name="churn_v1", features=[view])])
    fs.write_to_online_store("v", df)
""")

def test_a_real_feast_store_is_read_by_the_running_server(tmp_path):
    put_live(tmp_path)
    with serving(tmp_path, python=sys.executable) as s, httpx.Client(base_url=s.url, timeout=allow(60)) as c:
        assert c.post("/predict", json={"customer_id": 1}).status_code == 503
        made = subprocess.run([sys.executable, "-c", FEAST, str(tmp_path/"feast")], check=False, capture_output=True, text=True, timeout=allow(120))
        assert made.returncode == 0, made.stderr
        got = {}
        slow = threading.Thread(target=lambda: got.update(r=c.post("/predict/batch", json=[{"customer_id": 1}, {"customer_id": 2}])))
        slow.start()
        with httpx.Client(base_url=s.url, timeout=allow(90)) as other: # Feast is being imported: raw features are answered meanwhile
            during = 0
            while slow.is_alive():
                assert other.post("/predict", json=ROW).status_code == 200
                during += slow.is_alive()
                time.sleep(.02)
        assert during >= 5
        answers = got["r"].json()
        np.testing.assert_allclose([a["probability"] for a in answers], probability([[30, 100, 2], [40, 5, np.nan]]), atol=1e-6)
        assert [a["missing_features"] for a in answers] == [[], ["gap"]]
        assert c.post("/predict", json={"customer_id": 99}).status_code == 404
        assert rss_mb(s.pid) < 500

# --- Open Inference Protocol, with a client that was not written for us ---

@pytest.fixture(scope="module")
def client(server): return triton.InferenceServerClient(server.url.removeprefix("http://"))

def tensor(X, binary=True, name="features", datatype="FP32"):
    t = triton.InferInput(name, list(X.shape), datatype)
    t.set_data_from_numpy(X, binary_data=binary)
    return t

def test_tritonclient_reads_health_and_metadata(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("churn") and client.is_model_ready("churn", "1")
    assert not client.is_model_ready("churn", "2") and not client.is_model_ready("yolo")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_configuration"]
    m = client.get_model_metadata("churn", "1")
    assert m["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 3]}]
    assert m["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [-1, 1]}]

@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritonclient_gets_the_same_numbers_in_json_and_binary(client, n, binary_in, binary_out):
    X = np.random.default_rng(n).normal(30, 20, (n, 3)).astype(np.float32)
    if binary_in: X[::2, 2] = np.nan
    outputs = None if binary_out is None else [triton.InferRequestedOutput("probability", binary_data=binary_out)]
    r = client.infer("churn", [tensor(X, binary_in)], outputs=outputs, request_id="r1", model_version="1")
    p = r.as_numpy("probability")
    assert p.dtype == np.float32 and p.shape == (n, 1) and r.get_response()["model_version"] == "1" and r.get_response()["id"] == "r1"
    np.testing.assert_allclose(p[:, 0], probability(X), atol=1e-6)

def test_null_in_json_is_accepted_for_nullable_features(api):
    send = lambda data: api.post("/v2/models/churn/infer", json={"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": data}]})
    assert send([[1, 2, None]]).json()["outputs"][0]["data"] == send([1, 2, 0]).json()["outputs"][0]["data"]
    r = send([None, 2, 3])
    assert is_problem(r) and r.status_code == 400 and r.json()["errors"] == [{"row": 0, "field": "age", "message": "may not be missing"}]

X1 = np.ones((1, 3), np.float32)
@pytest.mark.parametrize("request_,says", [
    ({"model_name": "yolo", "inputs": [tensor(X1)]}, "no model yolo"), ({"model_version": "9", "inputs": [tensor(X1)]}, "version 9"),
    ({"inputs": [tensor(X1, name="image")]}, "image"), ({"inputs": [tensor(X1[:, :2])]}, "shape"), ({"inputs": [tensor(X1[0])]}, "shape"),
    ({"inputs": [tensor(X1.astype(np.float64), datatype="FP64")]}, "FP64"), ({"inputs": [tensor(X1 * np.inf)]}, "float32"),
    ({"inputs": [tensor(X1 * np.nan)]}, "age"), ({"inputs": [tensor(np.ones((1001, 3), np.float32))]}, "1001 rows"), ({"inputs": []}, "0 inputs"),
    ({"inputs": [tensor(X1)], "outputs": [triton.InferRequestedOutput("label")]}, "probability"),
    ({"inputs": [tensor(X1)], "outputs": [triton.InferRequestedOutput("probability", class_count=2)]}, "classification"),
    ({"inputs": [tensor(X1)], "request_compression_algorithm": "gzip"}, "plain")])
def test_tritonclient_understands_our_errors(client, request_, says):
    with pytest.raises(InferenceServerException, match=says): client.infer(**{"model_name": "churn"} | request_)

@given(shape=st.lists(st.integers(0, 4) | st.just(3), min_size=1, max_size=3), size=st.none() | st.integers(-4, 60), tail=st.binary(max_size=48),
       off=st.integers(-3, 0))
@example(shape=[1, 3], size=12, tail=b"\0" * 8, off=0)
@example(shape=[1, 3], size=8, tail=b"\0" * 8, off=0)
@hyp(max_examples=200, deadline=None)
def test_no_lie_about_binary_data_is_a_5xx(api, shape, size, tail, off):
    claimed = {} if size is None else {"parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [{"name": "features", "datatype": "FP32", "shape": shape} | claimed]}).encode()
    r = api.post("/v2/models/churn/infer", content=head + tail, headers={"Inference-Header-Content-Length": str(len(head) + off)})
    truth = off == 0 and len(shape) == 2 and shape[0] and shape[1] == 3 and size == len(tail) == 12 * shape[0]
    assert r.status_code in ((200, 400) if truth else (400,)), r.text # 400 also for a true request whose bytes are nan or inf
    if r.status_code == 400: assert is_problem(r)

# --- loading and swapping ---

@pytest.mark.parametrize("model,change,says", [
    (onnx_model(bias=1.), {}, "self test"), (onnx_model(k=4), {}, r"\[N, 4\]"),
    (onnx_model(), {"input": "x"}, "x float"), (onnx_model(), {"output": "label"}, "label float"),
    (b"no graph", {}, "not an ONNX file"), (b"", {}, "not an ONNX file")])
def test_a_wrong_model_with_right_hashes_is_refused(tmp_path, model, change, says):
    with pytest.raises(BundleError, match=says): Model.load(write_bundle(tmp_path, model, manifest(**change)))

def test_a_model_must_predict_without_its_nullable_features(tmp_path):
    m = onnx.load_from_string(onnx_model())
    del m.graph.node[:2]; m.graph.node[0].input[0] = "features" # without the two nodes that turn nan into 0
    rows = [[1., 2., 3.]]
    with pytest.raises(BundleError, match="without a nullable feature"):
        Model.load(write_bundle(tmp_path, m.SerializeToString(),
                                manifest(example=row([1., 2., 3.]), self_test=SelfTest(rows=rows, probability=probability(rows).tolist()))))

def test_swapping_under_load_gives_no_failed_and_no_mixed_answer(tmp_path):
    put_live(tmp_path, "1", bias=0.); put_live(tmp_path, "2", bias=2.); switch_current(tmp_path/"bundle", "1")
    rows = [row([a, 10. * a, 1.]) for a in range(1, 40)]
    want = {v: probability([list(r.values()) for r in rows], bias) for v, bias in (("1", 0.), ("2", 2.))}
    stop, seen, wrong = threading.Event(), [], []
    def load(url):
        with httpx.Client(base_url=url, timeout=allow(90)) as c:
            while not stop.is_set():
                r = c.post("/predict/batch", json=rows)
                v = {a["model_version"] for a in r.json()} if r.status_code == 200 else {r.text}
                good = len(v) == 1 and v == {r.headers.get("x-model-version")} and np.allclose([a["probability"] for a in r.json()], want[min(v)], atol=1e-6)
                (seen if good else wrong).append(min(v))
    with serving(tmp_path) as s:
        threads = [threading.Thread(target=load, args=(s.url,)) for _ in range(3)]
        for t in threads: t.start()
        try:
            ready = lambda: httpx.get(s.url + "/readyz", timeout=allow(90)).json()
            for v in ("2", "1", "2"):
                switch_current(tmp_path/"bundle", v)
                assert wait_for(lambda v=v: ready()["model_version"] == v)
            (bad := tmp_path/"bundle"/"3").mkdir() # now a bundle that switch_current would not have let through
            (bad/"manifest.json").write_bytes((tmp_path/"bundle"/"2"/"manifest.json").read_bytes())
            (bad/"model.onnx").write_bytes(b"truncated")
            (tmp_path/"bundle"/"new").symlink_to("3"); os.replace(tmp_path/"bundle"/"new", tmp_path/"bundle"/"current")
            assert wait_for(lambda: "9 bytes" in ready().get("refused", ""))
            assert ready()["model_version"] == "2"
            assert "churn_bundle_refused 1.0" in httpx.get(s.url + "/metrics", timeout=allow(90)).text
            put_live(tmp_path, "4", bias=2.) # and a good one after it
            want["4"] = want["2"]
            assert wait_for(lambda: ready()["model_version"] == "4") and "refused" not in ready()
        finally:
            stop.set()
            for t in threads: t.join()
        refusals = [line for line in s.logged() if line["message"].startswith("bundle refused")]
    assert not wrong and set(seen) >= {"1", "2"} and len(seen) > 50
    assert [(r["level"], r["still_serving"]) for r in refusals] == [("error", "2")] and "model.onnx" in refusals[0]["message"]

def test_unchanged_bundles_load_once_and_refusals_are_logged_once(tmp_path, caplog):
    put_live(tmp_path)
    current = create_app(settings_for(tmp_path)).state.current
    first = current.model
    assert current.refresh().model is first
    (tmp_path/"bundle"/"1"/"model.onnx").write_bytes(b"overwritten in place")
    for _ in range(3): assert current.refresh().model is first
    assert len([r for r in caplog.records if "bundle refused" in r.getMessage()]) == 1
    put_live(tmp_path)
    assert current.refresh().model is not first and not current.refused

def test_model_rows_follows_the_rules_of_requests(tiny_bundle):
    m = Model.load(tiny_bundle/"bundle"/"current")
    X = m.encode_dicts([ROW, row([1, 2, float("nan")])])
    assert X.dtype == np.float32 and X.shape == (2, 3) and np.isnan(X[:, 2]).all()
    for bad, says in (([row([float("nan"), 1, 1])], "row 0: age: may not be missing"), ([ROW, {"age": 1}], "row 1: usage_minutes: missing"),
                      ([{"customer_id": 1}], "row 0: customer_id"), ([row(["a", 1, 1])], "row 0: age: expected a number"),
                      ([ROW | {"x": 1}], "row 0: x: unknown")):
        with pytest.raises(InvalidRequest, match=says): m.encode_dicts(bad)

def test_feature_names_may_be_any_text(tmp_path):
    names = ["Day Mins", "class", "f0", 'a`b - at `$.c<', "é"]
    rows = [[1., 2., 3., 4., 5.]]
    p = 1 / (1 + np.exp(-float(np.array(rows[0]) @ np.resize([.03, -.01, .2], 5))))
    m = manifest(features=[Feature(name=n) for n in names], example=dict(zip(names, rows[0], strict=True)), reference=None,
                 self_test=SelfTest(rows=rows, probability=[p]))
    write_bundle(tmp_path/"bundle", onnx_model(k=5), m); switch_current(tmp_path/"bundle", "1")
    c = TestClient(create_app(settings_for(tmp_path)))
    assert c.post("/predict", json=m.example).status_code == 200
    for n in names:
        r = c.post("/predict", json=m.example | {n: "x"})
        assert r.status_code == 422 and r.json()["errors"][0]["field"] == n
    assert c.get("/").status_code == c.get("/openapi.json").status_code == 200

# --- what is told about it ---

def test_metrics_count_by_route_pattern_and_two_apps_keep_apart(tiny_bundle):
    a, b = (TestClient(create_app(settings_for(tiny_bundle))) for _ in range(2))
    a.post("/predict", json=ROW); a.post("/predict/batch", json=[ROW] * 3); a.post("/predict", json={})
    for path in ("/v2/models/churn", "/wp-admin", "/v2/models/xyz"): a.get(path)
    lines = a.get("/metrics").text.splitlines()
    for route, status in (("/predict", 200), ("/predict", 422), ("/predict/batch", 200), ("unmatched", 404), ("/v2/models/{name}", 404)):
        assert f'churn_requests_total{{route="{route}",status="{status}"}} 1.0' in lines, (route, status)
    assert 'churn_rows_predicted_total{version="1"} 4.0' in lines and 'churn_request_seconds_count{route="/predict"} 2.0' in lines
    assert 'churn_model_info{data_hash="md5:0",dataset="demo",name="churn_predictor",run_id="run1",version="1"} 1.0' in lines
    assert not any("wp-admin" in line or "xyz" in line for line in lines)
    assert 'churn_requests_total{route="/predict",status="200"}' not in b.get("/metrics").text

def test_the_log_is_json_lines_without_values_or_ids(server, api):
    rid = "find-me"
    api.post("/predict", json=row([12.34567, 1, 2]), headers={"X-Request-Id": rid})
    api.post("/predict", json={"customer_id": 987654321}); api.post("/predict", json=row(["secret", 1, 1])); api.get("/v2/models/topsecret")
    line = wait_for(lambda: [line for line in server.logged() if line.get("request_id") == rid])[0]
    assert (line["route"], line["status"], line["rows"], line["model_version"], line["method"]) == ("/predict", 200, 1, "1", "POST") and line["ms"] > 0
    text = server.logfile.read_text()
    assert not any(w in text for w in ("12.34567", "987654321", "secret"))

def test_the_openapi_document_has_real_examples_and_covers_every_route(api):
    doc = api.get("/openapi.json").json()
    assert {"/predict", "/predict/batch", "/livez", "/readyz", "/model", "/metrics", "/v2", "/v2/health/ready", "/v2/models/{name}/infer"} <= set(doc["paths"])
    for path in ("/predict", "/predict/batch"):
        post = doc["paths"][path]["post"]
        content, answer = post["requestBody"]["content"]["application/json"], post["responses"]["200"]["content"]["application/json"]
        r = api.post(path, json=content["examples"]["features"]["value"])
        assert r.json() == answer["example"]
        assert {"404", "413", "415", "422", "503"} <= set(post["responses"])
    features = doc["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"][0]
    assert features["required"] == list(ROW) and features["additionalProperties"] is False
    assert features["properties"]["gap"]["type"] == ["number", "null"]
    assert api.get("/docs").status_code == 200

def test_the_status_page_needs_nothing_from_elsewhere(api):
    r = api.get("/")
    csp = r.headers["content-security-policy"]
    assert r.headers["content-type"].startswith("text/html") and "default-src 'none'" in csp and "unsafe" not in csp
    assert "://" not in r.text.replace(str(api.base_url), "").replace("http://www.w3.org/2000/svg", "")
    assert 'value="310.5"' in r.text and 'name="customer_id"' in r.text
    assert 'name="viewport"' in r.text and "prefers-color-scheme" in r.text and r.text.count("<label") == 4 == r.text.count("<input")
    curl = html.unescape(r.text.split('<pre id="curl" tabindex="0">')[1].split("</pre>")[0])
    if shutil.which("curl"): assert json.loads(subprocess.run(["sh", "-c", curl], check=True, capture_output=True).stdout)["churn_risk"] == 0
    else: assert json.loads(shlex.split(curl)[-1]) == ROW
