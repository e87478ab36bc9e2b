"MLflow's files in a workspace that is moved or copied: read there, written there, and no path in the database."
import contextlib, shutil, sqlite3
import churn_nb # noqa: F401 # before mlflow: its telemetry
import mlflow, numpy as np, pytest
from sklearn.linear_model import LogisticRegression
from churn_nb import train as t
from churn_nb.core.manifest import Feature, Manifest, SelfTest
from churn_nb.core.workspace import Workspace
from churn_nb.registry.artifact_locations import LOCATION, SERVER_STORE, repair_locations
from churn_nb.registry.model_registry import ModelRegistry
from churn_nb.registry.tracking import tracking

X = np.random.default_rng(0).normal(size=(60, 2)).astype("float32")

def register(s):
    "A small model; its version."
    model = t.fit(LogisticRegression(), X, (X[:, 0] > 0).astype(int))
    exported = t.to_onnx(model, 2)
    with t.hushed(), mlflow.start_run() as run: pass
    names = ["age", "usage_minutes"]
    m = Manifest(name=s.train.model_name, version="0", run_id=run.info.run_id, git_sha="abc", created="2026-01-01", dataset="demo", data_hash="md5:0", threshold=.5,
                 features=[Feature(n) for n in names], example=dict(zip(names, X[0].tolist())), metrics={},
                 self_test=SelfTest(rows=X[:2].tolist(), probability=t.onnx_predict(exported, X[:2]).tolist()))
    return t.register(t.Candidate("demo", model, run.info.run_id, {}), t.ModelFiles(exported, m), X[:5], s)

@pytest.fixture(scope="module")
def made(tmp_path_factory, configured):
    "A workspace with a version; its settings."
    s = configured(tmp_path_factory.mktemp("made")/"ws")
    Workspace(s.paths.workspace).open()
    tracking(s)
    register(s)
    return s

def copy_of(s, to, configured):
    shutil.copytree(s.paths.workspace, to)
    return configured(to)

def contents(ws): return {p: p.read_bytes() for p in Workspace(ws).root.rglob("*") if p.is_file()}

def test_the_servers_variable_is_mlflows():
    from mlflow.server.constants import BACKEND_STORE_URI_ENV_VAR
    assert SERVER_STORE == BACKEND_STORE_URI_ENV_VAR

def test_no_file_names_the_folder(made):
    assert [p.name for p, b in contents(made.paths.workspace).items() if str(made.paths.workspace).encode() in b] == []

def test_a_moved_workspace_loads_its_model(made, tmp_path, configured):
    s = copy_of(made, tmp_path/"moved", configured)
    m, model = ModelRegistry(s).load_version("1")
    assert m.version == "1" and len(model) > 100
    with t.hushed(): loaded = mlflow.pyfunc.load_model(f"models:/{s.train.model_name}/1")
    assert len(loaded.metadata.get_input_schema()) == 2

def test_a_copy_leaves_the_original_alone(made, tmp_path, configured):
    before, s = contents(made.paths.workspace), copy_of(made, tmp_path/"copy", configured)
    tracking(s)
    register(s)
    assert contents(made.paths.workspace) == before
    assert len([*Workspace(s.paths.workspace).artifacts.rglob("model.onnx")]) == 2

def test_old_paths_are_read_at_the_new_place_and_repaired(made, tmp_path, configured):
    s = copy_of(made, tmp_path/"old", configured)
    database, was = Workspace(s.paths.workspace).mlflow_db, "file:///gone/before/mlartifacts"
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"), ("model_versions", "storage_location")):
            db.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", [LOCATION, was])
    before = database.read_bytes()
    assert ModelRegistry(s).load_version("1")[0].version == "1" and database.read_bytes() == before
    repair_locations(database, s.train.experiment)
    assert was.encode() not in database.read_bytes() or was not in "".join(sqlite3.connect(f"file:{database}?mode=ro", uri=True).iterdump())
    assert ModelRegistry(s).load_version("1")[0].version == "1"
