"""What a step leaves out of the gradient where nobody says so."""

from __future__ import annotations

import pytest

from lact_asr.inference.ttt.settings import Adaptation, TTTSettings

OWN = ("norms", "front_end")
META = {
    "ttt_training": "meta",
    "ttt_loss_type": "entropy",
    "ttt_parameters": "norms,front_end",
    "ttt_learning_rate": 1e-3,
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (True, 1)),
        ({"parameters": OWN[::-1]}, (True, 1)),
        ({"parameters": ("norms",)}, (False, 0)),
        ({"parameters": (*OWN, "fast_weights")}, (False, 0)),
        ({"loss_type": "tent"}, (False, 0)),
        ({"loss_type": "entropy+tent"}, (True, 1)),
        ({"constant_updates": False}, (False, 1)),
        ({"frozen_layers": 0}, (True, 0)),
        ({"loss_type": "tent", "constant_updates": True, "frozen_layers": 2}, (True, 2)),
    ],
    ids=str,
)
def test_the_cheap_step_is_that_of_entropy_on_its_own_parameters(speaking_model, settings, expected):
    model = speaking_model()
    adaptation = Adaptation(model, TTTSettings(**{"loss_type": "entropy", **settings}))
    assert (adaptation.constant_updates, adaptation.frozen_layers) == expected


def test_rates_that_were_learned_with_full_gradients_are_used_with_them(speaking_model):
    model = speaking_model(**META)
    assert Adaptation(model, TTTSettings.of(model.config)).constant_updates is False
    assert set(Adaptation(model, TTTSettings.of(model.config)).parameters) == set(model.ttt_rates.names)
    cheap = Adaptation(model, TTTSettings.of(model.config, constant_updates=True, frozen_layers=1))
    assert cheap.constant_updates
    assert set(cheap.parameters) < set(model.ttt_rates.names)


def test_other_models_take_what_they_are_told(transformers_model, family):
    model = transformers_model(family)
    full = Adaptation(model, TTTSettings("entropy"))
    assert not full.constant_updates
    frozen = Adaptation(model, TTTSettings("entropy", frozen_layers=1))
    assert set(frozen.parameters) < set(full.parameters)
