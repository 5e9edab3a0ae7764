"""Every public constructor refuses an unknown setting in its own name, and says what was meant."""

import inspect
from importlib import import_module

import pytest
from classes import NO_OBJECTS, SUBPACKAGES
from pytorch_metric_learning import distances, reducers, regularizers

from pml_extensions.attr import L2CAF
from pml_extensions.losses import SemiHardTripletLoss, TwoHeadLoss
from pml_extensions.miners import SemiHardMiner
from pml_extensions.regularizers import SVMaxRegularizer

CALLBACKS = [
    getattr(import_module(f"pml_extensions.{module}"), name)
    for module, name in (
        ("evolution.lightning", "KnowledgeEvolutionCallback"),
        ("monitors.lightning", "CollapseMonitorCallback"),
        ("monitors.transformers", "CollapseMonitorCallback"),
    )
]
PUBLIC = [
    one
    for package in SUBPACKAGES
    for name in package.__all__
    if inspect.isclass(one := getattr(package, name)) and name not in NO_OBJECTS
]
CLASSES = [*PUBLIC, *CALLBACKS]
TUPLES = [one for one in CLASSES if issubclass(one, tuple)]


def test_classes_of_all_packages_are_here():
    assert len(PUBLIC) > 35
    assert {one.__module__.split(".")[1] for one in PUBLIC} == {p.__name__.split(".")[1] for p in SUBPACKAGES}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_an_unknown_setting_is_refused_in_the_name_of_the_class(kind):
    with pytest.raises(TypeError, match=rf"{kind.__name__}.*'no_such_setting'"):
        kind(no_such_setting=1)


@pytest.mark.parametrize("kind", [k for k in CLASSES if k not in TUPLES], ids=lambda k: f"{k.__module__}.{k.__name__}")
def test_what_was_meant_is_said(kind):
    settings = list(inspect.signature(kind).parameters.values())
    named = [one.name for one in settings if one.kind not in {one.VAR_POSITIONAL, one.VAR_KEYWORD}]
    for name in named:
        with pytest.raises(TypeError, match=rf"{kind.__name__} has no setting '{name}x'; did you mean '{name}'\?"):
            kind(**{f"{name}x": 1})


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        (SVMaxRegularizer, {"distance": distances.SNRDistance(), "reducer": reducers.SumReducer()}),
        (SemiHardMiner, {"distance": distances.SNRDistance()}),
        (SemiHardTripletLoss, {"distance": distances.SNRDistance(), "reducer": reducers.SumReducer()}),
        (TwoHeadLoss, {"reducer": reducers.DoNothingReducer()}),
    ],
)
def test_settings_of_the_host_go_through(kind, taken):
    made = kind(collect_stats=True, **taken)
    assert made.collect_stats
    assert {name: type(getattr(made, name)) for name in taken} == {name: type(part) for name, part in taken.items()}


def test_the_loss_takes_a_regularizer():
    loss = SemiHardTripletLoss(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=2)
    assert loss.embedding_reg_weight == 2


def test_a_subclass_hands_on_what_it_likes():
    class Mine(SemiHardTripletLoss):
        def __init__(self, own, **kwargs):
            super().__init__(**{"margin": 0.3, **kwargs})
            self.own = own

    assert Mine(own=1, smooth_loss=True).margin == 0.3
    with pytest.raises(TypeError, match="SemiHardTripletLoss has no setting 'smooth'; did you mean 'smooth_loss'"):
        Mine(own=1, smooth=True)


def test_an_error_of_other_arguments_stays_as_it_is():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'layer'"):
        L2CAF(print)
