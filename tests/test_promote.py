"Promotion: the gate on every kind of number, processes killed at every step of a promotion or racing for it, rollback, tampering."
import contextlib, fcntl, json, shutil, sqlite3, subprocess, sys
from pathlib import Path
import filelock, msgspec, numpy as np, pandas as pd, pytest
from hypothesis import given, settings as hyp, strategies as st
from sklearn.linear_model import LogisticRegression
from churn_nb import promote as p, train as t
from churn_nb.bundle import Feature, Manifest, SelfTest, current_bundle, verify_bundle
from churn_nb.settings import Criterion, Workspace, load_settings

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
    d, good = p.Decision("2", "1", p.floors(m, asked)), len(holds) > 0 and all(holds)
    assert (d.promoted, d.verdict, d.exit_code) == (good, "promoted" if good else "refused", 1 - good)

@quick
@given(metrics, metrics, st.lists(st.sampled_from(["auc", "log_loss", "brier", "latency_ms", "accuracy"]), min_size=1, unique=True))
def test_only_strictly_better_beats(a, b, which):
    better = [known(a.get(m)) and known(b.get(m)) and (a[m] < b[m] if m in ("log_loss", "brier", "latency_ms") else a[m] > b[m]) for m in which]
    assert verdicts(p.beats(a, b, which, "champion")) == ["pass" if x else "fail" for x in better]
    assert p.Decision("2", "1", p.beats(a, b, which, "champion")).promoted == all(better)
    assert "pass" not in verdicts(p.beats(a, a, which, "itself"))

def test_one_ulp_decides_and_notes_do_not():
    less, note, good, bad = np.nextafter(.3, 0), p.Check("drift", "-", "none", "note"), *(p.check("a", "", "", ok) for ok in (True, False))
    for a, b, verdict in ((less, .3, "pass"), (.3, .3, "fail"), (.3, less, "fail")): assert verdicts(p.beats({"log_loss": a, "auc": b}, {"log_loss": b, "auc": a}, ["log_loss", "auc"], "c")) == [verdict]*2
    assert [p.Decision("1", None, c).verdict for c in ([], [note], [note, good], [note, good, bad])] == ["refused", "refused", "promoted", "refused"]

# A registry, made once; each test has a model name and a workspace of its own in it

class Registry:
    def __init__(self, root):
        self.root, self.db, self.seed = root, root/"mlflow.db", {}
        ROWS.to_parquet(root/"rows.parquet")
        self.child = subprocess.Popen([sys.executable, "-c", CREW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) # imports while the registry is made
        s = self.settings("seed")
        with t.hushed():
            import mlflow
            mlflow.MlflowClient(s.stores.tracking_uri).create_experiment(s.train.experiment, (root/"artifacts").as_uri())
        self.client = t.tracking(s)
        for which, n in (("weak", 12), ("strong", 150)):
            model = t.fit(LogisticRegression(), LEARN[NAMES][:n].to_numpy(), LEARN.churn[:n].to_numpy())
            exported, X = t.to_onnx(model, 2), LEARN[NAMES].to_numpy()
            with t.hushed(), mlflow.start_run() as run: pass
            base = t.evaluate(ROWS.churn, np.full(len(ROWS), LEARN.churn.mean()))
            m = Manifest(name="seed", version="0", run_id=run.info.run_id, git_sha="abc", created="2026-01-01", dataset="demo", data_hash="md5:0", threshold=.5, features=[Feature(name=c) for c in NAMES],
                         example=dict(zip(NAMES, X[0].tolist())), metrics={f"baseline_{k}": v for k, v in base.items()}, self_test=SelfTest(rows=X[:2].tolist(), probability=t.onnx_predict(exported, X[:2]).tolist()))
            self.seed[which] = self.client.get_model_version("seed", t.register(t.Candidate(which, model, run.info.run_id, {}), exported, m, X[:5], s))
    def over(self, name): return {"paths.workspace": str(self.root/name), "train.model_name": name, "stores.tracking_uri": f"sqlite:///{self.db}", "gate.cdnow.latency_calls": 20,
                                  "gate.cdnow.floors": "auc > 0.6, latency_ms < 10000", "gate.cdnow.beat_baseline": "log_loss", "gate.cdnow.beat_champion": "log_loss"}
    def settings(self, name): return load_settings(self.over(name), environ={})
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
        "Settings of a new model: `champions` versions, promoted without a gate and deployed one after the other, then a challenger."
        s = self.settings(name)
        Workspace(s.paths.workspace).open()
        for i in range(champions):
            m, _ = p.load_version(self.client, s, self.challenger(s, "weak"))
            p.apply_decision(self.client, s, m, p.Decision(m.version, str(i) if i else None, [p.check("demo", "-", "-", True)]))
            p.deploy_champion(s)
        if challenger: self.challenger(s, challenger)
        return s
    def sql(self, text, s, *args): # not through MLflow: what is in the file
        with contextlib.closing(sqlite3.connect(f"file:{self.db}?mode=ro", uri=True)) as db: return {str(k): str(v) for k, v in db.execute(text, (s.train.model_name, *args))}
    def aliases(self, s): return self.sql("SELECT alias, version FROM registered_model_aliases WHERE name = ?", s)
    def stages(self, s): return self.sql("SELECT version, current_stage FROM model_versions WHERE name = ?", s)
    def tags(self, s, version): return self.sql("SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?", s, version)
    def state(self, s): return self.aliases(s), self.stages(s), made(s), current(s)
    def crew(self, *tasks, each_ready=None):
        "Real processes, forked from one that has done the slow imports: run tasks (settings, {do, die}) side by side; wait statuses, and what they said."
        print(json.dumps([{"over": self.over(s.train.model_name), **task} for s, task in tasks]), file=self.child.stdin, flush=True)
        said = []
        for answer in map(json.loads, self.child.stdout):
            if "ended" in answer: return answer["ended"], said
            said.append(answer) if "ready" not in answer else each_ready()
        raise AssertionError("the crew ended")

CREW = '''
import gc, json, os, signal, sys, warnings
import mlflow, pandas as pd, sqlalchemy, churn_nb.promote as p, churn_nb.train as t
from churn_nb.settings import load_settings
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
def promote(s):
    if p.run_gate(s, pd.read_parquet("rows.parquet"))[0].promoted: p.deploy_champion(s)
def race(s, real=p.apply_decision):
    def both_here(*a): say(ready=True); return real(*a)
    p.apply_decision = both_here
    promote(s)
warm = None
for line in sys.stdin:
    tasks, pids = json.loads(line), []
    if warm is None: warm = t.tracking(load_settings(tasks[0]["over"], environ={}))
    for e in gc.get_objects():
        if isinstance(e, sqlalchemy.Engine): e.dispose() # no connection crosses a fork
    for task in tasks:
        if (pid := os.fork()) == 0:
            steps = []
            for name in ("set_registered_model_alias", "delete_registered_model_alias", "set_model_version_tag", "transition_model_version_stage"): count(mlflow.MlflowClient, name, steps, task.get("die"))
            for name in ("atomic_write", "write_bundle", "switch_current"): count(p, name, steps, task.get("die"))
            try: {"promote": promote, "race": race, "rollback": p.rollback}[task["do"]](load_settings(task["over"], environ={})); say(done=steps)
            except p.RegistryError as e: say(error=str(e))
            os._exit(0)
        pids.append(pid)
    say(ended=[os.waitpid(pid, 0)[1] for pid in pids])
'''

def made(s):
    "The history as (action, version, replaces), every line of it whole and no decision twice."
    text = f.read_text() if (f := Workspace(s.paths.workspace).promotions).exists() else "\n"
    records = [json.loads(line) for line in text.strip().split("\n") if line]
    assert text.endswith("\n") and len({r["id"] for r in records}) == len(records)
    return [(r["action"], r["version"], r["replaces"]) for r in records]

def current(s): return (c := current_bundle(Workspace(s.paths.workspace).bundles)) and verify_bundle(c).version
def tree(root): return {str(f.relative_to(root)): (f.read_bytes(), f.stat().st_mtime_ns, f.stat().st_ino) for f in root.rglob("*") if f.is_file()}

def refused(f, says=""):
    with pytest.raises(p.RegistryError, match=says or None) as e: f()
    assert "\n" not in str(e.value)

@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    yield (r := Registry(tmp_path_factory.mktemp("registry")))
    r.child.stdin.close()
    assert r.child.wait() == 0

# Killed

def recovered(registry, s):
    "The state after the next process came; it does not change when yet another comes."
    def come():
        with t.hushed(): p.reconcile(registry.client, s)
        p.deploy_champion(s)
        return registry.state(s)
    state = come()
    assert state == come()
    return state

@pytest.fixture(scope="module")
def steps(registry):
    "What a promotion and a rollback do, in order, when nobody stops them."
    s = registry.world("uncut", 1, "strong")
    (up, done), (back, undone) = (registry.crew((s, {"do": do})) for do in ("promote", "rollback"))
    assert up == back == [0] and {"atomic_write", "write_bundle", "switch_current"} < set(done[0]["done"]) and len(done[0]["done"]) >= 10 and len(undone[0]["done"]) >= 8
    return {"promote": done[0]["done"], "rollback": undone[0]["done"]}

@pytest.mark.parametrize("when", ["before", "after"])
def test_a_promotion_that_was_killed_at_any_step(registry, steps, when):
    moves, untagged = steps["promote"].index("set_registered_model_alias") + 1, []
    for at in enumerate(steps["promote"], 1):
        s = registry.world(f"killed-{when}-{at[0]}", 1, "strong")
        assert registry.crew((s, {"do": "promote", "die": [at[0], when]})) == ([9], []) # died by SIGKILL, said nothing
        champion = registry.aliases(s)["champion"]                                      # there is one at any moment
        assert champion == ("2" if at[0] > moves or (at[0], when) == (moves, "after") else "1") and current(s) in ("1", champion) and made(s), at
        if champion == "1":
            assert recovered(registry, s) == ({"champion": "1", "challenger": "2"}, {"1": "Production", "2": "Staging"}, [("promoted", "1", None)], "1"), at
            assert p.run_gate(s, ROWS)[0].promoted # the next run decides again
        assert recovered(registry, s) == ({"champion": "2", "previous": "1"}, {"1": "Archived", "2": "Production"}, [("promoted", "1", None), ("promoted", "2", "1")], "2"), at
        if registry.tags(s, 2).get("gate") != "promoted": untagged.append(at)
    assert not untagged, f"promoted, and its version does not say so in the tag `gate`: killed {when} {untagged}"

def test_a_rollback_that_was_killed_at_any_step(registry, steps):
    moves = steps["rollback"].index("set_registered_model_alias") + 1
    for at in enumerate(steps["rollback"], 1):
        s = registry.world(f"killed-rollback-{at[0]}", 2)
        assert registry.crew((s, {"do": "rollback", "die": [at[0], "after"]})) == ([9], [])
        champion, other, n = ("2", "1", 2) if at[0] < moves else ("1", "2", 3)
        assert registry.aliases(s)["champion"] == champion, at
        history = [("promoted", "1", None), ("promoted", "2", "1"), ("rolled_back", "1", "2")][:n]
        assert recovered(registry, s) == ({"champion": champion, "previous": other}, {champion: "Production", other: "Archived"}, history, champion), at

def test_a_refusal_that_was_killed_is_decided_again(registry):
    for k in (1, 2): # the line in the history, the tag
        s = registry.world(f"killed-refusal-{k}", 1, "weak")
        assert registry.crew((s, {"do": "promote", "die": [k, "before"]})) == ([9], [])
        assert not p.run_gate(s, ROWS)[0].promoted and registry.tags(s, 2)["gate"] == "refused"
        assert registry.aliases(s) == {"champion": "1", "challenger": "2"} and {("refused", "2", "1")} == set(made(s)[1:])

# Races

@pytest.mark.parametrize("champions", [0, 1])
def test_two_processes_decide_at_once(registry, champions):
    s, here = registry.world(f"race-{champions}", champions, "strong"), []
    v, old = str(champions + 1), str(champions) if champions else None
    lock = filelock.FileLock(Workspace(s.paths.workspace).root/".promote.lock")
    lock.acquire() # both have judged before either may act
    def one_more(): here.append(1); len(here) == 2 and lock.release()
    ended, said = registry.crew((s, {"do": "race"}), (s, {"do": "race"}), each_ready=one_more)
    assert (ended, len(here), sorted(k for a in said for k in a)) == ([0, 0], 2, ["done", "error"])
    assert min(said, key=list)["done"] and max(said, key=list)["error"].startswith(f"the champion changed from {old} to {v}")
    assert registry.aliases(s) == {"champion": v} | ({"previous": old} if old else {}) and made(s)[champions:] == [("promoted", v, old)] and current(s) == v

@pytest.mark.parametrize("next_one", [p.deploy_champion, lambda s: p.run_gate(s, ROWS), p.rollback], ids=["deploy_champion", "run_gate", "rollback"])
def test_a_promotion_is_completed_under_the_lock(registry, monkeypatch, request, next_one):
    "Else it may be completed by two at once: while one process is between alias and history, another would write the same line again."
    s = registry.world(f"lock-{request.node.callspec.id}", 1, "strong")
    real, held = p._follow_up, []
    def cut(*a): raise KeyboardInterrupt
    monkeypatch.setattr(p, "_follow_up", cut)
    with pytest.raises(KeyboardInterrupt): p.run_gate(s, ROWS)
    registry.challenger(s, "weak")
    def follow_up(*a):
        with open(Workspace(s.paths.workspace).root/".promote.lock") as f:
            try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError: held.append(True)
            else: held.append(False); fcntl.flock(f, fcntl.LOCK_UN)
        return real(*a)
    monkeypatch.setattr(p, "_follow_up", follow_up)
    next_one(s)
    assert held and all(held) and made(s)[:2] == [("promoted", "1", None), ("promoted", "2", "1")]

# Deciding, deploying, taking back

def test_a_worse_and_an_equal_challenger_are_refused_and_every_number_is_kept(registry):
    s = registry.world("refused", 0, "strong")
    assert p.run_gate(s, ROWS)[0].promoted
    for v, which in (("2", "weak"), ("3", "strong")):
        registry.challenger(s, which)
        decision, result = p.run_gate(s, ROWS)
        assert (decision.verdict, decision.exit_code, result["champion"], result["replaced"]) == ("refused", 1, "1", None)
        assert registry.aliases(s) == {"champion": "1", "challenger": v} and registry.tags(s, v)["gate"] == "refused"
    assert made(s) == [("promoted", "1", None), ("refused", "2", "1"), ("refused", "3", "1")]
    record = p.read_history(Workspace(s.paths.workspace))[-1]
    assert record["id"] == result["record"] and record["checks"] == result["checks"] and (record["data_hash"], record["git_sha"]) == ("md5:0", "abc")
    assert [c["verdict"] for c in record["checks"]] == ["pass"]*3 + ["fail", "note"] # two floors, baseline, champion, drift

def test_what_else_refuses(registry):
    m, model = p.load_version(registry.client, registry.settings("seed"), "2")
    gate = lambda **kw: registry.settings("seed").gate_for("cdnow").model_copy(update=kw)
    for drift, report, good in (("block", "retrain", 0), ("block", None, 0), ("block", "warn", 1), ("warn", "retrain", 1), ("ignore", "retrain", 1)):
        assert p.decide(m, model, None, ROWS, gate(drift=drift), report and {"level": report}).promoted == bool(good), (drift, report)
    for nothing in ({}, {"baseline_log_loss": None}, {"baseline_log_loss": float("nan")}): assert not p.decide(msgspec.structs.replace(m, metrics=nothing), model, None, ROWS, gate()).promoted
    assert not p.decide(m, model, (msgspec.structs.replace(m, features=m.features[::-1]), model), ROWS, gate(beat_champion=[])).promoted
    assert not p.decide(m, model, None, ROWS, gate(floors=[], beat_baseline=[])).promoted

def test_nobody_to_judge_or_to_deploy(registry):
    s = registry.world("nobody")
    for f in (lambda: p.deploy_champion(s), lambda: p.run_gate(s, ROWS), lambda: p.rollback(s), lambda: p.rollback(s, to="1")): refused(f)
    assert registry.state(s) == ({}, {}, [], None)

def test_rollback_drill(registry):
    s = registry.world("drill", 3, "strong")
    champion = lambda: (registry.aliases(s), registry.stages(s), current(s))
    r = p.rollback(s, why="drill")
    assert (r["version"], r["replaces"], r["why"]) == ("2", "3", "drill")
    assert champion() == ({"champion": "2", "previous": "3", "challenger": "4"}, {"1": "Archived", "2": "Production", "3": "Archived", "4": "Staging"}, "2")
    p.rollback(s, to="1")
    assert champion() == ({"champion": "1", "previous": "2", "challenger": "4"}, {"1": "Production", "2": "Archived", "3": "Archived", "4": "Staging"}, "1")
    p.rollback(s) # without `to`: what the present champion took the place of
    assert current(s) == "2" and made(s)[3:] == [("rolled_back", "2", "3"), ("rolled_back", "1", "2"), ("rolled_back", "2", "1")]
    assert p.run_gate(s, ROWS)[0].promoted and made(s)[-1] == ("promoted", "4", "2")

@pytest.mark.parametrize("champions, to, says", [(1, None, "nothing to roll back to"), (2, "9", "version 9 is not in the registry; it has 1, 2, 3"), (2, "2", "version 2 is the champion already"), (2, "x", "version x is not in"), (2, "3", "3")])
def test_a_rollback_that_cannot_be_changes_nothing(registry, request, champions, to, says):
    s = registry.world(f"norollback-{request.node.callspec.id}", champions, "weak") # version 3 was never champion: no gate has seen it
    before = registry.state(s)
    refused(lambda: p.rollback(s, to=to), says)
    assert registry.state(s) == before

def test_deploying_twice_is_deploying_once_and_old_bundles_stay(registry):
    s = registry.world("deploy", 1, "strong")
    bundles = Workspace(s.paths.workspace).bundles
    first = tree(bundles/"1")
    assert p.deploy_champion(s) == bundles/"1" and tree(bundles/"1") == first
    assert p.run_gate(s, ROWS)[0].promoted and current(s) == "1" # the gate decides, deploying is another step
    assert p.deploy_champion(s) == p.deploy_champion(s) == bundles/"2"
    assert tree(bundles/"1") == first and sorted(f.name for f in bundles.iterdir() if not f.name.startswith(".")) == ["1", "2", "current"]

@pytest.mark.parametrize("harm", [lambda f: f.write_bytes(f.read_bytes()[:-1] + b"\0"), lambda f: f.write_bytes(b""), lambda f: f.unlink()], ids=["tampered", "empty", "missing"])
def test_another_file_than_the_registered_one_is_not_used(registry, request, harm):
    s = registry.world(f"harm-{request.node.callspec.id}", 1)
    import mlflow
    with t.hushed(): mine = shutil.copytree(mlflow.artifacts.download_artifacts(registry.seed["strong"].source), registry.root/f"store-{request.node.callspec.id}")
    v = registry.challenger(s, "strong", source=Path(mine).as_uri())
    p.load_version(registry.client, s, v)
    harm(Path(mine)/"model.onnx")
    before = registry.state(s)
    for f in (lambda: p.load_version(registry.client, s, v), lambda: p.run_gate(s, ROWS), lambda: p.rollback(s, to=v)):
        refused(f)
    assert registry.state(s) == before
    with t.hushed(): registry.client.set_registered_model_alias(s.train.model_name, "champion", v) # by hand
    refused(lambda: p.deploy_champion(s))
    assert current(s) == "1"
