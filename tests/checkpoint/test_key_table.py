from geomtx.checkpoint.key_table import KeyTable

TABLE = KeyTable((("a.{i}.b", "x.{i}.y"), ("token", "tokens"), ("{i}.deep", "layers.{i}"))) + KeyTable.of_layers(
    {"norm1": "first_norm"}
)


def test_names_go_both_ways():
    pairs = {
        "a.0.b": "x.0.y",
        "a.17.b": "x.17.y",
        "token": "tokens",
        "norm1.weight": "first_norm.weight",
        "norm1.bias": "first_norm.bias",
    }
    for published, geomtx in pairs.items():
        assert TABLE.to_geomtx(published) == geomtx
        assert TABLE.to_published(geomtx) == published


def test_unknown_names_give_none():
    for name in (
        "a.b",
        "a..b",
        "a.x.b",
        "a.1.c",
        "xa.1.b",
        "a.1.b.c",
        "a.1.2.b",
        "",
        "norm1",
        "norm1.gamma",
        "a.{j}.b",
    ):
        assert TABLE.to_geomtx(name) is None, name
    for name in ("token", "x.y", "x.1.z", "first_norm"):
        assert TABLE.to_published(name) is None, name


def test_whose_names_they_are():
    table = TABLE.under("stem", "encoder") + KeyTable((("out.w", "depth_head.w"), ("pose.w", "pose.w")))
    heads = {"camera": "pose", "depth": "depth_head"}
    for naming, names in {
        "published": ["stem.token", "stem.a.0.b", "out.w", "pose.w"],
        "geomtx": ["encoder.tokens", "encoder.x.0.y", "depth_head.w", "pose.w"],
    }.items():
        assert table.describe(names, heads) == (naming, ("camera", "depth"))
        assert table.describe(names[:2] + names[3:], heads) == (naming, ("camera",))
        assert table.describe([*names[:2], "conv.w", "fc.w", "fc.b"], heads) == ("unknown", ())


def test_prefixes():
    table = TABLE.under("theirs", "ours")
    assert table.to_geomtx("theirs.a.3.b") == "ours.x.3.y"
    assert table.to_published("ours.tokens") == "theirs.token"
    assert table.to_geomtx("a.3.b") is None
    assert TABLE.under("", "ours").to_geomtx("a.3.b") == "ours.x.3.y"
    assert TABLE.under("theirs", "").to_published("x.3.y") == "theirs.a.3.b"


def test_a_number_elsewhere_in_the_name_stays():
    table = KeyTable((("stage.2.blocks.{i}.w", "stage2.{i}.w"),))
    assert table.to_geomtx("stage.2.blocks.11.w") == "stage2.11.w"
    assert table.to_published("stage2.11.w") == "stage.2.blocks.11.w"
    assert table.to_geomtx("stage.3.blocks.11.w") is None


def test_a_number_that_begins_or_ends_a_name():
    table = KeyTable((("{i}.w", "blocks.{i}.w"),))
    assert table.to_geomtx("4.w") == "blocks.4.w"
    assert table.to_published("blocks.4.w") == "4.w"
