"""Golden figures: what a training step costs on every mesh and for a TPU, and the first losses of
small models that between them use every option. Committed in tests/golden/, so that nothing moves
unseen.

    python tests/golden.py            # or `make golden`: renews them, prints what moved
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import conftest  # The environment, before JAX is imported.
import jax
import numpy as np
from helpers import MESHES, small_config

from looped_jax.cost import compiled, tpu
from looped_jax.data.pipeline import train_batches
from looped_jax.models.format import MODEL_FORMAT
from looped_jax.parallel.mesh import put_batch
from looped_jax.training.job import Job, abstract_batch, jitted_train_step, make_job
from looped_jax.training.state import init_state

COSTS, LOSSES = (conftest.ROOT / "tests" / "golden" / f"{n}.json" for n in ("costs", "losses"))

# Wide and long enough that a device which computes what is another's shows in its FLOPs.
STEP = dict(
    model__plan="1x2",
    model__unroll="none",  # Half the time to compile.
    model__d_model=128,
    model__num_heads=8,
    model__d_ff=512,
    model__vocab_size=512,
    data__length=256,
    optimizer__name="adafactor",
)
SPLIT_LENGTH = {
    "8 sequence": dict(mesh__data=1, mesh__sequence=8),
    "2 data, 4 sequence": dict(mesh__data=2, mesh__sequence=4),
    "2 fsdp, 4 sequence": dict(mesh__data=1, mesh__fsdp=2, mesh__sequence=4),
}
ON_CPU = {**MESHES, **SPLIT_LENGTH}
TOPOLOGY = "v5e:2x2"
ON_TPU = {
    # Products of float32 take the compiler long: half the length, half the time.
    "float32": dict(mesh__data=4, model__remat="layer", data__length=128),
    "bfloat16, fsdp": dict(model__dtype="bfloat16", mesh__data=1, mesh__fsdp=4),
    "bfloat16, gathered, sequence": dict(
        model__dtype="bfloat16",
        model__gather="segment",
        mesh__data=1,
        mesh__fsdp=2,
        mesh__sequence=2,
    ),
}


@functools.cache
def cost(where: str, name: str) -> dict[str, float]:
    """Of a step on one device: FLOPs, bytes sent, temporaries; and the model's own FLOPs."""
    on_tpu = where == TOPOLOGY
    config = small_config(**{**STEP, **(ON_TPU if on_tpu else ON_CPU)[name]})
    devices = tpu.describe(TOPOLOGY) if on_tpu else None
    job = make_job(config, needs_data=False, devices=devices)
    with job.context():
        lowered = jitted_train_step(job).lower(job.layout.abstract, abstract_batch(job))
    program = lowered.compile()
    found = compiled.cost(program.as_text(), _splash(job))
    return {
        "flops": found.flops,
        "wire_bytes": found.wire_bytes,
        **{f"{kind} bytes": size for kind, size in sorted(found.collective_bytes.items())},
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "model_flops": model_flops(job),
    }


def _splash(job: Job) -> Callable[[Any], float]:
    from looped_jax.models.attention_kernels import splash_flops

    model, shards = job.model.config, job.mesh.shape["sequence"]
    return lambda call: splash_flops(call.name, [s.dims for s in call.shapes], model, shards)


def model_flops(job: Job) -> float:
    """Of a step, by the architecture, on one device."""
    from looped_jax.models.flops import train_flops

    model = job.model.config
    return train_flops(model, job.config.train.batch_size, model.max_length) / job.mesh.size


# Between them all options of config.model and config.loop that change numbers, all optimizers, and
# what else does.
MODELS = {
    "plain": dict(model__plan="1x2"),
    "middle loop, swiglu, layernorm, biases, learned positions, untied": dict(
        model__plan="1x1,1x2,1x1",
        model__mlp="swiglu",
        model__norm="layernorm",
        model__bias=True,
        model__positions="learned",
        model__tied_output=False,
        optimizer__name="adafactor",
    ),
    "relu, no norm, no positions, padded vocabulary, sgd, z-loss": dict(
        model__mlp="relu",
        model__norm="none",
        model__positions="none",
        model__vocab_size=32,
        optimizer__name="sgd",
        train__z_loss=0.1,
    ),
    "bfloat16, grouped queries, other rotation, regulariser, decay": dict(
        model__plan="4x1",
        model__dtype="bfloat16",
        model__num_kv_heads=2,
        model__rope_theta=100.0,
        regularizer__block=2,
        optimizer__weight_decay=0.1,
    ),
    "input injection, loop embedding": dict(
        model__plan="1x3", loop__injection="add", loop__per_loop="embedding"
    ),
    "concatenated input, noise, norms on the branch and after loops, QK norm": dict(
        model__plan="1x1,1x2",
        model__qk_norm=True,
        loop__injection="concat",
        loop__state="noise",
        loop__norms="branch",
        loop__last_norm="every_loop",
    ),
    "decay, zero state, norms on the stream, another epsilon": dict(
        model__plan="1x3,1x1",
        model__norm_eps=1e-5,
        loop__injection="decay",
        loop__state="zero",
        loop__norms="stream",
    ),
    "hyper-connection lanes, LoRA of another rank": dict(
        model__plan="1x3", loop__lanes="hyper", loop__per_loop="lora", loop__lora_rank=3
    ),
    "hyperloop, time": dict(model__plan="1x1,1x3", loop__lanes="hyperloop", loop__per_loop="time"),
    "nested, two stacks, cut gradients, gated attention, norms without scale": dict(
        model__plan="1x1,2x6",
        model__norm="rmsnorm_unscaled",
        model__attention_gate=True,
        loop__nest="two_stacks",
        loop__low_loops=2,
        loop__low_gradient_loops=(0,),
    ),
    "nested, one stack, input injection": dict(
        model__plan="1x4", loop__nest="one_stack", loop__injection="add"
    ),
    "nGPT's layers, heads of another size, the input at length 1": dict(
        model__plan="1x1,1x3",
        model__layer="ngpt",
        model__norm="l2",
        model__qk_norm=True,
        model__mlp="swiglu",
        model__head_size=8,
        loop__injection="unit_add",
    ),
    "drawn loop counts": dict(
        model__plan="1x1,1x3",
        loop__injection="add",
        counts__distribution="lognormal_poisson",
        counts__by="row",
        counts__gradient_loops=2,
        counts__curriculum="linear",
        counts__curriculum_steps=3,
    ),
    "expected loss of every loop": dict(
        model__plan="1x3,1x1",
        loop__gate="linear",
        loop_loss__kind="expected",
        loop_loss__beta=0.1,
    ),
    "weighted loss of every loop": dict(
        model__plan="1x2", loop_loss__kind="weighted", loop_loss__weights=(0.3, 1.0)
    ),
    "prior on the exits": dict(
        model__plan="1x3", loop__gate="linear", loop_loss__kind="ponder", loop_loss__prior=0.5
    ),
    "adaptive computation time": dict(
        model__plan="1x3", loop__gate="act", loop_loss__kind="act", loop_loss__beta=0.01
    ),
    "short trajectories": dict(
        model__plan="1x1,1x4",
        loop__per_loop="time",
        loop_loss__kind="shortcut",
        loop_loss__weights=(0.2, 0.5),
    ),
    "messages from the loop before": dict(
        model__plan="1x1,3x2", loop__messages="blocks", loop__message_block=2, loop__message_rank=4
    ),
    "tokens chosen by loops": dict(
        model__plan="1x1,1x3", loop__routing="expert_choice", loop__selection_weight=0.1
    ),
    "tokens that choose loops": dict(
        model__plan="1x1,1x3,1x1", loop__routing="token_choice", loop__balance_weight=0.2
    ),
    "running targets, accumulation, rsqrt": dict(
        data__targets="running", train__grad_accumulation=2, optimizer__schedule="rsqrt"
    ),
    "muon, AdamW's rate, momentum, decay, wsd by the root, an average": dict(
        model__plan="2x1,1x2",
        model__tied_output=False,
        loop__injection="concat",
        optimizer__name="muon",
        optimizer__muon_adamw_rate=0.5,
        optimizer__muon_momentum=0.9,
        optimizer__weight_decay=0.1,
        optimizer__schedule="wsd",
        optimizer__decay_fraction=1.0,
        optimizer__warmup_steps=1,
        optimizer__ema=0.9,
    ),
    "linear wsd to an end, rates of groups, frozen": dict(
        model__plan="2x1,1x2",
        optimizer__schedule="wsd",
        optimizer__decay_fraction=0.9,
        optimizer__decay_form="linear",
        optimizer__final_fraction=0.2,
        optimizer__warmup_steps=1,
        optimizer__group_rates=(("segment_*/*/mlp", 2.0), ("segment_0", 0.5)),
        optimizer__frozen=("embed",),
    ),
}
STEPS = 4


def same_compiler() -> bool:
    """Whether the figures were made with this release of JAX: another one fuses other operations,
    which shows where types have few bits, and in a TPU's memory."""
    return read_losses().get("jax") == jax.__version__


def tolerance(name: str) -> float:
    """Other processors sum in another order, and bfloat16 has 8 bits. A norm's epsilon of 1e-5 in
    place of 1e-6 moves the losses of a float32 model by more (tests/test_golden.py)."""
    if "bfloat16" not in name:
        return 1e-5
    return 2e-3 if same_compiler() else 5e-3


@functools.cache
def losses(name: str) -> list[float]:
    """Of the first STEPS steps, and the norm of the gradients at the last, on one device."""
    # So low a rate that what other processors round differently does not grow.
    calm = dict(mesh__data=1, optimizer__learning_rate=1e-3)
    job = make_job(small_config(**calm, **MODELS[name]))
    state = init_state(job.model, job.optimizer, 0, job.layout)
    # A stream so small that a norm's epsilon shows.
    state = state.replace(
        params={**state.params, "embed": jax.tree.map(lambda x: 0.1 * x, state.params["embed"])}
    )
    batches = train_batches(job.data, job.config)
    step, found, metrics = jitted_train_step(job), [], {}
    with job.context():
        for _ in range(STEPS):
            state, metrics = step(state, put_batch(next(batches), job.mesh))
            found.append(float(metrics["loss"]))
    return [*found, float(metrics["grad_norm"])]


def read_costs() -> dict[str, dict[str, float]]:
    """The committed costs: place and name -> figures."""
    return json.loads(COSTS.read_text()) if COSTS.exists() else {}


def read_losses() -> dict[str, Any]:
    """The committed losses, and the numerics format and release of JAX that they are of."""
    return json.loads(LOSSES.read_text()) if LOSSES.exists() else {"format": 0, "losses": {}}


def moved(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines that say what differs."""
    lines = []
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            lines.append(f"{name}: {'new' if name not in old else 'gone'}")
            continue
        before, after = old[name], new[name]
        if isinstance(before, list):
            before, after = (dict(enumerate(x)) for x in (before, after))
        for key in sorted({*before, *after}, key=str):
            a, b = before.get(key), after.get(key)
            if a != b:
                share = f" ({b / a - 1:+.2%})" if a and b else ""
                lines.append(f"{name}, {key}: {a} -> {b}{share}")
    return lines


def renew() -> int:
    """Writes both files anew; refuses moved losses under an old format number."""
    old_losses = read_losses()
    new_losses = {name: losses(name) for name in MODELS}
    changes = moved(old_losses["losses"], new_losses)
    close = {
        name: np.allclose(old_losses["losses"].get(name, [np.nan]), new, rtol=tolerance(name))
        for name, new in new_losses.items()
        if len(old_losses["losses"].get(name, [])) == len(new)
    }
    if not all(close.values()) and old_losses["format"] >= MODEL_FORMAT:
        print("\n".join(changes))
        print("losses moved: raise MODEL_FORMAT in looped_jax/models/format.py first")
        return 1
    new_costs = {
        f"{where}: {name}": cost(where, name)
        for where, names in (("cpu", ON_CPU), (TOPOLOGY, ON_TPU))
        for name in names
    }
    changes += moved(read_costs(), new_costs)
    COSTS.write_text(json.dumps(new_costs, indent=1) + "\n")
    made = {"format": MODEL_FORMAT, "jax": jax.__version__, "losses": new_losses}
    LOSSES.write_text(json.dumps(made, indent=1) + "\n")
    print("\n".join(changes) or "nothing moved")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    jax.config.update("jax_platforms", "cpu")
    sys.exit(renew())
