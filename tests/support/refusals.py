"What a refusal must say."
import pytest
from churn_nb.core.errors import DataError

def refused(f, *says):
    "The one line with which `f` refuses; all of `says` are in it."
    with pytest.raises(DataError) as e: f()
    line = str(e.value)
    assert "\n" not in line and all(s in line for s in says), line
    return line
