"""Inputs with something wrong in them, as users make them: drawn from a seed, evenly over kinds.

A kind is a generator of cases without end (KINDS); `cases` draws from all. What is wrong with an
input is made on purpose, so it is known what a good message names.
"""

import dataclasses
import itertools
import json
import pathlib
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

from looped_jax.config import KEYS
from looped_jax.config.keys import Key

Files = dict[str, bytes | None]  # Path in the case's folder -> content; None: removed.


@dataclasses.dataclass(frozen=True)
class Case:
    """A command, started in a folder of its own with these files in it."""

    kind: str
    module: str
    arguments: tuple[str, ...]
    # What the one line must name: one of these.
    names: tuple[str, ...]
    # A run made whole (RUNS) that is copied into the folder before ``files`` are written.
    run: str = ""
    files: Files = dataclasses.field(default_factory=dict)
    # 2: the user can put it right; 1: the run is damaged; 0: it goes on and says what it left out.
    codes: tuple[int, ...] = (2,)

    def __str__(self) -> str:
        said = " ".join(a if len(a) < 90 else f"{a[:80]}…({len(a)})" for a in self.arguments)
        changed = ", ".join(
            f"{path}: {'removed' if content is None else repr(content[:60])}"
            for path, content in self.files.items()
            if path != "small.py"
        )
        return f"{self.module} {said}" + (f"  [{changed}]" if changed else "")


SMALL = b"""
from looped_jax.config import default_config

def get_config():
    config = default_config()
    config.data.task = "group_z7_n4"
    config.model.update(plan="1x2", d_model=16, num_heads=4, d_ff=32)
    config.optimizer.update(name="adamw", learning_rate=1e-2, warmup_steps=4)
    config.train.update(steps=4, batch_size=16, log_every=1, log_to=())
    config.checkpoint.update(every=2, keep=3)
    config.eval.update(every=2, examples=32)
    return config
"""
# Runs that cases damage: name -> overrides of SMALL.
RUNS = {
    "run": (),
    "text": ("data.task=text", "data.length=32", "data.path=shards"),
}
HUGE = "9" * 5000
TRAIN = ("--config=small.py", "--workdir=w")


def slip(rng: random.Random, word: str) -> str:
    """The word with a letter left out, doubled, swapped or changed; never the word itself."""
    while True:
        at = rng.randrange(len(word))
        made = rng.choice(
            (
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
                word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :],
                word[:at] + rng.choice("qxz_7") + word[at + 1 :],
            )
        )
        if made and made != word:
            return made


def training(kind: str, names: tuple[str, ...], *overrides: str) -> Case:
    """A case of main with SMALL and these overrides, KEY=VALUE."""
    given = tuple(f"--config.{override}" for override in overrides)
    return Case(kind, "main", (*TRAIN, *given), names, files={"small.py": SMALL})


# --- command lines

FLAGS = {
    "main": ("config", "workdir"),
    "evaluate": ("workdir", "tasks", "loops", "step", "split", "limit", "batch_size", "hf", "out"),
    "generate": ("workdir", "prompt", "max_tokens", "temperature", "top_k", "top_p", "loops"),
    "explain": ("workdir", "out", "prompt", "task", "example", "loops", "segment"),
    "export": ("workdir", "out", "step", "loops", "layout"),
    "score": ("task", "input"),
    "tasks": ("task", "split", "num", "seed", "style", "data_dir"),
    "report": ("runs", "out", "title"),
    "sweep": ("sweep", "workdir"),
    "prepare": ("config", "output"),
    "vocabulary": ("train", "size", "report", "path", "files"),
    "compile": ("config", "topology", "slices"),
    "retrofit": ("source", "plan", "out"),
}
NUMBERS = {
    "evaluate": ("step", "limit", "batch_size"),
    "generate": ("max_tokens", "temperature", "top_k", "top_p", "loops", "step"),
    "explain": ("example", "loops", "step", "segment"),
    "export": ("step", "loops"),
    "tasks": ("num", "seed"),
    "compile": ("slices",),
    "vocabulary": ("size",),
}
NO_NUMBER = ("", "x", "1.5.2", "nan", "1e400", "-7", "one", "1,2", "[1]", "0x", "None", "1 2", "∞")


def flags_misspelt(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A flag that is not there, or an argument that is none."""
    while True:
        module = rng.choice(list(FLAGS))
        flag = slip(rng, rng.choice(FLAGS[module]))
        if any(known.startswith(flag) for known in FLAGS[module]) or flag in ("loop", "task"):
            continue
        argument = rng.choice((f"--{flag}=1", f"--{flag}", f"stray{rng.randrange(1000)}"))
        yield Case("flag misspelt", module, (argument,), (flag, argument))


def numbers_of_flags(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A flag's number that is none, or out of its range."""
    while True:
        module = rng.choice(list(NUMBERS))
        flag = rng.choice(NUMBERS[module])
        value = rng.choice((*NO_NUMBER, HUGE, "-1", "1e30"))
        given = {
            "evaluate": ("--workdir=run",),
            "generate": ("--workdir=run", "--prompt=0"),
            "explain": (
                "--workdir=run",
                "--task=group_z7_n4",
                "--out=o",
                "--noprobes",
                "--noeffects",
            ),
            "export": ("--workdir=run", "--out=o"),
            "tasks": ("--task=addition",),
            "compile": ("--config=small.py", "--topology=v5e:2x2"),
            "vocabulary": ("--report=bytes", "--path=."),
        }[module]
        said = (f"--{flag}={value}",)
        yield Case("flag's number", module, (*given, *said), (flag,), "run", {"small.py": SMALL})


def questions_of_runs(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A good run asked for what it cannot do."""
    runs = "--workdir=run"
    while True:
        word = f"{slip(rng, 'group_z7_n4')}{rng.randrange(100)}"
        policy = rng.choice(("ring", "ring:", "ring:0", "ring:x", "all", "last:2", "", "ring:1:2"))
        exits = rng.choice(
            ("cdf", "cdf:", "cdf:2", "kl:-1", "kl:x", "state:nan", "never", "kl:1:0")
        )
        draft = rng.choice(("0", "9", "x", "1:0", "1:-2", "1:x", ":", "1:2:3"))
        change = rng.choice(("skip", "skip:9", "skip:x", "layer:9.9", "layer:1", "swap", "no:1"))
        step = rng.choice((1, 3, 5, 99, 10**12, 10**40))
        loops = rng.choice(("0", "-1", "x", "1,,x", "1.5", "1;2", "2,0", HUGE))
        prompt = rng.choice(("10 9 9", "hello", "0 1 2 3 4 5 6 0 1 2", "é"))
        yield from (
            Case("asked of a run", "evaluate", (runs, f"--tasks={word}"), (word,), "run"),
            Case("asked of a run", "evaluate", (runs, f"--loops={loops}"), ("loops",), "run"),
            Case("asked of a run", "evaluate", (runs, f"--step={step}"), (f"{step}",), "run"),
            Case(
                *("asked of a run", "generate", (runs, "--prompt=0 1", f"--cache={policy}")),
                *(("cache",), "run"),
            ),
            Case(
                *("asked of a run", "generate", (runs, "--prompt=0 1", f"--exit={exits}")),
                *(("exit",), "run"),
            ),
            Case(
                *("asked of a run", "generate", (runs, "--prompt=0 1", f"--draft={draft}")),
                *(("draft",), "run"),
            ),
            Case(
                "asked of a run",
                "generate",
                (runs, f"--prompt={prompt}"),
                ("prompt", "vocabulary"),
                "run",
            ),
            Case(
                "asked of a run",
                "explain",
                (runs, "--task=group_z7_n4", "--out=o", f"--intervene={change}"),
                (change.partition(":")[0],),
                "run",
            ),
            Case("asked of a run", "explain", (runs, f"--task={word}", "--out=o"), (word,), "run"),
        )


def folders(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A path where something else is, or nothing."""
    modules = {
        "evaluate": ("--workdir={}",),
        "generate": ("--workdir={}", "--prompt=0"),
        "explain": ("--workdir={}", "--prompt=0", "--out=o"),
        "export": ("--workdir={}", "--out=o"),
        "report": ("--runs={}", "--out=o"),
        "runs": ("{}",),
        "main": ("--workdir={}",),
        "score": ("--task=svamp", "--input={}"),
        "sweep": ("--sweep={}",),
        "prepare": ("--config={}", "--output=o"),
        "retrofit": ("--source={}", "--out=o"),
        "vocabulary": ("--report=bytes", "--path={}"),
    }
    while True:
        module = rng.choice(list(modules))
        path = rng.choice(("gone", "a file", "empty", "gone/deeper", "a file/deeper", "x" * 300))
        files: Files = {"a file": b"text", "empty/.keep": b""}
        arguments = tuple(argument.format(path) for argument in modules[module])
        yield Case("path", module, arguments, (path[:50], "say --config"), files=files)


def start_from(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """Another run to continue from, or an output, that is not one."""
    while True:
        path = rng.choice(
            ("run", "run/checkpoints", "run/checkpoints/3", "run/config.json", "gone", "run/logs")
        )
        path += rng.choice(("", "/", "/../x"))
        yield dataclasses.replace(
            training("start_from", ("start_from", path.rstrip("/")), f"train.start_from={path}"),
            run="run",
        )
        width = rng.choice((8, 24, 32, 40))
        key = rng.choice(("d_ff", "d_model", "plan"))
        value = {"d_ff": width * 3, "d_model": width, "plan": f"{width}x2"}[key]
        yield dataclasses.replace(
            training(
                "start_from",
                ("another model",),
                *("train.start_from=run/checkpoints/4", f"model.{key}={value}"),
            ),
            run="run",
        )


# --- configs

OTHER_KINDS = ("None", "True", "x", "(1, 2)", "{}", "'a'", "[]", "1j", "", " ", "b'1'", "lambda: 1")


def _numbers_refused(known: Key) -> list[str]:
    """Texts that are no value of a key with a range."""
    assert known.range is not None
    low, high, is_open = known.range
    below = f"{int(low) - 1}" if isinstance(known.default, int) else f"{low - 0.5}"
    found = [*OTHER_KINDS, below, f"{high * 10:.0f}", "nan", "inf", "-inf", "1e400", "1" + "0" * 40]
    found += [HUGE, "(" * 3000, "1__0", "٣x", "1,0", "--1", "1 000", "1e"]
    if isinstance(known.default, int):
        found += ["1.5", "1e3", "2.0", "'3'"]
    if is_open:
        found.append(f"{low if is_open == 'low' else high}")
    return found


def config_numbers(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A number of a key that is none, or out of the key's range."""
    keys = {name: known for name, known in KEYS.items() if known.range is not None}
    while True:
        name, known = rng.choice(list(keys.items()))
        value = rng.choice(_numbers_refused(known))
        yield training("config: number", (name,), f"{name}={value}")


def config_choices(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A name that is none of a key's, or no yes or no."""
    keys = [name for name, known in KEYS.items() if known.choices or known.default in (True, False)]
    while True:
        name = rng.choice(
            [
                key
                for key in keys
                if not isinstance(KEYS[key].default, (int, float))
                or isinstance(KEYS[key].default, bool)
            ]
        )
        choices = KEYS[name].choices or ("true", "false")
        value = rng.choice(
            (slip(rng, rng.choice(choices)), "", "None", "1", rng.choice(choices) + " ", "(1,)")
        )
        if value.lower() not in choices:
            yield training("config: choice", (name,), f"{name}={value}")


TUPLES = {
    "variants": (
        "x",
        "(1, 2)",
        "(('a',),)",
        "(('a', 1),)",
        "(('a', (('model.plan',),)),)",
        "(('a', (('model.plann', '1x2'),)),)",
        "(('', ()),)",
        "(('a/b', ()),)",
        "(('a', ()), ('a', ()))",
        "(('a', (('train.steps', 'x'),)),)",
        "(None,)",
    ),
    "mesh.rules": (
        "x",
        "(('embed',),)",
        "(('embed', 'nowhere'),)",
        "((1, 'data'),)",
        "(1,)",
        "(('embed', 1),)",
        "(('embed', ('data', 2)),)",
        "((),)",
        "('embed', 'fsdp')",
    ),
    "prepare.weights": (
        "x",
        "(('A', -1.0),)",
        "(('A', 'b'),)",
        "((1, 2.0),)",
        "(('A',),)",
        "(('A', 1.0), ('A', 2.0))",
        "(('A', True),)",
        "(('A', 1e30),)",
        "('A', 2)",
    ),
    "optimizer.group_rates": (
        "x",
        "(('embed', -1),)",
        "(('embed', 'x'),)",
        "((None, 1),)",
        "(('embed',),)",
        "(('nothing_here', 0.5),)",
        "(('embed', None),)",
    ),
    "loop_loss.weights": ("x", "(-1.0,)", "('a',)", "(None,)", "(1e30, 1.0)", "((1.0,),)"),
    "optimizer.frozen": ("(1,)", "('',)", "('nothing_here',)", "(None,)", "(('a',),)"),
    "loop.low_gradient_loops": ("x", "(-1,)", "(1.5,)", "(9,)", "(True,)"),
    "eval.tasks": ("nonsense", "(1,)", "('group_z7_n4', None)", "((),)", "group_z0_n4", "svamp"),
    "eval.loops": ("x", "(0,)", "(-2,)", "(1.5,)", "('a',)", "(1000000000000,)", "(True,)"),
    "model.saved_names": ("query", "nothing", "(1,)", "('mlp',)"),
    "model.offloaded_names": ("key", "(2,)", "(None,)"),
    "train.log_to": ("nowhere", "tensorboard,tensorboard", "(1,)", "tensorboards", "wandbb"),
}
NOT_TUPLES = ("(", "[1", "{1: 2}", "1", "None", "((((", "('a'", "(lambda: 1)", "('a' 'b',", "\\")


def config_tuples(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A tuple that is none, or has parts of another form."""
    while True:
        name = rng.choice(list(TUPLES))
        value = rng.choice((*TUPLES[name], rng.choice(NOT_TUPLES)))
        yield training("config: tuple", (name, *name.split(".")[-1:]), f"{name}={value}")


def config_keys(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A key that is not there, on the command line or in a file."""
    while True:
        name = slip(rng, rng.choice(list(KEYS)))
        if name in KEYS:
            continue
        if rng.random() < 0.5:
            yield training("config: key", (name,), f"{name}=1")
        elif re.fullmatch(r"[a-z_]\w*\.[a-z_]\w*", name):
            text = SMALL.replace(b"    return", f"    config.{name} = 1\n    return".encode())
            part = next(
                part for part, right in zip(name.split("."), ("", ""), strict=True) if part != right
            )
            names = (part, name.split(".")[1], f"small.py:{13}")
            yield Case("config: key", "main", TRAIN, names, files={"small.py": text})


PLANS = (
    *("", "x", "0x1", "1x0", "-1x2", "1x", "x2", "1x2,", "1x2,,3x1", "1x2;1x3", "axb", "1.5x2"),
    *("1x2x3", "1×2", "1000000000000x1", "1x1000000000000", " ", "1x2 3x4", "1 x 2", "1e3x1"),
    *("None", "(1, 2)", "1x-2", "0x0", "+1x2", "1X", ",1x2", "1x２", "12", "1*2", "\n"),
)


def plans(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A plan of layers and loops that is none."""
    while True:
        plan = rng.choice((*PLANS, HUGE, f"{HUGE}x1", f"1x{HUGE}", "1x1," * 50))
        where = rng.choice(("main", "compile", "retrofit"))
        if where == "main":
            yield training("plan", ("plan",), f"model.plan={plan}")
        elif where == "compile":
            given = ("--config=small.py", "--topology=v5e:2x2", f"--config.model.plan={plan}")
            yield Case("plan", "compile", given, ("plan",), files={"small.py": SMALL})
        else:
            variants = f"(('a', (('model.plan', {plan!r}),)),)"
            overrides = (f"variants={variants}", "comparison.metric=eval/text/loss")
            yield training("plan", ("plan",), *overrides)


def sizes(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """Numbers that are each possible and together larger than any machine."""
    large = {
        "model.d_model": (2**22, 2**26, 2**29),
        "model.d_ff": (2**29, 5 * 10**8, 10**9),
        "model.vocab_size": (2**29, 10**9),
        "train.batch_size": (2**28, 2**29),
        "eval.batch_size": (2**28, 2**29),
        "eval.examples": (10**9, 2**29),
        "model.head_size": (2**26, 2**29),
        "model.num_heads": (2**26, 2**29),
        "data.length": (2**28, 10**9),
        "model.plan": ("100000000x1", "999999999x1", "4000000x1,4000000x2"),
        "loop.lora_rank": (2**29, 10**9),
        "model.num_kv_heads": (3, 5, 7),
    }
    while True:
        name = rng.choice(list(large))
        given = [f"{name}={rng.choice(large[name])}"]
        if name == "model.num_heads":
            given.append(f"model.d_model={2**29}")
        if name == "loop.lora_rank":
            given.append("loop.per_loop=lora")
        extra = rng.choice((("train.steps", rng.randint(1, 9)), ("seed", rng.randint(0, 99))))
        given.append(f"{extra[0]}={extra[1]}")
        names = (name, "memory", name.split(".")[-1])
        yield training("size", names, *given)


def together(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """Values that exclude each other."""
    pairs = (
        ("model.num_heads={}", (3, 5, 7, 9, 32), "num_heads"),
        ("train.grad_accumulation={}", (3, 5, 7, 11, 32), "grad_accumulation"),
        ("mesh.data={}", (2, 3, 4, 8, 1000), "mesh"),
        ("mesh.fsdp={}", (2, 3, 4, 0, -1, 8), "mesh"),
        ("mesh.tensor={}", (2, 3, 0, 64), "mesh"),
        ("comparison.base={}", ("a", "b", "looped"), "comparison"),
        ("loop.state={}", ("noise", "zero"), "loop.state"),
        ("loop_loss.weights=({},)", (0.5, 1, 2), "loop_loss.weights"),
        ("loop_loss.kind={}", ("gate", "ponder", "expected", "act", "shortcut"), "loop"),
        ("data.length={}", (1, 2, 3), "length"),
        ("data.task={}", ("group_z7", "nothing", "", "group_q7_n4", "phop_p0_n8", "text"), "task"),
        ("model.vocab_size={}", (1, 2, 3), "vocab_size"),
        ("counts.gradient_loops={}", (3, 9, 100), "gradient_loops"),
        ("regularizer.block={}", (2, 3, 50), "regularizer"),
        ("stacking.block={}", (3, 5, 50), "stacking"),
        ("model.layer={}", ("ngpt",), "model.layer"),
        ("loop.routed_tokens={}", ("gathered",), "routed_tokens"),
        ("loop.nest={}", ("two_stacks", "one_stack"), "loop"),
        ("data.vocabulary={}", ("gone.json", "gone.model", "bites", "own:gone"), "vocabulary"),
    )
    while True:
        form, values, names = rng.choice(pairs)
        given = [form.format(rng.choice(values))]
        if "vocabulary" in form:
            given += ["data.task=text", "data.length=32", "data.path=."]
        given.append(f"seed={rng.randint(0, 99)}")
        yield training("config: together", (names,), *given)


# --- files of a user's

RAISED = (
    *("raise ValueError('boom')", "raise SystemExit(3)", "import nothing_of_this_name", "1 / 0"),
    *("undefined_name", "assert False, 'no'", "raise KeyError('k')", "open('gone')", "exit()"),
    *("raise KeyboardInterrupt2", "[][1]", "None.x", "raise Exception", "int('x')", "quit(0)"),
    *("raise RuntimeError('two\\nlines')", "raise StopIteration", "raise GeneratorExit"),
    *("def f(): f()\n{indent}f = lambda: f()\n{indent}f()", "import os; os.environ['gone']"),
)
RETURNED = (
    "None",
    "{}",
    "'small'",
    "3",
    "[config]",
    "(config, 1)",
    "config.model",
    "config.to_dict()",
    "get_config",
    "True",
    "object()",
    "type(config)()",
    "b'x'",
    "1.5",
    "...",
)
BROKEN = (
    b"def get_config(:\n",
    b"\xff\xfe\0",
    b"",
    b"get_config = 3\n",
    b"def get_config():\n",
    b"x = (\n",
    b"\tdef f(): pass\n  x\n",
    b"\0",
    b"def other():\n    pass\n",
    b"return 1\n",
    b"def get_config(a, b):\n    pass\n",
    b"def get_config(*, a):\n    pass\n",
    b"'unended\n",
    b"{\n",
    b"# coding: nothing\n",
    b"async def get_config():\n    return 1\n",
    b"%PDF-1.4\n",
)


def experiment_files(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """An experiment that raises, at import or when called, returns something else, or is none."""
    while True:
        way = rng.choice(("import", "call", "return", "broken"))
        names: tuple[str, ...] = ("small.py",)
        lead = b"\n" * rng.randrange(40)
        if way == "import":
            text = lead + rng.choice(RAISED).format(indent="").encode() + SMALL
            names = (
                f"small.py:{len(lead) + 1}",
                f"small.py:{len(lead) + 2}",
                f"small.py:{len(lead) + 3}",
            )
        elif way == "call":
            said = "\n    " + rng.choice(RAISED).format(indent="    ") + "\n    return config"
            text = lead + SMALL.replace(b"\n    return config", said.encode())
            line = text.decode().split("\n").index("    config.eval.update(every=2, examples=32)")
            names = tuple(f"small.py:{line + n}" for n in (2, 3, 4))
        elif way == "return":
            text = lead + SMALL.replace(b"return config", f"return {rng.choice(RETURNED)}".encode())
        else:
            text = lead + rng.choice(BROKEN)
        module = rng.choice(("main", "prepare", "compile"))
        more = {"main": ("--workdir=w",), "prepare": ("--output=o",)}.get(
            module, ("--topology=v5e:2x2",)
        )
        yield Case(
            "experiment file", module, ("--config=small.py", *more), names, files={"small.py": text}
        )


SWEEP = """from looped_jax.training.sweep import SweepRun

def get_sweep():
    return {}
"""


def sweep_files(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A sweep that raises, lists something else, or runs that cannot be."""
    good = "SweepRun('a', 'small.py')"
    listed = (
        *("None", "[]", "()", "'a'", "{}", f"[{good}]", good, "(1,)", "('a',)", f"({good}, None)"),
        *(f"({good}, {good})", "(SweepRun('', 'small.py'),)", "(SweepRun('a/b', 'small.py'),)"),
        *("(SweepRun('logs', 'small.py'),)", "(SweepRun('.a', 'small.py'),)", "(SweepRun('a'),)"),
        *("(SweepRun('a', 'gone.py'),)", "(SweepRun('a', 'small.py', {'train.stepz': 1}),)"),
        *("(SweepRun('a', 'small.py', {'train.steps': 'x'}),)", "(SweepRun('a', None),)"),
        *("(SweepRun('a', 'small.py', {'model.plan': '0x1'}),)", "(SweepRun('a', 'small.py', 3),)"),
        *("(SweepRun(None, 'small.py'),)", "(SweepRun('a', 'small.py', {1: 2}),)", "1 / 0"),
        *("(SweepRun('a', 'small.py', {'train.steps': None}),)", "undefined", "iter(())"),
        *("(SweepRun(3, 'small.py'),)", "(SweepRun('a', 'small.py', None),)", "exit(2)"),
        *("(SweepRun('a', 'small.py', (('x', 1),)),)", "(SweepRun('a\\0', 'small.py'),)"),
    )
    while True:
        if rng.random() < 0.8:
            text = "\n" * rng.randrange(9) + SWEEP.format(rng.choice(listed))
        else:
            text = "\n" * rng.randrange(9) + rng.choice(("raise ValueError('x')", "def (", "x = 1"))
        override = rng.choice(((), (), ("--config.train.stepz=1",), ("--config.train.steps=x",)))
        files: Files = {"small.py": SMALL, "sweep.py": text.encode()}
        more = rng.choice(((), ("--print_commands",)))
        names = ("sweep.py", "run a", "train.step", "run None", "run 3")
        yield Case(
            "sweep file",
            "sweep",
            ("--sweep=sweep.py", "--workdir=w", *more, *override),
            names,
            files=files,
        )


# --- files of a run

JUNK = (
    b"",
    b"[]",
    b"3",
    b"null",
    b'"x"',
    b"{",
    b"\x00" * 64,
    b"\xff\xfe\x00",
    b"{}{}",
    b"[" * 5000,
    b'{"a": 1',
    HUGE.encode(),
    b"NaN",
    b"{'a': 1}",
    b"\n\n",
    b"true",
    b"<html>",
    b'{"a":}',
)


def _damaged(rng: random.Random, content: bytes) -> bytes:
    """Cut, with zeros in the middle, or something else."""
    at = rng.randrange(1, max(2, len(content) - 2))
    return rng.choice(
        (content[:at], content[:at] + b"\0" * 16 + content[at + 16 :], rng.choice(JUNK))
    )


READERS = {
    "evaluate": ("--workdir=run",),
    "generate": ("--workdir=run", "--prompt=0 1"),
    "export": ("--workdir=run", "--out=o"),
    "explain": ("--workdir=run", "--task=group_z7_n4", "--out=o", "--noprobes", "--noeffects"),
    "main": ("--config=small.py", "--workdir=run"),
}


def config_json(rng: random.Random, runs: pathlib.Path) -> Iterator[Case]:
    """A run whose config.json is damaged or says what no config says."""
    content = (runs / "run/config.json").read_bytes()
    known = json.loads(content)
    while True:
        made = json.loads(content)
        section = rng.choice([name for name, value in known.items() if isinstance(value, dict)])
        key = rng.choice(list(known[section]))
        way = rng.choice(("cut", "junk", "value", "section"))
        if way == "value":
            made[section][key] = rng.choice(({"a": 1}, None, [[[]]], {}))
            if isinstance(known[section][key], (list, tuple)) and made[section][key] == [[[]]]:
                continue
        elif way == "section":
            made[section] = rng.choice((3, "x", None, [1], True))
        text = json.dumps(made).encode()
        if way == "cut":
            text = content[: rng.randrange(len(content) - 3)]
        elif way == "junk":
            text = rng.choice([junk for junk in JUNK if junk != b"{}"])
        module = rng.choice([*READERS, "report", "runs"])
        arguments = {**READERS, "report": ("--runs=run", "--out=o"), "runs": ("run",)}[module]
        yield Case(
            "config.json",
            module,
            arguments,
            ("config.json",),
            "run",
            {"run/config.json": text, "small.py": SMALL},
        )


def lines_of_a_run(rng: random.Random, runs: pathlib.Path) -> Iterator[Case]:
    """A line of metrics.jsonl or held_out.jsonl that is cut or zeroed: left out and said."""
    metrics = (runs / "run/metrics.jsonl").read_bytes().splitlines(keepends=True)
    held_out = (runs / "run/evaluations/held_out.jsonl").read_bytes().splitlines(keepends=True)
    while True:
        name = rng.choice(("metrics.jsonl", "evaluations/held_out.jsonl"))
        lines = list(metrics if name == "metrics.jsonl" else held_out)
        at = rng.randrange(len(lines))
        bad = rng.choice(
            (
                lines[at][: rng.randrange(2, len(lines[at]) - 2)] + b"\n",
                b"\0" * len(lines[at]) + b"\n",
                rng.choice(JUNK[1:]) + b"\n",
                lines[at].replace(b'"step"', b'"stop"'),
                lines[at].replace(b'"step": ', b'"step": "x'),
            )
        )
        if not bad.strip():
            continue
        lines[at] = bad
        module = rng.choice(("report", "runs", "main"))
        if module != "report" and name != "metrics.jsonl":
            continue
        arguments = {"report": ("--runs=run", "--out=o"), "runs": ("run",), "main": READERS["main"]}
        yield Case(
            "line of a run",
            module,
            arguments[module],
            (f"line {at + 1}",),
            "run",
            {f"run/{name}": b"".join(lines), "small.py": SMALL},
            codes=(0,),
        )


def checkpoints(rng: random.Random, runs: pathlib.Path) -> Iterator[Case]:
    """A checkpoint of which a file is gone, cut or changed."""
    folder = runs / "run/checkpoints/4"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    wanted = [p for p in files if "ocdbt.process" not in str(p) or "/d/" in str(p)]
    while True:
        path = rng.choice(wanted)
        content = path.read_bytes()
        where = f"run/{path.relative_to(runs / 'run')}"
        way = rng.choice(("gone", "cut", "zeros", "junk"))
        made: bytes | None = {
            "gone": None,
            "cut": content[: rng.randrange(len(content))],
            "zeros": b"\0" * len(content),
            "junk": rng.choice(JUNK),
        }[way]
        module = rng.choice([name for name in READERS if name != "explain"])
        # Either it is refused, or what is damaged says nothing of the arrays, or an earlier one is
        # taken: what comes out is checked by the checksums.
        yield Case(
            "checkpoint",
            module,
            READERS[module],
            ("checkpoints/4", "step 2", "step 4", ""),
            "run",
            {where: made, "small.py": SMALL},
            codes=(0, 1, 2),
        )


def other_files(rng: random.Random, runs: pathlib.Path) -> Iterator[Case]:
    """A sweep.json that lists nothing, or a run.json that says nothing."""
    while True:
        if rng.random() < 0.6:
            content = rng.choice(
                (
                    *JUNK,
                    b'{"runs": 3}',
                    b'{"runs": [1]}',
                    b'{"runs": [{}]}',
                    b'{"runs": null}',
                    b'{"runs": [{"name": null}]}',
                    b'{"runs": [{"name": [1]}]}',
                    b'{"runs": {"a": 1}}',
                )
            )
            module, arguments = rng.choice((("report", ("--runs=s", "--out=o")), ("runs", ("s",))))
            yield Case(
                "sweep.json, run.json",
                module,
                arguments,
                ("sweep.json", "s/", "holds no run"),
                files={"s/sweep.json": content},
            )
        else:
            content = rng.choice(
                (
                    *JUNK,
                    b'{"held_out": 3}',
                    b'{"code": 1}',
                    b'{"data": {}}',
                    b'{"devices": []}',
                    b'{"held_out": {"group_z7_n4": 1}}',
                    b'{"earlier": 3}',
                    b'{"versions": null}',
                    b'{"from_step": "x"}',
                )
            )
            module = rng.choice(("report", "runs", "main", "evaluate"))
            arguments = {**READERS, "report": ("--runs=run", "--out=o"), "runs": ("run",)}[module]
            yield Case(
                "sweep.json, run.json",
                module,
                arguments,
                ("",),
                "run",
                {"run/run.json": content, "small.py": SMALL},
                codes=(0, 2),
            )


# --- files of others

RECORD = {"id": "1", "prediction": "a", "answers": ["a"]}
WRONG_VALUES = (3, 1.5, True, {}, {"a": 1}, [1], [[]], [None], "", "x", -1, 2, 10**30)


def _line_with(
    rng: random.Random, record: dict[str, Any], wrong: dict[str, tuple[Any, ...]]
) -> bytes:
    key = rng.choice(list(wrong))
    return json.dumps({**record, key: rng.choice(wrong[key])}).encode()


NO_LINES = (
    b"{",
    b"[]",
    b"3",
    b"\xff\xfe",
    b"null",
    b'{"a": ' + HUGE.encode() + b"}",
    b"[" * 100_000,
    b"{'a': 1}",
    b'{"id": "1"',
    b'"x"',
    b"\0\0\0",
    b'{"answers": ["a"]',
    b"id,prediction",
)


def predictions(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A file of predictions with a line that is no record."""
    tasks = {
        "svamp": {},
        "squad_v2": {"no_answer_probability": ("x", -1, 2, [], {}, True, 10**30)},
        "drop": {
            "drop_answers": (3, "x", [1], {}, [{"number": 3}], [{"spans": "x"}], [{"date": 1}])
        },
        "quac": {"dialogue_id": ([], {}, 1.5, True)},
        "coqa": {"domain": (3, [], {})},
        "triviaqa": {},
        "natural_questions": {},
    }
    while True:
        task = rng.choice(list(tasks))
        texts = tuple(v for v in WRONG_VALUES if not isinstance(v, str))
        prediction = texts if task != "drop" else (3, {}, [1], [None], True)
        wrong: dict[str, tuple[Any, ...]] = {
            "prediction": prediction,
            "answers": ("a", 3, {}, [1], [None], None, [{"t": "a"}], True),
            "id": ([], {}, 1.5, True),
            **tasks[task],
        }
        good = [
            json.dumps({**RECORD, "id": str(i)}).encode() for i in range(2, 2 + rng.randrange(5))
        ]
        bad = _line_with(rng, RECORD, wrong) if rng.random() < 0.7 else rng.choice(NO_LINES)
        at = rng.randint(0, len(good))
        content = b"\n".join([*good[:at], bad, *good[at:]]) + b"\n"
        yield Case(
            "predictions",
            "score",
            (f"--task={task}", "--input=p.jsonl"),
            (f"line {at + 1}",),
            files={"p.jsonl": content},
        )


QUESTION = {"id": "1", "question": "How many?", "context": None, "answers": ["10"]}


def eval_examples(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A downstream task's file with a line that is no example."""
    while True:
        task = rng.choice(
            ("svamp", "asdiv", "mawps_addsub", "triviaqa", "squad_v2", "coqa", "drop")
        )
        split = "validation"
        record = {**QUESTION, "split": "eval", "context": "c"}
        wrong: dict[str, tuple[Any, ...]] = {
            "question": (3, None, [], {}, True),
            "context": (3, [], {}, True),
            "answers": ("10", 3, {}, [1], [None], None, True),
            "split": (3, "x", [], {}),
        }
        good = [
            json.dumps({**record, "id": str(i)}).encode() for i in range(2, 2 + rng.randrange(4))
        ]
        bad = _line_with(rng, record, wrong) if rng.random() < 0.7 else rng.choice(NO_LINES)
        at = rng.randint(0, len(good))
        content = b"\n".join([*good[:at], bad, *good[at:]]) + b"\n"
        if rng.random() < 0.5:
            given = (f"--task={task}", f"--split={split}", "--data_dir=d")
            yield Case(
                "eval examples",
                "tasks",
                given,
                (f"line {at + 1}",),
                files={f"d/{task}.jsonl": content},
            )
        else:
            given = ("--workdir=text", f"--tasks={task}", "--prompts", "--config.eval.data_dir=d")
            yield Case(
                "eval examples",
                "evaluate",
                given,
                (f"line {at + 1}",),
                "text",
                {f"d/{task}.jsonl": content},
            )


TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    "post_processor": None,
    "decoder": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
}


def vocabularies(rng: random.Random, _: pathlib.Path) -> Iterator[Case]:
    """A vocabulary's file that is none, or is cut."""
    whole = json.dumps(TOKENIZER).encode()
    from looped_jax.data.vocabulary import SHIPPED

    model = (SHIPPED / "pile_mini_32k.model").read_bytes()
    while True:
        name = rng.choice(("v.json", "v.model"))
        if name == "v.json":
            made = json.loads(whole)
            part = rng.choice([*made["model"], "decoder", "model"])
            value = rng.choice((None, 3, "x", [1], {"a": "b"}, {"type": "Nothing"}))
            if part in made["model"]:
                made["model"][part] = value
            else:
                made[part] = value
            content = rng.choice(
                (
                    json.dumps(made).encode(),
                    whole[: rng.randrange(len(whole) - 1)],
                    rng.choice(JUNK),
                )
            )
            if part == "merges" and content == json.dumps(made).encode() and value in (None, []):
                continue
        else:
            at = rng.randrange(10, len(model) - 10)
            content = rng.choice(
                (rng.choice([j for j in JUNK if j]), model[:at], b"\0" * 999, model[100:at])
            )
        files: Files = {name: content, "small.py": SMALL, "keep": b""}
        if rng.random() < 0.5:
            given = (
                "data.task=text",
                "data.length=32",
                f"data.vocabulary={name}",
                "data.path=text/shards",
            )
            yield dataclasses.replace(
                training("vocabulary", (name,), *given), files=files, run="text"
            )
        else:
            given = (f"--report={name}", "--path=text/shards", "--files=val.jsonl.zst")
            yield Case("vocabulary", "vocabulary", given, (name,), "text", files)


KINDS: tuple[Callable[[random.Random, pathlib.Path], Iterator[Case]], ...] = (
    *(flags_misspelt, numbers_of_flags, questions_of_runs, folders, start_from),
    *(config_numbers, config_choices, config_tuples, config_keys, plans, sizes, together),
    *(experiment_files, sweep_files, config_json, lines_of_a_run, checkpoints, other_files),
    *(predictions, eval_examples, vocabularies),
)


def cases(count: int, seed: int, runs: pathlib.Path) -> list[Case]:
    """At least ``count`` cases, as many of each kind, none twice; ``runs`` has those of RUNS."""
    found: list[Case] = []
    each = -(-count // len(KINDS))
    for number, kind in enumerate(KINDS):
        rng, seen = random.Random(f"{seed} {number}"), set()
        # A kind may have fewer different ones than asked for.
        for case in itertools.islice(kind(rng, runs), 40 * each):
            if (key := repr(case)) not in seen and len(seen) < each:
                seen.add(key)
                found.append(case)
    return found
