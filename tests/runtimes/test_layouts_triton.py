"""The Triton repository is valid by Triton's own schema, and says of every graph what the graph says of itself."""

import shutil

import onnxruntime
import pytest

from safetykit.export.layouts.arrange import arrange
from safetykit.export.layouts.runtimes.triton import MAX_BATCH, REPOSITORY
from safetykit.export.manifest import GRAPHS, read_manifest
from safetykit.export.surgery.adapt import adapt, copy_base

ORT_TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP16": "tensor(float16)",
}


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
def configs(triton_schema, repository):
    from google.protobuf import text_format

    return {
        name: text_format.Parse(
            (repository / REPOSITORY / name / "config.pbtxt").read_text(), triton_schema.ModelConfig()
        )
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
        assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", MAX_BATCH)
        assert config.HasField("dynamic_batching")
        session = onnxruntime.InferenceSession(
            str(repository / manifest.graph_file(name)), providers=["CPUExecutionProvider"]
        )
        for told, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert [one.name for one in told] == [one.name for one in real]
            for one, value in zip(told, real, strict=True):
                kind = type(one).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[one.data_type].name
                assert ORT_TYPES[kind] == value.type
                assert value.shape[0] in ("batch", "images")  # rows, which the dimensions leave out
                sizes = list(one.reshape.shape if one.HasField("reshape") else one.dims)
                assert sizes == [size if isinstance(size, int) else -1 for size in value.shape[1:]]


def test_the_decoders_configuration_states_the_detector(configs):
    told = {name: value.string_value for name, value in configs["decoder"].parameters.items()}
    assert told["safetykit.refusal"] == "do not use this thing"
    assert float(told["safetykit.risk_threshold"]) == 0
    assert "risk_score" in [one.name for one in configs["decoder"].output]


def test_an_unknown_field_would_be_noticed(triton_schema, repository):
    from google.protobuf import text_format

    text = (repository / REPOSITORY / "decoder" / "config.pbtxt").read_text() + "max_batchsize: 1\n"
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text, triton_schema.ModelConfig())


def test_a_copied_repository_runs_elsewhere(repository, tmp_path):
    """Nothing in it points out of it."""
    shutil.copytree(repository / REPOSITORY, tmp_path / "models")
    for name in GRAPHS:
        path = tmp_path / "models" / name / "1" / "model.onnx" / "model.onnx"
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
