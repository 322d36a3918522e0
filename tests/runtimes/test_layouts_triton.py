"""The Triton repository is valid by Triton's own schema, and says of every graph what the graph says of itself."""

import importlib.util
import shutil
from pathlib import Path

import onnxruntime
import pytest

from safetykit.export.layouts.arrange import arrange
from safetykit.export.layouts.runtimes.triton import REPOSITORY
from safetykit.export.manifest import GRAPHS, read_manifest
from safetykit.export.surgery.adapt import adapt, copy_base

ORT_TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP16": "tensor(float16)",
}


@pytest.fixture(scope="module")
def schema():
    """Triton's published messages; loaded by path, because the package around them wants gRPC."""
    pytest.importorskip("google.protobuf")
    found = importlib.util.find_spec("tritonclient")
    if found is None:
        pytest.skip("tritonclient is not installed")
    path = Path(next(iter(found.submodule_search_locations))) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(base_folder, make_adapter, make_detector, tmp_path_factory):
    """Arranged with ops of every scope and a detector: inputs of all kinds, a risk, and words in the configuration."""
    folder = tmp_path_factory.mktemp("triton") / "export"
    folder.mkdir()
    base = read_manifest(base_folder)
    copy_base(base_folder, folder, base)
    adapter = make_adapter(("SubspaceProjection", "decoder.layers.0", "vision", "both"))
    adapt(folder, base, [adapter, make_detector(1, 2)])
    arrange(folder, read_manifest(folder), "triton")
    return folder


@pytest.fixture(scope="module")
def configs(schema, repository):
    from google.protobuf import text_format

    return {
        name: text_format.Parse((repository / REPOSITORY / name / "config.pbtxt").read_text(), schema.ModelConfig())
        for name in GRAPHS
    }


def test_the_repository_is_laid_out_as_triton_wants(repository):
    manifest = read_manifest(repository)
    assert sorted(path.name for path in (repository / REPOSITORY).iterdir()) == sorted(GRAPHS)
    for name in GRAPHS:
        versions = [path.name for path in (repository / REPOSITORY / name).iterdir() if path.is_dir()]
        assert versions == ["1"]
        assert manifest.graph_file(name) == f"{REPOSITORY}/{name}/1/model.onnx/model.onnx"


def test_every_input_and_output_is_named_with_type_and_shape(configs, repository):
    manifest = read_manifest(repository)
    for name, config in configs.items():
        assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 0)
        session = onnxruntime.InferenceSession(
            str(repository / manifest.graph_file(name)), providers=["CPUExecutionProvider"]
        )
        for told, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert [one.name for one in told] == [one.name for one in real]
            for one, value in zip(told, real, strict=True):
                kind = type(one).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[one.data_type].name
                assert ORT_TYPES[kind] == value.type
                assert list(one.dims) == [size if isinstance(size, int) else -1 for size in value.shape]


def test_the_decoders_configuration_states_the_detector(configs):
    told = {name: value.string_value for name, value in configs["decoder"].parameters.items()}
    assert told["safetykit.refusal"] == "do not use this thing"
    assert float(told["safetykit.risk_threshold"]) == 0
    assert "risk_score" in [one.name for one in configs["decoder"].output]


def test_an_unknown_field_would_be_noticed(schema, repository):
    from google.protobuf import text_format

    text = (repository / REPOSITORY / "decoder" / "config.pbtxt").read_text() + "max_batchsize: 1\n"
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text, schema.ModelConfig())


def test_a_copied_repository_runs_elsewhere(repository, tmp_path):
    """Nothing in it points out of it."""
    shutil.copytree(repository / REPOSITORY, tmp_path / "models")
    for name in GRAPHS:
        path = tmp_path / "models" / name / "1" / "model.onnx" / "model.onnx"
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
