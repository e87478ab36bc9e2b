"""Ask GitHub for a training because of drift, unless one is in flight or was asked for within the cool-down.

Prints one line that says what was done, and why. Exit code 0: asked for or rightly not; 1: GitHub's command line failed.
The rules are those of nbs/ops/50_retraining.ipynb; here the list of runs is the memory, since a runner has none of its own."""
import configparser, json, os, subprocess, sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

WORKFLOW = "mlops.yaml"

def cooldown() -> timedelta:
    "[drift] cooldown_hours of settings.ini, or of the environment."
    ini = configparser.ConfigParser(inline_comment_prefixes="#")
    ini.read(Path(__file__).parents[1]/"settings.ini")
    return timedelta(hours=float(os.environ.get("CHURN_DRIFT_COOLDOWN_HOURS") or ini["drift"]["cooldown_hours"]))

def gh(*args:str) -> str:
    "What GitHub's command line says. Raises CalledProcessError."
    return subprocess.run(["gh", *args], check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout

def runs(*args:str) -> list[dict]:
    found = json.loads(gh("run", "list", "--workflow", WORKFLOW, "--json", "status,createdAt,event", *args))
    if not isinstance(found, list): raise ValueError(f"gh run list gave {found!r}, no list of runs")
    return found

def why_not(now:datetime) -> str:
    "Why no training may be asked for; empty: it may."
    if busy := [r for r in runs("--limit", "50") if r["status"] != "completed"]: # queued, waiting, in_progress, ...
        return f"a run is {busy[0]['status']} since {busy[0]['createdAt']}"
    # Only what was asked for counts: pushes train as well, and a busy week of them must not keep the alarm waiting.
    asked = [r["createdAt"] for r in runs("--event", "workflow_dispatch", "--limit", "1") if r["event"] == "workflow_dispatch"]
    if asked and abs(now - (at := datetime.fromisoformat(asked[0].replace("Z", "+00:00")))) < cooldown():
        return f"the last one was asked for {asked[0]}, the next may be {at + cooldown():%FT%TZ}"
    return ""

def main() -> int:
    try:
        if reason := why_not(datetime.now(timezone.utc)):
            print(f"no training asked for: {reason}")
            return 0
        gh("workflow", "run", WORKFLOW, "--ref", os.environ.get("REF") or "main", "-f", "reason=drift")
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as e:
        print(f"no training asked for, GitHub could not be asked: {' '.join(f'{type(e).__name__}: {e}'.split())[:300]}")
        return 1
    print("a training is asked for, because of drift")
    return 0

if __name__ == "__main__": sys.exit(main())
