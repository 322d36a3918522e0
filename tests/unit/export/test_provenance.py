"""Provenance and components: written in the words of their standards, and found out where they were edited."""

import json

import pytest
from export_folder import documents, write_folder

from safetykit import InvalidArtifact
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.export.document.card import check_card, write_card
from safetykit.export.document.provenance import OPTIONS, Built, installed, read_built
from safetykit.export.manifest import LAYOUT, read_manifest, write_manifest

BUILT = Built(adapters=("ef" * 32,), packages={"safetykit": "0.1.0", "numpy": "2.0.0", "torch": "2.9.0"})


def written(folder):
    write_folder(folder, {**documents(), OPTIONS: {"precision": "fp32", "mode": "bake"}})
    write_card(folder, BUILT)
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return written(tmp_path_factory.mktemp("provenance") / "export")


@pytest.fixture
def folder(kept, tmp_path):
    import shutil

    return shutil.copytree(kept, tmp_path / "export")


def test_it_is_a_statement_of_in_toto(kept):
    from google.protobuf import json_format
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    text = (kept / LAYOUT.provenance).read_text()
    Statement.copy_from_pb(json_format.Parse(text, Message())).validate()
    said = json.loads(text)
    files = read_manifest(kept).files
    subject = {one["name"]: one["digest"]["sha256"] for one in said["subject"]}
    assert subject == {name: files[name] for name in subject}
    left_out = {LAYOUT.provenance, LAYOUT.sbom, LAYOUT.card, LAYOUT.report}
    assert set(files) - set(subject) == left_out
    sources = said["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [one["name"] for one in sources] == ["base", "adapter 1", "records of adapter 1", *sorted(BUILT.packages)]
    assert said["predicate"]["buildDefinition"]["externalParameters"] == {"precision": "fp32", "mode": "bake"}
    assert read_built(kept, read_manifest(kept)) == BUILT


def test_the_components_keep_to_the_schema(kept):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (kept / LAYOUT.sbom).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    said = {one["bom-ref"]: one for one in json.loads(text)["components"]}
    assert said["adapter-1"]["hashes"] == [{"alg": "SHA-256", "content": BUILT.adapters[0]}]
    assert said["pkg:pypi/numpy@2.0.0"]["scope"] == "required"
    assert said["pkg:pypi/torch@2.9.0"]["scope"] == "excluded"
    assert said["base"]["licenses"] == [{"license": {"name": "apache-2.0"}}]
    assert said["file:decoder.onnx"]["hashes"][0]["content"] == read_manifest(kept).files["decoder.onnx"]


def test_the_same_export_has_the_same_bytes(kept, tmp_path):
    again = written(tmp_path / "again")
    for name in (LAYOUT.provenance, LAYOUT.sbom, LAYOUT.card, LAYOUT.manifest):
        assert (kept / name).read_bytes() == (again / name).read_bytes(), name


def test_the_card_names_them_and_they_are_checked(kept):
    assert "(CycloneDX) lists all parts" in (kept / LAYOUT.card).read_text()
    assert check_card(kept)[:2] == (LAYOUT.provenance, LAYOUT.sbom)


def other_subject(said):
    said["subject"][0]["digest"]["sha256"] = "0" * 64


def other_base(said):
    said["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]["safetykit-fingerprint"] = "0" * 64


def other_settings(said):
    said["predicate"]["buildDefinition"]["externalParameters"]["precision"] = "fp16"


def no_adapter(said):
    del said["predicate"]["buildDefinition"]["resolvedDependencies"][1]


def no_sources(said):
    said["predicate"]["buildDefinition"] = []


def no_components(said):
    said["components"].clear()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (LAYOUT.provenance, other_subject),
        (LAYOUT.provenance, other_base),
        (LAYOUT.provenance, other_settings),
        (LAYOUT.provenance, no_adapter),
        (LAYOUT.provenance, no_sources),
        (LAYOUT.sbom, no_components),
    ],
)
def test_an_edit_is_found_even_where_the_folder_was_sealed_again(folder, name, change):
    said = json.loads((folder / name).read_text())
    change(said)
    (folder / name).write_bytes(canonical_json(said))
    write_manifest(read_manifest(folder, verify=False), folder)
    with pytest.raises(InvalidArtifact, match=name):
        check_card(folder)


def test_a_document_that_comes_later_becomes_a_subject(folder):
    (folder / "more.json").write_text("{}\n")
    write_card(folder)
    said = json.loads((folder / LAYOUT.provenance).read_text())
    assert "more.json" in [one["name"] for one in said["subject"]]
    assert read_built(folder, read_manifest(folder)) == BUILT
    check_card(folder)


def test_what_is_installed_is_what_makes_exports():
    found = installed()
    assert {"safetykit", "torch", "onnx", "onnxruntime", "numpy"} <= set(found) and "pytest" not in found
