"MLflow's database in the workspace: made whole, and made anew where a kill left half of it."
import json, os, shutil, signal, sqlite3, subprocess, sys, time
from contextlib import closing
import pytest
from churn_nb.core.errors import DataError
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from churn_nb.registry.tracking import end_killed_runs, make_database, open_run, tracking
from deadlines import allow
from paths import PYTHON, ROOT
from serving import wait_for

def settings_of(folder): return load_settings({"paths.workspace": str(folder)}, environ={})

def tables(db):
    with closing(sqlite3.connect(db, timeout=60)) as c: return {name for (name,) in c.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

def killed_while_making(folder):
    "A process that is killed between two of MLflow's migrations."
    code = f"from churn_nb.registry.tracking import make_database; from churn_nb.core.workspace import Workspace; make_database(Workspace({str(folder)!r}))"
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    half, end = folder/".mlflow-new/mlflow.db", time.monotonic() + allow(120)
    while not (half.exists() and len(tables(half)) > 8) and time.monotonic() < end and process.poll() is None: time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was still at work"
    return half

def test_a_kill_among_the_migrations_leaves_a_usable_workspace(tmp_path):
    "With the file where this release makes it, and where earlier ones did."
    half = killed_while_making(tmp_path)
    assert not Workspace(tmp_path).mlflow_db.exists() and half.exists()
    shutil.copy(half, Workspace(tmp_path).mlflow_db)
    with closing(sqlite3.connect(Workspace(tmp_path).mlflow_db)) as db:
        db.execute("CREATE TABLE _alembic_tmp_model_versions (id INTEGER)")
        db.commit()
    client = tracking(settings_of(tmp_path))
    run = client.create_run(client.get_experiment_by_name(settings_of(tmp_path).train.experiment).experiment_id)
    assert client.get_run(run.info.run_id) and not half.parent.exists()
    assert not [t for t in tables(Workspace(tmp_path).mlflow_db) if t.startswith("_alembic_tmp_")]

@pytest.mark.parametrize("holding", ["runs", "registered_models"])
def test_a_file_that_holds_something_is_never_made_anew(tmp_path, holding):
    with closing(sqlite3.connect(Workspace(tmp_path).mlflow_db)) as db:
        db.executescript(f"CREATE TABLE {holding} (id); INSERT INTO {holding} VALUES (1); CREATE TABLE _alembic_tmp_tags (id)")
    before = Workspace(tmp_path).mlflow_db.read_bytes()
    make_database(Workspace(tmp_path))
    assert Workspace(tmp_path).mlflow_db.read_bytes() == before and os.listdir(tmp_path) == ["mlflow.db"]

# Runs of a process that was killed

AT_WORK = """
import json, sys
from churn_nb.core.settings import load_settings
from churn_nb.registry.tracking import open_run, tracking
settings = load_settings(json.loads(sys.argv[1]), environ={})
tracking(settings)
with open_run(settings, "winner") as winner: pass
with open_run(settings, "training") as training, open_run(settings, "candidate") as candidate, open_run(settings, run_id=winner.info.run_id):
    print(winner.info.run_id, training.info.run_id, candidate.info.run_id, flush=True)
    sys.stdin.read()
"""

def test_the_next_training_ends_runs_of_a_killed_process(tmp_path):
    "One server for two workspaces: what is open elsewhere, or in a process at work, stays open."
    shared = {"stores.tracking_uri": f"sqlite:///{tmp_path/'mlflow.db'}"}
    ours, theirs = ({"paths.workspace": str(tmp_path/name), **shared} for name in ("ours", "theirs"))
    settings, other = (load_settings(w, environ={}) for w in (ours, theirs))
    client = tracking(settings)
    process = subprocess.Popen([PYTHON, "-c", AT_WORK, json.dumps(ours)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        runs = process.stdout.readline().split()
        status = lambda: [client.get_run(r).info.status for r in runs]
        assert len(runs) == 3 and end_killed_runs(settings, client) == [] and status() == ["RUNNING"]*3
    finally:
        process.kill()
        process.communicate()
    assert end_killed_runs(other, client) == [] and status() == ["RUNNING"]*3
    foreign = client.create_run(client.get_run(runs[0]).info.experiment_id)
    ended = []
    assert wait_for(lambda: ended.extend(end_killed_runs(settings, client)) or len(ended) == 3)
    assert sorted(ended) == sorted(runs) and status() == ["KILLED"]*3
    assert client.get_run(foreign.info.run_id).info.status == "RUNNING" and end_killed_runs(settings, client) == []
    with pytest.raises(DataError), open_run(settings, "fails") as failed: raise DataError("no rows")
    assert end_killed_runs(settings, client) == [] and client.get_run(failed.info.run_id).info.status == "FAILED"
    assert [*(tmp_path/"ours"/".open-runs").iterdir()] == []
