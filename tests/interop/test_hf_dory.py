"""A judge from outside: transformers' own Dory, with random weights, gives the logits of ours."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_model

from looped_jax.inference.cache import decode, prefill
from looped_jax.inference.policy import EXACT, Policy
from looped_jax.models.transformer import forward, logits

JUDGES = "the judge comes with the extra judges: pip install -e '.[judges]'"
torch: Any = pytest.importorskip("torch", reason=JUDGES)
transformers: Any = pytest.importorskip("transformers", reason=JUDGES)
if not hasattr(transformers, "DoryForCausalLM"):
    pytest.skip("this release of transformers has no Dory; 5.24 does", allow_module_level=True)

WIDTH, HEADS, GROUPS, SIZE, LOOPS = 32, 4, 2, 16, 3
PARTS = (1, 2, 1)  # Layers before, in and behind the loop.
KEPT = 0.0177  # Of a scale that is 1 there; here it is WIDTH^-1/2.
MODEL = small_model(
    f"1x1,2x{LOOPS},1x1",
    vocab_size=40,
    d_model=WIDTH,
    num_heads=HEADS,
    num_kv_heads=GROUPS,
    head_size=SIZE,
    d_ff=48,
    layer="ngpt",
    norm="l2",
    qk_norm=True,
    mlp="swiglu",
    rope_theta=100.0,
    tied_output=False,
    loop=(("injection", "unit_add"),),
)
TOKENS = np.random.default_rng(0).integers(0, 40, size=(2, 9)).astype(np.int32)


def judge(loops: int = LOOPS, cache: str = "per_loop") -> Any:
    """Theirs, without windows; all weights are random, so small an embedding that epsilon shows."""
    config = transformers.DoryConfig(
        vocab_size=40,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=sum(PARTS),
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=SIZE,
        layer_types=["full_attention"] * sum(PARTS),
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 100.0}},
        n_input_layers=PARTS[0],
        n_recurrent_layers=PARTS[1],
        n_output_layers=PARTS[2],
        n_recurrent_loops=loops,
        recurrent_kv_cache_mode=cache,
        attn_implementation="eager",
    )
    model = transformers.DoryForCausalLM(config).eval()
    rng = np.random.default_rng(1)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            size = 1e-3 if "embed" in name else weight.shape[1] ** -0.5
            drawn = size * rng.normal(size=weight.shape)
        else:
            drawn = rng.uniform(0.5, 2, size=weight.shape)
            # Rates of an eighth to a half, of both signs; logits of several units.
            if "suv" not in name:
                drawn *= KEPT
            if "lambda" in name:
                drawn *= 5 * rng.choice([-1, 1], size=weight.shape)
            if "logit" in name:
                drawn *= 10
        weight.data = torch.tensor(drawn, dtype=torch.float32)
    return model


def ours(theirs: Any) -> Any:
    """The parameters of the same network here."""
    given = {name: weight.detach().numpy() for name, weight in theirs.named_parameters()}
    rescaled = WIDTH**-0.5 / KEPT

    def layer(number: int) -> Any:
        def kernel(name: str) -> Any:
            return given[f"model.layers.{number}.{name}_proj.weight"].T

        def vector(name: str, factor: float) -> Any:
            return factor * given[f"model.layers.{number}.{name}"]

        def heads(name: str) -> Any:
            return {"kernel": kernel(f"self_attn.{name}").reshape(WIDTH, -1, SIZE)}

        return {
            "attention": {
                **{new: heads(old) for new, old in zip(NEW, "qkv", strict=True)},
                "out_gate": heads("gate"),
                "output": {"kernel": kernel("self_attn.o").reshape(HEADS, SIZE, WIDTH)},
                "query_scale": vector("self_attn.sqk", rescaled).reshape(HEADS, SIZE),
                "gate_scale": vector("self_attn.s_gate", rescaled).reshape(HEADS, SIZE),
            },
            "mlp": {
                **{name: {"kernel": kernel(f"mlp.{name}")} for name in ("up", "gate", "down")},
                "up_scale": vector("mlp.suv_up", 1.0),
                "gate_scale": vector("mlp.suv_gate", 1.0),
            },
            "attention_rate": vector("lambda_1", rescaled),
            "mlp_rate": vector("lambda_2", rescaled),
        }

    params: Any = {
        # Here the table is multiplied by the root of the width.
        "embed": {"embedding": given["model.embed_tokens.weight"] / WIDTH**0.5},
        "output": {"kernel": given["lm_head.weight"].T},
        "logit_scale": rescaled * given["lm_head.logit_scale"],
    }
    first = 0
    for index, count in enumerate(PARTS):
        layers = [layer(number) for number in range(first, first + count)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
        params[f"segment_{index}"] = {"layers": {"layer": stacked}}
        first += count
    return jax.tree.map(jnp.asarray, params)


NEW = ("query", "key", "value")


def of_judge(model: Any, tokens: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long), **kwargs)


def decoded(params: Any, policy: Policy, prompt: int = 4, loops: int | None = None) -> Any:
    """Logits of all tokens from the prompt's last one on, through the cache."""
    args = (loops, policy)
    found, cache = prefill(MODEL, params, TOKENS[:, :prompt], np.full(2, prompt), 12, *args)
    steps = [found]
    for i in range(prompt, TOKENS.shape[1]):
        found, cache = decode(MODEL, params, TOKENS[:, i], cache, *args)
        steps.append(found)
    return np.stack(steps, axis=1)


@pytest.mark.parametrize("loops", [LOOPS, 1, 5])
def test_the_judge_gives_our_logits_in_the_full_pass_and_decoding(loops: int) -> None:
    theirs = judge(loops)
    params, expected = ours(theirs), of_judge(theirs, TOKENS).logits.numpy()
    full = logits(MODEL.config, forward(MODEL, params, TOKENS, loops=loops))
    assert np.max(np.abs(expected)) > 1  # Or 1e-4 would say little.
    np.testing.assert_allclose(full, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        decoded(params, EXACT, loops=loops), expected[:, 3:], rtol=0, atol=1e-4
    )


def test_the_judges_cache_of_the_last_loop_is_the_policy_last() -> None:
    theirs = judge(cache="last_loop")
    params = ours(theirs)
    step = of_judge(theirs, TOKENS[:, :4], use_cache=True)
    expected = [step.logits[:, -1].numpy()]
    for i in range(4, TOKENS.shape[1]):
        step = of_judge(theirs, TOKENS[:, i : i + 1], cache=step.cache)
        expected.append(step.logits[:, -1].numpy())
    found = decoded(params, Policy.parse("last", "none"))
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=0, atol=1e-4)
    exact = decoded(params, EXACT)
    assert np.max(np.abs(found - exact)) > 1e-2
