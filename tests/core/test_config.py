import pytest
from pydantic import ValidationError

from rfedge.config import PolicyConfig, check_precision, preset, preset_names
from rfedge.errors import ConfigError
from tests.errors import raises


@pytest.mark.parametrize("name", preset_names())
def test_preset_survives_json_and_keeps_its_name(name: str) -> None:
    config = preset(name)
    assert config.name == name
    assert PolicyConfig.model_validate_json(config.model_dump_json()) == config


def test_unknown_preset_names_the_nearest_one() -> None:
    expected = "one of tiny, playtable-small, ... (did you mean 'playtable-small'?)"
    with raises(ConfigError, "preset", got="'playtable-smal'", expected=expected):
        preset("playtable-smal")


def test_unknown_precision_names_the_nearest_one() -> None:
    assert check_precision("int8") == "int8"
    expected = "one of fp32, fp16, bf16, int8, int8-weight, int4-weight, mixed (did you mean 'int8'?)"
    with raises(ConfigError, "precision", got="'int9'", expected=expected):
        check_precision("int9")


def test_a_stride_longer_than_the_chunk_is_refused() -> None:
    fields = preset("tiny").model_dump() | {"frame_stride": 4, "chunk_size": 2}
    with pytest.raises(ValidationError, match="frame_stride: got 4, expected at most chunk_size \\(2\\)"):
        PolicyConfig.model_validate(fields)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        PolicyConfig.model_validate(preset("tiny").model_dump() | {"colour": "red"})
