"""The internals of other packages that this one relies on, each by name: an upgrade that changes one fails here first.

A package with a line here has a bound in pyproject.toml; what deeper or private places the package imports must have a line here.
"""
import ast, asyncio, importlib, inspect, re, tomllib
from importlib.metadata import packages_distributions, version
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import sources
from paths import ROOT

HTTP = "uvicorn.protocols.http.httptools_impl"
RELIED_ON = [ # module, name within it, arguments that it must take
    (HTTP, "STATUS_LINE", None),
    (HTTP, "HttpToolsProtocol", "config server_state app_state"),
    *((HTTP, f"HttpToolsProtocol.{method}", arguments) for method, arguments in [
        ("connection_made", "transport"), ("connection_lost", "exc"), ("on_message_begin", ""), ("on_headers_complete", ""), ("on_body", "body"),
        ("on_message_complete", ""), ("on_response_complete", ""), ("pause_writing", ""), ("resume_writing", ""), ("_start_asgi_task", "cycle app")]),
    ("feast.infra.offline_stores.duckdb", "DuckDBOfflineStore.offline_write_batch", "config feature_view table progress"),
    ("feast.infra.offline_stores.duckdb", "DuckDBOfflineStore.get_table_column_names_and_types_from_data_source", "config data_source"),
    ("feast.infra.offline_stores.duckdb", "DuckDBOfflineStoreConfig", None),
    ("feast.infra.offline_stores.file_source", "FileSource", "path file_format timestamp_field"),
    ("feast.infra.online_stores.sqlite", "adapt_datetime_epoch", "val"), # which import_feast replaces, as its times are local
    ("feast.infra.online_stores.sqlite", "convert_timestamp", "val"),
    ("feast.infra.registry.file", "FileRegistryStore._write_registry", "registry_proto"),
    ("feast.infra.registry.file", "FileRegistryStore.get_registry_proto", ""),
    ("feast.infra.registry.registry", "Registry.update_infra", "infra project"),
    ("feast.infra.provider", "Provider.plan_infra", "config desired_registry_proto"),
    ("feast.protos.feast.core.FeatureView_pb2", "FeatureView", None),
    ("feast.protos.feast.core.OnDemandFeatureView_pb2", "OnDemandFeatureView", None),
    ("feast.infra.provider", "Provider.online_read", "config table entity_keys requested_features"),
    ("feast.protos.feast.types.EntityKey_pb2", "EntityKey", None),
    ("feast.transformation.python_transformation", "PythonTransformation", "udf udf_string"),
    ("feast.type_map", "python_values_to_proto_values", "values feature_type"),
    ("papermill.engines", "NBClientEngine.execute_managed_notebook", "nb_man kernel_name"),
    ("papermill.engines", "papermill_engines.register", "name engine"),
    ("papermill.engines", "NotebookExecutionManager.save", ""),
    ("papermill.iorw", "load_notebook_node", "notebook_path"),
    ("jupyter_core.utils", "run_sync", None),
    ("evidently.legacy.calculations.stattests.registry", "StatTest", "name display_name allowed_feature_types"),
    ("evidently.legacy.calculations.stattests.registry", "register_stattest", "stat_test"),
    ("evidently.legacy.core", "ColumnType", None),
    ("mlflow.data.code_dataset_source", "CodeDatasetSource", None),
    ("mlflow.data.pandas_dataset", "from_pandas", "df source name"),
    ("mlflow.server.constants", "BACKEND_STORE_URI_ENV_VAR", None),
    ("mlflow.store.artifact.local_artifact_repo", "LocalArtifactRepository", "artifact_uri tracking_uri registry_uri"),
    ("mlflow.store.tracking.sqlalchemy_store", "SqlAlchemyStore", "db_uri default_artifact_root"),
    ("mlflow.store.tracking.sqlalchemy_store", "SqlAlchemyStore._dispose_engine", ""),
    ("skl2onnx.common.data_types", "FloatTensorType", None),
    ("skl2onnx.algebra.onnx_ops", "OnnxLog", None),
    ("tritonclient.grpc.service_pb2", "ModelInferRequest", None),
    ("tritonclient.grpc.service_pb2_grpc", "GRPCInferenceServiceStub", None),
    ("google.protobuf.unknown_fields", "UnknownFieldSet", None),
]
OF_A_CONNECTION = [*"app app_state config connections cycle expect_100_continue flow headers loop parser pipeline server_state timeout_keep_alive timeout_keep_alive_task transport".split()]

@pytest.mark.filterwarnings("ignore::DeprecationWarning") # of what they import in turn
@pytest.mark.parametrize(("module", "name", "arguments"), RELIED_ON, ids=[f"{m}.{n}" for m, n, _ in RELIED_ON])
def test_what_is_relied_on_is_there(module, name, arguments):
    found = importlib.import_module(module)
    for part in name.split("."): found = getattr(found, part)
    if arguments is None: return
    known = inspect.signature(found).parameters
    assert [a for a in arguments.split() if a not in known] == [], f"{module}.{name} takes {[*known]}"

def test_a_connection_of_uvicorn_has_its_state():
    async def state():
        config = importlib.import_module("uvicorn").Config(lambda *a: None, log_config=None)
        config.load()
        return vars(importlib.import_module(HTTP).HttpToolsProtocol(config, importlib.import_module("uvicorn.server").ServerState(), {}))
    assert [n for n in OF_A_CONNECTION if n not in asyncio.run(state())] == []

def imported() -> set[str]:
    "Modules of others that the package imports, at any place, also through `optional`."
    found = set()
    for file in sources.modules(ROOT).values():
        for n in ast.walk(ast.parse(sources.read(ROOT, file))):
            if isinstance(n, ast.Import): found |= {a.name for a in n.names}
            if isinstance(n, ast.ImportFrom) and not n.level: found |= {n.module, *(f"{n.module}.{a.name}" for a in n.names if a.name.startswith("_"))}
            if isinstance(n, ast.Call) and ast.unparse(n.func) == "optional" and isinstance(n.args[0], ast.Constant): found.add(n.args[0].value)
    return found

def test_every_deep_or_private_import_is_listed():
    "Three folders down, or with an underscore: what its authors don't promise."
    documented = {"cryptography.hazmat.primitives.serialization", "fastapi.openapi.utils", "google.protobuf.message", "opentelemetry.trace.propagation.tracecontext", "tritonclient.grpc.aio"}
    listed = {m for m, _, _ in RELIED_ON} | {f"{m}.{n}" for m, n, _ in RELIED_ON} | {m.rpartition(".")[0] for m, _, _ in RELIED_ON}
    deep = {m for m in imported() if not m.startswith("churn_nb") and (m.count(".") >= 2 or "._" in m)}
    assert sorted(deep - documented - listed) == []

def relied_on() -> list[str]:
    "The packages, as an installer names them, of which a line above names an internal."
    found = packages_distributions()
    several = {"google": "protobuf", "mlflow": "mlflow"} # whose folders more than one package fills
    return sorted({canonicalize_name(several.get(top) or found[top][0]) for top in {m.partition(".")[0] for m, _, _ in RELIED_ON}})

def asked(package:str) -> list[Requirement]:
    extras = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [r for extra in extras.values() for r in map(Requirement, extra) if canonicalize_name(r.name) == package]

def test_packages_of_the_list_are_found():
    assert {"uvicorn", "feast", "papermill", "evidently", "mlflow", "protobuf", "skl2onnx", "tritonclient", "jupyter-core"} <= {*relied_on()}

@pytest.mark.parametrize("package", relied_on())
def test_packages_whose_internals_are_used_are_bounded(package):
    "Every requirement that names it has an upper bound, which the installed version and the locked one respect."
    locked = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT/"requirements.lock").read_text(), re.M)[1]
    assert asked(package), f"pyproject.toml asks for no {package}"
    for r in asked(package): assert "<" in str(r.specifier) and version(package) in r.specifier and locked in r.specifier, r
