"""What every recipe is."""

import pytest

from nanotir.config import RECIPES, build


def test_the_recipes_are_the_five_published_systems():
    assert set(RECIPES) == {"grpo", "tora", "cir", "autocode", "tapo"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_file_with_settings_demonstrations_and_improve(name):
    recipe = RECIPES[name]
    assert recipe.__name__ == f"nanotir.recipes.{name}"
    assert build({**recipe.SETTINGS, "recipe": name}).recipe == name
    assert callable(recipe.demonstrations) and callable(recipe.improve)
