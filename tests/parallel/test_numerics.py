"""float32 means float32 for every backend: read off what the TPU compiler made."""

import re
from typing import Any

import pytest
from helpers import small_config

from looped_jax.cost import tpu
from looped_jax.training.job import abstract_batch, jitted_train_step, make_job

WIDE = dict(
    model__d_model=128, model__num_heads=1, model__d_ff=256, data__length=128, mesh__fsdp=2
)  # fmt: skip


def product_operands(**overrides: Any) -> list[tuple[str, ...]]:
    """The operand types of every matrix product of a training step compiled for a TPU."""
    job = make_job(
        small_config(**WIDE, **overrides), needs_data=False, devices=tpu.describe("v5e:2x2")
    )
    with job.context():
        lowered = jitted_train_step(job).lower(job.layout.abstract, abstract_batch(job))
    text = lowered.compile().as_text()
    types = dict(re.findall(r"(%[\w.-]+) = \(?(\w+)\[", text))
    products = re.findall(r" = \w+\[[^=]*? (?:dot|convolution)\((%[\w.-]+), (%[\w.-]+)\)", text)
    return [tuple(types[name] for name in operands) for operands in products]


@pytest.mark.parametrize("attention", ["xla", "splash"])
def test_no_product_of_a_float32_model_has_a_bfloat16_operand_on_a_tpu(attention: str) -> None:
    found = product_operands(model__attention=attention)
    assert len(found) > 10
    assert set(found) == {("f32", "f32")}


def test_a_bfloat16_model_keeps_its_products() -> None:
    assert ("bf16", "bf16") in set(product_operands(model__dtype="bfloat16"))
