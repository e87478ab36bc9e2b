"The `churn` command on few customers, with a gate that they can pass."
import os, subprocess
from paths import CHURN

FEW = ["-p", "customers=500"]
GATE = {"CHURN_GATE_CDNOW_FLOORS": "auc > 0.5, latency_ms < 200", "CHURN_GATE_CDNOW_BEAT_BASELINE": ""} # 500 customers do not show that a model is better than recency
PLAIN = {"CHURN_DRIFT_EVIDENTLY": "no"}

def churn(*args, env=None, **kw):
    return subprocess.run([CHURN, *map(str, args)], capture_output=True, text=True, env={**os.environ, **GATE, **(env or {})}, **kw)
