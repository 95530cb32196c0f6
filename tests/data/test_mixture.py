"""Several sources at stated rates: the same rows everywhere, each source as if it were alone."""

import hashlib
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from etils import epath
from helpers import share, small_config, write_pile
from hypothesis import given, settings
from hypothesis import strategies as st

from looped_jax.config import apply_overrides, default_config, from_json, to_json, validate
from looped_jax.data import pipeline, preparation
from looped_jax.data.mixture import JoinedRows, MixedRows, MixtureData
from looped_jax.data.rows import TRAIN_KEYS, Rows
from looped_jax.data.run_data import resolve
from looped_jax.errors import UserError
from looped_jax.training.job import make_job

NAMES = ("books", "code", "web")
RATES = (
    (0, (("web", 0.5), ("code", 0.3), ("books", 0.2))),
    (6, (("web", 0.1), ("code", 0.0), ("books", 0.9))),
)
BATCH = 8


def text_config(**overrides: Any) -> Any:
    defaults = dict(data__task="text", data__length=32, train__batch_size=BATCH)
    return small_config(**{**defaults, **overrides})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A prepared folder for each name, and one of raw shards."""
    found = {}
    for seed, name in enumerate(NAMES):
        raw, prepared = (tmp_path_factory.mktemp(name) / kind for kind in ("raw", "prepared"))
        write_pile(raw, documents=20 + 10 * seed, seed=seed)
        config = text_config(data__path=str(raw))
        preparation.prepare(config, epath.Path(prepared))
        found[name], found[f"{name} raw"] = str(prepared), str(raw)
    return found


def mixed(folders: dict[str, str], **overrides: Any) -> Any:
    sources = tuple((name, folders[name]) for name in reversed(NAMES))
    return text_config(**{"data__sources": sources, "data__rates": RATES, **overrides})


def alone(folders: dict[str, str], name: str, **overrides: Any) -> Any:
    return text_config(data__path=folders[name], **overrides)


def opened(config: Any, local: np.ndarray | None = None) -> pipeline.TrainBatches:
    return pipeline.train_batches(resolve(config), config, local)


def keys_of(rows: Rows) -> list[str]:
    """What tells rows apart: a digest of each."""
    return [
        hashlib.sha256(b"".join(rows[key][i].tobytes() for key in TRAIN_KEYS)).hexdigest()
        for i in range(len(rows["tokens"]))
    ]


def read(batches: pipeline.TrainBatches, count: int) -> list[str]:
    """The rows of so many batches, in order."""
    return [key for _ in range(count) for key in keys_of(next(batches))]


def of_each(rows: list[str], config: Any, first: int = 0) -> dict[str, list[str]]:
    """Rows of a mixture from row ``first`` on, by their source."""
    source = resolve(config).source("train")
    assert isinstance(source, MixedRows)
    source_N, _ = source.schedule.at(np.arange(first, first + len(rows)))
    names = source.schedule.names
    found: dict[str, list[str]] = {name: [] for name in names}
    for number, key in zip(source_N, rows, strict=True):
        found[names[number]].append(key)
    return found


def test_each_source_comes_in_the_order_that_it_has_alone_over_epochs_and_changes(
    folders: dict[str, str],
) -> None:
    config = mixed(folders)
    found = of_each(read(opened(config), 40), config)
    sizes = {name: resolve(alone(folders, name)).source("train").num_rows for name in NAMES}
    assert len(found["books"]) > sizes["books"] + 100  # Nearly two epochs.
    assert (len(found["web"]), len(found["code"])) == (24 + 27, 14)
    for name, rows in found.items():
        expected = read(opened(alone(folders, name)), -(-len(rows) // BATCH))
        assert rows == expected[: len(rows)], name


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_split_over_processes_and_batches_reads_the_same_rows(
    folders: dict[str, str], data: st.DataObject
) -> None:
    rates = RATES[:1]  # Steps of other batch sizes are at other rows.
    expected = read(opened(mixed(folders, data__rates=rates)), 12)
    size = data.draw(st.sampled_from([2, 3, 4, 6, 12, 24]))
    owner = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    config = mixed(folders, data__rates=rates, train__batch_size=size)
    parts = [np.flatnonzero(np.array(owner) == process) for process in range(4)]
    together = [""] * 96
    for local in parts:
        if len(local) == 0:
            continue
        batches = opened(config, local)
        for step in range(96 // size):
            for place, key in zip(local, keys_of(next(batches)), strict=True):
                together[step * size + place] = key
    assert together == expected


def test_processes_share_the_batch_of_one_through_a_change(folders: dict[str, str]) -> None:
    config = mixed(folders, data__read_threads=3)
    whole = opened(config)
    parts = [opened(config, share(process, 4, BATCH)) for process in range(4)]
    for _ in range(10):
        assert [key for part in parts for key in keys_of(next(part))] == keys_of(next(whole))


def test_it_goes_on_exactly_from_a_saved_position(folders: dict[str, str]) -> None:
    config = mixed(folders)
    everything = read(opened(config), 12)
    for step in (3, 8):  # Before the change of rates, and after it.
        first = opened(config)
        read(first, step)
        state = json.loads(json.dumps(first.state()))
        again = opened(config)
        again.check_same(state)
        again.set_state(state)
        assert again.state() == state
        assert read(again, 4) == everything[step * BATCH : (step + 4) * BATCH]


def test_another_batch_size_goes_on_at_the_first_row_that_was_not_read(
    folders: dict[str, str],
) -> None:
    first = opened(mixed(folders))
    everything = read(first, 3)
    smaller = mixed(folders, train__batch_size=4)
    second = opened(smaller)
    second.go_on_from(first.state(), step=3)
    everything += read(second, 2)
    third = opened(mixed(folders))
    third.go_on_from(second.state(), step=5)
    assert third.state()["rows"] == 32
    everything += read(third, 3)
    # Rates change at step 6, which is here row 32 + 8.
    with_change_there = mixed(folders, data__rates=(RATES[0], (5, RATES[1][1])))
    assert everything == read(opened(with_change_there), 7)
    resumed = opened(mixed(folders))
    resumed.set_state(json.loads(json.dumps(third.state())))
    assert read(resumed, 2) == read(third, 2)


def test_other_rates_from_a_checkpoint_on_repeat_and_skip_no_row(folders: dict[str, str]) -> None:
    first = opened(mixed(folders))
    before = of_each(read(first, 4), mixed(folders))
    others = mixed(folders, data__rates=((0, (("web", 0.05), ("code", 0.9), ("books", 0.05))),))
    second = opened(others)
    with pytest.raises(UserError, match=r"config\.data\.rates are not those of this run"):
        second.check_same(first.state())
    assert second.has_same_data(first.state())
    second.go_on_from(json.loads(json.dumps(first.state())), step=4)
    after = read(second, 10)
    assert second.mixture is not None
    source_N, _ = second.mixture.schedule.at(np.arange(32, 32 + 80))
    assert np.bincount(source_N, minlength=3).tolist() == [4, 72, 4]
    for number, name in enumerate(NAMES):
        rows = before[name] + [key for key, s in zip(after, source_N, strict=True) if s == number]
        expected = read(opened(alone(folders, name)), -(-len(rows) // BATCH))
        assert rows == expected[: len(rows)], name


def test_rows_of_each_source_are_counted(folders: dict[str, str]) -> None:
    batches = opened(mixed(folders))
    assert batches.rows_of_sources(48) == {"books": 10, "code": 14, "web": 24}
    assert opened(alone(folders, "web")).rows_of_sources(48) == {}
    assert "mixture" not in opened(alone(folders, "web")).state()


def test_one_source_without_rates_is_read_as_its_path_is(folders: dict[str, str]) -> None:
    one = text_config(data__sources=(("web", folders["web"]),))
    assert read(opened(one), 20) == read(opened(alone(folders, "web")), 20)


def test_epochs_are_announced_for_each_source(folders: dict[str, str]) -> None:
    config = mixed(folders, train__steps=40)
    source = resolve(config).source("train")
    books = resolve(alone(folders, "books")).source("train").num_rows
    read_of_books = 10 + 245
    assert pipeline.announce_epochs(source, config) == (
        f"40 steps of 8 rows read {read_of_books} rows of books, which has {books}: "
        f"{read_of_books / books:.2f} epochs, each in another order"
    )
    assert pipeline.announce_epochs(source, mixed(folders, train__steps=3)) is None


def test_data_are_the_same_by_name_and_content_wherever_they_lie(
    folders: dict[str, str], tmp_path: pathlib.Path
) -> None:
    state = opened(mixed(folders)).state()
    copy = {**folders, "web": str(tmp_path / "copy")}
    shutil.copytree(folders["web"], copy["web"])
    opened(mixed(copy)).check_same(state)
    in_order = tuple((name, folders[name]) for name in NAMES)
    opened(mixed(folders, data__sources=in_order)).check_same(state)
    write_pile(tmp_path / "raw", seed=9)
    preparation.prepare(
        text_config(data__path=str(tmp_path / "raw")), epath.Path(tmp_path / "other")
    )
    other = opened(mixed({**folders, "code": str(tmp_path / "other")}))
    with pytest.raises(UserError, match=r"at config\.data\.sources is not what this run was"):
        other.check_same(state)
    exchanged = {**folders, "web": folders["code"], "code": folders["web"]}
    assert not opened(mixed(exchanged)).has_same_data(state)
    assert not opened(mixed(folders, seed=1)).has_same_data(state)
    assert not opened(alone(folders, "web")).has_same_data(state)


def test_held_out_rows_are_those_that_each_source_has_alone(folders: dict[str, str]) -> None:
    examples = 5
    sample = pipeline.Sample.of(resolve(mixed(folders)).source("validation"), examples)
    assert len(sample.order) == 3 * examples and sample.document_NT is not None
    rows = sample.rows(np.arange(15))
    documents = 0
    for number, name in enumerate(NAMES):
        own = pipeline.Sample.of(resolve(alone(folders, name)).source("validation"), examples)
        here = slice(number * examples, (number + 1) * examples)
        expected = own.rows(np.arange(examples))
        for key in (*TRAIN_KEYS, "target_bytes"):
            np.testing.assert_array_equal(rows[key][here], expected[key])
        real = rows["segment_ids"][here] > 0
        assert set(sample.component_of_document[rows["document"][here][real]]) == {number}
        documents += len(own.component_of_document)
    assert len(sample.component_of_document) == documents  # None is of two sources.


def test_joined_rows_are_found_in_any_order(folders: dict[str, str]) -> None:
    joined = resolve(mixed(folders)).source("validation")
    assert isinstance(joined, JoinedRows) and joined.components == NAMES
    order = np.random.default_rng(0).permutation(joined.num_rows)
    at_once = joined.rows(order)
    for place, index in enumerate(order[:20]):
        for key, values in joined.rows(np.array([index])).items():
            np.testing.assert_array_equal(values[0], at_once[key][place])


def test_raw_shards_and_prepared_folders_mix(folders: dict[str, str]) -> None:
    config = mixed({**folders, "web": folders["web raw"]})
    make_job(config)
    assert len(set(read(opened(config), 3))) == 24


def test_the_command_line_says_sources_and_rates(folders: dict[str, str]) -> None:
    config = default_config()
    config.data.task, config.data.length = "text", 32
    said = mixed(folders).data
    apply_overrides(config, {"data.sources": repr(said.sources), "data.rates": repr(said.rates)})
    validate(config)
    assert (config.data.sources, config.data.rates) == (said.sources, said.rates)
    again = from_json(to_json(config))
    assert (again.data.sources, again.data.rates) == (said.sources, said.rates)


WEB = (("web", 1.0),)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(data__rates=(("web", 0.7),)), r"config\.data\.rates: \('web', 0\.7\) is not \(step"),
        (dict(data__rates=((0, ()),)), r"config\.data\.rates: \(0, \(\)\) is not"),
        (dict(data__rates=((0, (("web", -1.0),)),)), r"config\.data\.rates: .* is not \(step, "),
        (dict(data__rates=((0.5, WEB),)), r"config\.data\.rates: .* is not \(step, "),
        (dict(data__sources=("web",)), r"config\.data\.sources: 'web' is not \(name without /"),
        (dict(data__sources=(("a/b", "x"),)), r"config\.data\.sources: .* is not \(name without /"),
        (dict(data__sources=(("web", ""),)), r"config\.data\.sources: .* is not \(name without /"),
        (dict(data__sources=(("web", "a"), ("web", "b"))), "'web' is there twice"),
    ],
)
def test_what_is_no_source_or_rate_is_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(text_config(**overrides))


def test_what_cannot_be_mixed_is_said_before_the_run_starts(
    folders: dict[str, str], tmp_path: pathlib.Path
) -> None:
    longer = dict(data__path=folders["code raw"], data__length=48)
    preparation.prepare(text_config(**longer), epath.Path(tmp_path / "longer"))
    pieces = dict(data__path=folders["code raw"], data__vocabulary="pile_mini_32k")
    preparation.prepare(text_config(**pieces), epath.Path(tmp_path / "pieces"))
    # Its training text is what is held out of the web.
    leaking = tmp_path / "leaking"
    shutil.copytree(folders["books raw"], leaking)
    shutil.copy(f"{folders['web raw']}/val.jsonl.zst", leaking / "train-00001.jsonl.zst")
    preparation.prepare(text_config(data__path=str(leaking)), epath.Path(tmp_path / "leaks"))
    sources = mixed(folders).data.sources
    for config, message in (
        (mixed({**folders, "code": str(tmp_path / "longer")}), r"sources, code: .* with length 48"),
        (mixed({**folders, "code": str(tmp_path / "pieces")}), "sources, code: .* is not the voc"),
        (
            mixed({**folders, "code": str(tmp_path / "gone")}),
            "sources, code: /.*gone is not a fold",
        ),
        (mixed({**folders, "code": folders["web"]}), "code and web are the same text"),
        (mixed({**folders, "books": str(tmp_path / "leaks")}), "books: .*validation of web"),
        (mixed(folders, data__rates=()), "must say how much is read of each"),
        (mixed(folders, data__path=folders["web"]), r"--config\.data\.path= leaves that one out"),
        (mixed(folders, prepare__weights=(("ArXiv", 2.0),)), "sources, books: .* has no effect"),
        (text_config(data__rates=RATES), r"of config\.data\.sources, which names none"),
        (small_config(data__sources=sources), r"are of config\.data\.task='text'; it is 'group_"),
    ):
        with pytest.raises(UserError, match=message):
            make_job(config)


def test_without_its_data_a_mixture_still_says_what_the_model_needs() -> None:
    config = text_config(data__sources=(("web", "gone"),), data__rates=((0, WEB),))
    data = resolve(config)
    assert isinstance(data, MixtureData)
    assert (data.length, data.vocab_size) == (32, 259)
    make_job(config, needs_data=False)
