"""Goes on training a pretrained model that `looped_jax.retrofit` gave loops.

The argument is that run; its network and tokenizer are kept. Loops are one at first and the plan's
from three quarters of the steps on (1 - sqrt), Muon has a rate of 1e-3, AdamW one of 5e-5 for
embeddings and norms, and the last 60% of the steps decay: McLeish et al. 2025, arXiv 2511.07384,
who train 50,000 steps of a million tokens, on general text first, which heals what was cut. These
400 steps are a laptop's. The embedding's rate is theirs over sqrt(D): the table is the source's
over sqrt(D), which the model multiplies by, and an optimizer that goes steps of a given size would
move it by so much more. To keep parts as they are: --config.optimizer.frozen="('embed',)".

    python -m looped_jax.retrofit --source=MODEL --plan=8x1,8x2,8x1 --out=runs/looped
    python -m looped_jax.main --config=experiments/retrofit.py:runs/looped \\
        --config.data.path=$PILE_DIR --workdir=runs/healed
"""

import os

from etils import epath

from looped_jax.config import ConfigDict, default_config, read_config
from looped_jax.errors import UserError
from looped_jax.models.loop_plan import LoopPlan


def get_config(run: str = "") -> ConfigDict:
    folder = epath.Path(run)
    if not run or not (folder / "config.json").exists():
        raise UserError(
            "experiments/retrofit.py:RUN needs a run that looped_jax.retrofit made, e.g. "
            "experiments/retrofit.py:runs/looped"
        )
    config, made = default_config(), read_config(folder / "config.json")
    config.model.update(made.model)
    config.loop.update(made.loop)
    config.data.update(
        task="text",
        vocabulary=made.data.vocabulary,
        path=os.environ.get("PILE_DIR", ""),
        length=min(512, made.data.length),
    )
    steps = 400
    if LoopPlan.parse(made.model.plan).looped:
        config.counts.update(curriculum="one_minus_sqrt", curriculum_steps=3 * steps // 4)
    config.optimizer.update(
        name="muon", learning_rate=1e-3, muon_adamw_rate=0.05, warmup_steps=20, weight_decay=1e-4
    )
    config.optimizer.group_rates = (("embed", made.model.d_model**-0.5),)
    config.optimizer.update(schedule="wsd", decay_fraction=0.6, decay_form="linear")
    config.train.update(
        steps=steps, batch_size=4, log_every=10, start_from=f"{folder}/checkpoints/0"
    )
    config.checkpoint.update(every=200, keep=2)
    config.eval.update(every=100, examples=32, tasks=("text",))
    return config
