"""`on_first_call`: what a part gives is looked at once, and nothing of it is left."""

import copy
import doctest
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from mmdet.config import contracts
from mmdet.config.contracts import call_unchecked, on_first_call
from mmdet.config.errors import UserError


def is_a(result, number, kind):
    return None if isinstance(result, kind) else 'another'


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, number):
        if number is None:
            raise KeyError('number')
        return self.factor * number


def test_the_messages_are_those_documented():
    assert doctest.testmod(contracts).failed == 0


def test_the_first_call_alone_is_looked_at():
    seen = []
    part = Scaled(2.0)
    on_first_call(part, 'forward', lambda result, number: seen.append(number))
    on_first_call(part, 'forward', lambda result, number: 'never asked')
    assert part(3) == 6 and part(4) == 8 and seen == [3]
    assert part.forward == Scaled.forward.__get__(part) and 'forward' not in vars(part)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_a_copy_is_looked_at_and_called_itself(copied):
    part = Scaled(2.0)
    on_first_call(part, 'forward', partial(is_a, kind=torch.Tensor))
    other = copied(part)
    nn.init.constant_(other.factor, 5.0)
    assert other(3) == 15 and 'forward' not in vars(other)
    assert 'forward' in vars(part) and part(3) == 6
    wrong = Scaled(2.0)
    on_first_call(wrong, 'forward', partial(is_a, kind=list))
    with pytest.raises(UserError, match=r'Scaled.forward gave float32 Tensor \(\); another is expected'):
        copied(wrong)(3)


def test_what_is_given_comes_before_the_call():
    part = Scaled(2.0)
    on_first_call(part, 'forward', takes=lambda number: 'a number; it is given None' if number is None else None)
    with pytest.raises(UserError, match='Scaled.forward needs a number; it is given None'):
        part(None)


def test_other_arguments_than_its_caller_has_are_said():
    part = Scaled(2.0)
    on_first_call(part, 'forward')
    with pytest.raises(UserError) as error:
        part(torch.zeros(2), rescale=True)
    assert str(error.value) == ('Scaled.forward takes (number), and is called with float32 Tensor (2,), rescale=a bool '
                                '(docs/compatibility.md)')


def test_an_error_inside_keeps_its_kind_and_says_what_was_given():
    outer = nn.Sequential(Scaled(2.0))
    for part in (outer, outer[0]):
        on_first_call(part, 'forward')
    with pytest.raises(KeyError, match='number') as error:
        outer(None)
    assert error.value.__notes__ == ['in the first call of Scaled.forward, which is given None']  # not of both
    with pytest.raises(KeyError) as error:
        outer(None)
    assert not hasattr(error.value, '__notes__')


def test_a_method_that_is_not_there_is_missed_at_once():
    with pytest.raises(UserError, match='Scaled has no assign'):
        on_first_call(Scaled(1.0), 'assign')


def test_checks_can_be_left_out():
    part = Scaled(2.0)
    on_first_call(part, 'forward', lambda result, number: 'another')
    call_unchecked(part)
    assert part(3) == 6
