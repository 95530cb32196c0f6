"""Bad input is named whole, and what was done of the good input is not done again."""

import json
import pathlib
from typing import Any

import pytest
from etils import epath
from helpers import small_config, write_pile
from in_process import InProcess, Stopped

from looped_jax.data import preparation
from looped_jax.data.documents import Shards
from looped_jax.data.packed_blocks import Bad, PackBlock, Packing, PackStripe
from looped_jax.errors import UserError

FILES, LINES = 3, 40


def line(number: int) -> str:
    return json.dumps({"text": f"{number} " * (20 * (number % 7 + 1))})


def write_sources(folder: pathlib.Path) -> None:
    folder.mkdir(exist_ok=True)
    for file in range(FILES):
        content = "".join(line(1000 * file + i) + "\n" for i in range(LINES))
        (folder / f"train-{file}.jsonl").write_text(content)
    (folder / "val.jsonl").write_text("".join(line(i) + "\n" for i in range(9000, 9010)))


def change(path: pathlib.Path, changes: dict[int, str]) -> None:
    """Replaces lines, numbered from 1, by others as long: the cuts into blocks stay."""
    lines = path.read_text().splitlines()
    for number, new in changes.items():
        lines[number - 1] = new.ljust(len(lines[number - 1]))
    path.write_text("".join(f"{line}\n" for line in lines))


def config(path: pathlib.Path, **overrides: Any) -> Any:
    defaults = dict(
        data__task="text",
        data__length=32,
        data__path=str(path),
        data__train_files="train-*",
        data__validation_files="val*",
        prepare__block_kb=1,
        prepare__shards=3,
    )
    return small_config(**{**defaults, **overrides})


def prepare(
    monkeypatch: pytest.MonkeyPatch,
    path: pathlib.Path,
    output: pathlib.Path,
    limit: int | None = None,
    **overrides: Any,
) -> list[PackBlock]:
    """The blocks that were packed."""
    packed: list[PackBlock] = []

    def seen(job: Any) -> None:
        if isinstance(job, PackBlock):
            packed.append(job)

    monkeypatch.setattr(preparation, "Pool", lambda workers: InProcess(limit, seen))
    preparation.prepare(config(path, **overrides), epath.Path(output))
    return packed


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_every_bad_line_is_named_and_only_mended_blocks_are_done_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "source", tmp_path / "out"
    write_sources(source)
    all_blocks = prepare(monkeypatch, source, tmp_path / "whole")
    change(source / "train-0.jsonl", {3: "{", 4: '{"a": 1}'})
    change(source / "train-2.jsonl", {LINES: "no"})
    change(source / "val.jsonl", {1: "[]"})
    with pytest.raises(UserError) as error:
        prepare(monkeypatch, source, output)
    message = str(error.value)
    at = [
        message.index(place)
        for place in (
            "train-0.jsonl, line 3: not JSON",
            'train-0.jsonl, line 4: no "text"',
            f"train-2.jsonl, line {LINES}: not JSON",
            'val.jsonl, line 1: no "text"',
        )
    ]
    assert at == sorted(at)
    assert message.startswith("4 faults in the input")
    assert f"kept in {output}: mend this and start the same command again" in message
    assert len((output / "bad_lines.txt").read_text().splitlines()) == 4
    assert not list(output.glob("*.array_record"))
    # Mended, but for one: only that is named, and only what changed is done again.
    write_sources(source)
    change(source / "val.jsonl", {1: "[]"})
    with pytest.raises(UserError, match=r"val\.jsonl, line 1: no .* kept in"):
        prepare(monkeypatch, source, output)
    assert (
        "train-0.jsonl, train-2.jsonl; only what changed is done again" in capsys.readouterr().err
    )
    write_sources(source)
    again = prepare(monkeypatch, source, output)
    assert [job.block.where for job in again] == [str(source / "val.jsonl")]
    assert files(output) == files(tmp_path / "whole")
    assert len(all_blocks) > 20


def test_the_blocks_of_one_mended_line_are_tokenised_again_and_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    source, output = tmp_path / "source", tmp_path / "out"
    write_sources(source)
    change(source / "train-1.jsonl", {LINES // 2: "{"})
    with pytest.raises(UserError, match=rf"train-1\.jsonl, line {LINES // 2}: not JSON"):
        prepare(monkeypatch, source, output)
    change(source / "train-1.jsonl", {LINES // 2: '{"text": ""}'})
    (again,) = prepare(monkeypatch, source, output)
    assert again.block.where.endswith("train-1.jsonl")
    lines = again.block.content.count(b"\n")
    assert again.block.first_line <= LINES // 2 < again.block.first_line + lines
    # A line that is taken out moves the cuts after it, and the blocks of the files after it.
    write_sources(source)
    change(source / "train-1.jsonl", {LINES // 2: "{"})
    with pytest.raises(UserError):
        prepare(monkeypatch, source, tmp_path / "other")
    kept = (source / "train-1.jsonl").read_text().splitlines(keepends=True)
    del kept[LINES // 2 - 1 : LINES // 2 + 8]
    (source / "train-1.jsonl").write_text("".join(kept))
    more = prepare(monkeypatch, source, tmp_path / "other")
    assert {job.block.where for job in more} == {str(source / "train-1.jsonl")}
    assert min(job.block.first_line for job in more) > 5
    prepare(monkeypatch, source, tmp_path / "anew")
    assert files(tmp_path / "other") == files(tmp_path / "anew")


def test_a_broken_file_ends_only_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    source, output = tmp_path / "source", tmp_path / "out"
    write_sources(source)
    (source / "train-05.jsonl.gz").write_bytes(b"no gzip")
    (source / "train-06.jsonl").write_bytes(b"")
    change(source / "train-2.jsonl", {7: "{"})
    with pytest.raises(UserError) as error:
        prepare(monkeypatch, source, output)
    for said in ("train-05.jsonl.gz, after line 0: corrupt", "06.jsonl: empty", "2.jsonl, line 7"):
        assert said in str(error.value)
    # What cannot be mended is left out.
    for name in ("train-05.jsonl.gz", "train-06.jsonl"):
        (source / name).unlink()
    write_sources(source)
    assert len(prepare(monkeypatch, source, output)) == 1
    prepare(monkeypatch, source, tmp_path / "anew")
    assert files(output) == files(tmp_path / "anew")


def test_a_stripe_of_a_file_packs_its_blocks_and_hides_no_fault(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "train-0.jsonl"
    source.write_text("".join(line(i) + "\n" for i in range(9)))

    class Broken(Shards):
        def blocks(self, size: int) -> Any:
            for number, block in enumerate(super().blocks(size)):
                if number == 5:
                    raise UserError("broken")
                yield block

    whole, broken = Shards((epath.Path(source),)), Broken((epath.Path(source),))
    packing, folder = Packing(32, "bytes", {}, 0), epath.Path(tmp_path)
    both = [PackStripe(packing, whole, 3, i, 2, 1, folder)() for i in range(2)]
    places = [[packed.place for packed in results] for results in both]
    assert places == [[(3, i) for i in range(first, 9, 2)] for first in range(2)]
    for i in range(2):  # What one reads of a file that fails now and then, the other may not.
        *_, last = PackStripe(packing, broken, 3, i, 2, 1, folder)()
        assert last == Bad((3, 5), ["broken"])
    nowhere = Packing(32, str(tmp_path / "none.model"), {}, 0)
    with pytest.raises(UserError, match=r"none\.model"):
        PackStripe(nowhere, whole, 0, 1, 2, 1, epath.Path(tmp_path / "new"))()


def test_many_bad_lines_are_in_a_file_and_the_first_on_the_screen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    source = tmp_path / "source"
    write_sources(source)
    (source / "train-0.jsonl").write_text("{\n" * 33)
    with pytest.raises(UserError, match="and 13 more") as error:
        prepare(monkeypatch, source, tmp_path / "out")
    assert str(error.value).count("not JSON") == 20
    listed = (tmp_path / "out" / "bad_lines.txt").read_text().splitlines()
    assert len(listed) == 33
    # A file of another kind does not fill memory and disk.
    monkeypatch.setattr(preparation, "_LISTED", 25)
    with pytest.raises(UserError, match=r"(?s)25 faults in the input.*no more were looked for"):
        prepare(monkeypatch, source, tmp_path / "out")


def test_an_unfinished_preparation_of_other_sources_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    source, output = tmp_path / "source", tmp_path / "out"
    write_sources(source)
    with pytest.raises(Stopped):
        prepare(monkeypatch, source, output, limit=5)
    write_pile(tmp_path / "other")
    for other, overrides in (
        (tmp_path / "other", dict(data__validation_files="val*")),
        (source, dict(prepare__seed=1)),
        (source, dict(prepare__shards=4)),
        (source, dict(data__validation_files="")),
    ):
        with pytest.raises(UserError, match="holds another preparation"):
            prepare(monkeypatch, other, output, **overrides)
    assert prepare(monkeypatch, source, output)


def test_shards_of_the_text_before_a_change_do_not_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    source, output = tmp_path / "source", tmp_path / "out"
    write_sources(source)
    blocks = len(prepare(monkeypatch, source, tmp_path / "whole"))
    with pytest.raises(Stopped):  # After two shards: each split is one run.
        prepare(monkeypatch, source, output, limit=blocks + 3)
    assert len(list(output.glob("*.array_record"))) == 2
    change(source / "train-0.jsonl", {1: '{"text": "!"}'})
    prepare(monkeypatch, source, output)
    prepare(monkeypatch, source, tmp_path / "anew")
    assert files(output) == files(tmp_path / "anew")


def test_what_was_skipped_is_said_and_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    source = tmp_path / "source"
    write_sources(source)
    manifest = preparation.prepare(config(source), epath.Path(tmp_path / "plain"))
    assert "skipped" not in manifest.splits["train"]
    plain = (source / "train-0.jsonl").read_bytes()
    (source / "train-0.jsonl").write_bytes(b"\xef\xbb\xbf" + plain + b"\n\n")
    same = preparation.prepare(config(source), epath.Path(tmp_path / "out"))
    assert same.splits["train"]["skipped"] == {"blank_lines": 2, "byte_order_marks": 1}
    assert "skipped" not in same.splits["validation"]
    assert "2 blank lines skipped" in preparation.describe(same)
    assert same.fingerprint == manifest.fingerprint
    (source / "val.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"validation: there is no document in val\.jsonl"):
        prepare(monkeypatch, source, tmp_path / "none")


def test_a_source_may_change_wherever_a_preparation_was_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    source, changed = tmp_path / "source", tmp_path / "changed"
    for folder in (source, changed):
        write_sources(folder)
    change(changed / "val.jsonl", {2: line(1)})
    prepare(monkeypatch, changed, tmp_path / "fresh")
    stopped = True
    limit = 0
    while stopped:
        output, limit = tmp_path / f"out{limit}", limit + 3
        stopped = False
        try:
            prepare(monkeypatch, source, output, limit)
        except Stopped:
            stopped = True
            prepare(monkeypatch, changed, output)
            assert files(output) == files(tmp_path / "fresh"), limit
    assert limit > 30
