"A real Triton (Triton core with a Python ONNX backend): what 40_triton writes loads, batches, answers as ONNX Runtime does, and may die at any moment."
import asyncio, shutil, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import httpx, numpy as np, pytest
from churn_nb.core.manifest import Feature
from churn_nb.registry.bundle import write_bundle
from churn_nb.serving.predictor import Model
from churn_nb.core.settings import load_settings
from churn_nb.core.errors import BackendUnavailable
from churn_nb.serving.triton import Tensor, TritonBackend, signature, triton_config, write_model_repository
from deadlines import allow
from serving import manifest, onnx_model, put_live, wait_for

pytestmark = pytest.mark.usefixtures("measured")
from paths import ROOT

def put(ws, version="1", bias=0., **config):
    "A version as a bundle and in the model repository; the loaded model."
    folder = write_bundle(ws/"bundle", onnx_model(bias), manifest(version, bias))
    write_model_repository(folder, ws/"triton", **config)
    return Model.load(folder)

def rows(n, seed=0):
    X = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32) * [20, 100, 3]
    X[::7, 2] = np.nan
    return X.astype(np.float32)

def backend(triton, **over):
    s = load_settings({"triton.url": f"127.0.0.1:{triton.grpc}", "triton.deadline_ms": 20_000, "triton.fallback": "no"} |
                      {f"triton.{k}": v for k, v in over.items()}, environ={})
    return TritonBackend(s)

def run(make, work):
    "`work(backend)` in an event loop of its own."
    async def whole():
        b = make()
        try: return await work(b)
        finally: await b.close()
    return asyncio.run(whole())

@pytest.fixture(scope="module")
def served(triton_here, tmp_path_factory):
    "A Triton with version 1 that is told what to load; its workspace and the model."
    ws = tmp_path_factory.mktemp("triton")
    model = put(ws, delay=2000)
    with triton_here(ws/"triton", ws, "--model-control-mode=explicit", "--load-model=churn") as t: yield SimpleNamespace(triton=t, ws=ws, model=model)

def test_answers_equal_onnx_runtime_for_batches_of_every_size(served):
    X = rows(8000)
    async def work(b):
        sizes = [1000, 1000, 1, 2, 3, 17, 977] + [1]*500 + [50]*90
        cuts = np.cumsum([0, *sizes])
        got = await asyncio.gather(*(b.score(served.model, X[i:j]) for i, j in zip(cuts, cuts[1:])))
        assert {by for _, by in got} == {"triton"}
        return np.concatenate([p for p, _ in got]), X[:cuts[-1]]
    p, asked = run(lambda: backend(served.triton), work)
    assert p.dtype == np.float32 and len(p) == 8000
    np.testing.assert_allclose(p, served.model.predict(asked), rtol=0, atol=1e-6)

def test_rows_of_several_requests_go_into_one_run(served):
    before = served.triton.counts()
    X = rows(400)
    async def work(b): return await asyncio.gather(*(b.score(served.model, x[None]) for x in X))
    run(lambda: backend(served.triton), work)
    inferences, executions = np.subtract(served.triton.counts(), before)
    assert inferences == 400 and executions < 300

def test_the_yolo_configuration_loads(served, tmp_path):
    from onnx import TensorProto, helper as h
    value = lambda name, *dims: h.make_tensor_value_info(name, TensorProto.FLOAT, [None, *dims])
    g = h.make_graph([h.make_node("Identity", ["images"], ["output0"])], "yolo", [value("images", 3, 640, 640)], [value("output0", 3, 640, 640)])
    model = h.make_model(g, opset_imports=[h.make_opsetid("", 17)], ir_version=8).SerializeToString()
    text = triton_config("yolo_model", *signature(model), max_batch_size=16, preferred=[4, 8, 16], delay=100)
    folder = served.ws/"triton/yolo_model"
    (folder/"1").mkdir(parents=True)
    (folder/"1/model.onnx").write_bytes(model); (folder/"config.pbtxt").write_text(text)
    r = served.triton.post("repository/models/yolo_model/load")
    assert r.status_code == 200, r.text
    c = httpx.get(f"{served.triton.url}/v2/models/yolo_model/config", timeout=allow(90)).json()
    assert (c["input"][0]["dims"], c["dynamic_batching"]["preferred_batch_size"], c["dynamic_batching"]["max_queue_delay_microseconds"]) == ([3, 640, 640], [4, 8, 16], 100)
    served.triton.post("repository/models/yolo_model/unload")

@pytest.mark.parametrize("change, says", [
    (("dims: [ 3 ]", "dims: [ 4 ]"), "shape is [-1, 4], the model's [-1, 3]"),
    (('name: "features" data_type: TYPE_FP32', 'name: "features" data_type: TYPE_INT64'), "the model has TYPE_FP32"),
    (('name: "features"', 'name: "image"'), "unexpected input 'image'"),
    (("max_batch_size: 1000", "max_batch_size: 0"), "shape"),
    (("max_queue_delay_microseconds: 0", "preferred_batch_size: [ 2000 ]"), "preferred size must be <= max batch size"),
    (("max_batch_size: 1000", "max_batch_size: many"), "config.pbtxt"),
], ids=["dims", "type", "name", "batch", "preferred", "text"])
def test_a_wrong_configuration_is_refused_with_its_reason(served, change, says):
    "The other models stay ready."
    text, folder = triton_config("wrong", *signature(onnx_model()), warmup=False), served.ws/"triton/wrong"
    assert change[0] in text
    shutil.rmtree(folder, ignore_errors=True)
    (folder/"1").mkdir(parents=True)
    (folder/"1/model.onnx").write_bytes(onnx_model()); (folder/"config.pbtxt").write_text(text.replace(*change))
    said = served.triton.log.stat().st_size
    r = served.triton.post("repository/models/wrong/load")
    assert r.status_code >= 400
    assert says in r.json()["error"] + served.triton.log.read_bytes()[said:].decode(errors="replace"), r.text
    assert httpx.get(f"{served.triton.url}/v2/models/churn/ready", timeout=allow(90)).status_code == 200

def test_version_changes_under_load_fail_and_mix_no_answer(served):
    models, live, stop = {"1": served.model}, ["1"], asyncio.Event()
    X = rows(64)
    async def work(b):
        done, errors = [], []
        async def caller():
            while not stop.is_set():
                model = models[live[0]]
                try: p, _ = await b.score(model, X)
                except BackendUnavailable as e: errors.append(str(e)); continue
                done.append(model.manifest.version)
                np.testing.assert_allclose(p, model.predict(X), atol=1e-6)
        callers = [asyncio.create_task(caller()) for _ in range(6)]
        for v in ("2", "3", "4"):
            await asyncio.sleep(.3)
            models[v] = put(served.ws, v, bias=float(v))
            r = await asyncio.to_thread(served.triton.post, "repository/models/churn/load")
            assert r.status_code == 200, r.text
            live[0] = v
        await asyncio.sleep(.3); stop.set()
        await asyncio.gather(*callers)
        return done, errors
    done, errors = run(lambda: backend(served.triton), work)
    assert not errors and set(done) == {"1", "2", "3", "4"}
    there = httpx.get(f"{served.triton.url}/v2/models/churn", timeout=allow(90)).json()["versions"]
    assert sorted(there) == ["3", "4"] # the older ones are unloaded
    async def gone(b):
        with pytest.raises(BackendUnavailable, match="version"): await b.score(models["1"], X)
    run(lambda: backend(served.triton), gone)
    served.triton.post("repository/models/churn/unload")
    async def unloaded(b): return await b.score(models["4"], X)
    assert run(lambda: backend(served.triton, fallback="yes"), unloaded)[1] == "onnxruntime"
    put(served.ws, "1")
    assert served.triton.post("repository/models/churn/load").status_code == 200

def test_triton_killed_and_back(triton_here, tmp_path):
    model, X, said = put(tmp_path), rows(4), []
    triton = triton_here(tmp_path/"triton", tmp_path)
    with triton:
        async def work(b):
            async def ask():
                began = time.monotonic()
                p, by = await b.score(model, X)
                np.testing.assert_allclose(p, model.predict(X), atol=1e-6) # whoever answers
                assert time.monotonic() - began < 5 # robust; the deadline is .5 s
                return by
            assert await ask() == "triton"
            triton.stop("kill")
            for _ in range(6): said.append((await ask(), b.breaker.state))
            assert {by for by, _ in said} == {"onnxruntime"} and said[-1][1] == "open"
            await asyncio.to_thread(triton.start)
            for _ in range(100):
                if await ask() == "triton": break
                await asyncio.sleep(.1)
            assert (await ask(), b.breaker.state) == ("triton", "closed")
        run(lambda: backend(triton, fallback="yes", deadline_ms=500, breaker_failures=3, breaker_seconds=.5), work)

def test_a_new_version_is_found_by_polling(triton_here, tmp_path):
    put(tmp_path)
    with triton_here(tmp_path/"triton", tmp_path, "--model-control-mode=poll", "--repository-poll-secs=1") as t:
        put(tmp_path, "2", bias=1.)
        assert wait_for(lambda: httpx.get(f"{t.url}/v2/models/churn/versions/2/ready", timeout=allow(90)).status_code == 200)
        assert httpx.get(f"{t.url}/v2/models/churn/versions/1/ready", timeout=allow(90)).status_code == 200 # the one before stays

def test_the_client_is_imported_only_when_asked():
    code = "import sys, churn_nb.serving.triton; assert not {'tritonclient', 'grpc', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

# --- the repository, without a server ---

@pytest.mark.parametrize("name", ["churn", "churn_int8"])
def test_the_configuration_in_git_is_what_the_function_writes(name):
    from churn_nb.features import feature_names
    from churn_nb.serving.triton import triton_options
    s = load_settings(environ={})
    x = [Tensor("features", "FP32", (len(feature_names(s)),))]
    text = triton_config(name, x, [Tensor("probability", "FP32", ())], **triton_options(s))
    assert (ROOT/"triton"/name/"config.pbtxt").read_text() == text

def written(ws): return {str(f.relative_to(ws/"triton")) for f in (ws/"triton").rglob("*") if f.is_file()}

def test_int8_is_a_model_of_its_own(tmp_path, monkeypatch):
    "Its version is removed when a bundle has no INT8 file."
    import churn_nb.serving.triton as module
    files = {"model.onnx": onnx_model(), "model.int8.onnx": onnx_model(.1)}
    monkeypatch.setattr(module, "read_bundle", lambda *_: (manifest("3"), files))
    write_model_repository("", tmp_path/"triton")
    assert written(tmp_path) == {f"{m}/{f}" for m in ("churn", "churn_int8") for f in ("3/model.onnx", "config.pbtxt")}
    assert (tmp_path/"triton/churn_int8/3/model.onnx").read_bytes() == files["model.int8.onnx"]
    del files["model.int8.onnx"]
    write_model_repository("", tmp_path/"triton")
    assert written(tmp_path) == {"churn/3/model.onnx", "churn/config.pbtxt", "churn_int8/config.pbtxt"}

def test_versions_with_other_features_are_removed(tmp_path, monkeypatch):
    "Writing the same version twice changes nothing."
    import churn_nb.serving.triton as module
    put(tmp_path); put(tmp_path, "2", bias=1.)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path/"triton").rglob("*")}
    put(tmp_path, "2", bias=1.)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path/"triton").rglob("*")} == before
    four = [*manifest().features, Feature(name="more")]
    monkeypatch.setattr(module, "read_bundle", lambda *_: (manifest("5", features=four), {"model.onnx": onnx_model(k=4)}))
    write_model_repository("", tmp_path/"triton")
    assert written(tmp_path) == {"churn/5/model.onnx", "churn/config.pbtxt"}

def test_churn_triton_puts_the_champion_where_triton_looks(tmp_path):
    churn = lambda *args: subprocess.run([Path(sys.executable).with_name("churn"), "triton", tmp_path/"models", "--workspace", tmp_path, *args], capture_output=True, text=True, timeout=allow(300))
    none = churn()
    assert none.returncode == 2 and "no bundle" in none.stderr and not (tmp_path/"models").exists()
    put_live(tmp_path, "7")
    done = churn()
    assert done.returncode == 0 and "version 7" in done.stdout and (tmp_path/"models/churn/7/model.onnx").exists() and (tmp_path/"models/churn/config.pbtxt").exists()
