"""The pair stage under a compiler."""

import torch

from helpers import literal
from llip import devices
from llip.config import ObjectiveConfig
from llip.devices import Device
from llip.model.features import ImageFeatures, TextFeatures
from llip.pairs.losses import ScoreParameters, loss_of_features


def error_of_traced_stage(device: Device) -> float:
    """Largest error of the loss and its gradients, by the forms of a device, traced without a break."""
    image, text, out_proj_DD = literal.features("text_query", 4, 4)
    own = ScoreParameters(out_proj_DD, 1.7, torch.tensor(1.0).double(), torch.tensor(-2.0).double())

    def stage(image: ImageFeatures, text: TextFeatures) -> torch.Tensor:
        return loss_of_features(image, text, own, config=ObjectiveConfig()).loss

    with devices.as_on(device):
        torch.compiler.reset()
        values = [f(image, text) for f in (stage, torch.compile(stage, fullgraph=True, backend="aot_eager"))]
        found = [torch.autograd.grad(value, (*image, *text)) for value in values]
    return literal.errors((values[0], *found[0]), (values[1], *found[1]))
