"""Parts of a test run, with their seconds.

    python part.py NAME BUDGET COMMAND...    run a command, note its name and seconds; its exit code
    python part.py --table                   what was noted since the last table; a part over twice its budget is named in yellow, and fails nothing

BUDGET: seconds on a quiet machine with two cores."""
import subprocess, sys, time
from pathlib import Path

NOTES = Path(__file__).resolve().parents[2]/"build"/"parts.tsv"

def run(name:str, budget:str, *command:str) -> int:
    began = time.monotonic()
    code = subprocess.run(command).returncode
    NOTES.parent.mkdir(exist_ok=True)
    with open(NOTES, "a") as f: f.write(f"{name}\t{time.monotonic() - began:.0f}\t{budget}\t{code}\n")
    return code

def row(name:str, seconds:str, budget:str, code:str) -> str:
    text = f"{name:<32}{seconds:>7} s   budget {budget:>4} s{'' if code == '0' else f'   FAILED ({code})'}"
    return f"\033[33m{text}   over twice the budget\033[0m" if int(seconds) > 2*int(budget) else text

def table() -> int:
    "Print and forget."
    rows = [line.split("\t") for line in NOTES.read_text().splitlines()] if NOTES.exists() else []
    NOTES.unlink(missing_ok=True)
    print("\n".join(["== parts", *(row(*r) for r in rows)]))
    return 0

if __name__ == "__main__": sys.exit(table() if sys.argv[1:] == ["--table"] else run(*sys.argv[1:]))
