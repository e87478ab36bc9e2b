"Explanations: exact by an independent count, additive for real graphs, and never in the way of other requests."
import asyncio, itertools, json, math, threading
import httpx, numpy as np, pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings as hyp, strategies as st
from hypothesis.extra.numpy import arrays
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import GradientBoostingClassifier
import churn_nb.serving.explanations
from churn_nb.core.errors import BundleError
from churn_nb.core.manifest import Feature, SelfTest
from churn_nb.registry.bundle import write_bundle
from churn_nb.serving.explanations import coalition_values, contributions, sampled_contributions, shapley
from churn_nb.serve import FeastOnline, Model, create_app
from deadlines import allow
from serving import manifest, onnx_model, probability, put_live, serving, settings_for

ROW = {"age": 42, "usage_minutes": 310.5, "gap": None}
REFERENCE = [40., 200., 0.]
cell = st.floats(-50, 50, width=32)

# --- the numbers ---

def walk(f, x, r):
    "Shapley values from their definition: the mean over all orders of what each turn from r to x moves."
    d = len(x)
    total = np.zeros(d)
    for order in itertools.permutations(range(d)):
        row, before = r.copy(), f(r[None])[0]
        for j in order:
            row[j] = x[j]
            after = f(row[None])[0]
            total[j] += after - before
            before = after
    return total / math.factorial(d)

def bumpy(X):
    "A smooth function with products of features; a gap counts as 0."
    Z = np.nan_to_num(np.asarray(X, np.float64)) / 50
    return 1 / (1 + np.exp(-(Z.sum(1) + 3 * Z.prod(1) + 2 * Z[:, 0] * Z[:, -1])))

@given(st.integers(1, 5).flatmap(lambda d: st.tuples(*[arrays(np.float32, d, elements=cell | st.just(np.nan))] * 2)))
@hyp(max_examples=60, deadline=None)
def test_they_are_the_mean_over_all_orders_and_add_up(rows):
    x, r = rows
    phi = contributions(bumpy, x, r)
    np.testing.assert_allclose(phi, walk(bumpy, x, r), atol=1e-12)
    assert abs(phi.sum() - (bumpy(x[None]) - bumpy(r[None]))[0]) < 1e-12

@given(st.integers(1, 7).flatmap(lambda d: arrays(np.float64, 2**d, elements=st.floats(-1, 1))))
def test_any_game_is_shared_out_whole(v): assert abs(shapley(v).sum() - (v[-1] - v[0])) < 1e-9

@given(arrays(np.float64, (3, 6), elements=st.floats(-10, 10)))
def test_a_linear_function_is_known_in_closed_form(rows):
    beta, x, r = (a.astype(np.float32).astype(float) for a in rows)
    np.testing.assert_allclose(contributions(lambda X: X.astype(float) @ beta, x, r), beta * (x - r), atol=1e-9)

@given(arrays(np.float32, (2, 4), elements=cell))
def test_equal_features_contribute_equally_and_unused_ones_exactly_0(rows):
    x, r = rows
    x[1], r[1] = x[0], r[0]
    def f(X):
        a, b, c, _ = X.astype(float).T
        return np.tanh(a * b * c / 50 + a + b)
    phi = contributions(f, x, r)
    assert abs(phi[0] - phi[1]) < 1e-12 and phi[3] == 0

def test_features_equal_to_the_reference_get_0():
    "The model is not called for them."
    asked = []
    f = lambda X: asked.append(len(X)) or np.nan_to_num(X).sum(1)
    assert contributions(f, [1, np.nan, 3], [1, np.nan, 3]).tolist() == [0, 0, 0] and sum(asked) == 1
    assert contributions(lambda X: np.nan_to_num(X).sum(1), [1, np.nan, 5], [1, np.nan, 3]).tolist() == [0, 0, 2]

def test_too_many_features_or_no_probability_are_one_line():
    "The probability is missing for a mix of the row and the reference."
    with pytest.raises(ValueError, match="^17 features differ from the reference; exact contributions take at most 16$"):
        contributions(lambda X: X.sum(1), np.ones(17), np.zeros(17))
    assert contributions(lambda X: X.sum(1), np.ones(3), np.zeros(3), limit=3).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="no probability for a mix"), np.errstate(divide="ignore"):
        contributions(lambda X: np.log(X[:, 0] + X[:, 1]), [0, 1], [1, 0]) # both ends are fine, one mix is log 0

@given(st.integers(2, 6).flatmap(lambda d: arrays(np.float32, (2, d), elements=cell | st.just(np.nan))))
@hyp(max_examples=40, deadline=None)
def test_estimates_add_up_and_lie_within_their_errors(rows):
    x, r = rows
    exact, (phi, se) = contributions(bumpy, x, r), sampled_contributions(bumpy, x, r, rows=4000)
    assert abs(phi.sum() - exact.sum()) < 1e-12 and (np.abs(phi - exact) <= 6*se + 1e-9).all()
    assert not phi[(x == r) | np.isnan(x) & np.isnan(r)].any() and (sampled_contributions(bumpy, x, r, rows=4000)[0] == phi).all()

def test_500_features_take_about_as_many_rows_as_16():
    asked = []
    f = lambda X: asked.append(len(X)) or np.nan_to_num(X).sum(1)/500
    phi, se = sampled_contributions(f, np.ones(500), np.zeros(500))
    np.testing.assert_allclose(phi, 1/500, atol=1e-6)
    assert se.max() < 1e-6 and 60_000 < sum(asked) <= 65_536

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
    for portion in (1, 7, 256): np.testing.assert_allclose(coalition_values(model.predict, X[0], r, players, portion), whole, atol=1e-6)

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
