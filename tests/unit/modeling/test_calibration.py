"Calibration: no probability is more certain than its rows allow, on any labels and probabilities, in Python and in the exported graph."
import numpy as np, onnx, pytest
from hypothesis import example, given, settings as hyp, strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from churn_nb.modeling.calibration import CALIBRATORS, Calibrated, Isotonic, _closest, _fit_sigmoid, choose_calibration, cross_fitted, log_loss
from churn_nb.modeling.onnx_export import _calibration_nodes, onnx_parity, onnx_predict, to_onnx

KINDS = list(CALIBRATORS.values())
GRID = np.concatenate([[0, 1e-30, 1e-7, 1e-4, 1 - 1e-4, 1 - 1e-7, 1], np.linspace(0, 1, 101)]) # where a model may answer, whatever the calibrator has seen

def drawn(n, seed, ties, classes):
    "Labels and probabilities: with ties or without, spread or all near one place, both classes or one."
    rng = np.random.default_rng(seed)
    p = rng.beta(*rng.uniform(.05, 5, 2), n)
    if ties: p = rng.choice(rng.choice([0., .2, .5, 1., rng.random()], 3), n) if ties == "few" else np.full(n, rng.choice([0., .3, 1.]))
    y = (rng.random(n) < (p if classes == "by p" else .5)).astype(int) if classes != "one" else np.full(n, rng.integers(2))
    return (p > .5).astype(int) if classes == "apart" else y, p

samples = st.builds(drawn, st.one_of(st.integers(1, 6), st.integers(1, 400)), st.integers(0, 10**6), st.sampled_from(["", "", "few", "all"]), st.sampled_from(["by p", "by p", "coin", "one", "apart"]))

def graph_of(calibrator):
    "The calibrator alone, as the exported graph ends."
    nodes, constants = _calibration_nodes(calibrator)
    info = onnx.helper.make_tensor_value_info
    g = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["features"], ["uncorrected"]), *nodes, onnx.helper.make_node("Reshape", ["corrected", "flat"], ["probability"])], "g",
                               [info("features", onnx.TensorProto.FLOAT, [None, 1])], [info("probability", onnx.TensorProto.FLOAT, [None])], [*constants, onnx.numpy_helper.from_array(np.array([-1]), "flat")])
    return onnx.helper.make_model(g, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

@hyp(max_examples=200, deadline=None, derandomize=True)
@example((np.array([1]), np.array([1.])))
@example((np.zeros(5, int), np.zeros(5)))
@given(samples)
def test_no_probability_is_more_certain_than_its_rows_allow(sample):
    y, p = sample
    limit, asked = 1/(len(y) + 2), np.concatenate([GRID, p]).astype(np.float32)
    for kind in KINDS:
        c = kind.fit(y, p)
        q = c(asked)
        assert np.isfinite(q).all() and (q >= limit - 1e-12).all() and (q <= 1 - limit + 1e-12).all(), kind.name
        served = onnx_predict(graph_of(c), asked[:, None])
        assert (served > 0).all() and (served < 1).all()
        np.testing.assert_allclose(served, q, rtol=0, atol=1e-5 if kind.name != "platt" else 1e-6*max(10, abs(c.a)), err_msg=kind.name) # Platt's slope multiplies what float32 loses
        for label in (0, 1): assert log_loss(np.full(len(q), label), q) == pytest.approx(float(-np.log(q if label else 1 - q).mean()), rel=1e-12) # its own limit changes nothing

@hyp(max_examples=200, deadline=None, derandomize=True)
@given(samples)
def test_isotonic_never_falls_and_lies_between_the_shares_and_the_base_rate(sample):
    y, p = sample
    c = Isotonic.fit(y, p)
    assert (np.diff(c.p) > 0).all() and (np.diff(c.q) >= 0).all() and 0 < c.q[0] <= c.q[-1] < 1
    assert (np.diff(c(np.sort(GRID))) >= 0).all()

@hyp(max_examples=100, deadline=None, derandomize=True)
@given(samples, st.integers(1, 4))
def test_what_chooses_is_as_careful_as_what_serves(sample, rows_each):
    "The cross-fitted probabilities, by which calibrators and candidates are compared, obey the limit of the rows that they rest on."
    y, p = sample
    customers = np.arange(len(y))//rows_each
    for kind in KINDS:
        q = cross_fitted(kind, y, p, customers)
        assert (q >= 1/(len(y) + 2) - 1e-12).all() and (q <= 1 - 1/(len(y) + 2) + 1e-12).all()
    c, losses, q = choose_calibration(y, p, customers)
    assert losses[c.name] == min(losses.values()) == log_loss(y, q) and losses[c.name] <= np.log(len(y) + 2)

@pytest.mark.parametrize("n", [10**6, 10**9])
def test_a_million_rows_and_more_are_still_told_from_1_in_float32(n):
    inner = {"none": {}, "platt": {"a": 50., "b": 0.}, "isotonic": {"p": (0., 1.), "q": (0., 1.)}}
    for kind in KINDS:
        low, high = np.float32(kind(**inner[kind.name], closest=_closest(n))(np.array([0., 1.])))
        assert 1e-7 < low < 1e-5 and 1e-7 < 1 - high < 1e-5

@hyp(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(0, 10**6))
def test_the_sigmoid_is_the_one_of_scikit_learn(n, seed):
    "A target between 0 and 1 is a row of each class, with these weights."
    rng = np.random.default_rng(seed)
    x, target = rng.normal(rng.normal(), rng.uniform(.1, 3), n), rng.uniform(.05, .95, n)
    m = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000).fit(np.tile(x, 2)[:, None], np.repeat([1, 0], n), np.concatenate([target, 1 - target]))
    loss = lambda a, b: (np.logaddexp(0, a*x + b) - target*(a*x + b)).sum()
    assert loss(*_fit_sigmoid(x, target)) <= loss(m.coef_[0, 0], m.intercept_[0]) + 1e-9*n

@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
@pytest.mark.parametrize("model", [LogisticRegression(), DummyClassifier(strategy="prior")], ids=["logistic", "base rate"])
def test_a_baseline_is_exported_as_it_is_calibrated(kind, model):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(300, 3)).astype("float32")
    y = (rng.random(300) < 1/(1 + np.exp(-X[:, 0]))).astype(int)
    whole = Calibrated(model.fit(X, y), kind.fit(y, model.predict_proba(X)[:, 1]))
    wild = X if model.__class__ is LogisticRegression else np.where(rng.random(X.shape) < .3, np.float32(np.nan), X*np.float32(1e30)) # a constant reads no value
    assert onnx_parity(whole, to_onnx(whole, 3), wild, threshold=.123) <= 1e-5
