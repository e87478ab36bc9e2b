"Starts the process of warm.py for a test run, and says to `churn`, to Jupyter and to tests where it is."
import json, os, shutil, signal, subprocess, sys, tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOCKET, PROGRAMS = "WARM_TEST_PROCESS", {"churn": "WARM_TEST_CHURN", "python": "WARM_TEST_PYTHON", "worker": "WARM_TEST_WORKER"} # environment variables

def start(config):
    "Of the controller, not of a worker; workers and what they start inherit the environment."
    if SOCKET in os.environ: return
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    client = [sys.executable, "-S", str(HERE/"forked.py")]
    (spec := folder/"jupyter"/"kernels"/"python3").mkdir(parents=True)
    (spec/"kernel.json").write_text(json.dumps({"argv": [*client, "kernel", "-f", "{connection_file}"], "display_name": "Python 3 (forked)", "language": "python"}))
    for kind in PROGRAMS:
        (folder/kind).write_text(f"#!/bin/sh\nexec {' '.join(client)} {kind} \"$@\"\n")
        (folder/kind).chmod(0o755)
    os.environ |= {SOCKET: str(folder/"socket"), "JUPYTER_PATH": str(folder/"jupyter"), **{v: str(folder/kind) for kind, v in PROGRAMS.items()}}
    with open(folder/"log", "wb") as log:
        process = subprocess.Popen([sys.executable, HERE/"warm.py", folder/"socket"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    config._warm_process = process, folder

def fork_workers(config):
    "xdist's workers are forked as well; where coverage is measured it must see their imports, so they make them."
    if not config.option.cov_source: config.option.tx = [f"popen//python={os.environ[PROGRAMS['worker']]}"]*config.option.numprocesses

def stop(config):
    process, folder = getattr(config, "_warm_process", (None, None))
    if process is None: return
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)
