"Shapley values: exact by an independent count, and estimates within their errors."
import numpy as np, pytest
from hypothesis import given, settings as hyp, strategies as st
from hypothesis.extra.numpy import arrays
from churn_nb.evaluation.shapley import contributions, sampled_contributions, shapley
from orders import walk

cell = st.floats(-50, 50, width=32)

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
