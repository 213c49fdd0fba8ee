"""AP of the models that tools/reproduce_paper.sh has tested, beside the published ones.

python projects/norm_study/paper_table.py work_dirs/paper
"""

import json
import sys
from pathlib import Path

NORMS = {'none': '', 'SyncBN': '_syncbn', 'GN': '_gn', 'CBN': '_cbn_buffer3_burnin8'}
AS_RELEASED = 'CBN as released'  # what the released layer computed; a row of its own where it was run
# Published with the method: R-50-FPN, 1x, backbone norm fixed. AP, AP50, AP75.
PUBLISHED = {
    ('faster', 'bbox'): {
        'none': (36.8, 57.9, 39.8), 'SyncBN': (37.5, 58.4, 40.6), 'GN': (37.7, 59.2, 41.2), 'CBN': (37.6, 58.5, 40.9),
    },
    ('mask', 'bbox'): {
        'none': (37.6, 58.5, 41.0), 'SyncBN': (38.5, 58.9, 42.0), 'GN': (38.5, 59.4, 41.8), 'CBN': (38.4, 58.9, 42.2),
    },
    ('mask', 'segm'): {
        'none': (34.0, 55.2, 36.2), 'SyncBN': (34.3, 55.7, 36.7), 'GN': (35.0, 56.4, 37.3), 'CBN': (34.7, 55.9, 37.0),
    },
}  # fmt: skip


def result(folder: Path, model: str, norm: str) -> Path:
    return folder / f'{model}_rcnn_r50_fpn{NORMS.get(norm, "_cbn_as_released")}_1x' / 'ap.json'


def row(folder: Path, model: str, metric: str, norm: str) -> tuple[str, ...]:
    """Model, norm, published AP / AP50 / AP75, ours, difference of AP."""
    published = PUBLISHED[model, metric]['CBN' if norm == AS_RELEASED else norm]
    title = f'{model.capitalize()} R-CNN {"mask" if metric == "segm" else "box"}'
    path = result(folder, model, norm)
    if not path.exists():
        return title, norm, ' / '.join(map(str, published)), 'not run', ''
    measured = json.loads(path.read_text())
    ours = [100 * measured[f'coco/{metric}_mAP{suffix}'] for suffix in ('', '_50', '_75')]
    return (
        title, norm, ' / '.join(map(str, published)), ' / '.join(f'{value:.1f}' for value in ours),
        f'{ours[0] - published[0]:+.1f}',
    )  # fmt: skip


def table(folder: Path) -> str:
    rows = [('model', 'norm', 'published AP / AP50 / AP75', 'here', 'difference of AP'), ('---',) * 5]
    for model, metric in PUBLISHED:
        norms = [*NORMS, AS_RELEASED] if result(folder, model, AS_RELEASED).exists() else NORMS
        rows += [row(folder, model, metric, norm) for norm in norms]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in rows)


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(table(Path(sys.argv[1])))
