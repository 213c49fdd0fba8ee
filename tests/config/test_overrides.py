"""`refuse_overrides`: a subclass with a method that nothing calls is refused when it is defined."""

import doctest

import pytest

from mmdet.config import overrides
from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides


@refuse_overrides('extend/head.md', get_targets='sample')
class Base:
    def sample(self):
        return 1


@refuse_overrides('extend/head.md', get_anchors='grid_priors')
class Child(Base):
    pass


def test_the_message_is_the_one_documented():
    assert doctest.testmod(overrides, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize('name, owner', [('get_targets', 'Base'), ('get_anchors', 'Child')])
@pytest.mark.parametrize('mixin', [False, True])
def test_own_and_mixed_in_methods_are_refused_at_any_depth(name, owner, mixin):
    bases, own = (Child,), {name: lambda self: 2}
    if mixin:
        bases, own = (type('Mixin', (), own), Child), {}
    with pytest.raises(UserError, match=f'Mine.{name} would never be called: {owner} has no {name} here'):
        type('Mine', bases, own)


def test_what_is_called_may_be_overridden():
    class Mine(Child):
        def sample(self):
            return super().sample() + 1

    assert Mine().sample() == 2


def test_a_method_that_the_class_itself_may_call_is_its_own():
    @refuse_overrides('extend/transform.md', _shift='transform', _build='__init__')
    class Base:
        def __init__(self):
            pass

        def transform(self, results): ...

    class Whole(Base):
        def transform(self, results):
            return self._shift(results)

        def _shift(self, results):
            return results + 1

    assert Whole().transform(1) == 2
    with pytest.raises(UserError, match='Part._shift would never be called'):
        type('Part', (Base,), dict(_shift=lambda self, results: results))
    with pytest.raises(UserError, match='Mine._build would never be called'):
        type('Mine', (Base,), dict(_build=lambda self: None, __init__=lambda self: None))
