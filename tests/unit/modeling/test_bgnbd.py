"BG/NBD: against the published result, numerical integration, and simulated customers; what must not change it; what it refuses."
from dataclasses import astuple
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from scipy.integrate import dblquad
from scipy.special import beta, gamma
from churn_nb.modeling import bgnbd as m
from importers import import_datasets
from lessons import of_lesson

simulate_histories = of_lesson("modeling/40_bgnbd", "simulate_histories").simulate_histories
CDNOW = m.BGNBD(.243, 4.414, .793, 2.426)
quick = settings(max_examples=150, deadline=None, derandomize=True)

@st.composite
def histories(draw):
    "One possible history (x, t_x, T)."
    x, T = draw(st.integers(0, 300)), draw(st.floats(.1, 500))
    return x, T*draw(st.floats(.001, 1)) if x else 0., T

@pytest.fixture(scope="module")
def sample():
    "Purchases of the published sample of 2,357 customers."
    df = pd.read_csv(import_datasets.cdnow_source().with_name("CDNOW_sample.txt"), sep=r"\s+", header=None, dtype={2: str},
                     names=["master", "customer_id", "date", "quantity", "amount"])
    return df.assign(event_timestamp=pd.to_datetime(df.date, format="%Y%m%d", utc=True))

@pytest.fixture(scope="module")
def published():
    "x, t_x and T of that sample as the authors give them, to two decimals; a day has 1/7 week."
    df = pd.read_csv(import_datasets.cdnow_source().with_name("cdnow_customers_summary.csv"), index_col="ID")
    df.columns = ["x", "t_x", "T"]
    return df.assign(t_x=(df.t_x*7).round()/7, T=(df["T"]*7).round()/7)

# The published result

def test_published_parameters(published):
    fit = m.fit_bgnbd(published.x, published.t_x, published["T"])
    assert [round(v, 3) for v in astuple(fit)] == [.243, 4.414, .793, 2.426]
    assert round(m.log_likelihood(fit, published.x, published.t_x, published["T"]).sum(), 1) == -9582.4

def test_summary_is_the_published_one(sample, published):
    ours = m.summary(sample, "1997-10-01")
    assert (ours.index == published.index).all() and (ours.x == published.x).all()
    np.testing.assert_allclose(ours.t_x, published.t_x, atol=1e-9)
    np.testing.assert_allclose(ours["T"], published["T"] + 1/7, atol=1e-9) # to midnight, theirs to the last day

def test_no_other_parameters_are_likelier(published):
    h = published.x, published.t_x, published["T"]
    fit = m.fit_bgnbd(*h)
    best = m.log_likelihood(fit, *h).sum()
    for i in range(4):
        for factor in (.99, 1.01):
            near = [v*factor if i == j else v for j, v in enumerate(astuple(fit))]
            assert m.log_likelihood(m.BGNBD(*near), *h).sum() < best

# The formulas

def quadrature(p, x, t_x, T, alive=1, left=1, h=0):
    "Integral over rate and dropout of: alive at T and silent for h, and left at t_x."
    def f(q, lam):
        one = alive*(1 - q)**x*lam**x*np.exp(-lam*(T + h)) + (left*q*(1 - q)**(x - 1)*lam**x*np.exp(-lam*t_x) if x else 0)
        return one*p.alpha**p.r*lam**(p.r - 1)*np.exp(-p.alpha*lam)/gamma(p.r)*q**(p.a - 1)*(1 - q)**(p.b - 1)/beta(p.a, p.b)
    return dblquad(f, 0, 15, 0, 1, epsabs=0, epsrel=1e-8)[0]

@pytest.mark.parametrize("h", [(0, 0, 12), (1, 3, 12), (3, 12, 12), (7, 20, 39)], ids=str)
def test_formulas_equal_numerical_integration(h):
    p = m.BGNBD(1.5, 4, 1.3, 2.5)
    whole = quadrature(p, *h)
    assert np.exp(m.log_likelihood(p, *h)) == pytest.approx(whole, rel=1e-6)
    assert m.p_alive(p, *h) == pytest.approx(quadrature(p, *h, left=0)/whole, rel=1e-6)
    assert m.p_no_purchase(p, *h, 90/7) == pytest.approx(quadrature(p, *h, h=90/7)/whole, rel=1e-6)

def test_by_hand():
    ones = m.BGNBD(1, 1, 1, 1)
    assert np.exp(m.log_likelihood(ones, 1, 1, 3)) == pytest.approx(5/32)
    assert m.p_alive(ones, 1, 1, 3) == pytest.approx(1/5)
    assert m.p_no_purchase(ones, 1, 1, 3, 4) == pytest.approx(.85)

@quick
@given(histories(), st.floats(0, 1000))
def test_probabilities_are_probabilities(h, weeks):
    alive, silent = m.p_alive(CDNOW, *h), m.p_no_purchase(CDNOW, *h, weeks)
    assert 0 <= alive <= 1 and 1 - alive - 1e-12 <= silent <= 1
    assert silent >= m.p_no_purchase(CDNOW, *h, weeks + 1) - 1e-12
    assert np.isfinite(m.log_likelihood(CDNOW, *h))
    if h[0] == 0: assert alive == 1

@quick
@given(histories(), st.floats(0, 100))
def test_longer_silence_makes_death_likelier(h, more):
    x, t_x, T = h
    assert m.p_alive(CDNOW, x, t_x, T + more) <= m.p_alive(CDNOW, x, t_x, T)

def test_one_customer_at_a_time_or_all_at_once(published):
    h = published.head(50)
    one = [float(m.p_no_purchase(CDNOW, *row, 90/7)) for row in h.to_numpy()]
    np.testing.assert_array_equal(m.p_no_purchase(CDNOW, h.x, h.t_x, h["T"], 90/7), one)

# Simulated customers

def test_p_no_purchase_equals_simulated_futures():
    "Within each history that many share (x, and t_x and T roughly), and overall."
    s = simulate_histories(CDNOW, np.full(200_000, 39.), 90/7, np.random.default_rng(3))
    told = m.p_no_purchase(CDNOW, s.x, s.t_x, s["T"], 90/7)
    groups = [s.x.clip(upper=6), pd.cut(s.t_x, [-1, 0, 10, 20, 30, 39], labels=False)]
    g = pd.DataFrame({"told": told, "var": told*(1 - told), "silent": s.future == 0}).groupby(groups)
    got = g.agg(told=("told", "sum"), var=("var", "sum"), silent=("silent", "sum"), n=("told", "size")).query("n >= 200")
    z = (got.silent - got.told)/np.sqrt(got["var"])
    assert len(z) > 15 and z.abs().max() < 4
    assert m.p_no_purchase(CDNOW, 0, 0, 39, 90/7) == pytest.approx((s[s.x == 0].future == 0).mean(), abs=.005)

def test_parameters_are_recovered():
    s = simulate_histories(CDNOW, np.random.default_rng(4).uniform(27, 39, 30_000), 0, np.random.default_rng(5))
    fit = m.fit_bgnbd(s.x, s.t_x, s["T"])
    np.testing.assert_allclose(astuple(fit), astuple(CDNOW), rtol=.2)
    assert fit.a/(fit.a + fit.b) == pytest.approx(CDNOW.a/(CDNOW.a + CDNOW.b), rel=.06)
    assert fit.r/fit.alpha == pytest.approx(CDNOW.r/CDNOW.alpha, rel=.06)

def test_simulation_is_reproducible_and_its_histories_are_valid():
    a, b = (simulate_histories(CDNOW, np.full(500, 39.), 10, np.random.default_rng(0)) for _ in range(2))
    pd.testing.assert_frame_equal(a, b)
    assert np.isfinite(m.log_likelihood(CDNOW, a.x, a.t_x, a["T"])).all()

# What must not change the result

def test_fit_ignores_order_and_names_and_repeats_itself(published):
    h = published.head(800)
    shuffled = h.sample(frac=1, random_state=0)
    fits = [m.fit_bgnbd(f.x, f.t_x, f["T"]) for f in (h, h, shuffled)]
    assert fits[0] == fits[1] == fits[2]

def test_fit_does_not_depend_on_the_unit_of_time(published):
    weeks = m.fit_bgnbd(published.x, published.t_x, published["T"])
    days = m.fit_bgnbd(published.x, published.t_x*7, published["T"]*7)
    np.testing.assert_allclose(astuple(days), np.multiply(astuple(weeks), [1, 7, 1, 1]), rtol=1e-4)

def test_doubling_every_customer_changes_nothing(published):
    h = published.head(800)
    two = pd.concat([h, h])
    np.testing.assert_allclose(astuple(m.fit_bgnbd(two.x, two.t_x, two["T"])), astuple(m.fit_bgnbd(h.x, h.t_x, h["T"])), rtol=1e-4)

# Events and features

def test_summary_uses_only_what_was_known():
    day = lambda d: pd.Timestamp(d, tz="UTC")
    events = pd.DataFrame({"customer_id": [7, 7, 7, 7, 8], "event_timestamp": map(day, ["2024-01-01", "2024-01-08 23:00", "2024-01-08 01:00", "2024-01-15", "2024-01-02"])})
    assert m.summary(events, "2024-01-15").loc[7].tolist() == [1, 1, 2]            # 15 January has not happened at its midnight
    late = events.assign(created_timestamp=events.event_timestamp)
    late.loc[4, "created_timestamp"] = day("2024-01-20")
    assert m.summary(late, "2024-01-15").index.tolist() == [7] and m.summary(late, day("2024-01-20")).index.tolist() == [7, 8]
    pd.testing.assert_frame_equal(m.summary(events, "2024-01-15"), m.summary(events.sample(frac=1, random_state=1), day("2024-01-15")))

def test_features_give_the_same_histories(sample):
    "Through the project's own feature code, in float32."
    from churn_nb.features import point_in_time
    events = sample.assign(created_timestamp=sample.event_timestamp)
    rows = point_in_time(events, [pd.Timestamp("1998-01-01", tz="UTC")], [24]).set_index("customer_id")
    ours = m.summary(sample, "1998-01-01").loc[rows.index]
    got = m.from_features(rows)
    assert (got.x == ours.x).all()
    np.testing.assert_allclose(got[["t_x", "T"]], ours[["t_x", "T"]], atol=1e-5)
    rough = m.from_features(rows.drop(columns="mean_gap_days"))
    assert (rough.x >= ours.x).all() and (rough.x > ours.x).any()                   # several purchases on one day
    for h in (got, rough): assert np.isfinite(m.p_no_purchase(CDNOW, h.x, h.t_x, h["T"], 90/7)).all()

def test_features_of_one_moment_are_no_repeat():
    row = pd.DataFrame({"transactions_total": [3.], "recency_days": [5.], "tenure_days": [5.], "mean_gap_days": [np.nan]}, index=[9]).astype("float32")
    for f in (row, row.drop(columns="mean_gap_days")):
        got = m.from_features(f)
        assert got.index.tolist() == [9] and got.loc[9].tolist() == [0, 0, pytest.approx(5/7)]

def test_unknown_customers_are_refused_not_guessed():
    unknown = pd.DataFrame({n: [np.nan] for n in ("transactions_total", "recency_days", "tenure_days", "mean_gap_days")})
    h = m.from_features(unknown)
    with pytest.raises(ValueError, match="row 0: x, t_x and T must be finite"): m.p_no_purchase(CDNOW, h.x, h.t_x, h["T"], 4)

# Bad input

@pytest.mark.parametrize("h, says", [
    ((1, 5, 4), "t_x must lie between 0 and T"), ((1, -1, 4), "t_x must lie"), ((-1, 0, 4), "whole number"), ((1.5, 1, 4), "whole number"),
    ((0, 1, 4), "t_x must be 0 where x is 0"), ((2, 0, 4), "t_x must be 0"), ((np.nan, 0, 4), "finite"), ((np.inf, 1, 4), "finite"),
    (([0, 1], [0, 9], [3, 4]), "row 1: "), (([1, 2], [1, 2, 3], 4), "shape")], ids=str)
def test_what_is_no_history_is_refused_in_one_line(h, says):
    for ask in (m.log_likelihood, m.p_alive, lambda *a: m.p_no_purchase(*a, 4), lambda _, *a: m.fit_bgnbd(*a)):
        with pytest.raises(ValueError, match=says) as e: ask(CDNOW, *h)
        assert "\n" not in str(e.value)

def test_fit_refuses_what_it_cannot_learn_from(monkeypatch):
    with pytest.raises(ValueError, match="no customers"): m.fit_bgnbd([], [], [])
    with pytest.raises(ValueError, match="bought again"): m.fit_bgnbd([0, 0], [0, 0], [3, 9])
    with pytest.raises(ValueError, match="has no maximum"): m.fit_bgnbd([3], [9], [9])
    monkeypatch.setattr(m, "minimize", lambda *_, **__: SimpleNamespace(success=False, message="STOP", x=np.zeros(4)))
    with pytest.raises(ValueError, match="fit on 2 customers did not converge: STOP"): m.fit_bgnbd([1, 0], [1, 0], [3, 9])

@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf])
def test_parameters_must_be_positive(bad):
    with pytest.raises(ValueError, match="finite and > 0"): m.BGNBD(1, bad, 1, 1)

@pytest.mark.parametrize("weeks", [-1, np.nan, np.inf])
def test_horizon_must_be_sensible(weeks):
    with pytest.raises(ValueError, match="weeks must be"): m.p_no_purchase(CDNOW, 0, 0, 4, weeks)

def test_summary_of_nothing(sample):
    with pytest.raises(ValueError, match="no purchase known before 1996-01-01"): m.summary(sample, "1996-01-01")
    with pytest.raises(ValueError, match="no purchase known"): m.summary(sample.head(0), "1998-01-01")
