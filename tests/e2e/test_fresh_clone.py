"A newcomer's way: clone, `make run`, ask; then README's examples. Minutes, so `make e2e` and not `make test`. (Killed runs are in test_pipeline.py.)"
import json, os, re, signal, subprocess, sys, time
from pathlib import Path
import httpx, pytest
from deadlines import allow
from paths import ROOT
from serving import free_port

def bare_env(port):
    "Nothing from the shell but where programs and the home folder are."
    return {"PATH": os.environ["PATH"].replace(f"{Path(sys.executable).parent}:", ""), "HOME": os.environ["HOME"], "LANG": "C.UTF-8", "CHURN_SERVE_PORT": str(port)}

class MakeRun:
    "`make run` in a process group of its own."
    def __init__(self, top, port, log):
        self.url, self.log, self.began = f"http://127.0.0.1:{port}", log, time.monotonic()
        with open(log, "w") as out: self.p = subprocess.Popen(["make", "run"], cwd=top, env=bare_env(port), stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    def wait_ready(self, seconds):
        while time.monotonic() < self.began + allow(seconds):
            assert self.p.poll() is None, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200: return round(time.monotonic() - self.began)
            except httpx.TransportError: time.sleep(.2)
        raise TimeoutError(self.log.read_text())
    def stop(self, sig=signal.SIGTERM):
        os.killpg(self.p.pid, sig)
        self.p.wait(allow(30))

@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    top = tmp_path_factory.mktemp("newcomer")/"churn_nb"
    subprocess.run(["git", "clone", "-q", ROOT, top], check=True)
    return top

@pytest.fixture(scope="module")
def story(clone, tmp_path_factory):
    "What happened in `make run`; the API is asked. (Two runs on the same data are compared in test_pipeline.py.)"
    run = MakeRun(clone, free_port(), log := tmp_path_factory.mktemp("logs")/"first")
    try: told = {"seconds": run.wait_ready(1500), "model": httpx.get(f"{run.url}/model").json(), "log": log.read_text(),
                 "answers": [ask(command, run.url) for command, _ in readme_examples()]}
    finally: run.stop()
    print(f"make run: served after {told['seconds']} s\n{told['log']}")
    return told

def readme_examples():
    "(curl command, answer) as README shows them."
    text = re.search(r"```console\n(.*?)```", (ROOT/"README.md").read_text(), re.S)[1]
    return [tuple(block.strip().rsplit("\n", 1)) for block in re.split(r"^\$ ", text, flags=re.M)[1:]]

def ask(command, url):
    out = subprocess.run(["bash", "-c", command.replace("http://127.0.0.1:8000", url)], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)

def test_the_answers_are_those_in_readme(story):
    shown = [json.loads(a) for _, a in readme_examples()]
    assert len(shown) >= 2
    for given, said in zip(story["answers"], shown):
        assert given.keys() == said.keys()
        if "probability" in said: assert abs(given.pop("probability") - said.pop("probability")) < 1e-4
        assert given == said

def test_the_first_run_serves_version_1(story):
    assert "version 1 promoted" in story["log"] and story["model"]["version"] == "1"

def test_the_clone_stays_clean(clone, story):
    assert subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout == ""
