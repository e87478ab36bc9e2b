"""`churn deploy-hook`: real git, a real bare repository with the hook as written, a real API process; what is pushed is a small project whose training takes no time.

Fakes, named as such: `systemctl`, which starts the unit's ExecStart and remembers its pid; and in the pushed project a `churn` whose pipeline and registry are two functions over files."""
import json, os, shutil, signal, subprocess, sys
from pathlib import Path
import httpx, pytest
from churn_nb.ops.git_deploy import delete_old_releases, switch_release
from deadlines import allow
from serving import free_port

pytestmark = pytest.mark.usefixtures("measured")
from paths import ROOT, SUPPORT

BIN = Path(sys.executable).parent

SYSTEMCTL = f'''#!{sys.executable}
"A fake of systemd's command: `restart UNIT` runs what the unit says, after it has stopped what ran before."
import os, shlex, signal, subprocess, sys, time
from pathlib import Path
home = Path(os.environ["FAKE_SYSTEMD"])
assert sys.argv[1:] == ["restart", "churn-api.service"], sys.argv
unit = dict(line.split("=", 1) for line in (home/"churn-api.service").read_text().splitlines() if "=" in line)
pid = home/"pid"
try: os.kill(int(pid.read_text()), signal.SIGTERM)
except (FileNotFoundError, ProcessLookupError): pass
time.sleep(.5)
env = {{**os.environ, **dict(line.split("=", 1) for line in (home/"env").read_text().splitlines())}} if (home/"env").exists() else dict(os.environ)
p = subprocess.Popen(shlex.split(unit["ExecStart"]), cwd=unit["WorkingDirectory"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
pid.write_text(str(p.pid))
'''
# What the pushed project has as `churn`: the real command, with fakes of pipeline and registry. `model` in the project: the model's bias, or "refused".
CHURN = f'''#!{sys.executable}
import json, sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, {str(SUPPORT)!r})
import churn_nb.cli.app
from churn_nb.registry.bundle import switch_current
from serving import put_live
top = Path(__file__).parents[2]
commit, does = top.name, (top/"model").read_text().strip()
def log(s): return [json.loads(x) for x in f.read_text().splitlines()] if (f := Path(s.paths.workspace)/"fake.jsonl").exists() else []
def note(s, **entry):
    Path(s.paths.workspace).mkdir(parents=True, exist_ok=True)
    with open(Path(s.paths.workspace)/"fake.jsonl", "a") as f: f.write(json.dumps(entry) + "\\n")
def run_pipeline(s, given, progress):
    progress("a training by the fake pipeline")
    assert Path(s.paths.notebooks).resolve() == top/"nbs", f"the notebooks of {{s.paths.notebooks}}, not those that were pushed"
    if does == "refused": return SimpleNamespace(exit_code=1)
    v = str(1 + sum(e["action"] == "promoted" for e in log(s)))
    put_live(s.paths.workspace, v, float(does), git_sha=commit)
    note(s, action="promoted", version=v, git_sha=commit)
    return SimpleNamespace(exit_code=0)
def rollback(s, version, why):
    switch_current(Path(s.paths.workspace)/"bundle", version)
    note(s, action="rolled_back", version=version, git_sha="", why=why)
if sys.argv[1] != "serve": # which imports neither
    import churn_nb.ops.pipeline_runner as p, churn_nb.registry.deployment as r
    p.run_pipeline, r.decision_history, r.rollback = run_pipeline, log, rollback
if (top/"broken").exists() and sys.argv[1] == "serve": sys.exit("the new code does not start")
churn_nb.cli.app.main()
'''

class Server:
    def __init__(self, here):
        self.home, self.bare, self.dev, self.port = here/"home", here/"shop.git", here/"dev", free_port()
        (here/"bin").mkdir()
        (here/"bin/systemctl").write_text(SYSTEMCTL)
        (here/"bin/systemctl").chmod(0o755)
        who = {f"GIT_{w}_{k}": v for w in ("AUTHOR", "COMMITTER") for k, v in (("NAME", "dev"), ("EMAIL", "dev@example.org"))}
        self.env = {"PATH": f"{here}/bin:/usr/bin:/bin", "HOME": str(here), "FAKE_SYSTEMD": str(self.home), **who}
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", self.bare], check=True)
        (self.dev/".github").mkdir(parents=True)
        shutil.copy(ROOT/".github/smoke.py", self.dev/".github")
        (self.dev/".github/smoke.py").write_text((self.dev/".github/smoke.py").read_text().replace("float(seconds)", "8"))
        shutil.copy(ROOT/"settings.ini", self.dev)
        (self.dev/"churn").write_text(CHURN)
        (self.dev/".gitignore").write_text(".venv\n")
        (self.dev/"Makefile").write_text('setup data:\n\t@mkdir -p .venv/bin; cp churn .venv/bin/churn; chmod +x .venv/bin/churn\n')
        self.git("init", "-q", "-b", "main")
        self.git("remote", "add", "origin", self.bare)
        self.install = lambda *more: subprocess.run([BIN/"churn", "deploy-hook", "install", self.bare, "--home", self.home, "--port", str(self.port), *more], capture_output=True, text=True, timeout=allow(300))
    def git(self, *args): return subprocess.run(["git", *args], cwd=self.dev, env=self.env, check=True, capture_output=True, text=True, timeout=allow(600))
    def push(self, **files):
        for name, text in files.items(): (self.dev/name).write_text(text)
        self.git("add", "-A")
        self.git("commit", "-qm", json.dumps(files), "--allow-empty")
        return self.git("push", "-qf", "origin", "main").stderr.replace("remote: ", "").strip().splitlines()
    def head(self): return self.git("rev-parse", "HEAD").stdout.strip()
    def version(self): return httpx.get(f"http://127.0.0.1:{self.port}/readyz", headers={"X-API-Key": "k"*20}, timeout=allow(30)).json()["model_version"]
    def stop(self):
        if (f := self.home/"pid").exists():
            try: os.kill(int(f.read_text()), signal.SIGTERM)
            except ProcessLookupError: pass

@pytest.fixture
def server(tmp_path):
    s = Server(tmp_path)
    yield s
    s.stop()

def test_a_push_deploys_and_an_older_commit_rolls_back(server):
    "A refused or failed deployment leaves the running version in place."
    done = server.install()
    assert done.returncode == 0 and "systemctl link" in done.stdout, done.stderr
    (server.home/"env").write_text("CHURN_SERVE_API_KEYS=" + "k"*20 + "\n")
    said = server.push(model="0.1")
    first = server.head()
    assert said[-1].strip() == f"deployed: version 1, code of {first[:7]}" and server.version() == "1", said
    about = httpx.get(f"http://127.0.0.1:{server.port}/model", headers={"X-API-Key": "k"*20}, timeout=allow(30)).json()
    assert about["git_sha"] == first and httpx.get(f"http://127.0.0.1:{server.port}/model", timeout=allow(30)).status_code == 401
    said = server.push(model="refused")
    assert said[-1].strip() == "not deployed: the gate refused; version 1 goes on" and server.version() == "1"
    assert (server.home/"current").resolve().name == first
    said = server.push(model="0.2")
    second = server.head()
    assert said[-1].strip() == f"deployed: version 2, code of {second[:7]}" and server.version() == "2"
    said = server.push(model="0.3", broken="")
    assert "putting back what was there" in " ".join(said) and said[-1].strip().startswith("not deployed: ") and said[-1].strip().endswith("version 2 answers again"), said
    assert server.version() == "2" and (server.home/"current").resolve().name == second
    server.git("reset", "-q", "--hard", first)
    said = server.git("push", "-qf", "origin", "main").stderr.replace("remote: ", "").strip().splitlines()
    assert said[-1].strip() == f"deployed: version 1, code of {first[:7]}" and "a training by the fake pipeline" not in " ".join(said) and server.version() == "1", said

def test_other_branches_and_broken_commits_are_not_deployed(server):
    server.install()
    server.push(model="0.1")
    server.git("push", "-q", "origin", "main:try")
    assert len(list((server.home/"releases").iterdir())) == 1
    said = server.push(Makefile="setup data:\n\t@echo the disk is full; exit 1\n")
    assert "could not be set up; what was there goes on" in " ".join(said) and "the disk is full" in " ".join(said) and server.version() == "1"

@pytest.mark.parametrize("spoil, says", [
    (lambda s: shutil.rmtree(s.bare), "git init --bare"), (lambda s: (s.bare/"hooks/post-receive").write_text("#!/bin/sh\n"), "another hook"),
], ids=["no repository", "another hook"])
def test_what_cannot_be_installed_changes_nothing(server, spoil, says):
    spoil(server)
    done = server.install()
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1 and not server.home.exists()

@pytest.mark.parametrize("name", ["deploy.json", "churn-api.service"])
def test_a_foreign_file_in_the_home_folder_is_kept(server, name):
    server.home.mkdir()
    (server.home/name).write_text("mine\n")
    done = server.install()
    assert done.returncode == 2 and name in done.stderr and done.stderr.count("\n") == 1
    assert (server.home/name).read_text() == "mine\n" and [*server.home.iterdir()] == [server.home/name] and not (server.bare/"hooks/post-receive").exists()
    (server.home/name).unlink()
    assert server.install().returncode == 0 == server.install("--branch", "other").returncode # its own are replaced

def test_only_releases_are_deleted(tmp_path):
    "What has no commit for a name is not counted, either."
    commits, foreign = [c*40 for c in "abcde"], ["2024", "cafe", "backup"]
    for i, name in enumerate([*foreign, *commits]):
        (tmp_path/"releases"/name).mkdir(parents=True)
        os.utime(tmp_path/"releases"/name, (100 - i, 100 - i))
    (tmp_path/"releases"/("0"*40)).write_text("a file")
    switch_release(tmp_path, commits[4])
    delete_old_releases(tmp_path, keep=2)
    assert {d.name for d in (tmp_path/"releases").iterdir()} == {*foreign, "0"*40, *commits[:2], commits[4]}

def test_the_unit_is_one_that_systemd_understands(server, tmp_path):
    if not shutil.which("systemd-analyze"): pytest.skip("NOT RUN: the unit file; systemd-analyze is missing")
    server.install()
    (server.home/"current/.venv/bin").mkdir(parents=True)
    (server.home/"current/.venv/bin/churn").symlink_to(BIN/"churn")
    done = subprocess.run(["systemd-analyze", "verify", server.home/"churn-api.service"], capture_output=True, text=True, timeout=allow(60))
    assert done.returncode == 0 and "churn-api" not in done.stderr, done.stderr
