"The API by the user's own column names and values: texts are scored, unseen ones are named, and nothing that is sent ends in a 5xx."
import asyncio, json
from types import SimpleNamespace
import httpx, msgspec, numpy as np, pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings as hyp, strategies as st
from churn_nb import serve
from churn_nb.core.errors import BundleError
from churn_nb.core.manifest import Feature, SelfTest, manifest_json, parse_manifest
from churn_nb.registry.bundle import write_bundle
from churn_nb.data.encoding import UNSEEN, entity_key
from churn_nb.registry.onnx_validation import check_onnx
from churn_nb.monitoring.logged_traffic import read_requests
from churn_nb.serving.request_schema import RequestSchema, TextKey
from churn_nb.serve import Model, create_app
from churn_nb.core.settings import load_settings
from churn_nb.monitoring.logged_traffic import read_shadow
from churn_nb.monitoring.shadow import Shadow
from churn_nb.serving.triton import signature, triton_config
from churn_nb.serving.http.telemetry import Metrics
from own_columns import EXAMPLE, FEATURES, expected, graph, own_manifest, put_own
from deadlines import allow
from serving import manifest, onnx_model, serving, settings_for

STORED = {"Kundin 7": ("monatlich", 33., "408", None), "8": ("neu", 50., "415", 1.), "leer": (None, 20., None, 1.)}

class Stored:
    "An online store in memory: texts for categories, by `entity_key`."
    def __init__(self, settings): self.pool = self
    def shutdown(self, **how): pass
    async def warm(self, where, names): pass
    async def lookup(self, where, names, ids):
        assert all(0 <= i < 2**63 for i in ids)
        rows = {entity_key(k): v for k, v in STORED.items()}
        return [rows.get(int(i)) for i in ids]

@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "An app over the small model, its store in memory; the workspace under `.ws`."
    ws = tmp_path_factory.mktemp("own")
    put_own(ws)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(serve, "FeastOnline", Stored)
        with TestClient(create_app(settings_for(ws))) as c:
            c.ws = ws
            yield c

def ask(c, **changes): return c.post("/predict", json=EXAMPLE | changes)
def close(answer, row): assert abs(answer["probability"] - expected(row)) < 1e-6
def fields(r, status): assert r.status_code == status, r.text; return {e["field"]: e["message"] for e in r.json()["errors"]}

# --- one row ---

def test_a_row_as_it_is_in_the_file_is_scored(served):
    a = ask(served).json()
    close(a, EXAMPLE)
    assert a["missing_features"] == a["unseen_categories"] == [] and a["model_version"] == "1"

@pytest.mark.parametrize("changes,row,missing,unseen", [
    ({"Vertragsart": "jährlich"}, {"Vertragsart": "jährlich"}, [], []),
    ({"Vertragsart": None, "Größe": None}, {"Vertragsart": None, "Größe": None}, ["Vertragsart", "Größe"], []),
    ({"Vertragsart": ""}, {"Vertragsart": None}, ["Vertragsart"], []),
    ({"Vertragsart": "wöchentlich"}, {"Vertragsart": "neu"}, [], ["Vertragsart"]),
    ({"Vertragsart": "Monatlich", "Vorwahl": "x"}, {"Vertragsart": "neu", "Vorwahl": "neu"}, [], ["Vertragsart", "Vorwahl"]),
    ({"Vertragsart": UNSEEN}, {"Vertragsart": "neu"}, [], ["Vertragsart"]),
    ({"Vorwahl": 408}, {"Vorwahl": "408"}, [], []), ({"Vorwahl": 408.0}, {"Vorwahl": "408"}, [], []),
    ({"Vorwahl": True}, {"Vorwahl": "True"}, [], []), ({"Vorwahl": False}, {"Vorwahl": "neu"}, [], ["Vorwahl"]),
    ({"Vorwahl": 408.5}, {"Vorwahl": "neu"}, [], ["Vorwahl"])])
def test_texts_missing_ones_unseen_ones_and_numbers(served, changes, row, missing, unseen):
    for a in (ask(served, **changes).json(), served.post("/predict/batch", json=[EXAMPLE, EXAMPLE | changes]).json()[1]):
        close(a, EXAMPLE | row)
        assert a["missing_features"] == missing and a["unseen_categories"] == unseen

@pytest.mark.parametrize("changes,field,says", [
    ({"Vertragsart": ["monatlich"]}, "Vertragsart", "expected text or null"), ({"Vertragsart": {}}, "Vertragsart", "expected text or null"),
    ({"Vorwahl": None}, "Vorwahl", "expected text"), ({"Vorwahl": ""}, "Vorwahl", "may not be missing"),
    ({"Alter": "42"}, "Alter", "expected a number, got text"), ({"Größe": "groß"}, "Größe", "expected a number or null, got text"),
    ({"Alter": None}, "Alter", "expected a number, got null"), ({"Farbe": "rot"}, "Farbe", "unknown field")])
def test_what_can_not_be_a_value_is_refused_by_name(served, changes, field, says):
    assert says in fields(ask(served, **changes), 422)[field]
    r = served.post("/predict/batch", json=[EXAMPLE, EXAMPLE | changes])
    assert says in fields(r, 422)[field] and r.json()["errors"][0]["row"] == 1

def test_columns_that_are_missing_are_all_named(served):
    assert fields(served.post("/predict", json={"Alter": 1}), 422) == dict.fromkeys(["Vertragsart", "Vorwahl", "Größe"], "missing")

# --- customers whose id is a text ---

def test_a_customer_is_known_by_the_text_of_the_file(served):
    a = served.post("/predict", json={"customer_id": "Kundin 7"}).json()
    close(a, dict(zip(EXAMPLE, STORED["Kundin 7"])))
    assert a["missing_features"] == ["Größe"] and a["unseen_categories"] == []
    for i in (8, "8"):
        a = served.post("/predict", json={"customer_id": i}).json()
        close(a, dict(zip(EXAMPLE, STORED["8"])))
        assert a["unseen_categories"] == ["Vertragsart"]
    both = served.post("/predict/batch", json=[{"customer_id": "Kundin 7"}, EXAMPLE]).json()
    close(both[0], dict(zip(EXAMPLE, STORED["Kundin 7"])))
    close(both[1], EXAMPLE)

def test_unknown_customers_and_ids_that_are_none(served):
    assert fields(served.post("/predict", json={"customer_id": "Zoë"}), 404) == {"customer_id": "no customer Zoë in the online store"}
    assert fields(served.post("/predict/batch", json=[{"customer_id": "Zoë"}]), 404) == {"customer_id": "no customer Zoë in the online store"}
    for i in (None, [], {}, True): assert fields(served.post("/predict", json={"customer_id": i}), 422) == {"customer_id": "expected text or a number"}
    r = served.post("/predict", json={"customer_id": "leer"})
    assert r.status_code == 503 and "no Vorwahl for a customer" in r.json()["detail"]

def test_both_paths_of_a_real_server_answer_the_same(tmp_path):
    put_own(tmp_path)
    with serving(tmp_path, request_log=0.) as s, httpx.Client(base_url=s.url, timeout=allow(90)) as c:
        for row in (EXAMPLE, EXAMPLE | {"Vertragsart": None, "Vorwahl": "neu"}, EXAMPLE | {"Vertragsart": ""}):
            fast, standard = (c.post("/predict", json=row, headers=h) for h in ({}, {"Connection": "close"}))
            assert fast.status_code == 200 and fast.content == standard.content
        assert c.post("/predict", json={"customer_id": "Kundin 7"}).status_code == 503 # there is no store
        assert "expected text" in c.post("/predict", json=EXAMPLE | {"Vorwahl": []}).text

# --- what the API says of itself ---

def test_the_model_card_and_docs_hold_the_files_own_words(served):
    card = served.get("/model").json()
    assert card["example"] == EXAMPLE and card["features"][0]["values"] == ["jährlich", "monatlich"]
    doc = served.get("/openapi.json").json()["paths"]["/predict"]["post"]
    features, by_id = doc["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    p = features["properties"]
    assert p["Vertragsart"]["type"] == ["string", "null"] and p["Vertragsart"]["examples"] == ["jährlich", "monatlich"]
    assert p["Vertragsart"]["description"] == "Laufzeit; training saw jährlich, monatlich"
    assert p["Vorwahl"]["type"] == "string" and p["Alter"]["type"] == "number" and by_id["properties"]["customer_id"] == {"type": ["string", "integer"], "minLength": 1}
    answer = doc["responses"]["200"]["content"]["application/json"]
    assert answer["example"]["unseen_categories"] == [] and "unseen_categories" in answer["schema"]["properties"]
    body = doc["requestBody"]["content"]["application/json"]["examples"]["features"]["value"]
    assert served.post("/predict", json=body).status_code == 200

def test_of_hundreds_of_values_twenty_are_shown():
    from churn_nb.serving.http.openapi import category_values
    says = category_values(Feature(name="a", type="string", values=[f"v{i}" for i in range(300)]))
    assert len(says["examples"]) == 20 and says["description"].endswith("v19, and 280 more")

def test_a_model_of_numbers_answers_and_documents_as_before(tmp_path):
    from serving import put_live
    put_live(tmp_path)
    with TestClient(create_app(settings_for(tmp_path))) as c:
        a = c.post("/predict", json={"age": 42, "usage_minutes": 310.5, "gap": None})
        assert [*a.json()] == ["churn_risk", "probability", "threshold", "model_version", "missing_features"]
        assert "unseen" not in c.get("/openapi.json").text

# --- explanations ---

def test_contributions_are_by_column_and_add_up(served):
    a = served.post("/predict?explain=true", json=EXAMPLE | {"Vertragsart": "neu", "Größe": None}).json()
    reference = dict(zip(EXAMPLE, own_manifest().reference))
    assert set(a["contributions"]) == set(EXAMPLE) and "method" not in a
    assert abs(a["reference_probability"] - expected(reference)) < 1e-6
    assert abs(sum(a["contributions"].values()) + a["reference_probability"] - a["probability"]) < 1e-6
    only = served.post("/predict?explain=true", json=reference | {"Vertragsart": "jährlich"}).json()["contributions"]
    assert only["Vertragsart"] < 0 and not any(v for n, v in only.items() if n != "Vertragsart")

# --- Open Inference Protocol ---

def v2(c, inputs, raw=b""):
    head = json.dumps({"inputs": inputs}).encode()
    return c.post("/v2/models/churn/infer", content=head + raw, headers={"Inference-Header-Content-Length": str(len(head))} if raw else {})

NUMBERS = {"name": "features", "datatype": "FP32", "shape": [2, 2], "data": [42, 100, 20, None]}
TEXTS = {"name": "categories", "datatype": "BYTES", "shape": [2, 2], "data": ["monatlich", "415", None, "neu"]}
ROWS = [EXAMPLE, {"Vertragsart": None, "Alter": 20., "Vorwahl": "neu", "Größe": None}]
def as_bytes(*texts): return b"".join(len(b := t.encode()).to_bytes(4, "little") + b for t in texts)

def test_v2_lists_both_inputs_and_takes_json_or_bytes(served):
    assert [(t["name"], t["datatype"], t["shape"]) for t in served.get("/v2/models/churn").json()["inputs"]] == [
        ("features", "FP32", [-1, 2]), ("categories", "BYTES", [-1, 2])]
    assert [t["data_type"] for t in served.get("/v2/models/churn/config").json()["input"]] == ["TYPE_FP32", "TYPE_STRING"]
    binary = lambda t, b: {k: v for k, v in t.items() if k != "data"} | {"parameters": {"binary_data_size": len(b)}}
    x, t = np.array([42, 100, 20, np.nan], "<f4").tobytes(), as_bytes("monatlich", "415", "", "neu")
    for r in (v2(served, [NUMBERS, TEXTS]), v2(served, [TEXTS, NUMBERS]), v2(served, [TEXTS | {"data": [["monatlich", "415"], [None, "neu"]]}, NUMBERS]),
              v2(served, [binary(NUMBERS, x), binary(TEXTS, t)], x + t), v2(served, [binary(TEXTS, t), NUMBERS], t)):
        assert r.status_code == 200, r.text
        np.testing.assert_allclose(r.json()["outputs"][0]["data"], [expected(row) for row in ROWS], atol=1e-6)

@pytest.mark.parametrize("inputs,says", [
    ([NUMBERS], "1 inputs; expected features and categories"), ([NUMBERS, NUMBERS], "twice"), ([NUMBERS, TEXTS, TEXTS], "3 inputs"),
    ([NUMBERS, TEXTS | {"datatype": "FP32"}], "expected categories BYTES"), ([NUMBERS | {"name": "x"}, TEXTS], "input x FP32: expected features FP32"),
    ([NUMBERS, TEXTS | {"shape": [2, 3]}], "expected \\[N, 2\\]"), ([NUMBERS, TEXTS | {"shape": [1, 2], "data": ["a", "b"]}], "inputs of 1 and 2 rows"),
    ([NUMBERS, TEXTS | {"data": ["a"]}], "1 values"), ([NUMBERS, TEXTS | {"data": [1, 2, 3, 4]}], "expected text or null, got a whole number"),
    ([NUMBERS, TEXTS | {"data": ["monatlich", None, "monatlich", "408"]}], "Vorwahl: may not be missing"),
    ([NUMBERS, TEXTS | {"parameters": {"binary_data_size": "x"}}], "expected a number of bytes")])
def test_v2_errors_name_the_cause(served, inputs, says):
    r = v2(served, inputs)
    assert r.status_code == 400
    with pytest.raises(ValueError, match=says): raise ValueError(r.json()["detail"])

GOOD = as_bytes("monatlich", "415", "", "neu")

@pytest.mark.parametrize("raw,size", [
    (GOOD[:-1], None), (GOOD + b"\0", None), (GOOD + as_bytes("x"), None), (b"\xff\xff\xff\xff" + GOOD[4:], None), (b"", 0),
    (GOOD, len(GOOD) - 1), (GOOD, 2**63 - 1), (as_bytes("a", "b", "c") + b"\1\0\0\0\xff", None), (GOOD[:3], None)])
def test_v2_lengths_that_lie_are_400(served, raw, size):
    t = {k: v for k, v in TEXTS.items() if k != "data"} | {"parameters": {"binary_data_size": len(raw) if size is None else size}}
    assert v2(served, [NUMBERS, t], raw).status_code == 400

# --- bundles and graphs ---

@pytest.mark.parametrize("change,says", [
    ({"example": EXAMPLE | {"Alter": "42"}}, "example: Alter needs a number, not '42'"), ({"example": EXAMPLE | {"Vorwahl": 408.}}, "example: Vorwahl needs text"),
    ({"example": EXAMPLE | {"Vorwahl": "999"}}, "example: '999' is not one of the values of Vorwahl"),
    ({"reference": ["monatlich", "40", "408", 1.]}, "reference: Alter needs a number"), ({"reference": ["x", 40., "408", 1.]}, "reference: 'x' is not one"),
    ({"self_test": {"rows": [[1., 1., "408", 1.]], "probability": [.5]}}, "self_test: Vertragsart needs text"), ({"input": "x"}, "input: it is `features`")])
def test_a_manifest_with_values_of_the_wrong_type_is_refused(change, says):
    data = json.dumps(json.loads(manifest_json(own_manifest())) | change).encode()
    with pytest.raises(BundleError, match=says): parse_manifest(data)

@pytest.mark.parametrize("change,says", [({"values": []}, "needs a list"), ({"values": ["a", "a"]}, "each once"), ({"values": ["a", ""]}, "empty"),
                                         ({"type": "float32"}, "is a number, but has a list of values")])
def test_a_category_needs_its_values_and_a_number_has_none(change, says):
    m = json.loads(manifest_json(own_manifest()))
    m["features"][0] |= change
    with pytest.raises(BundleError, match=f"features: Vertragsart.*{says}"): parse_manifest(json.dumps(m).encode())

def test_an_older_manifest_loads_and_is_one_of_numbers():
    m = json.loads(manifest_json(manifest()))
    for f in m["features"]: del f["values"]
    del m["store"]["key"]
    old = parse_manifest(json.dumps(m).encode())
    assert old == parse_manifest(manifest_json(manifest())) and old.store.key == "int"

def test_a_graph_must_take_what_its_manifest_declares(tmp_path):
    check_onnx(graph(), own_manifest())
    with pytest.raises(BundleError, match=r"input is features float \[N, 3\], the manifest says features float \[N, 2\]; categories string \[N, 2\]"):
        check_onnx(onnx_model(), own_manifest())
    with pytest.raises(BundleError, match=r"input is features float \[N, 2\]; categories string"): check_onnx(graph(), manifest())
    wrong = own_manifest(self_test=SelfTest(rows=own_manifest().self_test.rows, probability=[.1, .2, .3]))
    with pytest.raises(BundleError, match="a probability is off"): Model.load(write_bundle(tmp_path, graph(), wrong))

def test_a_model_of_texts_alone_has_one_input(tmp_path):
    features, rows = [f for f in FEATURES if f.values], [["monatlich", "408"]]
    m = own_manifest(features=features, example={f.name: EXAMPLE[f.name] for f in features}, reference=rows[0], store=None,
                     self_test=SelfTest(rows=rows, probability=[float(1 / (1 + np.exp(-1.5)))]))
    put_own(tmp_path, model=graph("categories"), **{k: getattr(m, k) for k in ("features", "example", "reference", "store", "self_test")})
    with TestClient(create_app(settings_for(tmp_path))) as c:
        assert c.post("/predict", json={"Vertragsart": "monatlich", "Vorwahl": 408}).json()["probability"] == pytest.approx(1 / (1 + np.exp(-1.5)))
        r = v2(c, [TEXTS])
        assert r.status_code == 200 and len(r.json()["outputs"][0]["data"]) == 2
        assert v2(c, [NUMBERS]).status_code == 400

def test_the_triton_configuration_lists_both_inputs():
    text = triton_config("churn", *signature(graph()))
    assert 'name: "features" data_type: TYPE_FP32 dims: [ 2 ]' in text and 'name: "categories" data_type: TYPE_STRING dims: [ 2 ]' in text

def test_a_real_triton_gives_the_same_answers(triton_here, tmp_path):
    from churn_nb.serving.triton import TritonBackend, write_model_repository
    write_model_repository(folder := put_own(tmp_path), tmp_path/"triton")
    model, X = Model.load(folder), np.array([[1, 42, 1, 100], [np.nan, 20, -1, np.nan], [-1, 60, 0, 1]], np.float32)
    with triton_here(tmp_path/"triton", tmp_path) as t:
        async def work():
            b = TritonBackend(load_settings({"triton.url": f"127.0.0.1:{t.grpc}", "triton.deadline_ms": 20_000, "triton.fallback": "no"}, environ={}))
            try: return await b.score(model, X)
            finally: await b.close()
        p, by = asyncio.run(work())
    assert by == "triton"
    np.testing.assert_allclose(p, model.predict(X), atol=1e-6)

# --- what is written down ---

def test_the_request_log_holds_texts_and_no_ids(tmp_path, monkeypatch):
    put_own(tmp_path)
    monkeypatch.setattr(serve, "FeastOnline", Stored)
    with TestClient(create_app(settings_for(tmp_path, request_log=1.))) as c:
        for body in (EXAMPLE, EXAMPLE | {"Vertragsart": None}, EXAMPLE | {"Vertragsart": "eine Mail: a@b.c"}, {"customer_id": "Kundin 7"}):
            assert c.post("/predict", json=body).status_code == 200
    log = read_requests(tmp_path/"requests")
    assert log["Vertragsart"].where(log["Vertragsart"].notna(), None).tolist() == ["monatlich", None, UNSEEN, "monatlich"]
    assert log["Alter"].tolist() == [42, 42, 42, 33] and log["Alter"].dtype == np.float32
    assert log.customer_id.tolist()[3] == entity_key("Kundin 7")
    assert all(b"Kundin" not in f.read_bytes() for f in tmp_path.glob("requests/*/*"))

def test_a_log_column_with_numbers_and_texts_reads_as_text(tmp_path):
    "Two models wrote it: the column is a number for one and a text for the other."
    from churn_nb.monitoring.request_log import RequestLog, RequestLogOptions
    number = [Feature(name="Vorwahl")]
    text = [Feature(name="Vorwahl", type="string", values=["408"])]
    for version, features, x in (("1", number, 408.), ("2", text, 0.), ("3", text, np.nan)):
        log = RequestLog(tmp_path, RequestLogOptions(seconds=.01))
        log.put(SimpleNamespace(manifest=SimpleNamespace(version=version, names=["Vorwahl"], features=features)), np.array([[x]], np.float32), [.5], [1])
        log.close()
    frame = read_requests(tmp_path)
    assert frame.attrs["broken"] == [] and frame.Vorwahl.tolist()[:2] == ["408", "408"] and frame.Vorwahl.isna().tolist() == [False, False, True]

def test_a_challenger_with_other_words_is_asked_in_its_own(tmp_path):
    ours = Model.load(put_own(tmp_path))
    features = [FEATURES[3], FEATURES[1], FEATURES[2], msgspec.structs.replace(FEATURES[0], values=["monatlich", "jährlich"])]
    theirs = RequestSchema(features)
    seen = []
    challenger = SimpleNamespace(manifest=SimpleNamespace(version="2", names=theirs.names, features=features), schema=theirs,
                                 dictionary=theirs.encoder.dictionary, predict=lambda X: seen.append(X) or X[:, 0]*0 + .25)
    shadow = Shadow(SimpleNamespace(model=challenger, refresh=lambda: None), tmp_path/"log", Metrics())
    key = TextKey.read("Kundin 7")
    shadow.put(ours, np.array([[1, 42, 1, 100], [0, 20, -1, 5]], np.float32), [.5, .5], [key, None])
    shadow.close()
    assert seen[0].tolist() == [[100, 42, 1, 0], [5, 20, -1, 1]]
    assert read_shadow(tmp_path/"log").customer_id.tolist()[0] == entity_key("Kundin 7")

# --- anything at all ---

anything = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=5)

@given(field=st.sampled_from([*EXAMPLE, "customer_id", "Farbe"]), value=anything, alone=st.booleans())
@example("Vorwahl", 10**400, False)
@example("Vorwahl", "\ud800", False)
@example("Vertragsart", "\0", False)
@example("Vertragsart", -0., False)
@example("customer_id", "x"*5000, True)
@hyp(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_any_field_is_200_or_4xx(served, field, value, alone):
    body = json.dumps({field: value} if alone else EXAMPLE | {field: value})
    for path, text in (("/predict", body), ("/predict/batch", f"[{body}]")):
        r = served.post(path, content=text, headers={"Content-Type": "application/json"})
        assert r.status_code == 200 or 400 <= r.status_code < 500 or value == "leer", (r.status_code, r.text)
        if r.status_code >= 400: assert r.json()["detail"]

@given(st.lists(st.sampled_from([NUMBERS, TEXTS]) | st.fixed_dictionaries({"name": st.sampled_from(["features", "categories", "x"]),
       "datatype": st.sampled_from(["FP32", "BYTES"]), "shape": st.lists(st.integers(0, 3), max_size=3), "data": anything}), max_size=3), st.binary(max_size=40))
@hyp(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_v2_request_is_200_or_4xx(served, inputs, raw):
    try: r = v2(served, inputs, raw)
    except ValueError: return # json.dumps made what httpx can't send
    assert r.status_code in (200, 400, 413), r.text
