"INT8: batches without neighbours, equal bytes, and the way from training through the gate into the bundle."
import hashlib
import json
import os
import subprocess
import sys

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import settings as hyp
from hypothesis import strategies as st
from registries import LEARN, NAMES, ROWS
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline

from churn_nb import promote as p
from churn_nb.modeling import quantization as q
from churn_nb.core.errors import RegistryError
from churn_nb.core.workspace import Workspace
from churn_nb import train as t
from churn_nb.core.errors import BundleError, SettingsError
from churn_nb.core.manifest import Feature, Manifest, SelfTest
from churn_nb.registry.bundle import read_bundle, verify_bundle, write_bundle
from churn_nb.modeling.calibration import Calibrated, Isotonic, Platt
from churn_nb.modeling.onnx_export import LogScale, onnx_predict, to_onnx
from churn_nb.serving.predictor import Model
from churn_nb.core.settings import load_settings
from lessons import of_lesson

quick = lambda n: hyp(max_examples=n, deadline=None, derandomize=True)
rng = np.random.default_rng(0)
X = rng.lognormal(0, 1, (1500, 6)).astype("float32")
X[rng.random(X.shape) < .05] = np.nan
y = (rng.random(1500) < 1/(1 + np.exp(-np.nan_to_num(np.log(X)) @ [1, -1, .5, 0, 2, -.5]))).astype(int)

def network(*size, passes=3): return t.fit(make_pipeline(LogScale(), MLPClassifier(size, max_iter=passes, random_state=0)), X, y)

@pytest.fixture(scope="module")
def wide():
    "A network calibrated in each way and in none, and its float32 and int8 files."
    m = network(512, 512)
    raw = t.predict(m, X)
    return {name: (f := to_onnx(w, 6), q.quantize_static(f, X)) for name, w in (("none", m), ("platt", Calibrated(m, Platt.fit(y, raw))), ("isotonic", Calibrated(m, Isotonic.fit(y, raw))))}

# Rounding

lesson = of_lesson("modeling/50_quantization", "scale_and_zero_point", "quantize", "dequantize")
finite = st.floats(-1e6, 1e6, width=32)

@quick(200)
@given(finite, finite, st.lists(finite, max_size=20))
def test_a_value_is_off_by_half_a_scale_at_most(a, b, xs):
    "Inside the range that the zero point leaves; at its ends by one scale, and 0 is exact."
    lo, hi = min(a, b, 0), max(a, b, 0)
    scale, zero = lesson.scale_and_zero_point(lo, hi)
    x = np.clip(np.array([*xs, lo, hi, 0.]), lo, hi)
    back = lesson.dequantize(lesson.quantize(x, scale, zero), scale, zero)
    assert 0 <= zero <= 255 and back[-1] == 0
    inside = (x >= (0 - zero)*scale) & (x <= (255 - zero)*scale) # the zero point is rounded, which shifts the ends by half a scale
    assert (np.abs(x - back)[inside] <= scale*(.5 + 1e-9)).all() and (np.abs(x - back) <= scale*(1 + 1e-9)).all()

@pytest.fixture(scope="module")
def small(): return onnx.load_from_string(to_onnx(network(16, 12, passes=1), 6))

def weights(graph): return {i.name: onnx.numpy_helper.to_array(i) for i in graph.graph.initializer}

@quick(12)
@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.booleans(), st.booleans())
def test_every_stored_weight_is_off_by_half_its_scale_at_most(small, seed, size, lopsided, reduce_range):
    "Whatever the weights are: each column has a scale of its own, and the file's INT8 numbers times it are within half of it."
    graph, r = onnx.ModelProto.FromString(small.SerializeToString()), np.random.default_rng(seed)
    names = [n.input[1] for n in q.layers(graph.graph)]
    for i in graph.graph.initializer:
        if i.name in names:
            W = r.normal(size=i.dims)*10**size*(10**r.uniform(-3, 3, i.dims[1]) if lopsided else 1)
            i.CopyFrom(onnx.numpy_helper.from_array(W.astype(np.float32), i.name))
    before, after = weights(graph), weights(onnx.load_from_string(q.quantize_static(graph.SerializeToString(), X, reduce_range)))
    for place, name in enumerate(names):
        stored = next(v for k, v in after.items() if k in (f"{name}_q", f"{name}_quantized"))
        scale, inner = after[f"{name}_scale"], 0 < place < len(names) - 1
        assert stored.dtype == np.int8 and np.abs(stored.astype(int)).max() <= (64 if inner and reduce_range else 128)
        error = np.abs(before[name].astype(np.float64) - stored.astype(np.float64)*scale.astype(np.float64))
        assert (error <= scale*(.5 + 1e-3)).all(), name

# The file

def test_size_accuracy_and_calibrations(wide):
    for name, (f, s) in wide.items():
        assert len(f)/len(s) >= 3.8, name
        cost = q.precision_cost(y, onnx_predict(f, X), onnx_predict(s, X))
        assert cost["accuracy_loss"] < .01 and cost["max_dp"] < .1, (name, cost)
        kept = {i.name: onnx.numpy_helper.to_array(i).tobytes() for i in onnx.load_from_string(s).graph.initializer if i.name.startswith("cal_")}
        assert kept.items() >= {i.name: onnx.numpy_helper.to_array(i).tobytes() for i in onnx.load_from_string(f).graph.initializer if i.name.startswith("cal_")}.items()

@quick(60)
@given(st.lists(st.integers(0, len(X) - 1), min_size=1, max_size=70), st.floats(-1e6, 1e6, width=32))
def test_a_prediction_does_not_depend_on_the_batch(wide, rows, shout):
    "The same row alone, among others, and beside one that is far off the calibrated ends."
    s = wide["none"][1]
    alone = onnx_predict(s, X[rows[:1]])[0]
    among = np.vstack([X[rows], np.full((1, 6), shout, "float32")])
    assert abs(onnx_predict(s, among)[0] - alone) <= 1e-6

def test_a_dynamically_quantized_prediction_depends_on_the_batch(wide):
    d = q.quantize_dynamic(wide["none"][0])
    loud = np.vstack([X[:1], np.full((1, 6), 1e6, "float32")])
    assert abs(onnx_predict(d, loud)[0] - onnx_predict(d, X[:1])[0]) > 1e-4

def test_missing_and_extreme_values_still_give_a_probability(wide):
    odd = np.array([[np.nan]*6, [3e38]*6, [-3e38]*6, [0]*6], "float32")
    for _, s in wide.values():
        got = onnx_predict(s, odd)
        assert np.isfinite(got).all() and (got >= -1e-6).all() and (got <= 1 + 1e-6).all()

def test_equal_input_gives_equal_bytes_in_every_process(tmp_path):
    f = to_onnx(network(32, 32), 6)
    (tmp_path/"f.onnx").write_bytes(f); np.save(tmp_path/"X.npy", X)
    code = ("import sys, hashlib, numpy as np; from churn_nb.modeling.quantization import int8_of; from pathlib import Path; d = Path(sys.argv[1]); "
            "print(hashlib.sha256(int8_of((d/'f.onnx').read_bytes(), np.load(d/'X.npy'))['model.int8.onnx']).hexdigest())")
    said = {subprocess.run([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout.strip() for seed in ("1", "2")}
    assert said == {hashlib.sha256(q.int8_of(f, X)["model.int8.onnx"]).hexdigest()}

def test_reduced_weights_have_seven_bits(wide):
    inner = lambda f: max((w for w in map(onnx.numpy_helper.to_array, onnx.load_from_string(f).graph.initializer) if w.dtype == np.int8 and w.shape == (512, 512)), key=np.size)
    f = wide["none"][0]
    for reduced, most in ((True, 64), (False, 127)): assert np.abs(inner(q.quantize_static(f, X, reduced)).astype(int)).max() in (most - 1, most, most + 1)

@pytest.mark.parametrize("model, why", [(HistGradientBoostingClassifier(max_iter=3), "TreeEnsembleClassifier"), (make_pipeline(SimpleImputer(), RandomForestClassifier(3)), "TreeEnsembleClassifier"),
                                        (make_pipeline(LogScale(), LogisticRegression()), "LinearClassifier"), (make_pipeline(LogScale(), MLPClassifier((16,), max_iter=2)), "no layer between")],
                         ids=["boosting", "forest", "linear", "one layer"])
def test_what_gains_nothing_is_refused(model, why):
    m = t.fit(model, X, y)
    for w in (m, Calibrated(m, Isotonic.fit(y, t.predict(m, X)))): # whose correction is a product with a matrix
        f = to_onnx(w, 6)
        with pytest.raises(q.NotQuantizable, match=why): q.quantize_static(f, X)
        with pytest.raises(q.NotQuantizable, match=why): q.quantize_dynamic(f)
        assert q.int8_of(f, X) == {}

def test_instruction_sets():
    assert q.instruction_sets("processor: 0\nflags : fpu avx2 avx_vnni amx_int8 avx512_vnni\n") == ["AVX2", "AVX-VNNI", "AVX512-VNNI", "AMX"]
    assert q.instruction_sets("flags : avx2x\n") == q.instruction_sets("Features : asimd\n") == q.instruction_sets("") == [] # ARM names its own
    assert q.saturates([]) and q.saturates(["AVX2"]) and not q.saturates(["AVX2", "AVX512-VNNI"])

# The gate's row

@pytest.fixture(scope="module")
def pair():
    "A network on the small world of the registry, float32 and int8."
    m = t.fit(make_pipeline(LogScale(), MLPClassifier((32, 32), max_iter=60, random_state=0)), LEARN[NAMES].to_numpy(), LEARN.churn.to_numpy())
    f = to_onnx(m, 2)
    return m, f, q.int8_of(f, LEARN[NAMES].to_numpy())[q.INT8_FILE]

def manifest_of(f, version="0", run_id="r"):
    Z = LEARN[NAMES].to_numpy()
    base = t.evaluate(ROWS.churn, np.full(len(ROWS), LEARN.churn.mean()))
    return Manifest(name="seed", version=version, run_id=run_id, git_sha="abc", created="2026-01-01", dataset="demo", data_hash="md5:0", threshold=.5, features=[Feature(name=c) for c in NAMES],
                    example=dict(zip(NAMES, Z[0].tolist())), metrics={f"baseline_{k}": v for k, v in base.items()}, self_test=SelfTest(rows=Z[:4].tolist(), probability=onnx_predict(f, Z[:4]).tolist()))

def gate(**kw): return load_settings(environ={}).gate.model_copy(update=kw)

def upside_down(f):
    "A file that answers 1 - p: well formed, and all wrong."
    m = onnx.load_from_string(f)
    next(n for n in m.graph.node if n.op_type == "Gather" and n.output[0] == "uncorrected").input[1] = "stayed"
    m.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "stayed"))
    return m.SerializeToString()

def test_the_row_passes_or_is_a_note_and_never_decides(pair):
    _, f, s = pair
    m, X2, y2 = manifest_of(f), ROWS[NAMES].to_numpy("float32"), ROWS.churn.to_numpy()
    pf = onnx_predict(f, X2)
    row = lambda int8, **kw: p.int8_checks(int8, p.ScoredRows(m, ROWS, X2, pf), gate(**kw))
    assert row(None) == []
    good, bad, broken, gone = (row(x)[0] for x in (s, upside_down(f), b"no graph", RegistryError("not the file that was registered")))
    assert [(c.criterion, c.required, c.verdict) for c in (good, bad, broken, gone)] == [("int8 accuracy loss", "< 0.01", v) for v in ("pass", "note", "note", "note")]
    assert gone.measured == "not the file that was registered" and float(bad.measured.split(";")[0]) > .01
    loss = q.precision_cost(y2, pf, onnx_predict(s, X2))["accuracy_loss"]
    if loss <= 0: assert row(s, int8_loss=0.)[0].verdict == ("pass" if loss < 0 else "note") # strictly below
    floor = p.check("auc", "> .5", ".6", True)
    for c, promoted in (([good], False), ([bad], False), ([floor, good], True), ([floor, bad], True), ([floor, gone], True)): assert p.Decision("1", None, c).promoted == promoted
    with pytest.raises(ValueError, match="not finite"): q.precision_cost(y2, pf, np.full(len(pf), np.nan))

# Registry and bundle

@pytest.fixture(scope="module")
def registry(registries): return registries("sqlite")

def challenge(registry, s, pair, int8):
    "Register the network with (or without) an int8 file as challenger."
    model, f, _ = pair
    with registry.use(), t.hushed():
        import mlflow
        mlflow.set_experiment(s.train.experiment)
        with mlflow.start_run() as run: pass
        more = {} if int8 is None else {q.INT8_FILE: int8}
        return t.register(t.Candidate("network", model, run.info.run_id, {}), t.ModelFiles(f, manifest_of(f, run_id=run.info.run_id), more=more), LEARN[NAMES].to_numpy()[:5], s)

def with_int8(s): return s.model_copy(update={"serve": s.serve.model_copy(update={"precision": "int8"})})
def served(folder):
    m, files = read_bundle(folder)
    return m.serves, sorted(files)

def test_serving_int8_can_be_switched_on_and_off_again(registry, pair, caplog):
    "The file goes from the registry through the gate into the bundle."
    s = registry.world("eight")
    v = challenge(registry, s, pair, pair[2])
    assert registry.tags(s, v)["model.int8.onnx.sha256"] == hashlib.sha256(pair[2]).hexdigest()
    decision, result = p.run_gate(s, ROWS)
    assert decision.promoted and [c["verdict"] for c in result["checks"] if c["criterion"] == q.INT8_ROW] == ["pass"]
    both = ["model.int8.onnx", "model.onnx"]
    assert served(p.deploy_champion(s)) == ("model.onnx", both)
    folder = p.deploy_champion(with_int8(s))
    assert served(folder) == ("model.int8.onnx", both) # the same version, another file answers
    Z = ROWS[NAMES].to_numpy("float32")
    np.testing.assert_allclose(Model.load(folder).predict(Z), onnx_predict(pair[2], Z), atol=1e-6)
    before = (folder/"manifest.json").stat().st_ino
    assert p.deploy_champion(with_int8(s)) == folder and (folder/"manifest.json").stat().st_ino == before # again: nothing changes
    assert served(p.deploy_champion(s)) == ("model.onnx", both)
    np.testing.assert_allclose(Model.load(folder).predict(Z), onnx_predict(pair[1], Z), atol=1e-6)
    assert not caplog.records

@pytest.mark.parametrize("which", ["bad", "none", "spoilt before", "spoilt after"])
def test_float32_serves_when_int8_is_not_available(registry, pair, caplog, which):
    "The reason is one line in the log."
    s = registry.world(f"wish-{which.replace(' ', '-')}")
    v = challenge(registry, s, pair, {"bad": upside_down(pair[1]), "none": None}.get(which, pair[2]))
    def spoil():
        with registry.use() as client: client.set_model_version_tag(s.train.model_name, v, "model.int8.onnx.sha256", "0"*64)
    if which == "spoilt before": spoil()
    decision, _ = p.run_gate(s, ROWS)
    rows = [c.verdict for c in decision.checks if c.criterion == q.INT8_ROW]
    assert decision.promoted and rows == {"bad": ["note"], "none": [], "spoilt before": ["note"], "spoilt after": ["pass"]}[which]
    if which == "spoilt after": spoil()
    assert served(p.deploy_champion(with_int8(s))) == ("model.onnx", ["model.onnx"])
    said = [x.getMessage() for x in caplog.records if "int8" in x.getMessage()]
    assert len(said) == 1 and f"version {v} serves float32, not int8: " in said[0] and "\n" not in said[0]
    assert ("not the file that was registered" if which == "spoilt after" else "no int8 file that passed the gate") in said[0]

def test_after_a_rollback_each_version_has_its_own_precision(registry, pair):
    s = with_int8(registry.world("both"))
    challenge(registry, s, pair, pair[2])
    p.run_gate(s, ROWS)
    assert served(p.deploy_champion(s))[0] == "model.int8.onnx"
    v = registry.challenger(s, "strong") # a linear model
    registry.promote(s, v, "1")
    assert served(p.deploy_champion(s)) == ("model.onnx", ["model.onnx"])
    p.rollback(s)
    assert served(Workspace(s.paths.workspace).bundles/"current")[0] == "model.int8.onnx"

def test_a_bundle_serving_an_unlisted_file_is_refused(tmp_path, pair):
    m = manifest_of(pair[1], "1")
    with pytest.raises(BundleError, match="model.int8.onnx is not listed"): verify_bundle(write_bundle(tmp_path, pair[1], msgspec.structs.replace(m, serves=q.INT8_FILE)))

def test_a_corrupt_int8_file_and_a_changed_version_are_refused(tmp_path, pair):
    m, more = manifest_of(pair[1], "1"), {q.INT8_FILE: pair[2]}
    folder = write_bundle(tmp_path, pair[1], m, more)
    with pytest.raises(BundleError, match="a version never changes"): write_bundle(tmp_path, pair[1], m)
    (folder/q.INT8_FILE).write_bytes(pair[2][:-1])
    with pytest.raises(BundleError, match="model.int8.onnx"): verify_bundle(folder)

def test_precision_is_one_of_two():
    with pytest.raises(SettingsError, match="precision"): load_settings({"serve.precision": "int4"}, environ={})
    assert json.loads(load_settings({"serve.precision": "int8"}, environ={}).serve.model_dump_json())["precision"] == "int8"
