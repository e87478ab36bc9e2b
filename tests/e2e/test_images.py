"The Dockerfile's two images, built and run: non-root, read-only, with the model from a volume or baked in. On stand-ins for their base images (containers.py)."
import concurrent.futures, json, os, shutil, signal, subprocess, sys, threading, time
from pathlib import Path
import httpx, numpy as np, pandas as pd, pytest, redis, yaml
from deadlines import allow
from paths import ROOT
from containers import LIMITS, PYTHON, TRITON, Container, build_target, can_not, image, podman 
from churn_nb.core.manifest import Store 
from churn_nb.features import feature_names 
from churn_nb.feature_store.online import FeastOnline 
from serving import free_port, probability, put_live 

ROW = {"age": 42, "usage_minutes": 310.5, "gap": None}
why = can_not()
pytestmark = pytest.mark.skipif(bool(why), reason=f"NOT RUN: images; {why}")
LOCKED = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges")
TRITON_ROOM = ("--shm-size", "256m") # Triton's Python backend, which is the stand-in's, talks over shared memory

@pytest.fixture(scope="module")
def api():
    began = time.monotonic()
    build_target("api", tag := "localhost/churn-api:test")
    print(f"\nimage api: {image(tag)['Size']/1e6:.0f} MB on {PYTHON}, built in {time.monotonic() - began:.0f} s")
    return tag

@pytest.fixture(scope="module")
def triton():
    began = time.monotonic()
    build_target("triton", tag := "localhost/churn-triton:test")
    print(f"\nimage triton: {image(tag)['Size']/1e6:.0f} MB on {TRITON}, a stand-in for NVIDIA's, built in {time.monotonic() - began:.0f} s")
    return tag

def bundle(tmp_path, *versions):
    for v in versions or "1": put_live(tmp_path, v, bias=.1*int(v))
    for d in (tmp_path, tmp_path/"bundle", *(tmp_path/"bundle").rglob("*")): d.chmod(0o755 if d.is_dir() else 0o644)
    return ("-v", f"{tmp_path}/bundle:/srv/churn/work/bundle:ro")

def inside(c, *command): return podman("exec", c.name, *command, ok=False)
right = lambda v, row=ROW: probability([[row["age"], row["usage_minutes"], float("nan")]], .1*int(v))[0]

class Load:
    "Requests one after another in four threads; (status, model_version, backend, probability) of each."
    def __init__(self, url):
        self.url, self.seen, self.go = url, [], True
        self.threads = [threading.Thread(target=self.ask, daemon=True) for _ in range(4)]
        for t in self.threads: t.start()
    def ask(self):
        with httpx.Client(base_url=self.url, timeout=allow(30)) as c:
            while self.go:
                try: r = c.post("/predict", json=ROW)
                except httpx.TransportError as e: self.seen.append((0, type(e).__name__, None, None)); time.sleep(.05); continue
                self.seen.append((r.status_code, r.json().get("model_version"), r.headers.get("x-backend"), r.json().get("probability")))
    def stop(self):
        self.go = False
        for t in self.threads: t.join(allow(40))
        return self.seen
    def until(self, done, seconds=90):
        end = time.monotonic() + allow(seconds)
        while not done(self.seen[-8:]) and time.monotonic() < end: time.sleep(.1)
        assert done(self.seen[-8:]), self.seen[-8:]

# The image

def test_what_is_in_the_image(api):
    about = image(api)
    assert about["Size"] <= 450e6, f"{about['Size']/1e6:.0f} MB"
    config = about["Config"]
    assert config["User"] == "10001:10001" and config["Entrypoint"] == ["churn"] and config["Cmd"] == ["serve"]
    health = about.get("Healthcheck") or config["Healthcheck"]
    assert health["Test"][0] == "CMD", "the exec form needs no shell"
    run = lambda *c: podman("run", "--rm", "--network", "none", *LIMITS, "--entrypoint", c[0], api, *c[1:], ok=False)
    bill = json.loads(run("cat", config["Labels"]["churn_nb.sbom"]).stdout)
    names = {c["name"].lower() for c in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX" and {"fastapi", "onnxruntime", "churn-nb"} <= names
    assert not names & {"pandas", "scikit-learn", "mlflow", "feast", "pip", "tritonclient"}, "what answers requests, and no more"
    for program in ("gcc", "cc", "make", "git", "pip", "pip3", "curl"): assert run("sh", "-c", f"command -v {program}").returncode, program
    assert run("sh", "-c", "ls /srv/churn/work/bundle").stdout.split() == ["README"] and run("sh", "-c", "find / -xdev -name '*.ipynb' -o -xdev -name '.git'").stdout == ""
    assert run("sh", "-c", "ls -d ~root/.cache/pip /tmp/tools /src").returncode

def test_a_container_without_api_keys_refuses_to_serve(api):
    done = podman("run", "--rm", "--network", "none", *LIMITS, api, ok=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith("time=")] # Podman's: no systemd here
    assert done.returncode == 2 and len(said) == 1 and "CHURN_SERVE_API_KEYS" in said[0]

def test_a_locked_container_predicts_and_swaps_models_under_load(api, tmp_path):
    volume = bundle(tmp_path)
    with Container(api, "serve", port=free_port(), options=(*LOCKED, *volume)) as c:
        assert c.ready()["model_version"] == "1"
        answer = httpx.post(f"{c.url}/predict", json=ROW).json()
        assert abs(answer["probability"] - right(1)) < 1e-6 and answer["churn_risk"] == int(right(1) >= .5)
        assert inside(c, "id", "-u").stdout.strip() == "10001" and inside(c, "touch", "/srv/churn/x").returncode and inside(c, "touch", "/opt/churn/x").returncode
        health = image(api).get("Healthcheck") or image(api)["Config"]["Healthcheck"]
        assert inside(c, *health["Test"][1:]).returncode == 0
        load = Load(c.url)
        load.until(lambda last: len(last) == 8)
        bundle(tmp_path, "2") # a volume: the link is switched from outside
        load.until(lambda last: {v for _, v, *_ in last} == {"2"})
        seen = load.stop()
        assert {s for s, *_ in seen} == {200} and {v for _, v, *_ in seen} == {"1", "2"}
        assert all(abs(p - right(v)) < 1e-6 for _, v, _, p in seen), "an answer of a version is that version's"
        assert c.stop() == 0
        (tmp_path/"bundle"/"2"/"model.onnx").write_bytes(b"spoilt")
    with Container(api, "serve", port=free_port(), options=(*LOCKED, *volume)) as c:
        time.sleep(.1)
        end = time.monotonic() + allow(60)
        while time.monotonic() < end:
            try: r = httpx.get(f"{c.url}/readyz"); break
            except httpx.TransportError: time.sleep(.2)
        assert r.status_code == 503 and inside(c, *health["Test"][1:]).returncode, "unhealthy, and says why"

def test_a_request_under_way_is_answered_before_the_container_ends(api, tmp_path):
    with Container(api, "serve", port=free_port(), options=(*LOCKED, *bundle(tmp_path))) as c:
        c.ready()
        load = Load(c.url)
        load.until(lambda last: len(last) == 8)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            stopped = pool.submit(c.stop)
            time.sleep(2)
            seen = load.stop()
            assert stopped.result() == 0
        assert {s for s, *_ in seen if s} == {200}, "what was taken was answered; then connections are refused"
        assert {v for s, v, *_ in seen if not s} <= {"ConnectError", "RemoteProtocolError", "ReadError"}

def test_a_model_baked_in(tmp_path):
    context = tmp_path/"context"
    left_out = {".venv", ".git", ".bench", "work", "data", "nbs", ".hypothesis"} # at the top only: churn_nb/data is a room
    shutil.copytree(ROOT, context, ignore=lambda folder, names: left_out & {*names} if Path(folder) == ROOT else {"__pycache__"}, symlinks=True)
    bundle(context/"work", "3")
    tag = "localhost/churn-api:baked"
    build_target("api", tag, "--build-arg", "BUNDLE=work/bundle", "--build-arg", "MODEL_VERSION=3", "--build-arg", "GIT_SHA=abc1234", folder=context)
    labels = image(tag)["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == "3" and labels["org.opencontainers.image.revision"] == "abc1234"
    with Container(tag, "serve", port=free_port(), options=LOCKED) as c:
        assert c.ready()["model_version"] == "3" and abs(httpx.post(f"{c.url}/predict", json=ROW).json()["probability"] - right(3)) < 1e-6

# The scheduled jobs

CRON = {o["metadata"]["name"]: o["spec"]["jobTemplate"]["spec"]["template"]["spec"] for o in yaml.safe_load_all((ROOT/"k8s/base/jobs.yaml").read_text())}
WHERE = Store(entity="customer_id", feature_service="churn_v1_stored")

class Jobs:
    "A store in Redis as a training leaves it, and the volume of the jobs."
    def __init__(self, s, address, tmp_path):
        self.s, self.address, self.feast, self.volume = s, address, Path(s.paths.workspace)/"feast", tmp_path/"volume"
        self.ids = sorted(set(pd.read_parquet(self.feast/"base.parquet").customer_id))
        self.volume.mkdir()
        self.volume.chmod(0o777) # as fsGroup makes it
    def online(self): return FeastOnline(self.s).read(WHERE, feature_names(self.s), self.ids)
    def once(self, *what): return podman("run", "--rm", "--network", "host", *LIMITS, *LOCKED, *what, ok=False)
    def bring(self, api):
        "The init container, as it stands in jobs.yaml, with the features mounted where the API's image has them."
        first = CRON["churn-materialize"]["initContainers"][0]
        done = self.once("-v", f"{self.feast}:/srv/churn/work/feast:ro", "-v", f"{self.volume}:/volume", "--entrypoint", first["command"][0], api, *first["command"][1:], *first["args"])
        assert done.returncode == 0, done.stderr
    def run(self, image, *words):
        return self.once("-v", f"{self.volume}:/srv/churn/work", "-v", f"{ROOT}/settings.ini:/etc/churn/settings.ini:ro", "-e", "CHURN_SETTINGS=/etc/churn/settings.ini",
                         "-e", f"CHURN_STORES_ONLINE={self.address}", image, *words)

@pytest.fixture
def world(copied, redis_store, tmp_path): return Jobs(copied("few", stores__online=redis_store), redis_store, tmp_path)

def test_a_job_works_on_the_features_of_what_is_deployed(api, world, valkey):
    expected = world.online()
    world.bring(api)
    redis.Redis(port=valkey.port).flushdb()
    assert set(world.online()) == {None}
    done = subprocess.run([Path(sys.executable).parent/"churn", *CRON["churn-materialize"]["containers"][0]["args"], "--workspace", world.volume], capture_output=True, text=True,
                          env={**os.environ, "CHURN_STORES_ONLINE": world.address}, timeout=allow(300))
    assert (done.returncode, done.stdout) == (0, f"{len(world.ids)} customers as of 1998-07-01T00:00:00Z\n"), done.stderr
    assert world.online() == expected
    (kept := world.volume/"feast/kept").touch()
    world.bring(api)
    assert kept.exists(), "what came since stays ..."
    name = (world.feast/"project").read_text()
    (world.feast/"project").unlink()
    world.bring(api)
    assert kept.exists(), "an image without features takes nothing away"
    (world.feast/"project").write_text(name)
    (world.feast/"project").write_text("churn_00000000")
    world.bring(api)
    assert not kept.exists() and [p.name for p in world.volume.iterdir() if p.name.startswith("feast")] == ["feast"], "... until another model is deployed"

@pytest.mark.skipif("CHURN_E2E_JOBS" not in os.environ, reason="NOT RUN: the image of the scheduled jobs; with everything in it, it takes many minutes to build: set CHURN_E2E_JOBS=1")
def test_the_jobs_run_from_their_image(api, world, valkey):
    began = time.monotonic()
    build_target("api", jobs := "localhost/churn-jobs:test", "--build-arg", "EXTRA=pipeline", timeout=allow(3600))
    print(f"\nimage of the jobs: {image(jobs)['Size']/1e6:.0f} MB on {PYTHON}, built in {time.monotonic() - began:.0f} s")
    expected = world.online()
    assert world.run(jobs, "materialize").returncode == 2, "an empty volume: nothing to compute from"
    world.bring(api)
    redis.Redis(port=valkey.port).flushdb()
    done = world.run(jobs, *CRON["churn-materialize"]["containers"][0]["args"])
    assert (done.returncode, done.stdout) == (0, f"{len(world.ids)} customers as of 1998-07-01T00:00:00Z\n"), done.stderr
    assert world.online() == expected
    done = world.run(jobs, *CRON["churn-drift"]["containers"][0]["args"])
    said = [line for line in done.stderr.splitlines() if not line.startswith("time=")]
    assert done.returncode == 2 and "no champion in the registry" in said[-1], done.stderr
    rng = np.random.default_rng(3)
    for name, shift in (("then", 0), ("now", 1)): pd.DataFrame(rng.normal(shift, 1, (2000, 2)), columns=["a", "b"]).to_csv(world.volume/f"{name}.csv", index=False)
    done = world.run(jobs, "drift", "/srv/churn/work/then.csv", "/srv/churn/work/now.csv", "--json", "/srv/churn/work/drift.json")
    assert done.returncode == 3 and done.stdout.splitlines()[-1] == "drift: retrain" and json.loads((world.volume/"drift.json").read_text())["level"] == "retrain", done.stderr

# The API beside Triton

def test_triton_scores_and_a_new_version_reaches_it(triton, tmp_path):
    with Container(triton, "serve", port=free_port(), options=(*LOCKED, *TRITON_ROOM, *bundle(tmp_path))) as c:
        c.ready()
        load = Load(c.url)
        load.until(lambda last: len(last) == 8 and {b for *_, b, _ in last} == {"triton"})
        bundle(tmp_path, "2")
        load.until(lambda last: {(v, b) for _, v, b, _ in last} == {("2", "triton")})
        seen = load.stop()
        assert {s for s, *_ in seen} == {200} and all(abs(p - right(v)) < 1e-5 for _, v, _, p in seen), c.log()
        assert inside(c, "id", "-u").stdout.strip() == "10001"
        load = Load(c.url)
        load.until(lambda last: len(last) == 8)
        with concurrent.futures.ThreadPoolExecutor() as pool: # SIGTERM: the API first, so that no answer is lost
            stopped = pool.submit(c.stop)
            time.sleep(3)
            seen = load.stop()
            assert stopped.result() == 0, c.log()
        assert {s for s, *_ in seen if s} == {200} and {b for s, _, b, _ in seen if s} == {"triton"}

@pytest.mark.parametrize("part", ["tritonserver", "churn serve"])
def test_either_one_dying_ends_the_container(triton, tmp_path, part):
    with Container(triton, "serve", port=free_port(), options=(*LOCKED, *TRITON_ROOM, *bundle(tmp_path))) as c:
        c.ready()
        pids = [line.split(None, 1) for line in podman("top", c.name, "hpid", "args").stdout.splitlines()[1:]]
        pid = next(int(p) for p, args in pids if part in args and "run" not in args.split()[:2])
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + allow(60)
        while c.state()["Running"] and time.monotonic() < end: time.sleep(.1)
        assert not c.state()["Running"] and c.state()["ExitCode"] == 128 + 9, c.log()
        assert "ended with exit code 137: the container ends" in c.log()
