"""A layout and a family of other packages: one file each, found by entry points, and enumerated like our own."""

from __future__ import annotations

import shutil
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from safetykit.adapters import plugins
from safetykit.adapters.errors import UsageError
from safetykit.export.base.own import export_base
from safetykit.export.document.card import running_words
from safetykit.export.layouts.arrange import arrange, require_layout
from safetykit.export.layouts.check import compare_arranged, record_arranged
from safetykit.export.layouts.layout import RuntimeLayout
from safetykit.export.layouts.registry import LAYOUTS, get_layout, layout_names
from safetykit.export.manifest import read_manifest
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.pipeline.options import ExportOptions
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base
from safetykit.toolkit.families import Family, exportable, families, family_of, titles
from safetykit.toolkit.families.registry import FAMILIES
from safetykit.toolkit.model.vlm import VLM


def install(monkeypatch, registry, *points):
    """Have ``registry`` find these entry points, until the test ends."""
    registry.all()
    monkeypatch.setattr(registry, "_made", dict(registry._made))
    monkeypatch.setattr(registry, "_declared", dict(registry._declared))
    monkeypatch.setattr(registry, "_searched", False)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point for point in points if point.group == group])
    assert all(point.group == registry.group for point in points)


@pytest.fixture
def layout(monkeypatch):
    install(monkeypatch, LAYOUTS, EntryPoint("outside", "outside_layout:Outside", "safetykit.layouts"))
    return "outside"


@pytest.fixture
def family(monkeypatch):
    install(monkeypatch, FAMILIES, EntryPoint("outside_vlm", "outside_family:Outside", "safetykit.families"))
    return "outside_vlm"


def test_an_outside_layout_is_one_of_the_choices(layout):
    assert layout_names()[0] == "onnx" and layout in layout_names()
    assert get_layout(layout).title == "A runtime of somebody else's"


def test_an_outside_layout_is_planned_by_what_it_says_of_its_runtime(layout, make_adapter, make_detector):
    require_layout(layout, "idefics3", [make_adapter()], enforce=False)
    with pytest.raises(UsageError, match="Layout outside cannot carry this: nobody there reads the detector's risk"):
        require_layout(layout, "idefics3", [make_detector()], enforce=False)


def test_an_outside_layout_is_arranged_runs_and_has_its_words_in_the_card(
    layout, base_folder, make_adapter, requests, tmp_path
):
    plain = tmp_path / "plain"
    plain.mkdir()
    copy_base(base_folder, plain, read_manifest(base_folder))
    adapter = make_adapter(("SubspaceProjection", "decoder.layers.0", "all", "both"))
    adapt(plain, read_manifest(base_folder), [adapter])
    folder = shutil.copytree(plain, tmp_path / "arranged")
    manifest = arrange(folder, read_manifest(folder), layout)
    assert (manifest.layout, read_manifest(folder).layout) == (layout, layout)
    assert {"served.json", "served/decoder.onnx", "served/decoder.onnx.data"} <= set(manifest.files)
    gap = compare_arranged(
        [record_arranged(OnnxVLM.from_pretrained(plain), requests)], OnnxVLM.from_pretrained(folder), [requests]
    )
    assert (gap.error, gap.count > 1000) == (0, True)
    assert "reads `served.json`; this decoder lies in `served/decoder.onnx`." in running_words(manifest)


def test_a_misspelt_layout_is_refused_with_the_nearest(layout):
    with pytest.raises(
        UsageError, match=r"layout cannot be 'genia'. It is onnx, genai, outside, .*Did you mean 'genai'\?"
    ):
        get_layout("genia")
    with pytest.raises(UsageError, match="layout cannot be 'genia'.*Did you mean 'genai'"):
        ExportOptions(layout="genia")
    assert ExportOptions(layout=layout).layout == layout
    with pytest.raises(UsageError, match="layout cannot be 'xyz'. It is onnx, genai"):
        require_layout("xyz", "llava", [], enforce=False)


def test_two_layouts_of_one_name_and_what_is_no_layout_are_refused():
    class Second(RuntimeLayout):
        name = "genai"

    LAYOUTS.all()
    with pytest.raises(TypeError, match="Two layouts are called 'genai'"):
        LAYOUTS.register(Second)
    with pytest.raises(TypeError, match="is no RuntimeLayout"):
        LAYOUTS.register(dict)


def test_a_package_that_fails_takes_nothing_of_ours_down(monkeypatch):
    point = EntryPoint("broken", "there_is_no_such_module:Broken", "safetykit.layouts")
    install(monkeypatch, LAYOUTS, point)
    with pytest.warns(UserWarning, match="The layout 'broken'"):
        assert "genai" in layout_names()


@pytest.mark.slow
def test_an_outside_family_is_found_and_exported(family, vlm, requests, make_adapter, tmp_path):
    import outside_family

    model = VLM.from_pretrained(outside_family.write_checkpoint(vlm.path, tmp_path / "checkpoint"))
    config = model.model.config
    assert titles()[family] == "A VLM of somebody else's"
    assert isinstance(family_of(config), outside_family.Outside)
    found = exportable(config)
    assert (found["supported"], found["family"], found["attention"]) == (True, family, None)
    assert get_layout("genai").facts(family) == "gemma3"
    base, out = tmp_path / "base", tmp_path / "out"
    assert export_base(model, base).family == family
    adapter = make_adapter(("SubspaceProjection", "decoder.layers.0", "all", "both"))
    result = export_onnx(model, [adapter], out, base_onnx=base, allow_wrong_base=True)
    assert result.parity.passed and result.manifest.family == family
    with model.applied(adapter, allow_wrong_base=True):
        wanted = model.generate(requests, 4)
    found = OnnxVLM.from_pretrained(out).generate(requests, 4)
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]


def test_an_unknown_architecture_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="no base export for the architecture 'llavva'. Did you mean 'llava'?"):
        family_of(SimpleNamespace(model_type="llavva"))


def test_the_reason_why_a_family_is_not_exported_is_its_own():
    assert "mllama" not in families()
    with pytest.raises(UsageError, match="'mllama': its decoder attends across to the picture"):
        family_of(SimpleNamespace(model_type="mllama"))


def test_facts_about_families_are_attributes_of_families():
    for name, found in families().items():
        assert found.name == name and found.title and isinstance(found, Family)
        assert set(found.runs_in) <= set(layout_names())
