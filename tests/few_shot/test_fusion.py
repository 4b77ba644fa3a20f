"""Plans: an unseen domain only gets backbones that were not trained on it, and fusion starts from the source."""

import pytest

from hf_sharp.few_shot.fusion import FUSIONS, plan_backbones

SIZES = {"a": 10, "b": 40, "c": 30, "d": 20}


@pytest.mark.parametrize("fusion", [(), ("per_domain",), ("joint",), FUSIONS])
@pytest.mark.parametrize("source", [None, "d"])
@pytest.mark.parametrize("with_source", [False, True])
def test_seen_domains_were_trained_on_and_unseen_ones_were_not(fusion, source, with_source):
    plan = plan_backbones(SIZES, ["none", "sam"], fusion, source, with_source)
    rows = [
        method + kind
        for method in ("none", "sam")
        for kind in ("", *(f" + {f.replace('_', '-')} fusion" for f in fusion))
    ]
    assert list(plan.seen) == list(plan.unseen) == rows
    for row in rows:
        assert list(plan.seen[row]) == list(plan.unseen[row]) == list(SIZES)
        for domain in SIZES:
            seen, unseen = ([plan.backbones[name] for name in t[row][domain]] for t in (plan.seen, plan.unseen))
            assert len(seen) == 1
            assert domain in seen[0].seen
            assert unseen
            assert not any(domain in backbone.seen for backbone in unseen)
            assert all(backbone.sharpness == row.split()[0] for backbone in (*seen, *unseen))
    order = list(plan.backbones)
    for backbone in plan.backbones.values():
        assert backbone.source is None or order.index(backbone.source.name) < order.index(backbone.name)


def test_per_domain_fusion_fine_tunes_one_sources_backbone_on_one_domain():
    plan = plan_backbones(SIZES, ["sam"])
    row = "sam + per-domain fusion"
    assert plan.seen[row] == {"a": ("sam/a_from_b",), "b": ("sam/b",), "c": ("sam/c_from_b",), "d": ("sam/d_from_b",)}
    assert plan.unseen[row]["a"] == ("sam/b", "sam/c_from_b", "sam/d_from_b")
    assert plan.unseen[row]["b"] == ("sam/c", "sam/a_from_c", "sam/d_from_c"), "the next largest is the source"
    tuned = plan.backbones["sam/a_from_b"]
    assert (tuned.domains, tuned.source.name, tuned.seen) == (("a",), "sam/b", {"a", "b"})
    assert len(plan.backbones) == 4 + 3 + 2
    named = plan_backbones(SIZES, ["sam"], source="a")
    assert named.seen[row]["b"] == ("sam/b_from_a",)
    assert named.unseen[row]["a"] == ("sam/b", "sam/c_from_b", "sam/d_from_b")


def test_joint_fusion_trains_on_all_other_domains_together():
    plan = plan_backbones(SIZES, ["sam"], ["joint"])
    assert set(plan.seen["sam + joint fusion"].values()) == {("sam/joint",)}
    assert plan.backbones["sam/joint"].domains == ("a", "c", "d")
    assert plan.backbones["sam/joint_without_b"].domains == ("a", "d")
    assert plan.backbones["sam/joint_without_b"].source.name == "sam/c"
    assert plan_backbones(SIZES, ["sam"], ["joint"], None, True).backbones["sam/joint"].domains == tuple(SIZES)


@pytest.mark.parametrize(("count", "seen", "unseen"), [(1, 1, 0), (2, 3, 1), (3, 3, 3)])
def test_few_domains(count, seen, unseen):
    plan = plan_backbones(dict(list(SIZES.items())[:count]), ["none"], FUSIONS)
    assert (len(plan.seen), len(plan.unseen)) == (seen, unseen)
