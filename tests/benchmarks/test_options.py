"""Fields that benchmarks are told."""

from benchmarks.options import changes


def test_a_value_is_json_or_else_text() -> None:
    told = ["steps=4", "views=jpeg", 'classes=["ant", "bee"]', "seed=", "name=a=b", 'text="4"']
    assert changes(told) == {
        "steps": 4,
        "views": "jpeg",
        "classes": ("ant", "bee"),
        "seed": "",
        "name": "a=b",
        "text": "4",
    }
