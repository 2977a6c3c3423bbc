"""The whole model: two towers, a head, a scale and a bias.

Axes: B images · T captions · D compared width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llip.config import ModelConfig, TrainingConfig
from llip.model.features import (
    Extra,
    Head,
    ImageFeatures,
    Message,
    Mixture,
    Outputs,
    Pooled,
    Query,
    Terms,
    TextFeatures,
    mix,
)
from llip.model.packing import PackedCaptions, pack
from llip.model.towers import TextTransformer, Transformer, VisionTransformer
from llip.model.words import WordPrediction
from llip.pairs import scoring
from llip.recipes import recipe


class ContrastiveModel(nn.Module):
    """Llip, CLIP or SigLIP on one device: which one is a matter of its configuration."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision, config.kept_states, config.activation)
        self.text = TextTransformer(config.text, config.activation)
        self.head = Head(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.init_logit_scale)))
        """Logarithm of the factor of the cosines, a scalar."""
        bias = config.init_logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))
        """Added to the scaled cosines, a scalar; None for a model without a bias."""
        text, width = config.text, config.vision.width
        self.words = WordPrediction(width, text.vocabulary, text.context_length) if config.word_weight else None
        """Used in training alone."""

    def encode_image(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """Features of [B, 3, S, S] normalised pixels. Raises ValueError for another shape."""
        return self.head.image_features(self.vision(pixels_BCHW))

    def encode_text(self, token_ids_TL: Tensor | PackedCaptions) -> TextFeatures:
        """Features of [T, L] token ids, 0-padded to any L up to the context. Raises ValueError beyond it."""
        packed = self.pack(token_ids_TL) if isinstance(token_ids_TL, Tensor) else token_ids_TL
        return self.head.text_features(self.text(*packed))

    def pack(self, token_ids_TL: Tensor) -> PackedCaptions:
        """Token ids as the text tower takes them, on the model's device. Raises ValueError beyond the context.

        They are packed on the CPU: ids that lie there already spare an accelerator a round trip.
        """
        length, context = token_ids_TL.shape[1], self.config.text.context_length
        if length > context:
            raise ValueError(f"captions have {length} tokens; this model takes at most {context}")
        packed = pack(token_ids_TL, latents=self.text.latent_count, context_length=context)
        return packed.to(self.logit_scale.device)

    def forward(self, pixels_BCHW: Tensor, token_ids_TL: Tensor | PackedCaptions) -> Outputs:
        """Features of a batch of images and of captions, which need not be as many.

        In training, what further losses take follows (`Extra`); captions then have to be as many for every image,
        caption-major.
        """
        # first, so that packing waits for nothing of this step
        packed = self.pack(token_ids_TL) if isinstance(token_ids_TL, Tensor) else token_ids_TL
        texts, extras = self.encode_text(packed), list[Extra]()
        if not self.training or (self.words is None and self.head.global_image is None):
            return self.encode_image(pixels_BCHW), texts
        vision = self.config.vision
        states_BNW = self.vision(pixels_BCHW, vision.tokens + vision.patches if self.words else None)
        if self.head.global_image is not None:
            extras.append(self.head.global_image(states_BNW))
        if self.words is not None:
            extras.append(Terms(self.config.word_weight * self.words(states_BNW[:, vision.tokens :], packed)))
        return self.head.image_features(states_BNW[:, : self.vision.kept]), texts, *extras

    def prepare_texts(self, texts: TextFeatures) -> Message | Mixture:
        """Captions that many batches of images will be scored with: what depends on them alone is done once.

        For inference: these are of the precision of products. Tokens on the text side need nothing done.
        """
        return texts if isinstance(texts, Mixture) else scoring.message(texts, out_proj_DD=self.head.out_proj)

    def pair_scores(self, images: ImageFeatures, texts: TextFeatures | Message) -> Tensor:
        """Cosine of every image with every caption, [B, T] in [-1, 1], before scale and bias."""
        return scoring.pair_scores(
            images, texts, out_proj_DD=self.head.out_proj, temperature=self.config.mixing_temperature
        )

    def contextual_features(self, images: ImageFeatures, texts: TextFeatures) -> Tensor:
        """The mixed side's feature as each sample of the other side sees it, [B, T, D], of unit length (Llip, eq. 4).

        Takes the memory of every pair: for analysis. A model that mixes nothing has the same feature for every caption.
        """
        temperature = self.config.mixing_temperature
        match images, texts:
            case Mixture(), Query():
                feature_BTD = self.head.project(mix(images, texts.query_BME, temperature))
            case Query(), Mixture():
                feature_BTD = self.head.project(mix(texts, images.query_BME, temperature)).transpose(0, 1)
            case Pooled(), Pooled():
                feature_BTD = images.vector_BD[:, None].expand(-1, len(texts.vector_BD), -1)
            case _:
                raise ValueError(f"{type(images).__name__} and {type(texts).__name__} do not belong to one model")
        return F.normalize(feature_BTD, dim=-1)

    @torch.no_grad()
    def clamp_logit_scale(self, maximum: float) -> None:
        """Keep the scale in [1, maximum]."""
        self.logit_scale.clamp_(0, math.log(maximum))

    def compile_towers(self, backend: str = "inductor") -> None:
        """Compile both towers in place, the text tower for any layout of captions: packing stays outside."""
        self.vision.compile(fullgraph=True, backend=backend)
        self.text.compile(fullgraph=True, dynamic=True, backend=backend)

    def set_activation_checkpointing(self, on: bool) -> None:
        """Recompute the activations of every transformer block in the backward pass, or keep them."""
        for module in self.modules():
            if isinstance(module, Transformer):
                module.activation_checkpointing = on


def create_model(source: str | ModelConfig | TrainingConfig) -> ContrastiveModel:
    """A model with fresh weights (torch's global generator) from a recipe's name or a configuration.

    Raises ValueError for an unknown recipe.
    """
    if isinstance(source, str):
        source = recipe(source)
    return ContrastiveModel(source.built_model if isinstance(source, TrainingConfig) else source)
