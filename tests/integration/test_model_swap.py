"""A real server under load from many connections, while bundles are switched: no request fails, no answer mixes two models, what can't be trusted is refused,
and the first answer of a new model has no load in it."""
import json, os, shutil, threading, time
import httpx, numpy as np, pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from churn_nb.core.errors import BundleError
from churn_nb.core.manifest import SelfTest
from churn_nb.registry.bundle import read_bundle, switch_current, verify_bundle, write_bundle
from deadlines import allow
from signing import pem, public
from serving import manifest, onnx_model, probability, serving, wait_for

JSON = {"Content-Type": "application/json"}
ROWS = [[float(a), 10. * a, 1.] for a in range(1, 30)]
BODIES = [json.dumps(dict(zip(("age", "usage_minutes", "gap"), r, strict=True))).encode() for r in ROWS]
BATCH = b"[" + b",".join(BODIES) + b"]"
BIAS = {"1": 0., "2": 2., "4": -1., "5": .5}
WANT = {v: probability(ROWS, b) for v, b in BIAS.items()}

class Load:
    "Connections that ask without pause, one row or many, on every kind of route; each answer is checked against the version that it names."
    def __init__(self, url, connections=6):
        self.url, self.stop, self.seen, self.wrong, self.slowest = url, threading.Event(), [], [], {}
        self.threads = [threading.Thread(target=self.ask, args=(i,)) for i in range(connections)]
    def ask(self, i):
        with httpx.Client(base_url=self.url, timeout=allow(90)) as c:
            while not self.stop.is_set():
                began = time.perf_counter()
                try: v = (self.one, self.many, self.v2)[i % 3](c, i)
                except Exception as e: v = None; self.wrong.append(repr(e)[:200])
                took = time.perf_counter() - began
                if v is None: continue
                self.seen.append(v)
                self.slowest.setdefault((v, i), took) # of the first answer of a version on this connection
    def check(self, r, version, got, want):
        if r.status_code == 200 and version == {r.headers["x-model-version"]} and np.allclose(got, want(min(version)), atol=1e-6): return min(version)
        self.wrong.append((r.status_code, r.headers.get("x-model-version"), r.text[:200]))
    def one(self, c, i):
        k = len(self.seen) % len(ROWS)
        r = c.post("/predict", content=BODIES[k], headers=JSON)
        a = r.json()
        return self.check(r, {a.get("model_version")}, a.get("probability", -1), lambda v: WANT[v][k])
    def many(self, c, i):
        r = c.post("/predict/batch", content=BATCH, headers=JSON)
        a = r.json()
        return self.check(r, {x["model_version"] for x in a}, [x["probability"] for x in a], lambda v: WANT[v])
    def v2(self, c, i):
        r = c.post("/v2/models/churn/infer", json={"inputs": [{"name": "features", "datatype": "FP32", "shape": [len(ROWS), 3], "data": ROWS}]})
        return self.check(r, {r.json().get("model_version")}, r.json()["outputs"][0]["data"], lambda v: WANT[v])
    def __enter__(self):
        for t in self.threads: t.start()
        return self
    def __exit__(self, *_):
        self.stop.set()
        for t in self.threads: t.join()

def version(url): return httpx.get(url + "/readyz", timeout=allow(90)).json()
def link(bundles, v):
    (bundles/"new").symlink_to(v); os.replace(bundles/"new", bundles/"current")
def metric(url, name): return next(float(line.split()[-1]) for line in httpx.get(url + "/metrics", timeout=allow(90)).text.splitlines() if line.startswith(name + " "))

def make(bundles, v, key=None, **kw): return write_bundle(bundles, onnx_model(BIAS.get(v, 0.)), manifest(v, BIAS.get(v, 0.), **kw), key=key)

def test_back_and_forth_under_load_with_refusals_in_between(tmp_path):
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    (tmp_path/"public.pem").write_text(public(key))
    b = tmp_path/"bundle"
    for v in ("1", "2"): make(b, v, key)
    switch_current(b, "1", public(key))
    def bad(v, spoil=None, key=key, model=None, **kw):
        folder = write_bundle(tmp_path/"made", onnx_model() if model is None else model, manifest(v, **kw), key=key)
        shutil.copytree(folder, b/v)
        if spoil: spoil(b/v)
    bad("20", lambda d: (d/"model.onnx").write_bytes(onnx_model()[:-1] + b"x"))                       # wrong hash
    bad("21", lambda d: (d/"manifest.sig").unlink())                                                   # no signature
    bad("22", lambda d: (d/"manifest.sig").write_bytes((d/"manifest.sig").read_bytes()[:63]))          # truncated
    bad("23", key=other)                                                                               # of another key
    bad("24", lambda d: (d/"manifest.json").write_bytes((d/"manifest.json").read_bytes().replace(b'"threshold": 0.5', b'"threshold": 0.9'))) # changed after
    bad("25", lambda d: (d/"manifest.sig").write_bytes((b/"2"/"manifest.sig").read_bytes()))           # of another version
    bad("26", self_test=SelfTest(rows=ROWS[:1], probability=[.9]))                                     # failing self test
    bad("27", model=onnx_model(k=4))                                                                   # other inputs
    bad("28", features=[*manifest().features[::-1]], self_test=SelfTest(rows=[[1., 2., 3.]], probability=[probability([[3., 2., 1.]])[0]])) # swapped columns
    says = {"20": "SHA-256", "21": "missing", "22": "not a signature", "23": "not a signature", "24": "not a signature", "25": "not a signature",
            "26": "self test", "27": "[N, 4]", "28": "self test"}
    with serving(tmp_path, public_key=str(tmp_path/"public.pem")) as s:
        assert httpx.get(s.url + "/model", timeout=allow(90)).json().items() >= {"signature": "verified", "verified": True}.items()
        with Load(s.url) as load:
            now, refusals = "1", lambda: [line for line in s.logged() if line["message"].startswith("bundle refused")]
            for v in ("2", "1", *says, "2", "1", "2"):
                before = len(refusals())
                link(b, v)
                if v in says:
                    assert wait_for(lambda n=before: len(refusals()) > n), v
                    r = version(s.url)
                    assert r["refused"] in refusals()[-1]["message"]
                    assert says[v] in r["refused"] and r["model_version"] == now and metric(s.url, "churn_bundle_refused") == 1
                else:
                    assert wait_for(lambda v=v: version(s.url)["model_version"] == v and "refused" not in version(s.url)), v
                    now = v
                    assert metric(s.url, "churn_bundle_refused") == 0
                n = len(load.seen)
                assert wait_for(lambda n=n: len(load.seen) > n + 12) # all of them were asked in this state
        assert not load.wrong and set(load.seen) == {"1", "2"} and len(load.seen) > 200
        assert len(refusals()) == len(says) and {r["level"] for r in refusals()} == {"error"} and {r["still_serving"] for r in refusals()} == {"1"}

def test_versions_never_go_back_within_a_connection(tmp_path):
    "A connection that has seen the new model is not answered by the old one afterwards."
    for v in BIAS: make(tmp_path/"bundle", v)
    link(tmp_path/"bundle", "1")
    with serving(tmp_path) as s, httpx.Client(base_url=s.url, timeout=allow(90)) as c:
        for old, new in (("1", "2"), ("2", "4"), ("4", "5")):
            link(tmp_path/"bundle", new)
            seen, end = [], time.monotonic() + allow(20)
            while (not seen or seen[-1] != new) and time.monotonic() < end: seen.append(c.post("/predict", content=BODIES[3], headers=JSON).json()["model_version"])
            seen += [c.post("/predict", content=BODIES[3], headers=JSON).json()["model_version"] for _ in range(50)]
            assert seen == [old] * seen.count(old) + [new] * seen.count(new) and seen[-1] == new

def wide(version, n=3_000_000, bias=0.):
    "The small model with so many unused-looking weights that loading it takes a while; and its manifest."
    import onnx
    from onnx import helper as h, numpy_helper
    m = onnx.load_from_string(onnx_model(bias))
    last = m.graph.node.pop()
    m.graph.node.extend([h.make_node("ReduceMax", ["big"], ["top"], keepdims=0), h.make_node("Add", ["z", "top"], ["z2"])])
    last.input[0] = "z2"
    m.graph.node.append(last)
    m.graph.initializer.append(numpy_helper.from_array(np.zeros(n, np.float32), "big"))
    return m.SerializeToString(), manifest(version, bias)

def test_loading_a_model_does_not_delay_its_first_answer(tmp_path):
    "Compared with the load itself, which goes on in a thread: what a client sees in between is far from it."
    from churn_nb.serving.predictor import Model
    b = tmp_path/"bundle"
    make(b, "1")
    model, m = wide("2", 20_000_000, 2.) # 80 MB
    big = write_bundle(b, model, m)
    began = time.perf_counter()
    Model.load(big)
    load_seconds = time.perf_counter() - began
    link(b, "1")
    with serving(tmp_path) as s, httpx.Client(base_url=s.url, timeout=allow(60)) as c:
        for _ in range(20): c.post("/predict", content=BODIES[0], headers=JSON)
        link(b, "2")
        times, end = [], time.monotonic() + allow(60)
        while (not times or times[-1][0] != "2" or len(times) < 400) and time.monotonic() < end:
            began = time.perf_counter()
            v = c.post("/predict", content=BODIES[0], headers=JSON).json()["model_version"]
            times.append((v, time.perf_counter() - began))
            if v == "1": time.sleep(.002)
        first = next(t for v, t in times if v == "2")
        old = [t for v, t in times if v == "1"]
    assert first < load_seconds, (first, load_seconds)
    print(f"\nload {load_seconds*1000:.0f} ms; first answer after it {first*1000:.1f} ms; while it loaded: median {np.median(old)*1000:.1f} ms, longest {max(old)*1000:.1f} ms")

# --- keys ---

def test_keys_rotate_without_a_restart(tmp_path):
    old, new, b = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), tmp_path/"bundle"
    keys = tmp_path/"keys.pem"
    keys.write_text(public(old))
    make(b, "1", old); make(b, "2", new); make(b, "4", old); link(b, "1")
    with serving(tmp_path, public_key=str(keys)) as s:
        link(b, "2")
        assert wait_for(lambda: "not a signature" in version(s.url).get("refused", ""))
        keys.write_text(public(old) + public(new)) # both are known for a while
        link(b, "1"); link(b, "2"); os.utime(b/"2"/"manifest.json")
        assert wait_for(lambda: version(s.url)["model_version"] == "2" and "refused" not in version(s.url))
        keys.write_text(public(new))
        link(b, "4")
        assert wait_for(lambda: "not a signature" in version(s.url).get("refused", "")) and version(s.url)["model_version"] == "2"
        keys.unlink() # nothing is trusted where the key can't be read
        os.utime(b/"4"/"manifest.json")
        assert wait_for(lambda: "public_key" in version(s.url).get("refused", "")) and version(s.url)["model_version"] == "2"

def test_no_bundle_is_believed_before_its_signature(tmp_path):
    "The manifest is not even parsed."
    key, b = Ed25519PrivateKey.generate(), tmp_path/"b"
    folder = make(b, "1", key)
    (folder/"manifest.json").write_bytes(b"{ not json")
    with pytest.raises(BundleError, match="manifest.sig: not a signature"): read_bundle(folder, public(key))
    with pytest.raises(BundleError, match="manifest.json: "): read_bundle(folder)
    (folder/"manifest.sig").unlink()
    (folder/"manifest.sig").symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="manifest.sig"): read_bundle(folder, public(key))

# --- the pipeline's side ---

@pytest.fixture(scope="module")
def registry(registries): return registries("sqlite")

def test_deployed_bundles_are_signed_and_decisions_need_the_key(registry, monkeypatch, caplog):
    from churn_nb import promote as p
    from registries import ROWS
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    s = registry.world("signed", champions=1, challenger="strong")
    asks = s.model_copy(update={"serve": s.serve.model_copy(update={"public_key": public(key)})})
    before = registry.state(s)
    for text, says in ((None, "CHURN_SIGNING_KEY: not set"), (pem(other), "not in .serve. public_key")):
        if text: monkeypatch.setenv("CHURN_SIGNING_KEY", text)
        for do in (lambda: p.run_gate(asks, ROWS), lambda: p.deploy_champion(asks), lambda: p.rollback(asks)):
            with pytest.raises(BundleError, match=says): do()
        assert registry.state(s) == before
    monkeypatch.setenv("CHURN_SIGNING_KEY", pem(key))
    folder = p.deploy_champion(asks) # version 1 lay there without a signature
    assert folder.name == "1" and verify_bundle(folder, public(key)).version == "1"
    decision, _ = p.run_gate(asks, ROWS)
    assert decision.promoted and verify_bundle(p.deploy_champion(asks), public(key)).version == "2"
    p.rollback(asks)
    assert verify_bundle(folder.parent/"current", public(key)).version == "1"
    assert "PRIVATE" not in caplog.text and pem(key)[40:60] not in caplog.text
    for f in folder.parent.parent.rglob("*"):
        if f.is_file(): assert pem(key)[40:60].encode() not in f.read_bytes(), f
