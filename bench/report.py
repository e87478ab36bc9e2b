"What every measurement here shares: options, the machine, tables, growth, and how results are written."
import argparse, json, os, platform, statistics, tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parent

def options(doc:str, rounds:int=5) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="small and once, into a temporary folder: does everything run? (for CI)")
    p.add_argument("--rounds", type=int, default=rounds, help=f"interleaved repetitions (default {rounds})")
    p.add_argument("--out", type=Path, help="folder for the results (default: bench/)")
    return p

def machine() -> dict:
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    return {"cores": os.cpu_count(), "cpu": model, "memory_gb": round(os.sysconf("SC_PAGE_SIZE")*os.sysconf("SC_PHYS_PAGES")/1e9),
            "python": platform.python_version(), "system": platform.system(), "load_before": round(os.getloadavg()[0], 1)}

def recorded(script:str, p:argparse.ArgumentParser, a:argparse.Namespace) -> dict:
    "Machine, command and day of a measurement."
    given = {k.replace("_", "-"): v for k, v in vars(a).items() if v != p.get_default(k) and k not in ("out", "run")}
    said = [f"--{k}" if v is True else f"--{k} " + (" ".join(map(str, v)) if isinstance(v, list) else "..." if k == "pythonpath" else str(v)) for k, v in given.items()]
    return {"machine": machine(), "command": " ".join([f"python bench/{script}.py", *said]), "measured": f"{datetime.now(timezone.utc):%F}"}

def folder(a:argparse.Namespace, apart:bool=False) -> Path:
    "Where results go; a temporary folder if they are not to replace those in bench/."
    out = a.out or (Path(tempfile.mkdtemp()) if a.quick or apart else HERE)
    for f in (out, HERE.parent/".bench"): f.mkdir(parents=True, exist_ok=True)
    return out

def write(out:Path, name:str, found:dict, markdown:Callable, plot:Callable|None=None):
    "name.json (every measurement), name.md and name.png."
    (out/f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads((out/f"{name}.json").read_text()) # keys are text there
    (out/f"{name}.md").write_text(text := markdown(found))
    if plot: plot(found, out/f"{name}.png"); assert (out/f"{name}.png").stat().st_size <= 60_000
    print(f"{text}\n{out}/{name}.json, {name}.md" + (f", {name}.png" if plot else ""))

def spread(values, digits:int=2) -> str:
    "Median (min..max)."
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"

def table(head:list[str], rows:list[list]) -> str:
    line = lambda cells: "| " + " | ".join(map(str, cells)) + " |"
    return "\n".join([line(head), line(["---"]*len(head)), *map(line, rows)])

def where(part:dict) -> str:
    m = part["machine"]
    return f"{m['cores']} cores, {m['cpu']}, {m['memory_gb']} GB; Python {m['python']}; load {m['load_before']} before; measured {part['measured']}: `{part['command']}`"

def exponent(points) -> float:
    "Exponent k of y = c x^k, by least squares on logarithms."
    import numpy as np
    return round(float(np.polyfit(*np.log(np.array(points)).T, 1)[0]), 3)

def grown(runs:dict[int, list[dict]], of:str="seconds") -> dict:
    "Runs at growing sizes, the exponent over all of them and over the last decade."
    points = [(n, statistics.median(r[of] for r in rs)) for n, rs in runs.items()]
    return {"runs": runs, "exponent": exponent(points), "exponent_last_decade": exponent(points[-2:])}

def growth_table(g:dict, what:str, digits:int=4) -> str:
    "A table of `grown`, after its JSON."
    says = f"seconds = c · ({what})^{g['exponent']:.2f}; over the last decade ^{g['exponent_last_decade']:.2f}"
    return table([what, "seconds: median (min..max)", "seconds a million", "peak RSS, MB"],
                 [[f"{int(n):,}", spread([r["seconds"] for r in rs], digits), f"{statistics.median(r['seconds'] for r in rs)/int(n)*1e6:.3g}", max(r["peak_mb"] for r in rs)]
                  for n, rs in g["runs"].items()]) + f"\n\n{says}"

def bars(ax, values:dict[str, float], says:Callable, colour:Callable|None=None, **axes):
    "Horizontal bars, the first at the bottom, each with its value; ours blue, ceilings black, others orange."
    mine = lambda k: "#0072B2" if k.startswith("churn_nb") else "black" if k.startswith("ceiling") else "#E69F00"
    ax.barh([*values], [*values.values()], color=[(colour or mine)(k) for k in values], height=.7)
    for i, v in enumerate(values.values()): ax.annotate(says(v), (v, i), (3, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set(**axes)
    ax.title.set_size(10)
    ax.margins(x=.15)
    ax.spines[["top", "right"]].set_visible(False)

def goal(what:str, want:str, got:str, ok:bool|None) -> list[str]:
    "A line of a table of goals; ok None: not measured."
    return [what, want, got, {True: "reached", False: "**not reached**", None: "not measured"}[ok]]

def peak_mb() -> int:
    "Highest resident memory of this process so far."
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])//1024
