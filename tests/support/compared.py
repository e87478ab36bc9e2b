"""Pictures, compared as what is seen (nbval would leave them out, or ask for equal bytes, which depend on the library that wrote them); and how many stored outputs the notebooks hold that nbval compares: a cell each, and the pictures among them.

    python tests/support/compared.py     prints the count; exit code 1 where it fell below the number in nbs/.compared
"""
import base64, io, json, sys
from pathlib import Path

NBS = Path(__file__).resolve().parents[2]/"nbs"

def pictures(outputs:list) -> list[str]: # PNG, base64
    return [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]

def alike(a:str, b:str, # PNG, base64
         ) -> bool:
    "Pictures of one size in which not one pixel in a thousand differs by more than a tenth: the last bit of a number may move an edge."
    import matplotlib.image as image, numpy as np # only where notebooks are compared
    x, y = (image.imread(io.BytesIO(base64.b64decode(p)), format="png") for p in (a, b))
    return x.shape == y.shape and bool((np.abs(x - y).max(axis=-1) > .1).mean() < .001)

def comparing_pictures(item):
    "The cell's own comparison, and its pictures."
    compare = item.compare_outputs
    def both(test, ref, skip_compare=None):
        same, drawn, stored = compare(test, ref, skip_compare), pictures(test), pictures(ref)
        seen = len(drawn) == len(stored) and all(map(alike, drawn, stored))
        if not seen: item.comparison_traceback.append(f"\n pictures: {len(drawn)} drawn, {len(stored)} stored, and they don't look the same")
        return same and seen
    return both

def compared(nb:Path) -> tuple[int, int]: # Outputs, pictures
    "Of cells that are not excepted by name."
    cells = [c for c in json.loads(nb.read_text())["cells"] if c["cell_type"] == "code" and "NBVAL_IGNORE_OUTPUT" not in "".join(c["source"])]
    outputs = [o for c in cells for o in c["outputs"]]
    return len(outputs), sum("image/png" in o.get("data", {}) for o in outputs)

def total() -> tuple[int, int, int]: # Outputs, pictures, at least so many
    each = [compared(nb) for nb in sorted(NBS.glob("*.ipynb"))]
    return sum(n for n, _ in each), sum(p for _, p in each), int((NBS/".compared").read_text())

def main() -> int:
    n, pictures, least = total()
    print(f"== nbval compares {n} stored outputs, {pictures} of them pictures; it may not be less than {least} (nbs/.compared)")
    return int(n < least)

if __name__ == "__main__": sys.exit(main())
