"Shapley values by their definition, slowly."
import itertools, math
import numpy as np

def walk(f, x, r):
    "Shapley values from their definition: the mean over all orders of what each turn from r to x moves."
    d = len(x)
    total = np.zeros(d)
    for order in itertools.permutations(range(d)):
        row, before = r.copy(), f(r[None])[0]
        for j in order:
            row[j] = x[j]
            after = f(row[None])[0]
            total[j] += after - before
            before = after
    return total / math.factorial(d)
