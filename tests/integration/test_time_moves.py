"""A month passes: a log of 2,500 simulated customers is run, a month of purchases is pushed or appended, and a retraining learns from it.
With dates that are written down it makes the same model again, and that is no version. Through the `churn` command."""
import json, re, shutil
from datetime import date, timedelta

import numpy as np, pandas as pd, pytest

from churn_nb.cli.data import OwnDataFlags
from churn_nb.cli.pipeline import own_data_settings
from churn_nb.core.clock import current_time, utc
from churn_nb.core.settings import load_settings
from churn_nb.features import build, training_rows
from churn_nb.feature_store.build_record import built_dates
from churn_nb.registry.decision_log import read_history
from churn_nb.core.workspace import Workspace
from churn_nb.registry.model_registry import ModelRegistry
from commands import churn

pytestmark = pytest.mark.usefixtures("measured")

BEGINS, DAYS, MONTH = pd.Timestamp("2025-01-01", tz="UTC"), 300, 30
QUICK = {"CHURN_DRIFT_EVIDENTLY": "no", "CHURN_TRAIN_SEARCH_CUSTOMERS": "300", "CHURN_GATE_BOOTSTRAP": "200", "CHURN_GATE_OWN_BEAT_CHAMPION": "", "CHURN_DRIFT_COOLDOWN_HOURS": "0",
         "CHURN_FEATURES_NEW_CUSTOMERS": "accept"}
ROLES = ["--entity", "customer", "--timestamp", "at", "--amount", "total", "--horizon", "30d"]

def shop(days):
    "Purchases of 2,500 customers who come at any time, buy at their own rate, and leave at some time."
    rng, rows = np.random.default_rng(7), []
    for c in range(2500):
        t, gap, gone = rng.uniform(0, DAYS + MONTH), rng.lognormal(2.6, .6), rng.exponential(200)
        end = t + gone
        while t < min(end, DAYS + MONTH):
            rows.append((c, t, round(rng.lognormal(3, .5), 2)))
            t += rng.exponential(gap)
    d = pd.DataFrame(rows, columns=["customer", "t", "total"])
    d["at"] = (BEGINS + pd.to_timedelta(d.t, unit="D").dt.floor("s")).dt.strftime("%Y-%m-%dT%H:%M:%S")
    return d[d.t < days].sort_values("t").drop(columns="t").reset_index(drop=True)

def write(file, days=DAYS):
    shop(days).to_csv(file, index=False)
    return file

def month_of(file):
    "The purchases of the month after, as `churn push` takes them."
    d = shop(DAYS + MONTH).iloc[len(shop(DAYS)):]
    d = d.assign(event_id=[f"M-{i}" for i in range(len(d))]).rename(columns={"customer": "customer_id", "at": "event_timestamp", "total": "amount"})
    d.to_csv(file, index=False)
    return file

def results(ws): return {s: json.loads((ws/"results"/f"{s}.json").read_text()) for s in ("00_features", "01_train", "02_promote")}
def runs(ws): return len([*(ws/"runs").iterdir()])
def retrains(ws): return [json.loads(line) for line in (ws/"retrains.jsonl").read_text().splitlines()]
def versions(ws):
    registry = ModelRegistry(load_settings({"paths.workspace": str(ws)}, environ={}))
    return [v.version for v in registry.client.search_model_versions(f"name = '{registry.name}'")]

@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    "A workspace after a run, a month of pushed purchases and a retraining; the results of both, and what the commands said."
    home = tmp_path_factory.mktemp("shop")
    ws, said = home/"work", {}
    said["run"] = churn("run", "--events", write(home/"orders.csv"), *ROLES, "--workspace", ws, env=QUICK)
    assert said["run"].returncode == 0, said["run"].stdout + said["run"].stderr
    before = results(ws)
    said["push"] = churn("push", month_of(home/"month.csv"), "--workspace", ws, env=QUICK)
    said["retrain"] = churn("retrain", "--why", "a month later", "--workspace", ws, env=QUICK)
    assert said["retrain"].returncode == 0, said["retrain"].stdout + said["retrain"].stderr
    return ws, before, results(ws), said

def days(as_of): return {split: [date.fromisoformat(d) for d in dates] for split, dates in as_of.items()}

def test_a_month_later_a_retraining_has_a_month_more(moved):
    ws, before, after, said = moved
    assert said["push"].returncode == 0, said["push"].stderr
    a, b = days(before["00_features"]["as_of"]), days(after["00_features"]["as_of"])
    assert before["00_features"]["log_ends"] == "2025-10-28" and after["00_features"]["log_ends"] == "2025-11-27"
    assert a["test"] == [date(2025, 9, 28)] and len(a["train"]) == 7
    assert {split: [y - x for x, y in zip(a[split], b[split])] for split in a} == {split: [timedelta(days=MONTH)]*len(a[split]) for split in a}
    for split in a: assert after["00_features"]["rows"][split] > before["00_features"]["rows"][split], split
    rows = training_rows(s := load_settings({"paths.workspace": str(ws)}, environ={}))
    assert {split: sorted({t.date() for t in part.event_timestamp}) for split, part in rows.groupby("split")} == b == built_dates(s)
    assert (rows[rows.split == "test"].churn == 0).sum() > 100, "the month's purchases are labels of the test date"

def test_the_next_version_is_another_model_judged_on_the_newer_date(moved):
    ws, before, after, said = moved
    assert (before["01_train"]["version"], after["01_train"]["version"], after["02_promote"]["verdict"]) == ("1", "2", "promoted")
    log = read_history(Workspace(ws))
    assert [e["test_rows"].split()[-1] for e in log] == ["2025-09-28", "2025-10-28"]
    manifest, _ = ModelRegistry(load_settings({"paths.workspace": str(ws)}, environ={})).load_version("2")
    assert manifest.as_of == after["00_features"]["as_of"] and "tested on 2025-10-28" in said["retrain"].stdout

def test_the_description_has_the_rule_and_says_which_dates_follow(moved):
    ws, *_ = moved
    text = (ws/"dataset.toml").read_text()
    assert "train_dates = 7\nstep_days = 30\nserve_as_of = \"end\"\n" in text and "train_as_of" not in text
    assert re.search(r"^\[features\] # as-of dates follow the log's end; today 7 to train on, 2025-01-31 to 2025-07-30, validation 2025-08-29, test 2025-09-28, the present 2025-10-28$", text, re.M)

def test_nothing_new_is_known_before_a_training(moved):
    ws, *_ = moved
    before, known = runs(ws), len(retrains(ws))
    again = churn("retrain", "--why", "an alarm", "--workspace", ws, env=QUICK)
    assert again.returncode == 0 and again.stdout.startswith("nothing new: data, as-of dates and settings are those of the last training, which made version 2"), again.stdout + again.stderr
    assert runs(ws) == before and [r["action"] for r in retrains(ws)[known:]] == ["declined"]

def test_the_same_model_is_no_version_and_no_refresh(moved, tmp_path):
    "Trained all the same: the gate has nothing to judge, by the pipeline and by hand, and no cool-down begins."
    ws = shutil.copytree(moved[0], tmp_path/"work", symlinks=True)
    shutil.copy(moved[0].with_name("orders.csv"), tmp_path)
    champion, log = json.loads((ws/"bundle/current/manifest.json").read_text())["version"], (ws/"promotions.jsonl").read_text()
    forced = churn("retrain", "--force", "--workspace", ws, env=QUICK | {"CHURN_DRIFT_COOLDOWN_HOURS": "72"})
    assert forced.returncode == 0 and forced.stdout.endswith("done: nothing new\n"), forced.stdout + forced.stderr
    assert "is no new version, the ONNX file is that of version 2, from the same data" in forced.stdout
    assert "nothing new to judge: training made version 2 again, the champion; version 2 stays" in forced.stdout
    for options in ([], ["--refresh"]):
        judged = churn("promote", *options, "--workspace", ws, env=QUICK)
        assert judged.returncode == 0 and judged.stdout.endswith("version 2: nothing new\n"), judged.stdout + judged.stderr
    assert len(versions(ws)) == 2 and (ws/"promotions.jsonl").read_text() == log and champion == "2"
    later = churn("retrain", "--workspace", ws, env=QUICK | {"CHURN_DRIFT_COOLDOWN_HOURS": "72", "CHURN_TRAIN_OFFER_COST": "1", "CHURN_TRAIN_SAVED_MARGIN": "4"})
    assert "cooling down: the last retrain started" in later.stdout and "and was promoted" in later.stdout, "that of the month before counts, the idle one does not"

def test_dates_that_are_written_down_learn_nothing_from_a_month(moved, tmp_path):
    "The wrong way: 1,000 new purchases, and the same file byte for byte. With other costs it decides otherwise, and is a version."
    ws = tmp_path/"work"
    d = moved[1]["00_features"]["as_of"]
    (toml := tmp_path/"fixed.toml").write_text(f'''kind = "events"
file = "{write(tmp_path/'orders.csv')}"
entity = "customer"
timestamp = "at"
amount = "total"
[features]
label_days = 30
train_as_of = {json.dumps(d['train'])}
validation_as_of = "{d['validation'][0]}"
test_as_of = "{d['test'][0]}"
serve_as_of = "end"
''')
    first = churn("run", "--dataset", toml, "--workspace", ws, env=QUICK)
    assert first.returncode == 0, first.stdout + first.stderr
    before = results(ws)
    assert churn("push", month_of(tmp_path/"month.csv"), "--workspace", ws, env=QUICK).returncode == 0
    again = churn("retrain", "--workspace", ws, env=QUICK)
    assert again.returncode == 0 and "version 1, from other data that change no training row" in again.stdout and again.stdout.endswith("done: nothing new\n"), again.stdout + again.stderr
    after = results(ws)
    assert after["00_features"]["rows"] == before["00_features"]["rows"] and after["00_features"]["data_hash"] != before["00_features"]["data_hash"]
    assert (after["01_train"]["version"], after["02_promote"]["verdict"], len(versions(ws))) == ("1", "nothing new", 1)

def test_a_file_that_grew_moves_the_dates_as_pushed_events_do(moved, tmp_path):
    ws, _, after, _ = moved
    flags, place = OwnDataFlags(entity="customer", timestamp="at", amount="total", horizon="30d"), str(tmp_path/"work")
    made = [build(own_data_settings(write(tmp_path/"orders.csv", d), "events", flags, place)) for d in (DAYS, DAYS + MONTH)]
    assert made[1]["as_of"] == after["00_features"]["as_of"] and made[1]["rows"] == after["00_features"]["rows"]
    assert current_time(load_settings({"paths.workspace": place}, environ={})) == utc("2025-11-27")

def test_a_log_that_begins_too_late_says_how_many_dates_it_has(tmp_path):
    flags = OwnDataFlags(entity="customer", timestamp="at", amount="total", horizon="30d")
    d = shop(DAYS)
    d[d["at"] >= "2025-07-01"].to_csv(tmp_path/"orders.csv", index=False)
    made = build(own_data_settings(tmp_path/"orders.csv", "events", flags, str(tmp_path/"work")))
    n = len(made["as_of"]["train"])
    assert 1 < n < 7 and made["missing_dates"] == f"{n} of 7 training dates: the log begins on 2025-07-01, and 15 days of it must lie before each"
