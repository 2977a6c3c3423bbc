"""Models in and out of files: this project's own, Llip's public release, and CLIP in the names of OpenAI and open_clip.

No code is ever run: a file may hold tensors and plain containers, and any other content is refused.
"""

from llip.interop.llip_release import export_llip_release, load_llip_release
from llip.interop.model_folder import CONFIG, WEIGHTS, load_model, save_model
from llip.interop.names import RELEASE_NAMES
from llip.interop.open_clip import export_open_clip, load_open_clip

__all__ = [
    "CONFIG",
    "RELEASE_NAMES",
    "WEIGHTS",
    "export_llip_release",
    "export_open_clip",
    "load_llip_release",
    "load_model",
    "load_open_clip",
    "save_model",
]
