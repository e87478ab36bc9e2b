"Scripts and measurements as modules: `from importers import import_datasets`, `bench` of a module of bench/."
import sys
from importlib import import_module
from paths import ROOT

sys.path.insert(0, str(ROOT/"scripts"))
import import_datasets # noqa: E402, F401

def bench(name:str):
    "A module of bench/, which finds the modules beside it."
    if (folder := str(ROOT/"bench")) not in sys.path: sys.path.append(folder)
    return import_module(name)
