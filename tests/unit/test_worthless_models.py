"""Never worse than nothing: how often the gate's baseline checks let a worthless model through, and how often a good one, over 400 test sets of each kind and size.
A share of .025 has a standard error of .008 there, so three of them see a level of .05; the plain comparison of two numbers lets through about half."""
import functools
import msgspec, numpy as np, onnx, pandas as pd, pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from churn_nb import promote as p, train as t
from churn_nb.core.errors import RegistryError
from churn_nb.core.manifest import Feature, Manifest, SelfTest
from churn_nb.core.settings import load_settings
from churn_nb.evaluation.metrics import evaluate
from churn_nb.modeling.calibration import Calibrated, choose_calibration, log_loss
from churn_nb.modeling.search import feature_baseline
from churn_nb.modeling.tabular import base_rate
from churn_nb.teaching.two_models import simulate_two_models

SEEDS, SIZES = 400, (60, 400, 2000)
LEVEL = .025 # of the first look at alpha = .05
MOST = LEVEL + 3*(LEVEL*(1 - LEVEL)/SEEDS)**.5
GATE = load_settings(environ={}).gate_for("own")

def reading(column):
    "A graph that answers what stands in a column: a baseline whose every answer is chosen."
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    arrays = {"place": np.array([column]), "flat": np.array([-1])}
    g = onnx.helper.make_graph([node("Gather", ["features", "place"], ["one"], axis=1), node("Reshape", ["one", "flat"], ["probability"])], "g", [info("features", onnx.TensorProto.FLOAT, [None, 2])],
                               [info("probability", onnx.TensorProto.FLOAT, [None])], [onnx.numpy_helper.from_array(a, name) for name, a in arrays.items()])
    return onnx.helper.make_model(g, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

BASELINE = reading(1)
MANIFEST = Manifest(name="m", version="1", run_id="r", git_sha="g", created="c", dataset="d", data_hash="h", threshold=.5, features=[Feature(name="ours"), Feature(name="theirs")],
                    example={"ours": .5, "theirs": .5}, self_test=SelfTest(rows=[[.5, .5]], probability=[.5]))

def checks(y, ours, theirs, customers=None, gate=GATE, **inputs):
    "The baseline checks of a challenger that answers `ours`, with a stored baseline that answers `theirs`."
    rows = pd.DataFrame({"ours": ours, "theirs": theirs, "churn": y} | ({} if customers is None else {"customer_id": customers}))
    loss = {name: log_loss(y, q) for name, q in (("log_loss", ours), ("baseline_log_loss", theirs))}
    scored = p.ScoredRows(msgspec.structs.replace(MANIFEST, metrics=loss), rows, rows[["ours", "theirs"]].to_numpy("float32"), ours)
    return p.baseline_checks(scored, loss, gate, p.GateInputs(**{"baseline": BASELINE} | inputs))

def passes(made): return bool(made) and all(c.verdict == "pass" for c in made)

sigmoid = lambda z: 1/(1 + np.exp(-z))
logit = lambda q: np.log(q/(1 - q))

def world(n, rng, base=1.2):
    true_p = sigmoid(rng.normal(base, 1, n))
    return (rng.random(n) < true_p).astype(int), true_p

def rate_of(true_p, rng, rows=300): return (rng.binomial(rows, true_p.mean()) + 1)/(rows + 2) # as known from so many rows

def noise_around_the_base_rate(n, rng, base=1.2):
    y, true_p = world(n, rng, base)
    r = rate_of(true_p, rng)
    return y, sigmoid(logit(r) + .1*rng.normal(size=n)), np.full(n, r)

def another_constant(n, rng):
    "As near to the truth as the baseline, from other rows."
    y, true_p = world(n, rng)
    return y, np.full(n, rate_of(true_p, rng)), np.full(n, rate_of(true_p, rng))

def as_good_as_the_baseline(n, rng, rows_each=1):
    y, ours, theirs, customer = simulate_two_models(n*rows_each, rng, per_customer=rows_each)
    return y, ours, theirs, customer

def ranks_the_wrong_way(n, rng):
    "AUC .44, and a log-loss a little worse than the base rate's: the probabilities lean against the truth."
    y, true_p = world(n, rng)
    r = rate_of(true_p, rng)
    return y, sigmoid(logit(r) - .1*(logit(true_p) - 1.2)), np.full(n, r)

def a_constant_against_a_bad_baseline(n, rng):
    "The issue's first case: a rule that ranks well and answers almost 0 and 1 is worse than nothing, and a constant is better than it."
    y, true_p = world(n, rng)
    p_rule = sigmoid(logit(true_p) + rng.normal(size=n))
    return y, np.full(n, rate_of(true_p, rng)), np.clip(sigmoid(8*(logit(p_rule) - 1.2)), 1e-6, 1 - 1e-6)

WORTHLESS = {"noise": noise_around_the_base_rate, "noise, 3 % churn": functools.partial(noise_around_the_base_rate, base=-4), "constant": another_constant, "as good": as_good_as_the_baseline,
             "as good, 5 rows each": functools.partial(as_good_as_the_baseline, rows_each=5), "wrong way": ranks_the_wrong_way, "bad baseline": a_constant_against_a_bad_baseline}

def share(kind, n, **how):
    seen = [kind(n, np.random.default_rng(seed)) for seed in range(SEEDS)]
    return np.mean([passes(checks(*one, **how)) for one in seen if 0 < one[0].mean() < 1])

@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", WORTHLESS)
def test_a_worthless_model_passes_no_more_often_than_promised(kind, n): assert share(WORTHLESS[kind], n) <= MOST

def test_numbers_alone_would_let_half_of_them_through():
    "What a version without a baseline's file is asked, and every version was before: the fault that the test above can see."
    assert .4 < share(as_good_as_the_baseline, 400, baseline=None) < .6 and share(another_constant, 60, baseline=None) > .3
    y, ours, theirs = a_constant_against_a_bad_baseline(2000, np.random.default_rng(0))
    assert passes(checks(y, ours, theirs, baseline=None)) and not passes(checks(y, ours, theirs)), "a constant would be promoted"

def better(n, rng):
    y, ours, theirs, _ = simulate_two_models(n, rng, (.35, .7))
    return y, ours, theirs

def better_than_nothing(n, rng):
    y, ours, _, _ = simulate_two_models(n, rng)
    return y, ours, np.full(n, .74)

@pytest.mark.parametrize("kind, powers", [(better, (.03, .35, .96)), (better_than_nothing, (.25, .92, .99))], ids=["half the noise of the baseline", "against the base rate"])
def test_a_good_model_passes(kind, powers):
    "Measured: .06, .43, .99, and .32, .96, 1; three standard errors of 400 seeds are at most .075."
    for n, least in zip(SIZES, powers): assert share(kind, n) >= least, n

def test_what_is_trained_on_noise_is_refused(rows=60, tested=400):
    "The whole way of small tables whose features know nothing: fit, calibrate, choose by the cross-fitted loss, on both sides; then the gate."
    promoted = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        X, y = rng.normal(size=(2*rows + tested, 3)).astype("float32"), (rng.random(2*rows + tested) < .7).astype(int)
        part = np.repeat(["train", "validation", "test"], [rows, rows, tested])
        A, V, T = (part == name for name in ("train", "validation", "test"))
        if min(y[s].mean()*(1 - y[s].mean()) for s in (A, V, T)) == 0: continue
        def judged(model):
            with np.errstate(all="ignore"): raw = t.fit(model, X[A], y[A]).predict_proba(X[V])[:, 1]
            c, losses, _ = choose_calibration(y[V], raw, np.arange(rows), seed)
            return losses[c.name], Calibrated(model, c)
        least = lambda models: min(map(judged, models), key=lambda r: r[0])[1].predict_proba(X[T])[:, 1]
        ours = least([LogisticRegression(), DecisionTreeClassifier(min_samples_leaf=5, random_state=0)])
        theirs = least([base_rate(), feature_baseline(["a", "b", "c"], "a")])
        assert 0 < min(ours.min(), theirs.min()) and max(ours.max(), theirs.max()) < 1
        promoted.append(passes(checks(y[T], ours, theirs)))
    assert len(promoted) > .95*SEEDS and np.mean(promoted) <= MOST

def test_the_issue_in_small_recency_with_steps_is_worse_than_nothing_and_ours_is_not():
    rng = np.random.default_rng(0)
    y, true_p = world(4000, rng)
    silent = sigmoid(logit(true_p) + rng.normal(size=4000)) # what recency knows
    some, rest = slice(0, 80), slice(80, None)
    textbook = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(silent[some], y[some]).predict(silent)
    c, _, _ = choose_calibration(y[some], silent[some], np.arange(80))
    loss = {name: evaluate(y[rest], q[rest])["log_loss"] for name, q in {"steps": textbook, "ours": c(silent), "nothing": np.full(4000, y[some].mean())}.items()}
    assert loss["ours"] < loss["nothing"] < loss["steps"] and (textbook % 1 == 0).any() and not (c(silent) % 1 == 0).any()

def test_the_check_names_both_values_p_and_the_level_of_the_look():
    y, ours, theirs = better(2000, np.random.default_rng(0))
    first, nothing = checks(y, ours, theirs)
    a, b = (evaluate(y, q)["log_loss"] for q in (ours, theirs))
    assert (first.criterion, nothing.criterion, first.required) == ("log_loss against baseline", "log_loss against base rate", "better, p < 0.025")
    assert first.measured.startswith(f"{a:.5f} against {b:.5f}, p = ") and nothing.verdict == "pass"
    assert checks(y, ours, theirs, look=4)[0].required == "better, p < 0.0025 at look 4"

def test_without_a_file_the_numbers_decide_and_the_check_says_so():
    y, ours, theirs = better(400, np.random.default_rng(0))
    (only,) = checks(y, ours, theirs, baseline=None)
    assert only.verdict == "pass" and only.required == f"< {evaluate(y, theirs)['log_loss']:.5f}, without a test: no baseline.onnx"

@pytest.mark.parametrize("file, says", [(RegistryError("baseline.onnx is not the file that was registered; train again"), "not the file that was registered"), (b"no graph", "not an ONNX file")], ids=["changed", "broken"])
def test_a_baseline_that_cannot_be_scored_refuses(file, says):
    (only,) = checks(*better(400, np.random.default_rng(0)), baseline=file)
    assert (only.criterion, only.verdict) == ("baseline", "fail") and says in only.measured

def test_no_metric_asked_for_no_check(): assert checks(*better(60, np.random.default_rng(0)), gate=GATE.model_copy(update={"beat_baseline": []})) == []
