"""Makes a run of a pretrained model, with loops.

python -m looped_jax.retrofit --source=SmolLM2-135M.gguf --plan=30x1 --out=runs/smollm2
python -m looped_jax.retrofit --source=SmolLM2-135M.gguf --plan=8x1,8x2,8x1 --out=runs/looped \\
    --layers=influence --config.data.path=$PILE_DIR --config.loop.per_loop=step

The source is a folder with config.json and safetensors (Llama, Mistral, Qwen2, Qwen3, Ouro, or what
looped_jax.export wrote), or a GGUF file of the architecture llama. What comes out is a run:
evaluate, generate and export open it, and main goes on from it by
--config.train.start_from=OUT/checkpoints/0 (experiments/retrofit.py). See docs/retrofit.md.
"""

from etils import epath

from looped_jax.config import cli
from looped_jax.errors import UserError
from looped_jax.interop.layer_choice import RULES
from looped_jax.interop.retrofitted import retrofit

_FLAGS = cli.Flags()
_SOURCE = _FLAGS.path("source", "", "The pretrained model, a folder or a .gguf file.")
_PLAN = _FLAGS.string("plan", "", "Depth structure, e.g. 4x1,4x4,4x1; default: its own.")
_OUT = _FLAGS.path("out", "", "Folder of the run to make; it must not be there yet.", on_disk=True)
_LAYERS = _FLAGS.string(
    "layers", "stepwise", f"Which layers the plan gets: {', '.join(RULES)}, or e.g. 0-3,10-17,20."
)
_TOKENIZER = _FLAGS.path("tokenizer", "", "Folder of the tokenizer; default: the source's.")


def main(overrides: dict[str, str]) -> None:
    """Reads, chooses, writes."""
    for flag in (_SOURCE, _OUT):
        if not flag.value:
            raise UserError(f"say --{flag.name}=…")
    source, out = epath.Path(_SOURCE.value), epath.Path(_OUT.value)
    made = retrofit(source, _PLAN.value, out, _LAYERS.value, _TOKENIZER.value, overrides)
    layers = " ".join("+".join(map(str, numbers)) for numbers in made["layers"])
    print(f"{out}: plan {made['plan']}, of {source.name} the layers {layers} ({made['rule']})")


if __name__ == "__main__":
    cli.run(main, _FLAGS)
