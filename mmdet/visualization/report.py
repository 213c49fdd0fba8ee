"""HTML pages of an analysis or a comparison: one file each, readable on a laptop and on a phone.

They are made of what the JSON files hold, and of drawings. The shape of the dicts is that of the dataclasses in
`mmdet.evaluation`: an analysis, a comparison.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as coco_mask

from mmdet.visualization import plots
from mmdet.visualization.visualizer import draw_instances, read_image

_LONGEST = 480  # pixels of a drawing
_MOST_CLASSES = 20  # that a table shows at once
_METRICS = dict(bbox='Boxes', segm='Masks', proposal='Proposals')
_ERRORS = dict(Cls='wrong class', Loc='wrong place', Both='wrong class and place', Dupe='second detection',
               Bkg='on no object', Miss='missed object')  # fmt: skip

_AS_THEY_ARE = 'Counted in the detections as they are; the costs of findings, with systematic faults repaired.'

_GOOD, _BAD = (40, 190, 90), (235, 70, 60)
_LEGEND = ('<span class="key"><i style="background:rgb(40,190,90)"></i>right, or found</span> <span class="key"><i '
           'style="background:rgb(235,70,60)"></i>wrong, or missed</span>')

_STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0;background:#fff;color:#1b1f24;font:16px/1.5 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:16px}
h1{font-size:1.6rem;line-height:1.25;margin:.4em 0;overflow-wrap:anywhere}
h2{font-size:1.35rem;margin:1.6em 0 .4em;border-bottom:2px solid #1f5fa8}h3{font-size:1.08rem;margin:1.4em 0 .4em}
p{margin:.4em 0}.quiet{color:#57606a;font-size:.9rem;overflow-wrap:anywhere}
.cards{display:flex;flex-wrap:wrap;gap:10px;margin:12px 0}
.card{background:#f3f6fa;border-radius:8px;padding:8px 14px;min-width:86px}
.card b{display:block;font-size:1.5rem;line-height:1.2}.card span{font-size:.85rem;color:#57606a}
ol.findings{list-style:none;padding:0;margin:8px 0}
ol.findings li{display:flex;gap:12px;padding:10px 0;border-bottom:1px solid #e3e3e3}
ol.findings .cost{flex:0 0 52px;font-weight:700;color:#b3380e;text-align:right;font-variant-numeric:tabular-nums}
ol.findings .cost small{display:block;font-weight:400;color:#57606a}
ol.findings p:first-child{font-weight:600;margin:0}
.scroll{overflow-x:auto;background:linear-gradient(90deg,#fff0,#fff 70%) right/48px 110% no-repeat local,
linear-gradient(90deg,#0000,#0004) right/14px 100% no-repeat scroll}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
summary{cursor:pointer;color:#1f5fa8;padding:8px 0}
th,td{padding:4px 8px;text-align:right;white-space:nowrap;border-bottom:1px solid #e3e3e3}
th{font-weight:600;background:#f3f6fa;white-space:normal;vertical-align:bottom}th:first-child,td:first-child{text-align:left;white-space:normal;min-width:76px}
@media(max-width:480px){th,td{padding:4px 6px}}
tr>:first-child{position:sticky;left:0;background:#fff;max-width:40vw;overflow:hidden;text-overflow:ellipsis}
tr>th:first-child{background:#f3f6fa}
table.confusion td{min-width:42px;text-align:center}
table.confusion tr>:last-child{position:sticky;right:0;box-shadow:-5px 0 5px -3px #0004}
table.confusion th.turned{vertical-align:bottom;text-align:center;font-weight:400}
table.confusion th.turned span{writing-mode:vertical-rl;transform:rotate(180deg);max-height:130px;overflow:hidden}
table.bars{width:100%}table.bars td:nth-child(2){width:70%;min-width:150px}
table.bars td:first-child{white-space:normal}
.bar{display:inline-block;width:calc(100% - 64px);height:12px;background:#eef1f4;vertical-align:middle}
.bar i{display:block;height:12px}.num{display:inline-block;width:60px;text-align:right}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(330px,100%),1fr));gap:4px 32px}
svg.plot{width:100%;max-width:480px;height:auto}svg.plot text{font:11px system-ui,sans-serif;fill:#424a53}
svg.spark polygon{fill:#dce8f5}svg.spark polyline{fill:none;stroke:#1f5fa8;stroke-width:1.5}
svg.spark,svg.interval{vertical-align:middle}
a.mark{background:#b3380e;color:#fff;border-radius:8px;padding:0 6px;font-size:.8rem;text-decoration:none}
.key{white-space:nowrap;margin-right:12px;font-size:.9rem}
.key i{display:inline-block;width:14px;height:4px;margin-right:5px;vertical-align:middle}
figure{margin:14px 0}figcaption{font-size:.92rem;overflow-wrap:anywhere}
.side{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(260px,100%),1fr));gap:8px}
.side img,.crops img{width:100%;height:auto;display:block;border-radius:4px}
.crops img{aspect-ratio:1;object-fit:contain;background:#f3f6fa}
.side div{font-size:.8rem;color:#57606a}
.crops{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px}.crops figure{margin:0}
nav a{margin-right:14px}a{color:#1f5fa8}
"""


def analysis_page(report: Mapping[str, Any], drawings: Mapping[str, Mapping[str, Sequence]]) -> str:
    """The page of ``dict(config=, results=, analyses=[...])``.

    Args:
        drawings: of each metric dict(worst=, best=, label_errors=): a list of the columns of each image, (title, data
            URI), or of one data URI for each label error; as long as the analysis's lists, or shorter.
    """
    analyses = report['analyses']
    title = f'Detections of {Path(report["results"]).name}'
    links = [f'<a href="#{a["metric"]}">{_METRICS[a["metric"]]}</a>' for a in analyses]
    body = [f'<h1>{escape(title)}</h1>', f'<p class="quiet">config {escape(report["config"])}<br>results '
            f'{escape(report["results"])}</p>', f'<nav>{" ".join(links)}</nav>' if len(links) > 1 else '']  # fmt: skip
    for analysis in analyses:
        body += _analysis(analysis, drawings.get(analysis['metric'], {}))
    return _page(title, body)


def comparison_page(report: Mapping[str, Any], drawings: Mapping[str, Mapping[str, Sequence]]) -> str:
    """The page of ``dict(config=, a=, b=, comparisons=[...])``; `drawings` as for `analysis_page`, of 'worse' and
    'better'."""
    title = f'{Path(report["a"]).name} and {Path(report["b"]).name}'
    body = [f'<h1>{escape(title)}</h1>', f'<p class="quiet">A: {escape(report["a"])}<br>B: {escape(report["b"])}<br>'
            f'config {escape(report["config"])}</p>']  # fmt: skip
    for one in report['comparisons']:
        body += _comparison(one, drawings.get(one['metric'], {}))
    return _page(title, body)


def _page(title: str, body: Sequence[str]) -> str:
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n'
            + '\n'.join(part for part in body if part) + '\n</main></body></html>\n')  # fmt: skip


# ---------------------------------------------------------------------- parts of an analysis


def _analysis(a: Mapping[str, Any], drawings: Mapping[str, Sequence]) -> list[str]:
    counts = f'{a["images"]} images, {a["objects"]} objects, {a["detections"]} detections'
    body = [f'<h2 id="{a["metric"]}">{_METRICS[a["metric"]]}</h2>', f'<p class="quiet">{counts}</p>',
            _cards(a['summary']), _findings(a['findings'], a['metric'])]  # fmt: skip
    body += [f'<p class="quiet">{escape(note)}</p>' for note in a['notes']]
    if a['curves']:
        body.append('<div class="two"><div><h3>Precision and recall</h3>' + plots.curves(_named(a['curves']), 'recall',
                    'precision') + f'</div><div>{_tide(a["tide"])}</div></div>')  # fmt: skip
    else:
        body.append('<h3>Recall by IoU</h3>' + _bars({f'IoU {t}': r for t, r in a['recall_by_iou'].items()}, 1.0))
    body += [_classes(a), _confusion(a['confusion'], a['threshold']),
             f'<div class="two"><div>{_calibration(a["calibration"])}</div><div>{_sizes(a["sizes"])}</div></div>']
    body += [_label_errors(a['label_errors'], drawings.get('label_errors', ())),
             _images('Worst images', a['worst'], drawings.get('worst', ()), a['threshold']),
             _images('Best images', a['best'], drawings.get('best', ()), a['threshold'])]  # fmt: skip
    return body


def _cards(summary: Mapping[str, float | None]) -> str:
    cards = [f'<div class="card"><b>{_points(value)}</b><span>{escape(_short(name))}</span></div>'
             for name, value in summary.items() if value is not None]  # fmt: skip
    return f'<div class="cards">{"".join(cards)}</div>'


def _short(name: str) -> str:
    """'AP50' for CocoMetric's 'mAP_50', 'AP small' for 'mAP_s'."""
    name = name.removeprefix('m').replace('_50', '50').replace('_75', '75')
    for letter, word in dict(s='small', m='medium', l='large').items():
        name = name.replace(f'_{letter}@', f' {word} @').removesuffix(f'_{letter}') + (
            f' {word}' if name.endswith(f'_{letter}') else '')
    return name.replace('_', ' ')


def _findings(findings: Sequence[Mapping], metric: str) -> str:
    if not findings:
        return '<h3>Findings</h3><p>Nothing stands out: no cause was found that costs 0.3 points of AP or more.</p>'
    rows, said = [], set()
    for number, one in enumerate(findings, start=1):
        cost = '' if one['cost'] is None else f'{100 * one["cost"]:.1f}<small>AP</small>'
        remedy = '' if one['remedy'] in said else f'<p class="quiet">{escape(one["remedy"])}</p>'
        said.add(one['remedy'])
        rows.append(f'<li id="{metric}-{number}"><div class="cost">{cost}</div><div><p>{number}. '
                    f'{escape(one["text"])}</p>{remedy}</div></li>')
    return ('<h3>Findings</h3><p class="quiet">Points of AP gained when one is repaired, measured by repairing it '
            'in these detections. Systematic faults are repaired first, the others each on its own: '
            'the numbers need not add up. What takes nearly all AP from a class comes first, then what costs most.</p>'
            f'<ol class="findings">{"".join(rows)}</ol>')


def _named(curves: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    return {'mean over all IoUs' if name == 'mean' else f'IoU {name}': values for name, values in curves.items()}


def _tide(tide: Mapping[str, Mapping[str, float]] | None) -> str:
    if not tide:
        return ''
    rows = {f'{_ERRORS[kind]} ({tide["count"].get(kind, 0)})': tide['cost'][kind] for kind in _ERRORS}
    return ('<h3>Kinds of error (TIDE)</h3><p class="quiet">Points of AP50 that each kind costs, and how many there '
            f'are. {_AS_THEY_ARE}</p>{_bars(rows, max(*rows.values(), 1e-9))}')


def _bars(values: Mapping[str, float], longest: float) -> str:
    rows = [f'<tr><td>{escape(name)}</td><td>{plots.bar(value / longest, _points(value))}</td></tr>'
            for name, value in values.items()]  # fmt: skip
    return f'<table class="bars">{"".join(rows)}</table>'


def _sizes(sizes: Sequence[Mapping]) -> str:
    rows = []
    for one in sizes:
        least, most = (round(limit**0.5) for limit in one['limits'])
        span = f'from {least}² px'
        if one['limits'][1] < 1e9:
            span = f'{least}² to {most}² px' if least else f'up to {most}² px'
        rows.append([one['name'], span, one['objects'], _points(one['ap']), _points(one['ar'])])
    return '<h3>Sizes</h3>' + _table(['objects', 'area', 'number', 'AP', 'AR'], rows)


def _classes(a: Mapping[str, Any]) -> str:
    """The classes with objects, the worst first; of each the numbers of the findings about it."""
    present = [one for one in a['classes'] if one['objects']]
    if a['metric'] == 'proposal' or all(one['ap'] is None for one in present):
        rows = [[one['name'], one['objects'], _points(one['recall_all'])]
                for one in sorted(present, key=lambda one: one['recall_all'])]  # fmt: skip
        return '<h3>Classes</h3>' + _table(['class', 'objects', 'recall at IoU 0.5'], rows)
    sizes = list(present[0]['ap_by_size'])
    head = ['class', 'finding', 'objects', 'AP', 'AP50', 'AP75', *(f'AP {size}' for size in sizes), 'PR curve',
            'threshold', 'precision', 'recall', 'F1']  # fmt: skip
    rows = []
    for one in sorted(present, key=lambda one: one['ap'] or 0):
        best = [_two(one['threshold']), *(_points(one[key]) for key in ('precision', 'recall', 'f1'))]
        rows.append([one['name'], _findings_of(one['name'], a), one['objects'],
                     *(_points(one[key]) for key in ('ap', 'ap_50', 'ap_75')),
                     *(_points(one['ap_by_size'][size]) for size in sizes), _Markup(plots.spark(one['curve'])), *best])
    table = _table(head, rows[:_MOST_CLASSES])
    if len(rows) > _MOST_CLASSES:
        table += f'<details><summary>all {len(rows)} classes</summary>{_table(head, rows)}</details>'
    return ('<h3>Classes</h3><p class="quiet">The worst first. Threshold: the score from which on F1 is highest, at '
            'IoU 0.5; precision, recall and F1 are those from there on. Do not use the '
            f'threshold of a class that a finding is about before that is repaired.</p>{table}')


def _findings_of(name: str, a: Mapping[str, Any]) -> '_Markup':
    links = [f'<a class="mark" href="#{a["metric"]}-{number}">{number}</a>'
             for number, finding in enumerate(a['findings'], start=1) if name in finding['classes']]  # fmt: skip
    return _Markup(' '.join(links))


def _confusion(confusion: Mapping[str, Any] | None, threshold: float) -> str:
    if not confusion:
        return ''
    names, matrix = [*confusion['classes'], 'nothing'], np.array(confusion['matrix'])
    kept = np.arange(len(names))
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    if len(names) > _MOST_CLASSES + 1:
        kept = np.sort([*np.argsort(-wrong[:-1], kind='stable')[:_MOST_CLASSES], len(names) - 1])
    rows, heads = [], ''.join(f'<th class="turned"><span>{escape(names[j])}</span></th>' for j in kept)
    for i in kept:
        total, cells = max(matrix[i].sum(), 1), []
        for j in kept:
            value = int(matrix[i, j])
            share = value / (matrix[-1].max() if i == len(names) - 1 else total) if value else 0
            colour = (46, 125, 79) if i == j else (196, 80, 27)
            ink = '#fff' if share > 0.55 else '#1b1f24'
            cells.append(f'<td style="background:{_mixed(colour, share)};color:{ink}" title="{escape(names[i])} '
                         f'called {escape(names[j])}: {value}">{value or ""}</td>')  # fmt: skip
        rows.append(f'<tr><th>{escape(names[i])}</th>{"".join(cells)}</tr>')
    some = f' The {_MOST_CLASSES} classes with most errors; the JSON file has all.' if len(kept) < len(names) else ''
    return (f'<h3>Confusion</h3><p class="quiet">Rows: what the objects are; columns: what they are called, from score '
            f'{threshold:.2f} on and at IoU 0.5. Last column: not found; last row: on nothing, or a second detection. '
            f'{_AS_THEY_ARE}{some}</p>'
            f'<div class="scroll"><table class="confusion"><tr><th></th>{heads}</tr>{"".join(rows)}</table></div>')


def _mixed(colour: tuple[int, ...], share: float) -> str:
    """A colour on white; opaque, as columns that stay in place cover others."""
    return f'rgb({",".join(str(round(255 + share * (part - 255))) for part in colour)})'


def _calibration(calibration: Mapping[str, Any] | None) -> str:
    if not calibration or not calibration['num_detections']:
        return ''
    return ('<h3>Calibration</h3><p class="quiet">Do scores keep their word? Bars under the line: detections are right '
            f'less often than their score says. Expected calibration error {_points(calibration["ece"])} %, at IoU '
            f'{calibration["iou_threshold"]}.</p>{plots.reliability(calibration["bins"])}')


def _label_errors(errors: Sequence[Mapping], crops: Sequence[str]) -> str:
    if not errors:
        return ''
    kinds = {kind: sum(one['kind'] == kind for one in errors) for kind in ('missing', 'class')}
    some = f', the first {len(crops)} of {len(errors)} shown' if 0 < len(crops) < len(errors) else ''
    figures = []
    for one, crop in zip(errors, crops):
        annotated = 'no annotation' if one['annotated'] is None else f'annotated as {one["annotated"]}'
        figures.append(f'<figure>{_img(crop)}<figcaption>{escape(one["detected"])} '
                       f'{one["score"]:.2f}, {escape(annotated)}<br><span class="quiet">'
                       f'{escape(_image_name(one))}</span></figcaption></figure>')
    return ('<h3>Likely label errors</h3><p class="quiet">The most confident detections that the ground truth '
            f'contradicts{some}: {kinds["missing"]} where nothing is annotated, {kinds["class"]} where another class '
            f'is. Some are errors of the model: look.</p><div class="crops">{"".join(figures)}</div>')


def _images(title: str, images: Sequence[Mapping], columns: Sequence, threshold: float) -> str:
    if not images:
        return ''
    figures = []
    for one, drawn in zip(images, columns):
        caption = f'{_image_name(one)}: {_counts(one["judged"])}, F1 {_points(one["f1"])}'
        figures.append(_figure(caption, drawn))
    return (f'<h3>{title}</h3><p class="quiet">By F1, of detections from score {threshold:.2f} on, at IoU 0.5. '
            f'{_LEGEND}</p>'
            + ''.join(figures))


def _image_name(one: Mapping[str, Any]) -> str:
    return f'image {one["img_id"]}' + (f' ({Path(one["file_name"]).name})' if one['file_name'] else '')


def _counts(judged: Mapping[str, Sequence]) -> str:
    return ', '.join(f'{len(judged[key])} {key}' for key in ('right', 'wrong', 'missed'))


def _figure(caption: str, columns: Sequence[tuple[str, str]]) -> str:
    cells = [f'<div>{_img(uri)}{escape(name)}</div>' for name, uri in columns]
    return f'<figure><figcaption>{escape(caption)}</figcaption><div class="side">{"".join(cells)}</div></figure>'


def _img(uri: str) -> str:
    return f'<img src="{uri}" alt="" loading="lazy">' if uri else '<i>not drawn</i> '


# ---------------------------------------------------------------------- parts of a comparison


def _comparison(c: Mapping[str, Any], drawings: Mapping[str, Sequence]) -> list[str]:
    body = [f'<h2 id="{c["metric"]}">{_METRICS[c["metric"]]}</h2>', f'<p><b>{escape(c["verdict"])}</b></p>',
            f'<p class="quiet">B less A, and the interval that holds 95 of 100 differences when the {c["images"]} '
            f'images are drawn anew {c["samples"]} times. Grey: it holds 0, so that other images might have said the '
            'opposite.</p>', '<h3>Overall</h3>', _differences(c['overall'])]  # fmt: skip
    if len(c['classes']) > 1:
        body += ['<h3>AP of the classes</h3>', _differences(c['classes'])]
    for key in ('worse', 'better'):
        rows = []
        for one, drawn in zip(c[key], drawings.get(key, ())):
            rows.append(_figure(f'{_image_name(one)}, F1 {100 * one["f1"]:+.1f}. A: {_counts(one["a"])}. B: '
                                f'{_counts(one["b"])}.', drawn))
        if rows:
            body.append(f'<h3>Images on which B is {key}</h3><p class="quiet">{_LEGEND}</p>{"".join(rows)}')
    return body


def _differences(rows: Sequence[Mapping]) -> str:
    limit = max((abs(one[key]) for one in rows for key in ('least', 'most')), default=0) or 1
    cells = []
    for one in rows:
        value = one['b'] - one['a']
        drawn = _Markup(plots.interval(one['least'], value, one['most'], limit))
        cells.append([_short(one['name']), _points(one['a']), _points(one['b']), f'{100 * value:+.1f}', drawn,
                      f'{100 * one["least"]:+.1f} to {100 * one["most"]:+.1f}'])
    return _table(['', 'A', 'B', 'B - A', 'interval', ''], cells)


# ---------------------------------------------------------------------- drawings


def draw(path: str | Path, instances: InstanceData, classes: Sequence[str], good: Sequence[bool]) -> str:
    """A data URI of the image at `path` with instances drawn on it, large images made smaller.

    Args:
        instances: in pixels of the image; masks as RLEs.
        good: of each, whether it is right, or found.
    """
    image = read_image(path)
    factor = min(1.0, _LONGEST / max(image.shape[:2]))
    if factor < 1:
        height, width = (max(round(factor * side), 1) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        instances = instances.clone()
        instances.bboxes = torch.as_tensor(instances.bboxes) * factor
        if 'masks' in instances:
            instances.masks = [cv2.resize(coco_mask.decode(m), (width, height), interpolation=cv2.INTER_AREA)
                               for m in instances.masks]  # fmt: skip
    colours = [_GOOD if one else _BAD for one in good]
    return data_uri(draw_instances(image, instances, tuple(classes), 0.0, palette=colours, colour_by='instance'))


def draw_crop(path: str | Path, box: Sequence[float], label: int, score: float, classes: Sequence[str]) -> str:
    """A data URI of the surroundings of one detection; `box`: xyxy pixels."""
    image = read_image(path)
    height, width = image.shape[:2]
    x1, y1, x2, y2 = box
    half = max(x2 - x1, y2 - y1, 24) * 0.8
    left, right = (int(np.clip((x1 + x2) / 2 + side * half, 0, width)) for side in (-1, 1))
    top, bottom = (int(np.clip((y1 + y2) / 2 + side * half, 0, height)) for side in (-1, 1))
    crop = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    factor = 200 / max(crop.shape[:2])
    crop = cv2.resize(crop, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    box = (torch.tensor([box]) - torch.tensor([left, top, left, top])) * factor
    found = InstanceData(bboxes=box, labels=torch.tensor([label]), scores=torch.tensor([score]))
    return data_uri(draw_instances(crop, found, tuple(classes), 0.0, zoom=1))


def data_uri(image: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as text that a page shows."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'webp', quality=75)
    return f'data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}'


# ---------------------------------------------------------------------- tables and numbers


class _Markup(str):
    """Text that is HTML already."""


def _table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    def cell(value: Any) -> str:
        return value if isinstance(value, _Markup) else escape(str(value))

    lines = [''.join(f'<td>{cell(value)}</td>' for value in row) for row in rows]
    return (f'<div class="scroll"><table><tr>{"".join(f"<th>{escape(name)}</th>" for name in head)}</tr>'
            + ''.join(f'<tr>{line}</tr>' for line in lines) + '</table></div>')  # fmt: skip


def _points(value: float | None) -> str:
    """Of 100; a dash where there is nothing to count."""
    return '-' if value is None else f'{100 * value:.1f}'


def _two(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'
