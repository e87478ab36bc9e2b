"Where things are, for tests at any depth."
import os, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).parent
BIN = Path(sys.executable).parent
def own_environment(**more) -> dict:
    "For a process whose kernels and commands must be its own children, and not forks: where limits or signals are what is tested."
    return {k: v for k, v in os.environ.items() if k not in ("WARM_TEST_PROCESS", "WARM_TEST_PYTHON", "JUPYTER_PATH")} | more

REAL_CHURN = str(BIN/"churn")
PYTHON = os.environ.get("WARM_TEST_PYTHON", sys.executable) # as CHURN below, for `-c` and `-m`
CHURN = os.environ.get("WARM_TEST_CHURN", REAL_CHURN) # forked from a process with the imports done, where there is one
