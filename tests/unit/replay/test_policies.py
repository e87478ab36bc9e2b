"A year under a policy: what is counted, and that nothing looks ahead."
from dataclasses import replace as changed
import numpy as np, pandas as pd, pytest
from churn_nb.core.settings import load_settings
from churn_nb.replay import policies
from churn_nb.replay.policies import POLICIES, Operation, Policy, drift_level, loss_alarm, passes_gate, replay_policy, replay_summary
from churn_nb.replay.worlds import World, simulated_world

SETTINGS = load_settings({"data.dataset": "simulated", "train.offer_cost": 1., "train.saved_margin": 5., "train.search_customers": 200, "train.n_jobs": 1, "drift.permutations": 99}, environ={})

@pytest.fixture(scope="module")
def year():
    "Six months of operation; the change comes in the fourth."
    w = simulated_world("sudden", 250, seed=5)
    return Operation(changed(w, months=w.months[:w.first + 7]), SETTINGS)

class Table:
    "In a year's place: the loss and the profit of a model are what tables say, by months of training and use."
    def __init__(self, loss, months=5):
        first = pd.Timestamp("2026-01-05", tz="UTC")
        self.world, self.table = World(pd.DataFrame(), [], 28, [first + 28*k*pd.Timedelta(1, "D") for k in range(months + 1)], 0, first + pd.Timedelta(28, "D")), loss
    def expected_loss(self, trained, month): return self.table[trained][month]
    def expected_profit(self, trained, month): return -self.table[trained][month]

LOSS = np.array([[.3, .5, .5, .5, .5], [0, .6, .6, .6, .6], [0, 0, .4, .4, .4], [0, 0, 0, .45, .35], [0, 0, 0, 0, .3]])

def test_what_a_policy_does_is_counted():
    runs = {name: replay_policy(Table(LOSS), POLICIES[name]) for name in ("never", "calendar", "oracle")}
    assert runs["never"].champion.tolist() == [0]*5 and runs["calendar"].champion.tolist() == [0, 1, 2, 3, 4]
    assert runs["calendar"]["false"].tolist() == [False, True, False, True, False] and runs["oracle"].champion.tolist() == [0, 0, 2, 2, 4]
    table = replay_summary(Table(LOSS), runs)
    assert table.trainings.to_dict() == {"never": 0, "calendar": 4, "oracle": 4} and table["false"].to_dict() == {"never": 0, "calendar": 2, "oracle": 0}
    assert table.days["oracle"] == 28 and np.isnan(table.days["never"]) and table.of_the_oracle["oracle"] == 1 and table.of_the_oracle["never"] == 0
    assert table.of_the_oracle["calendar"] == pytest.approx((2.3 - (.3 + .6 + .4 + .45 + .3))/(2.3 - (.3 + .5 + .4 + .4 + .3)))

def test_a_champion_is_asked_about_itself():
    asked = []
    policy = Policy(lambda year, champion, month: asked.append((champion, month)) or month == 2, lambda *_: True)
    replay_policy(Table(LOSS), policy)
    assert asked == [(0, 1), (0, 2), (2, 3), (2, 4)]

@pytest.mark.parametrize("month", [2, 5])
def test_no_decision_knows_an_outcome_of_later(year, month):
    "Every outcome that is not known yet is turned into its opposite."
    w, month = year.world, year.world.first + month
    later = w.rows.event_timestamp + pd.Timedelta(w.label_days, "D") > w.months[month]
    lied = Operation(changed(w, rows=w.rows.assign(churn=w.rows.churn.where(~later, 1 - w.rows.churn))), SETTINGS)
    for decide in (loss_alarm, drift_level, passes_gate): assert decide(lied, w.first, month) == decide(year, w.first, month)
    np.testing.assert_array_equal(lied.model(month).score(w.requests(month)), year.model(month).score(w.requests(month)))
    assert later.sum() > 1000

def test_a_future_that_were_known_would_be_seen(year, monkeypatch):
    "The test above can fail: with outcomes known at once the lie moves the alarm."
    w, month = year.world, year.world.first + 2
    early = changed(w, label_days=0)
    later = w.rows.event_timestamp + pd.Timedelta(w.label_days, "D") > w.months[month]
    lied = changed(early, rows=w.rows.assign(churn=w.rows.churn.where(~later, 1 - w.rows.churn)))
    years = [Operation(x, SETTINGS) for x in (early, lied)]
    for y in years: y._models = year._models
    assert loss_alarm(years[0], w.first, month) != loss_alarm(years[1], w.first, month)

def test_a_model_is_trained_once_for_all_policies(year, monkeypatch):
    trained = []
    fresh = Operation(year.world, SETTINGS)
    monkeypatch.setattr(policies, "train_on", lambda world, month, settings: trained.append(month) or year.model(month))
    for name in ("never", "drift", "drift and gate"): replay_policy(fresh, POLICIES[name])
    assert len(trained) == len(set(trained)) and trained[0] == year.world.first

def test_a_year_twice_is_the_same_year(year):
    again = Operation(year.world, SETTINGS)
    pd.testing.assert_frame_equal(replay_policy(again, POLICIES["drift and gate"]), replay_policy(year, POLICIES["drift and gate"]))

def test_profit_is_what_offers_bring(year):
    k = year.world.first + 1
    rows, p = year.world.requests(k), year.scores(year.world.first, k)
    assert year.expected_profit(year.world.first, k) == pytest.approx(((p >= .2)*(5*rows.probability - 1)).mean())
    q = np.clip(p, 1e-7, 1 - 1e-7)
    assert year.expected_loss(year.world.first, k) == pytest.approx(-(rows.probability*np.log(q) + (1 - rows.probability)*np.log(1 - q)).mean())

def test_without_a_truth_the_outcomes_count(year):
    k = year.world.first
    blind = Operation(changed(year.world, rows=year.world.rows.assign(probability=np.nan)), SETTINGS)
    blind._models = year._models
    rows, p = year.world.requests(k), year.scores(k, k)
    assert blind.expected_profit(k, k) == pytest.approx(((p >= .2)*(5*rows.churn - 1)).mean())
