"""Graphs as others write them, and their import."""

import shutil

import pytest
from foreign_folders import in_foreign_clothes, loaded
from shared import once

from safetykit.export.base.logits import give_all_logits
from safetykit.export.base.own import save_graph, write_base
from safetykit.export.foreign import importing
from safetykit.export.manifest import GRAPHS, LAYOUT, read_manifest, write_manifest
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.families.family import kv_shape


@pytest.fixture(scope="module")
def base_folder(vlm, tmp_path_factory):
    """Base graphs as others write them: attention of many nodes, logits at all positions."""

    def make(folder):
        folder.mkdir()
        manifest = write_base(vlm, folder, "fp32", fused=False)
        decoder = loaded(folder / LAYOUT.decoder)
        give_all_logits(decoder)
        save_graph(decoder, folder / LAYOUT.decoder)
        write_manifest(manifest, folder)

    return once(tmp_path_factory, "tiny-vlm-plain", make)


@pytest.fixture(scope="module")
def from_checkpoint(base_folder):
    """Takes graphs from the session's base export instead of exporting them again."""

    def write(vlm, folder, precision, progress=None, *, wanted=GRAPHS):
        manifest = read_manifest(base_folder)
        for name in manifest.files:
            if not name.startswith(GRAPHS) or name.startswith(tuple(wanted)):
                shutil.copyfile(base_folder / name, folder / name)
        heads, width = kv_shape(vlm.model.config.get_text_config())
        graphs = {name: manifest.graphs[name] for name in wanted}
        return manifest.model_copy(update={"graphs": graphs, "n_kv_heads": heads, "head_dim": width})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importing, "write_base", write)
        yield


@pytest.fixture
def imported(vlm, from_checkpoint, tmp_path):
    """Import a folder; the opened model and its manifest."""

    def run(folder, precision="fp32", model=vlm, **options):
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        manifest = importing.import_graphs(model, folder, work, precision, lambda _: None, **options)
        return OnnxVLM(work, manifest, model.inputs, ["CPUExecutionProvider"]), manifest

    return run


@pytest.fixture(scope="module")
def optimum(vlm, base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimum") / "out"
    return in_foreign_clothes(base_folder / "decoder.onnx", folder, vlm.parts.embed_tokens.weight)
