import json

import pytest

from metadnas_ext.space.genotype import DARTS_V1, DARTS_V2, Genotype

PUBLISHED_V2 = """
Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0),
                 ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0),
                 ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=range(2, 6),
         reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2),
                 ('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2),
                 ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])
"""
PAIRS = (("skip_connect", 0), ("sep_conv_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 0))


def test_parses_the_published_text():
    assert Genotype.parse(PUBLISHED_V2) == DARTS_V2


@pytest.mark.parametrize("genotype", [DARTS_V1, DARTS_V2, Genotype.of(PAIRS, PAIRS)])
def test_round_trips(genotype):
    assert Genotype.parse(str(genotype)) == genotype
    assert Genotype.from_json(json.loads(json.dumps(genotype.to_json()))) == genotype


def test_text_is_the_published_form():
    pairs = PAIRS[:2]
    assert str(Genotype.of(pairs, pairs)) == (
        "Genotype(normal=[('skip_connect', 0), ('sep_conv_3x3', 1)], normal_concat=[2], "
        "reduce=[('skip_connect', 0), ('sep_conv_3x3', 1)], reduce_concat=[2])"
    )


def test_lists_and_ranges_become_tuples():
    genotype = Genotype([list(p) for p in PAIRS], range(2, 4), list(PAIRS), [2, 3])
    assert genotype == Genotype.of(PAIRS, PAIRS)
    assert hash(genotype) == hash(Genotype.of(PAIRS, PAIRS))


@pytest.mark.parametrize(
    ("normal", "message"),
    [
        ((*PAIRS[:3], ("conv_9x9", 0)), "unknown primitive 'conv_9x9'"),
        ((*PAIRS[:3], ("none", 0)), "normal node 1: a discrete cell has no 'none'"),
        (PAIRS[:3], "normal must have 2 pairs per node, got 3"),
        ((), "normal must have 2 pairs per node, got 0"),
        (PAIRS[:2], "as many nodes, got 1 and 2"),
        ((*PAIRS[:3], ("max_pool_3x3", 3)), "normal node 1: the source must be an earlier state"),
        ((*PAIRS[:3], ("max_pool_3x3", -1)), "normal node 1: the source must be an earlier state"),
        ((*PAIRS[:3], ("max_pool_3x3", True)), "the source must be an earlier state, got True"),
        ((*PAIRS[:3], ("max_pool_3x3", 2)), "normal node 1: both edges come from state 2"),
        ((*PAIRS[:3], "ab"), r"expected \(primitive, source\), got 'ab'"),
    ],
)
def test_rejects_cells_that_are_not(normal, message):
    with pytest.raises(ValueError, match=message):
        Genotype(normal, (2, 3), PAIRS, (2, 3))


@pytest.mark.parametrize("concat", [(2,), (2, 4), (3, 2), (2, 3, 4), range(2, 10**12)])
def test_rejects_other_concatenations(concat):
    with pytest.raises(ValueError, match="reduce_concat must be all nodes"):
        Genotype(PAIRS, (2, 3), PAIRS, concat)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Genotype(",
        "DARTS_V2",
        "Cell(normal=[])",
        "Genotype([], [], [], [])",
        "Genotype(normal=[])",
        "Genotype(**{})",
        PUBLISHED_V2.replace("range(2, 6)", "range(2, 6, 0)"),
        PUBLISHED_V2.replace("range(2, 6)", "range('2')"),
        PUBLISHED_V2.replace("range(2, 6)", "open('/etc/passwd')"),
        PUBLISHED_V2.replace("range(2, 6)", "6"),
        PUBLISHED_V2.replace("[2, 3, 4, 5]", "[i for i in range(2, 6)]"),
    ],
)
def test_parse_evaluates_nothing_and_says_what_is_wrong(text):
    with pytest.raises(ValueError, match=r"genotype|must be a list"):
        Genotype.parse(text)


def test_from_json_names_wrong_fields():
    data = DARTS_V1.to_json()
    with pytest.raises(ValueError, match="exactly the fields normal, normal_concat"):
        Genotype.from_json({**data, "recurrent": []})
    with pytest.raises(ValueError, match="normal must be a list, got 3"):
        Genotype.from_json({**data, "normal": 3})
    with pytest.raises(ValueError, match="got list"):
        Genotype.from_json([])
