"""The rooms of the package: their modules with sizes, and which room imports which, from the import graph.

    python docs/rooms.py              prints them; `make site` shows the same as a page
"""
import html, sys, tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
import grimp

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "churn_nb"

@dataclass
class Room:
    "A folder of the package, or a lesson's module at its top."
    name: str
    modules: dict[str, int]    # module within the room -> lines as formatted
    imports: Counter           # other room -> number of modules of it that modules of this room import

def room_of(module:str) -> str:
    return module.split(".")[1]

def lines(module:str, root:Path) -> int: # Of a module's file
    file = root.joinpath(*module.split("."))
    return len((file/"__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text().splitlines())

def layers(root:Path=ROOT) -> list[list[str]]: # Highest first
    "The layers of the contract that `make lint` checks."
    contracts = tomllib.loads((root/"pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return [[name.strip(" ()") for name in layer.split("|")] for layer in next(c for c in contracts if c["type"] == "layers")["layers"]]

def rooms(root:Path=ROOT) -> dict[str, Room]: # In the order of the layers, lowest first
    "Read from the source; nothing is imported but the top of the package."
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    found = {name: Room(name, {}, Counter()) for layer in reversed(layers(root)) for name in layer}
    for module in sorted(graph.modules):
        if module.count(".") == 0 or module.endswith("._modidx"): continue
        room = found[room_of(module)]
        if (n := lines(module, root)): room.modules[module.removeprefix(f"{PACKAGE}.")] = n
        room.imports.update({room_of(m) for m in graph.find_modules_directly_imported_by(module) if m.count(".") and room_of(m) != room.name})
    return {name: room for name, room in found.items() if room.modules}

def text(found:dict[str, Room]) -> str:
    "A paragraph per room."
    out = []
    for room in found.values():
        uses = ", ".join(f"{name} ({n})" for name, n in sorted(room.imports.items(), key=lambda i: (-i[1], i[0]))) or "no other room"
        out += [f"{room.name}: {len(room.modules)} modules, {sum(room.modules.values()):,} lines; imports {uses}",
                *(f"  {n:5}  {module}" for module, n in room.modules.items())]
    return "\n".join(out)

def direct(found:dict[str, Room]) -> list[tuple[str, str, int]]:
    "Imports between rooms without those that follow from others: where a uses b and b uses c, that a uses c is not drawn."
    below = {}
    for name, room in found.items(): below[name] = {n for o in room.imports for n in {o, *below.get(o, ())}} # lowest first, so those below are known
    return [(name, o, n) for name, room in found.items() for o, n in sorted(room.imports.items()) if not any(o in below.get(b, ()) for b in room.imports if b != o)]

def drawing(found:dict[str, Room], root:Path=ROOT) -> str: # SVG
    "Boxes in the layers of the contract, and a line for each room that imports another; all lines lead down."
    levels = [[n for n in layer if n in found] for layer in layers(root)]
    width, high, step = 760, 34, 78
    place = {name: (width*(i + 1)/(len(level) + 1), 30 + step*row) for row, level in enumerate(levels) for i, name in enumerate(level)}
    arrows = [(place[a], place[b], n) for a, b, n in direct(found)]
    parts = [f'<line x1="{a[0]:.0f}" y1="{a[1] + high/2:.0f}" x2="{b[0]:.0f}" y2="{b[1] - high/2:.0f}" stroke-width="{min(4, .6 + n/4):.1f}"/>' for a, b, n in arrows]
    for name, (x, y) in place.items():
        parts.append(f'<rect x="{x - 62:.0f}" y="{y - high/2:.0f}" width="124" height="{high}" rx="6"/><text x="{x:.0f}" y="{y + 1:.0f}">{name}</text>')
    return (f'<svg class="map" viewBox="0 0 {width} {60 + step*(len(levels) - 1)}" role="img" aria-label="The rooms of the package in layers; each imports only rooms below it">'
            + "".join(parts) + "</svg>")

def page(root:Path=ROOT) -> str: # HTML
    "The body of the site's page."
    found = rooms(root)
    rows = "".join(f"<tr><td>{r.name}</td><td>{'<br>'.join(f'{html.escape(m)} ({n})' for m, n in r.modules.items())}</td>"
                   f"<td>{', '.join(f'{name} ({n})' for name, n in sorted(r.imports.items(), key=lambda i: (-i[1], i[0]))) or '-'}</td></tr>" for r in found.values())
    return ('<h1 id="map">The map of the package</h1><p>Rooms are drawn in the layers of the contract that <code>make lint</code> checks: a room imports only rooms below it, and rooms of one layer '
            f"don't import each other. A wider line stands for more modules; what follows from other lines is left out, and the table has all.</p>{drawing(found, root)}"
            f"<table><thead><tr><th>room</th><th>modules (lines)</th><th>imports (modules that do)</th></tr></thead><tbody>{rows}</tbody></table>")

if __name__ == "__main__": sys.exit(print(text(rooms())))
