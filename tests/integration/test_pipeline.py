"The whole way in a temporary workspace, through the `churn` command: two runs of the same, one with other costs, and what is done with them."
import json, os, shutil, signal, subprocess, time
import httpx, pandas as pd, pytest
from churn_nb.registry.bundle import current_bundle, verify_bundle
from churn_nb.features import with_request_time
from churn_nb.ops.pipeline_runner import STEPS
from commands import FEW, GATE, PLAIN, churn
from deadlines import allow
from other_user import OtherUser, needs_another_user
from paths import BIN, CHURN, REAL_CHURN, ROOT, own_environment
from serving import free_port, wait_for

pytestmark = pytest.mark.usefixtures("measured")

CHEAPER = {"CHURN_TRAIN_OFFER_COST": "1"} # the same ONNX file with another threshold: another model

def leave_open_run(ws):
    "As a training that was killed."
    import mlflow
    client = mlflow.MlflowClient(f"sqlite:///{ws}/mlflow.db")
    client.create_run(client.get_experiment_by_name("churn").experiment_id, tags={"churn.open_file": "killed"})
    (ws/".open-runs"/"killed").touch()

@pytest.fixture(scope="module")
def ran(first_run, tmp_path_factory):
    "A workspace after three runs on the same data: a copy of the first, the same again, and one whose offers cost less."
    made, first = first_run
    ws = tmp_path_factory.mktemp("work")/"copy"
    shutil.copytree(made, ws, symlinks=True)
    leave_open_run(ws)
    return ws, [first, churn("run", *FEW, "--workspace", ws, env=PLAIN), churn("run", *FEW, "--workspace", ws, env=PLAIN | CHEAPER)]

def results(ws): return {s: json.loads((ws/"results"/f"{s}.json").read_text()) for s in STEPS}
def executed(ws): return sorted(p for p in (ws/"runs").iterdir())

def test_the_first_is_promoted_the_same_is_nothing_new_and_another_is_refused(ran):
    ws, (first, same, second) = ran
    assert first.returncode == same.returncode == 0, first.stdout + first.stderr + same.stdout + same.stderr
    assert second.returncode == 1, second.stdout + second.stderr
    assert "is no new version, the ONNX file is that of version 1, from the same data" in same.stdout
    assert "nothing new to judge: training made version 1 again, the champion; version 1 stays" in same.stdout and "bundle of version 1 is current" in same.stdout
    for step in STEPS: assert f"  {step}" in first.stdout
    assert "version 1 promoted" in first.stdout
    assert "version 2 refused; log_loss against champion (version 1)" in second.stdout
    assert verify_bundle(current_bundle(ws/"bundle")).version == "1"

def test_same_commit_and_data_give_the_same_numbers(ran):
    ws, _ = ran
    outcome = []
    for run in executed(ws)[:2]: # the third has other costs
        nb = json.loads((run/"01_train.ipynb").read_text())
        outcome.append([o["data"]["text/plain"] for c in nb["cells"] for o in c.get("outputs", []) if "text/plain" in o.get("data", {})])
    assert outcome[0] == outcome[1] and len(outcome[0]) >= 2
    import mlflow
    client = mlflow.MlflowClient(f"sqlite:///{ws}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("churn").experiment_id], f"attributes.run_name = '{results(ws)['01_train']['winner']}'", order_by=["attributes.start_time ASC"])[:2]
    metrics = [{k: v for k, v in r.data.metrics.items() if k.startswith(("validation_", "test_"))} for r in runs]
    assert len(metrics) == 2 and metrics[0] == metrics[1] and len(metrics[0]) == 14

def test_a_training_ends_the_run_of_a_killed_one(ran):
    ws, _ = ran
    import mlflow
    client = mlflow.MlflowClient(f"sqlite:///{ws}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("churn").experiment_id])
    assert [r.info.status for r in runs if r.data.tags.get("churn.open_file") == "killed"] == ["KILLED"]
    assert {r.info.status for r in runs} == {"KILLED", "FINISHED"} and [*(ws/".open-runs").iterdir()] == []

def test_executed_notebooks_results_and_report_are_kept(ran):
    ws, _ = ran
    assert len(executed(ws)) == 3
    for run in executed(ws):
        assert sorted(p.stem for p in run.glob("*.ipynb")) == sorted(STEPS)
        page = (ws/"reports"/f"{run.name}.html").read_text()
        for step in STEPS: assert f'href="../runs/{run.name}/{step}.ipynb"' in page
    r = results(ws)
    for fact in (r["00_features"]["data_hash"], r["01_train"]["run_id"], f"{r['01_train']['test']['log_loss']:.5f}", "recency_days", "log_loss against champion (version 1)"):
        assert fact in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "").replace("http://127.0.0.1:8000", "") # nothing from elsewhere
    assert (ws/"reports"/"drift_evidently.html").stat().st_size > 10_000

def test_history_shows_both_decisions_with_their_numbers(ran):
    ws, _ = ran
    said = churn("history", "--workspace", ws)
    assert said.returncode == 0
    rows = [line.split() for line in said.stdout.splitlines()[1:]]
    assert [(r[1], r[2], r[3]) for r in rows] == [("promoted", "1", "-"), ("refused", "2", "1")]
    records = [json.loads(line) for line in (ws/"promotions.jsonl").read_text().splitlines()]
    assert all({"criterion", "required", "measured", "verdict"} == set(c) for r in records for c in r["checks"])
    assert [c["verdict"] for c in records[1]["checks"] if c["criterion"].startswith("log_loss against champion")] == ["fail"]

def test_promoting_twice_and_rollback_without_predecessor_are_refused(ran):
    ws, _ = ran
    again = churn("promote", "--workspace", ws)
    assert again.returncode == 1 and "version 2: refused" in again.stdout
    back = churn("rollback", "--workspace", ws)
    assert back.returncode == 2 and back.stderr.strip() == "churn: nothing to roll back to: nothing was champion before version 1"

def stores(ws): return {f: f.read_bytes() for f in (ws/"feast").rglob("*") if f.is_file() and f.suffix != ".lock"}

@pytest.mark.parametrize("command, code", [
    ("step 02_promote", 1), ("step 03_drift", 0), ("step 04_serve", 0), ("promote", 1), ("history", 0), ("doctor", None), ("drift", None)])
def test_a_step_or_command_leaves_the_stores_of_the_run(ran, command, code):
    "It is not told how many customers there are: it takes those of the workspace."
    ws, _ = ran
    before = stores(ws)
    alone = churn(*command.split(), "--workspace", ws)
    assert code in (None, alone.returncode) and "made with" not in alone.stderr, alone.stderr
    assert stores(ws) == before
    if command.startswith("step"):
        parameters = json.loads((executed(ws)[-1]/f"{command.split()[1]}.ipynb").read_text())["metadata"]["papermill"]["parameters"]
        assert "customers" not in parameters

@pytest.mark.parametrize("step", ["01_train", "02_promote", "03_drift"])
def test_a_step_refuses_other_customers(ran, step):
    ws, _ = ran
    before, result = stores(ws), (ws/"results"/f"{step}.json").read_bytes()
    other = churn("step", step, "-p", "customers=60", "--workspace", ws)
    assert other.returncode == 2 and "were made with customers = 500, not 60" in other.stdout + other.stderr
    (ws/"results"/f"{step}.json").write_bytes(result) # a step removes its last result before it starts
    assert stores(ws) == before

def papermill(ws, out, **given):
    "The gate's notebook as a job of one's own executes it, without the `churn` command."
    parameters = [x for k, v in {"workspace": str(ws), **given}.items() for x in ("-p", k, str(v))]
    command = [BIN/"papermill", "02_promote.ipynb", str(out), *parameters]
    return subprocess.run(command, cwd=ROOT/"nbs", env=own_environment(), capture_output=True, text=True)

def test_papermill_alone_fails_where_the_gate_refuses(ran, tmp_path):
    ws, _ = ran
    refused = papermill(ws, tmp_path/"out.ipynb")
    assert refused.returncode == 1 and "GateRefused: version 2 is refused" in refused.stderr
    assert results(ws)["02_promote"]["verdict"] == "refused"

def test_papermill_that_crashes_leaves_no_verdict(ran, tmp_path):
    ws, _ = ran
    shutil.copytree(ws, tmp_path/"copy")
    crashed = papermill(tmp_path/"copy", tmp_path/"out.ipynb", dataset="nowhere.toml")
    assert crashed.returncode == 1 and "GateRefused" not in crashed.stderr
    assert not (tmp_path/"copy"/"results"/"02_promote.json").exists()

def test_rollback_from_the_command_line(ran):
    ws, _ = ran
    never = churn("rollback", "--to", "2", "--workspace", ws)
    assert never.returncode == 2 and "version 2 was never champion" in never.stderr
    assert churn("promote", "--workspace", ws, env={"CHURN_GATE_CDNOW_BEAT_CHAMPION": ""}).returncode == 0 # a gate that asks for less
    assert current_bundle(ws/"bundle").name == "2"
    back = churn("rollback", "--why", "drill", "--workspace", ws)
    assert back.returncode == 0 and "version 1 is champion again, in place of 2" in back.stdout
    assert current_bundle(ws/"bundle").name == "1"

def test_score_keeps_rows_and_agrees_with_the_manifest(ran, tmp_path):
    ws, _ = ran
    m = verify_bundle(current_bundle(ws/"bundle"))
    table = pd.DataFrame(m.self_test.rows, columns=m.names).assign(customer=range(len(m.self_test.rows)))
    table.to_csv(tmp_path/"in.csv", index=False)
    done = churn("score", tmp_path/"in.csv", tmp_path/"out.parquet", "--workspace", ws)
    plain = churn("score", tmp_path/"in.csv", tmp_path/"plain.csv", "--reasons", 0, "--workspace", ws)
    assert done.returncode == plain.returncode == 0, done.stderr + plain.stderr
    assert "reasons" not in pd.read_csv(tmp_path/"plain.csv")
    out = pd.read_parquet(tmp_path/"out.parquet")
    assert out.customer.tolist() == table.customer.tolist()
    assert (out.probability - m.self_test.probability).abs().max() < 1e-5
    table.drop(columns="recency_days").to_csv(tmp_path/"short.csv", index=False)
    missing = churn("score", tmp_path/"short.csv", tmp_path/"never.csv", "--workspace", ws)
    assert missing.returncode == 2 and "column recency_days is missing" in missing.stderr and not (tmp_path/"never.csv").exists()

def files(ws): return {p.relative_to(ws): p.read_bytes() for p in ws.rglob("*") if p.is_file()}

def work_as(user, here):
    "What a user does in a workspace of 500 customers; the exit code and the text of each."
    m = verify_bundle(current_bundle(here/"bundle"))
    pd.DataFrame(m.self_test.rows, columns=m.names).to_csv(user.home/"in.csv", index=False)
    commands = ("doctor", "history", "drift", "step 04_serve", "step 03_drift", f"score {user.home}/in.csv {user.home}/out.csv")
    ends = {c.split(" /")[0]: user.run(*c.split(), "--workspace", here, CHURN_SERVE_PORT="0") for c in commands}
    api = user.start("serve", "--port", port := free_port(), "--workspace", here, CHURN_SERVE_REQUEST_LOG_SECONDS="0.2")
    try:
        assert f":{port}" in api.stdout.readline()
        assert httpx.post(f"http://127.0.0.1:{port}/predict/batch", json=[m.example]*300, timeout=allow(60)).status_code == 200
        assert wait_for(lambda: list(here.glob("requests/*/*.parquet")))
    finally:
        api.terminate()
        printed = "".join(api.communicate(timeout=allow(30)))
    return ends | {"serve": (api.returncode, printed), "drift of requests": user.run("drift", "--workspace", here)}

@pytest.mark.root
@needs_another_user
def test_another_user_restores_a_copy_and_works_there(ran, tmp_path):
    "Where the original no longer lies in its place, nothing looks for it there or names it; and nothing changes in it."
    ws, _ = ran
    user, here, away = OtherUser(tmp_path), tmp_path/"home"/"restored", ws.with_name("away")
    shutil.copytree(ws, here, symlinks=True, ignore=shutil.ignore_patterns("requests"))
    user.own(here)
    before, copied = files(ws), files(here)
    ws.rename(away)
    try: ends = work_as(user, here)
    finally: away.rename(ws)
    wanted = {"doctor": 0, "history": 0, "drift": 2, "step 04_serve": 0, "step 03_drift": 0, "score": 0, "serve": 0, "drift of requests": 3}
    assert {c: code for c, (code, _) in ends.items()} == wanted, ends # `drift`: first no request, then 300 times the same customer
    assert [c for c, (_, text) in ends.items() if str(ws) in text] == []
    assert [p for p, b in files(here).items() if b != copied.get(p) and str(ws).encode() in b] == []
    assert files(ws) == before

def test_drift_exit_codes(ran, tmp_path):
    ws, _ = ran
    rows = pd.read_parquet(ws/"feast"/"training_rows.parquet")
    rows[rows.split == "train"].to_parquet(tmp_path/"ref.parquet")
    rows[rows.split == "train"].sample(frac=.5, random_state=0).to_csv(tmp_path/"same.csv", index=False)
    rows[rows.split == "test"].to_parquet(tmp_path/"test.parquet")
    assert churn("drift", tmp_path/"ref.parquet", tmp_path/"same.csv").returncode == 0
    drifted = churn("drift", tmp_path/"ref.parquet", tmp_path/"test.parquet", "--json", tmp_path/"d.json")
    assert drifted.returncode == 3 and json.loads((tmp_path/"d.json").read_text())["level"] == "retrain"
    assert churn("drift", tmp_path/"ref.parquet", tmp_path/"nothing.csv").returncode == 2
    exact = {f["name"]: f for f in json.loads((tmp_path/"d.json").read_text())["features"]}
    streamed = churn("drift", tmp_path/"ref.parquet", tmp_path/"test.parquet", "--stream", "--json", tmp_path/"s.json")
    assert streamed.returncode == 3 and "PSI within" in streamed.stdout
    for f in json.loads((tmp_path/"s.json").read_text())["features"]:
        assert abs(f["statistic"] - exact[f["name"]]["statistic"]) <= float(f["remark"].split("D within ")[1].split(",")[0]) + 1e-4

def test_a_text_column_and_a_file_without_rows(ran, tmp_path):
    plans = pd.DataFrame({"customer_id": range(400), "plan": ["basic", "pro"]*200, "calls": range(400)})
    plans.to_csv(tmp_path/"a.csv", index=False)
    plans.assign(plan="new").to_csv(tmp_path/"b.csv", index=False)
    moved = churn("drift", tmp_path/"a.csv", tmp_path/"b.csv", "--html", tmp_path/"e.html")
    assert moved.returncode == 3 and "unseen: new" in moved.stdout and (tmp_path/"e.html").stat().st_size > 10_000
    plans.drop(columns="calls").to_csv(tmp_path/"c.csv", index=False)
    lacking = churn("drift", tmp_path/"a.csv", tmp_path/"c.csv")
    assert lacking.returncode == 2 and "calls  warn" in lacking.stdout and "not in the current table" in lacking.stdout
    for wrong in (["--stream"], ["--columns", "a"], [tmp_path/"a.csv", tmp_path/"b.csv", "--stream", "--customers", "customer_id"]):
        refused = churn("drift", *wrong)
        assert refused.returncode == 2 and "--stream" in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert churn("drift", tmp_path/"a.csv").returncode == 2 and churn("drift", tmp_path/"a.csv", tmp_path/"b.csv", "--customers", "who").returncode == 2

def test_the_service_is_monitored_and_retrained(ran, tmp_path):
    "Nothing asked, what training was like, another world; then one retraining, which the gate refuses: the data are the same, and only the costs are others."
    ws, _ = ran
    look = lambda: churn("drift", "--workspace", ws, "--json", tmp_path/"w.json", env=PLAIN)
    nothing = look()
    assert nothing.returncode == 2 and "no rows in the current table" in nothing.stdout and "drift: warn" in nothing.stdout
    rows = pd.read_parquet(ws/"feast"/"training_rows.parquet")
    names = results(ws)["00_features"]["features"]
    rows = rows.loc[rows.split == "train"].sample(700, random_state=1)[names]
    bodies = lambda frame: [{n: None if v != v else v for n, v in zip(names, r)} for r in frame.to_numpy(float).tolist()]
    port = free_port()
    env = {**os.environ, "CHURN_SERVE_REQUEST_LOG_SECONDS": "0.2"}
    api = subprocess.Popen([CHURN, "serve", "--port", str(port), "--workspace", str(ws)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    try:
        assert f":{port}" in api.stdout.readline()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=allow(60)) as c:
            def ask(frame):
                before = len(list(ws.glob("requests/*/*.parquet")))
                assert c.post("/predict/batch", json=bodies(frame)).status_code == 200
                wait_for(lambda: len(list(ws.glob("requests/*/*.parquet"))) > before)
            ask(rows)
            calm = look()
            assert calm.returncode == 0 and "drift: none" in calm.stdout and "700 current rows" in calm.stdout, calm.stdout + calm.stderr
            gauges = c.get("/metrics").text
            assert "churn_drift_level 0.0" in gauges and 'churn_drift_psi{feature="probability"}' in gauges
            for _ in range(3): ask(rows.assign(spend_total=rows.spend_total*4, recency_days=rows.recency_days*.2))
            moved = look()
            assert moved.returncode == 3 and "churn_drift_level 2.0" in c.get("/metrics").text, moved.stdout + moved.stderr
    finally:
        api.terminate()
        api.communicate(timeout=allow(30))
    found = json.loads((tmp_path/"w.json").read_text())
    (runner := tmp_path/"runner").mkdir() # as in drift.yaml: a workspace with nothing but the log, the registry elsewhere
    shutil.copytree(ws/"requests", runner/"requests")
    elsewhere = churn("drift", "--workspace", runner, env={"CHURN_STORES_TRACKING_URI": f"sqlite:///{ws}/mlflow.db"})
    assert elsewhere.returncode == 3 and (runner/"reports"/"drift.json").exists(), elsewhere.stdout + elsewhere.stderr
    assert found["model_version"] == "1" and {f["name"] for f in found["features"] if f["level"] == "retrain"} >= {"spend_total", "recency_days"}
    runs = len(executed(ws))
    once = churn("retrain", "--why", "drift", *FEW, "--workspace", ws, env=PLAIN | {"CHURN_TRAIN_OFFER_COST": "1.5"})
    assert once.returncode == 1 and "version 3 refused" in once.stdout, once.stdout + once.stderr
    again = churn("retrain", "--why", "drift", *FEW, "--workspace", ws)
    assert again.returncode == 0 and again.stdout.startswith("cooling down: ") and len(executed(ws)) == runs + 1
    assert [json.loads(line)["action"] for line in (ws/"retrains.jsonl").read_text().splitlines()] == ["started", "finished", "declined"]

def test_serve_answers_raw_features_and_customer_ids(ran):
    ws, _ = ran
    port = free_port()
    api = subprocess.Popen([CHURN, "serve", "--port", str(port), "--workspace", str(ws)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert f":{port}" in api.stdout.readline()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=allow(60)) as c:
            model = c.get("/model").json()
            raw = c.post("/predict", json=model["example"])
            assert raw.status_code == 200 and raw.json()["model_version"] == "1"
            stored = pd.read_parquet(max((ws/"feast"/"customer_features").glob("as-of-*.parquet")))
            online = with_request_time(stored, [f["name"] for f in model["features"]]).set_index("customer_id")
            customer = int(online.index[0])
            by_id = c.post("/predict", json={"customer_id": customer})
            features = {n: None if pd.isna(v) else float(v) for n, v in online.loc[customer, [f["name"] for f in model["features"]]].items()}
            assert by_id.status_code == 200 and by_id.json() == c.post("/predict", json=features).json()
            taken = churn("serve", "--port", port, "--workspace", ws)
            assert taken.returncode == 2 and "--port" in taken.stderr and len(taken.stderr.splitlines()) == 1
    finally:
        api.terminate()
        api.communicate(timeout=allow(30))

def test_doctor_finds_a_truncated_bundle(ran, tmp_path):
    ws, _ = ran
    assert churn("doctor", "--workspace", ws, env={"CHURN_SERVE_PORT": "0"}).returncode == 0
    model = current_bundle(ws/"bundle")/"model.onnx"
    whole = model.read_bytes()
    try:
        model.write_bytes(whole[:-1])
        sick = churn("doctor", "--workspace", ws)
        assert sick.returncode == 2 and "!!  bundle" in sick.stdout and "model.onnx" in sick.stdout
    finally: model.write_bytes(whole)

@pytest.mark.parametrize("step", ["01_train", "02_promote"])
def test_killed_in_a_step_the_next_run_just_works(ran, step):
    "SIGKILL to the runner and its kernel while a step is at work: the champion answers on, and the step runs again."
    ws, _ = ran
    before, served = (ws/"promotions.jsonl").read_text(), verify_bundle(current_bundle(ws/"bundle")).version
    known = set(executed(ws))
    p = subprocess.Popen([REAL_CHURN, "step", step, *FEW, "--workspace", str(ws)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=own_environment(**GATE))
    started = lambda: next((d for d in executed(ws) if d not in known and (d/f"{step}.ipynb").exists() and "completed" in (d/f"{step}.ipynb").read_text()), None)
    assert wait_for(started)
    time.sleep(1)
    os.killpg(p.pid, signal.SIGKILL); p.wait()
    assert verify_bundle(current_bundle(ws/"bundle")).version == served
    assert (ws/"promotions.jsonl").read_text().startswith(before)
    again = churn("step", step, *FEW, "--workspace", ws)
    assert again.returncode in (0, 1) and "FAILED" not in again.stdout, again.stdout + again.stderr
    assert verify_bundle(current_bundle(ws/"bundle")).version == served

def test_a_broken_notebook_ends_with_its_error_and_keeps_production(ran, tmp_path):
    ws, _ = ran
    served = current_bundle(ws/"bundle").name
    nbs = tmp_path/"nbs"
    nbs.mkdir()
    for s in STEPS:
        nb = json.loads((ROOT/"nbs"/f"{s}.ipynb").read_text())
        if s == "00_features":
            at = next(i for i, c in enumerate(nb["cells"]) if "parameters" in c["metadata"].get("tags", []))
            nb["cells"][at + 1]["source"] = "1/0"
        (nbs/f"{s}.ipynb").write_text(json.dumps(nb))
    r = churn("run", "--workspace", ws, env={"CHURN_PATHS_NOTEBOOKS": str(nbs)})
    assert r.returncode == 70 and "ZeroDivisionError" in r.stdout and "01_train" not in r.stdout
    assert "00_features failed" in (ws/"reports"/"index.html").read_text()
    assert "ZeroDivisionError" in (executed(ws)[-1]/"00_features.ipynb").read_text()
    assert current_bundle(ws/"bundle").name == served
