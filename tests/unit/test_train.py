"Training: float32 thresholds to the last bit, folds that respect time, and what a run leaves behind in MLflow and the registry."
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, onnx, pandas as pd, pytest
from hypothesis import given, settings as hyp, strategies as st
from sklearn.base import clone
import churn_nb.modeling.onnx_export
from churn_nb import train as t
from churn_nb.modeling import search
from churn_nb.modeling.calibration import CALIBRATORS, core, log_loss
from churn_nb.data.datasets import pointer_md5
from churn_nb.modeling.onnx_export import LogScale, floor32
from churn_nb.features import build, feature_names, training_rows
from churn_nb.core.errors import SettingsError
from churn_nb.promote import run_gate
from churn_nb.registry.model_registry import ModelRegistry
from churn_nb.registry.tracking import typical_rows
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from paths import ROOT

quick = lambda n: hyp(max_examples=n, deadline=None, derandomize=True)
F32 = np.finfo(np.float32)

def configured(ws, **over): return load_settings({"paths.workspace": str(ws), "paths.data": str(ROOT/"data"), **{k.replace("__", "."): v for k, v in over.items()}}, environ={})

# Thresholds

def around(v):
    "float32 neighbours of a float64, infinities and zeros of both signs among them."
    with np.errstate(all="ignore"): f = np.float32(v)
    up, down, out = f, f, [f, np.float32(0), np.float32(-0.), F32.max, F32.min, F32.tiny, F32.smallest_subnormal, -F32.smallest_subnormal, np.float32(np.inf), np.float32(-np.inf)]
    for _ in range(3):
        with np.errstate(all="ignore"): up, down = np.nextafter(up, np.float32(np.inf)), np.nextafter(down, np.float32(-np.inf))
        out += [up, down]
    return np.array(out, np.float32)

halfway = st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda a: (float(a) + float(np.nextafter(np.float32(a), np.float32(0))))/2) # the hardest thresholds lie between two floats
thresholds = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.floats(-1e-37, 1e-37), halfway, st.sampled_from([float(F32.max), 3.5e38, -3.5e38, 1e-46, -1e-46, 0., -0., .1, 1/3]))

def keeps(threshold, more=()):
    floor, x = floor32(threshold), np.concatenate([around(threshold), np.array(more, np.float32)])
    assert float(floor) == float(np.float32(floor)) and floor.dtype == np.float64 and floor <= threshold
    np.testing.assert_array_equal(x <= np.float32(floor), x.astype(np.float64) <= threshold)

@quick(400)
@given(thresholds, st.lists(st.floats(width=32, allow_nan=False), max_size=5))
@pytest.mark.filterwarnings("ignore:overflow")
def test_floor32_keeps_every_comparison(threshold, more): keeps(threshold, more)

@pytest.mark.parametrize("threshold", [np.inf, -np.inf]) # a split between missing and known has the threshold inf
@pytest.mark.filterwarnings("ignore:overflow")
def test_floor32_of_infinity_is_infinity(threshold): keeps(threshold)

def test_floor32_of_an_array_is_that_of_its_elements():
    v = np.random.default_rng(0).normal(0, 1e3, (40, 5))
    assert np.array_equal(floor32(v), [[floor32(x) for x in row] for row in v])

# Parity, on the real rows of a small store

@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    s = configured(tmp_path_factory.mktemp("rows"))
    build(s, 400)
    return training_rows(s)

@pytest.fixture(scope="module")
def names(): return feature_names(configured("unused"))

@pytest.fixture(scope="module")
def fitted(rows, names):
    "Matrices, and each candidate fitted on them with its export."
    s, data = configured("unused"), t.matrices(rows, names)
    models = {n: t.fit(variants[0], *data["train"][:2]) for n, variants in t.candidates(s).items()}
    return data, {n: (m, t.to_onnx(m, len(names))) for n, m in models.items()}

KINDS = ["logistic_regression", "random_forest", "hist_gradient_boosting", "neural_network"]
BASELINES = ["base_rate", "recency_baseline"]

def splits(model):
    "(feature, threshold) of every split of a tree model."
    final = core(model)
    boosted = [(int(j), float(v)) for trees in getattr(final, "_predictors", []) for tree in trees for j, v in zip(*(tree.nodes[tree.nodes["is_leaf"] == 0][c] for c in ("feature_idx", "num_threshold")))]
    forest = [(int(j), float(v)) for e in getattr(final, "estimators_", []) for j, v in zip(e.tree_.feature, e.tree_.threshold) if j >= 0]
    return sorted({*boosted, *forest})

def on_the_splits(model, X, gaps=True):
    "For every split, real rows with the feature at the threshold, one float32 below and above, and missing."
    at, out = splits(model), []
    at = at*(3000//len(at) + 1)
    base = X[np.linspace(0, len(X) - 1, len(at)).astype(int)]
    for kind in ("at", "below", "above", *["missing"]*gaps):
        Z = base.copy()
        for i, (j, v) in enumerate(at):
            with np.errstate(over="ignore"): f = np.float32(v)
            Z[i, j] = {"at": f, "below": np.nextafter(f, np.float32(-np.inf)), "above": np.nextafter(f, np.float32(np.inf)), "missing": np.nan}[kind]
        out.append(Z)
    return np.concatenate(out)

@pytest.mark.parametrize("name", ["hist_gradient_boosting", "random_forest"])
def test_parity_on_every_split_threshold(fitted, name):
    data, models = fitted
    model, exported = models[name]
    X = on_the_splits(model, data["test"][0])
    X = X[~np.isinf(X).any(axis=1)] # the API refuses infinite values
    assert len(X) > 10_000 and np.isnan(X).any(axis=1).sum() > 3000
    d = np.abs(t.predict(search._one_thread(model), X) - t.onnx_predict(exported, X))
    assert d.max() < 2e-6, f"row {d.argmax()}: {d.max()}"
    assert t.onnx_parity(model, exported, X) == d.max()

@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", list(CALIBRATORS))
def test_the_calibrated_graph_is_the_calibrated_model(fitted, name, kind):
    data, models = fitted
    V, T = data["validation"], data["test"]
    whole = t.Calibrated(models[name][0], CALIBRATORS[kind].fit(V.y, t.predict(models[name][0], V.X)))
    exported = t.to_onnx(whole, T.X.shape[1])
    for X in (T.X, t.probes(whole, T.X), np.where(np.isnan(T.X), T.X, T.X*np.float32(1e6))):
        assert t.onnx_parity(whole, exported, X, threshold=.7512) <= 1e-5 # not .8: a forest says exactly that, and a tie may fall either way

@pytest.mark.parametrize("name", KINDS)
def test_the_graph_has_the_promised_shape(fitted, name):
    data, models = fitted
    model, exported = models[name]
    g = onnx.load_from_string(exported).graph
    assert [i.name for i in g.input] == ["features"] and [o.name for o in g.output] == ["probability"]
    X = data["test"][0]
    p = t.onnx_predict(exported, X)
    assert p.shape == (len(X),) and p.dtype == np.float32 and (0 <= p).all() and (p <= 1).all()
    np.testing.assert_allclose(p, t.predict(model, X), rtol=0, atol=2e-6)
    # a row's score does not depend on its batch; sums of products may differ in the last bit of a float32
    np.testing.assert_allclose(p[:1], t.onnx_predict(exported, X[:1]), rtol=0, atol=0 if name in ("hist_gradient_boosting", "random_forest") else 1e-6)

def nudged(exported, by):
    "The graph with the threshold moved that splits most rows: the root of the first tree."
    m = onnx.load_from_string(exported)
    (trees,) = (n for n in m.graph.node if n.op_type.startswith("TreeEnsemble"))
    (values,) = (a for a in trees.attribute if a.name == "nodes_values")
    values.floats[0] = by(values.floats[0])
    return m.SerializeToString()

def test_parity_sees_one_nudged_threshold(fitted):
    data, models = fitted
    model, exported = models["hist_gradient_boosting"]
    X = on_the_splits(model, data["test"][0])
    assert t.onnx_predict(nudged(exported, lambda v: v), X).tolist() == t.onnx_predict(exported, X).tolist()
    for by in (lambda v: np.nextafter(np.float32(v), np.float32(np.inf)), lambda v: np.nextafter(np.float32(v), np.float32(-np.inf)), lambda v: v + 1):
        with pytest.raises(ValueError, match=r"^ONNX differs from HistGradientBoostingClassifier on row \d+: .* don't ship it$"): t.onnx_parity(model, nudged(exported, by), X)

def test_parity_refuses_nan(fitted, monkeypatch):
    data, models = fitted
    monkeypatch.setattr(churn_nb.modeling.onnx_export, "onnx_predict", lambda exported, X, *more: np.full(len(X), np.nan))
    with pytest.raises(ValueError, match="ONNX differs"): t.onnx_parity(*models["hist_gradient_boosting"], data["test"][0])

def test_the_probes_lie_on_thresholds(fitted):
    data, models = fitted
    model, X = models["hist_gradient_boosting"][0], data["test"][0]
    Z = t.probes(model, X)
    at = {(j, float(np.float32(v))) for j, v in splits(model)}
    assert Z.shape == (2000, X.shape[1]) and Z.dtype == np.float32 and not np.shares_memory(Z, X)
    assert len({(j, float(v)) for j in range(Z.shape[1]) for v in Z[:, j]} & at) > .7*len(at)

def test_exporting_leaves_the_model_as_it_was(fitted):
    data, models = fitted
    for model, exported in models.values():
        again = t.fit(clone(model), *data["train"][:2])
        before, p = splits(again), t.predict(search._one_thread(again), data["test"][0])
        assert t.to_onnx(again, data["test"][0].shape[1]) == exported and splits(again) == before and (t.predict(again, data["test"][0]) == p).all()

EXPORT = """import hashlib, numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from churn_nb.modeling.onnx_export import LogScale, to_onnx
X = np.random.default_rng(0).normal(size=(300, 3)).astype("float32"); X[::7, 1] = np.nan
for m in (make_pipeline(LogScale(), LogisticRegression()), HistGradientBoostingClassifier(max_iter=3)):
    print(hashlib.sha256(to_onnx(m.fit(X, X[:, 0] > 0), 3)).hexdigest())"""

def test_the_file_is_the_same_in_every_process():
    "Python orders a set of strings anew in each process; of these hash seeds one gave another file before the order was fixed."
    run = lambda seed: subprocess.Popen([sys.executable, "-c", EXPORT], stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": str(seed)})
    said = [p.communicate()[0] for p in [run(seed) for seed in (0, 1, 2)]]
    assert said[0].count("\n") == 2 and said == said[:1]*3

# Folds

@quick(100)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=40), st.integers(1, 200), st.integers(1, 4))
def test_folds_train_only_on_labels_known_at_their_date(days, label_days, n):
    dates = np.datetime64("1997-01-01") + np.array(days, "timedelta64[D]")
    folds = t.time_folds(dates, label_days, n)
    assert len(folds) <= n
    for a, b in folds:
        assert len(a) and len(b) and len(set(dates[b])) == 1
        assert (dates[a] + np.timedelta64(label_days, "D") <= dates[b][0]).all()
        rest = np.setdiff1d(np.arange(len(dates)), a)
        assert (dates[rest] + np.timedelta64(label_days, "D") > dates[b][0]).all() # and none that was known is left out

def test_early_stopping_finds_the_smallest_validation_loss(fitted):
    data, _ = fitted
    model = t.candidates(configured("unused"))["hist_gradient_boosting"][0]
    A, B = data["train"], data["validation"]
    p, best = t.early_stopping(clone(model), A, B)
    at = {n: log_loss(B.y, t.predict(t.fit(t.set_n_rounds(model, n), *A[:2]), B.X)) for n in (best - 1, best, best + 1)}
    assert min(at, key=at.get) == best and log_loss(B.y, p) == pytest.approx(at[best], rel=1e-12)

def test_fits_side_by_side_are_those_of_one_after_another(rows, names):
    part = t.matrices(rows, names)["train"]
    found = [[(x.kind, t.variant(x.model), x.losses, x.rounds) for trials in t.search(configured("unused", train__n_jobs=n), part).values() for x in trials] for n in (1, 3)]
    assert found[0] == found[1] and len(found[0]) == 9

def test_the_schema_of_typical_rows_is_that_of_all(rows):
    from mlflow.data.pandas_dataset import from_pandas
    odd = rows.assign(gap=np.where(np.arange(len(rows)) == 150, np.nan, 1.), text="a")
    for r in (rows, odd): assert from_pandas(typical_rows(r)).schema == from_pandas(r).schema
    assert from_pandas(odd[:100]).schema != from_pandas(odd).schema, "the gap comes later"

def test_customer_and_date_are_no_features(names): assert not {"customer_id", "event_timestamp", "churn", "split"} & set(names)

def test_a_constant_rescaling_of_amounts_does_not_break_the_scaling():
    X = np.array([[0, -5, np.nan], [0, 5, np.nan], [0, 1e30, np.nan]], "float32")
    Z = LogScale().fit(X).transform(X)
    assert Z.shape == (3, 4) and np.isfinite(Z).all() and (Z[:, 0] == 0).all() and (Z[:, 3] == 1).all() and Z[0, 1] < Z[1, 1] < Z[2, 1]

# Metrics

@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_with_one_class_is_refused(rows, names, split):
    for bad in (rows[rows.split != split], rows[(rows.split != split) | (rows.churn == 1)]):
        with pytest.raises(ValueError, match=f"split {split}: "): t.matrices(bad, names)

# Two whole trainings

TRAIN = "import json, sys, pandas as pd\nfrom churn_nb.core.settings import load_settings\nfrom churn_nb.core.workspace import Workspace\nfrom churn_nb.train import train\ns = load_settings(json.loads(sys.argv[1]), environ={})\nWorkspace(s.paths.workspace).open()\nprint(json.dumps(train(s, pd.read_parquet(sys.argv[2]))))"

@pytest.fixture(scope="module")
def runs(rows, tmp_path_factory):
    "The same rows trained on in two fresh workspaces, by two processes, on one and on two threads."
    root = tmp_path_factory.mktemp("runs")
    rows.to_parquet(root/"rows.parquet")
    over = [{"paths.workspace": str(root/w), "paths.data": str(ROOT/"data"), "train.n_jobs": n} for w, n in (("a", 1), ("b", 2))]
    both = [subprocess.Popen([sys.executable, "-c", TRAIN, json.dumps(o), str(root/"rows.parquet")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) for o in over]
    said = [p.communicate() for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert [err for _, err in said] == ["", ""] # a step prints one result
    return [(load_settings(o, environ={}), json.loads(out)) for o, (out, _) in zip(over, said)]

def model_files(s): return sorted(Workspace(s.paths.workspace).artifacts.rglob("model.onnx"))

def test_two_runs_are_the_same_to_the_last_bit(runs):
    (a, first), (b, second) = runs
    own = {"run_id"}
    assert {k: v for k, v in first.items() if k not in own} == {k: v for k, v in second.items() if k not in own}
    assert [f.read_bytes() for f in model_files(a)] == [f.read_bytes() for f in model_files(b)] and len(model_files(a)) == 1
    manifests = [json.loads(next(Workspace(s.paths.workspace).artifacts.rglob("manifest.json")).read_text()) for s, _ in runs]
    assert [replace_volatile(m) for m in manifests] == [replace_volatile(manifests[0])]*2

def replace_volatile(m): return m | {"run_id": "", "created": ""}

@pytest.fixture(scope="module")
def recorded(runs):
    "Client, settings and result of the second workspace."
    s, result = runs[1]
    return t.tracking(s), s, result

def runs_of(client, s): return client.search_runs([client.get_experiment_by_name(s.train.experiment).experiment_id], max_results=1000)

def test_every_run_records_its_provenance(recorded, rows):
    client, s, result = recorded
    every = {r.info.run_name: r for r in runs_of(client, s)}
    parent, found = every["training"], {k: r for k, r in every.items() if k in (*BASELINES, *KINDS)}
    assert set(found) == set(result["validation"]) == {*BASELINES, *KINDS}
    assert {r.data.tags["mlflow.parentRunId"] for r in found.values()} == {parent.info.run_id}
    md5, head = pointer_md5(ROOT/"data/cdnow.csv.dvc"), subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    for name, run in found.items():
        d = run.data
        assert {m: d.metrics[f"validation_{m}"] for m in result["validation"][name]} == result["validation"][name]
        assert d.params["seed"] == "42" and (d.tags["data_hash"], d.tags["git_sha"].removesuffix("-dirty"), d.tags["dataset"]) == (f"md5:{md5}", head, "cdnow")
        assert d.params["calibration"] == min(CALIBRATORS, key=lambda c: d.metrics[f"calibration_{c}"])
        assert run.info.status == "FINISHED" and {a.path for a in client.list_artifacts(run.info.run_id)} >= {"calibration.png"}
        inputs = run.inputs.dataset_inputs
        assert {i.dataset.digest for i in inputs} == {md5} and all(i.dataset.name.startswith("cdnow") and md5 in i.dataset.source for i in inputs)
    assert found["random_forest"].data.params["randomforestclassifier__n_estimators"] == "100" and found["hist_gradient_boosting"].data.params["learning_rate"] == "0.05"
    for name, kind in ((result["baseline_name"], "baseline"), (result["winner"], "test")): assert {m: found[name].data.metrics[f"test_{m}"] for m in result[kind]} == result[kind]
    for loser in {*BASELINES, *KINDS} - {result["winner"], result["baseline_name"]}: # who loses on validation never sees the test rows
        assert not [m for m in found[loser].data.metrics if m.startswith("test_")]
    for name, among in ((result["winner"], KINDS), (result["baseline_name"], BASELINES)): assert name == min(among, key=lambda n: result["validation"][n]["log_loss"])
    assert result["run_id"] == found[result["winner"]].info.run_id

def test_what_the_version_has_to_beat_is_stored_with_it(recorded, rows, names):
    _, s, result = recorded
    T, registry = t.matrices(rows, names)["test"], ModelRegistry(s)
    assert log_loss(T.y, t.onnx_predict(registry.find_file(result["version"], "baseline.onnx"), T.X)) == pytest.approx(result["baseline"]["log_loss"], abs=1e-6)
    assert registry.find_file(result["version"], "no.such") is None
    checks = {c["criterion"]: c["measured"] for c in run_gate(s, rows[rows.split == "test"])[1]["checks"]}
    assert f"{result['test']['log_loss']:.5f} against {result['baseline']['log_loss']:.5f}, p = " in checks["log_loss against baseline"] and "log_loss against base rate" in checks

def with_rule(feature): return configured("unused", train__baseline_feature=feature)

def test_a_rule_of_the_users_own_is_a_baseline_if_it_is_a_number(names):
    texts = t.Dictionary(names, [["a", "b"] if n == "spend_24h" else None for n in names])
    assert [*t.baselines_of(with_rule("spend_90d"))] == [*t.baselines_of(with_rule("spend_90d"), texts)] == [*BASELINES, "spend_90d_baseline"]
    for feature, dictionary in (("shoe_size", None), ("spend_24h", texts)):
        with pytest.raises(SettingsError, match=rf"^\[train\] baseline_feature = {feature}: no such numeric feature; there are ") as e: t.baselines_of(with_rule(feature), dictionary)
        assert "\n" not in str(e.value)

def test_every_variant_that_was_tried_is_a_nested_run(recorded):
    client, s, result = recorded
    by_id = {r.info.run_id: r for r in runs_of(client, s)}
    for kind, tried in result["searched"].items():
        mine = {r.data.params["variant"]: r for r in by_id.values() if by_id.get(r.data.tags.get("mlflow.parentRunId"), r).info.run_name == kind and "variant" in r.data.params}
        assert set(mine) == set(tried) and len(tried) == len(t.candidates(s)[kind])
        for v, loss in tried.items():
            folds = [m.value for m in client.get_metric_history(mine[v].info.run_id, "fold_log_loss")]
            assert len(folds) == 2 and np.mean(folds) == pytest.approx(loss)

def test_the_model_card_and_manifest_explain_the_decision(recorded):
    client, s, result = recorded
    import mlflow
    card = mlflow.artifacts.load_text(f"runs:/{result['run_id']}/model_card.md")
    for m, v in result["intervals"].items(): assert f"| {m} | {v['value']:.4g} | {v['low']:.4g} | {v['high']:.4g} |" in card and v["low"] <= v["value"] <= v["high"]
    assert all(f"| {r['slice']} | {r['value']} | {r['n']} |" in card for r in result["slices"]) and sum(r["n"] for r in result["slices"]) == 2*result["rows"]["test"]
    manifest = json.loads(mlflow.artifacts.load_text(f"runs:/{result['run_id']}/manifest.json"))
    assert manifest["threshold"] == result["threshold"] == s.train.offer_cost/s.train.saved_margin == .8
    assert manifest["decision"] == {"offer_cost": 2., "saved_margin": 2.5} and manifest["calibration"] == result["calibration"]
    assert len(manifest["reference"]) == len(manifest["features"])
    card = manifest["card"]
    assert card["kind"] == result["winner"] and card["intervals"] == result["intervals"] and card["reliability"] == result["reliability"] and card["gate"] == []
    assert sum(g["n"] for g in card["reliability"]) == result["rows"]["test"]

def test_the_rows_of_every_split_are_recorded(recorded):
    client, s, result = recorded
    inputs = client.get_run(result["run_id"]).inputs.dataset_inputs
    assert {tag.value for i in inputs for tag in i.tags if tag.key == "mlflow.data.context"} == {"train", "validation", "test"}

def test_no_pickle_is_kept(runs):
    for s, _ in runs:
        files = [f for f in Path(s.paths.workspace).rglob("*") if f.is_file()]
        assert files and not [f for f in files if f.suffix in (".pkl", ".pickle", ".joblib", ".skops")]
        assert not [f for f in files if f.read_bytes()[:1] == b"\x80" and f.suffix not in (".png", ".db")] # a pickle by content
        assert not [f for f in files if f.name == "MLmodel" and "cloudpickle" in f.read_text()]

def test_the_registry_holds_the_exported_file(recorded, rows, names, fitted):
    client, s, result = recorded
    import hashlib, mlflow
    with t.hushed():
        mv = client.get_model_version_by_alias(s.train.model_name, "challenger")
        stored = Path(mlflow.artifacts.download_artifacts(f"models:/{s.train.model_name}@challenger"))
    assert (str(mv.version), mv.current_stage, mv.run_id) == (result["version"], "Staging", result["run_id"])
    exported = (stored/"model.onnx").read_bytes()
    assert mv.tags["sha256"] == hashlib.sha256(exported).hexdigest() and len(exported) == result["onnx_bytes"]
    assert t.evaluate(fitted[0]["test"].y, t.onnx_predict(exported, fitted[0]["test"].X))["log_loss"] == pytest.approx(result["test"]["log_loss"], abs=1e-5) # as far as each probability may differ
    text = mlflow.artifacts.load_text(f"runs:/{mv.run_id}/manifest.json")
    assert mv.tags["manifest_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    info = mlflow.models.get_model_info(str(stored))
    assert info.signature.inputs.input_names() == names and {str(c.type) for c in info.signature.inputs.inputs} == {"DataType.float"}
    example = pd.DataFrame(**json.loads((stored/"input_example.json").read_text()))
    assert example.columns.tolist() == names and len(example) == 5
    with t.hushed(): p = mlflow.pyfunc.load_model(f"models:/{s.train.model_name}/Staging").predict(example.astype("float32"))
    np.testing.assert_array_equal(np.ravel(p["probability"] if hasattr(p, "keys") else p), t.onnx_predict(exported, example.to_numpy("float32")))
