"""YAML to a run: what is accepted, and what each mistake is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from itrain_contract.loading import SpecError, load_run, parse_run

ROOT = Path(__file__).parents[3]
BROKEN = sorted((ROOT / "tests/data/broken").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "crds/examples").glob("*.yaml"))

SHORT = """
apiVersion: itrain.dev/v1alpha1
kind: ITrainRun
metadata: {name: short}
spec:
  model: {uri: "hf://org/model"}
  data: {uri: ./rows.json}
  storage: {uri: "s3://bucket/prefix"}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_run(text, source="run.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_twenty_broken_files_are_kept() -> None:
    assert len(BROKEN) == 22


@pytest.mark.parametrize("path", BROKEN, ids=lambda p: p.stem)
def test_a_broken_file_is_answered_with_field_value_and_remedy(path: Path) -> None:
    field, _, words = path.read_text().splitlines()[0].removeprefix("# expect: ").partition(" | ")
    with pytest.raises(SpecError) as caught:
        load_run(path)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert words in str(problem)
    assert problem.got
    assert problem.line is not None or problem.field == "spec.model"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_is_valid(path: Path) -> None:
    assert load_run(path).metadata.name in path.read_text()


def test_a_short_run_has_the_papers_defaults() -> None:
    spec = parse_run(SHORT).spec
    assert (spec.stages.rollout.actions, spec.stages.rollout.simulations, spec.stages.rollout.depth) == (3, 5, 3)
    assert (spec.stages.train.beta, spec.stages.train.gamma, spec.stages.score.fraction) == (2.5, 0.5, 0.10)
    assert spec.iterations.max == 3


def test_numbers_are_read_as_kubectl_reads_them() -> None:
    run = parse_run(SHORT + "  stages: {warmup: {learningRate: 1e-4}, train: {learningRate: 1E-5}}\n")
    assert run.spec.stages.warmup.learning_rate == 1e-4
    assert run.spec.stages.train.learning_rate == 1e-5


def test_a_key_that_stands_twice_is_refused_with_its_line() -> None:
    (problem,) = problems(SHORT + "  seed: 1\n  seed: 2\n")
    assert "line 10" in problem
    assert "'seed' stands twice" in problem


def test_all_problems_are_told_at_once() -> None:
    found = problems(SHORT + "  seed: -1\n  precision: fp8\n  iterations: {max: 101}\n")
    assert len(found) == 3


def test_two_documents_in_one_file_are_refused() -> None:
    assert "2 documents" in problems(SHORT + "---" + SHORT)[0]


def test_text_that_is_no_yaml_names_the_line() -> None:
    assert problems("a: [1, 2\nb: 3")[0].startswith("line ")


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n", "3"])
def test_a_file_that_holds_no_mapping_is_refused(text: str) -> None:
    assert problems(text)


def test_python_objects_in_yaml_are_refused() -> None:
    assert problems("!!python/object/apply:os.system ['true']")
