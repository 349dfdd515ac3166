from rfedge.errors import did_you_mean, explain


def test_explain_says_subject_got_expected_and_remedy() -> None:
    text = explain("execute_steps", got=9, expected="1 to 4 (chunk_size)", remedy="Lower --execute-steps.")
    assert text == "execute_steps: got 9, expected 1 to 4 (chunk_size). Lower --execute-steps."


def test_did_you_mean_names_the_nearest_choice_only_when_there_is_one() -> None:
    assert did_you_mean("int9", ["fp32", "int8"]) == "one of fp32, int8 (did you mean 'int8'?)"
    assert did_you_mean("banana", ["fp32", "int8"]) == "one of fp32, int8"


def test_a_part_of_names_is_answered_with_all_of_them() -> None:
    assert did_you_mean("int4", ["int8", "int4-weight"]).endswith("(did you mean 'int4-weight'?)")
    assert did_you_mean("orin", ["orin-nx", "agx-orin", "thor"]).endswith("(did you mean 'orin-nx' or 'agx-orin'?)")
