"Train a churn model, promote it only if it is better than the champion, and serve it as a REST API."

import os as _os

__version__ = "0.1.0"

# Off before any of these packages is imported: telemetry of ONNX Runtime, MLflow, DVC, and of what heeds DO_NOT_TRACK (Evidently).
TELEMETRY_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "1",
}
for _name, _value in TELEMETRY_OFF.items():
    _os.environ.setdefault(_name, _value)
