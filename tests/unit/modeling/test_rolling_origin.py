"What each judged date may learn from, for random dates, customers and delays; tables without dates; what is recorded."
import msgspec, numpy as np, pytest
from hypothesis import given, settings as hyp, strategies as st
from sklearn.linear_model import LogisticRegression
from churn_nb.core.manifest import Backtest
from churn_nb.core.settings import load_settings
from churn_nb.modeling import rolling_origin as r
from churn_nb.modeling.search import Split

quick = hyp(max_examples=100, deadline=None, derandomize=True)
SETTINGS = load_settings({"data.dataset": "cdnow", "train.n_jobs": 1}, environ={})

def rows(seed, dates, customers=60):
    "A row for each customer on most dates, in no order; the label follows from the feature."
    rng = np.random.default_rng(seed)
    who, when = (a.ravel() for a in np.meshgrid(rng.choice(10**6, customers, replace=False), np.asarray(dates, "datetime64[D]")))
    some = rng.permutation(len(who))[:int(.9*len(who))]
    x = rng.normal(size=(len(some), 2)).astype("float32")
    return Split(x, (rng.random(len(some)) < 1/(1 + np.exp(-2*x[:, 0]))).astype(int), who[some], when[some].astype("datetime64[ns]"))

@st.composite
def logs(draw):
    days = sorted(draw(st.sets(st.integers(0, 400), min_size=1, max_size=9)))
    return rows(draw(st.integers(0, 2**32 - 1)), np.datetime64("2024-01-01") + np.array(days)), draw(st.integers(1, 120)), draw(st.integers(1, 9))

@quick
@given(logs())
def test_nothing_is_learned_that_was_not_known(case):
    part, known_days, n = case
    folds = r.rolling_folds(part, known_days, n)
    known = np.timedelta64(known_days, "D")
    for f in folds:
        seen = np.r_[f.fit, f.calibrate]
        assert (part.date[seen] + known <= f.date).all() and (part.date[f.judge] == f.date).all()
        assert not {*part.customer[f.fit]} & {*part.customer[f.calibrate]}
        assert len({*seen}) == len(seen) == (part.date + known <= f.date).sum()  # and nothing that was known is left out
        assert len(f.judge) == (part.date == f.date).sum()
    dates = [f.date for f in folds]
    assert dates == sorted({*dates}) and len(dates) <= n
    able = [d for d in np.unique(part.date) if (part.date + known <= d).any()]
    assert {*dates} <= {*able[-n:]}

@quick
@given(st.integers(0, 2**32 - 1), st.integers(40, 300))
def test_every_row_of_a_table_is_judged_once_in_each_deal_by_strangers(seed, customers):
    part = rows(seed, ["2000-01-01"], customers)
    folds = r.dealt_folds(part)
    for deal in ("1", "2"):
        judged = [f.judge for f in folds if f.name.endswith(deal)]
        if len(judged) == 5: assert sorted(np.concatenate(judged)) == [*range(len(part.y))]
    for f in folds:
        assert sorted(np.r_[f.fit, f.calibrate, f.judge]) == [*range(len(part.y))]
        groups = [{*part.customer[x]} for x in (f.fit, f.calibrate, f.judge)]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])

def test_the_two_deals_are_different():
    folds = r.dealt_folds(rows(3, ["2000-01-01"], 300))
    both = len({*folds[0].judge} & {*folds[5].judge})/len(folds[0].judge)
    assert both == pytest.approx(.2, abs=.15)

def test_late_labels_are_later_known():
    part = rows(0, [f"2024-{m:02}-01" for m in range(1, 10)])
    late = SETTINGS.model_copy(update={"train": SETTINGS.train.model_copy(update={"label_delay_days": 40})})
    usual, delayed = (r.backtest_folds(part, s) for s in (SETTINGS, late))
    assert (r.label_known_days(SETTINGS), r.label_known_days(late)) == (90, 130)
    assert {f.name: len(f.fit) for f in delayed}["2024-09-01"] < {f.name: len(f.fit) for f in usual}["2024-09-01"]

@pytest.mark.parametrize("n, expected", [(0, 0), (1, 0), (3, 3), (6, 6)])
def test_as_many_dates_as_are_asked_for_and_two_at_least(n, expected):
    part = rows(1, [f"2024-{m:02}-01" for m in range(1, 13)], 300)
    s = SETTINGS.model_copy(update={"train": SETTINGS.train.model_copy(update={"backtest": n})})
    parts = r.backtest(LogisticRegression(), part, s)
    assert [j.name for j in parts] == [f"2024-{m:02}-01" for m in range(13 - expected, 13)]

def test_a_log_with_one_judged_date_has_no_backtest():
    assert r.backtest(LogisticRegression(), rows(1, ["2024-01-01", "2024-06-01"]), SETTINGS) == []
    assert (r.backtest_facts([], SETTINGS), r.backtest_of({})) == ({}, None)

def test_predictions_do_not_depend_on_the_number_of_threads_and_leave_the_recipe_unfitted():
    part, recipe = rows(2, [f"2024-{m:02}-01" for m in range(1, 10)], 300), LogisticRegression()
    two = SETTINGS.model_copy(update={"train": SETTINGS.train.model_copy(update={"n_jobs": 2})})
    one, other = (r.backtest(recipe, part, s) for s in (SETTINGS, two))
    assert all((a.p == b.p).all() and a.name == b.name for a, b in zip(one, other, strict=True)) and not hasattr(recipe, "coef_")

def test_what_is_recorded_is_json_and_fits_the_manifest():
    parts = r.backtest(LogisticRegression(), rows(2, [f"2024-{m:02}-01" for m in range(1, 10)], 300), SETTINGS)
    facts = r.backtest_facts(parts, SETTINGS)
    again = msgspec.json.decode(msgspec.json.encode(facts))
    assert again == facts and [p["part"] for p in again["parts"]] == [j.name for j in parts]
    short = r.backtest_of(facts)
    assert msgspec.json.decode(msgspec.json.encode(short), type=Backtest) == short
    losses = [p["log_loss"] for p in facts["parts"]]
    assert short.metrics["log_loss"].mean == pytest.approx(np.mean(losses)) and short.parts == len(parts)
