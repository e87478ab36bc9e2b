"The real entry point of every command: a process of its own does what a forked one does (most tests fork them from support/warm.py)."
import os, re, subprocess, sys
import pandas as pd, pytest
from deadlines import allow
from paths import CHURN, PYTHON, REAL_CHURN, SUPPORT, own_environment
from serving import put_live

def prepare(command, ws, tmp_path, copied):
    "Arguments of a command, with something to work on."
    rows = [f"{18 + 7*i % 60},{3.5*(i % 11)},{'' if i % 3 else 1},{'yes' if i % 5 < 2 else 'no'}" for i in range(120)]
    (tmp_path/"rows.csv").write_text("\n".join(["age,usage_minutes,gap,left", *rows, "old,1,,no"]) + "\n")
    if command in ("push", "materialize"): ws = copied("few", to=f"{ws.name}-store").paths.workspace
    else: put_live(ws)
    events = tmp_path/"events.csv"
    if command == "push":
        customer = pd.read_parquet(ws/"feast"/"base.parquet").customer_id.iloc[0]
        events.write_text(f"event_id,customer_id,event_timestamp,amount\n7000001,{customer},1998-06-30T12:00:00Z,10.5\n")
    given = {"describe": [tmp_path/"rows.csv", "--label", "left", "--out", ws/"dataset.toml"], "run": ["-p", "custommers=3"], "step": ["05_dance"], "serve": ["--host", "no such host"],
             "triton": [ws/"models"], "push": [events], "drift": [tmp_path/"rows.csv", tmp_path/"rows.csv"], "replay": ["--change", "stormy"], "score": [tmp_path/"rows.csv", ws/"scored.csv", "--reasons", "1"]}
    of_workspace = command not in ("describe", "deploy-hook")
    return [command, *given.get(command, ["install", "--help"] if command == "deploy-hook" else []), *(["--workspace", ws] if of_workspace else [])], ws

EXIT = {"describe": 0, "run": 2, "step": 2, "serve": 2, "triton": 0, "promote": 2, "rollback": 2, "history": 0, "push": 0, "materialize": 0, "drift": 0, "uplift": 2, "replay": 2, "retrain": 2, "score": 0,
        "doctor": 0, "deploy-hook": 0}

def test_every_command_is_here():
    listed = subprocess.run([REAL_CHURN, "--help"], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^│ ([a-z][a-z-]+)  ", listed, re.M) == list(EXIT)

@pytest.mark.parametrize("command", [c for c in EXIT if c != "retrain"]) # which starts a run: test_pipeline.py
def test_a_command_answers_forked_as_by_itself(command, tmp_path, copied):
    said = {}
    for kind, program, env in (("itself", REAL_CHURN, own_environment()), ("forked", CHURN, None)):
        args, ws = prepare(command, tmp_path/kind, tmp_path, copied)
        done = subprocess.run([program, *map(str, args)], capture_output=True, text=True, env=env, timeout=allow(120))
        same = lambda text, ws=ws: re.sub(r"\d+(\.\d+)? (s|ms|MB|GB|of)\b|\d{4}-\d\d-\d\dT[\d:.+Z]+", "N", text.replace(str(ws), "WS")) # what differs between any two calls
        said[kind] = done.returncode, same(done.stdout), same(done.stderr)
    assert said["forked"] == said["itself"] and said["itself"][0] == EXIT[command], said

PROGRAMS = {"arguments": ["-c", "import sys, os; print(sys.argv, os.getcwd(), __name__, sys.path[0], sys.stdin.read())", "a", "b c"], "exit code": ["-c", "import sys; sys.exit(3)"],
            "a sentence": ["-c", "import sys; sys.exit('no')"], "an error": ["-c", "1/0"], "a signal": ["-c", "import os; os.kill(os.getpid(), 9)"], "a module": ["-m", "json.tool", "--compact"],
            "a path": ["-c", "import raw_http; print(raw_http.__file__)"], "its own": ["-c", "import subprocess as s, sys; s.run([sys.executable, '-c', 'import sys; print(sys.argv, flush=True)', 'x'])"]}

@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_answers_forked_as_by_itself(name, tmp_path):
    said = []
    for python in (sys.executable, PYTHON):
        done = subprocess.run([python, *PROGRAMS[name]], input='{"x": 1}', capture_output=True, text=True, cwd=tmp_path, env=own_environment(PYTHONPATH=str(SUPPORT)) if python is sys.executable
                              else {**os.environ, "PYTHONPATH": str(SUPPORT)}, timeout=allow(60))
        said.append((done.returncode, done.stdout, done.stderr.splitlines()[-1:]))
    assert said[0] == said[1] and said[0] != (0, "", [])
