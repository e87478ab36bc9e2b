"Two windows of rows in which the rows of one customer are alike, as 30_permutation_tests draws them."
import numpy as np

def two_windows(rng, customers=200, rows=(1, 1), same=False, rho=.8, shift=0.):
    "reference, current, customers_reference, customers_current; every row is N(0, 1) before the shift."
    ids = [np.repeat(np.arange(customers) + customers*(w and not same), r) for w, r in enumerate(rows)]
    habit = rng.normal(size=2*customers)
    x, y = (np.sqrt(rho)*habit[i] + np.sqrt(1 - rho)*rng.normal(size=len(i)) for i in ids)
    return x, y + shift, *ids
