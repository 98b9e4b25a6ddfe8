"""YAML that is made to hang, to fill the memory or to run something: one clear error, soon."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import pytest
import yaml

from itrain_contract.loading import MAX_PROBLEMS, SpecError, load_run, parse_run
from itrain_contract.yamltext import MAX_CHARACTERS

RUN = """apiVersion: itrain.dev/v1alpha1
kind: ITrainRun
metadata: {name: a}
spec:
  model: {uri: builtin://toolworld}
  data: {uri: /rows}
  storage: {uri: /storage}
"""
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A billion laughs: 9^9 texts behind nine lines."""

HOSTILE = {
    "billion laughs": (LAUGHS, "more than 100000 values, aliases written out"),
    "billion laughs in a run": (RUN + "  template:\n" + textwrap.indent(LAUGHS, "    "), "aliases written out"),
    "an alias inside of itself": ("a: &a [*a]", "nested deeper than 64"),
    "a mapping inside of itself": ("a: &a {b: *a}", "nested deeper than 64"),
    "deep lists": ("[" * 100_000, "nested deeper than 64"),
    "deep mappings": (RUN + "  template: " + "{a: " * 5000 + "1" + "}" * 5000, "nested deeper than 64"),
    "many values": ("[" + "1," * 300_000 + "]", "beyond the first 100000"),
    "a long number": (RUN + "  seed: " + "9" * 5000, "a number of 5000 characters"),
    "a long hexadecimal number": (RUN + "  seed: 0x" + "f" * 5000, "a number of 5002 characters"),
    "a sexagesimal number": (RUN + "  seed: 1" + ":1" * 50_000, "a number of 100001 characters"),
    "a Python object": (RUN + "  template: !!python/object/apply:os.system ['true']", "constructor"),
    "a Python name": (RUN + "  template: !!python/name:os.system", "constructor"),
    "a foreign tag": (RUN + "  template: !Ref x", "constructor"),
    "a tag that lies": (RUN + "  seed: !!int x", "a value that is no int"),
    "a date that is none": (RUN + "  seed: !!timestamp 2001-99-99", "a value that is no timestamp"),
    "a list as a key": (RUN + "  ? [a]\n  : b", "a key that is a list or a mapping"),
    "merged mappings": (RUN + "  template: {<<: {env: []}}", "merge"),
    "bytes": (RUN + "  template: {labels: !!binary aGk=}", "a mapping"),
    "a set": (RUN + "  template: {labels: !!set {a}}", "a mapping"),
    "infinity": (RUN + "  seed: .inf", "a whole number"),
    "half a surrogate pair": (RUN.replace("/rows", '"/rows\\ud800"'), "unicode"),
    "a NUL": (RUN.replace("/rows", '"/rows\\0"'), "text that matches"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(60)
def test_a_hostile_text_is_one_error_and_soon(name: str) -> None:
    text, words = HOSTILE[name]
    started = time.process_time()
    with pytest.raises(SpecError) as caught:
        parse_run(text, source="run.yaml")
    assert time.process_time() - started < 20
    assert words in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_anchors_that_people_write_are_read() -> None:
    run = parse_run(RUN + "  stages: {score: &quick {gpus: 0, shards: 2}, rollout: *quick}\n")
    assert (run.spec.stages.score.shards, run.spec.stages.rollout.shards) == (2, 2)


@pytest.mark.timeout(120)
def test_a_run_of_the_size_that_the_api_server_takes_is_read_and_a_larger_text_is_not() -> None:
    def annotations() -> dict[str, str]:
        return {f"example.com/{n}": "x" * 4096 for n in range(32)}

    stages = ("prepare", "warmup", "score", "rollout", "train", "evaluate", "export")
    document = yaml.safe_load(RUN)
    document["spec"] |= {
        "template": {"annotations": annotations()},
        "stages": {stage: {"template": {"annotations": annotations()}} for stage in stages},
    }
    text = yaml.safe_dump(document)
    assert len(text) > 1 << 20
    assert len(parse_run(text).spec.stages.export.template.annotations) == 32  # type: ignore[union-attr]
    with pytest.raises(SpecError, match=f"{MAX_CHARACTERS + 1} characters, allowed are {MAX_CHARACTERS}"):
        parse_run(RUN + "#" * (MAX_CHARACTERS + 1 - len(RUN)))


def test_a_thousand_problems_are_told_by_the_first_hundred() -> None:
    with pytest.raises(SpecError) as caught:
        parse_run(RUN + "".join(f"  field{n}: 1\n" for n in range(1000)))
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert "900 more problems" in str(caught.value)


def test_a_file_that_is_no_text_is_an_error_and_one_without_end_is_not_read_to_it(tmp_path: Path) -> None:
    binary = tmp_path / "run.yaml"
    binary.write_bytes(b"kind: \xff\xfe")
    with pytest.raises(SpecError, match="byte 6 that is no UTF-8"):
        load_run(binary)
    with pytest.raises(SpecError, match="allowed are 1572864"):
        load_run(Path("/dev/zero"))
