"""Recipes: every file loads, says where it comes from, and adapts as its method's equations written out by hand."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lact_asr.errors import InputError
from lact_asr.inference.ttt.optimizers import sam_ascent
from lact_asr.inference.ttt.outcome import AdaptedState
from lact_asr.inference.ttt.recipe_files import read_recipe, recipe_summaries
from lact_asr.inference.ttt.recipes import Recipe, load_recipe
from lact_asr.inference.ttt.scopes import make_trainer
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt.statistics import FeatureAccumulator, FeatureStatistics
from lact_asr.inference.ttt.views import Guides
from lact_asr.ttt_parameters import select_parameters

RECIPES = ["awmc", "cea", "dsuta", "e_bats", "sar", "sgem", "suta", "tent"]
BLANK = 0


@pytest.fixture
def model(speaking_model):
    return speaking_model(num_hidden_layers=1).double()


@pytest.fixture
def waveform(audio):
    def make(number: int = 0, seconds: float = 0.3) -> Tensor:
        samples = torch.from_numpy(audio.make(seconds, seed=number)).double()
        return (samples - samples.mean()) / samples.std()

    return make


def statistics_of(model: nn.Module) -> FeatureStatistics:
    """Made up, with the shapes of a model."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    channels, layers, width = config.conv_dim[-1], config.num_hidden_layers + 1, config.hidden_size
    shapes = [(channels,)] * 2 + [(layers, width)] * 2 + [(config.vocab_size, layers, width)] * 2
    values = [torch.rand(shape, generator=generator) for shape in shapes]
    return FeatureStatistics(*values, token_count=torch.full((config.vocab_size,), 9))


def test_the_published_recipes_are_there_with_their_sources():
    assert list(recipe_summaries()) == RECIPES
    for name in RECIPES:
        content = read_recipe(name)
        assert "arXiv" in content["source"]
        assert content["notes"]
        load_recipe(name)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_adapts(model, waveform, name):
    changes = {"steps": 2, "population": 4} if name == "e_bats" else {"steps": 2, "learning_rate": 1e-3}
    if name == "sar":
        changes["entropy_margin"] = 1.0
    recipe = load_recipe(name, changes if name != "sgem" else {**changes, "final_learning_rate": 5e-4})
    trainer = make_trainer(model, recipe, Guides(statistics=statistics_of(model)))
    weights = copy.deepcopy(model.state_dict())
    outcome = trainer.adapt(waveform())
    assert outcome.adapted, outcome.reason
    assert len(outcome.losses) == outcome.steps == 2 * len(recipe.stages)
    assert (outcome.logits - outcome.logits_before).abs().max() > 1e-4
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


# Against equations


def adamw(parameters: dict[str, nn.Parameter], rates: list[float], gradients_at) -> None:
    """AdamW (arXiv 1711.05101) without decay: a step for each rate, with the gradients that a function gives."""
    first = {name: torch.zeros_like(value) for name, value in parameters.items()}
    second = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for step, rate in enumerate(rates, 1):
        gradients = gradients_at()
        with torch.no_grad():
            for name, parameter in parameters.items():
                first[name] = 0.9 * first[name] + 0.1 * gradients[name]
                second[name] = 0.999 * second[name] + 0.001 * gradients[name] ** 2
                scale = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
                parameter -= rate * first[name] / (1 - 0.9**step) / scale


def gradients_of(loss: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def entropy(logits: Tensor) -> Tensor:
    p = logits.softmax(-1)
    return -(p * p.log()).sum(-1)


def confusion(logits: Tensor) -> Tensor:
    """Minimum class confusion, certain frames weighing up to twice as much."""
    p = logits.softmax(-1)
    certainty = (1 + torch.exp(-entropy(logits))).detach()
    correlation = p.T @ torch.diag(certainty / certainty.mean()) @ p
    correlation = correlation / correlation.sum(1, keepdim=True)
    return (correlation.sum() - correlation.trace()) / p.shape[1]


def spoken(logits: Tensor) -> Tensor:
    return logits.argmax(-1) != BLANK


def adapt(model: nn.Module, recipe: Recipe, row: Tensor) -> Tensor:
    outcome = make_trainer(model, recipe).adapt(row)
    assert outcome.adapted, outcome.reason
    assert (outcome.logits - outcome.logits_before).abs().max() > 1e-4
    return outcome.logits


@torch.no_grad()
def assert_logits(found: Tensor, by_hand: nn.Module, row: Tensor) -> None:
    """Losses are summed in float32, and a first step is nearly the gradient's sign."""
    torch.testing.assert_close(found, by_hand(row[None]).logits[0], rtol=1e-3, atol=1e-3)


def test_tent(model, waveform):
    row, by_hand = waveform(), copy.deepcopy(model)
    found = adapt(model, load_recipe("tent", {"learning_rate": 1e-3}), row)
    norms = select_parameters(by_hand, ("norms",))
    adamw(norms, [1e-3], lambda: gradients_of(entropy(by_hand(row[None]).logits[0]).mean(), norms))
    assert_logits(found, by_hand, row)


def test_suta(model, waveform):
    row, by_hand = waveform(), copy.deepcopy(model)
    found = adapt(model, load_recipe("suta", {"learning_rate": 1e-3, "steps": 2}), row)
    parameters = select_parameters(by_hand, ("norms", "front_end", "projection"))

    def gradients():
        logits = by_hand(row[None]).logits[0]
        softened = logits / 2.5
        return gradients_of(0.3 * entropy(softened)[spoken(logits)].mean() + 0.7 * confusion(softened), parameters)

    adamw(parameters, [1e-3] * 2, gradients)
    assert_logits(found, by_hand, row)


def test_cea_is_two_stages(model, waveform):
    row, by_hand = waveform(), copy.deepcopy(model)
    found = adapt(model, load_recipe("cea", {"learning_rate": 1e-3, "steps": 1}), row)
    first, second = (select_parameters(by_hand, g) for g in (("norms", "front_end", "projection"), ("norms",)))

    def confident():
        logits = by_hand(row[None]).logits[0]
        h = entropy(logits / 2.5)[spoken(logits)]
        return gradients_of(0.3 * (h / (1 + torch.exp(-h))).mean() + 0.7 * confusion(logits / 2.5), first)

    def coherent():
        logits = by_hand(row[None]).logits[0]
        features = by_hand.front_end(row[None])[0][0]
        z = (features @ features.T).softmax(-1) @ features + features
        steps = torch.stack([(z[t] - z[t - 1]).norm() for t in range(1, len(z)) if spoken(logits)[t]])
        loss = 0.3 * entropy(logits / 2.5).mean() + 0.7 * confusion(logits / 2.5) + 0.3 * steps.mean()
        return gradients_of(loss, second)

    adamw(first, [1e-3], confident)
    adamw(second, [1e-3], coherent)
    assert_logits(found, by_hand, row)


def test_sgem_with_its_cosine_on_a_given_path(model, waveform):
    row, by_hand = waveform(), copy.deepcopy(model)
    recipe = load_recipe("sgem", {"learning_rate": 2e-3, "final_learning_rate": 1e-3, "steps": 2})
    calls = []

    def find_path(logits: Tensor) -> Tensor:
        calls.append(logits)
        return torch.arange(len(logits)) % 2  # every other frame speaks

    outcome = make_trainer(model, recipe, Guides(find_path=find_path)).adapt(row)
    assert len(calls) == 2
    parameters = select_parameters(by_hand, ("front_end", "projection"))

    def gradients():
        logits = by_hand(row[None]).logits[0]
        p = (logits / 2.5).softmax(-1)
        renyi = (p[1::2] ** 1.5).sum(-1).log() / (1 - 1.5)
        unlikely = logits.softmax(-1) < 0.4 / logits.shape[-1]
        return gradients_of(renyi.mean() - (1 - (p * unlikely).sum(-1)).log().mean(), parameters)

    adamw(parameters, [2e-3, 1e-3 + 0.5 * 1e-3 * (1 + math.cos(math.pi / 2))], gradients)
    assert_logits(outcome.logits, by_hand, row)


def test_sar_takes_the_gradient_uphill(model, waveform):
    row, by_hand = waveform(), copy.deepcopy(model)
    found = adapt(model, load_recipe("sar", {"learning_rate": 1e-3, "entropy_margin": 1.0, "sharpness": 0.5}), row)
    norms = select_parameters(by_hand, ("norms",))

    def loss(changed: nn.Module) -> Tensor:
        logits = changed(row[None]).logits[0]
        return entropy(logits)[spoken(logits)].mean()

    def uphill():
        gradients = gradients_of(loss(by_hand), norms)
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        moved = copy.deepcopy(by_hand)
        with torch.no_grad():
            for name, gradient in gradients.items():
                moved.get_parameter(name).add_(0.5 * gradient / length)
        return gradients_of(loss(moved), {name: moved.get_parameter(name) for name in norms})

    adamw(norms, [1e-3], uphill)
    assert_logits(found, by_hand, row)


def test_rows_climb_by_their_own_gradient():
    gradients = {"a": torch.tensor([[3.0, 0.0], [0.0, 1.0]]), "b": torch.tensor([[4.0], [0.0]])}
    moved = sam_ascent({name: torch.zeros_like(value) for name, value in gradients.items()}, gradients, 10.0, rows=2)
    assert moved["a"].tolist() == [[6.0, 0.0], [0.0, 10.0]]
    assert moved["b"].tolist() == [[8.0], [0.0]]


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows with 7 as padding, and their mask."""
    values = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0)
    mask = torch.arange(values.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return values, mask.long()


def test_sharp_steps_of_ragged_batches_are_those_alone(model, waveform):
    settings = TTTSettings("spoken_entropy", sharpness=0.05, learning_rate=1e-3)
    rows = [waveform(0, 0.3), waveform(1, 0.4)]
    trainer = make_trainer(model, settings)
    for outcome, row in zip(trainer.adapt_batch(*padded(rows)), rows, strict=True):
        torch.testing.assert_close(outcome.logits, trainer.adapt(row).logits, atol=1e-6, rtol=1e-6)


def test_alignment_in_ragged_batches_is_that_alone(model, waveform):
    settings = TTTSettings("alignment+0.5*e_bats", parameters=("norms",), learning_rate=1e-3)
    rows = [waveform(0, 0.3), waveform(1, 0.4)]
    trainer = make_trainer(model, settings, Guides(statistics=statistics_of(model)))
    for outcome, row in zip(trainer.adapt_batch(*padded(rows)), rows, strict=True):
        torch.testing.assert_close(outcome.logits, trainer.adapt(row).logits, atol=1e-4, rtol=1e-4)


def test_sar_passes_over_uncertain_utterances(model, waveform):
    settings = TTTSettings("spoken_entropy", entropy_margin=1e-3)
    outcome = make_trainer(model, settings).adapt(waveform())
    assert (outcome.adapted, outcome.steps) == (False, 0)
    assert outcome.reason == "the output is too uncertain to learn from"


def test_e_bats_search_finds_a_lower_loss_than_no_offset(model, waveform):
    guides = Guides(statistics=statistics_of(model))
    recipe = load_recipe("e_bats", {"steps": 3, "population": 8, "learning_rate": 0.3})
    outcome = make_trainer(model, recipe, guides).adapt(waveform())
    without = make_trainer(model, recipe, guides).trainer.losses([waveform()], AdaptedState())
    assert min(outcome.losses) < without[0]
    again = make_trainer(model, recipe, guides).adapt(waveform())
    assert torch.equal(again.logits, outcome.logits)


# Files and flags


def test_a_recipe_of_ones_own_and_changes_to_it(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"stages": [{"loss_type": "tent", "parameters": "norms,output"}, {"steps": 3}]}))
    recipe = load_recipe(str(path), {"steps": 2, "scope": "speaker", "decay": 0.5})
    assert [stage.steps for stage in recipe.stages] == [2, 2]
    assert recipe.stages[0].parameters == ("norms", "output")
    assert (recipe.scope, recipe.decay) == ("speaker", 0.5)


def test_the_scope_utterance_carries_nothing_whatever_the_recipe_says():
    recipe = load_recipe("dsuta", {"scope": "utterance"})
    assert not recipe.carries
    assert (recipe.buffer, recipe.reset) == (0, None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "needs a list of stages"),
        ('{"stages": []}', "one stage or more"),
        ('{"stages": [{"rate": 1}]}', "unknown key 'rate'"),
        ('{"stages": [{"steps": "two"}]}', "a value of the wrong kind"),
        ('{"stages": [{"loss_type": "magic"}]}', "Unknown TTT loss 'magic'"),
        ('{"stages": [{}], "scope": "world"}', "Unknown TTT scope 'world'"),
        ('{"stages": [{}], "scope": "stream", "decay": 2}', "decay of TTT must be between 0 and 1, not 2"),
        ('{"stages": [{}], "decay": 0.5}', "needs a scope beyond the utterance"),
        ('{"stages": [{}], "scope": "stream", "reset": {"rule": "never"}}', "unknown reset rule"),
        ('{"stages": [{}], "scope": "stream", "reset": {"rule": "loss_shift", "window": 3}}', "6 or more utterances"),
        ('{"stages": [{"optimizer": "cma_es"}]}', "searches for a feature_offset and nothing else"),
    ],
)
def test_recipes_that_cannot_be_used(tmp_path, content, sentence):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(InputError, match=sentence):
        load_recipe(str(path))


def test_an_unknown_recipe_names_those_that_there_are():
    with pytest.raises(InputError, match="no TTT recipe 'sutra': choose awmc, cea, "):
        load_recipe("sutra")


def test_losses_that_need_statistics_say_how_to_get_them(model):
    with pytest.raises(InputError, match=r"needs statistics of training; .*feature_statistics"):
        make_trainer(model, TTTSettings("alignment"))


def test_statistics_are_means_over_frames_and_by_token():
    generator = np.random.default_rng(0)
    pieces = [(generator.normal(size=(n, 3)), generator.normal(size=(2, n, 4)), generator.normal(size=(n, 5))) for n in (6, 9)]  # fmt: skip
    accumulator = FeatureAccumulator(5)
    for piece in pieces:
        accumulator.add(*(torch.from_numpy(part) for part in piece))
    found = accumulator.statistics()
    features = np.concatenate([piece[0] for piece in pieces])
    hidden = np.concatenate([piece[1] for piece in pieces], axis=1)
    said = np.concatenate([piece[2] for piece in pieces]).argmax(1)
    np.testing.assert_allclose(found.feature_variance, features.var(0), rtol=1e-5)
    np.testing.assert_allclose(found.hidden_mean, hidden.mean(1), rtol=1e-5, atol=1e-6)
    for token in range(5):
        assert found.token_count[token] == (said == token).sum()
        if (said == token).any():
            np.testing.assert_allclose(found.token_variance[token], hidden[:, said == token].var(1), rtol=1e-4, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("suta", "entropy, 10 steps of adamw at 2e-05 on norms,front_end,projection"),
        ("sgem", "generalised_entropy, 10 steps of adamw at 4e-05 to 2e-05 on front_end,projection, along the path of 5 beams"),
        ("sar", "spoken_entropy, 1 step of adamw at 2e-05 on norms, sharpness-aware, radius 0.05; carried by stream, with resets"),
        ("awmc", "pseudo_labels, 1 step of adamw at 0.0002 on norms,biases; carried by stream, a leader of momentum 0.999"),
        (
            "dsuta",
            "entropy, 10 steps of adamw at 2e-05 on norms,front_end,projection; carried by stream, a step on every 5 utterances, with resets",
        ),
    ],
)  # fmt: skip
def test_a_recipe_says_what_sets_it_apart(name, sentence):
    assert load_recipe(name).describe() == sentence
