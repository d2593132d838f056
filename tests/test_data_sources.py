"""Reading files: every kind, in order, and errors that name file and line."""

import json

import pytest

from nas_llm.data.cache import cached_records
from nas_llm.data.records import TokenRecords
from nas_llm.data.sources import open_source, text_field

ROWS = [{"text": "one"}, {"text": "zwei – é"}, {"text": "three\nlines\n"}]


def write(folder, name: str, content: str | bytes):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_bytes(content)
    return path


def read(path) -> list:
    return [row for _, row in open_source(str(path), "data.path").rows()]


def lines(rows) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"


def parquet(folder, name, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    return folder / name


def test_each_kind_of_file_gives_the_same_rows(tmp_path):
    assert read(write(tmp_path, "a.json", json.dumps(ROWS, indent=1))) == ROWS
    assert read(write(tmp_path, "b.jsonl", lines(ROWS).replace("\n", "\n\n"))) == ROWS
    assert read(write(tmp_path, "c.json", lines(ROWS))) == ROWS
    assert read(write(tmp_path, "d.jsonl", b"\xef\xbb\xbf" + lines(ROWS).replace("\n", "\r\n").encode())) == ROWS
    assert read(parquet(tmp_path, "e.parquet", ROWS)) == ROWS
    assert read(write(tmp_path, "f.txt", "all of\n\nit\n")) == ["all of\n\nit\n"]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    write(tmp_path, "b/2.jsonl", lines(ROWS[1:2]))
    write(tmp_path, "a/1.json", json.dumps(ROWS[:1]))
    write(tmp_path, "b/3.txt", "last")
    write(tmp_path, ".hidden/0.txt", "not read")
    write(tmp_path, "README.md", "not read")
    assert read(tmp_path) == [*ROWS[:2], "last"]


def test_the_digest_follows_the_content_alone(tmp_path):
    def digest(path):
        return open_source(str(path), "data.path").digest()

    first = write(tmp_path, "first.jsonl", lines(ROWS))
    assert digest(first) == digest(write(tmp_path, "copy.jsonl", lines(ROWS)))
    assert digest(first) != digest(write(tmp_path, "other.jsonl", lines(ROWS[:2])))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n\n{"text": "y"\n', r"a\.jsonl, line 3, column \d+: malformed JSON"),
        ("a.json", '[\n {"text": "x"},\n {"text": y}\n]', r"a\.json, line 3, column 11: malformed JSON"),
        ("a.json", '[{"text": "x"}, 7]', r"a\.json, record 2: a record must be a JSON object .* found int"),
        ("a.jsonl", '{"text": "x"}\n["y"]\n', r"a\.jsonl, line 2: a record must be a JSON object .* found list"),
        ("a.json", "", r"a\.json is empty"),
        ("a.json", "[]", r"a\.json is empty"),
        ("a.jsonl", "\n\n", r"a\.jsonl is empty"),
        ("a.txt", " \n", r"a\.txt is empty"),
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8 text \(byte 3\)"),
        ("a.parquet", b"PAR1 and no more", r"a\.parquet is no readable parquet file"),
        ("a.csv", "text\nx\n", r"a\.csv: unknown suffix '\.csv'; data files end in \.json"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, name, content))


def test_a_missing_path_says_what_was_looked_for(tmp_path):
    with pytest.raises(
        ValueError, match=r"data.path=.*none\.json: no such file or folder \(looked for /.*none\.json\)"
    ):
        open_source(str(tmp_path / "none.json"), "data.path")
    with pytest.raises(
        ValueError, match=r"data.path=nobody/nothing: no such file.*the hub gave no dataset 'nobody/nothing'"
    ):
        open_source("nobody/nothing", "data.path")
    with pytest.raises(ValueError, match="is a folder without a .json, .jsonl"):
        open_source(str(tmp_path), "data.path")


def test_a_hub_dataset_is_read_by_name_and_split(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, subset, split, data_files=None):
        asked.append((name, subset, split, data_files))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_source("owner/name:validation", "data.path", "small")
    assert [row["text"] for _, row in source.rows()] == [row["text"] for row in ROWS]
    assert source.digest() == open_source("owner/name", "data.path").digest()
    open_source("owner/name:test", "data.path", hub_file="one.json.gz")
    assert asked == [
        ("owner/name", "small", "validation", None),
        ("owner/name", None, "train", None),
        ("owner/name", None, "test", {"test": "one.json.gz"}),
    ]


def test_fields_are_checked():
    row = {"text": "x", "empty": None, "number": 3}
    assert text_field(row, "text", "here", mend="") == "x"
    assert text_field(row, "empty", "here", mend="", optional=True) == ""
    assert text_field(row, "absent", "here", mend="", optional=True) == ""
    with pytest.raises(ValueError, match=r"here: no field 'body' \(it has 'text', 'empty', 'number'\); do this"):
        text_field(row, "body", "here", mend="do this")
    with pytest.raises(ValueError, match="here: field 'empty' must be a string, found null"):
        text_field(row, "empty", "here", mend="")
    with pytest.raises(ValueError, match="here: field 'number' must be a string, found int"):
        text_field(row, "number", "here", mend="", optional=True)


def test_the_cache_makes_once_and_mends_a_damaged_file(tmp_path, caplog):
    caplog.set_level("INFO")
    made = []

    def make() -> TokenRecords:
        made.append(1)
        return TokenRecords.from_lists([[1, 2], [3]], [1, 0])

    def load(**signature):
        records = cached_records(make, {"source": "a", **signature}, str(tmp_path))
        return [(record["input_ids"].tolist(), record["labels"].tolist()) for record in records]

    assert load() == load() == [([1, 2], [-100, 2]), ([3], [3])]
    assert len(made) == 1
    assert [word for word in ("cache miss", "cache hit") if word in caplog.text] == ["cache miss", "cache hit"]
    load(limit=3)
    assert len(made) == 2
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:40])
    assert load() == [([1, 2], [-100, 2]), ([3], [3])]
    assert len(made) == 3
    assert "damaged" in caplog.text
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    blocked = write(tmp_path, "file", "in the way")
    with pytest.raises(ValueError, match="data.cache_dir: cannot write .*; set data.cache_dir to a writable folder"):
        cached_records(lambda: TokenRecords.from_lists([[1]]), {}, str(blocked))


def test_one_object_over_many_lines_is_valid_json_but_no_array(tmp_path):
    file = tmp_path / "pretty.json"
    file.write_text(json.dumps({"version": 1, "records": [{"text": "a"}]}, indent=2))
    with pytest.raises(ValueError, match=r"pretty.json is an object, not an array of records .*'version', 'records'"):
        list(open_source(str(file), "data.path").rows())


@pytest.mark.parametrize("name", ["deep.json", "deep.jsonl"])
def test_deeply_nested_json_is_refused_by_name(tmp_path, name):
    file = tmp_path / name
    file.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match=rf"data.path: .*{name}, from line 1: nested too deeply"):
        list(open_source(str(file), "data.path").rows())
