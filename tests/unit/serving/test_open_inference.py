"One suite, written with the clients of another server, over our embedded server and over a real Triton: the same answers, the same kinds of error."
import json, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import filelock, httpx, numpy as np, pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException
from churn_nb.serving.triton import write_model_repository
from deadlines import allow
from paths import ROOT, SUPPORT
from serving import probability, put_live, serving

@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    ws = tmp_path_factory.mktemp("oip")
    put_live(ws)
    write_model_repository(ws/"bundle/current", ws/"triton")
    return ws

@pytest.fixture(scope="module", params=["embedded", "triton"])
def endpoint(request, workspace):
    "A running server: its kind, address, and clients."
    if request.param == "embedded": running = serving(workspace)
    else: running = request.getfixturevalue("triton_here")(workspace/"triton", workspace)
    with running as s:
        client = triton.InferenceServerClient(s.url.removeprefix("http://"))
        yield SimpleNamespace(kind=request.param, url=s.url, client=client)
        client.close()

def tensor(X, binary=True, name="features", datatype="FP32"):
    t = triton.InferInput(name, list(X.shape), datatype)
    t.set_data_from_numpy(X, binary_data=binary)
    return t

def plain(endpoint, body, path="models/churn/infer", **kw):
    "What a client that only knows the specification sends."
    return httpx.post(f"{endpoint.url}/v2/{path}", **({"content": body} if isinstance(body, bytes) else {"json": body}), timeout=allow(90), **kw)

def body(data=(1, 2, 3), shape=(1, 3), **change):
    return {"inputs": [{"name": "features", "datatype": "FP32", "shape": [*shape], "data": [*data]} | change]}

def rows(n): return np.random.default_rng(n).normal(30, 20, (n, 3)).astype(np.float32)

# --- health and metadata ---

def test_health(endpoint):
    c = endpoint.client
    assert c.is_server_live() and c.is_server_ready() and c.is_model_ready("churn") and c.is_model_ready("churn", "1")
    assert not c.is_model_ready("churn", "2") and not c.is_model_ready("yolo")
    for path in ("health/live", "health/ready", "models/churn/ready", "models/churn/versions/1/ready"):
        assert httpx.get(f"{endpoint.url}/v2/{path}", timeout=allow(90)).status_code == 200

def test_metadata_is_the_same(endpoint):
    server = endpoint.client.get_server_metadata()
    assert {"name", "version", "extensions"} <= set(server) and {"binary_tensor_data", "model_configuration"} <= set(server["extensions"])
    for version in ("", "1"):
        assert endpoint.client.get_model_metadata("churn", version) == {
            "name": "churn", "versions": ["1"], "platform": "onnxruntime_onnx",
            "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "probability", "datatype": "FP32", "shape": [-1, 1]}]}

@pytest.mark.parametrize("version", ["", "1"])
def test_configuration_is_the_same_where_both_have_it(endpoint, version):
    c = endpoint.client.get_model_config("churn", version)
    assert (c["name"], c["platform"], c["backend"], c["max_batch_size"]) == ("churn", "onnxruntime_onnx", "onnxruntime", 1000)
    pick = lambda t: {k: t[k] for k in ("name", "data_type", "dims", "reshape") if k in t}
    assert [pick(t) for t in c["input"]] == [{"name": "features", "data_type": "TYPE_FP32", "dims": [3]}]
    assert [pick(t) for t in c["output"]] == [{"name": "probability", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}]

# --- answers ---

@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritonclient_gets_the_same_numbers_in_json_and_binary(endpoint, n, binary_in, binary_out):
    X = rows(n)
    if binary_in: X[::2, 2] = np.nan
    outputs = None if binary_out is None else [triton.InferRequestedOutput("probability", binary_data=binary_out)]
    r = endpoint.client.infer("churn", [tensor(X, binary_in)], outputs=outputs, request_id="r1", model_version="1")
    p, said = r.as_numpy("probability"), r.get_response()
    assert (p.dtype, p.shape, said["model_name"], said["model_version"], said["id"]) == (np.float32, (n, 1), "churn", "1", "r1")
    np.testing.assert_allclose(p[:, 0], probability(X), atol=1e-6)

def kserve_python() -> Path:
    "Python of the environment with KServe's client; made once."
    root = ROOT
    sys.path.insert(0, str(root/"bench"))
    try: from peers import environment
    finally: sys.path.pop(0)
    (root/".bench").mkdir(exist_ok=True)
    with filelock.FileLock(root/".bench"/".kserve.lock"): return environment("kserve", "requirements-kserve.lock")

def test_the_client_of_kserve_gets_the_same_numbers(endpoint):
    X = rows(5)
    p = subprocess.run([kserve_python(), SUPPORT/"kserve_client.py", endpoint.url, json.dumps(X.tolist())], capture_output=True, text=True, timeout=allow(120))
    assert p.returncode == 0, p.stderr[-2000:]
    said = json.loads(p.stdout.splitlines()[-1])
    healthy = True if endpoint.kind == "embedded" else "JSONDecodeError" # Triton's health has no body, and this client reads one
    assert (said["live"], said["ready"], said["model"], said["error"]) == (healthy, healthy, True, "HTTPStatusError 404")
    for way in ("json", "binary"):
        r = said[way]
        assert (r["id"], r["model"], r["output"], r["shape"], r["datatype"]) == (f"k-{way}", "churn", "probability", [5, 1], "FP32")
        np.testing.assert_allclose(r["p"], probability(X), atol=1e-6)

@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
@pytest.mark.parametrize("more", [{}, {"id": "a"}, {"outputs": [{"name": "probability"}]}, {"outputs": []}, {"parameters": {"trace": "x", "n": 1}}])
def test_plain_json_gets_the_same_document(endpoint, data, more):
    r = plain(endpoint, body(data, (2, 3)) | more)
    said = r.json()
    values = said["outputs"][0].pop("data")
    assert r.status_code == 200 and r.headers["content-type"] == "application/json"
    assert said == {"model_name": "churn", "model_version": "1", "outputs": [{"name": "probability", "datatype": "FP32", "shape": [2, 1]}]} | \
        ({"id": "a"} if "id" in more else {})
    np.testing.assert_allclose(values, probability(np.array([[1, 2, 3], [4, 5, 6]])), atol=1e-6)

# --- errors: 404 for what is not there, else a refusal that says what; and the server goes on ---

@pytest.mark.parametrize("path", ["models/yolo/infer", "models/churn/versions/9/infer", "models/churn/versions/x/infer", "models/yolo/versions/1/infer"])
def test_what_is_not_there_is_404(endpoint, path):
    r = plain(endpoint, body(), path)
    assert r.status_code == 404 and r.json()["error"]

@pytest.mark.parametrize("path", ["models/yolo", "models/churn/versions/9", "models/yolo/versions/1", "nothing"])
def test_no_metadata_of_what_is_not_there(endpoint, path): assert httpx.get(f"{endpoint.url}/v2/{path}", timeout=allow(90)).status_code == 404

REFUSED = {"name": body(name="image"), "dtype": body(datatype="INT64"), "no dtype of any": body(datatype="FLOAT"), "columns": body([1, 2, 3, 4], (1, 4)),
           "one dimension": body(shape=[3]), "three dimensions": body(shape=[1, 1, 3]), "no rows": body([], (0, 3)), "too many rows": body([1.]*3003, (1001, 3)),
           "missing input": {"inputs": []}, "twice": {"inputs": body()["inputs"]*2}, "output": body() | {"outputs": [{"name": "label"}]}, "empty": b""}
@pytest.mark.parametrize("wrong", REFUSED)
def test_a_wrong_request_gets_a_4xx_with_the_reason(endpoint, wrong):
    r = plain(endpoint, REFUSED[wrong])
    assert r.status_code == (413 if (endpoint.kind, wrong) == ("embedded", "too many rows") else 400), r.text
    assert r.json()["error"] and plain(endpoint, body()).status_code == 200

BROKEN = {"json": b"{", "no inputs": {}, "too few values": body([1, 2]), "too many values": body([1, 2, 3, 4]), "text": body(["a", 2, 3]), "true": body([1, 2, True]),
          "null": body([None, 2, 3]), "negative shape": body(shape=[-1, 3]), "data null": {"inputs": [body()["inputs"][0] | {"data": None}]}}
@pytest.mark.parametrize("wrong", BROKEN)
def test_a_broken_document_is_an_error_in_both_servers(endpoint, wrong):
    "Triton may answer 500; the embedded server answers 400."
    r = plain(endpoint, BROKEN[wrong])
    assert r.json()["error"]
    assert r.status_code == 400 if endpoint.kind == "embedded" else r.status_code in (400, 500)
    assert plain(endpoint, body()).status_code == 200

@pytest.mark.parametrize("request_", [
    {"model_name": "yolo", "inputs": [tensor(rows(1))]}, {"model_version": "9", "inputs": [tensor(rows(1))]}, {"inputs": [tensor(rows(1), name="image")]},
    {"inputs": [tensor(rows(1)[:, :2])]}, {"inputs": [tensor(rows(1)[0])]}, {"inputs": [tensor(rows(1).astype(np.float64), datatype="FP64")]},
    {"inputs": [tensor(rows(1001))]}, {"inputs": []}, {"inputs": [tensor(rows(1))], "outputs": [triton.InferRequestedOutput("label")]}],
    ids=["model", "version", "name", "columns", "dimensions", "dtype", "rows", "missing", "output"])
def test_tritonclient_raises_its_own_error(endpoint, request_):
    with pytest.raises(InferenceServerException) as e: endpoint.client.infer(**{"model_name": "churn"} | request_)
    assert e.value.status() in ("400", "404", "413") and e.value.message()

@pytest.mark.parametrize("claim, tail, n", [(12, 8, None), (8, 8, None), (16, 12, None), (None, 12, None), (12, 12, 10_000)])
def test_a_lie_about_binary_data_is_an_error(endpoint, claim, tail, n):
    import json
    i = {"name": "features", "datatype": "FP32", "shape": [1, 3]} | ({} if claim is None else {"parameters": {"binary_data_size": claim}})
    head = json.dumps({"inputs": [i]}).encode()
    r = plain(endpoint, head + b"\0"*tail, headers={"Inference-Header-Content-Length": str(n or len(head))})
    assert r.status_code == 400 or endpoint.kind == "triton" and r.status_code == 500, r.text
    assert plain(endpoint, body()).status_code == 200
