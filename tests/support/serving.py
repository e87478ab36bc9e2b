"A small bundle with a known formula, and a real server process for the tests that need one."
import contextlib, json, signal, socket, subprocess, time
from pathlib import Path
import msgspec, numpy as np, onnx
from onnx import TensorProto, helper as h, numpy_helper
from churn_nb.core.manifest import Feature, Manifest, SelfTest, Store
from churn_nb.registry.bundle import switch_current, write_bundle
from churn_nb.core.settings import load_settings
from deadlines import allow
from paths import PYTHON

W = np.array([.03, -.01, .2], np.float32) # age, usage_minutes, gap

def probability(X, bias=0.):
    "What the small model must answer: a missing gap counts as 0."
    z = np.nan_to_num(np.asarray(X, np.float32)).astype(np.float64) @ W.astype(np.float64) + bias
    return 1 / (1 + np.exp(-z))

def onnx_model(bias=0., k=3, scale=1.):
    "sigmoid(scale w x + bias) with nan taken as 0; `features` float32 [N, k] -> `probability` float32 [N]."
    const = lambda name, v: numpy_helper.from_array(np.asarray(v, np.float32), name)
    nodes = [h.make_node(op, ins, [out]) for op, ins, out in (("IsNaN", ["features"], "gap"), ("Where", ["gap", "zero", "features"], "x"),
             ("MatMul", ["x", "w"], "wx"), ("Add", ["wx", "bias"], "z"), ("Sigmoid", ["z"], "probability"))]
    value = lambda name, *dims: h.make_tensor_value_info(name, TensorProto.FLOAT, [None, *dims])
    constants = [const("zero", 0), const("w", np.resize(W, k) * scale), const("bias", bias)]
    g = h.make_graph(nodes, "small", [value("features", k)], [value("probability")], constants)
    m = h.make_model(g, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(m)
    return m.SerializeToString()

def manifest(version="1", bias=0., **kw):
    rows = [[42., 310.5, None], [20., 0., 3.], [70., 100., 0.]]
    return Manifest(**{**dict(name="churn_predictor", version=version, run_id=f"run{version}", git_sha="abc1234",
        created="2026-01-01T00:00:00Z", dataset="demo", data_hash="md5:0",
        features=[Feature(name="age", min=18, max=80, description="years"), Feature(name="usage_minutes", min=0, max=900),
                  Feature(name="gap", nullable=True)],
        threshold=.5, metrics={"auc": .8}, example={"age": 42, "usage_minutes": 310.5, "gap": None},
        store=Store(entity="customer_id", feature_service="churn_v1"), reference=[40., 200., 0.],
        self_test=SelfTest(rows=rows, probability=probability(np.array(rows, np.float32), bias).tolist())), **kw})

def put_live(workspace, version="1", bias=0., **kw):
    "Write a version into a workspace and switch to it."
    bundles = Path(workspace)/"bundle"
    write_bundle(bundles, onnx_model(bias), manifest(version, bias, **kw))
    return switch_current(bundles, version)

def settings_for(workspace, **serve): return load_settings({"paths.workspace": workspace, **{f"serve.{k}": v for k, v in serve.items()}}, environ={})

class Server:
    "A real `run_server` process on a free loopback port, stopped by its own pid. Forked (see paths.PYTHON), but where its memory is what is tested: `python=sys.executable`."
    code = ("import os, sys, json\nprint(os.getpid(), flush=True)\nfrom churn_nb.serve import run_server\nfrom churn_nb.core.settings import load_settings\n"
            "run_server(load_settings(json.loads(sys.argv[1]), environ={}), port=0)")
    def __init__(self, workspace, python=PYTHON, **serve):
        self.workspace, self.logfile = Path(workspace), Path(workspace)/"server.log"
        over = json.dumps({"paths.workspace": str(workspace), **{f"serve.{k}": v for k, v in ({"reload_seconds": .1} | serve).items()}})
        self.began = time.perf_counter()
        with open(self.logfile, "ab") as err:
            self.process = subprocess.Popen([python, "-c", self.code, over], stdout=subprocess.PIPE, stderr=err, text=True)
        self.pid, self.greeting = int(self.process.stdout.readline() or 0), self.process.stdout.readline()
        assert self.greeting.startswith("http://127.0.0.1:"), self.greeting + self.logfile.read_text()
        self.url = self.greeting.split()[0]
    def logged(self): return [msgspec.json.decode(line) for line in self.logfile.read_bytes().splitlines()]
    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try: self.process.wait(allow(60))
        except subprocess.TimeoutExpired: self.process.kill(); self.process.wait(); raise
        finally: self.process.stdout.close()

@contextlib.contextmanager
def serving(workspace, **serve):
    s = Server(workspace, **serve)
    try: yield s
    finally: s.stop()

def rss_mb(pid): return int(next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
def free_ports(n):
    "Different ones: a port that was closed may be given again at once, so all are held until the last is chosen."
    with contextlib.ExitStack() as held: return [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(n)]
def free_port(): return free_ports(1)[0]
def wait_for(what, seconds=90.):
    "Poll until `what()` is true; the last value. Generous: a busy machine must not fail a test that is not about time."
    end = time.monotonic() + allow(seconds)
    while not (v := what()) and time.monotonic() < end: time.sleep(.02)
    return v
