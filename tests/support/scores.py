"Labels and scores for the tests of evaluation: hypothesis draws them, or a world whose truth is known."
import numpy as np, pytest
from hypothesis import assume, settings, strategies as st
from churn_nb.teaching.two_models import simulate_two_models

quick = settings(max_examples=30, deadline=None, derandomize=True)
few = settings(quick, max_examples=15)
COSTS = {"offer_cost": 2., "saved_margin": 2.5}
METRICS = ["accuracy", "auc", "average_precision", "average_precision_stayers", "log_loss", "brier", "profit"]

@st.composite
def scored(draw, least=4, ids=6):
    "Labels of both classes, two scores with many ties, and customers of several rows."
    n = draw(st.integers(least, 40))
    grid = st.lists(st.sampled_from([0., .1, .25, .5, .5000001, .9, 1.]), min_size=n, max_size=n)
    y = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    assume(0 < y.sum() < n)
    who = np.array(draw(st.lists(st.integers(0, ids), min_size=n, max_size=n)))
    assume(len(set(who)) > 1)
    return y, np.array(draw(grid)), np.array(draw(grid)), who

def world(n=400, seed=0, per_customer=4): return simulate_two_models(n, np.random.default_rng(seed), per_customer=per_customer)

def two_of_each(y, who): return all(len(set(who[y == v])) > 1 for v in (0, 1))

bad_input = pytest.mark.parametrize("y,p,says", [
    ([], [], "0 rows with 0 class(es); two classes are needed"), ([1, 1], [.1, .2], "2 rows with 1 class(es)"),
    ([0, 1, 2], [.1, .2, .3], "the label of row 2 is 2"), ([0, 1, np.nan], [.1, .2, .3], "the label of row 2 is nan"),
    ([0, 1], [.1, np.nan], "1 predictions are not finite"), ([0, 1], [.1, np.inf], "1 predictions are not finite"),
    ([0, 1], [.1, .2, .3], "2 labels, predictions of shape (3,)"), ([[0, 1]], [[.1, .2]], "one dimension is needed")])

def refused(call, says:str):
    "A ValueError of one line, which says it."
    with pytest.raises(ValueError) as error: call()
    assert says in str(error.value) and "\n" not in str(error.value)
