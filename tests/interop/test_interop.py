"""Checkpoints of other projects against a literal computation, and against open_clip itself."""

import argparse
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from helpers.release_files import (
    END,
    release_state,
)
from torch import Tensor

from llip import interop, load_model, recipe
from llip.config import Activation, HeadConfig, ModelConfig, TextConfig, VisionConfig
from llip.contrastive import ContrastiveModel, create_model

load_open_clip = partial(interop.load_open_clip, vision_head_width=64, text_head_width=64)
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[1, 5, 6, END, 0, 0, 0, 0, 0], [1, 7, 7, 8, 9, 4, 3, 2, END], [1, END, 0, 0, 0, 0, 0, 0, 0]])


def open_clip_model(*, quick_gelu: bool = True, **options: Any) -> open_clip.CLIP:
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=48,
        vision_cfg=open_clip.CLIPVisionCfg(image_size=32, patch_size=8, width=128, layers=3, head_width=64),
        text_cfg=open_clip.CLIPTextCfg(context_length=16, vocab_size=60, width=64, heads=1, layers=2),
        quick_gelu=quick_gelu,
        **options,
    )
    for parameter in model.parameters():  # biases and norms too
        if parameter.ndim:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def write_pt(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": t for name, t in state.items()}}, path)


def write_bin(state: dict[str, Tensor], path: Path) -> None:
    torch.save({name: t.half() for name, t in state.items()} | {"input_resolution": torch.tensor(32)}, path)


def write_torchscript(state: dict[str, Tensor], path: Path) -> None:
    """As OpenAI did: a traced model in half precision."""
    model = open_clip_model()
    model.load_state_dict(state)
    traced = torch.jit.trace(model, (torch.zeros(1, 3, 32, 32), torch.zeros(1, 16).long()), check_trace=False)
    torch.jit.save(traced.half(), path)


def assert_features_are_those_of(theirs: open_clip.CLIP, ours: ContrastiveModel, tolerance: float) -> None:
    pixels, ids = torch.randn(4, 3, 32, 32), torch.zeros(5, 16, dtype=torch.long)
    for caption, length in enumerate((3, 16, 7, 2, 9)):
        ids[caption, :length] = torch.randint(1, 59, (length,))
        ids[caption, length - 1] = 59
    with torch.no_grad():
        images, texts = ours(pixels, ids)
        expected = theirs.encode_image(pixels), theirs.encode_text(ids)
        for feature, reference in zip((images.vector_BD, texts.vector_BD), expected, strict=True):
            scale = reference.abs().max()
            torch.testing.assert_close(feature / scale, reference / scale, rtol=0, atol=tolerance)
        cosines = torch.nn.functional.normalize(expected[0]) @ torch.nn.functional.normalize(expected[1]).T
        torch.testing.assert_close(ours.pair_scores(images, texts), cosines, rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated
@pytest.mark.parametrize(
    ("name", "write", "bias", "tolerance"),
    [
        ("clip.safetensors", safetensors.torch.save_file, None, 1e-5),
        ("clip.pt", write_pt, -10.0, 1e-5),
        ("clip.bin", write_bin, None, 2e-2),
        ("openai.pt", write_torchscript, None, 2e-2),
    ],
)
def test_features_are_those_of_open_clip(
    tmp_path: Path, name: str, write: Callable[[dict[str, Tensor], Path], None], bias: float | None, tolerance: float
) -> None:
    theirs = open_clip_model(init_logit_bias=bias)
    write(theirs.state_dict(), tmp_path / name)
    ours = load_open_clip(tmp_path / name)
    assert (ours.logit_bias is None) == (bias is None)
    assert_features_are_those_of(theirs, ours, tolerance)


def write_config(folder: Path, **values: object) -> None:
    towers = {"vision_cfg": {"width": 128, "layers": 3}, "text_cfg": {"width": 64, "heads": 1, "context_length": 16}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": towers | values}))


@pytest.mark.parametrize(
    ("quick_gelu", "activation", "other"), [(False, "gelu", "quick_gelu"), (True, "quick_gelu", "gelu")]
)
@pytest.mark.parametrize("beside", [False, True])
def test_either_activation_is_read(
    tmp_path: Path, beside: bool, quick_gelu: bool, activation: Activation, other: Activation
) -> None:
    """As the configuration beside the file says (exact where it says nothing, as in open_clip), or the option."""
    theirs, path = open_clip_model(quick_gelu=quick_gelu), str(tmp_path / "open_clip_model.safetensors")
    safetensors.torch.save_file(theirs.state_dict(), path)
    if beside:
        write_config(tmp_path, **({"quick_gelu": True} if quick_gelu else {}))
        ours = interop.load_open_clip(path)
        with pytest.raises(ValueError, match=f"activation={other} contradicts the open_clip_config"):
            interop.load_open_clip(path, activation=other)
    else:
        ours = load_open_clip(path, activation=activation)
    assert_features_are_those_of(theirs, ours, 1e-5)


def test_an_activation_that_nothing_tells_is_taken_for_quickgelu_with_a_warning(tmp_path: Path) -> None:
    state, path = open_clip_model().state_dict(), tmp_path / "metaclip.pt"
    write_pt(state, path)
    with pytest.warns(UserWarning, match=r"metaclip\.pt does not say its activation.* \(--activation\)"):
        assert load_open_clip(path).config.activation == "quick_gelu"
    write_bin(state, tmp_path / "openai.bin")  # OpenAI's own files have marks of their own, and only QuickGELU
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_open_clip(tmp_path / "openai.bin").config.activation == "quick_gelu"


@pytest.mark.parametrize(("bias", "activation"), [(None, "quick_gelu"), (-10.0, "gelu")])
def test_open_clip_reads_what_is_exported_to_it(tmp_path: Path, bias: float | None, activation: Activation) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        embed_dim=32,
        vision=VisionConfig(image_size=32, patch_size=8, width=64, layers=2, head_width=32, mlp_width=200),
        text=TextConfig(context_length=16, vocabulary=60, width=64, heads=2, layers=2),
        head=HeadConfig(kind="class_token"),
        activation=activation,
        init_logit_bias=bias,
    )
    ours = create_model(config)
    interop.export_open_clip(ours, str(tmp_path))
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    pixels, ids = torch.randn(2, 3, 32, 32), torch.tensor([[1, 2, 59] + [0] * 13, [4] * 15 + [59]])
    with torch.no_grad():
        images, texts = ours(pixels, ids)
        torch.testing.assert_close(images.vector_BD, theirs.encode_image(pixels), rtol=0, atol=1e-5)
        torch.testing.assert_close(texts.vector_BD, theirs.encode_text(ids), rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.logit_scale, ours.logit_scale)
    assert (theirs.logit_bias is None) == (bias is None)
    assert interop.load_open_clip(str(tmp_path / "open_clip_model.safetensors")).config == config


def test_a_mixture_cannot_be_exported_to_open_clip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="open_clip has no text_query head"):
        interop.export_open_clip(create_model("llip_tiny_k8"), str(tmp_path))


@pytest.mark.parametrize("name", ["llip_tiny_k8", "clip_tiny", "image_query_tiny_k8"])
def test_saved_models_come_back(tmp_path: Path, name: str) -> None:
    model = create_model(name)
    interop.save_model(model, str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    loaded = load_model(str(tmp_path))
    assert loaded.config == model.config == recipe(name).built_model
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


class TestRefusals:
    def test_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"model\.json does not exist: .* does not hold a model"):
            load_model(str(tmp_path))

    def test_weights_of_another_configuration(self, tmp_path: Path) -> None:
        interop.save_model(create_model("llip_tiny_k8"), str(tmp_path))
        values = json.loads((tmp_path / "model.json").read_text())
        values["vision"]["tokens"] = 9
        (tmp_path / "model.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"vision\.tokens has shape \[8, 128\], not \[9, 128\]"):
            load_model(str(tmp_path))

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"nothing\.pt does not exist"):
            interop.load_open_clip(str(tmp_path / "nothing.pt"))

    def test_pickled_objects(self, tmp_path: Path) -> None:
        content = {"state_dict": release_state(False), "args": argparse.Namespace(lr=1)}
        torch.save(content, tmp_path / "llip.pt")
        with pytest.raises(ValueError, match=r"llip\.pt holds a argparse\.Namespace .* could run code"):
            interop.load_llip_release(str(tmp_path / "llip.pt"))

    @pytest.mark.filterwarnings("ignore")
    def test_pickled_objects_in_a_torchscript_archive(self, tmp_path: Path) -> None:
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "plain.pt")
        with (
            zipfile.ZipFile(tmp_path / "plain.pt") as plain,
            zipfile.ZipFile(tmp_path / "evil.pt", "w") as evil,
        ):
            for name in plain.namelist():
                content = plain.read(name)
                evil.writestr(name, pickle.dumps(eval) if name.endswith("data.pkl") else content)
        with pytest.raises(ValueError, match=r"evil\.pt holds a builtins\.eval .* could run code"):
            interop.load_open_clip(str(tmp_path / "evil.pt"))
        with pytest.raises(
            ValueError, match=r"plain\.pt is not CLIP .* it has no visual\.class_embedding, but bias, weight"
        ):
            interop.load_open_clip(str(tmp_path / "plain.pt"))

    def test_no_tensors(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {"a": 1}}, tmp_path / "a.bin")
        with pytest.raises(ValueError, match="does not hold named tensors"):
            interop.load_open_clip(str(tmp_path / "a.bin"))
        (tmp_path / "b.pt").write_bytes(b"text")
        with pytest.raises(ValueError, match=r"b\.pt is not a file that torch\.save has written"):
            interop.load_open_clip(str(tmp_path / "b.pt"))
        with pytest.raises(ValueError, match=r"model\.json is not a checkpoint by its name"):
            (tmp_path / "model.json").write_text("{}")
            interop.load_open_clip(str(tmp_path / "model.json"))

    @pytest.mark.parametrize(
        ("name", "architecture"),
        [
            ("visual.attnpool.positional_embedding", "CLIP with a ResNet"),
            ("text_decoder.ln_final.weight", "CoCa"),
            ("visual.trunk.attn_pool.latent", r"SigLIP with attention pooling \(MAP\)"),
            ("text_model.embeddings.position_ids", "a model in the names of Hugging Face's"),
        ],
    )
    def test_another_architecture_by_name(self, tmp_path: Path, name: str, architecture: str) -> None:
        state = open_clip_model().state_dict() | {name: torch.zeros(2)}
        safetensors.torch.save_file(state, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=rf"holds {name}: it is {architecture}"):
            interop.load_open_clip(str(tmp_path / "other.safetensors"))

    def test_parameters_that_no_clip_has(self, tmp_path: Path) -> None:
        state = open_clip_model().state_dict() | {"visual.extra": torch.zeros(2)}
        safetensors.torch.save_file(state, tmp_path / "extra.safetensors")
        with pytest.raises(ValueError, match=r"holds visual\.extra, which a class_token model does not"):
            load_open_clip(str(tmp_path / "extra.safetensors"))

    def test_clip_is_not_llip_and_llip_is_not_clip(self, tmp_path: Path) -> None:
        safetensors.torch.save_file(open_clip_model().state_dict(), tmp_path / "clip.safetensors")
        with pytest.raises(ValueError, match=r"visual\.class_embedding has shape \[128\].*Llip"):
            interop.load_llip_release(str(tmp_path / "clip.safetensors"))
        safetensors.torch.save_file(release_state(False), tmp_path / "llip.safetensors")
        with pytest.raises(ValueError, match=r"visual\.class_embedding has shape \[3, 32\].*class token"):
            interop.load_open_clip(str(tmp_path / "llip.safetensors"))


def test_heads_are_those_of_the_configuration_beside_the_file(tmp_path: Path) -> None:
    safetensors.torch.save_file(open_clip_model().state_dict(), tmp_path / "open_clip_model.safetensors")
    towers = {"vision_cfg": {"width": 128, "head_width": 32}, "text_cfg": {"width": 64, "heads": 4}}
    write_config(tmp_path, **towers)
    loaded = interop.load_open_clip(str(tmp_path / "open_clip_model.safetensors")).config
    assert (loaded.vision.head_width, loaded.text.heads) == (32, 4)


@pytest.mark.parametrize(
    ("width", "head_width"), [(384, 64), (768, 64), (1024, 64), (1280, 80), (1408, 88), (1664, 104), (1792, 112)]
)
def test_heads_of_published_sizes_are_known(tmp_path: Path, width: int, head_width: int) -> None:
    vision = open_clip.CLIPVisionCfg(image_size=8, patch_size=8, width=width, layers=1, mlp_ratio=0.1)
    text = open_clip.CLIPTextCfg(context_length=4, vocab_size=9, width=256, heads=4, layers=1, mlp_ratio=0.1)
    safetensors.torch.save_file(open_clip.CLIP(8, vision, text).state_dict(), tmp_path / "clip.safetensors")
    config = interop.load_open_clip(tmp_path / "clip.safetensors", activation="gelu").config
    assert (config.vision.head_width, config.text.heads) == (head_width, 4)


def test_what_a_width_does_not_tell_is_asked_for(tmp_path: Path) -> None:
    safetensors.torch.save_file(open_clip_model().state_dict(), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=r"vision tower has the width 128.*--vision-head-width"):
        interop.load_open_clip(tmp_path / "clip.safetensors", activation="gelu")
    with pytest.raises(ValueError, match=r"text tower has the width 64.*--text-head-width"):
        interop.load_open_clip(tmp_path / "clip.safetensors", activation="gelu", vision_head_width=32)
    with pytest.raises(ValueError, match="a multiple of head_width 48"):
        interop.load_open_clip(tmp_path / "clip.safetensors", vision_head_width=48, text_head_width=64)
    with pytest.raises(ValueError, match=r"text_head_width 48 does not divide the width 64"):
        interop.load_open_clip(tmp_path / "clip.safetensors", vision_head_width=64, text_head_width=48)
    torch.save(release_state(False), tmp_path / "llip.pt")
    with pytest.raises(ValueError, match=r"no published Llip has a vision tower of width 32.* temperature"):
        interop.load_llip_release(tmp_path / "llip.pt")
