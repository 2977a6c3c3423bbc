"""Whatever weights may be named by: a run, one of its checkpoints, a model's folder, or weights of others."""

import hashlib
import os
from dataclasses import dataclass, replace
from typing import NamedTuple

from llip import interop, storage
from llip.config import Activation, ModelConfig, TrainingConfig
from llip.contrastive import ContrastiveModel
from llip.data.preprocess import Preprocess, Tokenize
from llip.fields import differences, from_dict
from llip.interop import llip_release, open_clip, open_clip_config, sharded_safetensors
from llip.interop.tensor_files import SUFFIXES, read_tensors
from llip.recipes import recipe as recipe_of
from llip.runs import run_folder
from llip.runs.tracking import MODELS, checkpoint_of
from llip.training import checkpoint


class Loaded(NamedTuple):
    """A model and what makes its inputs of images and captions."""

    model: ContrastiveModel
    """In evaluation mode, on the CPU."""
    preprocess: Preprocess
    """A file, its bytes, an image of Pillow or an array -> pixels [3, S, S]."""
    tokenize: Tokenize
    """A caption or several -> token ids [T, L]."""


def load(
    source: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    activation: Activation | None = None,
    vision_head_width: int | None = None,
    text_head_width: int | None = None,
) -> Loaded:
    """A model of anything that can be read, with its own preparation of images and captions.

        model, preprocess, tokenize = llip.load("output/runs/<name>")

    `source` is a run folder (its newest checkpoint is taken), a checkpoint, `models:/…` of MLflow, a folder with a
    model, one of open_clip, or a file of released weights, local or remote; the rest is what such files may not tell.
    Raises ValueError, naming what would be right, for anything else.
    """
    told = {"activation": activation, "vision_head_width": vision_head_width, "text_head_width": text_head_width}
    model = Weights.find(source, recipe=recipe, **told).load().eval()  # type: ignore[arg-type]
    config = model.config
    preprocess = Preprocess(image_size=config.vision.image_size, config=config.preprocessing)
    return Loaded(model, preprocess, Tokenize(context_length=config.text.context_length))


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Place of the weights of a model, and the run that they belong to."""

    given: str
    """Absolute URI of what the user named."""
    uri: str
    """Absolute URI of the model's folder or file."""
    is_file: bool = False
    """Whether they are a file of others."""
    recipe: str | None = None
    activation: Activation | None = None
    vision_head_width: int | None = None
    text_head_width: int | None = None
    """Settings, like the two before, that the tensors of a file of others' weights do not tell."""
    run: str | None = None
    """Absolute URI of the run folder; None outside of one."""
    step: int | None = None
    """Number of updates behind them, where a run says so."""

    @classmethod
    def find(
        cls,
        uri: str | os.PathLike[str],
        *,
        recipe: str | None = None,
        activation: Activation | None = None,
        vision_head_width: int | None = None,
        text_head_width: int | None = None,
    ) -> "Weights":
        """The weights that a URI names. Raises ValueError for a URI of none, and for settings that the weights tell."""
        uri = os.fspath(uri)
        if uri.startswith(MODELS):
            uri = checkpoint_of(uri)
        given = storage.absolute(uri).rstrip("/")
        if not storage.exists(given):
            raise ValueError(f"{uri} does not exist; name {', or '.join(KINDS)}")
        told = {
            "recipe": recipe,
            "activation": activation,
            "vision_head_width": vision_head_width,
            "text_head_width": text_head_width,
        }
        if (file := _file_of_others(given)) is not None:
            return cls(given=given, uri=file, is_file=True, **told)  # type: ignore[arg-type]
        if superfluous := [name for name, value in told.items() if value is not None]:
            flag = superfluous[0].replace("_", "-")
            raise ValueError(f"--{flag} is for a file of released weights; {uri} says itself what it holds")
        folder = _own_folder(given) or checkpoint.latest(given)
        if folder is None:
            raise ValueError(f"{uri} is neither {', nor '.join(KINDS)}")
        if not storage.exists(storage.join(folder, run_folder.STATE)):
            return cls(given=given, uri=folder)
        return cls(given=given, uri=folder, run=folder.rsplit("/", 2)[0], step=checkpoint.step_of(folder))

    @property
    def told(self) -> dict[str, str | int]:
        """Settings of the weights that the user gave."""
        values = {
            "recipe": self.recipe,
            "activation": self.activation,
            "vision_head_width": self.vision_head_width,
            "text_head_width": self.text_head_width,
        }
        return {name: value for name, value in values.items() if value is not None}

    def digest(self) -> str:
        """SHA-256 of the weights, which a checkpoint notes, and of the configuration beside a file of others."""
        if self.run is not None:
            return checkpoint.model_digest(self.uri)
        if not self.is_file:
            sums = [_sha256(uri) for uri in sharded_safetensors.uris(self.uri, "model")]
        else:
            beside = storage.beside(self.uri, open_clip_config.CONFIG)
            sums = [_sha256(uri) for uri in (self.uri, beside) if storage.exists(uri)]
        return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()

    def load(self) -> ContrastiveModel:
        """The model, on the CPU. Raises ValueError for weights of another format or of another recipe."""
        model = self._from_others() if self.is_file else interop.load_model(self.uri)
        if model.config.text.vocabulary != VOCABULARY:
            raise ValueError(
                f"{self.uri} has a vocabulary of {model.config.text.vocabulary}: its captions are not encoded by "
                f"CLIP's {VOCABULARY} tokens, which are the only ones here"
            )
        return model

    def _from_others(self) -> ContrastiveModel:
        expected = recipe_of(self.recipe).model if self.recipe is not None else None
        state = read_tensors(self.uri)
        vision_head_width, text_head_width, activation = self.vision_head_width, self.text_head_width, self.activation
        if expected is not None:
            vision_head_width = vision_head_width or expected.vision.head_width
            text_head_width = text_head_width or expected.text.width // expected.text.heads
            activation = activation or expected.activation
        if llip_release.is_release(state):
            model = llip_release.load_llip_release(
                self.uri,
                tensors=state,
                num_heads=expected.head.heads if expected else 8,
                temperature=expected.head.temperature if expected else None,
                activation=activation or "quick_gelu",
                vision_head_width=vision_head_width,
                text_head_width=text_head_width,
            )
        else:
            model = open_clip.load_open_clip(
                self.uri,
                tensors=state,
                activation=activation,
                vision_head_width=vision_head_width,
                text_head_width=text_head_width,
            )
        if expected is not None and (wrong := _unlike(expected, model.config)):
            raise ValueError(f"{self.uri} does not hold a model of recipe {self.recipe} ({'; '.join(wrong)})")
        return model


VOCABULARY = 49408
"""Tokens of CLIP's byte-pair encoding."""

KINDS = (
    "a run folder with a complete checkpoint",
    f"a folder with a {interop.WEIGHTS} and {interop.CONFIG}",
    f"a folder with an {open_clip_config.CONFIG}",
    f"a file of weights ({', '.join(SUFFIXES)})",
)
"""Kinds of weights that a URI can name."""


def origin(config: TrainingConfig, newest: str | None) -> tuple[TrainingConfig, ContrastiveModel | None]:
    """Configuration and weights that a run starts from.

    A run with `init_from` takes over the activation, the epsilons of norms and the preparation of images of these
    weights. A run that has a `newest` checkpoint takes them from the checkpoint. The weights are None then, and for a
    run without `init_from`.
    """
    if config.init_from is None:
        return config, None
    if newest is not None:
        begun = from_dict(ModelConfig, storage.read_json(storage.join(newest, interop.CONFIG)))
        return replace(config, model=_adopting(config.model, begun)), None
    weights = Weights.find(config.init_from)
    silent = weights.is_file and not storage.exists(storage.beside(weights.uri, open_clip_config.CONFIG))
    if silent:
        text = config.model.text  # the towers have to be the same, so that the run's own settings tell
        weights = replace(
            weights,
            activation=config.model.activation,
            vision_head_width=config.model.vision.head_width,
            text_head_width=text.width // text.heads,
        )
    source = weights.load()
    if silent:
        return replace(config, model=replace(config.model, preprocessing=source.config.preprocessing)), source
    return replace(config, model=_adopting(config.model, source.config)), source


def _adopting(model: ModelConfig, source: ModelConfig) -> ModelConfig:
    text = replace(model.text, activation=source.text.activation, norm_epsilon=source.text.norm_epsilon)
    return replace(
        model,
        activation=source.activation,
        vision=replace(model.vision, norm_epsilon=source.vision.norm_epsilon),
        text=text,
        preprocessing=source.preprocessing,
    )


def _file_of_others(uri: str) -> str | None:
    """The file of weights that a URI names, or that a folder of open_clip holds; None for what is in our format."""
    folder, _, name = uri.rpartition("/")
    if uri.endswith(SUFFIXES) and not _is_folder(uri):
        own = storage.exists(storage.join(folder, interop.CONFIG)) and sharded_safetensors.is_part(name, "model")
        return None if own else uri
    if not storage.exists(storage.join(uri, open_clip_config.CONFIG)):
        return None
    found = [path for path in storage.sizes(uri) if "/" not in path and path.endswith(SUFFIXES)]
    chosen = [path for path in found if path == open_clip.WEIGHTS] or [p for p in found if p.startswith("open_clip_")]
    if len(chosen or found) != 1:
        held = ", ".join(found) or "none"
        raise ValueError(f"{uri} has to hold one file of weights beside its {open_clip_config.CONFIG}; it holds {held}")
    return storage.join(uri, (chosen or found)[0])


def _own_folder(uri: str) -> str | None:
    """The folder of a model in this project's format, or that of the file that is named."""
    folder = uri.rpartition("/")[0] if uri.endswith(SUFFIXES) and not _is_folder(uri) else uri
    return folder if storage.exists(storage.join(folder, interop.CONFIG)) else None


def _is_folder(uri: str) -> bool:
    files, path = storage.filesystem(uri)
    return bool(files.isdir(path))


def _unlike(expected: ModelConfig, found: ModelConfig) -> list[str]:
    """Lines on where the parts of two models differ.

    Initialisation and dropout are left out, since no file tells them, and activations and norms, which the file beside
    the weights tells.
    """
    vision = replace(expected.vision, patch_dropout=found.vision.patch_dropout, position_std=None)
    vision = replace(vision, norm_epsilon=found.vision.norm_epsilon)
    text = replace(expected.text, activation=found.text.activation, norm_epsilon=found.text.norm_epsilon)
    expected = replace(expected, vision=vision, text=text)
    parts = ("vision", "text", "head")
    return [line for part in parts for line in differences(getattr(expected, part), getattr(found, part), part)]


def _sha256(uri: str) -> str:
    with storage.opened(uri) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
