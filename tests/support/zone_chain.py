"""What the time zone of a process could change, in one zone: `python zone_chain.py FOLDER` fills a feature store and reads files with dates, and prints a digest of every value.
`python zone_chain.py FOLDER read` only reads what a process in another zone has stored; `train` goes the whole way, from the log to the API's answers.

The present is 1998-04-05T02:30Z; that hour of that day did not exist in Los Angeles and New York."""
import datetime as dt, hashlib, json, shutil, sqlite3, sys, time
from contextlib import closing
from pathlib import Path
import numpy as np, pandas as pd
from churn_nb import features as f
from churn_nb.core.clock import advance_clock
from churn_nb.core.manifest import Store
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from churn_nb.data.datasets import load_events
from churn_nb.data.schema_inference import DescribeOptions, infer_description
from churn_nb.data.typed_table import prepare, prepare_events
from churn_nb.feature_store.event_log import write_base
from churn_nb.feature_store.online import FeastOnline
from churn_nb.monitoring.logged_traffic import read_requests
from churn_nb.monitoring.request_log import AnsweredRows, add_file, columns_of
from churn_nb.ops.event_worker import push_rows, read_event_rows
from paths import ROOT
from serving import manifest

PRESENT = dt.datetime(1998, 4, 5, 2, 30, tzinfo=dt.timezone.utc)
SERVICE = Store(entity="customer_id", feature_service="churn_v1_stored")

def digest(value) -> str: return hashlib.md5(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()

def of_frame(df:pd.DataFrame) -> str:
    cells = {c: df[c].to_numpy() for c in df}
    return digest([(c, str(df[c].dtype), [*map(str, v)] if v.dtype == object else v.tobytes()) for c, v in cells.items()])

def settings_of(folder:Path):
    given = {"paths.workspace": str(folder), "paths.data": str(ROOT/"data"), "features.serve_as_of": "1998-04-05", "features.train_as_of": "1997-04-06",
             "features.validation_as_of": "1997-10-26", "features.test_as_of": "1998-01-24"}
    return load_settings(given, environ={"CHURN_GATE_CDNOW_FLOORS": "auc > 0.5", "CHURN_GATE_CDNOW_BEAT_BASELINE": "", "CHURN_DRIFT_EVIDENTLY": "no"})

def stored(folder:Path) -> str:
    "Every cell of the online store."
    with closing(sqlite3.connect(folder/"feast/online.db")) as db:
        tables = [t for (t,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        return digest([db.execute(f"SELECT entity_key, feature_name, value, event_ts FROM {t} ORDER BY 1, 2").fetchall() for t in tables]) # created_ts is the moment of the push

def asked(s, ids:list[int]) -> str:
    "What the API reads: now, 47 and 60 hours later, and around the end of the windows' time to live."
    api, names, answers = FeastOnline(s), f.feature_names(s), []
    clock = Workspace(s.paths.workspace).feast/"clock.json"
    before, ends = clock.read_text(), PRESENT + dt.timedelta(days=s.features.ttl_days)
    for t in sorted([PRESENT, *(PRESENT + dt.timedelta(hours=h) for h in (47, 60)), ends, ends + dt.timedelta(seconds=1)]):
        advance_clock(s, t)
        answers.append(np.array(api.read(SERVICE, names, ids), float).tobytes())
    clock.write_text(before)
    return digest(answers)

def of_events(folder:Path):
    "From the log to the online store."
    s = settings_of(folder)
    Workspace(folder).open()
    advance_clock(s, PRESENT)
    write_base(s, load_events(s, 40))
    yield "windows", [of_frame(pd.read_parquet(p)) for p in f.write_windows(s)]
    store = f.apply_store(s)
    ids, moments = sorted(load_events(s, 40).customer_id.unique().tolist()), [PRESENT + dt.timedelta(hours=h) for h in (-24*90, 0, 47)]
    entities = pd.DataFrame([(i, pd.Timestamp(t)) for i in ids for t in moments], columns=["customer_id", "event_timestamp"])
    yield "history", of_frame(f.historical_features(store, entities, s))
    f.materialize(s, store, keep=False)
    yield "stored", stored(folder)

def of_pushes(folder:Path):
    "Purchases around the hour that did not exist, with an offset and without one."
    s = settings_of(folder)
    ids = sorted(load_events(s, 40).customer_id.unique().tolist())
    file = folder/"new.csv"
    file.write_text("event_id,customer_id,event_timestamp,amount,quantity\n" + "".join(f"{900_000 + i},{ids[i]},{at},5.5,1\n" for i, at in enumerate(
        ["1998-04-05T02:15:00", "1998-04-05 01:59:59", "1998-04-04T18:20:00-08:00", "1998-04-05"])))
    verdicts, _ = push_rows(s, f.open_store(s), read_event_rows(file))
    yield "pushed", (verdicts, stored(folder), asked(s, ids))

def of_files(folder:Path):
    "A table and a log with texts that spell times."
    texts = ["2026-03-08 02:30:00", "2026-11-01 01:30:00", "2026-03-08T02:30:00-05:00", "2026-03-29T01:30:00Z"]
    forms = {"iso": texts, "german": [f"{d:02}.03.2026" for d in (7, 8, 29, 31)], "american": [f"03/{d:02}/2026" for d in (7, 8, 29, 31)], "epoch": [1772937000 + 3600*h for h in range(4)]}
    for name, spelled in forms.items():
        rows = [(i, 40 + i % 4, spelled[i % 4], 5.25 + i) for i in range(80)]
        file = folder/f"{name}.csv"
        file.write_text("order_id,customer_id,at,amount\n" + "".join(f"{a},{c},{t},{x}\n" for a, c, t, x in rows))
        d = infer_description(file, DescribeOptions(kind="events", entity="customer_id", timestamp="at", amount="amount"))
        prepare_events(d, folder/f"{name}.parquet")
        yield f"log, {name}", of_frame(pd.read_parquet(folder/f"{name}.parquet"))
        file.write_text("id,at,x,churned\n" + "".join(f"{a},{t},{x},{'yes' if a // 4 % 2 else 'no'}\n" for a, c, t, x in rows))
        d = infer_description(file, DescribeOptions(kind="snapshot", entity="id", timestamp="at", label="churned"))
        prepare(d, folder/f"{name}.parquet")
        yield f"table, {name}", of_frame(pd.read_parquet(folder/f"{name}.parquet"))

def of_requests(folder:Path):
    "The request log, its days and its bounds."
    m, at = manifest(), int(dt.datetime(2026, 3, 8, 2, 30, tzinfo=dt.timezone.utc).timestamp())
    for hours in (0, 6, 22):
        rows = np.full((2, len(m.features)), hours, np.float32)
        add_file(folder/"requests", columns_of([AnsweredRows(1000*(at + 3600*hours), m, rows, [.1, .2], [1, 2])]))
    files = sorted(str(p.relative_to(folder)) for p in (folder/"requests").glob("*/*.parquet"))
    yield "requests", ([f[:26] for f in files], [of_frame(read_requests(folder/"requests", since=t, until="2026-03-09")) for t in ("2026-03-08", "2026-03-08T03:00:00", "2026-03-08T03:00:00-05:00")])

def of_training(folder:Path):
    "Features, training, drift, gate, bundle and answers; the days when clocks change lie in every window."
    from fastapi.testclient import TestClient # what follows takes seconds to import, and only this part needs it
    from churn_nb.monitoring.drift_report import ReportOptions, drift_report
    from churn_nb.promote import run_gate
    from churn_nb.registry.bundle import current_bundle, verify_bundle
    from churn_nb.registry.deployment import deploy_champion
    from churn_nb.serve import create_app
    from churn_nb.train import train
    s = settings_of(folder)
    Workspace(folder).open()
    advance_clock(s, PRESENT)
    f.build(s, 300)
    rows, store = f.training_rows(s), f.apply_store(s)
    yield "rows", of_frame(rows)
    made = train(s, rows)
    yield "metrics", digest([made["winner"], made["test"], made["baseline"]])
    ids = sorted(rows.customer_id.unique().tolist())[:20]
    now, names = f.online(store, ids, s), f.feature_names(s)
    report = drift_report(rows[rows.split == "train"], f.latest_rows(s), s.drift, names, ReportOptions("customer_id", made.get("importance"), s.train.seed))
    yield "drift", digest(json.dumps(report.to_dict(), sort_keys=True, default=str))
    decision, _ = run_gate(s, rows[rows.split == "test"])
    yield "decision", digest([(c.criterion, c.required, c.verdict) for c in decision.checks])
    deploy_champion(s)
    bundle = current_bundle(Workspace(folder).bundles)
    yield "model", digest((bundle/"model.onnx").read_bytes())
    yield "self test", digest(verify_bundle(bundle).self_test)
    with TestClient(create_app(s)) as client:
        answers = [client.post("/predict", json={"customer_id": i}).json() for i in ids]
    assert all(0 < a["probability"] < 1 for a in answers)
    yield "answers", digest(answers)
    yield "online", of_frame(now[names])

def main(folder:Path, part:str=""):
    if hasattr(time, "tzset"): time.tzset()
    if part == "train": return dict(of_training(folder))
    s = settings_of(folder)
    if part == "read": return {"asked": asked(s, sorted(load_events(s, 40).customer_id.unique().tolist()))}
    values = dict(of_events(folder))
    values["asked"] = asked(s, sorted(load_events(s, 40).customer_id.unique().tolist()))
    shutil.copytree(folder, folder.with_name("to read"))
    for part in (of_pushes, of_files, of_requests): values |= dict(part(folder))
    return values

if __name__ == "__main__": print(json.dumps(main(Path(sys.argv[1]), *sys.argv[2:])))
