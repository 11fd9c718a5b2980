"""Formats: every wrong file is refused in one sentence that names file and key; schemas and readers agree."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from jsonschema import Draft202012Validator

from llm_forget.core import formats
from llm_forget.core.errors import LlmForgetError, RunError
from llm_forget.core.formats.certificate import REQUEST_ID
from llm_forget.core.formats.run import CheckpointMarker, Provenance, RunState
from llm_forget.core.formats.schemas import records, schema, schema_name, write_schemas
from tests.support.json_places import changed, places
from tests.support.schema_files import faults, our_files

KINDS = records()
FAMILIES = {module: sys.modules[module] for module in {kind.__module__ for kind in KINDS.values()}}
PARTS = sorted(
    {
        part
        for name, module in FAMILIES.items()
        for part in vars(module).values()
        if isinstance(part, type) and issubclass(part, msgspec.Struct) and part.__module__ == name
    },
    key=lambda part: part.__qualname__,
)
WRONG = (None, True, 3, 3.5, "text", [], {}, [1, 2], {"a": 1})  # one of every JSON type, and some more


def example(part, whole):
    """A value with every key that a schema names."""
    if "$ref" in part:
        return example(whole["$defs"][part["$ref"].rpartition("/")[2]], whole)
    if "const" in part:
        return part["const"]
    if "enum" in part:
        return part["enum"][0]
    if "anyOf" in part:
        return example(part["anyOf"][0], whole)
    if "pattern" in part:
        return {REQUEST_ID: "req-0001"}[part["pattern"]]
    kind = part.get("type")
    if kind == "object":
        named = {key: example(inner, whole) for key, inner in part.get("properties", {}).items()}
        free = part.get("additionalProperties")
        return named | ({"some name": example(free, whole)} if isinstance(free, dict) else {})
    if kind == "array":
        items = [part["items"]] if isinstance(part.get("items"), dict) else part.get("prefixItems", [])
        return [example(inner, whole) for inner in items]
    return {"string": "text", "integer": 1, "number": 0.5, "boolean": False, "null": None, None: "anything"}[kind]


def shown(path):
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def fault(value, kind):
    """The sentence that a value is refused with; None where it is not."""
    try:
        formats.checked(value, kind, "some/file.json")
    except LlmForgetError as error:  # whose text the command line shows
        return str(error)
    return None


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=PARTS, ids=lambda part: part.__name__)
def part(request):
    return request.param


def test_the_schema_is_valid_and_has_an_example_that_is_read_back_as_it_was(kind):
    whole = schema(kind)
    Draft202012Validator.check_schema(whole)
    value = example(whole, whole)
    if not (kind.ROOT or "format" in kind.__struct_fields__):
        value.pop("format", None)  # of a later format
    assert list(Draft202012Validator(whole).iter_errors(value)) == []
    assert json.loads(formats.encoded(formats.checked(value, kind, "x"))) == value


@pytest.mark.slow
def test_reader_and_schema_agree_about_every_wrong_type_of_every_key(part):
    whole = msgspec.json.schema(part)
    validator, value = Draft202012Validator(whole), example({"$ref": whole["$ref"]}, whole)
    for key in value:
        for new in (..., *WRONG):
            other = changed(value, (key,), new)
            assert is_converted(other, part) == validator.is_valid(other), (key, new)


def is_converted(value, part):
    try:
        msgspec.convert(value, part)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.slow
def test_a_wrong_type_is_refused_with_file_and_key_wherever_it_is_in_a_file(kind):
    whole = schema(kind)
    value = example(whole, whole)
    if "format" in value and "format" not in kind.__struct_fields__:
        value.pop("format")  # of a later format
    refused = [
        (path, sentence)
        for path in places(value)
        for wrong in (None, True, 3, "text")
        if (sentence := fault(changed(value, path, wrong), kind)) is not None
    ]
    typed = {
        key for key in whole.get("required", ()) if whole["properties"][key]
    }  # one that may be anything has no type
    assert {path[0] for path, _ in refused} >= typed
    for path, sentence in refused:
        key = shown(path).replace("some name", "*") if kind.NAMES_ROWS else shown(path)
        assert sentence.startswith(f"'some/file.json': key '{key}' must be ") or path == ("format",)
        assert_is_one_sentence(sentence)


def test_a_missing_key_is_named_wherever_it_is_in_a_file(kind):
    whole = schema(kind)
    value = example(whole, whole)
    missing = [
        (path, fault(changed(value, path, ...), kind)) for path in places(value) if not isinstance(path[-1], int)
    ]
    missing = [(path, sentence) for path, sentence in missing if sentence is not None and path != ("format",)]
    assert {path[0] for path, _ in missing} >= {*whole.get("required", ())} - {"format"}
    for path, sentence in missing:
        key = shown(path).replace("some name", "*") if kind.NAMES_ROWS else shown(path)
        parent = key.rpartition(".")[0]  # of a mapping that must not be empty
        assert sentence.startswith(
            (f"'some/file.json' lacks the key '{key}'", f"'some/file.json': key '{parent}' must be")
        )
        assert_is_one_sentence(sentence)


def assert_is_one_sentence(sentence):
    assert sentence.startswith("'some/file.json'")
    assert sentence.endswith("; it was changed, or written by another version of llm-forget")
    assert not set("`\n") & set(sentence)
    assert not any(word in sentence for word in ("Expected", "$.", "object or null or"))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"kind": "unlearn", "status": 1}, ": key 'status' must be a string, not a whole number"),
        ({"kind": "unlearn", "status": "over"}, ": key 'status' must be one of 'running', 'complete'"),
        ({"kind": "unlearn"}, " lacks the key 'status'"),
        ([], " must hold an object, not a list"),
        ({"kind": "a", "status": "complete", "format": 2}, " has format 2, and this version reads format 1"),
        ({"kind": "a", "status": "complete", "format": "2"}, ": key 'format' must be a whole number, not a string"),
    ],
)
def test_sentences_of_errors(tmp_path, value, sentence):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(value))
    with pytest.raises(RunError, match=r"; evaluate again$") as refused:
        formats.read(file, RunState, advice="evaluate again")
    assert str(refused.value) == f"'{file}'{sentence}; evaluate again"


def test_an_error_names_the_entry_of_a_mapping_but_not_where_its_name_may_be_the_id_of_a_row():
    assert "key 'a.bin[0]' must be" in fault({"b.bin": [1, "d"], "a.bin": [None, "d"]}, CheckpointMarker)
    assert KINDS["RequestedRows"].NAMES_ROWS
    value = {"source": "x", "how": {"Jane Doe": 1}, "subjects": {}, "said": {}, "near": [], "taken": [], "decision": 0}
    assert "key 'how.*' must be a string" in fault(value, KINDS["RequestedRows"])


def test_a_key_that_is_not_signed_with_the_others_is_named():
    whole = schema(KINDS["SignedHead"])
    assert " has an unknown key 'note';" in fault({**example(whole, whole), "note": 1}, KINDS["SignedHead"])


def test_an_id_with_a_newline_behind_it_is_refused():
    whole = schema(KINDS["Certificate"])
    value = example(whole, whole)
    assert fault(value, KINDS["Certificate"]) is None
    value["body"]["request"]["id"] += "\n"
    assert "key 'body.request.id' must be a string of the form" in fault(value, KINDS["Certificate"])


def test_names_in_a_file_cannot_steer_a_terminal():
    assert "\x1b" not in fault({"\x1b[2J": 1}, CheckpointMarker)


@pytest.mark.parametrize("text", ["", "{", "[NaN]", '{"a": 1, "a": 2}', '{"a": 1e999}', b"\xff", "[" * 100_000])
def test_what_is_not_plain_json_is_refused(tmp_path, text):
    file = tmp_path / "run.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError, match=r"^'.*run.json' (cannot be read: |must hold )") as refused:
        formats.read(file, RunState)
    assert "\n" not in str(refused.value)


def test_a_file_without_a_format_number_is_in_format_1_and_keeps_its_keys_when_it_is_rewritten(tmp_path):
    file = tmp_path / "run.json"
    old = {"kind": "unlearn", "later": {"a": [1]}, "status": "running", "identity": {"seed": 0, "x": {"y": None}}}
    file.write_text(json.dumps(old))
    assert formats.update(file, RunState, status="complete", finished="now").status == "complete"
    assert list(json.loads(file.read_text()).items()) == [*(old | {"status": "complete"}).items(), ("finished", "now")]
    assert "format" not in json.loads(file.read_text())


def test_what_is_not_a_record_is_not_written(tmp_path):
    with pytest.raises(RunError, match="key 'status' must be one of 'running', 'complete'; nothing was written"):
        formats.write(tmp_path / "run.json", {"kind": "unlearn", "status": "over"}, RunState)
    assert not list(tmp_path.iterdir())


def test_a_record_is_written_as_its_keys_without_those_that_are_not_set(tmp_path):
    formats.write(tmp_path / "run.json", RunState("unlearn", "running", identity={"ä": 1}))
    text = '{\n  "kind": "unlearn",\n  "status": "running",\n  "identity": {\n    "ä": 1\n  }\n}\n'
    assert (tmp_path / "run.json").read_text(encoding="utf-8") == text


def test_a_damaged_entry_of_provenance_is_named_by_split(tmp_path):
    base = {"name": "x", "digest": "sha256:0"}
    value = {"kind": "unlearn", "base": base, "data": {"forget": {"rows": "72", "digest": "d"}}}
    assert "key 'data.*.rows' must be a whole number, not a string" in fault(value, Provenance)


@pytest.mark.slow
def test_the_command_writes_a_schema_for_every_class(tmp_path):
    command = [sys.executable, "-m", "llm_forget.core.formats", "--write", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {schema_name(kind) for kind in KINDS.values()}
    written = write_schemas(tmp_path / "again")
    assert [(tmp_path / path.name).read_text() for path in written] == [path.read_text() for path in written]


def test_formats_load_neither_torch_nor_the_rest_of_the_package():
    code = "import sys, llm_forget.core.formats.schemas as s; s.records(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"torch", "transformers", "numpy", "pydantic"} & set(done.stdout.split())


OLD = Path(__file__).parents[1] / "frozen" / "evidence_0_1"


def test_files_of_version_0_1_fit_their_schemas_and_are_read():
    kinds = {kind.__name__ for _, kind in our_files(OLD)}
    assert kinds >= {"RunState", "Provenance", "Results", "RowScores", "Verification", "Attack", "CardStatements"}
    assert kinds >= {"Version", "CurrentVersion", "DeletionRequest", "CertificateFacts", "Certificate", "SignedHead"}
    assert kinds >= {"Manifest", "PublishedFiles", "PublicationSignature", "LogLine"}
    assert faults(OLD) == []


def test_a_record_of_a_file_of_version_0_1_is_written_as_the_same_bytes():
    written = {path: kind for path, kind in our_files(OLD) if path.suffix == ".json"}
    for path, kind in written.items():
        if path.name not in ("certificate.json", "published.json"):  # in a form of their own
            assert formats.encoded(formats.read_content(path, kind)) == path.read_text(encoding="utf-8"), path
            again = json.loads(formats.encoded(formats.read(path, kind)))
            assert again == formats.read_content(path, kind), path
