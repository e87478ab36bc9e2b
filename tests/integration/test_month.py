"""A month of traffic on real parts. On day 15 prices treble and customers behave otherwise; one alarm trains one new champion, and it is quiet again.

Real: customers, features, training, registry (MLflow on SQLite), gate, bundle, ONNX Runtime, request log, drift report, retrain.
Not real: the days pass at once, and outcomes of the new world are known when the training starts. In the shop they take as long as a label looks ahead."""
from datetime import datetime, timedelta, timezone
import numpy as np, pytest
from churn_nb import promote as p
from churn_nb.registry.model_registry import ModelRegistry
from churn_nb.registry.bundle import current_bundle
from churn_nb.drift import drift_report
from churn_nb.features import build, feature_names, training_rows
from churn_nb.monitoring.logged_traffic import read_requests
from churn_nb.monitoring.request_log import RequestLog, RequestLogOptions
from churn_nb.ops.retraining import can_retrain, retrain, retrain_history
from churn_nb.serving.predictor import Model
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from churn_nb.train import train

DAYS, SHIFT, ROWS = 30, 15, 400  # rows a day
DELAY = 4                        # days with traffic of the new world until the alarm, at most
TRAINING = 2                     # days from the start of a training to its model in production; traffic and alarms go on
WINDOW = 7                       # [drift] window_days
QUIET = SHIFT + WINDOW           # from here on the window holds the new world only; the old champion's last day is long over
MIDNIGHT = datetime(2026, 3, 1, tzinfo=timezone.utc)

def at(day, hour=0.): return MIDNIGHT + timedelta(days=day - 1, hours=hour)

def settings_of(ws):
    return load_settings({"paths.workspace": str(ws), "features.train_as_of": "1997-04-01, 1997-07-01, 1997-10-01", "train.search_customers": 300, "gate.bootstrap": 200,
                          "gate.cdnow.floors": "auc > 0.7, latency_ms < 200", "drift.window_days": WINDOW},
                         environ={"CHURN_GATE_CDNOW_BEAT_BASELINE": ""}) # 1,200 customers and three dates do not show that a model is better than recency

def two_worlds(s):
    "Half of the customers for the first model, the other half in the world as it was and as it became."
    build(s, 2400)
    rows, rng = training_rows(s), np.random.default_rng(0)
    ids = rows.customer_id.unique()
    first = rows.customer_id.isin(rng.choice(ids, len(ids)//2, replace=False))
    learnt, old = (rows[part].reset_index(drop=True) for part in (first, ~first))
    new = old.copy()
    for n in (n for n in new if n.startswith("spend_")): new[n] *= np.float32(3)
    z = lambda x: (np.log1p(x) - np.log1p(x).mean()) / np.log1p(x).std()
    risk = .5 + 1.5*z(old.spend_total) - z(old.recency_days) # who spent much leaves now, who was silent comes back
    new["churn"] = (rng.random(len(new)) < 1/(1 + np.exp(-risk))).astype(new.churn.dtype)
    return learnt, old, new

class Month:
    def __init__(self, ws):
        self.s, self.day, self.timeline, self.trained, self.gates = settings_of(ws), 0, [], {}, []
        self.names, self.now = feature_names(self.s), at(1)
        self.learnt, self.old, self.new = two_worlds(self.s)
        self.log = RequestLog(Workspace(ws).root/"requests", RequestLogOptions(seconds=3600.), clock=lambda: self.now.timestamp())
        assert self.train_and_judge(self.learnt) == 0
    def train_and_judge(self, rows):
        "What `run` is in production: train, judge, deploy; an exit code."
        version = train(self.s, rows)["version"]
        self.trained[version] = rows[rows.split == "train"]
        decision, result = p.run_gate(self.s, rows[rows.split == "test"])
        self.gates.append(result)
        if decision.promoted: p.deploy_champion(self.s)
        self.model = Model.load(current_bundle(Workspace(self.s.paths.workspace).bundles))
        return decision.exit_code
    def traffic(self):
        "Some hundred rows, over the whole day, scored by what is live, and logged."
        world = self.new if self.day >= SHIFT else self.old
        pool = world[world.split == "train"].sample(ROWS, random_state=self.day)
        for i in range(0, ROWS, 20):
            self.now, part = at(self.day, 24*(i + .5)/ROWS), pool[i:i + 20]
            X = part[self.names].to_numpy("float32")
            self.log.put(self.model, X, self.model.predict(X).tolist(), part.customer_id.tolist())
        self.log.flush()
    def play(self):
        "One day: traffic, then the nightly check; where it asks for a new model, the retrain."
        self.day += 1
        self.traffic()
        now = self.now = at(self.day + 1)
        report = self.against(champion := self.model.manifest.version, self.day)
        worst = max(report.rows, key=lambda r: r.psi)
        today = {"day": self.day, "level": report.level, "worst": worst.name, "psi": worst.psi, "rows": worst.n_current, "action": "", "champion": champion}
        self.timeline.append(today)
        if report.level == "retrain": today["action"] = retrain(self.s, f"drift on day {self.day}", self.run, now).action
    def run(self):
        "The retrain: while it trains, days go by."
        for _ in range(TRAINING): self.play()
        return self.train_and_judge(self.new)
    def against(self, version, day):
        "The report of a day's window against the training rows of a version, champion or not."
        return drift_report(self.trained[version], read_requests(self.log.folder, at(day + 1 - WINDOW), at(day + 1)), self.s.drift, self.names)
    def levels(self, first, last): return [t["level"] for t in self.timeline if first <= t["day"] <= last]

@pytest.fixture(scope="module")
def month(tmp_path_factory):
    m = Month(tmp_path_factory.mktemp("month")/"ws")
    while m.day < DAYS: m.play()
    m.log.close()
    print("\nday  level    largest PSI             rows   action       champion")
    for t in m.timeline: print(f"{t['day']:>3}  {t['level']:<7}  {t['psi']:.3f} {t['worst']:<16}  {t['rows']:>5}   {t['action'] or '-':<11}  version {t['champion']}")
    for c in m.gates[1]["checks"]: print(f"  gate: {c['criterion']}: {c['measured']}, required {c['required']}: {c['verdict']}")
    return m

def alarm(m): return next(t["day"] for t in m.timeline if t["level"] == "retrain")

def test_every_answered_row_is_logged_with_time_and_score(month):
    logged = read_requests(month.log.folder)
    assert len(logged) == DAYS*ROWS and [t["rows"] for t in month.timeline] == [min(d, WINDOW)*ROWS for d in range(1, DAYS + 1)]
    by_day = logged.groupby((logged["at"] - MIDNIGHT).dt.days + 1)
    assert (by_day.size() == ROWS).all() and (by_day.model_version.nunique() == 1).all()
    assert by_day.model_version.first().tolist() == [t["champion"] for t in month.timeline]
    now = logged[logged.model_version == "2"]
    assert np.allclose(month.model.predict(now[month.names].to_numpy("float32")), now.probability, atol=1e-6)
    spent = logged.groupby(by_day.ngroup() >= SHIFT - 1).spend_total.mean()
    assert spent[True] > 2.5*spent[False]

def test_before_the_shift_it_is_quiet(month):
    assert month.levels(1, SHIFT - 1) == ["none"]*(SHIFT - 1)

def test_after_the_shift_the_alarm_comes_in_time(month):
    late = alarm(month) - SHIFT + 1
    assert 1 <= late <= DELAY, f"the alarm came after {late} days of the new world"

def test_the_alarm_goes_on_and_exactly_one_retrain_starts(month):
    first = alarm(month)
    rings = [t["day"] for t in month.timeline if t["level"] == "retrain"]
    assert len(rings) >= 1 + TRAINING and rings[:1 + TRAINING] == list(range(first, first + 1 + TRAINING))
    actions = [t["action"] for t in month.timeline if t["action"]]
    assert actions[:1 + TRAINING] == ["done"] + ["in flight"]*TRAINING and set(actions[1:]) <= {"in flight", "cooling down"}
    records = retrain_history(month.s)
    assert [r["action"] for r in records if r["action"] != "declined"] == ["started", "finished"]
    assert records[0]["why"] == f"drift on day {first}" and [r["exit_code"] for r in records if r["action"] == "finished"] == [0]
    cooled = at(first + 1) + timedelta(hours=month.s.drift.cooldown_hours)
    assert not can_retrain(month.s, cooled - timedelta(seconds=1))[0] and can_retrain(month.s, cooled)[0]

def test_the_gate_promotes_the_better_model_after_the_shift(month):
    first, second = month.gates
    assert (first["verdict"], first["version"], second["verdict"], second["version"], second["replaced"]) == ("promoted", "1", "promoted", "2", "1")
    [against] = [c for c in second["checks"] if c["criterion"] == "log_loss against champion (version 1)"]
    assert against["verdict"] == "pass" and against["required"].startswith("better, p <")
    assert [(e["action"], e["version"], e["replaces"]) for e in p.history(month.s)] == [("promoted", "1", None), ("promoted", "2", "1")]
    rows = month.new[month.new.split == "test"]
    loss = lambda q: -np.log(np.where(rows.churn == 1, q, 1 - q).clip(1e-6)).mean()
    old, new = (ModelRegistry(month.s).load_version(v)[1] for v in "12")
    X = rows[month.names].to_numpy("float32")
    theirs, ours = loss(p.onnx_predict(old, X)), loss(p.onnx_predict(new, X))
    assert ours < .8*theirs, (ours, theirs)

def test_the_new_champion_serves_and_no_alarm_follows(month):
    switched = alarm(month) + TRAINING + 1
    assert [t["champion"] for t in month.timeline] == ["1"]*(switched - 1) + ["2"]*(DAYS - switched + 1)
    assert switched <= QUIET and month.levels(QUIET, DAYS) == ["none"]*(DAYS - QUIET + 1)
    assert "retrain" not in month.levels(switched + 1, DAYS)

def test_the_old_model_would_still_raise_the_alarm(month):
    "The alarm stopped because of the new model, not because the data went back: the new model raises it on data from before the shift."
    assert {month.against("1", d).level for d in range(alarm(month), DAYS + 1)} == {"retrain"} # this alarm would still ring
    assert {month.against("2", d).level for d in range(WINDOW, SHIFT)} == {"retrain"}          # and the new one in the old world too
