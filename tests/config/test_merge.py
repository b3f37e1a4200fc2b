"""Settings of a merge: what is accepted, and every mistake at once."""

from pathlib import Path

import pytest

from extensions_lib.config.codec import read_table
from extensions_lib.config.merge import FORMULAS, MergeConfig
from extensions_lib.config.tools import load_tool
from extensions_lib.errors import ConfigError


def table(count=2, **changes):
    return {"name": "mixed", "models": [f"{letter}.safetensors" for letter in "abcde"[:count]], **changes}


def problems(merge):
    with pytest.raises(ConfigError) as caught:
        load_tool("merge", merge)
    return {problem.path: problem.text for problem in caught.value.problems}


def test_a_path_alone_is_a_model():
    config = load_tool("merge", table())
    assert [model.path for model in config.models] == ["a.safetensors", "b.safetensors"]
    assert config.formula == "weighted_sum" and config.dtype == "fp16" and config.vae_dtype == "keep"


@pytest.mark.parametrize("formula", FORMULAS)
def test_every_formula_loads_with_its_number_of_models(formula):
    count = FORMULAS[formula].min_models
    assert load_tool("merge", table(count, formula=formula)).formula == formula
    assert "models" in problems(table(count - 1, formula=formula))


def test_all_mistakes_together():
    wrong = problems(table(2, formula="triple_sum", discard="(", density=2.0, sead=1, alpha=0.5))
    assert wrong["sead"] == "is not a setting; did you mean 'seed'?"
    assert wrong["density"] == "is 2.0, accepted are 0.001 to 1"
    assert wrong["alpha"] == "must be a text, is 0.5"


def test_mistakes_of_several_settings_together():
    wrong = problems(table(2, formula="slerp", beta="0.5", vae="c", discard="(", name="a/b"))
    assert wrong["beta"] == "is given, but slerp has no second ratio; leave it empty"
    assert wrong["vae"] == "is 'c', but the models end with 'b'"
    assert "no regular expression" in wrong["discard"]
    assert "a/b" in wrong["name"]


def test_weights_belong_to_formulas_of_many_models():
    assert "need one weight each" in problems(table(3))["models"]
    weighted = [{"path": "a"}, {"path": "b", "weight": "0.2"}, {"path": "c", "weight": "0.3"}]
    assert len(load_tool("merge", table(models=weighted)).models) == 3
    assert "beside weights" in problems(table(models=weighted, alpha="0.5"))["alpha"]
    assert "which slerp does not use" in problems(table(models=weighted[:2], formula="slerp"))["models"]
    first = [{"path": "a", "weight": "0.2"}, "b"]
    assert "A gets what the others leave" in problems(table(models=first))["models[0].weight"]


def test_the_bounds_of_della():
    assert load_tool("merge", table(formula="della", density=0.5, epsilon=0.9)).epsilon == 0.9
    wrong = problems(table(formula="della", density=0.1, epsilon=0.4))
    assert wrong["epsilon"] == "is 0.4; density -+ epsilon / 2 is -0.1 and 0.3, must be over 0 and at most 1"


def test_a_merge_file(tmp_path: Path):
    path = tmp_path / "merge.toml"
    path.write_text('name = "mixed"\nmodels = ["a", "b"]\nalpha = "0.3"\n', encoding="utf-8")
    assert load_tool("merge", read_table(path)) == load_tool(
        "merge", {"name": "mixed", "models": ["a", "b"], "alpha": "0.3"}
    )
    assert MergeConfig.__doc__
