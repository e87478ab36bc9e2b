"Explanations: exact by an independent count, additive for real graphs, and never in the way of other requests."
import asyncio, json, threading
import httpx, numpy as np, pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings as hyp, strategies as st
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import GradientBoostingClassifier
import churn_nb.serving.explanations
from churn_nb.core.errors import BundleError
from churn_nb.core.manifest import Feature, SelfTest
from churn_nb.registry.bundle import write_bundle
from churn_nb.evaluation.shapley import coalition_values, contributions
from churn_nb.serve import FeastOnline, Model, create_app
from deadlines import allow
from orders import walk
from serving import manifest, onnx_model, probability, put_live, serving, settings_for

ROW = {"age": 42, "usage_minutes": 310.5, "gap": None}
REFERENCE = [40., 200., 0.]
cell = st.floats(-50, 50, width=32)

@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    "A boosted-tree model of 10 features as a loaded bundle; it never saw column 3 vary."
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 10)).astype(np.float32)
    X[:, 3] = 1
    sk = GradientBoostingClassifier(n_estimators=30, random_state=0).fit(X, (X[:, 0] * X[:, 1] + X[:, 2] > 0).astype(int))
    m = to_onnx(sk, initial_types=[("features", FloatTensorType([None, 10]))], options={"zipmap": False}, target_opset=17)
    from onnx import TensorProto, helper
    m.graph.initializer.append(helper.make_tensor("second", TensorProto.INT64, [], [1]))
    m.graph.node.append(helper.make_node("Gather", [m.graph.output[1].name, "second"], ["probability"], axis=1))
    del m.graph.output[:]
    m.graph.output.append(helper.make_tensor_value_info("probability", TensorProto.FLOAT, [None]))
    names = [f"f{i}" for i in range(10)]
    made = manifest(features=[Feature(name=n) for n in names], example=dict.fromkeys(names, 0.), reference=np.median(X, 0).tolist(),
                    self_test=SelfTest(rows=X[:5].tolist(), probability=sk.predict_proba(X[:5])[:, 1].tolist()))
    return Model.load(write_bundle(tmp_path_factory.mktemp("trees"), m.SerializeToString(), made)), X

def test_contributions_of_onnx_trees_add_up_and_are_reproducible(trees):
    model, X = trees
    r = np.array(model.manifest.reference, np.float32)
    for x in X[:25]:
        x = x.copy(); x[3] = 5 # differs from the reference, and no tree looks at it
        phi = contributions(model.predict, x, r)
        assert abs(phi.sum() - (model.predict(x[None])[0].astype(float) - model.predict(r[None])[0])) < 1e-6
        assert phi[3] == 0 and (contributions(model.predict, x, r) == phi).all()

def test_how_many_rows_go_at_once_does_not_matter(trees):
    model, X = trees
    r, players = np.array(model.manifest.reference, np.float32), np.arange(8)
    whole = coalition_values(model.predict, X[0], r, players)
    for chunk in (1, 7, 256): np.testing.assert_allclose(coalition_values(model.predict, X[0], r, players, chunk), whole, atol=1e-6)

@given(st.lists(st.tuples(cell, cell, cell | st.none()), min_size=1, max_size=5))
@hyp(max_examples=40, deadline=None)
def test_they_add_up_for_a_graph_with_gaps(tiny_bundle, rows):
    model, r = Model.load(tiny_bundle/"bundle"/"current"), np.array(REFERENCE, np.float32)
    for x in np.array(rows, np.float32):
        phi = contributions(model.predict, x, r)
        assert abs(phi.sum() - (probability(x) - probability(r))) < 1e-6
        np.testing.assert_allclose(phi, walk(probability, x, r), atol=1e-6)

# --- over HTTP ---

class StandIn(FeastOnline):
    def _read(self, where, names, ids): return [{1: (30., 100., None)}.get(i) for i in ids]

@pytest.fixture
def api(tiny_bundle, monkeypatch):
    monkeypatch.setattr("churn_nb.serve.FeastOnline", StandIn)
    return TestClient(create_app(settings_for(tiny_bundle)))

def problem(r, status):
    assert r.status_code == status == r.json()["status"] and r.headers["content-type"] == "application/problem+json" and "\n" not in r.json()["detail"]
    return r.json()

@pytest.mark.parametrize("body,x", [(ROW, [42, 310.5, np.nan]), ({"customer_id": 1}, [30, 100, np.nan])])
def test_an_explained_answer_adds_contributions_to_the_plain_one(api, body, x):
    plain, r = api.post("/predict", json=body).json(), api.post("/predict?explain=true", json=body)
    assert r.status_code == 200 and r.headers["x-model-version"] == "1"
    a = r.json()
    phi, p_reference = a.pop("contributions"), a.pop("reference_probability")
    assert a == plain and set(phi) == set(ROW)
    assert abs(p_reference - probability(REFERENCE)) < 1e-6 and abs(p_reference + sum(phi.values()) - a["probability"]) < 1e-6
    want = dict(zip(ROW, walk(probability, np.array(x, np.float32), np.array(REFERENCE, np.float32)), strict=True))
    np.testing.assert_allclose([phi[n] for n in ROW], [*want.values()], atol=1e-6)
    sizes = [abs(v) for v in phi.values()]
    assert sizes == sorted(sizes, reverse=True) and phi["gap"] == 0 # the graph takes a gap for 0, as the reference has it

@pytest.mark.parametrize("query", ["", "?", "?explain=false", "?other=1", "?explain=false&other=true"])
def test_without_the_flag_the_answer_is_what_it_was(api, query):
    assert api.post("/predict" + query, json=ROW).content == api.post("/predict", json=ROW).content
    assert api.post("/predict/batch" + query, json=[ROW]).content == api.post("/predict/batch", json=[ROW]).content

@pytest.mark.parametrize("query", ["explain", "explain=", "explain=1", "explain=True", "explain=yes", "explain=true&explain=false", "explain=%FF", "explain=tr%00ue"])
def test_another_value_is_refused_and_named(api, query):
    for path, body in (("/predict", ROW), ("/predict/batch", [ROW])):
        p = problem(api.post(f"{path}?{query}", json=body), 422)
        assert p["errors"] == [{"field": "explain", "message": "expected true or false"}] and p["detail"].startswith("explain: ")

def test_explaining_a_batch_or_a_bad_row_is_refused(api):
    assert "one row at a time" in problem(api.post("/predict/batch?explain=true", json=[ROW]), 422)["detail"]
    assert problem(api.post("/predict?explain=true", json={"age": 1}), 422)["errors"][0]["field"] == "usage_minutes"
    problem(api.post("/predict?explain=true", json={"customer_id": 99}), 404)
    problem(api.post("/predict?explain=true", content=b"{", headers={"Content-Type": "application/json"}), 400)
    problem(api.get("/predict?explain=true"), 405)

def test_a_bundle_without_a_reference_predicts_and_does_not_explain(tmp_path):
    put_live(tmp_path, reference=None)
    c = TestClient(create_app(settings_for(tmp_path)))
    assert "no reference" in problem(c.post("/predict?explain=true", json=ROW), 409)["detail"]
    assert c.post("/predict", json=ROW).status_code == 200
    assert "parameters" not in c.get("/openapi.json").json()["paths"]["/predict/batch"]["post"]

def test_a_reference_that_gets_no_probability_is_refused_at_loading(tmp_path):
    m = manifest(reference=[3e38, 3e38, 0.], self_test=SelfTest(rows=[[1., 2., 3.]], probability=[float(probability(np.array([1., 2., 3.]) * 1000))]))
    with pytest.raises(BundleError, match="no probability for the reference"): Model.load(write_bundle(tmp_path, onnx_model(scale=1000.), m))

def wide(workspace, k):
    names, rows = [f"f{i}" for i in range(k)], [[.1] * k]
    p = 1 / (1 + np.exp(-float(np.array(rows[0]) @ np.resize([.03, -.01, .2], k))))
    m = manifest(features=[Feature(name=n) for n in names], example=dict.fromkeys(names, 1.), reference=[0.] * k, self_test=SelfTest(rows=rows, probability=[p]))
    from churn_nb.registry.bundle import switch_current
    write_bundle(workspace/"bundle", onnx_model(k=k), m); switch_current(workspace/"bundle", "1")
    return m.example

def test_explanations_of_many_features_are_estimated_and_marked(tmp_path):
    body = wide(tmp_path, 20)
    app = create_app(settings_for(tmp_path))
    c = TestClient(app)
    a, again = (c.post("/predict?explain=true", json=body).json() for _ in range(2))
    assert a == again and a["method"] == "sampled" and set(a["standard_errors"]) == set(body)
    assert abs(sum(a["contributions"].values()) + a["reference_probability"] - a["probability"]) < 1e-6
    exact = contributions(app.state.current.model.predict, np.ones(20), np.zeros(20), limit=20)
    off = np.array([a["contributions"][n] for n in body]) - exact
    assert (np.abs(off) <= 5*np.array([a["standard_errors"][n] for n in body]) + 1e-6).all() and np.abs(off).max() < 1e-3
    few = body | {f"f{i}": 0. for i in range(8, 20)}
    assert set([*c.post("/predict?explain=true", json=few).json()["contributions"].values()][8:]) == {0}
    sixteen = c.post("/predict?explain=true", json=body | dict.fromkeys(list(body)[16:], 0.)).json()
    assert "method" not in sixteen and "standard_errors" not in sixteen

def test_explaining_blocks_no_other_request(tiny_bundle, monkeypatch):
    "Too many explanations at once get 503 with Retry-After."
    gate, began, real = threading.Event(), threading.Semaphore(0), churn_nb.serving.explanations.explained
    def slow(*args):
        began.release()
        assert gate.wait(allow(30))
        return real(*args)
    monkeypatch.setattr(churn_nb.serving.explanations, "explained", slow)
    async def talk():
        transport = httpx.ASGITransport(create_app(settings_for(tiny_bundle)))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as c:
            ask = lambda: asyncio.create_task(c.post("/predict?explain=true", json=ROW))
            explaining = [ask() for _ in range(8)]
            await asyncio.to_thread(began.acquire)                      # the first is in work, and stays there
            plain = [await c.post("/predict", json=ROW) for _ in range(5)]
            ninth = await c.post("/predict?explain=true", json=ROW)
            assert not any(t.done() for t in explaining) and not began.acquire(blocking=False) # one at a time
            gate.set()
            return plain, ninth, await asyncio.gather(*explaining), await ask()
    plain, ninth, explained, later = asyncio.run(talk())
    assert [r.status_code for r in plain] == [200] * 5
    assert "wait already" in problem(ninth, 503)["detail"] and ninth.headers["retry-after"] == "1"
    assert {r.status_code for r in [*explained, later]} == {200} and len({r.content for r in explained}) == 1

def test_a_running_server_answers_others_meanwhile(tmp_path):
    body = wide(tmp_path, 16)
    with serving(tmp_path) as s, httpx.Client(base_url=s.url, timeout=allow(60)) as c:
        got = []
        def explain():
            with httpx.Client(base_url=s.url, timeout=allow(60)) as other: got.extend(other.post("/predict?explain=true", json=body) for _ in range(4))
        (t := threading.Thread(target=explain)).start()
        during = 0
        while t.is_alive():
            assert c.post("/predict", json=body).status_code == 200
            during += t.is_alive()
        t.join()
        assert [r.status_code for r in got] == [200] * 4 and during > 4
        a = got[0].json()
        assert abs(a["reference_probability"] + sum(a["contributions"].values()) - a["probability"]) < 1e-6

def test_the_openapi_document_describes_explanations(api):
    paths = api.get("/openapi.json").json()["paths"]
    post = paths["/predict"]["post"]
    assert [(p["name"], p["in"], p["schema"]["type"]) for p in post["parameters"]] == [("explain", "query", "boolean")]
    schema = post["responses"]["200"]["content"]["application/json"]["schema"]
    assert {"contributions", "reference_probability", "method", "standard_errors"} == set(schema["properties"]) - set(schema["required"]) and "409" in post["responses"]
    assert json.loads(api.post("/predict?explain=true", json=ROW).content).keys() == schema["properties"].keys() - {"method", "standard_errors"}
    assert api.get("/model").json()["reference"] == REFERENCE

def test_a_graph_that_mixes_rows_gets_no_explanation(tiny_bundle):
    c = TestClient(app := create_app(settings_for(tiny_bundle)), raise_server_exceptions=False)
    model = app.state.current.model
    model.predict = lambda X: (probability(X) * .5 + np.arange(len(X)) * .01).astype(np.float32) # its rows lean on their neighbours
    assert "don't" not in problem(c.post("/predict?explain=true", json=ROW), 500)["detail"]
    assert c.post("/predict", json=ROW).status_code == 200
