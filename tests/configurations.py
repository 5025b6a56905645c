"""Configurations of tiny codecs, changed and built."""

from torch import nn

from focalcodec.hub.config import build_parts


def constant(config, value=0.5):
    """Parts of a configuration, all of whose weights are one number."""
    parts = build_parts(config, where="config.json")
    for part in parts.values():
        for parameter in part.parameters():
            nn.init.constant_(parameter, value)
    return parts


def set_mixer(config, name, settings):
    """Replace the flat keys of the compressor by a mixer of ours."""
    words = config["compressor_config"]
    for word in [
        word for word in words if word.startswith(("focal", "use_", "layerscale", "norm"))
    ]:
        del words[word]
    words |= {"mixer_name": name, "mixer_config": settings}
