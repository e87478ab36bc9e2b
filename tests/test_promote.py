"Promotion: the gate on every kind of number, processes killed at every step of a promotion or racing for it, rollback, tampering."
import contextlib, fcntl, json, os, shutil, sqlite3, subprocess, sys
from pathlib import Path
import filelock, numpy as np, pandas as pd, pytest
from hypothesis import given, settings as hyp, strategies as st
from sklearn.linear_model import LogisticRegression
from churn_nb import promote as p, train as t
from churn_nb.bundle import Feature, Manifest, SelfTest, current_bundle, verify_bundle
from churn_nb.settings import Criterion, Workspace, load_settings, parse_criterion

quick = hyp(max_examples=300, deadline=None, derandomize=True)
NAMES = ["age", "usage_minutes"]
rng = np.random.default_rng(0)
A = rng.normal(size=(300, 2)).astype("float32")
WORLD = pd.DataFrame(A, columns=NAMES).assign(churn=(rng.random(300) < 1/(1 + np.exp(-A @ np.array([1.2, -.8])))).astype(int))
LEARN, ROWS = WORLD[:150], WORLD[150:].reset_index(drop=True)

# The gate's logic

numbers = st.one_of(st.none(), st.floats(), st.sampled_from([float("nan"), 0., .5, .95, 1., 200.]))
metrics = st.dictionaries(st.sampled_from(["auc", "log_loss", "brier", "latency_ms", "accuracy"]), numbers)
operators = {">": lambda a, b: a > b, ">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b}
criteria = st.lists(st.builds(Criterion, st.sampled_from(["auc", "log_loss", "latency_ms", "accuracy"]), st.sampled_from(sorted(operators)), st.sampled_from([0., .5, .95, 200.])), max_size=4)
known = lambda v: v is not None and v == v
verdicts = lambda checks: [c.verdict for c in checks]

@quick
@given(metrics, criteria)
def test_promoted_only_where_every_criterion_holds(m, asked):
    holds = [known(m.get(c.metric)) and operators[c.op](m[c.metric], c.value) for c in asked]
    assert verdicts(p.floors(m, asked)) == ["pass" if h else "fail" for h in holds]
    d = p.Decision("2", "1", p.floors(m, asked))
    assert d.promoted == (len(holds) > 0 and all(holds)) and (d.verdict, d.exit_code) == (("promoted", 0) if d.promoted else ("refused", 1))

@quick
@given(metrics, metrics, st.lists(st.sampled_from(["auc", "log_loss", "brier", "latency_ms", "accuracy"]), min_size=1, unique=True))
def test_only_strictly_better_beats(a, b, which):
    better = [known(a.get(m)) and known(b.get(m)) and (a[m] < b[m] if m in ("log_loss", "brier", "latency_ms") else a[m] > b[m]) for m in which]
    assert verdicts(p.beats(a, b, which, "champion")) == ["pass" if x else "fail" for x in better]
    assert p.Decision("2", "1", p.beats(a, b, which, "champion")).promoted == all(better)
    assert "pass" not in verdicts(p.beats(a, a, which, "itself"))

@pytest.mark.parametrize("ours, theirs, passes", [(.3, np.nextafter(.3, 1), True), (.3, .3, False), (np.nextafter(.3, 1), .3, False)])
def test_one_ulp_decides(ours, theirs, passes):
    assert verdicts(p.beats({"log_loss": ours}, {"log_loss": theirs}, ["log_loss"], "c")) == ["pass" if passes else "fail"]
    assert verdicts(p.beats({"auc": theirs}, {"auc": ours}, ["auc"], "c")) == ["pass" if passes else "fail"]

def test_what_was_asked_nothing_has_agreed_to_nothing():
    note = p.Check("drift", "-", "none", "note")
    assert [p.Decision("1", None, c).verdict for c in ([], [note], [note, p.check("a", "", "", True)], [note, p.check("a", "", "", True), p.check("b", "", "", False)])] == ["refused", "refused", "promoted", "refused"]

# A registry, made once; each test has a model name and a workspace of its own in it

class Registry:
    def __init__(self, root):
        self.root, self.db = root, root/"mlflow.db"
        self.settings = lambda name, **over: load_settings({"paths.workspace": str(root/name), "train.model_name": name, "stores.tracking_uri": f"sqlite:///{self.db}", "gate.cdnow.latency_calls": "20",
            "gate.cdnow.floors": "auc > 0.6, latency_ms < 10000", "gate.cdnow.beat_baseline": "log_loss", "gate.cdnow.beat_champion": "log_loss", **{k.replace("__", "."): v for k, v in over.items()}}, environ={})
        s, cwd = self.settings("seed"), os.getcwd()
        with t.hushed():
            import mlflow
            mlflow.MlflowClient(s.stores.tracking_uri).create_experiment(s.train.experiment, (root/"artifacts").as_uri())
        self.client, self.seed = t.tracking(s), {}
        for which, n in (("weak", 12), ("strong", 150)):
            model = t.fit(LogisticRegression(), LEARN[NAMES][:n].to_numpy(), LEARN.churn[:n].to_numpy())
            exported, X = t.to_onnx(model, 2), LEARN[NAMES].to_numpy()
            with t.hushed(), mlflow.start_run() as run: pass
            base = t.evaluate(ROWS.churn, np.full(len(ROWS), LEARN.churn.mean()))
            m = Manifest(name="seed", version="0", run_id=run.info.run_id, git_sha="abc", created="2026-01-01", dataset="demo", data_hash="md5:0", threshold=.5, features=[Feature(name=c) for c in NAMES],
                         example=dict(zip(NAMES, X[0].tolist())), metrics={f"baseline_{k}": v for k, v in base.items()}, self_test=SelfTest(rows=X[:2].tolist(), probability=t.onnx_predict(exported, X[:2]).tolist()))
            self.seed[which] = self.client.get_model_version("seed", t.register(t.Candidate(which, model, run.info.run_id, {}), exported, m, X[:5], s))
    def challenger(self, s, which, source=None):
        "Register a copy of a seed model under the settings' name as challenger; its version."
        name, seed = s.train.model_name, self.seed[which]
        with t.hushed():
            if not self.client.search_registered_models(f"name = '{name}'"): self.client.create_registered_model(name)
            v = str(self.client.create_model_version(name, source or seed.source, seed.run_id).version)
            self.client.set_model_version_tag(name, v, "sha256", seed.tags["sha256"])
            self.client.set_registered_model_alias(name, "challenger", v)
            self.client.transition_model_version_stage(name, v, "Staging")
        return v
    def world(self, name, champions=0, challenger=None):
        "Settings of a new model: `champions` versions that were promoted one after the other and deployed, then a challenger."
        s = self.settings(name)
        Workspace(s.paths.workspace).open()
        for i in range(champions): self.promote(s, self.challenger(s, "weak"))
        if challenger: self.challenger(s, challenger)
        return s
    def promote(self, s, version):
        "Promote without a gate, deploy."
        now = self.aliases(s).get("champion")
        p.apply_decision(self.client, s, p.load_version(self.client, s, version)[0], p.Decision(version, now, [p.check("demo", "-", "-", True)]))
        p.deploy_champion(s)
    def sql(self, text, *args):
        with contextlib.closing(sqlite3.connect(f"file:{self.db}?mode=ro", uri=True)) as db: return db.execute(text, args).fetchall()
    def aliases(self, s): return {a: str(v) for a, v in self.sql("SELECT alias, version FROM registered_model_aliases WHERE name = ?", s.train.model_name)}
    def stages(self, s): return {str(v): stage for v, stage in self.sql("SELECT version, current_stage FROM model_versions WHERE name = ?", s.train.model_name)}
    def tags(self, s, version): return dict(self.sql("SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?", s.train.model_name, version))
    def state(self, s): return self.aliases(s), self.stages(s), made(s), current(s)

def made(s):
    "The history as (action, version, replaces), every line of it whole and no decision twice."
    f = Workspace(s.paths.workspace).promotions
    text = f.read_text() if f.exists() else ""
    assert text == "" or text.endswith("\n")
    records = [json.loads(line) for line in text.splitlines()]
    assert len({r["id"] for r in records}) == len(records)
    return [(r["action"], r["version"], r["replaces"]) for r in records]

def current(s): return (c := current_bundle(Workspace(s.paths.workspace).bundles)) and verify_bundle(c).version
def tree(root): return {str(f.relative_to(root)): (f.read_bytes(), f.stat().st_mtime_ns, f.stat().st_ino) for f in root.rglob("*") if f.is_file()}

@pytest.fixture(scope="module")
def registry(tmp_path_factory): return Registry(tmp_path_factory.mktemp("registry"))

CREW = '''
import contextlib, gc, json, os, signal, sys, warnings
import mlflow, pandas as pd, sqlalchemy, churn_nb.promote as p, churn_nb.train as t
from churn_nb.settings import load_settings
warnings.simplefilter("ignore")
def say(**out): os.write(1, (json.dumps(out) + "\\n").encode())
def count(die):
    "Count the steps of a promotion by name; die = [k, when] ends the process right before or right after the k-th."
    steps = []
    def counted(owner, name):
        real = getattr(owner, name)
        def step(*a, **k):
            steps.append(name)
            if die == [len(steps), "before"]: os.kill(os.getpid(), signal.SIGKILL)
            here, out = len(steps), real(*a, **k)
            if die == [here, "after"]: os.kill(os.getpid(), signal.SIGKILL)
            return out
        setattr(owner, name, step)
    for name in ("set_registered_model_alias", "delete_registered_model_alias", "set_model_version_tag", "transition_model_version_stage"): counted(mlflow.MlflowClient, name)
    for name in ("atomic_write", "write_bundle", "switch_current"): counted(p, name)
    return steps
def promote(s, rows):
    decision, result = p.run_gate(s, rows)
    if decision.promoted: p.deploy_champion(s)
    return result["verdict"]
def race(s, rows):
    real = p.apply_decision
    def both_here(*a): say(ready=True); return real(*a)
    p.apply_decision = both_here
    return promote(s, rows)
do = {"promote": promote, "race": race, "rollback": lambda s, rows: p.rollback(s)["version"]}
warm = None
for line in sys.stdin:
    tasks, pids = json.loads(line), []
    if warm is None: warm = t.tracking(load_settings(tasks[0]["over"], environ={}))
    for e in gc.get_objects():
        if isinstance(e, sqlalchemy.Engine): e.dispose() # no connection crosses a fork
    for task in tasks:
        if (pid := os.fork()) == 0:
            steps = count(task.get("die"))
            try: answer = {"said": do[task["do"]](load_settings(task["over"], environ={}), pd.read_parquet(task["rows"])), "steps": steps}
            except p.RegistryError as e: answer = {"error": str(e)}
            say(**answer); os._exit(0)
        pids.append(pid)
    say(ended=[os.waitpid(pid, 0)[1] for pid in pids])
'''

@pytest.fixture(scope="module")
def crew(registry):
    "Real processes, forked from one that has done the slow imports. `crew(*tasks)` runs them together; returns wait statuses and what they said."
    ROWS.to_parquet(registry.root/"rows.parquet")
    child = subprocess.Popen([sys.executable, "-c", CREW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=registry.root)
    def run(*tasks, release=None):
        child.stdin.write(json.dumps([{"over": over(s), "rows": str(registry.root/"rows.parquet"), **task} for s, task in tasks]) + "\n"); child.stdin.flush()
        said = []
        for line in child.stdout:
            if "ended" in (answer := json.loads(line)): return answer["ended"], said
            if answer.pop("ready", None):
                if release: release()
            else: said.append(answer)
        raise AssertionError("the crew ended")
    over = lambda s: {"paths.workspace": str(s.paths.workspace), "train.model_name": s.train.model_name, "stores.tracking_uri": s.stores.tracking_uri, "gate.cdnow.latency_calls": 20,
                      **{f"gate.cdnow.{k}": ", ".join(map(str, getattr(s.gates["cdnow"], k))) for k in ("floors", "beat_baseline", "beat_champion")}}
    yield run
    child.stdin.close()
    assert child.wait() == 0

# Killed

PROMOTION = ["set_model_version_tag", "set_registered_model_alias", "set_registered_model_alias", "delete_registered_model_alias", "transition_model_version_stage", "transition_model_version_stage",
             "atomic_write", "set_model_version_tag", "write_bundle", "switch_current"]
