"Labels and scores for the tests of evaluation: hypothesis draws them, or a world whose truth is known."
import numpy as np
from hypothesis import assume, settings, strategies as st
from churn_nb.evaluation.metrics import simulate_two_models

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
