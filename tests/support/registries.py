"An MLflow registry with two small models, on any database, and real processes that promote and roll back in it, and die where they are told to."
import contextlib, json, subprocess, uuid
import numpy as np, pandas as pd, pytest, sqlalchemy
from sklearn.linear_model import LogisticRegression
from churn_nb import promote as p, train as t
from churn_nb.core.errors import RegistryError
from churn_nb.registry.connection import connect
from churn_nb.registry.deployment import deploy_champion
from churn_nb.registry.model_registry import ModelRegistry
from churn_nb.core.manifest import Feature, Manifest, SelfTest
from churn_nb.registry.bundle import current_bundle, verify_bundle
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from paths import PYTHON

NAMES = ["age", "usage_minutes"]
rng = np.random.default_rng(0)
A = rng.normal(size=(300, 2)).astype("float32")
WORLD = pd.DataFrame(A, columns=NAMES).assign(churn=(rng.random(300) < 1/(1 + np.exp(-A @ np.array([1.2, -.8])))).astype(int))
LEARN, ROWS = WORLD[:150], WORLD[150:].reset_index(drop=True)

@contextlib.contextmanager
def a_crew():
    "The process that all others are forked from; it does the slow imports, while the registry is made."
    child = subprocess.Popen([PYTHON, "-c", CREW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try: yield child
    finally:
        child.stdin.close()
        assert child.wait() == 0
        child.stdout.close()

class Registry:
    "Made once; each test has a model name and workspaces of its own in it."
    def __init__(self, root, uri, child):
        self.root, self.uri, self.child, self.seed = root, uri, child, {}
        self.engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        ROWS.to_parquet(root/"rows.parquet")
        s = self.settings("seed")
        with t.hushed():
            import mlflow
            mlflow.MlflowClient(uri).create_experiment(s.train.experiment, (root/"artifacts").as_uri())
        self.client = connect(s)
        for which, n in (("weak", 12), ("strong", 150)):
            model = t.fit(LogisticRegression(), LEARN[NAMES][:n].to_numpy(), LEARN.churn[:n].to_numpy())
            exported, X = t.to_onnx(model, 2), LEARN[NAMES].to_numpy()
            with t.hushed(), mlflow.start_run() as run: pass
            base = t.evaluate(ROWS.churn, np.full(len(ROWS), LEARN.churn.mean()))
            m = Manifest(name="seed", version="0", run_id=run.info.run_id, git_sha="abc", created="2026-01-01", dataset="demo", data_hash="md5:0", threshold=.5, features=[Feature(name=c) for c in NAMES],
                         example=dict(zip(NAMES, X[0].tolist())), metrics={f"baseline_{k}": v for k, v in base.items()}, self_test=SelfTest(rows=X[:2].tolist(), probability=t.onnx_predict(exported, X[:2]).tolist()))
            self.seed[which] = self.client.get_model_version("seed", t.register(t.Candidate(which, model, run.info.run_id, {}), t.ModelFiles(exported, m), X[:5], s))
    def over(self, name, workspace=None):
        return {"paths.workspace": str(self.root/(workspace or name)), "train.model_name": name, "stores.tracking_uri": self.uri, "gate.cdnow.latency_calls": 20,
                "gate.cdnow.floors": "auc > 0.6, latency_ms < 10000", "gate.cdnow.beat_baseline": "log_loss", "gate.cdnow.beat_champion": "log_loss"}
    def settings(self, name, workspace=None): return load_settings(self.over(name, workspace), environ={})
    def elsewhere(self, s, k=2): return self.settings(s.train.model_name, f"{s.train.model_name}-{k}")
    def challenger(self, s, which, source=None):
        "Register a copy of a seed model under the settings' name as challenger; its version."
        name, seed = s.train.model_name, self.seed[which]
        with self.use():
            if not self.client.search_registered_models(f"name = '{name}'"): self.client.create_registered_model(name)
            v = str(self.client.create_model_version(name, source or seed.source, seed.run_id).version)
            self.client.set_model_version_tag(name, v, "sha256", seed.tags["sha256"])
            self.client.set_registered_model_alias(name, "challenger", v)
            self.client.transition_model_version_stage(name, v, "Staging")
        return v
    @contextlib.contextmanager
    def use(self):
        "MLflow resolves `models:/m-...` by its global address, and more than one registry is open here."
        import mlflow
        mlflow.set_tracking_uri(self.uri)
        with t.hushed(): yield self.client
    def model(self, s): return ModelRegistry(s, self.client)
    def promote(self, s, version, was):
        "Without a gate."
        with self.use(): return (of := self.model(s)).apply_decision(of.load_version(version)[0], passed(version, was))
    def world(self, name, champions=0, challenger=None):
        "Settings of a new model: `champions` versions, promoted without a gate and deployed one after the other, then a challenger."
        s = self.settings(name)
        Workspace(s.paths.workspace).open()
        for i in range(champions):
            self.promote(s, self.challenger(s, "weak"), str(i) if i else None)
            deploy_champion(s)
        if challenger: self.challenger(s, challenger)
        return s
    def sql(self, text, s, **args): # not through MLflow: what is in the database
        with self.engine.connect() as db: return {str(k): str(v) for k, v in db.execute(sqlalchemy.text(text), {"name": s.train.model_name, **args})}
    def aliases(self, s): return self.sql("SELECT alias, version FROM registered_model_aliases WHERE name = :name", s)
    def stages(self, s): return self.sql("SELECT version, current_stage FROM model_versions WHERE name = :name", s)
    def tags(self, s, version): return self.sql("SELECT key, value FROM model_version_tags WHERE name = :name AND version = :version", s, version=int(version))
    def log(self, s):
        "(action as written, version, after), by number, straight from the table."
        with self.engine.connect() as db: rows = db.execute(sqlalchemy.text("SELECT version, value FROM model_version_tags WHERE name = :name AND key = 'entry' ORDER BY version"), {"name": f"{s.train.model_name}.decisions"}).all()
        assert [n for n, _ in rows] == list(range(1, len(rows) + 1))
        return [tuple(json.loads(v)[k] for k in ("action", "version", "after")) for _, v in rows]
    def state(self, s): return self.aliases(s), self.stages(s), made(s), current(s)
    def crew(self, *tasks, each_ready=None):
        "Real processes, forked from one that has done the slow imports: run tasks (settings, {do, die}) side by side; wait statuses, and what they said."
        go = self.root/f"go-{uuid.uuid4().hex}" # those who say that they are ready wait for it
        todo = [{"over": self.over(s.train.model_name, s.paths.workspace), "go": str(go), "rows": str(self.root/"rows.parquet"), **task} for s, task in tasks]
        print(json.dumps(todo), file=self.child.stdin, flush=True)
        said, ready = [], 0
        for answer in map(json.loads, self.child.stdout):
            if "ended" in answer: return answer["ended"], said
            if "ready" not in answer: said.append(answer); continue
            ready += 1
            if ready == len(tasks): go.touch()
        raise AssertionError("the crew ended")

CREW = '''
import gc, json, os, signal, sys, time, traceback, warnings
import mlflow, pandas as pd, sqlalchemy, churn_nb.promote as p, churn_nb.registry.decision_log as log, churn_nb.registry.deployment as d, churn_nb.train as t
from churn_nb.core.errors import RegistryError
from churn_nb.registry.model_registry import ModelRegistry
from churn_nb.core.settings import load_settings
warnings.simplefilter("ignore")
def say(**out): os.write(1, (json.dumps(out) + "\\n").encode())
def count(owner, name, steps, die):
    "Count the steps of a promotion by name; die = [k, when] ends the process right before or right after the k-th."
    real = getattr(owner, name)
    def step(*a, **k):
        steps.append(name)
        if die == [here := len(steps), "before"]: os.kill(os.getpid(), signal.SIGKILL)
        out = real(*a, **k)
        if die == [here, "after"]: os.kill(os.getpid(), signal.SIGKILL)
        return out
    setattr(owner, name, step)
def promote(s, task):
    if p.run_gate(s, pd.read_parquet(task["rows"]))[0].promoted: d.deploy_champion(s)
def all_here(task):
    say(ready=True)
    while not os.path.exists(task["go"]): time.sleep(.001)
def race(s, task, real=log.DecisionLog.append):
    "All have judged and read the log before any may write."
    def wait(*a): log.DecisionLog.append = real; all_here(task); return real(*a)
    log.DecisionLog.append = wait
    if "version" not in task: return promote(s, task)
    of, v, was = ModelRegistry(s), task["version"], task["was"]
    of.apply_decision(of.load_version(v)[0], p.Decision(v, was, [p.check("demo", "-", "-", True)]))
def storm(s, task):
    "Promote again and again, each time over the champion that is there."
    of, v, won = ModelRegistry(s), task["version"], 0
    m, _ = of.load_version(v)
    all_here(task)
    for i in range(task["times"]):
        try: of.apply_decision(m, p.Decision(v, of.champion(), [p.check("demo", "-", "-", True)])); won += 1
        except RegistryError: pass
    say(version=v, won=won)
warm = {}
for line in sys.stdin:
    tasks, pids = json.loads(line), []
    s = load_settings(tasks[0]["over"], environ={})
    if s.stores.tracking_uri not in warm: warm[s.stores.tracking_uri] = t.tracking(s)
    for e in gc.get_objects():
        if isinstance(e, sqlalchemy.Engine): e.dispose() # no connection crosses a fork
    for task in tasks:
        if (pid := os.fork()) == 0:
            steps = []
            for name in ("create_model_version", "set_registered_model_alias", "delete_registered_model_alias", "set_model_version_tag", "transition_model_version_stage"): count(mlflow.MlflowClient, name, steps, task.get("die"))
            for owner, name in ((log, "atomic_write"), (d, "write_bundle"), (d, "switch_current")): count(owner, name, steps, task.get("die"))
            todo = {"promote": promote, "race": race, "storm": storm, "rollback": lambda s, task: d.rollback(s)}[task["do"]]
            try: todo(load_settings(task["over"], environ={}), task); say(done=steps)
            except RegistryError as e: say(error=str(e))
            except BaseException: traceback.print_exc(); os._exit(1)
            os._exit(0)
        pids.append(pid)
    say(ended=[os.waitpid(pid, 0)[1] for pid in pids])
'''

def passed(version, was): return p.Decision(version, was, [p.check("demo", "-", "-", True)])

def made(s):
    "The workspace's history as (action, version, replaces), every line of it whole and no decision twice."
    text = f.read_text() if (f := Workspace(s.paths.workspace).promotions).exists() else "\n"
    records = [json.loads(line) for line in text.strip().split("\n") if line]
    assert text.endswith("\n") and len({r["id"] for r in records}) == len(records)
    return [(r["action"], r["version"], r["replaces"]) for r in records]

def current(s): return (c := current_bundle(Workspace(s.paths.workspace).bundles)) and verify_bundle(c).version

def refused(f, says=""):
    with pytest.raises(RegistryError, match=says or None) as e: f()
    assert "\n" not in str(e.value)
