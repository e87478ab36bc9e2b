"Lines of `churn doctor`."
from churn_nb.ops.diagnostics import CHECKS, run_check

def line(name, s): return run_check(name, CHECKS[name], s)
def ill(name, s, code, *says):
    found = line(name, s)
    assert (found.ok, found.code) == (False, code), found
    for word in says: assert word in found.text, found
    assert str(found).startswith(f"!!  {name}") and "\n" not in str(found)
