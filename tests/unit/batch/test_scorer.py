"Reasons of a probability."
import numpy as np
from hypothesis import given, strategies as st
from churn_nb.batch.scorer import reference_changes
from churn_nb.evaluation.shapley import contributions

@given(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3))
def test_changes_are_shapley_values_where_features_add_up(x, w):
    predict = lambda X: .5 + X.astype(float) @ np.array(w)
    x, r = np.array([x], np.float32), np.zeros(3, np.float32)
    np.testing.assert_allclose(reference_changes(predict, x, r)[0], contributions(predict, x[0], r), atol=1e-9)
