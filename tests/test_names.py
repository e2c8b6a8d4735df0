import pytest

from geomtx.names import close_matches, match_names

NAMES = ("encoder", "encoder.blocks.0", "encoder.blocks.1", "head")


def test_a_star_stands_for_dots_too():
    assert match_names(["enc*.1", "h[a-e]ad"], NAMES, what="freeze") == {
        "enc*.1": ["encoder.blocks.1"],
        "h[a-e]ad": ["head"],
    }


def test_patterns_that_match_nothing():
    with pytest.raises(ValueError, match=r"^freeze must match a name of the model, got 'haed'; did you mean 'head'\?$"):
        match_names(["head", "haed"], NAMES, what="freeze")
    with pytest.raises(ValueError, match=r"^freeze must match a name of the model, got '\*zzz\*'$"):
        match_names(["*zzz*"], NAMES, what="freeze")


def test_a_string_is_no_sequence_of_patterns():
    with pytest.raises(ValueError, match=r"^freeze must be a sequence of patterns, got 'head'$"):
        match_names("head", NAMES, what="freeze")


def test_names_that_are_alike():
    assert close_matches("encodr", NAMES) == "; did you mean 'encoder'?"
    assert close_matches("zzz", NAMES) == ""


def test_names_within_a_part():
    assert close_matches("blocks.1", NAMES) == "; did you mean 'encoder.blocks.1'?"
    names = ["model.vggt.encoder.0.qkv", "vggt.encoder.0.qkv", "vggt.encoder.1.qkv"]
    assert close_matches("encoder.*.qkv", names) == "; did you mean 'vggt.encoder.*.qkv'?"
