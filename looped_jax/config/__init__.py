"""The configuration of a run: keys.py says what there is, the rest what is done with it."""

from ml_collections import ConfigDict

from looped_jax.config.config_dict import (
    apply_overrides,
    default_config,
    differences,
    differing_keys,
    flatten,
    from_json,
    get_key,
    parse_value,
    read_config,
    set_key,
    to_json,
    to_text,
    variant_config,
)
from looped_jax.config.experiment import call, load_experiment, load_function
from looped_jax.config.keys import ACTIVATION_NAMES, DEFAULT_SHARDING_RULES, KEYS
from looped_jax.config.places import ASSETS, PROJECT_ROOT
from looped_jax.config.validation import validate

__all__ = [
    "ACTIVATION_NAMES",
    "ASSETS",
    "DEFAULT_SHARDING_RULES",
    "KEYS",
    "PROJECT_ROOT",
    "ConfigDict",
    "apply_overrides",
    "call",
    "default_config",
    "differences",
    "differing_keys",
    "flatten",
    "from_json",
    "get_key",
    "load_experiment",
    "load_function",
    "parse_value",
    "read_config",
    "set_key",
    "to_json",
    "to_text",
    "validate",
    "variant_config",
]
