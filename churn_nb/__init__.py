"""Train a churn model, promote it only if it is better than the champion, and serve it as a REST API.

The package is exported from the notebooks in `nbs/`; only this file is written by hand. Its rooms, from what everything uses to what uses
everything: `core` and `evaluation`; `data`; `feature_store`, `monitoring` and `batch`; `modeling`, and the lessons `features` and `drift`;
`registry`; `serving`, and the lesson `train`; `ops`, and the lessons `promote` and `serve`; `cli`, the command `churn`; and `teaching`,
simulated worlds for the lessons alone.

The names below are what most programs need. Each is imported from its room at its first use, so `import churn_nb` alone takes
milliseconds and needs no optional package:

    from churn_nb import load_settings, run_pipeline
    run = run_pipeline(load_settings(), given={"customers": 2000})
"""

import os as _os
from importlib import import_module as _import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Telemetry is off before any of these packages is imported: ONNX Runtime, MLflow, DVC, and what heeds DO_NOT_TRACK (Evidently).
TELEMETRY_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "1",
}
for _name, _value in TELEMETRY_OFF.items():
    _os.environ.setdefault(_name, _value)

_PLACES = {  # name -> the module that defines it
    "ChurnError": "core.errors",
    "Settings": "core.settings",
    "load_settings": "core.settings",
    "drift_report": "monitoring.drift_report",
    "point_in_time": "feature_store.feature_sql",
    "open_store": "feature_store.feast_store",
    "run_pipeline": "ops.pipeline_runner",
    "run_step": "ops.step_runner",
    "run_gate": "promote",
    "create_app": "serve",
    "run_server": "serve",
    "train_all": "train",
}
__all__ = ["TELEMETRY_OFF", "__version__", *_PLACES]

if TYPE_CHECKING:  # what type checkers and editors see of the same names
    from .core.errors import ChurnError as ChurnError
    from .core.settings import Settings as Settings
    from .core.settings import load_settings as load_settings
    from .monitoring.drift_report import drift_report as drift_report
    from .feature_store.feast_store import open_store as open_store
    from .feature_store.feature_sql import point_in_time as point_in_time
    from .ops.pipeline_runner import run_pipeline as run_pipeline
    from .ops.step_runner import run_step as run_step
    from .promote import run_gate as run_gate
    from .serve import create_app as create_app
    from .serve import run_server as run_server
    from .train import train_all as train_all


def __getattr__(name: str) -> object:
    "A public name, imported from its room. Raises AttributeError for any other."
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
