"The script that makes the built-in data sets, as a module: `from importers import import_datasets`."
import sys
from paths import ROOT

sys.path.insert(0, str(ROOT/"scripts"))
import import_datasets # noqa: E402, F401
