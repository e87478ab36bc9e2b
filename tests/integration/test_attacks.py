"""Attacks that are known from advisories, and their relatives, each really tried: on a running server, on the registry's readers, on the API.
A payload would leave a marker; what must happen is nothing, a loud refusal, and the old model goes on."""
import contextlib, hashlib, io, json, os, pickle, shutil, subprocess, sys, textwrap, threading
import cloudpickle, httpx, msgspec, numpy as np, onnx, pytest
from onnx import TensorProto, helper as h, numpy_helper
from churn_nb import promote as p
from churn_nb.core.errors import BundleError, RegistryError
from churn_nb.core.manifest import FileHash, manifest_json
from churn_nb.registry.bundle import read_bundle, write_bundle
from deadlines import allow
from paths import CHURN, PYTHON
from serving import manifest, onnx_model, probability, put_live, rss_mb, serving, wait_for

ROW = {"age": 42, "usage_minutes": 310.5, "gap": None}

class Payload:
    "Unpickled, it leaves a file."
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return (os.mknod, (self.marker,))

def pickles(marker):
    "The ways in which a payload is usually packed."
    out = [pickle.dumps(Payload(marker), n) for n in (0, 2, 5)] + [cloudpickle.dumps(Payload(marker))]
    import joblib
    joblib.dump(Payload(marker), buffer := io.BytesIO())
    return [*out, buffer.getvalue()]

def test_the_payload_works(tmp_path):
    for i, data in enumerate(pickles(tmp_path/"marker")):
        pickle.loads(data)
        assert (tmp_path/"marker").exists(), i
        (tmp_path/"marker").unlink()

# --- a bundle on the disk of a running server ---

SECRET = np.array([.5, .25, 9.125], np.float32)

class Victim:
    "A server that serves version 1, in a folder with a secret."
    def __init__(self, ws, server, api): self.ws, self.server, self.api, self.n = ws, server, api, 1
    bundles = property(lambda self: self.ws/"bundle")
    marker = property(lambda self: self.ws/"marker")
    def ready(self): return self.api.get("/readyz").json()
    def link(self, version):
        (self.bundles/"new").symlink_to(version); os.replace(self.bundles/"new", self.bundles/"current")
    def attack(self, model=None, spoil=None, says="", more=None, **change):
        "Put a version there by hand, as one who may write the folder; `spoil` then works on its files. It must be refused."
        self.n += 1
        change = {"version": str(self.n), **change}
        folder = self.bundles/str(self.n)
        shutil.copytree(write_bundle(self.ws/"made", onnx_model() if model is None else model, manifest(**change), more or {}), folder)
        if spoil: spoil(folder)
        logged = len(self.refusals())
        self.link(str(self.n))
        try:
            refused = wait_for(lambda: self.ready().get("refused", ""))
            assert refused and says in refused and "\n" not in refused and len(refused) < 600, refused
            self.goes_on()
            assert "churn_bundle_refused 1.0" in self.api.get("/metrics").text
            line = wait_for(lambda: self.refusals()[logged:])[-1]
            assert (line["level"], line["still_serving"]) == ("error", "1") and says in line["message"]
            return refused
        finally:
            self.link("1")
            assert wait_for(lambda: "refused" not in self.ready())
            shutil.rmtree(folder, ignore_errors=True); shutil.rmtree(self.ws/"made", ignore_errors=True)
    def goes_on(self):
        r = self.api.post("/predict", json=ROW)
        assert r.status_code == 200 and r.json()["model_version"] == "1"
        assert abs(r.json()["probability"] - probability([[42, 310.5, np.nan]])[0]) < 1e-6
        assert not self.marker.exists()
    def refusals(self): return [line for line in self.server.logged() if line["message"].startswith("bundle refused")]

@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    ws = tmp_path_factory.mktemp("victim")
    put_live(ws)
    (ws/"cwd").mkdir()
    for f in (ws/"secret", ws/"cwd"/"secret"): f.write_bytes(SECRET.tobytes())
    with contextlib.chdir(ws/"cwd"): started = serving(ws) # its working folder is where the server looks
    with contextlib.chdir(ws/"cwd"), started as s, httpx.Client(base_url=s.url, timeout=allow(90)) as api:
        yield (v := Victim(ws, s, api))
        v.goes_on()

def test_a_pickle_in_the_place_of_the_model(victim):
    for data in pickles(victim.marker): victim.attack(data, says="model.onnx: not an ONNX file")

def test_a_pickle_beside_the_model_is_never_opened(victim):
    "It is a file of the bundle with a right hash, so the version is served; nothing ever loads it."
    v = write_bundle(victim.bundles, onnx_model(1.), manifest("900", 1.), {"model.pkl": pickles(victim.marker)[2], "python_model.pkl": pickles(victim.marker)[3]})
    victim.link("900")
    try:
        assert wait_for(lambda: victim.ready()["model_version"] == "900") and "refused" not in victim.ready()
        victim.api.post("/predict", json=ROW)
    finally:
        victim.link("1")
        assert wait_for(lambda: victim.ready()["model_version"] == "1")
        shutil.rmtree(v)
    victim.goes_on()

def elsewhere(location, how=None):
    "The small model with its weights in another file: CVE-2024-27318 and its relatives."
    m = onnx.load_from_string(onnx_model())
    t = next(t for t in m.graph.initializer if t.name == "w")
    t.ClearField("raw_data"); t.ClearField("float_data")
    t.data_location = TensorProto.EXTERNAL
    for k, v in {"location": location, **(how or {})}.items(): t.external_data.add(key=k, value=v)
    return m

def weights_of(m, folder):
    "What ONNX Runtime makes of a model of which nobody looked at the graph, without optimisation, in a folder: its weights."
    import onnxruntime as ort
    o = ort.SessionOptions()
    o.log_severity_level, o.graph_optimization_level = 4, ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with contextlib.chdir(folder): q = ort.InferenceSession(m.SerializeToString(), o).run(None, {"features": np.eye(3, dtype=np.float32)})[0].astype(float)
    return np.log(q / (1 - q))

def test_external_data_would_be_read_and_is_not(victim):
    np.testing.assert_allclose(weights_of(elsewhere("secret"), victim.ws/"cwd"), SECRET, rtol=1e-3) # the attack works where nobody looks
    for location in ("secret", "../secret", str(victim.ws/"secret"), "./../cwd/secret", "..\\secret", "/proc/self/environ", "/dev/zero", "", "secret\0x", "*/_ORT_MEM_ADDR_/*"):
        victim.attack(elsewhere(location, {"offset": "0", "length": "12"}).SerializeToString(), says="external data")

def test_external_data_in_a_branch_a_function_and_an_attribute(victim):
    t = elsewhere("../secret").graph.initializer[1]
    inner = h.make_graph([h.make_node("Identity", ["w"], ["v"])], "inner", [], [h.make_tensor_value_info("v", 1, [3])], [t])
    for change in (lambda g: g.node.insert(0, h.make_node("If", ["yes"], ["v"], then_branch=inner, else_branch=inner)),
                   lambda g: g.node.insert(0, h.make_node("Constant", [], ["v"], value=t)),
                   lambda g: g.sparse_initializer.add(values=t, dims=[10**6, 10**6])):
        m = onnx.load_from_string(onnx_model())
        change(m.graph)
        victim.attack(m.SerializeToString(), says="external data")
    m = onnx.load_from_string(onnx_model())
    m.functions.add(name="F", domain="mine").node.append(h.make_node("Constant", [], ["v"], value=t))
    victim.attack(m.SerializeToString(), says="external data")

def test_no_file_is_overwritten_by_names_in_a_model(victim, tmp_path):
    "CVE-2025-51480: what saves a model with external data follows its names. Nothing of ours saves one."
    target = tmp_path/"target"
    target.write_text("mine")
    for location in (str(target), os.path.relpath(target, victim.ws/"cwd"), os.path.relpath(target, victim.bundles/"2")):
        victim.attack(elsewhere(location).SerializeToString(), says="external data")
    with pytest.raises(BundleError, match="external data"): p.load_as_served(manifest(), elsewhere(str(target)).SerializeToString())
    assert target.read_text() == "mine" and list(tmp_path.iterdir()) == [target]

def swapped(name, make):
    "In place of a file of the bundle something else."
    def spoil(folder):
        (folder/name).unlink()
        make(folder/name)
    return spoil

@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_links_pipes_and_folders_in_the_place_of_files(victim, name):
    same = victim.ws/f"same-{name}"
    def link(f):
        same.write_bytes(onnx_model() if name == "model.onnx" else manifest_json(manifest()))
        f.symlink_to(same)
    victim.attack(spoil=swapped(name, link), says="not a plain file")
    victim.attack(spoil=swapped(name, lambda f: f.symlink_to("/dev/zero")), says="not a plain file")
    victim.attack(spoil=swapped(name, os.mkfifo), says="not a plain file") # opened without thought, it would wait for ever
    victim.attack(spoil=swapped(name, os.mkdir), says=name)
    victim.attack(spoil=swapped(name, lambda f: f.symlink_to(f.name)), says="not a plain file") # a link to itself
    victim.attack(spoil=lambda d: (d/name).unlink(), says="No such file")
    victim.attack(spoil=shutil.rmtree, says="No such file") # the link leads to nothing

def test_a_hard_link_shows_nothing_of_what_it_names(victim):
    said = victim.attack(spoil=swapped("model.onnx", lambda f: os.link(victim.ws/"secret", f)), says="model.onnx")
    assert "12 bytes" in said and not any(str(x) in said for x in SECRET)
    listed = lambda d: (d/"manifest.json").write_bytes(manifest_json(manifest(str(victim.n), files={
        "model.onnx": FileHash(sha256=hashlib.sha256(SECRET.tobytes()).hexdigest(), bytes=12)})))
    def both(d): swapped("model.onnx", lambda f: os.link(victim.ws/"secret", f))(d); listed(d)
    victim.attack(spoil=both, says="not an ONNX file") # even with the right hash it is no model

def edited(change):
    "A manifest changed as a dict; or replaced, where `change` returns bytes."
    def spoil(folder):
        m = json.loads((folder/"manifest.json").read_bytes())
        out = change(m)
        (folder/"manifest.json").write_bytes(out if isinstance(out, bytes) else json.dumps(m).encode())
    return spoil

@pytest.mark.parametrize("name", ["../secret", "../../secret", "/etc/passwd", "sub/x", ".hidden", "..", "a\0b", "secret\n", "ｍodel.onnx", "con\u202egnp.xnno", "x" * 300, "manifest.sig", "manifest.json"])
def test_a_manifest_names_files_elsewhere(victim, name):
    victim.attack(spoil=edited(lambda m: m["files"].update({name: {"sha256": hashlib.sha256(SECRET.tobytes()).hexdigest(), "bytes": 12}})), says="not a plain file")
    victim.attack(spoil=edited(lambda m: m.update(serves=name)), says="not a plain file")

def test_a_manifest_that_is_huge_deep_doubled_or_in_disguise(victim):
    deep = b'{"example": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
    name = lambda a, b: lambda m: m.update(features=[{"name": a}, {"name": b}, {"name": "gap", "nullable": True}], example={a: 1, b: 2, "gap": None})
    for change, says in (
            (lambda m: m.update(calibration="x" * 5_000_000), "at most"), (lambda m: b" " * 5_000_000, "at most"), (lambda m: deep, "manifest.json"),
            (lambda m: b"[" * 1_000_000, "manifest.json"), (lambda m: m.update(threshold=10**400), "manifest.json"),
            (lambda m: json.dumps(m).replace('"version"', '"version": "1", "version"', 1).encode(), "occurs twice"),
            (lambda m: json.dumps(m).replace('"bytes"', '"bytes": 1, "bytes"', 1).encode(), "occurs twice"),
            (lambda m: json.dumps(m).replace('"age": 42', '"age": 42, "ag\\u0065": 1', 1).encode(), "occurs twice"),
            (lambda m: json.dumps(m).encode("utf-16"), "manifest.json"), (lambda m: b"\xef\xbb\xbf" + json.dumps(m).encode(), "manifest.json"),
            (lambda m: json.dumps(m).replace("0.5", "NaN", 1).encode(), "manifest.json"), (lambda m: pickles(victim.marker)[0], "manifest.json"),
            (name("caf\u00e9", "cafe\u0301"), "looks like another"), (name("age", "\uff41ge"), "looks like another"), (name("age", "ag\u200be"), "invisible"),
            (name("age", "\u202eega"), "invisible"), (lambda m: m.update(version="1\n"), "version"), (lambda m: m.update(version="../1"), "version"),
            (lambda m: m["self_test"].update(probability=[None] * 3), "manifest.json"), (lambda m: m["self_test"].update(rows=[]), "self_test")):
        victim.attack(spoil=edited(change), says=says)

def test_a_file_that_is_larger_than_memory(victim):
    def large(d):
        with open(d/"model.onnx", "wb") as f: f.truncate(10**12) # takes no room on the disk
    victim.attack(spoil=large, says="bytes") # read no further than the manifest says
    def both(d):
        large(d)
        edited(lambda m: m["files"]["model.onnx"].update(bytes=10**12))(d)
    victim.attack(spoil=both, says="[serve] max_model_mb")
    victim.attack(spoil=edited(lambda m: m["files"]["model.onnx"].update(bytes=-1)), says="manifest.json")

def model_of(nodes, constants, z="z", opsets=(("", 17), ("ai.onnx.ml", 3))):
    "The small model with nodes before its last step."
    m = onnx.load_from_string(onnx_model())
    last = m.graph.node.pop()
    m.graph.node.extend(nodes)
    last.input[0] = z
    m.graph.node.append(last)
    m.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    m.ClearField("opset_import")
    m.opset_import.extend(h.make_opsetid(*o) for o in opsets)
    return m.SerializeToString()

ones = lambda *shape: np.ones(shape, np.float32)
N = h.make_node
tree = dict(nodes_treeids=[0], nodes_nodeids=[0], nodes_featureids=[0], nodes_modes=["LEAF"], nodes_values=[0.], nodes_truenodeids=[0], nodes_falsenodeids=[0],
            target_treeids=[0], target_nodeids=[0], target_ids=[0], target_weights=[0.], n_targets=2*10**9)
finish = [N("ReduceMax", ["c"], ["top"], keepdims=0), N("Add", ["z", "top"], ["z2"])]
BOMBS = {
    "a constant of 10^12": ([N("ConstantOfShape", ["s"], ["c"]), *finish], {"s": np.array([10**6, 10**6])}, "is not one that is served"),
    "column plus row": ([N("Add", ["a", "b"], ["c"]), *finish], {"a": ones(60_000, 1), "b": ones(1, 60_000)}, ""),
    "a product of all with all": ([N("MatMul", ["a", "b"], ["c"]), *finish], {"a": ones(60_000, 1), "b": ones(1, 60_000)}, ""),
    "wide rows": ([N("Unsqueeze", ["z", "one"], ["u"]), N("MatMul", ["u", "b"], ["c"]), *finish], {"one": np.array([1]), "b": ones(1, 10**6)}, ""),
    "doubling": ([N("Concat", [f"d{i}"] * 2, [f"d{i + 1}"], axis=0) for i in range(40)] + [N("Identity", ["d40"], ["c"]), *finish], {"d0": ones(1000)}, ""),
    "a tree with 2 billion targets": ([N("TreeEnsembleRegressor", ["x"], ["c"], domain="ai.onnx.ml", **tree), *finish], {}, "")}

@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_with_huge_memory_demand_is_refused(victim, kind):
    nodes, constants, says = BOMBS[kind]
    model = model_of(nodes, constants, "z2")
    assert len(model) < 5_000_000
    peak, stop = [0.], threading.Event()
    def watch():
        while not stop.wait(.005): peak[0] = max(peak[0], rss_mb(victim.server.pid))
    before = rss_mb(victim.server.pid)
    t = threading.Thread(target=watch)
    t.start()
    try: victim.attack(model, says=says)
    finally:
        stop.set()
        t.join()
    assert peak[0] - before < 1300, f"{peak[0] - before:.0f} MB" # room_for: 1 GB and some

def test_a_model_with_other_answers(victim):
    victim.attack(onnx_model(bias=.01), says="self test")
    victim.attack(onnx_model(k=4), says="[N, 4]")

# --- the registry ---

@pytest.fixture(scope="module")
def registry(registries): return registries("sqlite")

FLAVOURS = { # files of an artefact that MLflow would load with each
    "sklearn": ("model.pkl", "mlflow.sklearn", {"sklearn": {"pickled_model": "model.pkl", "serialization_format": "cloudpickle", "sklearn_version": "1.9.1"}}, {"model_path": "model.pkl"}),
    "pyfunc": ("python_model.pkl", "mlflow.pyfunc.model", {}, {"python_model": "python_model.pkl", "cloudpickle_version": cloudpickle.__version__}),
    "statsmodels": ("model.statsmodels", "mlflow.statsmodels", {"statsmodels": {"data": "model.statsmodels", "statsmodels_version": "1"}}, {"data": "model.statsmodels"})}

def poisoned(folder, marker, flavour, sound=None):
    "An MLflow model whose loading runs a payload: CVE-2024-37052 to 37060. `sound`: an ONNX file beside it."
    name, module, more, how = FLAVOURS[flavour]
    folder.mkdir(parents=True)
    (folder/name).write_bytes(pickle.dumps(Payload(marker)))
    if sound: (folder/"model.onnx").write_bytes(sound)
    (folder/"MLmodel").write_text(json.dumps({"flavors": {"python_function": {"loader_module": module, "python_version": "3.11", **how}, **more}, "model_uuid": "x", "mlflow_version": "3.17.2"}))
    return folder

LOAD = "import sys, warnings; warnings.simplefilter('ignore'); import mlflow.pyfunc\ntry: mlflow.pyfunc.load_model(sys.argv[1])\nexcept Exception as e: print(type(e).__name__, str(e)[:300])"

@pytest.mark.parametrize("flavour", ["sklearn", "pyfunc"])
def test_mlflow_honours_the_variable_that_we_set(tmp_path, flavour):
    "And without it the payload runs: the attack is a real one."
    ran = {}
    for allowed in ("True", "False"):
        folder = poisoned(tmp_path/allowed, tmp_path/f"marker-{allowed}", flavour)
        out = subprocess.run([PYTHON, "-c", LOAD, str(folder)], check=False, capture_output=True, text=True, timeout=allow(120),
                             env=os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": allowed}).stdout
        ran[allowed] = (tmp_path/f"marker-{allowed}").exists()
        if allowed == "False": assert "pickle is disallowed" in out or "MLFLOW_ALLOW_PICKLE_DESERIALIZATION" in out
    assert ran == {"True": True, "False": False}

def test_the_command_line_and_the_kernels_run_with_it(tmp_path, monkeypatch):
    from churn_nb.core.settings import load_settings
    from churn_nb.ops.step_runner import kernel_environment
    monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
    with kernel_environment(load_settings(environ={})): assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "False"
    assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION" not in os.environ
    seen = subprocess.run([sys.executable, "-c", textwrap.dedent("""
        import os, churn_nb.serve, churn_nb.cli.app as p
        churn_nb.serve.run_server = lambda *a, **k: print(os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION"))
        p.main(["serve", "--port", "0"])""")], check=False, capture_output=True, text=True, timeout=allow(60), cwd=tmp_path)
    assert seen.stdout.split() == ["False"], seen.stderr

@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("sound", [False, True])
def test_a_registered_pickle_is_never_loaded(registry, tmp_path, flavour, sound):
    name = f"pickle-{flavour}-{sound}"
    s, marker = registry.world(name, champions=1), tmp_path/"marker"
    before = registry.aliases(s)["champion"]
    onnx_file = registry.model(s).files._fetch(f"models:/seed/{registry.seed['strong'].version}")["model.onnx"] if sound else None
    v = registry.challenger(s, "strong", source=poisoned(tmp_path/"artefact", marker, flavour, onnx_file).as_uri())
    if sound: # the pickle is beside a sound model: it is judged, promoted and served, and the pickle lies there
        registry.model(s).load_version(v)
        p.run_gate(s, registry_rows())
        m, files = read_bundle(p.deploy_champion(s))
        assert set(files) == {"model.onnx"} and m.version in (v, before)
    else:
        with pytest.raises(RegistryError, match="can't be read|not the file"): registry.model(s).load_version(v)
        with pytest.raises(RegistryError): p.run_gate(s, registry_rows())
        assert registry.aliases(s)["champion"] == before and read_bundle(p.deploy_champion(s))[0].version == before
    assert not marker.exists()

def registry_rows():
    from registries import ROWS
    return ROWS

def test_the_gate_refuses_a_disguised_pickle_or_external_data(registry, tmp_path):
    "The registry's tag agrees with the file: who put it there could write the tag as well."
    s, marker = registry.world("disguised", champions=1), tmp_path/"marker"
    target = tmp_path/"target"
    target.write_text("mine")
    for i, (data, says) in enumerate([(x, "not an ONNX file") for x in pickles(marker)] + [(elsewhere(str(target)).SerializeToString(), "external data")]):
        folder = tmp_path/f"a{i}"
        folder.mkdir()
        (folder/"model.onnx").write_bytes(data)
        v = registry.challenger(s, "strong", source=folder.as_uri())
        registry.client.set_model_version_tag("disguised", v, "sha256", hashlib.sha256(data).hexdigest())
        decision, result = p.run_gate(s, registry_rows())
        assert not decision.promoted and says in result["checks"][0]["measured"]
        assert registry.aliases(s)["champion"] == "1" and read_bundle(p.deploy_champion(s))[0].version == "1"
    assert not marker.exists() and target.read_text() == "mine"

# --- a request ---

@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/events", "/v2/models/churn/infer"])
def test_a_pickle_in_a_request_is_not_read(victim, path):
    "CVE-2025-27520 and CVE-2024-2912: a server that unpickles a body because its headers say so."
    for kind in ("application/vnd.bentoml+pickle", "application/octet-stream", "application/x-pickle", "application/json"):
        for data in pickles(victim.marker):
            r = victim.api.post(path, content=data, headers={"Content-Type": kind, "Payload-Container": "DefaultContainer", "Payload-Meta": '{"format": "pickle"}',
                                                             "Batch-Size": "1", "Args-Number": "1"})
            assert 400 <= r.status_code < 500 and r.headers["content-type"] == "application/problem+json", r.text
    victim.goes_on()

# --- what reads a bundle without a server ---

def test_score_and_doctor_refuse_what_the_server_refuses(tmp_path):
    put_live(tmp_path)
    (tmp_path/"rows.csv").write_text("age,usage_minutes,gap\n1,2,3\n")
    marker, folder = tmp_path/"marker", tmp_path/"bundle"/"1"
    for data, says in ((pickles(marker)[2], "not an ONNX file"), (elsewhere("secret").SerializeToString(), "external data")):
        (folder/"model.onnx").write_bytes(data)
        m = msgspec.structs.replace(manifest(), files={"model.onnx": FileHash(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))})
        (folder/"manifest.json").write_bytes(manifest_json(m))
        from churn_nb.ops.serving_checks import check_bundle
        from churn_nb.cli.options import command_settings
        from churn_nb.cli.score import load_served_model
        with pytest.raises(BundleError, match=says): load_served_model(command_settings(str(tmp_path)))
        with pytest.raises(BundleError, match=says): check_bundle(command_settings(str(tmp_path)))
        out = subprocess.run([CHURN, "score", str(tmp_path/"rows.csv"), str(tmp_path/"out.csv"), "--workspace", str(tmp_path)],
                             check=False, capture_output=True, text=True, timeout=allow(60))
        assert out.returncode == 2 and says in out.stderr and out.stderr.count("\n") == 1 and not (tmp_path/"out.csv").exists()
    assert not marker.exists()
