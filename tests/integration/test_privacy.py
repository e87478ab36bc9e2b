"No entry point of the project calls anybody who was not configured: each is run in a network of its own, in which every call is seen."
import json, os, subprocess, sys
import churn_nb, pytest
from deadlines import allow
from paths import CHURN, ROOT
from serving import put_live
from silence import can_be_alone

pytestmark = pytest.mark.skipif(not can_be_alone(), reason="NOT RUN: who is called home; this user can't make a network namespace, allow it (unshare -rn) or run as root")
SILENCE = [sys.executable, str(ROOT/"tests/support/silence.py")]
ONNX_RUNTIME_REPORTS_AFTER = 20 # seconds; 12 were enough on a quiet machine
WAIT = f"; import time; time.sleep({ONNX_RUNTIME_REPORTS_AFTER})"
SESSION = """
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1])""" + WAIT
ALL_MODULES = """
import importlib, pkgutil, sys, churn_nb
for m in pkgutil.walk_packages(churn_nb.__path__, "churn_nb."): importlib.import_module(m.name)
import mlflow, evidently, feast, dvc"""
MLFLOW = """
mlflow.set_tracking_uri("sqlite:///runs.db"); mlflow.set_experiment("any")
with mlflow.start_run(): mlflow.log_metric("auc", .8)"""
DUCKDB = """
from churn_nb.core.workspace import open_duckdb
try: open_duckdb().sql("SELECT * FROM 's3://bucket/file.parquet'")
except Exception as e: print(e)
else: raise SystemExit("a file was read from nowhere")"""
TABLE = "customer,age,usage_minutes,gap,left\n" + "".join(f"{i},{i % 60 + 18},{i*7 % 300},{i % 3},{i % 2}\n" for i in range(60))

def python(*code): return sys.executable, "-c", "import sys" + "".join(code), "model.onnx"

ENTRY_POINTS = {
    "nothing of ours, so it calls": python(SESSION),
    "serve": ("timeout", "-s", "TERM", str(ONNX_RUNTIME_REPORTS_AFTER + 10), CHURN, "serve", "--port", "0"),
    "score": (CHURN, "score", "table.csv", "scores.csv"),
    "describe": (CHURN, "describe", "table.csv", "--label", "left"),
    "drift": (CHURN, "drift", "table.csv", "table.csv"),
    "doctor": (CHURN, "doctor"),
    "every module": python(ALL_MODULES, MLFLOW, SESSION),
    "a file on S3": python(DUCKDB),
    "a notebook": ("nbdev_test", str(ROOT/"nbs/serving/12_predictor.ipynb")),
    "dvc": ("dvc", "status"),
}

@pytest.fixture(scope="module")
def started(tmp_path_factory):
    "All entry points at once, each in its folder with a workspace and an environment that says nothing about telemetry; they wait more than they compute."
    said_nothing = {k: v for k, v in os.environ.items() if k not in (*churn_nb.TELEMETRY_OFF, "CI") and not k.startswith(("XDG_", "GITHUB_", "PYTEST_"))}
    processes = {}
    for name, command in ENTRY_POINTS.items():
        folder = tmp_path_factory.mktemp("entry")
        live = put_live(folder/"work")
        (folder/"model.onnx").write_bytes((live/"model.onnx").read_bytes())
        (folder/"table.csv").write_text(TABLE)
        env = said_nothing | {"HOME": str(folder), "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}", "CHURN_PATHS_WORKSPACE": str(folder/"work")}
        processes[name] = subprocess.Popen([*SILENCE, *command], cwd=ROOT if name == "dvc" else folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    yield processes
    for p in processes.values():
        p.kill()
        p.communicate()

def calls(process):
    "Whom a process called, how often; and what it printed."
    *printed, last = process.communicate(timeout=allow(300))[0].splitlines()
    return json.loads(last), "\n".join(printed)

@pytest.mark.parametrize("name", list(ENTRY_POINTS)[1:])
def test_an_entry_point_calls_nobody(started, name):
    called, printed = calls(started[name])
    assert called == {}, printed
    assert started[name].returncode in ((0, 124) if name == "serve" else (0, 2) if name == "doctor" else (0,)), printed

def test_onnxruntime_alone_is_seen_to_call(started):
    "Or the tests above could not fail."
    called, printed = calls(started["nothing of ours, so it calls"])
    assert any("microsoft.com" in name for name in called), printed
