"Uplift: intervals against statsmodels and against the truth, weights that cost no bias, and the loss watch with them."
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hyp
from hypothesis import strategies as st
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from churn_nb.evaluation.loss_estimation import Batch, entropy, rectifier
from churn_nb.evaluation.uplift import group_rate, measure_uplift, offer_value, sample_size, untreated_terms, untreated_weights, wilson
from churn_nb.monitoring.sequential_test import LossWatch, expected_loss, label_rate_change, largest_stake, log_wealth, losses

quick = hyp(max_examples=80, deadline=None, derandomize=True)
groups = st.tuples(st.integers(1, 60), st.integers(1, 400)).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n[0]), st.integers(0, n[1])))

def rows(n, x0, x1):
    "Outcomes and groups: x0 of n[0] control customers left, x1 of n[1] treated ones."
    return np.r_[np.arange(n[0]) < x0, np.arange(n[1]) < x1].astype(int), np.arange(sum(n)) < n[0], np.arange(sum(n))

@quick
@given(groups)
def test_the_interval_of_independent_rows_is_newcombes(drawn):
    n, x0, x1 = drawn
    u = measure_uplift(*rows(n, x0, x1))
    assert [u.low, u.high] == pytest.approx(confint_proportions_2indep(x0, n[0], x1, n[1], method="newcomb", compare="diff"), abs=1e-9)
    assert wilson(x0/n[0], n[0]) == pytest.approx(proportion_confint(x0, n[0], method="wilson"), abs=1e-9)
    assert -1 <= u.low <= u.difference <= u.high <= 1 and u.control.effective == pytest.approx(n[0])

@quick
@given(groups, st.integers(2, 5), st.randoms(use_true_random=False))
def test_rows_that_repeat_a_customer_say_nothing_more_and_their_order_nothing(drawn, times, rng):
    n, x0, x1 = drawn
    left, control, who = rows(n, x0, x1)
    once, order = measure_uplift(left, control, who), np.repeat(np.arange(len(who)), times)
    rng.shuffle(order)
    again = measure_uplift(left[order], control[order], who[order])
    assert [again.low, again.high, again.control.effective] == pytest.approx([once.low, once.high, once.control.effective], abs=1e-9)
    assert again.control.rows == times*n[0] and again.control.customers == n[0]

@quick
@given(groups, st.floats(.01, .5))
def test_a_share_that_never_changed_changes_nothing(drawn, share):
    left, control, who = rows(*drawn)
    a, b = measure_uplift(left, control, who), measure_uplift(left, control, who, np.full(len(who), share))
    assert [a.low, a.difference, a.high] == pytest.approx([b.low, b.difference, b.high], abs=1e-9)
    assert offer_value(a, 2, 10) == pytest.approx(tuple(10*d - 2 for d in (a.difference, a.low, a.high)))

def coverage(p0, p1, n0, n1, times, rounds, seed):
    "Share of the simulated intervals that contain the truth; customers of one kind are in the table up to `times` times."
    rng, inside = np.random.default_rng(seed), 0
    for _ in range(rounds):
        who = np.repeat(np.arange(n0 + n1), rng.integers(1, times + 1, n0 + n1))
        control, own = who < n0, rng.beta(2*p0, 2*(1 - p0), n0 + n1)[who] if times > 1 else p0
        u = measure_uplift(rng.random(len(who)) < own*np.where(control, 1, p1/p0), control, who)
        inside += u.low <= p0 - p1 <= u.high
    return inside/rounds

@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("p0, p1, n0", [(.05, .05, 30), (.05, .035, 30), (.05, .035, 200), (.6, .42, 30), (.85, .6, 100)])
def test_the_interval_contains_the_truth_19_times_in_20(p0, p1, n0, times):
    "600 rounds have a standard error of .009: a coverage of .90 is found."
    assert coverage(p0, p1, n0, 9*n0, times, 600, 1) >= .95 - 3*(.95*.05/600)**.5

@quick
@given(st.floats(.02, .98), st.floats(.02, 1), st.floats(.05, .5))
def test_fewer_customers_are_needed_for_a_larger_effect_and_a_larger_control_group(rate, part, share):
    n = sample_size(rate, part*rate, share)
    assert n >= sample_size(rate, min(1.2*part, 1)*rate, share) and sample_size(rate, part*rate, share/2) >= n and sample_size(rate, part*rate, share, power=.9) >= n

@pytest.mark.parametrize("rate, effect, share", [(.3, .09, .1), (.6, .2, .25), (.85, .1, .5)])
def test_with_so_many_customers_four_of_five_experiments_find_the_effect(rate, effect, share):
    rng, n, found = np.random.default_rng(2), sample_size(rate, effect, share), 0
    n0 = round(share*n)
    for _ in range(400): found += measure_uplift(*rows((n0, n - n0), rng.binomial(n0, rate), rng.binomial(n - n0, rate - effect))).low > 0
    assert abs(found/400 - .8) < 3*(.8*.2/400)**.5 + .03

@pytest.mark.parametrize("effect", [0, -1, .4])
def test_an_effect_that_cannot_be_is_refused(effect):
    with pytest.raises(ValueError, match="sample_size: effect"): sample_size(.3, effect, .1)

# Outcomes after an offer

@quick
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=6), st.floats(.05, .5))
def test_over_all_draws_of_the_group_the_terms_have_the_mean_without_offers(drawn, share):
    "Every assignment, with its probability; what happened after an offer is 99 and must not matter."
    due, without, guess = (np.array(v) for v in zip(*drawn))
    mean = 0.
    for bits in range(2**len(due)):
        control = np.array([bits >> i & 1 for i in range(len(due))], bool)
        w = untreated_weights(due, control, share)
        happened = np.where(due & ~control, 99., without)
        mean += np.where(control, share, 1 - share).prod()*untreated_terms(happened, guess, w).mean()
        assert (w[~due] == 1).all() and (w[due & ~control] == 0).all()
    assert mean == pytest.approx(without.mean(), abs=1e-9)

def test_without_a_share_every_outcome_counts_as_it_is():
    assert untreated_weights([True, True, False], [True, False, False], np.array([np.nan, 0, .1])).tolist() == [1, 1, 1]

some_rows = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1), st.sampled_from([0., 1., 10.])), min_size=1, max_size=30)

@quick
@given(st.lists(some_rows, min_size=1, max_size=8), st.sampled_from(["day", "customer"]))
def test_an_outcome_of_weight_0_is_never_looked_at_and_the_wealth_stays_above_0(days, unit):
    a, b = LossWatch(.3, unit=unit), LossWatch(.3, unit=unit)
    for day in days:
        y, p, w = (np.array(v) for v in zip(*day))
        who = np.arange(len(y))//2
        a.update(y, p, customers=who, weights=w)
        b.update(np.where(w == 0, 1 - y, y), p, customers=who, weights=w)
        assert np.isfinite(a.log_wealth) and a.to_dict() == b.to_dict()

def test_a_control_customer_after_bad_days_cannot_ruin_the_wealth():
    "After ten days of losses the stake is as large as it may be; a bet of a control customer who did as expected is far below 0."
    watch = LossWatch(.3)
    for _ in range(10): watch.update([0]*20, [.9]*20)
    before = watch.log_wealth
    watch.update([1], [.9], weights=[20.])
    assert -5 < watch.log_wealth - before < 0 and watch.history[-1]["loss"] < -4

@quick
@given(st.lists(some_rows, min_size=1, max_size=8))
def test_weights_of_1_change_nothing(days):
    a, b = LossWatch(.3), LossWatch(.3)
    for day in days:
        y, p, _ = (np.array(v) for v in zip(*day))
        a.update(y, p)
        b.update(y, p, weights=np.ones(len(y)))
    assert a.log_wealth == pytest.approx(b.log_wealth, abs=1e-9)

@given(st.floats(0, 1))
def test_the_expected_loss_is_that_of_the_two_outcomes(p):
    assert expected_loss(p) == pytest.approx((1 - p)*losses([0], [p])[0] + p*losses([1], [p])[0], abs=1e-12)

SAVED, SHARE = .3, .1

def world(rng, shape, offers=True):
    "Probabilities of a perfect model, outcomes and weights; a quarter is above one half, and offers keep 30 of 100."
    p, control = 1/(1 + np.exp(-rng.normal(-1, 1.5, shape))), rng.random(shape) < SHARE
    treated = offers & (p >= .5) & ~control
    return p, (rng.random(shape) < p) & ~(treated & (rng.random(shape) < SAVED)), untreated_weights(p >= .5, control, SHARE)

@pytest.mark.parametrize("per_day", [20, 200])
def test_a_perfect_model_raises_a_false_alarm_in_one_year_of_twenty_at_most(per_day):
    "With weights; without them in nearly every year. 150 years: a rate of .12 is found."
    rng = np.random.default_rng(3)
    promised = expected_loss(world(rng, 10**6)[0]).mean() + .01
    p, left, w = world(rng, (365, 150, per_day))
    x, H = np.where(left, -np.log(np.maximum(p, 1e-4)), -np.log(np.maximum(1 - p, 1e-4))), expected_loss(p)
    rate = {}
    for name, bets, low in (("as they are", x, 0*x), ("weighted", untreated_terms(x, H, w), np.minimum(1 - w, 0)*H)):
        k = log_wealth(bets.mean(-1, keepdims=True), promised, most=largest_stake(low.mean(-1), promised))
        rate[name] = (k >= np.log(20)).any(0).mean()
    assert rate["weighted"] <= .05 + 3*(.05*.95/150)**.5 and rate["as they are"] > .6, rate

def test_the_rectifier_and_the_label_rate_are_those_without_offers():
    rng = np.random.default_rng(4)
    p, left, w = world(rng, 200_000)
    plain, weighted = rectifier(Batch(left, p)), rectifier(Batch(left, p, None, w))
    assert abs(weighted[0]) < 4*weighted[1]**.5 and plain[0] > 10*plain[1]**.5
    before = world(rng, 200_000, offers=False)[1]
    ids = np.arange(200_000)
    assert label_rate_change(before, left, (ids, ids + 10**6))["pvalue"] < 1e-6
    assert label_rate_change(before, left, (ids, ids + 10**6), (p, w))["pvalue"] > .001
    assert entropy(.5) == pytest.approx(expected_loss(.5))

def test_a_group_without_rows_is_named():
    with pytest.raises(ValueError, match="no rows"): group_rate(np.array([]), np.array([]))
