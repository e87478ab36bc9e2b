"""Pictures, compared as what is seen (nbval would leave them out, or ask for equal bytes, which depend on the library that wrote them); and how many stored outputs the notebooks hold that nbval compares: a cell each, and the pictures among them.

    python tests/support/compared.py     prints the counts; exit code 1 where one fell below its number in nbs/.compared
"""
import base64, io, json, re, sys
from pathlib import Path
import sources
from paths import ROOT

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

def least(root:Path=ROOT) -> tuple[int, int]: # Outputs, notebooks
    "What nbs/.compared asks for at least."
    outputs, notebooks = map(int, re.fullmatch(r"(\d+) outputs\n(\d+) notebooks\n", (root/"nbs/.compared").read_text()).groups())
    return outputs, notebooks

def main(root:Path=ROOT) -> int:
    "Over the notebooks of every folder."
    each = [compared(root/nb) for nb in sources.notebook_files(root)]
    found, wanted = (sum(n for n, _ in each), len(each)), least(root)
    print(f"== nbval compares {found[0]} stored outputs of {found[1]} notebooks, {sum(p for _, p in each)} of the outputs pictures; "
          f"not less than {wanted[0]} of {wanted[1]} (nbs/.compared)")
    return int(found[0] < wanted[0] or found[1] < wanted[1])

if __name__ == "__main__": sys.exit(main())
