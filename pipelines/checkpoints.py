"""What a user may name as a checkpoint: a run, one of its checkpoints, a model's folder, a file of released weights."""

import hashlib
from dataclasses import dataclass, replace

from llip import interop, storage
from llip.config import differences
from llip.contrastive import ContrastiveModel
from llip.interop import load_llip_release, load_model, load_open_clip
from llip.recipes import recipe
from llip.training import checkpoint

RELEASED = (".pt", ".pth", ".bin", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where the weights of a model lie, and the run that they belong to."""

    given: str
    """Absolute URI of what the user named."""
    uri: str
    """Absolute URI of the model's folder or file."""
    recipe: str | None = None
    """Of a file of the paper's release: what its shapes do not tell."""
    run: str | None = None
    """Absolute URI of the run folder; None outside of one."""
    step: int | None = None
    """Number of updates behind them, where a run says so."""

    @classmethod
    def find(cls, uri: str, recipe: str | None = None) -> "Weights":
        """Raises ValueError for what is none of them, and for a recipe where the weights need none."""
        given = storage.absolute(uri).rstrip("/")
        if given.endswith(RELEASED):
            if not storage.exists(given):
                raise ValueError(f"--checkpoint {uri} does not exist")
            return cls(given=given, uri=given, recipe=recipe)
        if recipe is not None:
            raise ValueError(f"--recipe is for a file of released weights; {uri} says itself what it holds")
        folder = given if storage.exists(storage.join(given, interop.CONFIG)) else checkpoint.latest(given)
        if folder is None:
            raise ValueError(
                f"--checkpoint {uri} is neither a run folder with a complete checkpoint, nor a folder with a "
                f"{interop.WEIGHTS}, nor a file of weights ({', '.join(RELEASED)})"
            )
        if not storage.exists(storage.join(folder, checkpoint.STATE)):
            return cls(given=given, uri=folder)
        return cls(given=given, uri=folder, run=folder.rsplit("/", 2)[0], step=checkpoint.step_of(folder))

    @property
    def is_file(self) -> bool:
        return self.uri.endswith(RELEASED)

    def digest(self) -> str:
        """SHA-256 of the weights: the one that a checkpoint notes, or else that of the file."""
        if self.run is not None:
            return checkpoint.model_digest(self.uri)
        file = self.uri if self.is_file else storage.join(self.uri, interop.WEIGHTS)
        return hashlib.sha256(storage.read_bytes(file)).hexdigest()

    def load(self) -> ContrastiveModel:
        """The model, on the CPU. Raises ValueError for weights of another format or of another recipe."""
        if not self.is_file:
            return load_model(self.uri)
        if self.recipe is None:
            return load_open_clip(self.uri)
        expected = recipe(self.recipe).model
        # how weights were drawn and trained is nothing that a file tells
        expected = replace(expected, vision=replace(expected.vision, patch_dropout=0.0, position_std=None))
        model = load_llip_release(
            self.uri,
            num_heads=expected.head.heads,
            temperature=expected.head.temperature,
            vision_head_width=expected.vision.head_width,
            text_head_width=expected.text.width // expected.text.heads,
        )
        parts = ("vision", "text", "head")
        if wrong := [d for p in parts for d in differences(getattr(expected, p), getattr(model.config, p), p)]:
            raise ValueError(f"{self.uri} does not hold a model of recipe {self.recipe} ({'; '.join(wrong)})")
        return model
