"""Anything that names weights, read by one function."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image
from skimage import data

import llip
from llip import create_model, interop, recipe
from llip.config import PreprocessConfig
from llip.contrastive import ContrastiveModel
from llip.interop.names import RELEASE_NAMES, translate
from llip.interop.warm_start import init_from
from llip.training import checkpoint
from llip.training.optimizer import build_optimizer
from llip.training.weights import Weights, origin

CAPTIONS = ["an astronaut", "a cat on a sofa", "a cup of coffee"]


def save_run(folder: Path, name: str = "llip_tiny_k8") -> ContrastiveModel:
    config = recipe(name)
    model = create_model(config)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    checkpoint.save(str(folder), 7, checkpoint.TrainingState(model, optimizer), config)
    return model


def save_open_clip(folder: Path) -> ContrastiveModel:
    model = create_model(replace(recipe("clip_tiny").built_model, preprocessing=PreprocessConfig(mean=(0.5, 0.5, 0.5))))
    interop.export_open_clip(model, folder)
    return model


def save_release(file: Path) -> ContrastiveModel:
    model = create_model("llip_tiny_k8")
    state = {translate(name, RELEASE_NAMES): tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, file)
    return model


@pytest.mark.parametrize("kind", ["run", "checkpoint", "folder", "own file", "open_clip", "open_clip file", "release"])
def test_anything_that_can_be_read_scores_a_photograph(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    source, told = tmp_path / "weights", dict[str, Any]()
    match kind:
        case "run" | "checkpoint":
            expected = save_run(source)
            source = source / "checkpoints" / "step-00000007" if kind == "checkpoint" else source
        case "folder" | "own file":
            expected = create_model("siglip_tiny")
            interop.save_model(expected, source)
            source = source / "model.safetensors" if kind == "own file" else source
        case "open_clip" | "open_clip file":
            expected = save_open_clip(source)
            source = source / "open_clip_model.safetensors" if kind == "open_clip file" else source
        case _:
            source = tmp_path / "llip.pt"
            expected, told = save_release(source), {"recipe": "llip_tiny_k8"}
    Image.fromarray(data.astronaut()).save(tmp_path / "astronaut.png")

    model, preprocess, tokenize = llip.load(source, **told)
    with torch.inference_mode():
        images = model.encode_image(preprocess(tmp_path / "astronaut.png")[None])
        scores = model.pair_scores(images, model.encode_text(tokenize(CAPTIONS)))

        assert not model.training
        assert preprocess.config == expected.config.preprocessing and preprocess.image_size == 48
        theirs = expected.eval().encode_text(tokenize(CAPTIONS))
        literal = expected.pair_scores(expected.encode_image(preprocess(data.astronaut())[None]), theirs)
    torch.testing.assert_close(scores, literal)


def test_a_photograph_is_the_same_however_it_is_given(tmp_path: Path) -> None:
    interop.save_model(create_model("clip_tiny"), tmp_path)
    preprocess, tokenize = llip.load(tmp_path)[1:]
    for name, picture in {"cat": data.cat(), "coffee": data.coffee(), "camera": data.camera()}.items():
        image = Image.fromarray(picture)
        image.save(tmp_path / f"{name}.png")
        file = tmp_path / f"{name}.png"
        given = [preprocess(x) for x in (file, str(file), file.read_bytes(), image, picture)]
        assert all(torch.equal(pixels, given[0]) for pixels in given)
        assert given[0].shape == (3, 48, 48) and given[0].dtype == torch.float32
    assert torch.equal(tokenize("a cat"), tokenize(["a cat"]))
    assert tokenize(["word " * 99]).shape == (1, 32)
    for broken in (b"no image", tmp_path / "missing.png", np.zeros((3, 3), dtype=complex)):
        with pytest.raises(ValueError, match="cannot be used"):
            preprocess(broken)


def test_options_that_weights_tell_themselves_are_refused(tmp_path: Path) -> None:
    save_run(tmp_path / "run")
    for option in ({"activation": "gelu"}, {"recipe": "llip_tiny_k8"}, {"vision_head_width": 64}):
        with pytest.raises(ValueError, match=f"--{next(iter(option)).replace('_', '-')} is for a file of released"):
            llip.load(tmp_path / "run", **option)


def test_what_is_no_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, says in {
        "empty": "empty is neither a run folder with a complete checkpoint, nor a folder with a model",
        "nothing": "nothing does not exist; name a run folder",
        "x.pt": "x.pt does not exist",
    }.items():
        with pytest.raises(ValueError, match=says):
            llip.load(tmp_path / name)
    save_open_clip(tmp_path / "two")
    shutil.copy(tmp_path / "two" / "open_clip_model.safetensors", tmp_path / "two" / "open_clip_other.bin")
    assert Weights.find(tmp_path / "two").uri.endswith("open_clip_model.safetensors")
    (tmp_path / "two" / "open_clip_model.safetensors").unlink()
    (tmp_path / "two" / "open_clip_other.bin").unlink()
    with pytest.raises(ValueError, match=r"has to hold one file of weights beside its open_clip_config\.json; .* none"):
        llip.load(tmp_path / "two")


def test_a_vocabulary_that_no_caption_here_is_encoded_in_is_refused(tmp_path: Path) -> None:
    vision = open_clip.CLIPVisionCfg(image_size=32, patch_size=16, width=64, layers=1, head_width=64)
    text = open_clip.CLIPTextCfg(context_length=16, vocab_size=32000, width=64, heads=1, layers=1)
    safetensors.torch.save_file(open_clip.CLIP(32, vision, text).state_dict(), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="has a vocabulary of 32000"):
        llip.load(tmp_path / "clip.safetensors", activation="gelu", vision_head_width=64, text_head_width=64)


def test_the_digest_is_that_of_everything_that_decides_the_model(tmp_path: Path) -> None:
    save_open_clip(tmp_path)
    first = Weights.find(tmp_path).digest()
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = "squash"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert Weights.find(tmp_path).digest() != first


@pytest.mark.parametrize("kind", ["open_clip", "file without a configuration", "run"])
def test_a_run_starts_with_the_activation_and_preprocessing_of_its_weights(tmp_path: Path, kind: str) -> None:
    config = recipe("clip_tiny")
    own = replace(
        config.model,
        activation="gelu",
        vision=replace(config.model.vision, norm_epsilon=1e-6),
        text=replace(config.model.text, norm_epsilon=1e-4),
        preprocessing=PreprocessConfig(resize="squash"),
    )
    source = tmp_path / "source"
    if kind == "run":
        interop.save_model(create_model(own), source)
    else:
        interop.export_open_clip(create_model(own), source)
    if kind == "file without a configuration":
        (source / "open_clip_config.json").unlink()
        source = source / "open_clip_model.safetensors"
        own = replace(own, preprocessing=PreprocessConfig())
        config = replace(config, model=own)
    started, weights = origin(replace(config, init_from=str(source)), None)
    assert started.model == own
    assert weights is not None
    init_from(create_model(started.model), weights)
    assert weights.config.vision.head_width == config.model.vision.head_width
    interop.save_model(create_model(started), tmp_path / "newest")
    resumed, nothing = origin(replace(config, init_from="gone"), str(tmp_path / "newest"))
    assert resumed.model == started.model and nothing is None
    assert origin(config, None) == (config, None)


def test_the_package_shows_what_it_offers() -> None:
    assert {"create_model", "load", "load_model", "recipe"} <= set(dir(llip))
    assert (Path(llip.__file__).parent / "py.typed").exists()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = llip.nothing
