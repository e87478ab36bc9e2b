"""bench/RESULTS.md of what was measured last: every goal in one table, then each measurement with its picture.

    python bench/results.py            after any of the measurements; nothing is measured here
"""
import importlib, json, sys
from report import HERE, table

PARTS = {"serve": "Serving: requests a second, latency, memory", "drift": "Drift: K-S and PSI", "features": "Features: point in time, and online", "score": "Scoring files",
         "quantize": "INT8 quantization", "pipeline": "The whole pipeline", "batching": "Batching: latency against load", "freshness": "From an event to a changed answer"}
# Why a goal is missed, where a measurement of these tables shows the limit: part, beginning of the goal -> why.
WHY = json.loads((HERE/"why.json").read_text())

def goals(what:str, found:dict) -> list[list]:
    "The script's own goals; those of serving are of the first model."
    script = importlib.import_module(what)
    if not hasattr(script, "goals"): return []
    return script.goals(found["parts"][0]["runs"] if what == "serve" else found)

def main():
    rows, bodies = [], []
    for what, title in PARTS.items():
        if not (HERE/f"{what}.json").exists(): bodies.append(f"## {title}\n\nNot measured yet: `make bench WHAT={what}`."); continue
        found = json.loads((HERE/f"{what}.json").read_text())
        for line in goals(what, found):
            why = next((w for start, w in WHY.get(what, {}).items() if line[0].startswith(start)), "") if line[3] != "reached" else ""
            rows.append([what, *line, why])
        body = (HERE/f"{what}.md").read_text().split("-->\n", 1)[-1].strip()
        picture = f"\n\n![{title}]({what}.png)" if (HERE/f"{what}.png").exists() else ""
        bodies.append(f"## {title}\n\n`make bench WHAT={what}`{picture}\n\n{body}")
    reached = sum(r[4] == "reached" for r in rows)
    text = ["<!-- made by bench/results.py -->", "# Measured, side by side", "Every figure is a ratio, or can be read as one: what it is compared with ran in the same round on the same machine. Measure again with "
            "`make bench`, or one part with `make bench WHAT=serve`; peers get environments of their own under `.bench/`, pinned. How much of everything a large service takes is computed in [CAPACITY.md](CAPACITY.md).",
            "## Goals", f"{reached} of {len(rows)} reached.", table(["", "what", "goal", "measured: median (min..max)", "", "why not"], rows), *bodies]
    (HERE/"RESULTS.md").write_text("\n\n".join(text) + "\n")
    print(f"{HERE}/RESULTS.md: {reached} of {len(rows)} goals reached", file=sys.stderr)

if __name__ == "__main__": main()
