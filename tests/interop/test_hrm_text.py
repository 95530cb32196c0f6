"""The judge of loops at two speeds: transformers' own HRM-Text, with the same random weights, gives
the same logits, whole rows at once and with a cache, and the same gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, small_model, token_logits

from looped_jax.inference.cache import decode, prefill

WHY = "the judge comes with the extra judges: pip install -e '.[judges]'"
torch: Any = pytest.importorskip("torch", reason=WHY)
transformers: Any = pytest.importorskip("transformers", minversion="5.24", reason=WHY)

WIDTH, FF, HEADS, VOCAB, LAYERS, CYCLES, LOW = 32, 48, 4, 40, 2, 2, 3
KEPT = (0, 2)  # Low updates of each cycle that have gradients.
TOKENS = np.random.default_rng(0).integers(0, VOCAB, size=(2, 9)).astype(np.int32)


def layer_of(theirs: dict[str, Any], name: str) -> Any:
    """A Layer's parameters of those weights of theirs, [out, in], whose names begin so."""

    def kernel(of: str, *shape: int) -> Any:
        return {"kernel": theirs[f"{name}.{of}.weight"].T.reshape(shape)}

    size = WIDTH // HEADS
    into = {"query": "q", "key": "k", "value": "v", "out_gate": "gate"}
    attention = {
        ours: kernel(f"self_attn.{of}_proj", WIDTH, HEADS, size) for ours, of in into.items()
    }
    attention["output"] = kernel("self_attn.o_proj", HEADS, size, WIDTH)
    mlp = {of: kernel(f"mlp.{of}_proj", WIDTH, FF) for of in ("gate", "up")}
    mlp["down"] = kernel("mlp.down_proj", FF, WIDTH)
    return {"attention": attention, "mlp": mlp}


def params_of(theirs: dict[str, Any], embedding_scale: float) -> Any:
    """A model's parameters of all weights of theirs; ours scales embeddings by sqrt(D)."""

    def stack(name: str) -> Any:
        layers = [layer_of(theirs, f"model.{name}.layers.{i}") for i in range(LAYERS)]
        return {"layer": jax.tree.map(lambda *of_layers: jnp.stack(of_layers), *layers)}

    table = theirs["model.embed_tokens.weight"] * embedding_scale / WIDTH**0.5
    return {
        "embed": {"embedding": table},
        "output": {"kernel": theirs["lm_head.weight"].T},
        "segment_0": {
            "layers": stack("L_module"),
            "more_layers_0": stack("H_module"),
            "nest": {"low": theirs["model.z_L_init"]},
        },
    }


@pytest.fixture(scope="module")
def judged() -> tuple[Any, Any, Any]:
    """Ours, its parameters, and theirs."""
    torch.manual_seed(0)
    config = transformers.HrmTextConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=FF,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        head_dim=WIDTH // HEADS,
        H_cycles=CYCLES,
        L_cycles=LOW,
        L_bp_cycles=list(KEPT),
        initializer_range=0.2,
        embedding_scale=3.0,
        prefix_lm=False,
    )
    judge = transformers.HrmTextForCausalLM(config).eval()
    torch.nn.init.normal_(judge.model.z_L_init)
    weights = {name: jnp.asarray(p.detach().numpy()) for name, p in judge.state_dict().items()}
    model = small_model(
        f"{LAYERS}x{CYCLES * (LOW + 1)}",
        vocab_size=VOCAB,
        d_model=WIDTH,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        d_ff=FF,
        mlp="swiglu",
        norm="rmsnorm_unscaled",
        attention_gate=True,
        tied_output=False,
        loop=(("nest", "two_stacks"),),
        low_loops=LOW,
        low_gradient_loops=KEPT,
    )
    params = params_of(weights, config.embedding_scale)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, init(model))
    return model, params, judge


def theirs_of(judge: Any) -> Any:
    with torch.no_grad():
        return judge(input_ids=torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def test_the_judge_gives_the_same_logits(judged: tuple[Any, Any, Any]) -> None:
    model, params, judge = judged
    expected = theirs_of(judge)
    assert float(np.std(expected)) > 0.5  # There is something to compare.
    np.testing.assert_allclose(token_logits(model, params, TOKENS), expected, atol=1e-4, rtol=0)


def test_the_judge_gives_the_logits_of_decoding_with_the_cache(
    judged: tuple[Any, Any, Any],
) -> None:
    model, params, judge = judged
    expected = theirs_of(judge)
    logits, cache = prefill(model, params, TOKENS[:, :4], np.full(2, 4), 12)
    for i in range(4, 9):
        np.testing.assert_allclose(logits, expected[:, i - 1], atol=1e-4, rtol=0)
        logits, cache = decode(model, params, TOKENS[:, i], cache)


def test_the_judges_own_cache_gives_the_same_logits(judged: tuple[Any, Any, Any]) -> None:
    model, params, judge = judged
    ours = token_logits(model, params, TOKENS)
    tokens = torch.tensor(TOKENS, dtype=torch.long)
    with torch.no_grad():
        output = judge(input_ids=tokens[:, :4], use_cache=True)
        for i in range(4, 9):
            np.testing.assert_allclose(output.logits[:, -1], ours[:, i - 1], atol=1e-4, rtol=0)
            output = judge(input_ids=tokens[:, i : i + 1], cache=output.cache, use_cache=True)


def test_the_judge_has_the_same_gradients(judged: tuple[Any, Any, Any]) -> None:
    model, params, judge = judged
    judge.zero_grad()
    logits = judge(input_ids=torch.tensor(TOKENS, dtype=torch.long)).logits
    torch.sum(torch.sin(logits)).backward()
    theirs = {
        name: jnp.asarray((torch.zeros_like(p) if p.grad is None else p.grad).numpy())
        for name, p in judge.named_parameters()
    }
    # Our table is theirs times scale / sqrt(D): its gradients are divided by that.
    expected = params_of(theirs, WIDTH / judge.config.embedding_scale)
    found = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(token_logits(model, p, TOKENS)))))(params)
    assert not np.any(theirs["model.z_L_init"])

    def close(a: Any, b: Any) -> None:
        size = max(1.0, float(np.max(np.abs(b))))
        np.testing.assert_allclose(a, b, atol=1e-4 * size, rtol=0)

    jax.tree.map(close, found, expected)
