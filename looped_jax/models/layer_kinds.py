"""Which layers a segment has: those of config.model.layer, or those of a kind of loop."""

from collections.abc import Mapping

from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import Layer
from looped_jax.models.ngpt import NgptLayer

LAYERS: dict[str, type[Layer]] = {"pre_norm": Layer, "ngpt": NgptLayer}


def layer_class(config: ModelConfig, of_loops: Mapping[str, type[Layer]]) -> type[Layer]:
    """The layers of a segment. ``of_loops``: by option and value of config.loop (`per_loop='lora'`)
    the class that this kind of loop asks for, Layer if it asks for none.

    UserError for two that ask for different ones, which would not know of each other, and for one
    that asks while config.model.layer is another than the one that such classes extend.
    """
    asking = [f"config.loop.{what}" for what, kind in of_loops.items() if kind is not Layer]
    if not asking:
        return LAYERS[config.layer]
    if len(asking) > 1:
        raise UserError(f"{' and '.join(asking)} each change what is inside layers; choose one")
    if config.layer != "pre_norm":
        raise UserError(
            f"{asking[0]} changes what is inside layers of config.model.layer='pre_norm'; it does "
            f"not go with {config.layer!r}"
        )
    (found,) = {kind for kind in of_loops.values() if kind is not Layer}
    return found
