"What the measurements and the Spark test share: environments for packages that are not the project's, and events to compute on."
import os, re, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TELEMETRY_OFF = {"ORT_DISABLE_TELEMETRY": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"} # as in churn_nb, which peers don't have
os.environ.update(TELEMETRY_OFF)
SPARK_OPTIONS = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1", "spark.ui.enabled": "false",
                 "spark.ui.showConsoleProgress": "false", "spark.log.level": "ERROR", "spark.sql.session.timeZone": "UTC",
                 "spark.driver.memory": "4g", "spark.sql.shuffle.partitions": "8"}

def no_spark() -> str:
    "Why Spark can't run here; empty where it can."
    java = shutil.which(Path(os.environ["JAVA_HOME"])/"bin/java" if "JAVA_HOME" in os.environ else "java")
    if not java: return "Spark 4 needs Java 17 or newer, and no java was found"
    said = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', said)
    return "" if version and int(version[1]) >= 17 else f"Spark 4 needs Java 17 or newer, here is {said.splitlines()[:1]}"

def environment(name:str, *locks:str, project:bool=False) -> Path:
    "Python of `.bench/<name>` with what the lock files pin, and with this project if asked for; made again where a lock has changed."
    home, files = ROOT/".bench"/name, [ROOT/f for f in locks]
    python, ready, made_from = home/"bin/python", home/"made_from", "".join(f.read_text() for f in files)
    if ready.exists() and ready.read_text() == made_from: return python
    uv = str(Path(sys.executable).with_name("uv"))
    index = subprocess.run([sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True).stdout.strip()
    env = {"UV_NATIVE_TLS": "true"} | os.environ | ({"UV_DEFAULT_INDEX": index} if index else {}) # as `make setup` does
    run = lambda *command: subprocess.run([uv, *command], check=True, env=env, cwd=ROOT)
    into = "pip", "install", "--quiet", "--python", str(python)
    run("venv", "--quiet", "--clear", "--python", sys.executable, str(home))
    hashes = ["--require-hashes"] if all(f.suffix == ".lock" for f in files) else []
    run(*into, *hashes, *(x for f in files for x in ("-r", str(f))))
    if project: run(*into, "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    ready.write_text(made_from)
    return python

def spark_python() -> Path: return environment("spark", "requirements.lock", "requirements-spark.lock", project=True)

def events_sql(n:int) -> str:
    """n events of n/50 customers (some buy much, some little) in 2023 and 2024, in no order and the same each time. A tenth share their
    second with another event of the customer, 1 % arrive up to ten days late, 1 % are stamped up to a second before they happened."""
    u = lambda row, k: f"(hash({row}*8 + {k})/18446744073709551616.0)" # in [0, 1)
    return f"""SELECT i AS event_id, CAST(floor({max(n//50, 1)}*pow({u("j", 0)}, 1.5)) AS BIGINT) AS customer_id,
        TIMESTAMPTZ '2023-01-01 00:00:00+00' + to_seconds(floor({u("j", 1)}*731*86400))
          + to_microseconds(CAST({u("i", 2)}*999999 AS BIGINT)) AS event_timestamp,
        event_timestamp + to_microseconds(CAST(CASE WHEN {u("i", 3)} < .01 THEN {u("i", 4)}*864e9
          WHEN {u("i", 3)} < .02 THEN -1e6*{u("i", 4)} ELSE 0 END AS BIGINT)) AS created_timestamp,
        round(exp(3 + 2*{u("i", 5)}), 2) AS amount
      FROM (SELECT i, CASE WHEN i % 10 = 0 THEN i + 1 ELSE i END AS j FROM range({n}) AS t(i))"""
