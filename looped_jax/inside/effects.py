"""What a model loses when something inside its loops is changed: which loop is needed for what."""

from collections.abc import Sequence

from tqdm import tqdm

from looped_jax.errors import UserError
from looped_jax.inside.opened import Opened
from looped_jax.models.loops.base import PER_LOOP

MOST_LAYERS = 12  # Of more layers in all loops only whole loops are changed.


def usual_changes(model: Opened) -> list[str]:
    """Each loop left out, gone through twice and, where each has something of its own, exchanged
    with the next one; each layer of each loop left out, of a plan without loops each layer; as
    inside/interventions.py writes them. UserError for models whose loops cannot be changed."""
    plan = model.plan
    changed = [plan.segments[index] for index in plan.looped] or list(plan.segments)
    # Of several segments what all of them have.
    loops = model.loops or min(segment.loops for segment in changed)
    layers = min(segment.layers for segment in changed)
    order = list(range(1, loops + 1))
    found: list[str] = []
    if plan.looped:
        found += [f"skip:{n}" for n in order]
    if plan.looped and all(change.kind != "order" for change in model.changes):
        found += [_order([*order[:n], n, *order[n:]]) for n in order]
        if PER_LOOP in model.params:
            swapped = [[*order[: n - 1], n + 1, n, *order[n + 1 :]] for n in order[:-1]]
            found += [_order(one) for one in swapped]
    one_layer = plan.looped and layers == 1  # Which is its loop.
    if not one_layer and loops * layers <= MOST_LAYERS:
        found += [f"layer:{n}.{i + 1}" for n in order for i in range(layers)]
    if not found:
        raise UserError(f"plan {plan} has nothing inside that could be left out")
    return found


def _order(loops: Sequence[int]) -> str:
    return f"order:{','.join(map(str, loops))}"


def effects(
    model: Opened, changes: Sequence[str] = (), split: str = "validation"
) -> dict[str, dict[str, float]]:
    """Change -> what `model.evaluate` says of the model with it; "" is the model as it is.
    ``changes``: in the place of the usual ones."""
    chosen = changes or usual_changes(model)
    changed = {text: model.intervened(text) for text in chosen}  # All are checked first.
    found = {}
    for text, one in tqdm({"": model, **changed}.items(), unit="change", disable=None):
        found[text] = one.evaluate(split)
    return found
