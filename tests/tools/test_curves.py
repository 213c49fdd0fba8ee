"""curves.png: AP in percent, nothing over a curve, an axis that suits what there is."""

import matplotlib
import pytest

matplotlib.use('Agg')

import matplotlib.pyplot as plt  # noqa: E402

from mmdet.cli.curves import draw_ap, draw_losses, metric_of  # noqa: E402

STAGES = {f's{i}.{name}': 0.1 for i in range(3) for name in ('loss_cls', 'loss_bbox', 'loss_mask')}
TRAIN = {i: dict(STAGES, loss=3.0 / i, loss_rpn_cls=0.2, lr=0.02, epoch=1, iter=i) for i in range(1, 20)}


@pytest.fixture
def axes():
    figure = plt.figure(figsize=(12, 5), layout='constrained')
    yield figure.add_subplot(2, 2, 1), figure.add_subplot(2, 2, 3), figure.add_subplot(1, 2, 2)
    plt.close(figure)


def evaluations(n: int) -> dict[int, dict]:
    last = {'coco/bbox_mAP': 0.2, 'coco/bbox_mAP_50': 0.4, 'coco/bbox_mAP_l': -1.0}
    return {i: {key: v * i / n if v > 0 else v for key, v in last.items()} for i in range(1, n + 1)}


def test_legends_are_over_no_curve(axes):
    losses, lr, ap = axes
    draw_losses(TRAIN, losses, lr)
    draw_ap(evaluations(3), ap, 'epoch')
    losses.figure.canvas.draw()
    for part, entries in ((losses, 11), (ap, 2)):
        legend = part.get_legend()
        assert len(legend.get_texts()) == entries
        assert legend.get_window_extent().y0 >= part.get_window_extent().y1
        assert legend.get_window_extent().y1 <= losses.figure.bbox.y1 and lr.get_legend() is None


def test_ap_is_in_percent(axes):
    *_, ap = axes
    draw_ap(evaluations(4), ap, 'epoch')
    assert [line.get_ydata()[-1] for line in ap.lines] == pytest.approx([20, 40]) and ap.get_ylim() == (0, 46)
    assert '0-100' in ap.get_ylabel() and ap.get_xlabel() == 'epoch'


def test_one_evaluation_is_no_curve(axes):
    *_, ap = axes
    draw_ap(evaluations(1), ap, 'iteration')
    assert not ap.lines and [bar.get_width() for bar in ap.patches] == pytest.approx([20, 40])
    assert [label.get_text() for label in ap.get_yticklabels()] == ['bbox AP', 'bbox AP50']
    assert [text.get_text() for text in ap.texts] == ['20.0', '40.0'] and 'iteration 1' in ap.get_xlabel()


def test_no_evaluation_yet(axes):
    *_, ap = axes
    draw_ap({}, ap, 'epoch')
    assert [text.get_text() for text in ap.texts] == ['no validation yet']


@pytest.mark.parametrize('key, expected', [
    ('coco/bbox_mAP', ('bbox', 'mAP')), ('segm_mAP_75', ('segm', 'mAP_75')), ('pascal_voc/mAP', ('', 'mAP')),
    ('pascal_voc/AP50', ('', 'AP50')), ('coco/bbox_mAP_s', None), ('loss', None), ('coco/bbox_mAP_copypaste', None),
])  # fmt: skip
def test_which_numbers_are_drawn(key, expected):
    assert metric_of(key) == expected
