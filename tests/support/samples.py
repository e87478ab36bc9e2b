"Samples of every kind, for hypothesis to draw: ties, more digits than a float holds, infinities, gaps."
import numpy as np
from hypothesis import settings, strategies as st
from hypothesis.extra import numpy as hnp

quick = settings(max_examples=150, deadline=None, derandomize=True)
few_examples = settings(max_examples=40, deadline=None, derandomize=True)
sizes = st.integers(1, 60)

def samples(dtype, elements): return sizes.flatmap(lambda n: hnp.arrays(dtype, n, elements=elements))

few = samples(np.int64, st.integers(0, 4))                          # ties everywhere, constants now and then
whole = samples(np.int64, st.integers(-2**62, 2**62))               # more digits than a float64 holds
unsigned = samples(np.uint64, st.integers(0, 2**64 - 1))
small = samples(np.int8, st.integers(-128, 127))
wide = samples(np.float64, st.floats(-1e300, 1e300))
tiny = samples(np.float64, st.floats(-1e-310, 1e-310))
huge = samples(np.float64, st.floats(allow_nan=False))
single = samples(np.float32, st.floats(-100, 100, width=32))
infinite = samples(np.float64, st.sampled_from([-np.inf, -1., 0., 1., np.inf]))
flags = samples(np.bool_, st.booleans())
with_missing = samples(np.float64, st.sampled_from([np.nan, 0., 1., 2., 3.5]))
anything = st.one_of(few, whole, unsigned, small, wide, tiny, huge, single, infinite, flags)
