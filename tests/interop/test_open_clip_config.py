"""Every key of an `open_clip_config.json`: honoured, without effect, or refused by its name."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from open_clip import model as theirs
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from llip import interop
from llip.config import PreprocessConfig
from llip.data.preprocess import Preprocess
from llip.interop import open_clip_config as ours

VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"context_length": 16, "vocab_size": 60, "width": 64, "heads": 4, "layers": 2}


def write(folder: Path, **changes: Any) -> Any:
    """A model that open_clip makes of its own configuration, in a folder, of whichever class it has for that;
    `vision_cfg__key` changes a key."""
    content: dict[str, Any] = {"model_cfg": {"embed_dim": 48, "vision_cfg": dict(VISION), "text_cfg": dict(TEXT)}}
    content["preprocess_cfg"] = {}
    for name, value in changes.items():
        *where, key = name.split("__")
        section = content["model_cfg"]
        for part in where:
            section = content[part] if part in content else section[part]
        section[key] = value
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    made = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    for parameter in made.parameters():
        if parameter.ndim:
            torch.nn.init.normal_(parameter, std=0.2)
    safetensors.torch.save_file(made.state_dict(), folder / "open_clip_model.safetensors")
    return made.eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quick_gelu": True},
        {"vision_cfg__head_width": 16, "text_cfg__heads": 2},
        {"vision_cfg__mlp_ratio": 3.0, "text_cfg__mlp_ratio": 2.5},
        {"vision_cfg__pos_embed_type": "sin_cos_2d"},
        {"vision_cfg__final_ln_after_pool": True, "text_cfg__final_ln_after_pool": True},
        {"vision_cfg__patch_dropout": 0.5},
        {"vision_cfg__act_kwargs": {"approximate": "none"}, "text_cfg__norm_kwargs": {"eps": 1e-5}},
        {"vision_cfg__norm_kwargs": {"eps": 0.3}, "text_cfg__norm_kwargs": {"eps": 0.1}},
        {"vision_cfg__norm_kwargs": {"eps": 0.3, "bias": True}, "quick_gelu": True},
        {"vision_cfg__act_kwargs": {"approximate": "tanh"}, "text_cfg__act_kwargs": {"approximate": "tanh"}},
        {"vision_cfg__act_kwargs": {"approximate": "tanh"}},
        {"text_cfg__act_kwargs": {"approximate": "tanh"}, "text_cfg__norm_kwargs": {"eps": 1e-6}},
        {"text_cfg__pool_type": "eos", "text_cfg__eos_id": 59},
        {"text_cfg__pad_id": 7},
        {"custom_text": True},
        {"custom_text": True, "quick_gelu": True, "text_cfg__pool_type": "eos", "text_cfg__eos_id": 59},
        {"nonscalar_logit_scale": True, "init_logit_bias": -3.0},
    ],
)
def test_what_is_read_computes_what_open_clip_does(tmp_path: Path, changes: dict[str, Any]) -> None:
    reference = write(tmp_path, **changes)
    model = interop.load_open_clip(tmp_path / "open_clip_model.safetensors").eval()
    pixels = torch.randn(3, 3, 32, 32)
    ids = torch.tensor([[1, 2, 59] + [0] * 13, [4] * 15 + [59], [5, 59] + [0] * 14])
    with torch.no_grad():
        images, texts = model(pixels, ids)
        torch.testing.assert_close(images.vector_BD, reference.encode_image(pixels), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(texts.vector_BD, reference.encode_text(ids), rtol=1e-4, atol=1e-4)
    assert model.config.vision.patch_dropout == changes.get("vision_cfg__patch_dropout", 0.0)
    interop.export_open_clip(model, tmp_path / "exported")
    assert interop.load_open_clip(tmp_path / "exported" / "open_clip_model.safetensors").config == model.config


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("vision_cfg__no_ln_pre", True, "false"),
        ("vision_cfg__pool_type", "avg", "tok"),
        ("vision_cfg__attentional_pool", True, "false"),
        ("vision_cfg__ls_init_value", 1e-4, "null"),
        ("vision_cfg__norm_kwargs", {"eps": -1e-6}, "a positive number"),
        ("vision_cfg__norm_kwargs", {"bias": False}, "absent"),
        ("vision_cfg__act_kwargs", {"approximate": "erf"}, "none or tanh"),
        ("vision_cfg__qk_norm", True, "false"),
        ("vision_cfg__timm_model_name", "vit_base_patch16_clip_224", "null"),
        ("vision_cfg__image_size", 40, "32"),
        ("vision_cfg__width", 128, "64"),
        ("vision_cfg__layers", [1, 2, 3, 4], "one number"),
        ("vision_cfg__mlp_ratio", 2.0, "256"),
        ("text_cfg__no_causal_mask", True, "false"),
        ("text_cfg__pool_type", "last", "argmax"),
        ("text_cfg__embed_cls", True, "false"),
        ("text_cfg__proj_bias", True, "false"),
        ("text_cfg__norm_kwargs", {"eps": None}, "a positive number"),
        ("text_cfg__act_kwargs", {"alpha": 1.0}, "absent"),
        ("text_cfg__hf_model_name", "roberta-base", "null"),
        ("text_cfg__hf_tokenizer_name", "bert-base-uncased", "null"),
        ("text_cfg__tokenizer_kwargs", {"clean": "canonicalize"}, "cleaned as CLIP's"),
        ("text_cfg__scale_fc", True, "false"),
        ("text_cfg__context_length", 20, "16"),
        ("text_cfg__heads", 5, "a divisor of the width 64"),
        ("text_cfg__invented", 1, "absent"),
        ("multimodal_cfg", {"width": 64}, "null"),
        ("preprocess_cfg__mode", "L", "RGB"),
        ("preprocess_cfg__size", 48, "32"),
        ("preprocess_cfg__mean", [0.5, 0.5], "three numbers"),
        ("preprocess_cfg__interpolation", "lanczos", "bicubic or bilinear"),
        ("preprocess_cfg__resize_mode", "stretch", "shortest, longest, squash"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(tmp_path: Path, key: str, value: object, right: str) -> None:
    write(tmp_path)
    file = tmp_path / "open_clip_config.json"
    content = json.loads(file.read_text())
    *where, name = key.split("__")
    section = content["model_cfg"]
    for part in where:
        section = content[part] if part in content else section[part]
    section[name] = value
    file.write_text(json.dumps(content))
    named = name.replace("resize_mode", "resize")
    with pytest.raises(ValueError, match=rf"open_clip_config\.json: (?s:.)*{named}(?s:.)*{right}"):
        interop.load_open_clip(tmp_path / "open_clip_model.safetensors")


def test_quickgelu_takes_no_arguments_and_is_that_of_both_towers(tmp_path: Path) -> None:
    write(tmp_path)
    model = interop.load_open_clip(tmp_path / "open_clip_model.safetensors")
    content = json.loads((tmp_path / "open_clip_config.json").read_text())
    content["model_cfg"] |= {"quick_gelu": True}
    content["model_cfg"]["text_cfg"]["act_kwargs"] = {"approximate": "tanh"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"act_kwargs\.approximate is 'tanh', .* QuickGELU takes no arguments"):
        interop.load_open_clip(tmp_path / "open_clip_model.safetensors")
    model.config = replace(model.config, text=replace(model.config.text, activation="quick_gelu"))
    with pytest.raises(ValueError, match=r"model\.text\.activation quick_gelu"):
        interop.export_open_clip(model, tmp_path)


def test_an_end_of_text_that_is_not_the_highest_id_is_refused(tmp_path: Path) -> None:
    write(tmp_path, text_cfg__pool_type="eos", text_cfg__eos_id=2)
    with pytest.raises(ValueError, match=r"text_cfg\.eos_id is 2, .* it has to be 59"):
        interop.load_open_clip(tmp_path / "open_clip_model.safetensors")


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"model_cfg": {"embed_dim": 48}}', '{"model_cfg": 3}'])
def test_a_broken_configuration_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"open_clip_config\.json (cannot be read|holds a list|has no)"):
        interop.load_open_clip(tmp_path / "open_clip_model.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        {"mean": 0.4, "std": 0.2, "interpolation": "bilinear"},
        {"resize_mode": "squash"},
        {"resize_mode": "longest", "fill_color": 90},
        {"resize_mode": "longest", "interpolation": "random"},
        {"size": [32, 32], "mode": "RGB", "mean": None},
    ],
)
@pytest.mark.parametrize("size", [(90, 61), (40, 77), (20, 11)])
def test_images_are_prepared_as_by_open_clip(tmp_path: Path, changes: dict[str, Any], size: tuple[int, int]) -> None:
    reference = write(tmp_path, **{f"preprocess_cfg__{key}": value for key, value in changes.items()})
    config = interop.load_open_clip(tmp_path / "open_clip_model.safetensors").config
    levels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    photo = Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR)
    transform = image_transform_v2(PreprocessCfg(**reference.visual.preprocess_cfg), is_train=False)
    pixels = Preprocess(image_size=config.vision.image_size, config=config.preprocessing)(photo)
    difference = (pixels - transform(photo)).abs() * torch.tensor(config.preprocessing.std).view(3, 1, 1) * 255
    assert difference.max() < 2.1
    assert difference.mean() < 0.4


def test_preprocessing_is_saved_and_exported_with_the_model(tmp_path: Path) -> None:
    write(tmp_path, preprocess_cfg__mean=[0.5, 0.5, 0.5], preprocess_cfg__resize_mode="squash")
    model = interop.load_open_clip(tmp_path / "open_clip_model.safetensors")
    expected = PreprocessConfig(mean=(0.5, 0.5, 0.5), resize="squash")
    assert model.config.preprocessing == expected
    interop.save_model(model, tmp_path / "own")
    assert interop.load_model(tmp_path / "own").config == model.config
    interop.export_open_clip(model, tmp_path / "exported")
    assert interop.load_open_clip(tmp_path / "exported" / "open_clip_model.safetensors").config == model.config


def test_every_key_of_open_clips_own_classes_is_known() -> None:

    for section, neutral, kind in (
        ("vision_cfg", ours.VISION, theirs.CLIPVisionCfg),
        ("text_cfg", ours.TEXT, theirs.CLIPTextCfg),
    ):
        keys = {field.name for field in fields(kind)}
        assert keys == set(neutral) | set(ours.HONOURED[section])
    assert {field.name for field in fields(PreprocessCfg)} == set(ours.HONOURED["preprocess_cfg"])
