"Starts the process of warm.py for a test run, and says to `churn` and to Jupyter where it is."
import json, os, shutil, signal, subprocess, sys, tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOCKET, COMMAND = "WARM_TEST_PROCESS", "WARM_TEST_CHURN" # environment variables

def start(config):
    "Of the controller, not of a worker; workers and what they start inherit the environment."
    if SOCKET in os.environ: return
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    client = [sys.executable, "-S", str(HERE/"forked.py")]
    (spec := folder/"jupyter"/"kernels"/"python3").mkdir(parents=True)
    (spec/"kernel.json").write_text(json.dumps({"argv": [*client, "kernel", "-f", "{connection_file}"], "display_name": "Python 3 (forked)", "language": "python"}))
    (folder/"churn").write_text(f"#!/bin/sh\nexec {' '.join(client)} churn \"$@\"\n")
    (folder/"churn").chmod(0o755)
    with open(folder/"log", "wb") as log:
        process = subprocess.Popen([sys.executable, HERE/"warm.py", folder/"socket"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    os.environ |= {SOCKET: str(folder/"socket"), COMMAND: str(folder/"churn"), "JUPYTER_PATH": str(folder/"jupyter")}
    config._warm_process = process, folder

def stop(config):
    process, folder = getattr(config, "_warm_process", (None, None))
    if process is None: return
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)
